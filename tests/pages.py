"""The blocks of the documentation, as a reader meets them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}


@dataclass(frozen=True)
class Block:
    """A block of code with the language that its fence names; "" where it names none, "indented" without a fence."""

    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """Those of a page, in order."""
    lines = iter(text.splitlines())
    before = ""
    for line in lines:
        if fence := re.match(r"( *)(`{3,})(\S*)\s*$", line):
            inside = []
            for inner in lines:
                if inner.strip() == fence[2]:
                    break
                inside.append(inner[len(fence[1]) :])
            yield Block(fence[3], "\n".join(inside) + "\n")
        elif line.startswith("    ") and not before.strip():
            yield Block("indented", line.strip() + "\n")
        before = line


def commands(text: str) -> list[list[str]]:
    """The command lines of a shell block as words, without comments; a line's continuation belongs to it."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in joined.splitlines()]
    return [words for words in found if words]


def inline(text: str) -> list[str]:
    """What stands between single backticks outside of blocks, on one line."""
    outside = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", outside)]
