"""A judgement as JUnit XML, which CI systems show as a list of tests.

A layer's budget is a test case, by the layer's name. A budget that is violated is a <failure>, and so is one that is
not proven to be kept, with a type of its own. What has no bound at all, and what the audit did not finish, is an
<error>: nothing was found to be over a limit, the test could not be carried out. GitLab and the reporters for GitHub
Actions count errors apart from failures, and Jenkins, Azure and all of them let either break the build. What is waived
is skipped, with the reason. Facts about the policy itself break nothing and are the output of a test that passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from xml.etree import ElementTree

from lipcheck import numbers
from lipcheck.diff import LayerChange, applied, finder
from lipcheck.policy import NETWORK, RULES, Finding, Judgement, LayerBudget, Policy, judge
from lipcheck.renderers import describe
from lipcheck.renderers import judgement as verdicts
from lipcheck.report import LayerReport, Report
from lipcheck.text import clean

_ERRORS = frozenset({"unsupported-operation", "not-finished", "network-not-finite"})
_BOUNDED = "every operation has a bound or is skipped by the policy"


@dataclass(frozen=True, slots=True)
class _Case:
    """One test: its name, what was measured, and what was found, if anything was."""

    name: str
    told: str = ""
    finding: Finding | None = None

    @property
    def outcome(self) -> str:
        """Which element tells it: failure, error, skipped, system-out; nothing for what passed in silence."""
        if self.finding is None:
            return ""
        if self.finding.waiver is not None:
            return "skipped"
        if RULES[self.finding.rule].outcome == "passed":
            return "system-out"
        return "error" if self.finding.rule in _ERRORS else "failure"


def text(report: Report, judgement: Judgement | None = None) -> str:
    """One test suite for each kind of budget; without a judgement, what the report itself leaves open.

    The document is valid XML 1.0 and all ASCII, whatever the names are.
    """
    judged = judgement or judge(report, Policy())
    root = ElementTree.Element("testsuites", name=f"lipcheck {clean(report.model.name)}")
    suites = {name: cases for name, cases in _suites(report, judged) if cases}
    _count(root, [case for cases in suites.values() for case in cases])
    for name, cases in suites.items():
        root.append(_suite(name, cases, report))
    ElementTree.indent(root)
    body: bytes = ElementTree.tostring(root, encoding="us-ascii")  # references for the rest, and no declaration
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body.decode("ascii")}\n'


def _suites(report: Report, judged: Judgement) -> Iterator[tuple[str, list[_Case]]]:
    policy = judged.policy
    budgeted = [layer for layer in report.layers if not layer.part and not _skipped(layer, policy)]
    norms = [layer for layer in budgeted if _limited(layer, policy, "max_norm")]
    slacks = [layer for layer in budgeted if _limited(layer, policy, "max_slack")]
    changed = finder(judged.difference)
    rises = [
        layer
        for layer in budgeted
        if (policy.max_layer_increase < math.inf or _limited(layer, policy, "max_increase"))
        and _compared(changed(layer))
    ]
    yield "norm", _layer_cases(norms, _of(judged, "layer-norm"))
    yield "slack", _layer_cases(slacks, _of(judged, "layer-slack"))
    unjudged = _told(_of(judged, "increase-not-judged"), "")
    yield "increase", [*_layer_cases(rises, _of(judged, "layer-increase")), *unjudged]
    yield "network", _network_cases(judged)
    yield "operations", _told(_of(judged, "unsupported"), _BOUNDED if report.network.claimed else "")
    yield "run", _told(_of(judged, "not-finished"), "the audit finished")
    yield "policy", _told(_of(judged, "waiver", "budget", "no-budget"), "")


def _of(judged: Judgement, *prefixes: str) -> list[Finding]:
    return [finding for finding in judged.findings if finding.rule.startswith(prefixes)]


def _skipped(layer: LayerReport, policy: Policy) -> bool:
    return any(fnmatchcase(layer.layer, glob) for glob in policy.skip_layers)


def _compared(change: LayerChange | None) -> bool:
    """Whether the baseline has the same layer, so that there is a rise to judge."""
    return change is not None and change.before is not None


def _limited(layer: LayerReport, policy: Policy, what: str) -> bool:
    def limit(budget: LayerBudget) -> float:
        value: float = getattr(budget, what)
        return value

    return any(limit(budget) < math.inf and budget.covers(layer) for budget in policy.layers)


def _layer_cases(layers: Sequence[LayerReport], findings: Sequence[Finding]) -> list[_Case]:
    """A case for each layer, failed where something was found, and one for whatever was found elsewhere."""
    find, told = verdicts.about(findings), set()
    cases = []
    for layer in layers:
        found = find(layer)
        told |= {id(finding) for finding in found}
        cases.append(_Case(describe.path(layer), _figures(layer), found[0] if found else None))
    elsewhere = (finding for finding in findings if id(finding) not in told)
    return _apart([*cases, *(_Case(verdicts.subject(finding), "", finding) for finding in elsewhere)])


def _network_cases(judged: Judgement) -> list[_Case]:
    policy, found = judged.policy, _of(judged, NETWORK)
    asked = {
        "network-bound": policy.max_log10_bound < math.inf,
        "network-not-finite": policy.require_finite,
        "network-increase": policy.max_increase < math.inf and judged.difference is not None,
    }
    names = {"network-bound": "bound", "network-not-finite": "finite", "network-increase": "increase"}
    cases = []
    for rule, name in names.items():
        of_rule = [finding for finding in found if finding.rule.startswith(rule)]
        cases += [_Case(name, "", finding) for finding in of_rule]
        cases += [_Case(name)] if asked[rule] and not of_rule else []
    return cases


def _told(findings: Sequence[Finding], otherwise: str) -> list[_Case]:
    """A case for each finding, or one that passes."""
    cases = [_Case(f"{verdicts.subject(finding)}: {clean(finding.message)}", "", finding) for finding in findings]
    return _apart(cases) if cases else [_Case(otherwise)] if otherwise else []


def _apart(cases: Sequence[_Case]) -> list[_Case]:
    """The cases with a number behind a name that was there before: readers take equal names for one test."""
    seen: dict[str, int] = {}
    found = []
    for case in cases:
        seen[case.name] = seen.get(case.name, 0) + 1
        count = seen[case.name]
        found.append(case if count == 1 else _Case(f"{case.name} ({count})", case.told, case.finding))
    return found


def _figures(layer: LayerReport) -> str:
    bound = applied(layer)
    return (
        f"{describe.operator(layer)}: norm in [{numbers.down(bound.lower)}, {numbers.up(bound.upper)}] ({bound.kind})"
    )


def _suite(name: str, cases: Sequence[_Case], report: Report) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=f"lipcheck.{name}")
    _count(suite, cases)
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"model": report.model.name, "weights": report.model.weights, **report.run.versions}
    for key, value in facts.items():
        ElementTree.SubElement(properties, "property", name=clean(key), value=clean(value))
    for case in cases:
        element = ElementTree.SubElement(suite, "testcase", classname=f"lipcheck.{name}", name=case.name)
        _tell(element, case)
    return suite


def _tell(element: ElementTree.Element, case: _Case) -> None:
    finding = case.finding
    if finding is None:
        return
    message = clean(finding.message)
    if case.outcome == "skipped":
        ElementTree.SubElement(element, "skipped", message=f"{verdicts.reason(finding)}: {message}")
    elif case.outcome == "system-out":
        ElementTree.SubElement(element, "system-out").text = f"{finding.rule}: {message}"
    else:
        told = ElementTree.SubElement(element, case.outcome, message=message, type=finding.rule)
        told.text = "\n".join(filter(None, (f"{verdicts.subject(finding)}: {message}", clean(case.told))))


def _count(element: ElementTree.Element, cases: Iterable[_Case]) -> None:
    """How many tests there are, and how many did not pass."""
    outcomes = [case.outcome for case in cases]
    element.set("tests", str(len(outcomes)))
    for name, outcome in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(name, str(outcomes.count(outcome)))
