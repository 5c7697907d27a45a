"""A judgement as SARIF 2.1.0, which code scanning reads: a rule for each rule, a result for each finding.

Layers have no place in a file, so that a result has a logical location, the layer's dotted path, and, since GitHub
shows nothing without one, the first line of the policy as its physical location.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from lipcheck import numbers
from lipcheck.policy import NETWORK, RULES, Finding, Judgement, Policy, Rule, judge
from lipcheck.renderers import describe
from lipcheck.renderers import judgement as verdicts
from lipcheck.report import Report
from lipcheck.text import clean

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_POLICY_FILE = "lipcheck.toml"
_NUMBERS = {rule: index for index, rule in enumerate(RULES)}
# Rules about the policy, whose subject is a glob and no layer.
_OF_THE_POLICY = ("waiver", "budget")


def text(report: Report, judgement: Judgement | None = None) -> str:
    """One run with all rules and a result for each finding; without a judgement, what the report itself leaves open.

    The text is ASCII. A result's fingerprint is of the rule and the subject, so that it is the same when only figures
    move; of several results with both the same each has its own. Waived results are suppressed, with the reason.
    """
    judged = judgement or judge(report, Policy())
    document = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [_run(report, judged)]}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _run(report: Report, judged: Judgement) -> dict[str, Any]:
    driver = {"name": "lipcheck", "rules": [_rule(rule) for rule in RULES.values()]}
    if version := report.run.versions.get("lipcheck"):
        driver["version"] = clean(version)
    network = report.network
    facts = {
        "model": clean(report.model.name),
        "weights": clean(report.model.weights),
        "layers": len(report.layers),
        "log10Upper": numbers.finite(network.log10_upper),
        "outcome": judged.outcome,
    }
    return {
        "tool": {"driver": driver},
        # One category a model: an upload for one leaves the results of another alone.
        "automationDetails": {"id": f"lipcheck/{clean(report.model.name)}/"},
        "invocations": [
            {"executionSuccessful": True, "exitCode": judged.exit_code, "exitCodeDescription": judged.outcome}
        ],
        "results": list(_results(judged)),
        "properties": {key: value for key, value in facts.items() if value is not None},
    }


def _rule(rule: Rule) -> dict[str, Any]:
    words = {"text": rule.text}
    return {
        "id": rule.id,
        "shortDescription": words,
        "fullDescription": words,
        "help": words,
        "defaultConfiguration": {"level": rule.severity},
        "properties": {"outcome": rule.outcome},
    }


def _results(judged: Judgement) -> Iterator[dict[str, Any]]:
    seen: Counter[str] = Counter()
    file = _uri(judged.policy)
    for finding in judged.findings:
        print_of_it = _fingerprint(finding)
        seen[print_of_it] += 1
        count = seen[print_of_it]
        yield _result(finding, f"{print_of_it}:{count}", file)


def _result(finding: Finding, fingerprint: str, file: str) -> dict[str, Any]:
    figures = {"measured": numbers.finite(finding.measured), "limit": numbers.finite(finding.limit)}
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": _NUMBERS[finding.rule],
        "level": finding.severity,
        "message": {"text": _message(f"{verdicts.subject(finding)}: {finding.message}")},
        "locations": [_location(finding, file)],
        # GitHub reads only the first, and where it is missing makes one of the policy's line, the same for all.
        "partialFingerprints": {"primaryLocationLineHash": fingerprint, "ruleAndSubject/v1": fingerprint},
        "properties": {key: value for key, value in figures.items() if value is not None},
    }
    if finding.waiver is not None:
        waiver = finding.waiver
        suppression: dict[str, Any] = {"kind": "external", "status": "accepted", "justification": clean(waiver.reason)}
        if waiver.expires is not None:
            suppression["properties"] = {"expires": waiver.expires.isoformat()}
        result["suppressions"] = [suppression]
    return result


def _message(words: str) -> str:
    """The words in which nothing is a link or a placeholder: [text](address) and {0} are both, in a message.

    >>> _message("a [b](c) {0}")
    'a [b] (c) {{0}}'
    """
    return clean(words).replace("](", "] (").replace("{", "{{").replace("}", "}}")


def _location(finding: Finding, file: str) -> dict[str, Any]:
    line = {"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 2}
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": file}, "region": line}}
    if not finding.rule.startswith(_OF_THE_POLICY):
        name = verdicts.subject(finding)
        kind = NETWORK if finding.subject == NETWORK and finding.layer is None else "module"
        last = describe.path(finding.layer) if finding.layer and finding.layer.part else name.rpartition(".")[2]
        location["logicalLocations"] = [{"name": last or name, "fullyQualifiedName": name, "kind": kind}]
    return location


def _uri(policy: Policy) -> str:
    """The policy's file as a relative address: from here, where it lies below, or else its name alone."""
    source = PurePath(policy.source or _POLICY_FILE)
    if source.is_absolute():
        source = source.relative_to(Path.cwd()) if source.is_relative_to(Path.cwd()) else PurePath(source.name)
    if ".." in source.parts:
        source = PurePath(source.name)
    return quote(source.as_posix(), errors="replace") if source.name.strip(".") else _POLICY_FILE


def _fingerprint(finding: Finding) -> str:
    subject = json.dumps([finding.rule, finding.subject])
    return hashlib.sha256(subject.encode()).hexdigest()
