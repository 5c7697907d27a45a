"""Domains as people write them, read: box:LOW,HIGH and ball:RADIUS[@FILE]. Nothing of torch is needed for that."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches

from lipcheck.errors import UsageError
from lipcheck.text import clean

EXAMPLES = "box:0,1 (pixel values), ball:0.5 (around zero) or ball:0.5@cat.png"
_KINDS = ("box", "ball")
_NUMBER = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})(e[+-]?\d{1,3})?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class WrittenDomain:
    """What a text says: a kind, its numbers (low and high, or a radius), and the file of a ball's centre."""

    kind: str
    numbers: tuple[float, ...]
    file: str = ""


def read_domain(text: str) -> WrittenDomain:
    """The domain that the text names, its numbers checked; files are not opened.

    >>> read_domain("box:0,1")
    WrittenDomain(kind='box', numbers=(0.0, 1.0), file='')
    >>> read_domain("ball:0.5@cat.png")
    WrittenDomain(kind='ball', numbers=(0.5,), file='cat.png')

    Errors: UsageError in one line.
    """
    kind, colon, rest = text.strip().partition(":")
    if not colon or kind.lower() not in _KINDS:
        near = get_close_matches(kind.lower(), _KINDS, n=1)
        hint = f"did you mean {near[0]}:{rest}?" if near and rest else f"write it like {EXAMPLES}"
        raise UsageError(f"the domain {clean(text)!r} is no box and no ball; {clean(hint)}")
    if kind.lower() == "box":
        ends = [_number(text, part) for part in rest.split(",")]
        if len(ends) != 2:
            raise UsageError(f"the domain {clean(text)!r} has not two ends; write a box like box:0,1")
        check_box(*ends)
        return WrittenDomain("box", tuple(ends))
    size, at, file = rest.partition("@")
    if at and not file:
        raise UsageError(f"the domain {clean(text)!r} names no file behind its @; write a ball like ball:0.5@cat.png")
    radius = _number(text, size)
    check_radius(radius)
    return WrittenDomain("ball", (radius,), file)


def check_box(low: float, high: float) -> None:
    """Refuses ends between which there is nothing."""
    for end in (low, high):
        if not math.isfinite(end):
            raise UsageError(f"an end of the box is {end}; give two finite numbers, like box:0,1")
    if low >= high:
        raise UsageError(f"the box is empty: its low end {low:g} is not below its high end {high:g}; like box:0,1")


def check_radius(radius: float) -> None:
    """Refuses what is no radius, and that of a single point."""
    if not 0 < radius < math.inf:
        raise UsageError(f"the radius of the ball is {radius:g}; give a positive number, like ball:0.5")


def _number(text: str, part: str) -> float:
    if not _NUMBER.fullmatch(part.strip()):
        raise UsageError(f"the domain {clean(text)!r}: {clean(part)!r} is no finite number; write it like {EXAMPLES}")
    return float(part)
