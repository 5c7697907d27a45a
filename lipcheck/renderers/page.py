"""A Report as one HTML page: charts, verdicts and a sortable table, with nothing fetched from anywhere.

Every text passes the one sanitiser and is escaped on its way into the template; the page's policy for its own content
(Content-Security-Policy) lets nothing run or load but the style and the script that it was written with.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from lipcheck import numbers
from lipcheck.bound import Bound
from lipcheck.diff import Difference
from lipcheck.policy import Finding, Judgement
from lipcheck.renderers import changes, chart, describe
from lipcheck.renderers import judgement as verdicts
from lipcheck.renderers.table import marked, share_text, slope_text
from lipcheck.report import LayerReport, NetworkReport, Report
from lipcheck.text import clean

_FINDINGS = 200  # findings, changes and names that are listed at most, each
_NAMED = 12
_LONGEST = 300  # characters of a name


def text(report: Report, judgement: Judgement | None = None) -> str:
    """The whole page. It needs no network, and without its script it only does not sort and filter."""
    return _template().render(
        report=report,
        facts=[*describe.model_facts(report), *describe.versions(report)],
        run=[*describe.settings(report), *describe.stages(report)],
        verdict=None if judgement is None else _verdict(judgement),
        difference=_difference(judgement.difference) if judgement and judgement.difference else None,
        network=_network(report),
        shared=chart.has_shares(report),
        charts=_charts(report),
        drawn=len(chart.shown_enclosures(report)),
        columns=(columns := _columns(report)),
        rows=[_row(layer, columns) for layer in report.layers],
        ranks=[column.ranks for column in columns],
        unsupported=[
            {"op": entry.op, "reason": entry.reason, "count": len(entry.layers), "layers": _named(entry.layers)}
            for entry in sorted(report.unsupported, key=lambda entry: -len(entry.layers))
        ],
        embeddings=[
            (_layer(table.layer), f"{table.entries}×{table.width}", changes.enclosure(table.bound),
             marked(table.largest_row))
            for table in report.embeddings
        ],
        left_out=[(group.reason, len(group.names), _named(group.names)) for group in report.left_out],
        chart_style=Markup(chart.dark_style()),
    )  # fmt: skip


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lipcheck", "data"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalised,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["digest"] = _digest
    return environment.get_template("page.html.jinja")


def _finalised(value: Any) -> Any:
    """What the template prints: our own markup as it is, all other text through the sanitiser."""
    return verdicts.shortened(value, 4000) if isinstance(value, str) and not isinstance(value, Markup) else value


def _digest(content: str) -> str:
    """The source expression by which a Content-Security-Policy allows an element with this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _layer(layer: str) -> str:
    """A module path for people, at a length that a page can bear."""
    return verdicts.shortened(layer, _LONGEST) or "(model)"


def _verdict(judgement: Judgement) -> dict[str, Any]:
    return {
        "outcome": judgement.outcome,
        "summary": verdicts.summary(judgement).partition(": ")[2],
        "active": [_finding(finding) for finding in judgement.active[:_FINDINGS]],
        "waived": [_finding(finding) for finding in judgement.waived[:_FINDINGS]],
        "more": max(0, len(judgement.active) - _FINDINGS),
        "more_waived": max(0, len(judgement.waived) - _FINDINGS),
    }


def _finding(finding: Finding) -> dict[str, str]:
    return {
        "severity": finding.severity,
        "rule": finding.rule,
        "subject": verdicts.shortened(verdicts.subject(finding), _LONGEST),
        "message": finding.message,
        "reason": verdicts.reason(finding),
    }


def _difference(difference: Difference) -> dict[str, Any]:
    listed = changes.listed(difference)
    return {
        "before": f"{difference.before.name} · {difference.before.weights}",
        "counts": changes.counts(difference),
        "network": changes.network(difference),
        "rows": [
            (change.state, verdicts.shortened(changes.name(change), _LONGEST),
             *map(changes.enclosure, change.bounds), changes.percent(change), changes.log10(change),
             _least(change.least_rise))
            for change in listed[:_FINDINGS]
        ],
        "more": max(0, len(listed) - _FINDINGS),
    }  # fmt: skip


def _least(rise: float) -> str:
    return f"{numbers.down(100 * rise, digits=3)}%" if rise > 0 else "–"


def _network(report: Report) -> dict[str, Any]:
    network = report.network
    sampled = f"at {network.samples} sampled input{describe.s(network.samples)}"
    power = describe.power_and_plain
    figures = [
        (describe.claim(report), power(network.log10_upper), describe.scope(report)),
        *((f"… before: {step.name}", power(step.log10_before), _gain(step.log10_before - step.log10_after))
          for step in reversed(network.tightening)),
        ("plain product", power(network.log10_product), "each operation alone"),
        ("sampled lower", numbers.down(network.lower) if network.samples else "–",
         f"largest Jacobian norm {sampled}" if network.samples else "no input was sampled"),
    ]  # fmt: skip
    return {"claimed": network.claimed, "figures": figures, "trouble": _trouble(network)}


def _trouble(network: NetworkReport) -> str:
    if not network.claimed:
        return network.reason
    if network.log10_upper == math.inf:
        return f"No finite bound: {network.reason or 'a layer has none'}"
    return "The output does not depend on the input." if network.log10_upper == -math.inf else ""


def _gain(log10: float) -> str:
    return f"10^{log10:.2f} higher" if math.isfinite(log10) else ""


def _charts(report: Report) -> dict[str, Markup]:
    widths = {"wide": chart.WIDTH, "narrow": chart.NARROW}
    # The chart escapes and cleans what it writes.
    drawn = {f"growth_{name}": chart.inline(chart.growth(report, width)) for name, width in widths.items()}
    drawn |= {f"ends_{name}": chart.inline(chart.enclosures(report, width)) for name, width in widths.items()}
    return {name: Markup(svg) for name, svg in drawn.items()}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of layers: its cells, and for each row its place among them, -1 where it has none."""

    key: str
    heading: str
    cell: Callable[[LayerReport], str]
    ranks: list[int]
    number: bool


def _columns(report: Report) -> list[Column]:
    layers = report.layers

    def column(
        key: str,
        heading: str,
        cell: Callable[[LayerReport], str],
        value: Callable[[LayerReport], Any],
        number: bool = True,
    ) -> Column:
        return Column(key, heading, cell, _ranks([value(layer) for layer in layers]), number)

    found = [
        column("layer", "layer", _name, lambda layer: _name(layer), number=False),
        column("operator", "operator", describe.operator, describe.operator, number=False),
        column("input", "input", describe.input_size, lambda layer: math.prod(layer.input_size), number=True),
        column("lower", "lower", describe.lower, lambda layer: layer.bound.lower),
        column("upper", "upper", lambda layer: marked(layer.bound), lambda layer: layer.bound.upper),
        column("slack", "slack", describe.slack, lambda layer: layer.bound.slack),
    ]
    for place, name in enumerate(dict.fromkeys(name for layer in layers for name in layer.compared)):
        found.append(column(f"compared{place}", name, *_of(partial(_compared, name))))
    if any(layer.merged for layer in layers):
        found.append(column("merged", "merged", *_of(lambda layer: layer.merged)))
    if any(layer.slope for layer in layers):
        found.append(column("slope", "slope", *_of(lambda layer: layer.slope)))
        found.append(column("anywhere", "anywhere", *_of(lambda layer: layer.slope_everywhere)))
    if any(layer.share is not None for layer in layers):
        share = lambda layer: None if layer.part else layer.share  # noqa: E731
        found.append(column("share", "share", lambda layer: "" if layer.part else share_text(layer.share), share))
    return found


def _compared(name: str, layer: LayerReport) -> Bound | None:
    return layer.compared.get(name)


def _of(
    bound: Callable[[LayerReport], Bound | None],
) -> tuple[Callable[[LayerReport], str], Callable[[LayerReport], Any]]:
    """The cell and the value of a bound that not every layer has."""
    return lambda layer: slope_text(bound(layer)), lambda layer: b.upper if (b := bound(layer)) else None


def _ranks(values: Sequence[Any]) -> list[int]:
    """Each value's place among the different ones, the least 0; -1 for None."""
    places = {value: place for place, value in enumerate(sorted({value for value in values if value is not None}))}
    return [-1 if value is None else places[value] for value in values]


def _row(layer: LayerReport, columns: Sequence[Column]) -> dict[str, Any]:
    width = round(20 * min(1.0, max(0.0, layer.share or 0.0))) if not layer.part else 0
    return {"cells": [column.cell(layer) for column in columns], "part": bool(layer.part), "filled": width}


def _name(layer: LayerReport) -> str:
    return verdicts.shortened(describe.row_name(layer), _LONGEST)


def _named(names: Sequence[str]) -> str:
    """Some names and how many more there are."""
    different = list(dict.fromkeys(names))
    more = len(different) - _NAMED
    shown = ", ".join(_layer(clean(name)) for name in different[:_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown
