"""Markdown from plain text: what it means stays as it is written."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\*_\[\]#|~])")
_CODE = re.compile(r"(`[^`]+`)")


def escaped(text: str) -> str:
    """The text as Markdown that shows it, its `code` as code.

    >>> escaped("`a_b` is |a| * <b>")
    '`a_b` is \\\\|a\\\\| \\\\* &lt;b&gt;'
    """
    return "".join(
        part if part.startswith("`") else _SPECIAL.sub(r"\\\1", html.escape(part, quote=False))
        for part in _CODE.split(text)
    )


def cell(text: str) -> str:
    """The text as one cell of a table.

    >>> cell("`a | b`")
    '`a \\\\| b`'
    """
    one_line = " ".join(text.split())
    return "".join(
        part.replace("|", r"\|") if part.startswith("`") else escaped(part) for part in _CODE.split(one_line)
    )


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def fenced(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def prose(text: str) -> str:
    """Paragraphs, indented blocks and examples of a docstring, without what it says under Shapes, Units and so on."""
    blocks = re.split(r"\n\s*\n", textwrap.dedent(text).strip("\n"))
    return "\n".join(_block(block) for block in blocks if block.strip())


def _block(block: str) -> str:
    if block.lstrip().startswith(">>>"):
        return fenced(textwrap.dedent(block), "pycon")
    if block.startswith("  "):
        return fenced(textwrap.dedent(block))
    return escaped(block) + "\n"
