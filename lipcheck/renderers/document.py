"""The report as a JSON document, and under "judgement" what a policy says of it; two reports compared, as another."""

from __future__ import annotations

import json
from typing import Any

from lipcheck import numbers
from lipcheck.bound import Bound
from lipcheck.diff import Difference, LayerChange
from lipcheck.policy import RULES, Finding, Judgement
from lipcheck.report import ModelSummary, NetworkReport, Report


def text(report: Report, judgement: Judgement | None = None) -> str:
    """What `Report.from_json` reads; a report by itself where there is no judgement."""
    if judgement is None:
        return report.to_json() + "\n"
    judged = {
        "outcome": judgement.outcome,
        "exit_code": judgement.exit_code,
        "policy": judgement.policy.source,
        "findings": [_finding(finding) for finding in judgement.findings],
    }
    return json.dumps({**report.to_dict(), "judgement": judged}, indent=2, allow_nan=False) + "\n"


def _finding(finding: Finding) -> dict[str, Any]:
    waiver = finding.waiver
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "outcome": RULES[finding.rule].outcome,
        "subject": finding.subject,
        "message": finding.message,
        "measured": numbers.finite(finding.measured),
        "limit": numbers.finite(finding.limit),
        "waived": None
        if waiver is None
        else {"reason": waiver.reason, "expires": None if waiver.expires is None else waiver.expires.isoformat()},
    }


def difference(found: Difference) -> str:
    """What changed from one report to the other; a number that is infinite or none at all is null."""
    compared = {
        "before": _compared(found.before, found.network_before),
        "after": _compared(found.after, found.network_after),
        "log10": numbers.finite(found.log10),
        "counts": found.counts,
        "layers": [_change(change) for change in found.layers],
    }
    return json.dumps(compared, indent=2, allow_nan=False) + "\n"


def _compared(model: ModelSummary, network: NetworkReport) -> dict[str, Any]:
    upper = numbers.finite(network.log10_upper) if network.claimed else None
    return {"model": model.name, "weights": model.weights, "log10_upper": upper}


def _change(change: LayerChange) -> dict[str, Any]:
    before, after = change.bounds
    return {
        "layer": change.layer,
        "part": change.part,
        "state": change.state,
        "before": _enclosure(before),
        "after": _enclosure(after),
        "percent": numbers.finite(change.percent),
        "log10": numbers.finite(change.log10),
        "least_rise": numbers.finite(change.least_rise),
        "largest_rise": numbers.finite(change.largest_rise),
    }


def _enclosure(bound: Bound | None) -> dict[str, Any] | None:
    """An upper end that is infinite is null; null where the report has no such layer."""
    if bound is None:
        return None
    return {"lower": bound.lower, "upper": numbers.finite(bound.upper), "method": bound.method, "kind": bound.kind}
