"""The verdict for the terminal, and the words that other formats take from it."""

import unicodedata
from dataclasses import replace

import pytest
from renderers import judged
from rich.cells import cell_len

from lipcheck.policy import Judgement, Policy
from lipcheck.renderers import judgement as verdicts


def test_the_verdict_comes_first_then_the_gravest_finding_and_the_waived_last():
    lines = verdicts.text(judged.judgement(), 200).splitlines()
    assert lines[0].startswith("violated: 2 errors, ")
    assert lines[0].endswith("(lipcheck.toml)")
    assert [line.split()[0] for line in lines[1:]] == sorted(
        (line.split()[0] for line in lines[1:]), key=["error", "warning", "note", "waived"].index
    )
    assert "waived until 2030-01-01: known since v1" in verdicts.text(judged.judgement(), 400)
    assert "waived without an end: gates are judged by hand" in verdicts.text(judged.judgement(), 400)


def test_nothing_found_is_said():
    assert verdicts.text(Judgement(Policy()), 80) == "passed: no findings\n"


@pytest.mark.parametrize("width", [30, 80, 120])
@pytest.mark.parametrize("attack", judged.ATTACKS)
def test_hostile_names_reach_no_terminal_and_begin_no_line(attack, width):
    text = verdicts.text(judged.hostile(attack)[1], width)
    assert {unicodedata.category(sign) for sign in text.replace("\n", "")} & {"Cc", "Cf", "Cs", "Cn"} == set()
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]


@pytest.mark.parametrize("width", [40, 80])
def test_lines_are_broken_between_words_within_the_width(width):
    text = verdicts.text(judged.judgement(), width)
    longest = max(cell_len(word) for word in text.split()) + 11
    assert max(map(cell_len, text.splitlines())) <= max(width, longest)
    assert text.split() == verdicts.text(judged.judgement(), 10_000).split()


def test_a_word_with_two_colons_begins_no_line():
    assert list(verdicts.wrapped("aaaa ::error::b cc", 6)) == ["aaaa ::error::b", "cc"]


def test_what_is_found_about_a_layer_is_not_told_of_its_namesake():
    report = judged.after()
    equal = replace(report.layers[0])
    find = verdicts.about(judged.judgement().findings)
    assert {finding.rule for finding in find(equal)} > {"layer-norm-violated"}
    assert find(report.layers[-1])[0].rule == "layer-norm-not-proven"
    assert find(replace(equal, calls=7)) == []
