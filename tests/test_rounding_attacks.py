"""Attacks on the arithmetic of claims: ends of the range, and error terms against rationals where they bind."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import pytest
import reference
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcheck import rounding
from lipcheck.symbol import Grid

TINY, MOST = 5e-324, 1.7976931348623157e308
EXTREMES = (
    0.0,
    TINY,
    2 * TINY,
    2.2250738585072014e-308,
    1e-200,
    1 - 2.0**-53,
    1.0,
    1 + 2.0**-52,
    1e200,
    MOST,
    math.inf,
)
FINITE = tuple(v for v in EXTREMES if v < math.inf)


@pytest.mark.parametrize("value", EXTREMES)
def test_a_step_outward_from_any_number(value: float) -> None:
    assert rounding.up(value) > value or value == math.inf
    assert 0 <= rounding.down(value) < value or value == 0


@pytest.mark.parametrize("first", EXTREMES)
def test_sums_and_products_of_extremes(first: float) -> None:
    """Overflow on the way up is infinite, on the way down the largest number; nothing becomes nan."""
    for values in itertools.product((first,), EXTREMES, EXTREMES):
        above, below, total = rounding.multiply_up(*values), rounding.multiply_down(*values), rounding.add_up(*values)
        if math.inf in values:
            assert total == math.inf
            assert above == (0.0 if 0.0 in values else math.inf)
            assert not below > above
            continue
        product, full = math.prod(map(Fraction, values)), sum(map(Fraction, values))
        assert above == math.inf or Fraction(above) >= product
        assert Fraction(below) <= product
        assert total == math.inf or Fraction(total) >= full


@pytest.mark.parametrize("value", FINITE)
def test_roots_of_extremes(value: float) -> None:
    assert Fraction(rounding.sqrt_down(value)) ** 2 <= Fraction(value) <= Fraction(rounding.sqrt_up(value)) ** 2


@given(st.integers(1, 2**26))
def test_roots_beside_perfect_squares(root: int) -> None:
    for value in (float(root * root), math.nextafter(root * root, 0.0), math.nextafter(root * root, math.inf)):
        assert Fraction(rounding.sqrt_down(value)) ** 2 <= Fraction(value) <= Fraction(rounding.sqrt_up(value)) ** 2


@pytest.mark.parametrize("exponent", [-3000, -1074, -1073, -1023, -1, 0, 1, 1023, 1024, 2097, 3000])
@pytest.mark.parametrize("value", FINITE)
def test_scaling_extremes(value: float, exponent: int) -> None:
    scaled = Fraction(value) * Fraction(2) ** exponent
    above, below = rounding.scale_up(value, exponent), rounding.scale_down(value, exponent)
    assert above == math.inf or Fraction(above) >= scaled
    assert 0 <= Fraction(below) <= scaled
    assert rounding.scale_up(math.inf, exponent) == math.inf


@pytest.mark.parametrize("value", EXTREMES)
def test_logarithms_of_extremes(value: float) -> None:
    with mpmath.workdps(reference.DIGITS):
        logarithm = rounding.log_up(value)
        assert mpmath.mpf(logarithm) >= (mpmath.log(value) if value else mpmath.mpf("-inf"))


LOGS = (-math.inf, -1e307, -745.2, -36.8, -TINY, 0.0, TINY, 1.0, 709.8, 1e16, 1e308)


@pytest.mark.parametrize("first", LOGS)
def test_products_and_sums_in_logs_of_extremes(first: float) -> None:
    for logs in itertools.product((first,), LOGS, LOGS):
        product, total = rounding.log_multiply_up(*logs), rounding.log_sum_up(*logs)
        assert not math.isnan(product)
        assert not math.isnan(total)
        if -math.inf in logs:
            assert product == -math.inf
        else:
            assert product == math.inf or Fraction(product) >= sum(map(Fraction, logs))
        top = max(logs)
        if top == -math.inf:
            assert total == -math.inf
            continue
        with mpmath.workdps(700):
            # exp of a difference below -800 is smaller than any digit kept here.
            parts = [mpmath.exp(mpmath.mpf(v) - top) for v in logs if v - top > -800]
            assert total == math.inf or mpmath.mpf(total) >= top + mpmath.log(mpmath.fsum(parts))


def test_a_product_too_small_for_a_log_is_not_called_zero() -> None:
    assert rounding.log_multiply_up(-1e308, -1e308) > -math.inf


def test_a_product_that_underflows_before_an_infinite_factor_is_a_number() -> None:
    assert not math.isnan(rounding.multiply_down(1e-200, 1e-200, math.inf))


def test_infinite_logs_stay() -> None:
    assert rounding.log_sum_up(math.inf, 0.0) == math.inf
    assert rounding.log_sum_up(math.inf, -math.inf) == math.inf
    assert rounding.log_sum_up() == -math.inf
    assert rounding.log_multiply_up() == 0.0


@pytest.mark.parametrize("n", [1, 2, 3, 2**20, 2**40, 2**50, 2**52 - 1])
def test_gamma_up_to_where_it_ends(n: int) -> None:
    share = Fraction(n, 2**53)
    assert Fraction(rounding.gamma(n)) >= share / (1 - share)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 4))
def test_ripples_of_several_axes_are_at_most_the_product(degree: int, more: int, axes: int) -> None:
    points = degree + more
    with mpmath.workdps(reference.DIGITS):
        share = mpmath.cos(mpmath.pi * degree / (2 * points)) ** axes
        assert mpmath.mpf(rounding.grid_ripple((degree,) * axes, (points,) * axes)) <= share


@pytest.mark.parametrize("degree", [1, 2**20, 2**40, 2**52 - 1])
def test_a_ripple_with_one_point_more_than_the_degree_is_never_above(degree: int) -> None:
    """cos of next to pi / 2: all of it is rounding for large degrees."""
    with mpmath.workdps(reference.DIGITS):
        share = mpmath.cospi(mpmath.mpf(degree) / (2 * (degree + 1)))
        assert 0 <= mpmath.mpf(rounding.grid_ripple((degree,), (degree + 1,))) <= share


# Error terms


@settings(max_examples=draws(60))
@given(st.integers(1, 200), st.integers(0, 2**31), st.sampled_from((1.0, 1e8, 1e150)))
def test_inner_products_are_within_their_forward_error(terms: int, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, x = torch.randn(2, terms, generator=generator, dtype=torch.float64)
    a = a * spread ** torch.rand(terms, generator=generator, dtype=torch.float64)
    summed = sum(Fraction(p) * Fraction(q) for p, q in zip(a.tolist(), x.tolist(), strict=True))
    size = sum(abs(Fraction(p) * Fraction(q)) for p, q in zip(a.tolist(), x.tolist(), strict=True))
    for computed in (
        float(a @ x),
        float((a * x).sum()),
        float(a[None] @ x[:, None]),
        float((a * x).flip(0).cumsum(0)[-1]),
    ):
        assert abs(Fraction(computed) - summed) <= Fraction(rounding.forward_error(terms)) * size


def smallest_eigenvalue_is_above(matrix: torch.Tensor, bound: Fraction) -> bool:
    """Whether matrix - bound * I is positive definite, by elimination in rationals."""
    n = len(matrix)
    rows = [
        [Fraction(v) - (bound if i == j else 0) for j, v in enumerate(row)] for i, row in enumerate(matrix.tolist())
    ]
    for k in range(n):
        if rows[k][k] <= 0:
            return False
        for i in range(k + 1, n):
            factor = rows[i][k] / rows[k][k]
            for j in range(k + 1, n):
                rows[i][j] -= factor * rows[k][j]
    return True


@settings(max_examples=draws(80))
@given(
    st.integers(1, 9), st.integers(0, 2**31), st.sampled_from((0.0, 1e-17, 1e-16, 3e-16, 1e-15, 1e-14)), st.booleans()
)
def test_a_factorisation_that_completes_leaves_no_eigenvalue_below_the_shift(
    order: int, seed: int, below: float, graded: bool
) -> None:
    """Matrices of next to no rank, moved down by about the rounding: those that are factored all the same."""
    generator = torch.Generator().manual_seed(seed)
    tall = torch.randn(order, max(1, order // 2), generator=generator, dtype=torch.float64)
    if graded:
        tall = tall * 10.0 ** -torch.linspace(0, 8, order, dtype=torch.float64)[:, None]
    matrix = tall @ tall.T
    matrix = torch.tril(matrix) + torch.tril(matrix, -1).T
    trace = float(matrix.diagonal().sum())
    matrix.diagonal().sub_(below * trace)
    if int(torch.linalg.cholesky_ex(matrix)[1]) != 0:
        return
    shift = Fraction(rounding.cholesky_shift(order, complex_valued=False))
    exact_trace = sum(map(Fraction, matrix.diagonal().tolist()))
    assert smallest_eigenvalue_is_above(matrix, -shift * exact_trace * (1 + Fraction(1, 10**9)))


@pytest.mark.parametrize("points", [1, 2, 3, 7, 97, 10**5 + 3, 2**20])
def test_phases_of_three_axes_are_within_their_error(points: int) -> None:
    generator = torch.Generator().manual_seed(points)
    grid = Grid((points, points + 1, 2 * points + 1), (1, 0, 1))
    index = torch.randint(0, 2 * points, (6, 3), generator=generator)
    lags = torch.randint(-500, 500, (8, 3), generator=generator)
    cosine, sine = grid.phases(index, lags)
    with mpmath.workdps(reference.DIGITS):
        for f, place in enumerate(index.tolist()):
            for q, lag in enumerate(lags.tolist()):
                turns = (
                    sum(
                        (Fraction(t * step, m) for t, step, m in zip(place, lag, grid.points, strict=True)), Fraction(0)
                    )
                    % 2
                )
                angle = mpmath.mpf(turns.numerator) / turns.denominator
                assert abs(mpmath.mpf(float(cosine[f, q])) - mpmath.cospi(angle)) <= rounding.PHASE_ERROR
                assert abs(mpmath.mpf(float(sine[f, q])) - mpmath.sinpi(angle)) <= rounding.PHASE_ERROR
