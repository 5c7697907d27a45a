"""The course of a run's bounds for people at a terminal: a row for each checkpoint, and a chart of them all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.cells import cell_len
from rich.text import Text

from lipcheck import numbers
from lipcheck.course import Point, grown_since, log10_uppers
from lipcheck.renderers.changes import signed
from lipcheck.renderers.judgement import wrapped
from lipcheck.renderers.table import cut_middle, cut_path
from lipcheck.text import clean

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 6
_WIDEST_COLUMN = 4
_WIDEST_LINE = 40  # columns of a line of blocks
_LAYERS = 5
_GROWTH = 26  # least cells for the layers that grew
_LEAST_NAME, _LARGEST_NAME = 20, 44
_NUMBERS = 10 + 10 + 8  # the columns of numbers with the space in front of them


def name_width(names: Sequence[str], width: int) -> int:
    """The cells of the column of names, so that a row with its numbers fits in `width`."""
    longest = max((cell_len(clean(name)) for name in names), default=_LEAST_NAME)
    return max(_LEAST_NAME, min(longest, _LARGEST_NAME, width - _NUMBERS - 2 - _GROWTH))


def heading(names: int, *, claimed: bool) -> Text:
    """What stands above the rows."""
    upper, lower = ("log10 up", "sampled") if claimed else ("largest", "layers")
    words = f"{'checkpoint':<{names}}{upper:>10}{lower:>10}{'moved':>8}  grew since the one before"
    return Text(words, style="bold", no_wrap=True, overflow="ignore")


def row(one: Point, before: Point | None, names: int, width: int) -> Text:
    """One checkpoint in one line, or why it was not audited in as many as that takes."""
    name = cut_middle(clean(one.name), names)
    line = Text(name + " " * (names - cell_len(name)), style="cyan", no_wrap=True, overflow="ignore")
    if one.problem:
        room = max(width - names - 2, 20)
        words = (cut_middle(word, room) for word in f"not audited: {clean(one.problem)}".split(" "))
        told = wrapped(" ".join(words), room)
        return line.append(f"\n{' ' * names}".join(f"  {part}" for part in told), style="yellow")
    line.append(f"{_upper(one):>10}", style="bold not cyan").append(f"{_lower(one):>10}", style="not cyan")
    line.append(f"{_moved(one, before):>8}", style="not cyan")
    growth = _growth(one, width - names - _NUMBERS - 2)
    return line.append(f"  {growth}" if growth else "", style="dim not cyan")


def summary(points: Sequence[Point], width: int) -> list[Text]:
    """The chart of the network's bound, the sampled lower bounds, and the layers that grew most over the course."""
    audited = [one for one in points if not one.problem]
    if not audited:
        return [Text("no checkpoint could be audited", style="yellow")] if points else []
    lines = [_title(points, audited, width), *_chart(points, width)]
    if any(one.network is not None and one.network.samples for one in audited):
        lines.append(_sampled(points, audited, width))
    risen = grown_since(audited[0], audited[-1])
    if len(audited) > 1:
        lines += _risen(points, risen, width)
    return lines


def plot(values: Sequence[float], width: int, height: int, *, widest: int = 1) -> list[str]:
    """Columns of blocks for the values, the highest line first; of more values than columns, the largest of each share.

    An infinite value is a full column with its sign on top, one that is missing (nan) a cross at the bottom.

    >>> for line in plot([1.0, 2.0, math.nan, 4.0], 4, 2):
    ...     print(line)
       █
    ▁▆×█
    """
    shown = _shares(values, width)
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    across = max(1, min(widest, width // max(len(shown), 1)))
    columns = [_column(value, low, high, height) for value in shown]
    gap = 1 if across > 1 else 0
    return ["".join(column[line] * (across - gap) + " " * gap for column in columns) for line in range(height)]


def _column(value: float, low: float, high: float, height: int) -> list[str]:
    """One column from its top to its bottom. The lowest value has one eighth, so that it is seen."""
    if math.isnan(value):
        return [" "] * (height - 1) + ["×"]
    if value == math.inf:
        return ["∞"] + ["█"] * (height - 1)
    part = 0.0 if value == -math.inf else ((value - low) / (high - low) if high > low else 0.5)
    eighths = 1 + round(part * (8 * height - 1))
    return [_EIGHTHS[max(0, min(8, eighths - 8 * (height - 1 - line)))] for line in range(height)]


def _shares(values: Sequence[float], width: int) -> list[float]:
    """At most `width` numbers: the largest of each equal share of the values; nan where a share has none."""
    if len(values) <= width:
        return list(values)
    ends = [round(place * len(values) / width) for place in range(width + 1)]
    parts = (values[begin:end] for begin, end in pairwise(ends))
    return [max((value for value in part if not math.isnan(value)), default=math.nan) for part in parts]


def _title(points: Sequence[Point], audited: Sequence[Point], width: int) -> Text:
    claimed = any(one.claimed for one in audited)
    word = "certified" if all(one.certified for one in audited) else "not everywhere certified"
    what = f"{word} upper bound of the " + ("network" if claimed else "largest layer")
    count = f"{len(points)} checkpoint{'' if len(points) == 1 else 's'}"
    if len(audited) < len(points):
        count += f", {len(audited)} of them audited"
    return Text("\n".join(wrapped(f"{what}, in powers of ten · {count}", width)), style="bold")


def _chart(points: Sequence[Point], width: int) -> Iterator[Text]:
    values = log10_uppers(points)
    finite = [value for value in values if math.isfinite(value)]
    ends = {0: numbers.power_up(max(finite)), _HEIGHT - 1: numbers.power_up(min(finite))} if finite else {}
    margin = max((len(end) for end in ends.values()), default=0)
    lines = plot(values, width - margin - 4, _HEIGHT, widest=_WIDEST_COLUMN)
    for number, line in enumerate(lines):
        axis = f"  {ends.get(number, ''):>{margin}} {'┤' if number in ends else '│'}"
        yield Text(axis, style="dim", no_wrap=True, overflow="ignore").append(line.rstrip(), style="green not dim")
    first, last = clean(points[0].name), clean(points[-1].name)
    if len(points) > 1:
        room = (width - margin - 9) // 2
        names = f"{cut_middle(first, room)} … {cut_middle(last, room)}"
        yield Text(" " * (margin + 4) + names, style="dim", no_wrap=True, overflow="ignore")


def _sampled(points: Sequence[Point], audited: Sequence[Point], width: int) -> Text:
    values = [math.nan if one.network is None else _log(one.network.lower) for one in points]
    ends = [numbers.down(one.network.lower) for one in (audited[0], audited[-1]) if one.network is not None]
    words = f"sampled lower  {' → '.join(dict.fromkeys(ends))}  "
    line = Text(words, no_wrap=True, overflow="ignore")
    return line.append(_line(values, width - cell_len(words)), style="green")


def _risen(points: Sequence[Point], risen: Sequence[tuple[str, float, float]], width: int) -> Iterator[Text]:
    if not risen:
        yield Text("no layer's upper end is larger than at first", style="dim")
        return
    yield Text("layers that grew most since the first", style="bold")
    cells = [(_named(name), f"{numbers.up(old)} → {numbers.up(new)}", _rise(old, new)) for name, old, new in risen]
    cells = cells[:_LAYERS]
    ends, rises = (max(len(one[place]) for one in cells) for place in (1, 2))
    room = max(8, min(max(cell_len(name) for name, *_ in cells), width - ends - rises - 6 - 12))
    for (name, end, rise), (path, *_) in zip(cells, risen, strict=False):
        shown = cut_path(name, room)
        words = f"{' ' * (room - cell_len(shown))}  {end:>{ends}}  {rise:>{rises}}  "
        line = Text("  ", no_wrap=True, overflow="ignore").append(shown, style="cyan").append(words)
        values = [_log(one.norms.get(path, math.nan)) for one in points]
        yield line.append(_line(values, width - cell_len(line.plain)), style="green")


def _line(values: Sequence[float], width: int) -> str:
    """The values as one line of blocks, each of one column."""
    room = min(width, _WIDEST_LINE)
    return plot(values, room, 1)[0] if room > 0 else ""


def _upper(one: Point) -> str:
    """The exponent of the network's bound, rounded up; the largest layer's norm where no bound is claimed."""
    if one.network is not None and one.claimed:
        return numbers.power_up(one.network.log10_upper)
    return numbers.up(one.largest[1]) if one.norms else "–"


def _lower(one: Point) -> str:
    if one.network is None or not one.claimed:
        return str(len(one.norms))
    return numbers.down(one.network.lower) if one.network.samples else "–"


def _moved(one: Point, before: Point | None) -> str:
    """By how many powers of ten the bound moved, rounded up."""
    if before is None:
        return "–"
    old, new = log10_uppers([before, one])
    return signed(numbers.power_up(new - old)) if math.isfinite(old) and math.isfinite(new) else "–"


def _growth(one: Point, room: int) -> str:
    """The layers that grew most, as many as fit; how many more there are."""
    told = ""
    for place, (name, part) in enumerate(one.grown):
        more = len(one.grown) - place - 1
        percent = f" {signed(numbers.percent_up(part))}%"
        shown = cut_path(_named(name), max(8, room - cell_len(percent) - 5)) if not told else _named(name)
        longer = f"{told}, {shown}{percent}" if told else f"{shown}{percent}"
        rest = f" (+{more})" if more else ""
        if told and (place == _LAYERS or cell_len(longer + rest) > room):
            return f"{told} (+{more + 1})"
        told = longer
    return told


def _rise(old: float, new: float) -> str:
    return f"{signed(numbers.percent_up(new / old - 1))}%" if old > 0 and new < math.inf else "∞"


def _named(path: str) -> str:
    return clean(path) or "(model)"


def _log(value: float) -> float:
    return -math.inf if value == 0 else math.log10(value)
