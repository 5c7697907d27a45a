"""The SARIF log against the official schema, and what code scanning needs beyond it."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import example_report
import jsonschema
import pytest
from renderers import judged

from lipcheck.policy import RULES, LayerBudget, Policy, judge
from lipcheck.renderers import sarif

SCHEMA = json.loads(
    gzip.decompress((Path(__file__).parent.parent / "data" / "sarif-schema-2.1.0.json.gz").read_bytes())
)
VALIDATOR = jsonschema.Draft7Validator(SCHEMA, format_checker=jsonschema.FormatChecker())


def run(report, judgement=None):
    text = sarif.text(report, judgement)
    assert text.isascii()
    document = json.loads(text)
    VALIDATOR.validate(document)
    return document["runs"][0]


def results(report, judgement=None):
    return run(report, judgement)["results"]


def test_the_validator_is_of_the_official_schema_and_refuses_what_it_forbids():
    assert SCHEMA["$id"].endswith("oasis-tcs/sarif-spec/master/Schemata/sarif-schema-2.1.0.json")
    document = json.loads(sarif.text(judged.after(), judged.judgement()))
    document["runs"][0]["results"][0]["level"] = "grave"
    with pytest.raises(jsonschema.ValidationError, match="grave"):
        VALIDATOR.validate(document)


@pytest.mark.parametrize("report", judged.PLAIN.values(), ids=judged.PLAIN)
def test_every_report_is_valid(report):
    report = report()
    found = results(report)
    assert len(found) == sum(len(dict.fromkeys(group.layers)) for group in report.unsupported)
    run(report, judge(report, judged.POLICY, judged.before(), today=judged.TODAY))


def test_there_is_a_rule_for_each_rule_and_a_result_for_each_finding_in_its_order():
    one = run(judged.after(), judged.judgement())
    rules = one["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    assert all(rule["defaultConfiguration"]["level"] == RULES[rule["id"]].severity for rule in rules)
    assert all(rule[words]["text"] for rule in rules for words in ("shortDescription", "fullDescription", "help"))
    findings = judged.judgement().findings
    assert [result["ruleId"] for result in one["results"]] == [finding.rule for finding in findings]
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in one["results"])


def test_a_result_names_the_layer_the_policy_and_the_figures():
    result = results(judged.after(), judged.judgement())[0]
    (location,) = result["locations"]
    assert location["logicalLocations"] == [{"name": "conv", "fullyQualifiedName": "stem.conv", "kind": "module"}]
    assert location["physicalLocation"]["artifactLocation"] == {"uri": "ci/lipcheck.toml"}
    region = location["physicalLocation"]["region"]
    assert set(region) == {"startLine", "startColumn", "endLine", "endColumn"}
    assert result["message"]["text"].startswith("stem.conv: its norm")
    assert set(result["properties"]) == {"measured", "limit"}


def test_infinite_figures_are_left_out():
    report = example_report.unbounded()
    found = results(report, judge(report, Policy(layers=(LayerBudget("odd", max_norm=2.0),), max_log10_bound=3.0)))
    figures = [result["properties"] for result in found if result["ruleId"] != "unsupported-operation"]
    assert figures == [{"limit": 2.0}, {"limit": 3.0}]


def test_waived_results_are_suppressed_with_the_reason_and_only_they():
    for result in results(judged.after(), judged.judgement()):
        waived = result["ruleId"] == "layer-slack" or result["message"]["text"].startswith("blocks.")
        assert ("suppressions" in result) is waived
        if result["ruleId"] == "layer-slack":
            (suppression,) = result["suppressions"]
            assert (suppression["kind"], suppression["justification"]) == ("external", "known since v1")
            assert suppression["properties"]["expires"] == "2030-01-01"


def prints(report, judgement):
    return [result["partialFingerprints"]["primaryLocationLineHash"] for result in results(report, judgement)]


def test_fingerprints_stay_when_figures_move_and_differ_between_results():
    report = judged.after()
    moved = replace(report, layers=(judged.grown(report.layers[0], 1.01), *report.layers[1:]))
    one, other = (prints(entry, judged.judgement(entry)) for entry in (report, moved))
    assert sorted(one) == sorted(other)
    assert len(set(one)) == len(one)
    waived = replace(judged.POLICY, waivers=())
    assert set(one) >= set(prints(report, judge(report, waived, judged.before(), today=judged.TODAY)))


def test_a_fingerprint_is_the_layers_own_whatever_else_is_found():
    policy = Policy(layers=(LayerBudget("*", max_norm=0.5),))
    one, other = (example_report.layer(name, "linear", 1.0, 1.0) for name in "ab")
    alone, both = (replace(judged.empty(), layers=layers) for layers in ((other,), (one, other)))
    assert prints(alone, judge(alone, policy)) == prints(both, judge(both, policy))[1:]


def test_findings_alike_in_rule_and_subject_have_prints_of_their_own():
    report = replace(judged.empty(), run=replace(judged.empty().run, unfinished=("a", "b")))
    assert len(set(prints(report, None))) == 2


def test_the_invocation_has_the_exit_code():
    for report, code in ((judged.after(), 1), (example_report.small(), 0), (example_report.unbounded(), 3)):
        judgement = judged.judgement() if code == 1 else judge(report, Policy())
        (invocation,) = run(report, judgement)["invocations"]
        assert (invocation["executionSuccessful"], invocation["exitCode"]) == (True, code)


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        ("", "lipcheck.toml"),
        ("pyproject.toml", "pyproject.toml"),
        ("ci/a b#.toml", "ci/a%20b%23.toml"),
        ("/somewhere/else/lipcheck.toml", "lipcheck.toml"),
        ("../lipcheck.toml", "lipcheck.toml"),
        (str(Path.cwd() / "ci" / "lipcheck.toml"), "ci/lipcheck.toml"),
        ("..", "lipcheck.toml"),
        (".", "lipcheck.toml"),
    ],
)
def test_the_place_is_a_relative_address(source, uri):
    judgement = replace(judged.judgement(), policy=replace(judged.POLICY, source=source))
    assert {
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for result in results(judged.after(), judgement)
    } == {uri}


@pytest.mark.parametrize("attack", judged.ATTACKS)
def test_hostile_names_leave_the_log_valid_and_make_no_link_or_placeholder(attack):
    report, judgement = judged.hostile(attack)
    one = run(report, judgement)
    assert len(one["results"]) == len(judgement.findings)
    for result in one["results"]:
        text = result["message"]["text"]
        assert text.isprintable()
        assert "](" not in text
        assert not {"{", "}"} & set(text.replace("{{", "").replace("}}", ""))
        for place in result["locations"][0].get("logicalLocations", ()):
            assert place["fullyQualifiedName"].isprintable()
            assert place["fullyQualifiedName"]
            assert place["name"]
