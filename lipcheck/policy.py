"""What a team allows, and whether a report keeps to it.

A budget is judged against the upper end of an enclosure. Where the lower end is over the budget too it is *violated*;
where only the upper end is, it is *not proven* that it is kept. Each is a rule of its own, with its own severity.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from lipcheck import numbers
from lipcheck.bound import Bound
from lipcheck.diff import Difference, LayerChange, applied, compare, finder
from lipcheck.report import LayerReport, Report

Severity = Literal["error", "warning", "note"]
Outcome = Literal["passed", "violated", "incomplete"]
EXIT_CODES: dict[Outcome, int] = {"passed": 0, "violated": 1, "incomplete": 3}


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that a finding may be about. `outcome` is what one unwaived finding makes of the audit."""

    id: str
    severity: Severity
    outcome: Outcome
    text: str


def _rules(*rules: Rule) -> dict[str, Rule]:
    return {rule.id: rule for rule in rules}


RULES = _rules(
    Rule("layer-norm-violated", "error", "violated", "A layer's norm is above its budget."),
    Rule("layer-norm-not-proven", "warning", "incomplete", "A layer's norm is not proven to be within its budget."),
    Rule("layer-slack", "warning", "incomplete", "A layer's enclosure is wider than its budget allows."),
    Rule("layer-increase-violated", "error", "violated", "A layer's norm rose by more than its budget."),
    Rule("layer-increase-not-proven", "warning", "incomplete",
         "A layer's norm rose, and it is not proven that it rose by no more than its budget."),
    Rule("network-bound-violated", "error", "violated", "The network's Lipschitz constant is above its budget."),
    Rule("network-bound-not-proven", "warning", "incomplete",
         "The network's Lipschitz constant is not proven to be within its budget."),
    Rule("network-not-finite", "warning", "incomplete", "The network has to have a finite bound, and none is known."),
    Rule("network-increase-violated", "error", "violated", "The network's Lipschitz constant rose above its budget."),
    Rule("network-increase-not-proven", "warning", "incomplete", "The network's bound rose by more than its budget."),
    Rule("increase-not-judged", "warning", "incomplete",
         "A budget is for what rose against a baseline, and there is none, or none of this network."),
    Rule("unsupported-operation", "warning", "incomplete", "An operation has no finite bound."),
    Rule("not-finished", "warning", "incomplete", "The audit left something out for lack of time or memory."),
    Rule("waiver-expired", "warning", "passed", "A waiver has expired and waives nothing."),
    Rule("waiver-unused", "note", "passed", "A waiver waives nothing."),
    Rule("budget-unused", "warning", "passed", "A budget is for layers that the network does not have."),
    Rule("no-budget", "warning", "passed", "The policy sets no budget, so that nothing was judged."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerBudget:
    """What the layers may have whose path matches `match`, or, for `of_kind`, whose kind does: conv2d, linear.

    Units: `max_norm` and `max_slack` as in a Bound, `max_increase` a part of the baseline's: 0.05 is five per cent.
    """

    match: str
    of_kind: bool = False
    max_norm: float = math.inf
    max_slack: float = math.inf
    max_increase: float = math.inf

    def covers(self, layer: LayerReport) -> bool:
        """Whether the budget is for this layer. Parts of a layer, such as heads, are judged with the whole."""
        return not layer.part and fnmatchcase(layer.kind if self.of_kind else layer.layer, self.match)

    @property
    def table(self) -> str:
        """Which table of the policy it is from."""
        return "kinds" if self.of_kind else "layers"


@dataclass(frozen=True, slots=True)
class Waiver:
    """Findings that are known and allowed for a time."""

    match: str  # of the layer's path; the network's findings have the path "network"
    reason: str
    expires: datetime.date | None = None
    rule: str = "*"

    def covers(self, finding: Finding) -> bool:
        """Whether the finding is what the waiver is about; one of the network is only where that is its very match."""
        of_network = finding.subject == NETWORK and finding.layer is None
        named = self.match == NETWORK if of_network else fnmatchcase(finding.subject, self.match)
        return named and fnmatchcase(finding.rule, self.rule)

    def expired(self, today: datetime.date) -> bool:
        """Whether its last day is over."""
        return self.expires is not None and today > self.expires


@dataclass(frozen=True, slots=True)
class Policy:
    """Budgets, what may be skipped, and waivers. Without any of them everything passes.

    `skip_layers` are globs of layers that no budget is for, `skip_operations` of operations that need no bound.
    """

    layers: tuple[LayerBudget, ...] = ()
    max_log10_bound: float = math.inf
    require_finite: bool = False
    max_increase: float = math.inf  # of the network's bound, a part of the baseline's
    max_layer_increase: float = math.inf  # of every layer's norm
    skip_layers: tuple[str, ...] = ()
    skip_operations: tuple[str, ...] = ()
    waivers: tuple[Waiver, ...] = ()
    baseline: str = ""  # the file of an earlier report
    source: str = ""  # where it was read

    @property
    def judges_increases(self) -> bool:
        """Whether a budget is for what rose against a baseline."""
        return min((self.max_increase, self.max_layer_increase, *(one.max_increase for one in self.layers))) < math.inf

    @property
    def judges(self) -> bool:
        """Whether it has a budget at all."""
        return bool(self.layers) or self.max_log10_bound < math.inf or self.require_finite or self.judges_increases


NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the policy does not allow, or that its reader must know.

    `measured` and `limit` are numbers of the same kind, None where the rule has none. `excess` says how far it is
    over the limit, for sorting findings of one severity.
    """

    rule: str
    subject: str  # a layer's path, or "network"
    message: str
    measured: float | None = None
    limit: float | None = None
    layer: LayerReport | None = None
    excess: float = 0.0
    waiver: Waiver | None = None

    @property
    def severity(self) -> Severity:
        """How loud it is told."""
        return RULES[self.rule].severity


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a report keeps to a policy: the findings, the gravest first."""

    policy: Policy
    findings: tuple[Finding, ...] = ()
    difference: Difference | None = field(default=None, compare=False)

    @property
    def active(self) -> tuple[Finding, ...]:
        """The findings that no waiver covers."""
        return tuple(finding for finding in self.findings if finding.waiver is None)

    @property
    def waived(self) -> tuple[Finding, ...]:
        """The findings that a waiver covers."""
        return tuple(finding for finding in self.findings if finding.waiver is not None)

    @property
    def outcome(self) -> Outcome:
        """What the audit comes to: a violation outweighs what is incomplete."""
        outcomes = {RULES[finding.rule].outcome for finding in self.active}
        return next((one for one in ("violated", "incomplete") if one in outcomes), "passed")

    @property
    def exit_code(self) -> int:
        """0 passed, 1 violated, 3 incomplete."""
        return EXIT_CODES[self.outcome]


def judge(
    report: Report, policy: Policy, baseline: Report | None = None, *, today: datetime.date | None = None
) -> Judgement:
    """The report against the policy, and against an earlier report of the same network where one is given."""
    today = today or datetime.date.today()
    difference = None if baseline is None else compare(baseline, report)
    found = [
        *_of_layers(report, policy, difference),
        *_of_network(report, policy, baseline),
        *_unjudged(report, policy, difference),
        *_unsupported(report, policy),
        *(Finding("not-finished", NETWORK, fact) for fact in report.run.unfinished),
    ]
    waived = [_waived(finding, policy.waivers, today) for finding in found]
    told = [*waived, *_of_waivers(policy, found, today), *_of_budgets(report, policy)]
    if policy.source and not policy.judges:
        told.append(Finding("no-budget", NETWORK, "the policy sets no budget: nothing was judged"))
    return Judgement(policy, tuple(sorted(told, key=_gravity)), difference)


def _of_layers(report: Report, policy: Policy, difference: Difference | None) -> Iterator[Finding]:
    changed = finder(difference)
    for layer in report.layers:
        if layer.part or any(fnmatchcase(layer.layer, glob) for glob in policy.skip_layers):
            continue
        budgets = [budget for budget in policy.layers if budget.covers(layer)]
        # Of several budgets for a layer, the least is what all of them allow.
        yield from _norm(layer, min((budget.max_norm for budget in budgets), default=math.inf))
        yield from _slack(layer, min((budget.max_slack for budget in budgets), default=math.inf))
        rise = min([policy.max_layer_increase, *(budget.max_increase for budget in budgets)])
        yield from _rise(layer, rise, changed(layer))


def _norm(layer: LayerReport, limit: float) -> Iterator[Finding]:
    bound = applied(layer)
    if bound.upper <= limit and (bound.kind == "certified" or math.isinf(limit)):
        return
    what = (
        "its norm" if layer.merged is None else f"its norm, with {layer.merged_with or 'what is behind it'} folded in,"
    )
    if bound.lower > limit:
        message = f"{what} is at least {_low(bound)}, over the budget of {limit:g}"
        yield _finding(
            "layer-norm-violated", layer, message, bound.lower, limit, bound.lower / limit if limit else math.inf
        )
    else:
        sort = "" if bound.kind == "certified" else f" ({bound.kind})"
        message = f"{what} lies between {_low(bound)} and {_high(bound)}{sort}: within {limit:g} is not proven"
        yield _finding(
            "layer-norm-not-proven", layer, message, bound.upper, limit, bound.upper / limit if limit else math.inf
        )


def _slack(layer: LayerReport, limit: float) -> Iterator[Finding]:
    slack = applied(layer).slack
    if slack > limit:
        message = f"its enclosure has a slack of {numbers.percent_up(slack)} %, over the budget of {100 * limit:g} %"
        yield _finding("layer-slack", layer, message, slack, limit, slack / limit if limit else math.inf)


def _rise(layer: LayerReport, limit: float, change: LayerChange | None) -> Iterator[Finding]:
    # Enclosures that overlap are no rise; a layer of another shape has a norm all the same.
    if change is None or change.least_rise <= 0 or math.isinf(limit):
        return
    if change.least_rise > limit:
        message = (
            f"its norm rose by {_percent_down(change.least_rise)} % at least, over the budget of {100 * limit:g} %"
        )
        yield _finding("layer-increase-violated", layer, message, change.least_rise, limit, 1 + change.least_rise)
    elif change.largest_rise > limit:
        message = (
            f"its norm rose by {_percent_down(change.least_rise)} % to {numbers.percent_up(change.largest_rise)} %: "
            f"within {100 * limit:g} % is not proven"
        )
        yield _finding("layer-increase-not-proven", layer, message, change.largest_rise, limit, 1 + change.largest_rise)


def _of_network(report: Report, policy: Policy, baseline: Report | None) -> Iterator[Finding]:
    network = report.network
    upper, lower = network.log10_upper, numbers.log10(network.lower)
    if upper == math.inf and policy.require_finite:
        yield Finding("network-not-finite", NETWORK, network.reason or "the network's bound is infinite")
    limit = policy.max_log10_bound
    if lower > limit:
        message = f"its constant is at least {numbers.down(network.lower)}, over the budget of 10^{limit:g}"
        yield Finding("network-bound-violated", NETWORK, message, lower, limit, excess=lower - limit)
    elif upper > limit or (report.kind != "certified" and limit < math.inf):
        sort = "" if report.kind == "certified" else f" ({report.kind})"
        known = f"its bound is {_power(upper)}{sort}" if network.claimed else "no bound on it is claimed"
        message = f"{known}: within 10^{limit:g} is not proven"
        yield Finding("network-bound-not-proven", NETWORK, message, upper, limit, excess=upper - limit)
    if baseline is None or math.isinf(policy.max_increase):
        return
    old = baseline.network.log10_upper
    allowed = old + math.log10(1 + policy.max_increase)
    if lower > allowed:
        message = (
            f"its constant is at least {numbers.down(network.lower)}; the baseline's bound {_power(old)} allows less"
        )
        yield Finding("network-increase-violated", NETWORK, message, lower, allowed, excess=lower - allowed)
    elif upper > allowed:
        message = (
            f"its bound rose from {_power(old)} to {_power(upper)}, over the budget of {100 * policy.max_increase:g} %"
        )
        yield Finding("network-increase-not-proven", NETWORK, message, upper, allowed, excess=upper - allowed)


def _unjudged(report: Report, policy: Policy, difference: Difference | None) -> Iterator[Finding]:
    """What the budgets for increases could not be held against."""
    if not policy.judges_increases:
        return
    if difference is None:
        message = "there is no baseline to judge increases against; give --baseline REPORT, or a file in the policy"
        yield Finding("increase-not-judged", NETWORK, message)
    elif report.layers and not any(change.before and change.after for change in difference.layers):
        message = f"the baseline ({difference.before.name}) has none of these layers: it is of another network"
        yield Finding("increase-not-judged", NETWORK, message)


def _unsupported(report: Report, policy: Policy) -> Iterator[Finding]:
    for group in report.unsupported:
        if any(fnmatchcase(group.op, glob) for glob in policy.skip_operations):
            continue
        for layer in dict.fromkeys(group.layers):
            if not any(fnmatchcase(layer, glob) for glob in policy.skip_layers):
                yield Finding("unsupported-operation", layer, f"{group.op}: {group.reason}")


def _waived(finding: Finding, waivers: Sequence[Waiver], today: datetime.date) -> Finding:
    covering = (waiver for waiver in waivers if not waiver.expired(today) and waiver.covers(finding))
    return replace(finding, waiver=next(covering, None))


def _of_waivers(policy: Policy, found: Sequence[Finding], today: datetime.date) -> Iterator[Finding]:
    for waiver in policy.waivers:
        if waiver.expired(today):
            message = f"the waiver for {waiver.match} ({waiver.reason}) expired on {waiver.expires}"
            yield Finding("waiver-expired", waiver.match, message)
        elif not any(waiver.covers(finding) for finding in found):
            message = f"the waiver for {waiver.match} ({waiver.reason}) waives nothing; remove it"
            yield Finding("waiver-unused", waiver.match, message)


def _of_budgets(report: Report, policy: Policy) -> Iterator[Finding]:
    for budget in policy.layers:
        if not any(budget.covers(layer) for layer in report.layers):
            named = {layer.kind if budget.of_kind else layer.layer for layer in report.layers if not layer.part}
            near = get_close_matches(budget.match, sorted(named), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            message = f"no layer matches the budget for {budget.match} ({budget.table}){hint}"
            yield Finding("budget-unused", budget.match, message)


def _finding(rule: str, layer: LayerReport, message: str, measured: float, limit: float, excess: float) -> Finding:
    return Finding(rule, layer.layer, message, measured, limit, layer, excess)


def _gravity(finding: Finding) -> tuple[bool, int, float]:
    """Active before waived, errors before warnings, the largest excess first."""
    order: tuple[Severity, ...] = ("error", "warning", "note")
    return finding.waiver is not None, order.index(finding.severity), -finding.excess


def _power(log10: float) -> str:
    return "infinite" if log10 == math.inf else f"10^{numbers.power_up(log10)}"


def _low(bound: Bound) -> str:
    return numbers.down(bound.lower)


def _high(bound: Bound) -> str:
    return numbers.up(bound.upper)


def _percent_down(ratio: float) -> str:
    return numbers.down(100 * ratio, digits=3)
