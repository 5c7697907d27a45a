"""Policies and enclosures: violated where the lower end breaks a budget, not proven where only the upper does."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace

import example_report
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcheck.bound import Bound
from lipcheck.policy import RULES, LayerBudget, Policy, Waiver, judge
from lipcheck.report import LayerReport, NetworkReport, Report

TODAY = datetime.date(2030, 6, 15)
numbers = st.floats(1e-3, 1e3)


def layered(*layers: LayerReport, **network: object) -> Report:
    whole = example_report.small()
    given: dict[str, object] = {"log10_upper": 1.0, "log10_product": 1.0, "lower": 1.0, **network}
    return replace(whole, layers=layers, network=NetworkReport(**given), unsupported=())  # type: ignore[arg-type]


def linear(name: str, lower: float, upper: float, **more: object) -> LayerReport:
    return LayerReport(name, "aten.linear.default", "linear", Bound(lower, upper, "m"), **more)  # type: ignore[arg-type]


def rules(report: Report, policy: Policy, baseline: Report | None = None) -> list[str]:
    return [finding.rule for finding in judge(report, policy, baseline, today=TODAY).findings]


@given(ends=st.tuples(numbers, numbers).map(sorted), limit=numbers, at=st.floats(0, 1))
def test_a_verdict_holds_for_every_norm_in_the_enclosure(ends, limit, at):
    lower, upper = ends
    norm = lower + (upper - lower) * at
    judged = judge(layered(linear("a", lower, upper)), Policy(layers=(LayerBudget("a", max_norm=limit),)), today=TODAY)
    if judged.outcome == "passed":
        assert norm <= limit * (1 + 1e-12)
    elif judged.outcome == "violated":
        assert norm >= limit * (1 - 1e-12)
    else:
        assert lower <= limit < upper


@pytest.mark.parametrize(
    ("ends", "found", "code"),
    [((1, 2), [], 0), ((1, 2.1), ["layer-norm-not-proven"], 3), ((2.1, 2.2), ["layer-norm-violated"], 1)],
)
def test_a_layers_budget(ends, found, code):
    policy = Policy(layers=(LayerBudget("a*", max_norm=2.0),))
    judged = judge(layered(linear("a.b", *ends), linear("c", 9, 9)), policy)
    assert ([finding.rule for finding in judged.findings], judged.exit_code) == (found, code)


def test_what_the_network_applies_is_judged():
    budget = Policy(layers=(LayerBudget("*", max_norm=2.0),))
    assert rules(layered(linear("a", 9, 9, merged=Bound(1, 1, "m"), merged_with="bn")), budget) == []
    assert rules(layered(linear("a", 1, 1, merged=Bound(9, 9, "m"), merged_with="bn")), budget) == [
        "layer-norm-violated"
    ]


def test_of_several_budgets_the_least_counts():
    policy = Policy(layers=(LayerBudget("*", max_norm=5), LayerBudget("linear", of_kind=True, max_norm=2)))
    (finding,) = judge(layered(linear("a", 3, 3)), policy).findings
    assert finding.limit == 2


def test_what_is_no_certified_bound_is_not_proven():
    layer = replace(linear("a", 1, 1), bound=Bound(1, 1, "power", "estimate"))
    assert rules(layered(layer), Policy(layers=(LayerBudget("a", max_norm=2),))) == ["layer-norm-not-proven"]


def test_slack():
    policy = Policy(layers=(LayerBudget("*", max_slack=0.05),))
    assert rules(layered(linear("a", 1, 1.04)), policy) == []
    assert rules(layered(linear("a", 1, 1.06)), policy) == ["layer-slack"]
    assert rules(layered(linear("a", 0, 1)), policy) == ["layer-slack"]


@pytest.mark.parametrize(
    ("new", "found"),
    [
        ((1.0, 1.2), []),  # overlaps the old enclosure
        ((1.11, 1.13), []),
        ((1.11, 1.3), ["layer-increase-not-proven"]),
        ((1.4, 1.41), ["layer-increase-violated"]),
    ],
)
def test_increases_against_a_baseline(new, found):
    baseline = layered(linear("a", 1.05, 1.1))
    assert rules(layered(linear("a", *new)), Policy(max_layer_increase=0.1), baseline) == found
    assert rules(layered(linear("a", *new)), Policy(layers=(LayerBudget("a", max_increase=0.1),)), baseline) == found
    assert rules(layered(linear("a", *new)), Policy(max_layer_increase=0.1)) == ["increase-not-judged"]
    other = layered(linear("b", 1.05, 1.1))
    assert rules(layered(linear("a", *new)), Policy(max_layer_increase=0.1), other) == ["increase-not-judged"]


def test_a_layer_of_another_shape_is_judged_by_its_norm():
    baseline = layered(replace(linear("a", 1.9, 2.0), channels=(4, 4)))
    grown, policy = layered(replace(linear("a", 9.0, 9.1), channels=(5, 5))), Policy(max_layer_increase=0.05)
    assert rules(grown, policy, baseline) == ["layer-increase-violated"]
    assert rules(layered(replace(linear("a", 1.9, 2.0), channels=(5, 5))), policy, baseline) == []


def test_a_network_whose_layers_are_not_all_certified_is_not_proven():
    sure = layered(linear("a", 1, 1), log10_upper=1.0)
    unsure = replace(sure, layers=(replace(sure.layers[0], bound=Bound(1.0, 1.0, "m", "probabilistic")),))
    policy = Policy(max_log10_bound=2.0)
    assert rules(sure, policy) == []
    assert rules(unsure, policy) == ["network-bound-not-proven"]
    assert rules(unsure, Policy(require_finite=True)) == []


def test_no_glob_waives_what_is_found_of_the_network():
    report, policy = layered(log10_upper=2.1, lower=101.0), Policy(max_log10_bound=2.0)
    waived = [judge(report, replace(policy, waivers=(Waiver(match, "why"),))).outcome for match in ("*", "network")]
    assert waived == ["violated", "passed"]


@pytest.mark.parametrize(
    ("network", "found"),
    [
        ({"log10_upper": 2.0, "lower": 5.0}, []),
        ({"log10_upper": 2.1, "lower": 5.0}, ["network-bound-not-proven"]),
        ({"log10_upper": 2.1, "lower": 101.0}, ["network-bound-violated"]),
        ({"log10_upper": math.inf, "reason": "why"}, ["network-not-finite", "network-bound-not-proven"]),
        ({"log10_upper": -math.inf, "lower": 0.0}, []),
    ],
)
def test_the_networks_budget(network, found):
    policy = Policy(max_log10_bound=2.0, require_finite=True)
    assert sorted(rules(layered(**network), policy)) == sorted(found)


@pytest.mark.parametrize(
    ("network", "found"),
    [
        ({"log10_upper": 1.02}, []),
        ({"log10_upper": 1.1}, ["network-increase-not-proven"]),
        ({"log10_upper": 1.2, "lower": 12.0}, ["network-increase-violated"]),
        ({"log10_upper": math.inf}, ["network-increase-not-proven"]),
    ],
)
def test_the_networks_increase(network, found):
    assert rules(layered(**network), Policy(max_increase=0.1), layered()) == found


def test_unsupported_operations_are_incomplete_unless_they_may_be_skipped():
    report = example_report.unbounded()
    judged = judge(report, Policy())
    assert judged.outcome == "incomplete"
    assert {finding.rule for finding in judged.findings} == {"unsupported-operation"}
    assert judge(report, Policy(skip_operations=("aten.*",))).findings == ()


def test_what_was_left_for_lack_of_time_is_incomplete():
    report = layered()
    left = replace(report, run=replace(report.run, unfinished=("1 operator left as before",)))
    assert (rules(left, Policy()), judge(left, Policy()).exit_code) == (["not-finished"], 3)


def test_layers_that_may_be_skipped_have_no_budget():
    policy = Policy(layers=(LayerBudget("*", max_norm=1),), max_layer_increase=0.0, skip_layers=("head*",))
    assert rules(layered(linear("head.fc", 5, 5)), policy, layered(linear("head.fc", 1, 1))) == []


def test_a_waiver_waives_until_its_day_is_over():
    policy = Policy(layers=(LayerBudget("*", max_norm=1),), waivers=(Waiver("a", "known", TODAY),))
    judged = judge(layered(linear("a", 2, 2)), policy, today=TODAY)
    assert (judged.outcome, [f.waiver and f.waiver.reason for f in judged.findings]) == ("passed", ["known"])
    late = judge(layered(linear("a", 2, 2)), policy, today=TODAY + datetime.timedelta(1))
    assert (late.outcome, [f.rule for f in late.findings]) == ("violated", ["layer-norm-violated", "waiver-expired"])


def test_a_waiver_is_for_its_rule_and_its_layer():
    report, budget = layered(linear("a", 2, 2)), LayerBudget("*", max_norm=1)
    for waiver in (Waiver("b", "r"), Waiver("a", "r", rule="layer-slack")):
        judged = judge(report, Policy(layers=(budget,), waivers=(waiver,)), today=TODAY)
        assert [f.rule for f in judged.findings] == ["layer-norm-violated", "waiver-unused"]
        assert judged.outcome == "violated"
    assert judge(report, Policy(layers=(budget,), waivers=(Waiver("*", "r", rule="layer-norm-*"),))).outcome == "passed"


def test_a_budget_for_no_layer_is_told():
    judged = judge(layered(linear("a", 1, 1)), Policy(layers=(LayerBudget("b*", max_norm=1),)))
    assert ([f.rule for f in judged.findings], judged.outcome) == (["budget-unused"], "passed")


def test_a_budget_that_is_near_to_a_kind_is_told_which():
    report = layered(linear("a", 1, 1))
    (found,) = judge(report, Policy(layers=(LayerBudget("Linear", of_kind=True, max_norm=9.0),))).findings
    assert (found.severity, found.message.partition("; ")[2]) == ("warning", "did you mean linear?")


def test_a_policy_from_a_file_that_judges_nothing_is_told():
    assert rules(layered(), Policy(source="lipcheck.toml")) == ["no-budget"]
    assert rules(layered(), Policy()) == []


def test_a_violation_outweighs_what_is_incomplete_and_comes_first():
    policy = Policy(layers=(LayerBudget("*", max_norm=1),))
    judged = judge(layered(linear("a", 0.5, 2), linear("b", 2, 2), linear("c", 3, 3)), policy)
    assert ([f.subject for f in judged.findings], judged.exit_code) == (["c", "b", "a"], 1)


def test_every_rule_has_its_own_text():
    assert len({rule.text for rule in RULES.values()}) == len(RULES)
    assert all(name == rule.id for name, rule in RULES.items())
