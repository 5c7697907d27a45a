"""The report as a JSON document, and under "judgement" what a policy says of it."""

from __future__ import annotations

import json
import math
from typing import Any

from lipcheck.policy import RULES, Finding, Judgement
from lipcheck.report import Report


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
        "measured": _finite(finding.measured),
        "limit": _finite(finding.limit),
        "waived": None
        if waiver is None
        else {"reason": waiver.reason, "expires": None if waiver.expires is None else waiver.expires.isoformat()},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
