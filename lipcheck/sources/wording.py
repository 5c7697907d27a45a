"""Foreign text in one-line messages: tensor names, library errors and file names made printable and short."""

from __future__ import annotations

from collections.abc import Sequence

from lipcheck.text import clean

LONGEST = 120  # characters of one foreign text
NAMED = 3  # items of a list that are named; the rest are counted


def plain(text: object, *, longest: int = LONGEST) -> str:
    """The text with every character escaped that is not plainly visible, cut in the middle when over `longest`."""
    shown = clean(str(text))
    if len(shown) <= longest:
        return shown
    half = (longest - 1) // 2
    return f"{shown[:half]}…{shown[-half:]}"


def reason(error: BaseException) -> str:
    """The first line of what the error says, or its class when it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return plain(lines[0].rstrip(".")) if lines else type(error).__name__


def some(items: Sequence[object]) -> str:
    """At most three of the items, and how many more there are."""
    named = ", ".join(plain(item) for item in items[:NAMED])
    return named if len(items) <= NAMED else f"{named} and {len(items) - NAMED} more"


def times(size: Sequence[int]) -> str:
    """3x224x224, as the option `--input` takes it."""
    return "x".join(str(side) for side in size) or "scalar"
