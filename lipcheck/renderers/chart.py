"""Charts of a Report: where its bound grows along the depth, and the enclosures of its layers.

A chart is drawn once, as boxes, lines and words in pixels; then it is written as SVG or painted by matplotlib. What a
role looks like, on white and on dark paper, stands in one table.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal
from xml.sax.saxutils import escape

from lipcheck import numbers
from lipcheck.bound import Bound
from lipcheck.diff import applied
from lipcheck.errors import MissingExtraError
from lipcheck.renderers import describe
from lipcheck.renderers.table import cut_middle, cut_path, marked, share_text
from lipcheck.report import LayerReport, Report
from lipcheck.text import clean

WIDTH = 1000  # of the standalone chart, in pixels
NARROW = 350  # of a chart for a phone
_ROWS = 40  # enclosures that are drawn at most
_HEAVIEST = 5
_LEAST_SLOT = 3.0  # pixels of depth that a bar needs; of more layers than that some share a bar
_MONO = 0.61  # width of a letter of DejaVu Sans Mono over its size, a little more than the widest of its kind

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Role:
    """How marks of one sort look: filled, or drawn as a line where `stroke` is set, or words where `size` is."""

    light: str
    dark: str
    stroke: float = 0.0
    dash: str = ""
    size: int = 0
    bold: bool = False
    mono: bool = False


ROLES = {
    "paper": Role("#ffffff", "#14171c"),
    "band": Role("#f3f5f8", "#1d222a"),
    "grid": Role("#dde2e8", "#303843", stroke=1),
    "axis": Role("#8a94a3", "#76808f", stroke=1),
    "growing": Role("#d4660a", "#f0924a"),
    "shrinking": Role("#0f8a80", "#35c7ba"),
    "elsewhere": Role("#8b95a5", "#8b95a5"),
    "endless": Role("#b42318", "#ff7b72"),
    "own": Role("#2563c9", "#6cb0ff"),
    "merged": Role("#9333c9", "#cf9bff"),
    "stairs": Role("#2563c9", "#6cb0ff", stroke=2),
    "limit": Role("#b42318", "#ff7b72", stroke=1.2, dash="6 4"),
    "sampled": Role("#0f8a80", "#35c7ba", stroke=1.2, dash="2 4"),
    "title": Role("#1b1f24", "#e8ecf2", size=17, bold=True),
    "strong": Role("#1b1f24", "#e8ecf2", size=12, bold=True),
    "label": Role("#57606a", "#a3adba", size=11),
    "name": Role("#1b1f24", "#e8ecf2", size=11, mono=True),
    "number": Role("#57606a", "#a3adba", size=11, mono=True),
}
_LETTER = ROLES["name"].size * _MONO


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle, with what it stands for."""

    x: float
    y: float
    width: float
    height: float
    role: str
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    role: str


@dataclass(frozen=True, slots=True)
class Words:
    """One line of text on the base line `y`."""

    x: float
    y: float
    text: str
    role: str
    anchor: Anchor = "start"


Mark = Box | Line | Words


@dataclass(frozen=True, slots=True)
class Drawing:
    """Marks on a plane, the later ones above; x to the right and y down, in pixels."""

    width: float
    height: float
    marks: tuple[Mark, ...]
    title: str  # what it shows, for those who do not see it


def svg(report: Report) -> str:
    """The growth of the bound along the depth as an SVG document of its own, on light or dark paper as its reader has.

    It refers to nothing outside and holds no script; it is ASCII but for the names.
    """
    drawing = growth(report, WIDTH, titled=True)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{_written(drawing, f"<style>{dark_style()}</style>")}\n'


def inline(drawing: Drawing) -> str:
    """The drawing as an SVG element for a page that has `dark_style` in its own style sheet."""
    return _written(drawing)


def dark_style() -> str:
    """The style sheet that repaints a chart for dark paper, on a screen whose reader prefers that."""
    rules = (f".chart .{name}{{{'stroke' if role.stroke else 'fill'}:{role.dark}}}" for name, role in ROLES.items())
    return f"@media screen and (prefers-color-scheme:dark){{{''.join(rules)}}}"


def png(report: Report) -> bytes:
    """The chart of `svg` as a PNG image on white paper, two image points a pixel.

    Errors: MissingExtraError when matplotlib is not installed.
    """
    return _painted(growth(report, WIDTH, titled=True))


# The growth of the bound along the depth.


@dataclass(frozen=True, slots=True)
class Step:
    """What one layer, or one operation without a row, adds to the network's bound. Units: powers of ten."""

    name: str
    log10: float
    share: float | None
    elsewhere: bool = False


def has_shares(report: Report) -> bool:
    """Whether the network's bound is divided among its layers: it is finite, and not zero."""
    return math.isfinite(report.network.log10_upper) and any(layer.share is not None for layer in report.layers)


def steps(report: Report) -> list[Step]:
    """The layers in the network's order with their parts of its bound, then the operations that have no row.

    Where the bound is not divided they are the layers' own upper ends instead, and none is the network's.
    """
    layers = [layer for layer in report.layers if not layer.part]
    if not has_shares(report):
        return [Step(describe.path(layer), numbers.log10(applied(layer).upper), None) for layer in layers]
    whole = report.network.log10_upper
    held = [(describe.path(layer), layer.share or 0.0, False) for layer in layers]
    held += [(clean(name), share, True) for name, share in report.network.elsewhere.items()]
    return [Step(name, share * whole, share, elsewhere) for name, share, elsewhere in held]


def growth(report: Report, width: int, *, titled: bool = False) -> Drawing:
    """The bound so far as stairs, each layer's part of it as bars below, and the layers with the largest parts.

    Without shares, the bars are the layers' own upper ends and there are no stairs.
    """
    found, shared = steps(report), has_shares(report)
    marks: list[Mark] = []
    y = 8.0
    if titled:
        name = cut_middle(clean(report.model.name) or "(model)", int((width - 24) / (ROLES["title"].size * 0.65)))
        marks += [Words(12, 26, name, "title"), Words(12, 44, _subtitle(report), "label")]
        y = 58.0
    if not found:
        marks.append(Words(12, y + 16, "no layer has a bound", "label"))
        return Drawing(width, y + 28, tuple(marks), _title(report))
    depth = _Axis(0, len(found), 46, width - 12)
    if shared:
        marks += _stairs(report, found, depth, y)
        y += 218 if width > 500 else 188
    marks += _bars(found, depth, y, _heading(width, shared))
    y += 190
    marks += _names_along(found, depth, y)
    legend = list(_legend(found, y + 14, width))
    return Drawing(width, y + 26 + 8 * len(legend), (*marks, *legend), _title(report))


def _title(report: Report) -> str:
    what = "growth of the bound along the depth" if has_shares(report) else "upper ends of the layers' norms"
    return f"{clean(report.model.name)}: {what}"


def _heading(width: int, shared: bool) -> str:
    if shared:
        return "each layer's part of it" + (", powers of ten" if width > 500 else "")
    words = "each layer's own upper bound, powers of ten"
    return f"{words}; the network's bound is not divided among them" if width > 500 else words


def _subtitle(report: Report) -> str:
    network = report.network
    if not network.claimed:
        return "no bound on the network is claimed"
    if network.log10_upper == math.inf:
        return "no finite bound on the network"
    upper = "0" if network.log10_upper == -math.inf else f"10^{numbers.power_up(network.log10_upper)}"
    sampled = f" · sampled lower {numbers.down(network.lower)}" if network.samples else ""
    return f"{describe.claim(report)} {upper} {describe.scope(report)}{sampled}"


def _stairs(report: Report, found: Sequence[Step], depth: _Axis, top: float) -> Iterator[Mark]:
    network = report.network
    sampled = numbers.log10(network.lower) if network.samples else -math.inf
    levels = [0.0]
    for step in found:
        levels.append(levels[-1] + step.log10)
    known = [*levels, network.log10_upper, *([sampled] if math.isfinite(sampled) else [])]
    height = 170 if depth.end > 500 else 140
    axis = _Axis(*_span(known), top + 30 + height, top + 30)
    yield from _bands(found, depth, axis)
    yield from _scale(axis, depth, "the bound so far, powers of ten", top + 12)
    yield Line(tuple(_thinned(levels, depth, axis)), "stairs")
    yield Line(((depth.start, axis(network.log10_upper)), (depth.end, axis(network.log10_upper))), "limit")
    yield Words(
        *(depth.start + 4, axis(network.log10_upper) - 5),
        f"{describe.claim(report)} 10^{numbers.power_up(network.log10_upper)}",
        "label",
    )
    if math.isfinite(sampled):
        yield Line(((depth.start, axis(sampled)), (depth.end, axis(sampled))), "sampled")
        yield Words(depth.end - 4, axis(sampled) - 5, f"sampled lower {numbers.down(network.lower)}", "label", "end")


def _thinned(levels: Sequence[float], depth: _Axis, axis: _Axis) -> Iterator[tuple[float, float]]:
    """The stairs with at most one step for each `_LEAST_SLOT` pixels: those between are taken at once."""
    yield depth.start, axis(levels[0])
    for first, last in _slots(len(levels) - 1, depth):
        middle = (depth(first) + depth(last)) / 2
        yield middle, axis(levels[first])
        yield middle, axis(levels[last])
    yield depth.end, axis(levels[-1])


def _bars(found: Sequence[Step], depth: _Axis, top: float, heading: str) -> Iterator[Mark]:
    slots = [(first, found[first:last]) for first, last in _slots(len(found), depth)]
    sums = [(_total(steps, 1), _total(steps, -1)) for _, steps in slots]
    axis = _Axis(*_span([value for pair in sums for value in pair if math.isfinite(value)]), top + 180, top + 30)
    several = math.ceil(len(found) / len(slots))
    yield from _bands(found, depth, axis)
    yield from _scale(axis, depth, heading + (f"; up to {several} layers in a bar" if several > 1 else ""), top + 12)
    ranks = {id(step): rank for rank, step in enumerate(_heaviest(found), start=1)}
    for (first, steps), pair in zip(slots, sums, strict=True):
        left, right = depth(first), depth(first + len(steps))
        wide = min(30.0, (right - left) * (0.8 if right - left > _LEAST_SLOT + 1 else 1))
        x = (left + right - wide) / 2
        for value in pair:
            if value:
                yield _bar(value, axis, x, wide, steps)
        ranked = sorted(ranks[id(step)] for step in steps if id(step) in ranks)
        if ranked and math.isfinite(pair[0]):
            yield Words((left + right) / 2, axis(pair[0]) - 3, str(ranked[0]), "label", "middle")
    yield Line(((depth.start, axis(0)), (depth.end, axis(0))), "axis")


def _bar(value: float, axis: _Axis, x: float, width: float, steps: Sequence[Step]) -> Box:
    top, bottom = axis.end, axis.start
    if math.isfinite(value):
        top, bottom = sorted((axis(0), axis(value)))
    elif value < 0:
        top = axis(0)
    role = "endless" if value == math.inf else "growing" if value > 0 else "shrinking"
    role = "elsewhere" if all(step.elsewhere for step in steps) else role
    return Box(x, top, width, max(0.5, bottom - top), role, _tip(value, steps))


def _tip(value: float, steps: Sequence[Step]) -> str:
    size = f"10^{value:+.2f}" if math.isfinite(value) else "∞" if value > 0 else "0"
    if len(steps) > 1:
        return f"{steps[0].name} … {steps[-1].name}: {size}"
    return f"{steps[0].name}: {size}" + ("" if steps[0].share is None else f", {share_text(steps[0].share)}")


def _total(steps: Iterable[Step], sign: int) -> float:
    return sum(step.log10 for step in steps if step.log10 * sign > 0)


def _legend(found: Sequence[Step], top: float, width: float) -> Iterator[Mark]:
    for rank, step in enumerate(_heaviest(found), start=1):
        size = f"10^{numbers.power_up(step.log10)}" if step.share is None else share_text(step.share)
        room = int((width - 120) / _LETTER)
        yield Words(12, top + 16 * rank, f"{rank}  {size:>8}", "number")
        name = step.name + (", all together" if step.elsewhere else "")
        yield Words(12 + 13 * _LETTER, top + 16 * rank, cut_path(name, room), "name")


def _heaviest(found: Iterable[Step]) -> list[Step]:
    holding = [step for step in found if 0 < step.log10 < math.inf]
    return sorted(holding, key=lambda step: -step.log10)[:_HEAVIEST]


def _names_along(found: Sequence[Step], depth: _Axis, y: float) -> Iterator[Mark]:
    """The names of the runs of layers, the longest runs first, as far as they have room."""
    taken: list[tuple[float, float]] = []
    for name, first, last in sorted(_runs(found, depth), key=lambda run: run[1] - run[2]):
        shown = cut_path(name, max(12, int((depth(last) - depth(first)) / _LETTER)))
        long = (len(shown) + 1) * _LETTER
        x = min(max((depth(first) + depth(last) - long) / 2, depth.start), depth.end - long)
        if all(x + long <= start or x >= end for start, end in taken):
            taken.append((x, x + long))
            yield Words(x + long / 2, y + 4, shown, "number", "middle")


def _bands(found: Sequence[Step], depth: _Axis, axis: _Axis) -> Iterator[Mark]:
    for place, (_, first, last) in enumerate(_runs(found, depth)):
        if place % 2 == 0:
            yield Box(depth(first), axis.end, depth(last) - depth(first), axis.start - axis.end, "band")


def _runs(found: Sequence[Step], depth: _Axis) -> list[tuple[str, int, int]]:
    """Neighbouring layers with the same first words, by as many words as give runs that can be told apart."""
    best: list[tuple[str, int, int]] = []
    for words in (1, 2, 3):
        runs, first = [], 0
        for name, group in groupby(found, key=lambda step: _head(step, words)):
            last = first + sum(1 for _ in group)
            runs.append((name, first, last))
            first = last
        letters = sum(len(name) + 2 for name, _, _ in runs)
        if len(best) < 2 or letters * _LETTER <= depth.end - depth.start:
            best = runs
    return best


def _head(step: Step, words: int) -> str:
    return "elsewhere" if step.elsewhere else ".".join(step.name.split(".")[:words])


# The enclosures of the layers.


def shown_enclosures(report: Report) -> list[LayerReport]:
    """The layers whose enclosures are drawn, in the network's order: all, or those with the largest parts."""
    layers = [layer for layer in report.layers if not layer.part]
    if len(layers) <= _ROWS:
        return layers
    size = {id(layer): abs(layer.share or 0.0) if has_shares(report) else applied(layer).upper for layer in layers}
    chosen = {id(layer) for layer in sorted(layers, key=lambda layer: -size[id(layer)])[:_ROWS]}
    return [layer for layer in layers if id(layer) in chosen]


def enclosures(report: Report, width: int) -> Drawing:
    """Each layer's norm as an interval on a logarithmic axis, with what is folded into it beside it.

    An interval too short to be seen is drawn four pixels long; an end that is not known reaches the margin.
    """
    layers = shown_enclosures(report)
    title = f"{clean(report.model.name)}: enclosures of the layers' norms"
    if not layers:
        return Drawing(width, 36, (Words(12, 24, "no layer has a bound", "label"),), title)
    wide = width > 500
    names = min(44, max(len(describe.path(layer)) for layer in layers))
    axis = _Axis(*_decades(layers), (18 + names * _LETTER) if wide else 12, width - (190 if wide else 12))
    row = 22 if wide else 36
    top, bottom = 28, 28 + row * len(layers)
    marks: list[Mark] = [*_decade_lines(axis, top, bottom)]
    for place, layer in enumerate(layers):
        y = top + row * place
        marks += _row_wide(layer, axis, y, names, width) if wide else _row_narrow(layer, axis, y, width)
    return Drawing(width, bottom + 8, tuple(marks), title)


def _row_wide(layer: LayerReport, axis: _Axis, y: float, names: int, width: int) -> Iterator[Mark]:
    yield Words(8, y + 15, cut_path(describe.path(layer), names), "name")
    yield from _intervals(layer, axis, y + 4)
    yield Words(width - 8, y + 15, _ends(applied(layer)), "number", "end")


def _row_narrow(layer: LayerReport, axis: _Axis, y: float, width: int) -> Iterator[Mark]:
    ends = _ends(applied(layer))
    yield Words(8, y + 13, cut_path(describe.path(layer), int((width - 24) / _LETTER) - len(ends)), "name")
    yield Words(width - 8, y + 13, ends, "number", "end")
    yield from _intervals(layer, axis, y + 18)


def _intervals(layer: LayerReport, axis: _Axis, y: float) -> Iterator[Mark]:
    yield _interval(layer.bound, "own", axis, y + (0 if layer.merged else 4), describe.path(layer))
    if layer.merged is not None:
        behind = clean(layer.merged_with) or "what is behind it"
        yield _interval(layer.merged, "merged", axis, y + 8, f"{describe.path(layer)} with {behind}")


def _interval(bound: Bound, role: str, axis: _Axis, y: float, name: str) -> Box:
    left, right = axis.kept(numbers.log10(bound.lower)), axis.kept(numbers.log10(bound.upper))
    missing = max(0.0, 4 - (right - left)) / 2
    role = "endless" if bound.upper == math.inf else role
    return Box(left - missing, y, right - left + 2 * missing, 6, role, f"{name}: {_ends(bound)}")


def _ends(bound: Bound) -> str:
    return f"{numbers.down(bound.lower)} … {marked(bound)}"


def _decades(layers: Sequence[LayerReport]) -> tuple[float, float]:
    bounds = [bound for layer in layers for bound in (layer.bound, layer.merged) if bound is not None]
    ends = [math.log10(end) for bound in bounds for end in (bound.lower, bound.upper) if 0 < end < math.inf]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    around = max(0.15, 0.04 * (high - low))
    return low - around, high + around


def _decade_lines(axis: _Axis, top: float, bottom: float) -> Iterator[Mark]:
    step = max(1, math.ceil((axis.high - axis.low) * 60 / (axis.end - axis.start)))
    decades = [n for n in range(math.floor(axis.low), math.ceil(axis.high) + 1) if n % step == 0]
    fine = [math.log10(f) for f in (2, 5)] if (axis.end - axis.start) / (axis.high - axis.low) > 150 else []
    for value in sorted([*map(float, decades), *(n + part for n in decades for part in fine)]):
        if axis.low <= value <= axis.high:
            yield Line(((axis(value), top), (axis(value), bottom)), "axis" if value == 0 else "grid")
            yield Words(axis(value), top - 8, _decade(value), "label", "middle")


def _decade(log10: float) -> str:
    return f"{10**log10:.3g}" if abs(log10) < 5 else f"1e{log10:+03.0f}"


# Axes.


@dataclass(frozen=True, slots=True)
class _Axis:
    """From values to pixels."""

    low: float
    high: float
    start: float  # the pixel of `low`
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def kept(self, value: float) -> float:
        """The pixel of the nearest value on the axis."""
        return self(min(max(value, self.low), self.high))


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the largest value and zero, with a little room."""
    low, high = min([0.0, *values]), max([0.0, *values])
    room = 0.06 * (high - low) or 0.5
    return low - (room if low < 0 else 0.0), high + room


def _scale(axis: _Axis, depth: _Axis, heading: str, y: float) -> Iterator[Mark]:
    yield Words(12, y, heading, "strong")
    for value in _ticks(axis.low, axis.high):
        yield Line(((depth.start, axis(value)), (depth.end, axis(value))), "grid")
        yield Words(depth.start - 6, axis(value) + 4, f"{value:.6g}", "label", "end")


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.8 * rough)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _slots(count: int, depth: _Axis) -> list[tuple[int, int]]:
    """The layers in as many runs as there is room for; (first, past the last)."""
    slots = min(count, int((depth.end - depth.start) / _LEAST_SLOT))
    return [(count * slot // slots, count * (slot + 1) // slots) for slot in range(slots)]


# Drawings as SVG and as images.


def _written(drawing: Drawing, inside: str = "") -> str:
    size = f'width="{_px(drawing.width)}" height="{_px(drawing.height)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {_px(drawing.width)} '
        f'{_px(drawing.height)}" {size} role="img" aria-label="{_safe(drawing.title)}" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">",
        inside,
        f'<rect class="paper" width="100%" height="100%" fill="{ROLES["paper"].light}"/>',
    ]
    for role, marks in groupby(drawing.marks, key=lambda mark: mark.role):
        parts += [f'<g class="{role}" {_look(ROLES[role])}>', *map(_element, marks), "</g>"]
    return "".join([*parts, "</svg>"])


def _look(role: Role) -> str:
    if role.stroke:
        dash = f' stroke-dasharray="{role.dash}"' if role.dash else ""
        return f'fill="none" stroke="{role.light}" stroke-width="{role.stroke:g}"{dash}'
    look = f'fill="{role.light}"'
    if role.size:
        look += f' font-size="{role.size}"' + (' font-weight="600"' if role.bold else "")
        look += " font-family=\"'DejaVu Sans Mono', Menlo, Consolas, monospace\"" if role.mono else ""
    return look


def _element(mark: Mark) -> str:
    if isinstance(mark, Line):
        return f'<polyline points="{" ".join(f"{_px(x)},{_px(y)}" for x, y in mark.points)}"/>'
    if isinstance(mark, Words):
        anchor = "" if mark.anchor == "start" else f' text-anchor="{mark.anchor}"'
        return f'<text x="{_px(mark.x)}" y="{_px(mark.y)}"{anchor} xml:space="preserve">{_safe(mark.text)}</text>'
    box = f'<rect x="{_px(mark.x)}" y="{_px(mark.y)}" width="{_px(mark.width)}" height="{_px(mark.height)}"'
    return f"{box}><title>{_safe(mark.tip)}</title></rect>" if mark.tip else f"{box}/>"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _safe(text: str) -> str:
    return escape(clean(text), {'"': "&quot;"})


def _painted(drawing: Drawing) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("an image needs matplotlib; install it with: pip install 'lipcheck[chart]'") from error
    figure = Figure(figsize=(drawing.width / 100, drawing.height / 100), dpi=200, facecolor=ROLES["paper"].light)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.set_axis_off()
    for order, mark in enumerate(drawing.marks):
        _paint(axes, mark, order)
    image = io.BytesIO()
    with warnings.catch_warnings():
        # A name may have letters that no font here has; they are shown as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()


def _paint(axes: Any, mark: Mark, order: int) -> None:
    from matplotlib.patches import Rectangle

    role = ROLES[mark.role]
    if isinstance(mark, Box):
        axes.add_patch(Rectangle((mark.x, mark.y), mark.width, mark.height, color=role.light, lw=0, zorder=order))
    elif isinstance(mark, Line):
        dash = [float(part) / role.stroke for part in role.dash.split()]
        style = (0, tuple(dash)) if dash else "-"
        axes.plot(*zip(*mark.points, strict=True), color=role.light, lw=0.72 * role.stroke, ls=style, zorder=order)
    else:
        across = {"start": "left", "middle": "center", "end": "right"}[mark.anchor]
        look = {"color": role.light, "fontsize": 0.72 * role.size, "weight": "bold" if role.bold else "normal"}
        family = "DejaVu Sans Mono" if role.mono else "DejaVu Sans"
        text = clean(mark.text)
        axes.text(mark.x, mark.y, text, ha=across, va="baseline", family=family, parse_math=False, zorder=order, **look)
