"""Workflow commands that nothing in a name can end or begin, and a summary that GitHub takes."""

import io
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from renderers import judged

from lipcheck.errors import OutputError
from lipcheck.policy import Finding, Judgement, Policy
from lipcheck.renderers import github, markdown

COMMAND = re.compile(r"::(error|warning|notice) title=([^:,\r\n]*)::(.*)")
ACTIONS = {"GITHUB_ACTIONS": "true"}


def commands(judgement):
    found = [COMMAND.fullmatch(line) for line in github.annotations(judgement).splitlines()]
    assert all(found)
    return [(match[1], decoded(match[2]), decoded(match[3])) for match in found]


def decoded(words):
    for code, sign in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        words = words.replace(code, sign)
    return words


def test_there_is_a_command_for_each_finding_that_is_not_waived_the_gravest_first():
    judgement = judged.judgement()
    found = commands(replace(judgement, findings=judgement.findings[:3] + judgement.waived))
    assert len(found) == 3
    assert found[0][0] == "error"
    assert found[0][1].startswith("lipcheck: layer-")
    assert found[0][2].startswith("stem.conv: its norm")


def test_there_are_ten_at_most_and_the_last_says_how_many_more():
    _, judgement = judged.many(2000)
    found = commands(judgement)
    assert len(found) == 10
    assert found[-1][2].startswith("and 1991 errors more")
    for count in (0, 1, 9, 10):
        assert len(commands(replace(judgement, findings=judgement.findings[:count]))) == count
    assert commands(replace(judgement, findings=judgement.findings[:11]))[-1][2].startswith("and 2 errors more")


@pytest.mark.parametrize("attack", judged.ATTACKS)
def test_hostile_names_stay_inside_their_command(attack):
    judgement = judged.hostile(attack)[1]
    assert len(commands(judgement)) == min(10, len(judgement.active))
    assert github.annotations(judgement).replace("\n", "").isprintable()


@given(st.text(), st.text())
def test_every_command_is_one_line_that_says_what_was_found(subject, message):
    finding = Finding("not-finished", subject, message)
    lines = github.annotations(Judgement(Policy(), (finding,)))
    assert lines.count("\n") == 1
    assert COMMAND.fullmatch(lines[:-1])
    assert not re.search("%(?!25)", COMMAND.fullmatch(lines[:-1])[3])


def test_a_property_has_no_colon_and_no_comma():
    assert github._property("a:b,c%\r\n") == "a%3Ab%2Cc%25%0D%0A"
    assert github._data("a:b,c%\r\n") == "a:b,c%25%0D%0A"


def test_the_summary_is_below_what_github_takes():
    report, judgement = judged.many(5000)
    text = github.summary(report, judgement)
    assert 1_000_000 < len(text.encode()) < 1_048_576
    assert re.search(r"_\d+ more layers left out", text)
    assert github.summary(judged.after(), judged.judgement()) == markdown.text(judged.after(), judged.judgement())


def emitted(environ):
    out = io.StringIO()
    github.emit(judged.after(), judged.judgement(), environ, out)
    return out.getvalue()


def test_outside_of_github_nothing_is_written(tmp_path):
    summary = tmp_path / "summary"
    for environ in ({}, {"GITHUB_ACTIONS": "false"}):
        assert emitted({**environ, "GITHUB_STEP_SUMMARY": str(summary)}) == ""
    assert not summary.exists()


def test_under_github_the_summary_follows_what_is_there(tmp_path):
    summary = tmp_path / "summary"
    summary.write_text("from before", encoding="utf-8")
    assert emitted({**ACTIONS, "GITHUB_STEP_SUMMARY": str(summary)}) == github.annotations(judged.judgement())
    text = summary.read_text(encoding="utf-8")
    assert text == "from before\n" + github.summary(judged.after(), judged.judgement())
    assert emitted(ACTIONS) == github.annotations(judged.judgement())


def test_the_file_stays_below_the_size_with_what_is_there(tmp_path):
    summary = tmp_path / "summary"
    for there in (1_048_000, 1_048_575, 2_000_000):
        summary.write_text("x" * there, encoding="utf-8")
        emitted({**ACTIONS, "GITHUB_STEP_SUMMARY": str(summary)})
        assert summary.stat().st_size <= max(1_048_576, there + 1)


def test_a_summary_that_cannot_be_written_is_an_error_with_the_file(tmp_path):
    with pytest.raises(OutputError, match=r"nowhere.summary \(GITHUB_STEP_SUMMARY\) cannot be written \(No such file"):
        emitted({**ACTIONS, "GITHUB_STEP_SUMMARY": str(tmp_path / "nowhere" / "summary")})
