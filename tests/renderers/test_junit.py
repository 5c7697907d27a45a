"""The JUnit XML: a test for each budget of each layer, counted as readers count, and valid whatever the names are."""

from dataclasses import replace
from xml.etree import ElementTree

import example_report
import pytest
from renderers import judged

from lipcheck.policy import NETWORK, RULES, Finding, Judgement, LayerBudget, Policy, Waiver, judge
from lipcheck.renderers import junit


def suites(text):
    return {suite.get("name").removeprefix("lipcheck."): suite for suite in ElementTree.fromstring(text)}


def cases(text, suite):
    return {case.get("name"): case for case in suites(text)[suite].iter("testcase")}


def assert_counted(text):
    root = ElementTree.fromstring(text)
    for element in (root, *root):
        found = list(element.iter("testcase"))
        assert element.get("tests") == str(len(found))
        for name, child in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert element.get(name) == str(sum(case.find(child) is not None for case in found))
    for suite in root:
        names = [(case.get("classname"), case.get("name")) for case in suite.iter("testcase")]
        assert len(set(names)) == len(names) > 0


def test_every_layer_that_a_budget_is_for_is_a_test():
    text = junit.text(judged.after(), judged.judgement())
    assert_counted(text)
    assert list(cases(text, "norm")) == ["stem.conv", "stem.pool", "norm", *list(cases(text, "norm"))[3:]]
    assert list(cases(text, "slack")) == ["stem.conv", "stem.pool"]
    assert set(cases(text, "network")) == {"bound", "finite", "increase"}
    assert len(list(cases(text, "norm")["norm"])) == 0


def test_a_layer_without_a_counterpart_passes_no_test_of_its_increase():
    names = cases(junit.text(judged.after(), judged.judgement()), "increase")
    assert not {"came", "gone"} & set(names)
    assert "stages.1.dilated" in names  # of another shape, and with a norm all the same
    assert {"stem.conv", "stem.pool", "norm"} < set(names)


def test_violated_not_proven_and_waived_differ():
    text = junit.text(judged.after(), judged.judgement())
    violated = cases(text, "norm")["stem.conv"].find("failure")
    assert violated.get("type") == "layer-norm-violated"
    assert violated.get("message").endswith("is at least 1.9498, over the budget of 1.9")
    assert "conv 7×7/2 3→64: norm in [1.9498, 1.9502] (certified)" in violated.text
    assert cases(text, "norm")["came"].find("failure").get("type") == "layer-norm-not-proven"
    skipped = cases(text, "slack")["stem.conv"].find("skipped")
    assert skipped.get("message").startswith("waived until 2030-01-01: known since v1")


def test_what_could_not_be_tested_is_an_error():
    text = junit.text(judged.after(), judged.judgement())
    kinds = [child.get("type") for case in cases(text, "operations").values() for child in case.iter("error")]
    assert kinds == ["unsupported-operation"] * 2
    assert suites(text)["operations"].get("skipped") == "18"
    assert [child.get("type") for child in suites(text)["run"].iter("error")] == ["not-finished"]


def test_facts_about_the_policy_fail_nothing():
    suite = suites(junit.text(judged.after(), judged.judgement()))["policy"]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    told = [output.text for output in suite.iter("system-out")]
    assert any("waiver-expired: the waiver for old" in text for text in told)


@pytest.mark.parametrize("report", judged.PLAIN.values(), ids=judged.PLAIN)
def test_a_report_by_itself_has_tests_of_what_it_leaves_open(report):
    report = report()
    text = junit.text(report)
    assert_counted(text)
    errors = sum(len(dict.fromkeys(group.layers)) for group in report.unsupported)
    assert ElementTree.fromstring(text).get("errors") == str(errors)
    assert ElementTree.fromstring(text).get("failures") == "0"
    assert ("operations" in suites(text)) is report.network.claimed


@pytest.mark.parametrize("attack", judged.ATTACKS)
def test_the_document_is_valid_whatever_the_names_are(attack):
    text = junit.text(*judged.hostile(attack))
    assert text.isascii()
    assert_counted(text)
    for element in ElementTree.fromstring(text).iter():
        for words in (element.text or "", *element.attrib.values()):
            assert words.replace("\n", "").isprintable()


def test_calls_of_one_layer_are_tests_of_their_own():
    layer = example_report.layer("a", "linear", 1.0, 1.0)
    report = replace(judged.empty(), layers=(layer, example_report.layer("a", "linear", 3.0, 3.0)))
    text = junit.text(report, judge(report, Policy(layers=(LayerBudget("*", max_norm=2.0),))))
    assert [len(case) for case in cases(text, "norm").values()] == [0, 1]
    assert list(cases(text, "norm")) == ["a", "a (2)"]


def test_a_report_that_was_read_again_passes_no_more_tests():
    report = judged.after()
    again = type(report).from_json(report.to_json())
    assert junit.text(again, judged.judgement(report)) == junit.text(report, judged.judgement(report))


def test_findings_of_another_report_are_not_lost():
    text = junit.text(judged.empty(), judged.judgement())
    assert cases(text, "norm")["stem.conv"].find("failure") is not None


def test_the_build_breaks_exactly_where_the_audit_does():
    for waivers in ((), (Waiver("*", "all of it"),)):
        judgement = judge(judged.after(), replace(judged.POLICY, waivers=waivers), judged.before())
        root = ElementTree.fromstring(junit.text(judged.after(), judgement))
        broken = int(root.get("failures")) + int(root.get("errors")) > 0
        assert broken is (judgement.outcome != "passed")


@pytest.mark.parametrize("rule", RULES)
def test_what_was_found_is_told_whatever_its_rule(rule):
    report = judged.after()
    layer = report.layers[0] if rule.startswith("layer") else None
    finding = Finding(rule, layer.layer if layer else NETWORK, "what was found", layer=layer)
    text = junit.text(report, Judgement(Policy(), (finding,)))
    assert_counted(text)
    assert "what was found" in text
    failed = sum(int(suite.get(count)) for suite in ElementTree.fromstring(text) for count in ("failures", "errors"))
    assert (failed > 0) == (RULES[rule].outcome != "passed")
