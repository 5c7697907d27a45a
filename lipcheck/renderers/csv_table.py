"""The layers of a report as CSV, for spreadsheets and for programs."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from lipcheck import numbers
from lipcheck.bound import Bound
from lipcheck.diff import LayerChange, finder
from lipcheck.policy import Finding, Judgement
from lipcheck.renderers.judgement import about
from lipcheck.report import COLUMNS, LayerReport, Report
from lipcheck.text import clean

_DIGITS = 15  # what every spreadsheet keeps of a number
# A sign that starts a formula, at the start of a cell or behind what another language's spreadsheet splits cells at.
_FORMULA = re.compile(r'(^|[;,|\t\r\n])([\s"]*)(?=[=+\-@\t\r＝＋－＠])')

_CHANGES = ("change", "baseline_lower", "baseline_upper", "change_percent", "change_log10")
_FINDINGS = ("findings", "waived")


def text(report: Report, judgement: Judgement | None = None) -> str:
    """A heading and one row a layer, in the network's order, with the columns of `Report.to_frame`.

    A judgement adds the rules of the layer's findings, and a baseline how the layer changed; layers that only the
    baseline has are not in it. A cell that a spreadsheet would run as a formula begins with an apostrophe.

    Units: sizes are written 3x224x224, infinity inf. Lower ends are rounded down and upper ends up to fifteen digits,
        so that a reader that keeps no more has a bound too; the report's JSON has them exactly.
    """
    difference = judgement.difference if judgement else None
    methods = list(dict.fromkeys(name for layer in report.layers for name in layer.compared))
    change = finder(difference)
    found = [about(findings) for findings in (judgement.active, judgement.waived)] if judgement else []
    heading = [*COLUMNS, *methods, *(_CHANGES if difference else ()), *(_FINDINGS if judgement else ())]
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow([cell(name) for name in heading])
    for layer in report.layers:
        row = [*_row(layer), *(_upper(layer.compared.get(name)) for name in methods)]
        row += _change(change(layer)) if difference else []
        row += [_rules(find(layer)) for find in found]
        table.writerow(row)
    return written.getvalue()


def cell(words: str) -> str:
    """The text without control characters, and with an apostrophe before what a spreadsheet would run.

    >>> cell("=1+1"), cell("layer1.0"), cell("a;@b")
    ("'=1+1", 'layer1.0', "a;'@b")
    """
    return _FORMULA.sub(r"\1\2'", clean(words))


def _row(layer: LayerReport) -> Iterator[str]:
    yield from map(cell, (layer.layer, layer.op, layer.kind))
    yield from (_down(layer.bound), _upper(layer.bound), up(layer.bound.slack))
    yield from map(cell, (layer.bound.method, layer.bound.kind))
    yield from (_down(layer.merged), _upper(layer.merged), cell(layer.merged_with))
    yield "" if layer.share is None else repr(layer.share)
    yield from (_sizes(layer.kernel), _sizes(layer.stride), _sizes(layer.dilation), str(layer.groups))
    yield from map(str, layer.channels or ("", ""))
    yield from (cell(layer.padding_mode), _sizes(layer.input_size), _sizes(layer.output_size), str(layer.calls))
    yield from (cell(layer.part), _upper(layer.slope), _upper(layer.slope_everywhere))


def _change(change: LayerChange | None) -> list[str]:
    if change is None:
        return [""] * len(_CHANGES)
    old, _ = change.bounds
    return [change.state, _down(old), _upper(old), up(change.percent), up(change.log10)]


def _rules(findings: Iterable[Finding]) -> str:
    return " ".join(dict.fromkeys(finding.rule for finding in findings))


def down(value: float) -> str:
    """A lower end, rounded down to fifteen digits; nothing for nan."""
    return "" if math.isnan(value) else _plain(value, numbers.down(value, digits=_DIGITS))


def _down(bound: Bound | None) -> str:
    return "" if bound is None else down(bound.lower)


def _upper(bound: Bound | None) -> str:
    return "" if bound is None else up(bound.upper)


def up(value: float) -> str:
    """An upper end, rounded up to fifteen digits; nothing for nan."""
    return "" if math.isnan(value) else _plain(value, numbers.up(value, digits=_DIGITS))


def _plain(value: float, shown: str) -> str:
    """The number as programs read it, without zeros that say nothing."""
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    digits, exponent, power = shown.partition("e")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + exponent + power


def _sizes(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
