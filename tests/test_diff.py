"""Two reports compared: a norm has risen only where its new enclosure lies above the old one."""

from __future__ import annotations

import math
from dataclasses import replace

import example_report
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcheck.bound import Bound
from lipcheck.diff import STATES, compare
from lipcheck.report import LayerReport, Report

ends = st.floats(0, 1e6).map(lambda value: round(value, 3))
enclosures = st.tuples(ends, ends).map(sorted).map(lambda pair: Bound(pair[0], pair[1], "m"))


def linear(name: str, bound: Bound, **more: object) -> LayerReport:
    return LayerReport(name, "aten.linear.default", "linear", bound, channels=(8, 8), **more)  # type: ignore[arg-type]


def report(*layers: LayerReport, log10: float = 1.0) -> Report:
    whole = example_report.small()
    return replace(whole, layers=layers, network=replace(whole.network, log10_upper=log10))


@given(old=enclosures, new=enclosures, at=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_what_is_said_holds_for_every_norm_in_the_enclosures(old, new, at):
    (change,) = compare(report(linear("a", old)), report(linear("a", new))).layers
    before, after = (one.lower + (one.upper - one.lower) * part for one, part in zip((old, new), at, strict=True))
    if change.state == "raised":
        assert after > before
    if change.state == "lowered":
        assert after < before
    if before > 0 and math.isfinite(change.least_rise):
        assert after / before - 1 >= change.least_rise * (1 - 1e-9) or change.least_rise == 0
    if before > 0:
        assert after / before - 1 <= change.largest_rise * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize(
    ("old", "new", "state"),
    [
        ((1.0, 1.1), (1.0, 1.1), "unchanged"),
        ((1.0, 1.1), (1.05, 1.2), "within slack"),
        ((1.0, 1.1), (1.1, 1.2), "within slack"),
        ((1.0, 1.1), (1.2, 1.3), "raised"),
        ((1.2, 1.3), (1.0, 1.1), "lowered"),
        ((1.0, math.inf), (5.0, math.inf), "within slack"),
        ((0.0, 0.0), (1.0, 1.0), "raised"),
    ],
)
def test_states(old, new, state):
    (change,) = compare(report(linear("a", Bound(*old, "m"))), report(linear("a", Bound(*new, "m")))).layers
    assert change.state == state
    assert (change.least_rise > 0) == (state == "raised")


def test_an_estimate_proves_no_rise():
    old, new = Bound(1.0, 1.1, "power", "estimate"), Bound(2.0, 2.1, "m")
    (change,) = compare(report(linear("a", old)), report(linear("a", new))).layers
    assert (change.state, change.least_rise) == ("within slack", 0.0)


def test_layers_come_go_and_change_shape():
    one = Bound(1.0, 1.0, "m")
    old = report(
        linear("gone", one), linear("wide", one), linear("same", one), linear("twice", one), linear("twice", one)
    )
    new = report(
        linear("same", one), replace(linear("wide", one), channels=(8, 16)), linear("new", one), linear("twice", one)
    )
    found = {(change.layer, change.state) for change in compare(old, new).layers}
    assert found == {
        *(("gone", "removed"), ("wide", "reshaped"), ("same", "unchanged"), ("new", "added")),
        *(("twice", "unchanged"), ("twice", "removed")),
    }


def test_what_matters_comes_first():
    def at(*values: float) -> Report:
        return report(*(linear(f"l{n}", Bound(value, value, "m")) for n, value in enumerate(values)))

    found = compare(at(1, 1, 1, 1, 9), at(1, 2, 5, 0.5, 9))
    assert [change.layer for change in found.layers] == ["l2", "l1", "l3", "l0", "l4"]
    assert found.counts == {"raised": 2, "lowered": 1, "unchanged": 2}
    assert [STATES.index(change.state) for change in found.layers] == sorted(
        STATES.index(change.state) for change in found.layers
    )


def test_a_batch_norm_that_went_is_no_rise_by_itself():
    """What is compared is the same in both: the layer's own operator, where only one of the two is folded."""
    own = Bound(2.0, 2.0, "m")
    folded = linear("a", own, merged=Bound(0.5, 0.5, "m"), merged_with="bn")
    assert compare(report(folded), report(linear("a", own))).layers[0].state == "unchanged"


def test_changes_in_numbers():
    old, new = Bound(1.0, 1.0, "m"), Bound(1.1, 1.1, "m")
    found = compare(report(linear("a", old), log10=1.0), report(linear("a", new), log10=3.5))
    (change,) = found.layers
    assert change.percent == pytest.approx(10)
    assert change.log10 == pytest.approx(math.log10(1.1))
    assert found.log10 == 2.5
    assert math.isnan(compare(report(log10=math.inf), report()).log10)
