"""The table of layers: which columns, and how wide, so that a row is one line and no number is ever cut.

The table is laid out by hand. When it is too wide for the terminal it gives way step by step, as `_GIVES_WAY` says:
the bar shortens, the input sizes go, names are cut in the middle; numbers go last, and then by whole columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from lipcheck.bound import Bound
from lipcheck.renderers import describe, numbers
from lipcheck.report import LayerReport

_ELLIPSIS = "…"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MARKS = {"certified": "", "probabilistic": "p ", "estimate": "~ "}


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading and its cells, and how wide it stands."""

    name: str
    heading: str
    cells: tuple[str, ...]
    width: int
    right: bool = True
    style: str = ""


def layer_table(layers: Sequence[LayerReport], width: int) -> list[Text]:
    """The heading, a rule and one line a layer, none wider than `width` unless the numbers alone are."""
    columns, gap = _fit(_columns(layers), width)
    columns = [_filled(column, layers) if column.name == "bar" else column for column in columns]
    lines = [_line([_place(column.heading, column) for column in columns], ["bold"] * len(columns), gap)]
    lines.append(Text("─" * _total(columns, gap), style="dim", no_wrap=True, overflow="ignore"))
    for row in range(len(layers)):
        cells = [_place(column.cells[row], column) for column in columns]
        lines.append(_line(cells, [column.style for column in columns], gap))
    return lines


def marked(bound: Bound) -> str:
    """The upper end, marked where it is not certified: p holds with a stated probability, ~ is an estimate."""
    return _MARKS[bound.kind] + numbers.up(bound.upper)


def cut_middle(text: str, width: int) -> str:
    """The text in at most `width` cells, its middle replaced by an ellipsis; both ends stay readable.

    >>> cut_middle("layer1.0.conv2", 9)
    'laye…onv2'
    """
    if cell_len(text) <= width:
        return text
    if width <= 1:
        return _ELLIPSIS[:width]
    head = (width - 1) // 2
    kept = set_cell_size(text, head)
    tail = text
    while cell_len(tail) > width - 1 - head:
        tail = tail[1:]
    return f"{kept}{_ELLIPSIS}{tail}"


def bar(part: float, width: int) -> str:
    """A bar of `width` cells, filled to `part` of it, in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def share_text(share: float | None) -> str:
    """A share in per cent with one decimal; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}%"


def _columns(layers: Sequence[LayerReport]) -> list[Column]:
    def column(name: str, heading: str, cell: Callable[[LayerReport], str], right: bool, style: str = "") -> Column:
        cells = tuple(cell(layer) for layer in layers)
        return Column(name, heading, cells, max(map(cell_len, (heading, *cells))), right, style)

    found = [
        column("layer", "layer", _name, False, "cyan"),
        column("operator", "operator", describe.operator, False),
        column("input", "input", describe.input_size, True, "dim"),
        column("lower", "lower", lambda layer: numbers.down(layer.bound.lower), True),
        column("upper", "upper", lambda layer: marked(layer.bound), True, "bold"),
        column("slack", "slack", _slack, True, "dim"),
    ]
    for name in dict.fromkeys(name for layer in layers for name in layer.compared):
        found.append(column(name, name, partial(_compared, name), True))
    if any(layer.merged is not None for layer in layers):
        found.append(column("merged", "merged", lambda layer: marked(layer.merged) if layer.merged else "", True))
    if any(layer.share is not None for layer in layers):
        found.append(column("share", "share", lambda layer: share_text(layer.share), True))
        found.append(Column("bar", "", ("",) * len(layers), 16, False, "green"))
    return found


def _name(layer: LayerReport) -> str:
    return describe.path(layer) + (f" ×{layer.calls}" if layer.calls > 1 else "")


def _compared(name: str, layer: LayerReport) -> str:
    return marked(layer.compared[name]) if name in layer.compared else "–"


def _slack(layer: LayerReport) -> str:
    slack = layer.bound.slack
    return "∞" if math.isinf(slack) else f"{numbers.percent_up(slack)}%"


# What gives way, in this order, and how far: a floor of 0 drops the column; "gap" is the space between columns.
_GIVES_WAY = (
    *(("bar", 6), ("input", 0), ("gap", 1), ("bar", 4), ("layer", 22), ("bar", 0), ("layer", 16)),
    *(("operator", 14), ("operator", 0), ("share", 0), ("slack", 0), ("layer", 8), ("merged", 0)),
)


def _fit(columns: list[Column], width: int) -> tuple[list[Column], int]:
    """The columns that fit in `width`, and the gap between them."""
    gap = 2
    for name, floor in _GIVES_WAY:
        excess = _total(columns, gap) - width
        if excess <= 0:
            break
        if name == "gap":
            gap = floor
        columns = [_shrink(column, excess, floor) if column.name == name else column for column in columns]
        columns = [column for column in columns if column.width > 0]
    return columns, gap


def _total(columns: Sequence[Column], gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def _shrink(column: Column, excess: int, floor: int) -> Column:
    return replace(column, width=min(column.width, max(floor, column.width - excess)) if floor else 0)


def _filled(column: Column, layers: Sequence[LayerReport]) -> Column:
    """Bars against the largest share, so that the heaviest layer fills its cell."""
    shares = [layer.share or 0.0 for layer in layers]
    most = max(shares)
    return replace(column, cells=tuple(bar(share / most if most > 0 else 0.0, column.width) for share in shares))


def _place(text: str, column: Column) -> str:
    shown = cut_middle(text, column.width)
    padding = " " * (column.width - cell_len(shown))
    return padding + shown if column.right else shown + padding


def _line(cells: Sequence[str], styles: Sequence[str], gap: int) -> Text:
    line = Text(no_wrap=True, overflow="ignore")
    for index, (cell, style) in enumerate(zip(cells, styles, strict=True)):
        line.append(" " * gap if index else "").append(cell, style=style)
    line.rstrip()
    return line
