"""Every rounded quantity against exact rationals or fifty digits: on the right side, and not far from it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

import mpmath
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from lipcheck import rounding

NORMAL = st.floats(min_value=1e-150, max_value=1e150)
ANY = st.floats(min_value=0.0, allow_infinity=False, allow_nan=False)
LOGS = st.floats(min_value=-1e6, max_value=1e6)


def test_unit_is_that_of_float64() -> None:
    assert 1 + rounding.UNIT == 1 < 1 + 2 * rounding.UNIT


@given(st.integers(1, 2**40))
def test_gamma_is_at_least_the_rational(n: int) -> None:
    exact = n * Fraction(1, 2**53) / (1 - n * Fraction(1, 2**53))
    assert exact <= Fraction(rounding.gamma(n)) <= exact * (1 + Fraction(1, 10**14))


def test_gamma_refuses_more_operations_than_have_a_bound() -> None:
    with pytest.raises(OverflowError, match="4503599627370496 operations"):
        rounding.gamma(2**52)


@given(ANY, st.integers(1, 8))
def test_up_and_down_step_past_the_value(value: float, steps: int) -> None:
    assert rounding.up(value, steps) > value
    assert rounding.down(value, steps) < value or value == 0 == rounding.down(value, steps)
    assert rounding.up(math.inf) == math.inf


@given(st.lists(ANY, min_size=1, max_size=6))
def test_a_sum_is_never_below_the_exact_one(values: list[float]) -> None:
    total = rounding.add_up(*values)
    assert total == math.inf or Fraction(total) >= sum(map(Fraction, values))


@given(st.lists(ANY, min_size=1, max_size=5))
def test_products_lie_on_either_side_of_the_exact_one(values: list[float]) -> None:
    exact = math.prod(map(Fraction, values))
    above, below = rounding.multiply_up(*values), rounding.multiply_down(*values)
    assert above == math.inf or Fraction(above) >= exact
    assert Fraction(below) <= exact


@given(st.lists(st.floats(1e-20, 1e20), min_size=1, max_size=5))
def test_products_and_sums_are_tight(values: list[float]) -> None:
    assert rounding.multiply_up(*values) <= rounding.multiply_down(*values) * (1 + 4e-15)
    assert rounding.add_up(*values) <= math.fsum(values) * (1 + 4e-15)


def test_products_with_one_and_zero_are_exact() -> None:
    assert rounding.multiply_up(1.0, 3.0, 1.0) == 3.0 == rounding.multiply_down(1.0, 3.0)
    assert rounding.multiply_up(0.0, math.inf) == 0.0 == rounding.multiply_down(0.0, 5.0)


@given(ANY)
def test_roots_lie_on_either_side(value: float) -> None:
    assert Fraction(rounding.sqrt_down(value)) ** 2 <= Fraction(value) <= Fraction(rounding.sqrt_up(value)) ** 2


@pytest.mark.parametrize("root", [0, 1, 2, 3, 7, 1000])
def test_roots_of_squares_are_exact(root: int) -> None:
    assert rounding.sqrt_up(root**2) == root == rounding.sqrt_down(root**2)


def test_the_root_of_infinity_is_infinite() -> None:
    assert rounding.sqrt_up(math.inf) == math.inf


@given(ANY, st.integers(-2200, 2200))
def test_scaling_by_a_power_of_two_is_exact_or_outward(value: float, exponent: int) -> None:
    exact = Fraction(value) * Fraction(2) ** exponent
    above, below = rounding.scale_up(value, exponent), rounding.scale_down(value, exponent)
    assert above == math.inf or Fraction(above) >= exact
    assert Fraction(below) <= exact
    if 2.0**-1000 < above < math.inf:
        assert above == below


@given(ANY)
def test_a_logarithm_is_never_below(value: float) -> None:
    with mpmath.workdps(reference.DIGITS):
        exact = mpmath.log(value) if value else mpmath.mpf("-inf")
        assert mpmath.mpf(rounding.log_up(value)) >= exact
        assert rounding.log_up(value) <= exact + 2e-15 * max(1, abs(exact)) or not value


def test_logarithms_of_zero_one_and_infinity() -> None:
    assert [rounding.log_up(v) for v in (0.0, 1.0, math.inf)] == [-math.inf, 0.0, math.inf]


@given(st.lists(LOGS, min_size=1, max_size=200))
def test_a_product_of_logs_is_never_below(logs: list[float]) -> None:
    total = rounding.log_multiply_up(*logs)
    exact = sum(map(Fraction, logs))
    assert Fraction(total) >= exact
    assert float(Fraction(total) - exact) <= 4e-15 * max(1.0, sum(map(abs, logs))) * len(logs)


def test_a_zero_factor_wins_and_an_infinite_one_stays() -> None:
    assert rounding.log_multiply_up(-math.inf, math.inf) == -math.inf
    assert rounding.log_multiply_up(1.0, math.inf) == math.inf
    assert rounding.log_multiply_up(0.0, 2.5) == 2.5


@given(
    st.floats(-1e5, 1e5),
    st.lists(st.one_of(st.floats(0, 50), st.floats(0, 900), st.sampled_from((0.0, 1e-9, 36.7, 745.2))), max_size=30),
)
def test_a_sum_of_logs_is_never_below(top: float, drops: list[float]) -> None:
    """Operands near each other, far apart, and so far apart that exp underflows."""
    logs = [top, *(top - drop for drop in drops)]
    total = rounding.log_sum_up(*logs)
    with mpmath.workdps(400):
        exact = mpmath.log(mpmath.fsum(mpmath.exp(value) for value in logs))
        # log(exp(x)) itself is off in the four-hundredth digit.
        assert mpmath.mpf(total) >= exact - mpmath.mpf(10) ** -380
        assert total - exact <= 1e-14 * max(1, abs(top)) + 1e-15 * sum(min(drop, 745.0) for drop in drops)


def test_a_sum_of_logs_with_zeros_and_infinities() -> None:
    assert rounding.log_sum_up() == -math.inf
    assert rounding.log_sum_up(-math.inf, -math.inf) == -math.inf
    assert rounding.log_sum_up(-math.inf, 0.7) == 0.7
    assert rounding.log_sum_up(3.0, math.inf) == math.inf


@pytest.mark.parametrize("points", [2, 3, 10, 64, 1000, 4096])
@pytest.mark.parametrize("share_of_points", [0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
def test_the_grid_ripple_is_never_above_the_cosine(points: int, share_of_points: float) -> None:
    degree = min(points - 1, int(share_of_points * points))
    with mpmath.workdps(reference.DIGITS):
        exact = mpmath.cos(mpmath.pi * degree / (2 * points))
        assert exact * (1 - mpmath.mpf("1e-11")) <= mpmath.mpf(rounding.grid_ripple((degree,), (points,))) <= exact


def test_grid_ripples_multiply_over_the_axes() -> None:
    one, other = rounding.grid_ripple((2,), (9,)), rounding.grid_ripple((3,), (16,))
    assert rounding.grid_ripple((2, 0, 3), (9, 1, 16)) == pytest.approx(one * other, rel=1e-14)


def test_a_grid_without_enough_points_is_refused() -> None:
    with pytest.raises(ValueError, match="4 grid points do not resolve a symbol of degree 4"):
        rounding.grid_ripple((4,), (4,))


@pytest.mark.parametrize(
    "term",
    [
        lambda n: rounding.gram_error(n, 9),
        lambda n: rounding.gram_error(9, n),
        lambda n: rounding.cholesky_shift(n, complex_valued=False),
        lambda n: rounding.cholesky_shift(n, complex_valued=True),
        rounding.forward_error,
    ],
)
def test_error_terms_grow_with_the_work_and_stay_small(term: Callable[[int], float]) -> None:
    values = [term(n) for n in (1, 10, 100, 1000, 10000)]
    assert values == sorted(values)
    assert values[0] > 0
    assert values[-1] < 1e-10


# Cells of a torus

AXIS = st.tuples(st.integers(0, 30), st.integers(1, 2**20))


@given(st.lists(AXIS, min_size=1, max_size=3))
def test_the_share_of_a_cell_is_just_below_the_cosine(axes: list[tuple[int, int]]) -> None:
    degrees, points = zip(*axes, strict=True)
    width = sum((Fraction(d, n) for d, n in axes), Fraction(0))
    if width >= 1:
        with pytest.raises(ValueError, match="do not resolve"):
            rounding.cell_share(degrees, points)
        return
    with mpmath.workdps(40):
        exact = mpmath.cos(mpmath.pi * width.numerator / (2 * width.denominator))
        assert exact - mpmath.mpf("5e-15") <= mpmath.mpf(rounding.cell_share(degrees, points)) <= exact


def test_the_cell_of_a_constant_symbol_loses_nothing() -> None:
    assert rounding.cell_share((0, 0), (1, 1)) == 1.0


@given(st.integers(1, 6), st.integers(1, 6), st.integers(13, 200), st.integers(13, 200))
def test_the_share_of_a_cell_is_attained_at_its_corner(d: int, e: int, m: int, n: int) -> None:
    """|1 + exp(i (d v + e w))| is 2 at the origin, the corner of a cell, and 2 cos(S / 2) at that cell's centre."""
    with mpmath.workdps(40):
        centre = abs(1 + mpmath.expjpi(mpmath.mpf(d) / m + mpmath.mpf(e) / n))
        assert 2 * mpmath.mpf(rounding.cell_share((d, e), (m, n))) <= centre
        assert centre <= 2 * rounding.cell_share((d, e), (m, n)) * (1 + mpmath.mpf("1e-12"))


@pytest.mark.parametrize("panel", [1, 2, 3, 7])
@pytest.mark.parametrize("mode", ["up", "down", "outward", "random"])
@pytest.mark.parametrize("careless", [1, 100])
def test_a_factorisation_by_panels_stays_within_its_error(panel: int, mode: str, careless: int) -> None:
    """Every operation is carried out exactly and then moved by a whole unit, in the worst of directions.

    The computed residuals are as small as such moves can make them: zero where they can be of either sign.
    """
    order, unit = 7, Fraction(1, 2**53)
    noise = random.Random(panel)
    signs: dict[str, Callable[[Fraction], int]] = {
        "up": lambda value: 1,
        "down": lambda value: -1,
        "outward": lambda value: 1 if value > 0 else -1,
        "random": lambda value: noise.choice((-1, 1)),
    }

    def less_products(start: Fraction, one: list[Fraction], other: list[Fraction], mode: str) -> Fraction:
        """start - sum of the products, which lean the other way than the differences."""
        sign = signs[mode]
        for a, b in zip(one, other, strict=True):
            product = a * b
            product -= sign(product) * unit * abs(product)
            start -= product
            start += sign(start) * unit * abs(start)
        return start

    root = [[Fraction(noise.uniform(0.1, 1)) for _ in range(order)] for _ in range(order)]
    matrix = [[sum(a * b for a, b in zip(x, y, strict=True)) + (i == j) for j, y in enumerate(root)]
              for i, x in enumerate(root)]  # fmt: skip
    schur = [list(row) for row in matrix]
    factor = [[Fraction(0)] * order for _ in range(order)]
    squares = Fraction(0)
    for start in range(0, order, panel):
        end = min(order, start + panel)
        for j in range(start, end):
            for i in range(j, order):
                # Any numbers will do for a factor.
                value = schur[i][j] - sum(factor[i][k] * factor[j][k] for k in range(start, j))
                value = Fraction(math.sqrt(value)) if i == j else Fraction(float(value / factor[j][j]))
                factor[i][j] = value * (1 + noise.randint(-careless, careless) * unit)
        for j in range(start, end):
            for i in range(j, order):
                given = schur[i][j], factor[i][start : j + 1], factor[j][start : j + 1]
                highest, lowest = less_products(*given, "up"), less_products(*given, "down")
                nearest = max(lowest, -highest, Fraction(0))
                squares += nearest**2 * (2 if i > j else 1)
        for i in range(end, order):
            for j in range(end, i + 1):
                schur[i][j] = less_products(schur[i][j], factor[i][start:end], factor[j][start:end], mode)
    product = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in factor] for x in factor]
    missed = mpmath.matrix([[mpmath.mpf(float(matrix[i][j] - product[i][j])) for j in range(order)]
                            for i in range(order)])  # fmt: skip
    trace = sum(float(value) ** 2 for row in factor for value in row) * (1 + 1e-12)
    largest = max(float(matrix[i][i]) for i in range(order))
    residual = math.sqrt(float(squares)) * (1 + 1e-12)
    bound = rounding.factorisation_error(residual, trace, largest, order=order, band=order, panel=panel)
    norm = max(abs(value) for value in mpmath.eigsy(missed, eigvals_only=True))
    assert norm <= bound
    assert residual < norm or careless > 1, "no attack"


def test_a_narrow_band_has_a_small_error_however_long_it_is() -> None:
    def error(order: int) -> float:
        return rounding.factorisation_error(0.0, float(order), 1.0, order=order, band=10, panel=2)

    assert error(10**9) == pytest.approx(error(10**4), rel=1e-6)
    assert error(10**9) < 1e-12
    assert rounding.factorisation_error(0.0, 1.0, 1.0, order=2**45, band=2**45, panel=2) == math.inf
