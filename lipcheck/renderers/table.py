"""The table of layers: which columns, and how wide, so that a row is one line and no number is ever cut.

The table is laid out by hand. When it is too wide for the terminal it gives way step by step, as `_GIVES_WAY` says:
the bar shortens, the input sizes go, names are cut in the middle; numbers go last, and then by whole columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from lipcheck import numbers
from lipcheck.bound import Bound
from lipcheck.renderers import describe
from lipcheck.report import LayerReport

_ELLIPSIS = "…"
_LEAST_NAME = 8  # cells under which a name is just cut in the middle
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
    # No character is wider than two cells, and few have none.
    tail = text[-4 * width :]
    while cell_len(tail) > width - 1 - head:
        tail = tail[1:]
    return f"{kept}{_ELLIPSIS}{tail}"


def cut_path(text: str, width: int) -> str:
    """A layer's name in at most `width` cells: its longest words go first, its numbers and its last word last.

    >>> cut_path("encoder.layer.0.attention.self.query", 22)
    '….layer.0.….self.query'
    >>> cut_path("layer1.0.conv2", 9)
    '….0.conv2'
    """
    path, space, rest = text.partition(" ")
    words, room = path.split("."), width - cell_len(space + rest)
    if cell_len(text) <= width or len(words) < 3 or room < _LEAST_NAME:
        return cut_middle(text, width)
    earlier = [place for place in range(len(words) - 2) if not words[place].isdigit()]
    order = sorted(earlier, key=lambda place: -len(words[place]))
    for place in [*order, len(words) - 2]:
        words[place] = words[place] if words[place].isdigit() else _ELLIPSIS
        if cell_len(shown := _joined(words)) <= room:
            return shown + space + rest
    head = f"{_joined(words[:-1])}."
    left = room - cell_len(head)
    return head + cut_middle(words[-1], left) + space + rest if left >= _LEAST_NAME else cut_middle(text, width)


def _joined(words: Sequence[str]) -> str:
    """The words with dots between, one ellipsis for several in a row."""
    kept = [
        word for place, word in enumerate(words) if word != _ELLIPSIS or place == 0 or words[place - 1] != _ELLIPSIS
    ]
    return ".".join(kept)


def bar(part: float, width: int) -> str:
    """A bar of `width` cells, filled to `part` of it, in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def share_text(share: float | None) -> str:
    """A share in per cent with one decimal; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}%"


def slope_text(slope: Bound | None) -> str:
    """The upper end of a normalisation's own constant; nothing where there is none."""
    return "" if slope is None else marked(slope)


def _differs(layer: LayerReport) -> bool:
    """Whether a normalisation is known to be less steep on its ranges than everywhere."""
    both = layer.slope, layer.slope_everywhere
    return both[0] is not None and both[1] is not None and both[0].upper < both[1].upper


def _columns(layers: Sequence[LayerReport]) -> list[Column]:
    def column(name: str, heading: str, cell: Callable[[LayerReport], str], right: bool, style: str = "") -> Column:
        cells = tuple(cell(layer) for layer in layers)
        return Column(name, heading, cells, max(map(cell_len, (heading, *cells))), right, style)

    found = [
        column("layer", "layer", describe.row_name, False, "cyan"),
        column("operator", "operator", describe.operator, False),
        column("input", "input", describe.input_size, True, "dim"),
        column("lower", "lower", describe.lower, True),
        column("upper", "upper", lambda layer: marked(layer.bound), True, "bold"),
        column("slack", "slack", describe.slack, True, "dim"),
    ]
    for name in dict.fromkeys(name for layer in layers for name in layer.compared):
        found.append(column(name, name, partial(_compared, name), True))
    if any(layer.merged is not None for layer in layers):
        found.append(column("merged", "merged", lambda layer: marked(layer.merged) if layer.merged else "", True))
    if any(layer.slope is not None for layer in layers):
        found.append(column("slope", "slope", lambda layer: slope_text(layer.slope), True))
    if any(_differs(layer) for layer in layers):
        found.append(column("everywhere", "anywhere", lambda layer: slope_text(layer.slope_everywhere), True))
    if any(layer.share is not None for layer in layers):
        found.append(column("share", "share", lambda layer: "" if layer.part else share_text(layer.share), True))
        found.append(Column("bar", "", ("",) * len(layers), 16, False, "green"))
    return found


def _compared(name: str, layer: LayerReport) -> str:
    return marked(layer.compared[name]) if name in layer.compared else "–"


# What gives way, in this order, and how far: a floor of 0 drops the column; "gap" is the space between columns.
_GIVES_WAY = (
    *(("bar", 6), ("input", 0), ("everywhere", 0), ("gap", 1), ("bar", 4), ("layer", 22), ("bar", 0), ("layer", 16)),
    *(("operator", 14), ("operator", 0), ("share", 0), ("slack", 0), ("slope", 0), ("layer", 8), ("merged", 0)),
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
    shown = cut_path(text, column.width) if column.name == "layer" else cut_middle(text, column.width)
    padding = " " * (column.width - cell_len(shown))
    return padding + shown if column.right else shown + padding


def _line(cells: Sequence[str], styles: Sequence[str], gap: int) -> Text:
    line = Text(no_wrap=True, overflow="ignore")
    for index, (cell, style) in enumerate(zip(cells, styles, strict=True)):
        line.append(" " * gap if index else "").append(cell, style=style)
    line.rstrip()
    return line
