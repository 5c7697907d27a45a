"""A docstring as Markdown: what is true of the result, then its Shapes, Units, Errors and Source."""

from __future__ import annotations

import inspect
import re

from manual.markup import escaped, prose

SECTIONS = ("Shapes", "Units", "Errors", "Source")
_SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):[ \t]+", re.MULTILINE)


def rendered(documented: object) -> str:
    """The docstring of a class, function, property or module. Errors: ValueError where there is none."""
    text = inspect.getdoc(documented)
    if not text:
        raise ValueError(f"{documented!r} has no docstring")
    return markdown(text)


def markdown(text: str) -> str:
    """A docstring's Markdown.

    >>> print(markdown("One.\\n\\nUnits: seconds,\\n    of the clock.\\nMore."))
    One.
    <BLANKLINE>
    More.
    <BLANKLINE>
    **Units**: seconds, of the clock.
    <BLANKLINE>
    """
    told, sections = [], []
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        if not _SECTION.match(line):
            told.append(line)
            continue
        name, said = line.split(":", 1)
        # A section ends where the text is no longer indented.
        while lines and lines[0].startswith(" "):
            said += " " + lines.pop(0).strip()
        sections.append(f"**{name}**: {escaped(' '.join(said.split()))}\n")
    return "\n".join([prose("\n".join(told)), *sections])
