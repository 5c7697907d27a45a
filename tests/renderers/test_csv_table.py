"""The CSV: the columns of the frame, cells that no spreadsheet runs, numbers that are still bounds."""

import csv
import io
import math
from dataclasses import replace
from decimal import Decimal

import example_report
import pytest
from hypothesis import given
from hypothesis import strategies as st
from renderers import judged

from lipcheck.bound import Bound
from lipcheck.diff import STATES
from lipcheck.renderers import csv_table

NAMES = ("layer", "op", "kind", "method", "bound_kind", "merged_with", "padding_mode", "part", "findings", "waived")


def read(text):
    return list(csv.DictReader(io.StringIO(text), strict=True))


@pytest.mark.parametrize("report", judged.PLAIN.values(), ids=judged.PLAIN)
def test_there_is_a_row_a_layer_with_the_columns_of_the_frame(report):
    pytest.importorskip("pandas")
    report = report()
    rows = read(csv_table.text(report))
    frame = report.to_frame()
    assert len(rows) == len(report.layers)
    assert [list(row) for row in rows] == [list(frame.columns)] * len(rows)
    for row, layer in zip(rows, frame.to_dict("records"), strict=True):
        for column in ("lower", "upper", "slack", "merged_lower", "merged_upper", "share", "groups", "slope"):
            known = layer[column] is not None and not math.isnan(layer[column])
            assert (float(row[column]) == pytest.approx(layer[column], rel=1e-13)) if known else row[column] == ""
        assert row["kernel"] == "x".join(map(str, layer["kernel"]))


@given(st.floats(0, allow_infinity=False), st.floats(0, allow_infinity=False))
def test_ends_are_bounds_for_readers_of_fifteen_digits_and_for_exact_ones(one, other):
    lower, upper = sorted((one, other))
    report = example_report.small()
    row = read(csv_table.text(replace(report, layers=(replace(report.layers[1], bound=Bound(lower, upper, "m")),))))[0]
    assert Decimal(row["lower"]) <= Decimal(lower)
    assert Decimal(row["upper"]) >= Decimal(upper)
    assert len(Decimal(row["upper"]).as_tuple().digits) <= 15 or Decimal(row["upper"]) >= 10**15


def test_infinity_is_a_number_that_programs_read():
    assert math.isinf(float(read(csv_table.text(example_report.unbounded()))[-1]["upper"]))


@pytest.mark.parametrize("attack", judged.ATTACKS)
def test_no_cell_is_a_formula_in_any_language(attack):
    report, judgement = judged.hostile(attack)
    text = csv_table.text(report, judgement)
    rows = read(text)
    assert len(rows) == len(report.layers)
    assert text.replace("\n", "").isprintable()
    for row in rows:
        for column, words in row.items():
            if column not in NAMES:
                assert words in ("", "inf", "-inf", *STATES) or words[0].isdigit() or float(words) < 0
                continue
            for part in words.replace(",", ";").replace("|", ";").split(";"):
                assert part.strip(' "')[:1] not in tuple("=+-@")


@pytest.mark.parametrize(
    ("words", "safe"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@x", "'@x"),
        (" =1", " '=1"),
        ("＝1", "'＝1"),
        ("layer1.0-x", "layer1.0-x"),
        ('a;"=1', "a;\"'=1"),
    ],
)
def test_an_apostrophe_stands_before_what_starts_a_formula(words, safe):
    assert csv_table.cell(words) == safe


def test_numbers_stay_numbers_even_below_zero():
    assert [row["share"] for row in read(csv_table.text(example_report.small()))][:2] == ["0.31", "-0.02"]


def test_a_judgement_adds_findings_and_a_baseline_the_change():
    rows = {row["layer"]: row for row in read(csv_table.text(judged.after(), judged.judgement()))}
    assert rows["stem.conv"]["findings"].split() == ["layer-increase-violated", "layer-norm-violated"]
    assert rows["stem.conv"]["waived"] == "layer-slack"
    assert rows["stem.conv"]["change"] == "raised"
    assert float(rows["stem.conv"]["change_percent"]) == pytest.approx(30)
    assert Decimal(rows["stem.conv"]["baseline_lower"]) <= Decimal(judged.before().layers[0].merged.lower)
    assert (rows["came"]["change"], rows["came"]["baseline_upper"], rows["came"]["change_log10"]) == ("added", "", "")
    assert "gone" not in rows


def test_a_judgement_of_a_report_that_was_read_again_finds_its_layers():
    report = judged.after()
    again = type(report).from_json(report.to_json())
    assert csv_table.text(again, judged.judgement(report)) == csv_table.text(report, judged.judgement(report))
