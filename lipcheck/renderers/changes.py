"""A Difference for people at a terminal: what moved, the network's bound, and how many layers are in each state."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len

from lipcheck import numbers
from lipcheck.bound import Bound
from lipcheck.diff import STATES, Difference, LayerChange, State
from lipcheck.renderers import describe
from lipcheck.renderers.judgement import shortened, wrapped
from lipcheck.renderers.table import cut_path, marked
from lipcheck.report import ModelSummary, NetworkReport
from lipcheck.text import clean

_SIGNS: dict[State, str] = {
    "raised": "▲",
    "reshaped": "≠",
    "added": "+",
    "removed": "-",
    "lowered": "▼",
    "within slack": "≈",
    "unchanged": "=",
}
_HEADINGS = ("", "layer", "before", "after", "change", "log10", "state")
_NAME, _LEAST_NAMES = 1, (22, 16, 8)
_LONGEST = 500  # characters of a name


def text(difference: Difference, width: int, *, every: bool = False) -> str:
    """The table of layers, what matters first, and the counts; unchanged layers are only counted unless `every`.

    Before and after are enclosures; the change is that of their upper ends, rounded up. In a narrow terminal names
    are cut first, then the lower ends go, then the powers of ten; the other numbers are never cut.
    """
    shown = listed(difference, every=every)
    lines = [*wrapped(f"before  {_model(difference.before)}", width, indent=8)]
    lines += [*wrapped(f"after   {_model(difference.after)}", width, indent=8), ""]
    lines += [*_table(shown, width), ""] if shown else []
    lines += wrapped(f"network  {network(difference)}", width, indent=2)
    lines += wrapped(counts(difference), width, indent=2)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def listed(difference: Difference, *, every: bool = False) -> tuple[LayerChange, ...]:
    """The changes that are shown one by one: all but those of unchanged layers."""
    return tuple(change for change in difference.layers if every or change.state != "unchanged")


def counts(difference: Difference) -> str:
    """How many layers there are in each state: 3 layers: 1 raised, 2 unchanged."""
    total = len(difference.layers)
    found = difference.counts
    parts = [f"{found[state]} {state}" for state in STATES if state in found]
    return f"{total} layer{describe.s(total)}{': ' if parts else ''}{', '.join(parts)}"


def network(difference: Difference) -> str:
    """What became of the bound on the network: 10^18.77 → 10^19.02 (+0.26 in log10)."""
    old, new = difference.network_before, difference.network_after
    moved = "" if math.isnan(difference.log10) else f" ({signed(numbers.power_up(difference.log10))} in log10)"
    return f"{_power(old)} → {_power(new)}{moved}"


def percent(change: LayerChange) -> str:
    """By how many per cent the upper end moved, rounded up; a dash where there is no such number."""
    return "–" if math.isnan(change.ratio) else f"{signed(numbers.percent_up(change.ratio - 1))}%"


def log10(change: LayerChange) -> str:
    """By how many powers of ten the upper end moved, rounded up; a dash where there is no such number."""
    return "–" if math.isnan(change.log10) else signed(numbers.power_up(change.log10))


def enclosure(bound: Bound | None) -> str:
    """Both ends: 1.9998 … 2.0005; a dash where there is no layer."""
    return "–" if bound is None else f"{numbers.down(bound.lower)} … {marked(bound)}"


def name(change: LayerChange) -> str:
    """The layer's path and part, safe to print."""
    known = change.after or change.before
    return describe.path(known) if known else clean(change.layer) or "(model)"


def signed(number: str) -> str:
    """The number with a plus where it is positive, and without a minus where it is zero.

    >>> signed("0.30"), signed("-0.00"), signed("-1.5")
    ('+0.30', '0.00', '-1.5')
    """
    if not number.strip("-0."):
        return number.lstrip("-")
    return number if number.startswith("-") else f"+{number}"


def _model(model: ModelSummary) -> str:
    return f"{clean(model.name)} · {clean(model.weights)}"


def _power(network: NetworkReport) -> str:
    if not network.claimed:
        return "no bound claimed"
    return describe.power(network.log10_upper)


def _table(shown: Sequence[LayerChange], width: int) -> list[str]:
    rows, right = _fit([_HEADINGS, *map(_cells, shown)], width)
    across = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(_padded, row, across, right)) for row in rows]
    lines.insert(1, "─" * (sum(across) + 2 * (len(across) - 1)))
    return lines


def _cells(change: LayerChange) -> tuple[str, ...]:
    old, new = change.bounds
    numbers_of_it = (enclosure(old), enclosure(new), percent(change), log10(change))
    return (_SIGNS[change.state], shortened(name(change), _LONGEST), *numbers_of_it, change.state)


def _fit(rows: Sequence[tuple[str, ...]], width: int) -> tuple[list[tuple[str, ...]], list[bool]]:
    """The cells that fit in `width`, and which columns stand on the right."""
    right = [False, False, True, True, True, True, False]
    kept = _cut(rows, width, _LEAST_NAMES[0])
    if _wide(kept) > width:
        rows = [(*row[:2], _upper(row[2]), _upper(row[3]), *row[4:]) for row in rows]
        kept = _cut(rows, width, _LEAST_NAMES[1])
    if _wide(kept) > width:
        rows, right = [(*row[:5], *row[6:]) for row in rows], [*right[:5], *right[6:]]
        kept = _cut(rows, width, _LEAST_NAMES[2])
    return kept, right


def _upper(cell: str) -> str:
    return cell.rpartition("… ")[2]


def _cut(rows: Sequence[tuple[str, ...]], width: int, least: int) -> list[tuple[str, ...]]:
    """The rows with their names cut to what is left for them, at least to `least` cells."""
    across = max(cell_len(row[_NAME]) for row in rows)
    room = max(least, across - max(0, _wide(rows) - width))
    return [(*row[:_NAME], cut_path(row[_NAME], room), *row[_NAME + 1 :]) for row in rows]


def _wide(rows: Sequence[tuple[str, ...]]) -> int:
    return sum(max(map(cell_len, column)) for column in zip(*rows, strict=True)) + 2 * (len(rows[0]) - 1)


def _padded(cell: str, across: int, right: bool) -> str:
    padding = " " * (across - cell_len(cell))
    return padding + cell if right else cell + padding
