"""Constants through a graph, against the same sums written in plain numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcheck.compose import Composition, Factor, compose
from lipcheck.operators import IDENTITY, Concatenation, Normalisation, Operator, Pointwise, Sum, Unbounded

LOG = st.floats(-30, 30)
CLOSE = 1e-12


def scale(name: str, source: str, by: float) -> Factor:
    return Factor(name, (source,), IDENTITY, by)


def output(*factors: Factor) -> Composition:
    return compose("x", factors, factors[-1].name)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30))
def test_a_chain_is_at_least_its_product_and_hardly_more(factors: list[float]) -> None:
    chain = [scale(str(i), str(i - 1) if i else "x", by) for i, by in enumerate(factors)]
    truth = math.fsum(map(math.log, factors))
    found = output(*chain).output
    assert truth - 1e-13 * (1 + abs(truth)) <= found <= truth + 1e-12 * (1 + abs(truth)) * len(factors)


@given(LOG, LOG, st.floats(0.1, 9), st.floats(0.1, 9))
def test_a_sum_adds_and_a_concatenation_takes_the_root_of_the_squares(a: float, b: float, p: float, q: float) -> None:
    sides = [scale("a", "x", math.exp(a)), scale("b", "x", math.exp(b))]
    total = output(*sides, Factor("y", ("a", "b"), Sum((p, q)))).output
    truth = math.log(p * math.exp(a) + q * math.exp(b))
    assert truth - CLOSE <= total <= truth + 1e-11
    beside = output(*sides, Factor("y", ("a", "b"), Concatenation())).output
    truth = math.log(math.hypot(math.exp(a), math.exp(b)))
    assert truth - CLOSE <= beside <= truth + 1e-11


def test_a_residual_block_gives_one_plus_its_branch() -> None:
    found = output(scale("b", "x", 3.0), Factor("y", ("x", "b"), Sum((1.0, 1.0))))
    assert found.output == pytest.approx(math.log(4), abs=1e-14)
    # d log(1 + b) / d log b = b / (1 + b).
    assert found.elasticity["b"] == pytest.approx(0.75)


def test_a_slope_multiplies() -> None:
    assert output(Factor("y", ("x",), Pointwise("p", 2.0))).output >= math.log(2)
    assert output(Factor("y", ("x",), Normalisation("n", 5.0, ""))).output >= math.log(5)


def test_constants_beyond_float64_are_carried_in_logs() -> None:
    chain = [scale(str(i), str(i - 1) if i else "x", 1e300) for i in range(5)]
    assert output(*chain).output == pytest.approx(1500 * math.log(10))


def test_what_has_no_bound_makes_the_output_unbounded_unless_it_is_dropped_or_constant() -> None:
    unknown = Unbounded("no rule")
    assert output(Factor("u", ("x",), unknown)).output == math.inf
    assert output(Factor("u", ("x",), unknown), scale("y", "x", 2.0)).output == pytest.approx(math.log(2))
    assert output(Factor("u", ("x",), unknown), scale("y", "u", 0.0)).output == -math.inf
    assert output(scale("z", "x", 0.0), Factor("u", ("z", "z"), unknown)).output == -math.inf
    assert output(scale("z", "x", 0.0), Factor("u", ("z", "x"), unknown)).output == math.inf


def test_an_output_that_does_not_depend_on_the_input() -> None:
    assert compose("x", [scale("y", "x", 2.0)], "").output == -math.inf


@pytest.mark.parametrize("operator", [Sum((1.0, 1.0)), Concatenation()])
def test_a_constant_side_adds_nothing(operator: Operator) -> None:
    found = output(scale("z", "x", 0.0), scale("a", "x", 7.0), Factor("y", ("z", "a"), operator))
    assert found.output == pytest.approx(math.log(7), abs=1e-14)
