"""The table of a difference for the terminal."""

import unicodedata
from dataclasses import replace

import example_report
import pytest
from renderers import judged
from rich.cells import cell_len

from lipcheck import numbers
from lipcheck.diff import compare, finder
from lipcheck.renderers import changes


def difference():
    return compare(judged.before(), judged.after())


def rows(text):
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("──")) + 1
    return lines[start : lines.index("", start)]


def test_layers_stand_in_the_order_of_what_matters_and_unchanged_ones_are_counted():
    text = changes.text(difference(), 160)
    assert [row.split()[1] for row in rows(text)] == [
        *("stem.conv", "stages.1.dilated", "came", "gone", "stages.0.blocks.0.token_mixer.depthwise"),
        "stages.0.blocks.0.channel_mixer.expansion.pointwise_convolution",
    ]
    assert "10 layers: 1 raised, 1 reshaped, 1 added, 1 removed, 1 lowered, 1 within slack, 4 unchanged" in text
    assert len(rows(changes.text(difference(), 160, every=True))) == 10


def test_a_row_has_both_enclosures_the_change_and_the_state():
    row = rows(changes.text(difference(), 160))[0].split()
    assert row == ["▲", "stem.conv", "1.4999", "…", "1.5002", "1.9498", "…", "1.9502", "+30.1%", "+0.12", "raised"]


@pytest.mark.parametrize("width", [60, 70, 80, 100, 120, 160, 200])
def test_rows_fit_and_numbers_are_never_cut(width):
    text = changes.text(difference(), width)
    for row, change in zip(rows(text), changes.listed(difference()), strict=True):
        assert cell_len(row) <= width
        assert changes.percent(change) in row.split()
        for bound in change.bounds:
            assert bound is None or numbers.up(bound.upper) in row.split()
    assert len({cell_len(line) for line in text.splitlines() if line.startswith("──")}) == 1


@pytest.mark.parametrize("width", [20, 80, 160])
@pytest.mark.parametrize("attack", judged.ATTACKS)
def test_hostile_names_reach_no_terminal_and_begin_no_line(attack, width):
    report, judgement = judged.hostile(attack)
    text = changes.text(judgement.difference, width, every=True)
    assert {unicodedata.category(sign) for sign in text.replace("\n", "")} & {"Cc", "Cf", "Cs", "Cn"} == set()
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]
    assert len(rows(text)) == len(report.layers)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (example_report.small, example_report.small, "10^3.15 → 10^3.15 (0.00 in log10)"),
        (example_report.small, example_report.unbounded, "10^3.15 → ∞"),
        (example_report.constant, example_report.small, "0 → 10^3.15"),
        (judged.unclaimed, judged.unclaimed, "no bound claimed → no bound claimed"),
        (example_report.small, example_report.resnet, "10^3.15 → 10^18.77 (+15.63 in log10)"),
    ],
)
def test_the_networks_line(before, after, told):
    assert changes.network(compare(before(), after())) == told


def test_equal_reports_have_no_table():
    text = changes.text(compare(judged.before(), judged.before()), 80)
    assert "──" not in text
    assert "9 layers: 9 unchanged" in text
    assert "0 layers\n" in changes.text(compare(judged.empty(), judged.empty()), 80)


def test_a_norm_that_was_zero_or_infinite_has_a_change_without_a_number():
    report = judged.empty()
    zero, one = (example_report.layer("a", "linear", end, end) for end in (0.0, 1.0))
    endless = replace(one, bound=example_report.Bound(1.0, float("inf"), "none"))

    def change(old, new):
        found = compare(replace(report, layers=(old,)), replace(report, layers=(new,))).layers[0]
        return changes.percent(found), changes.log10(found)

    assert change(zero, one) == ("+∞%", "+∞")
    assert change(one, zero) == ("-100.00%", "-∞")
    assert change(endless, endless) == ("–", "–")
    assert change(zero, zero) == ("0.00%", "0.00")


def test_the_change_of_each_of_two_calls_is_its_own():
    layer = example_report.layer("a", "linear", 1.0, 1.0)
    double = example_report.layer("a", "linear", 2.0, 2.0)
    report = replace(judged.empty(), layers=(layer, layer))
    later = replace(report, layers=(layer, double))
    find = finder(compare(report, later))
    assert [find(entry).state for entry in later.layers] == ["unchanged", "raised"]
    assert find(example_report.layer("b", "linear", 1.0, 1.0)) is None
