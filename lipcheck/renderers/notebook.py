"""A Report as a fragment of HTML for notebooks: every name cleaned and escaped, no script, no outside reference."""

from __future__ import annotations

import math
from html import escape

from lipcheck import numbers
from lipcheck.renderers import describe
from lipcheck.renderers.table import marked, share_text, slope_text
from lipcheck.report import LayerReport, Report
from lipcheck.text import clean, shape

_HEADINGS = ("layer", "operator", "input", "lower", "upper", "slack %", "merged", "slope", "share")


def to_html(report: Report) -> str:
    """The heading, the network's bounds, what has no bound, and the table of layers behind a fold."""
    parts = [*_heading(report), *_network(report), *_unsupported(report), *_table(report), *_embeddings(report)]
    parts += _left_out(report)
    return f"<div>{''.join(parts)}</div>"


def _heading(report: Report) -> list[str]:
    model = report.model
    facts = f"{model.source}, {model.weights}, {model.parameters:,} parameters"
    facts += f", input {shape(model.input_shape)}" if model.input_shape else ""
    lines = [f"<p><b>{_safe(model.name)}</b> {_safe(facts)}</p>"]
    if model.weights.startswith("random"):
        lines.append("<p><b>Random weights: the figures say nothing about a trained network.</b></p>")
    if report.network.domain:
        lines.append(f"<p>Domain: {_safe(report.network.domain)}</p>")
    return lines + [f"<p>Note: {_safe(note)}</p>" for note in model.notes]


def _network(report: Report) -> list[str]:
    network = report.network
    if not network.claimed:
        return [f"<p>No bound on the network is claimed: {_safe(network.reason)}</p>"]
    rows = [("holds", describe.scope(report)), (describe.claim(report), _power(network.log10_upper))]
    rows.append(("plain product", _power(network.log10_product)))
    if network.samples:
        rows.append(("sampled lower", numbers.down(network.lower)))
    if network.log10_upper == math.inf:
        rows.append(("no finite bound", _safe(network.reason)))
    cells = "".join(f"<tr><td>{label}</td><td>{value}</td></tr>" for label, value in rows)
    return [f"<table>{cells}</table>"]


def _power(log10: float) -> str:
    if math.isinf(log10):
        return "∞" if log10 > 0 else "0"
    return f"10<sup>{numbers.power_up(log10)}</sup>"


def _unsupported(report: Report) -> list[str]:
    if not report.unsupported:
        return []
    rows = [
        f"<li>{_safe(entry.op)} ×{len(entry.layers)}: {_safe(entry.reason)}"
        f" <small>({', '.join(_safe(layer) or '(model)' for layer in entry.layers)})</small></li>"
        for entry in report.unsupported
    ]
    return [f"<details open><summary>Without a bound</summary><ul>{''.join(rows)}</ul></details>"]


def _table(report: Report) -> list[str]:
    head = "".join(f"<th>{heading}</th>" for heading in _HEADINGS)
    rows = "".join(_row(layer) for layer in report.layers)
    opened = f"<details><summary>{len(report.layers)} layers</summary><table>"
    return [opened, f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>"]


def _row(layer: LayerReport) -> str:
    cells = (
        *(describe.row_name(layer), describe.operator(layer), describe.input_size(layer)),
        *(numbers.down(layer.bound.lower), marked(layer.bound), numbers.percent_up(layer.bound.slack)),
        *(marked(layer.merged) if layer.merged else "", slope_text(layer.slope)),
        "" if layer.part else share_text(layer.share),
    )
    return "<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in cells) + "</tr>"


def _embeddings(report: Report) -> list[str]:
    if not report.embeddings:
        return []
    rows = [
        f"<li>{_safe(table.layer) or '(model)'}: {table.entries}×{table.width}, norm as a matrix "
        f"{numbers.down(table.bound.lower)} … {marked(table.bound)}, longest vector {marked(table.largest_row)}</li>"
        for table in report.embeddings
    ]
    summary = "Embedding tables, no part of the network's bound"
    return [f"<details><summary>{summary}</summary><ul>{''.join(rows)}</ul></details>"]


def _left_out(report: Report) -> list[str]:
    if not report.left_out:
        return []
    rows = [
        f"<li>{len(group.names)} {_safe(group.reason)} <small>({', '.join(map(_safe, group.names))})</small></li>"
        for group in report.left_out
    ]
    return [f"<details><summary>Left out of the checkpoint</summary><ul>{''.join(rows)}</ul></details>"]


def _safe(text: str) -> str:
    return escape(clean(text))
