"""The constants of the activations, derived: interval arithmetic on a bounded range, an argument on the tails."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
from mpmath import iv

from lipcheck.rules import pointwise
from lipcheck.rules.pointwise import SLOPES, aten, written_out

iv.dps = 30
# Beyond this every tail bound below decreases in |x|.
RANGE = 6
TIGHT = 1e-6
Interval = Any


def monotone(function: Callable[[Any], Any]) -> Callable[[Interval], Interval]:
    """An increasing function of intervals, from its values at points."""

    def extended(x: Interval) -> Interval:
        return iv.mpf([function(iv.mpf(x.a)).a, function(iv.mpf(x.b)).b])

    return extended


@functools.cache
def _erf(x: Any) -> Interval:
    """The alternating Taylor series at a point; from the term k = x^2 on, what is left out is below the last term."""
    before, iv.dps = iv.dps, 60
    try:
        point = iv.mpf(x)
        total, power, k = point, point, 0
        while k <= 100:
            k += 1
            power = -power * point * point / k
            total += power / (2 * k + 1)
        assert k > (point * point).b
        return 2 / iv.sqrt(iv.pi) * (total + power * iv.mpf([-1, 1]))
    finally:
        iv.dps = before


def erf(x: Interval) -> Interval:
    return iv.mpf([_erf(mpmath.mpf(x.a)).a, _erf(mpmath.mpf(x.b)).b])


sigmoid = monotone(lambda x: 1 / (1 + iv.exp(-x)))
tanh = monotone(lambda x: 1 - 2 / (iv.exp(2 * x) + 1))
softplus = monotone(lambda x: iv.log(1 + iv.exp(x)))


@dataclass(frozen=True)
class Jet:
    """A function's value and first two derivatives on an interval."""

    f: Interval
    d: Interval
    dd: Interval

    def __add__(self, other: Jet) -> Jet:
        return Jet(self.f + other.f, self.d + other.d, self.dd + other.dd)

    def __mul__(self, other: Jet) -> Jet:
        return Jet(
            self.f * other.f,
            self.d * other.f + self.f * other.d,
            self.dd * other.f + 2 * self.d * other.d + self.f * other.dd,
        )

    def into(self, f: Interval, d: Interval, dd: Interval) -> Jet:
        """The composition with an outer function that has this value and these derivatives at self.f."""
        return Jet(f, d * self.d, dd * self.d**2 + d * self.dd)


def number(value: Any) -> Jet:
    return Jet(iv.mpf(value), iv.mpf(0), iv.mpf(0))


def of_sigmoid(x: Jet) -> Jet:
    s = sigmoid(x.f)
    return x.into(s, s * (1 - s), s * (1 - s) * (1 - 2 * s))


def of_tanh(x: Jet) -> Jet:
    t = tanh(x.f)
    return x.into(t, 1 - t**2, -2 * t * (1 - t**2))


def of_softplus(x: Jet) -> Jet:
    s = sigmoid(x.f)
    return x.into(softplus(x.f), s, s * (1 - s))


def of_erf(x: Jet) -> Jet:
    d = 2 / iv.sqrt(iv.pi) * iv.exp(-(x.f**2))
    return x.into(erf(x.f), d, -2 * x.f * d)


def gelu(x: Jet) -> Jet:
    return number(iv.mpf(1) / 2) * x * (number(1) + of_erf(number(1 / iv.sqrt(iv.mpf(2))) * x))


def gelu_tanh(x: Jet) -> Jet:
    # The coefficient is the double that torch and hand-written models use.
    cubic = x + number(0.044715) * x * x * x
    return number(iv.mpf(1) / 2) * x * (number(1) + of_tanh(number(iv.sqrt(2 / iv.pi)) * cubic))


# Name, function, constant, and a bound of |f'| for |x| >= RANGE, given at x = RANGE where it is largest.
TAIL = iv.mpf(RANGE)
CURVES = [
    # 1 + x s(1 - s) <= 1 + x exp(-x) on the right, s + |x| s <= (1 + |x|) exp(-|x|) on the left.
    ("silu", lambda x: x * of_sigmoid(x), pointwise.SILU, 1 + TAIL * iv.exp(-TAIL)),
    # Phi differs from its limit by at most phi / |x| (Mills): |f' - limit| <= phi (|x| + 1 / |x|).
    ("gelu", gelu, pointwise.GELU, 1 + (TAIL + 1 / TAIL) * iv.exp(-(TAIL**2) / 2)),
    # |1 - tanh u| <= 2 exp(-2u), sech^2 u <= 4 exp(-2u), u >= 0.79 x, u' <= 0.8 (1 + 0.14 x^2).
    ("gelu tanh", gelu_tanh, pointwise.GELU_TANH,
     1 + (1 + 2 * TAIL * iv.mpf("0.8") * (1 + iv.mpf("0.14") * TAIL**2)) * iv.exp(-2 * iv.mpf("0.79") * TAIL)),
    # sech^2(softplus) s <= 4 exp(-2x) on the right; tanh(softplus) + |x| s <= (1 + |x|) exp(-|x|) on the left.
    ("mish", lambda x: x * of_tanh(of_softplus(x)), pointwise.MISH, 1 + 4 * TAIL * iv.exp(-2 * TAIL)),
    ("tanh", of_tanh, 1.0, 4 * iv.exp(-2 * TAIL)),
    ("sigmoid", of_sigmoid, 0.25, iv.exp(-TAIL)),
]  # fmt: skip


def jet_at(function: Callable[[Jet], Jet], x: Interval) -> Jet:
    return function(Jet(x, iv.mpf(1), iv.mpf(0)))


def holds_on(function: Callable[[Jet], Jet], constant: Any, low: float, high: float, depth: int = 0) -> bool:
    """Proves |f'| <= constant on [low, high], by halving: f'(x) is in f'(m) + f''(X)(X - m) and in f'(X)."""
    cell, middle = iv.mpf([low, high]), iv.mpf((low + high) / 2)
    whole, centre = jet_at(function, cell), jet_at(function, middle)
    slope = centre.d + whole.dd * (cell - middle)
    if min(mpmath.mpf(abs(slope).b), mpmath.mpf(abs(whole.d).b)) <= constant:
        return True
    if depth > 40:
        return False
    half = (low + high) / 2
    return holds_on(function, constant, low, half, depth + 1) and holds_on(function, constant, half, high, depth + 1)


def steepest(function: Callable[[Jet], Jet]) -> Any:
    """A lower bound of sup |f'|: attained at a point, by ternary search around the best of a grid."""

    def slope(x: float) -> Any:
        return mpmath.mpf(abs(jet_at(function, iv.mpf(x)).d).a)

    low = max((i / 50 for i in range(-200, 201)), key=slope) - 0.02
    high = low + 0.04
    for _ in range(40):
        first, second = low + (high - low) / 3, high - (high - low) / 3
        low, high = (first, high) if slope(first) < slope(second) else (low, second)
    return max(slope((low + high) / 2), slope(0.0))


@pytest.mark.parametrize(("name", "function", "constant", "tail"), CURVES, ids=[curve[0] for curve in CURVES])
def test_a_constant_is_the_supremum_of_the_slope(name: str, function: Any, constant: float, tail: Any) -> None:
    truth = steepest(function)
    assert truth <= constant <= truth * (1 + TIGHT)
    # A tail that tends to slope one from above is under any constant that exceeds one.
    assert tail.b <= constant
    # The supremum itself cannot be proved by cells that touch the maximum: allow it one part in 1e12.
    assert holds_on(function, mpmath.mpf(constant) * (1 + mpmath.mpf(10) ** -12), -RANGE, RANGE)


def test_the_proof_refuses_a_constant_below_the_supremum() -> None:
    assert not holds_on(CURVES[0][1], pointwise.SILU * (1 - 1e-6), 2.0, 3.0)


def test_the_slopes_of_piecewise_activations() -> None:
    # x (x + 3) / 6 on [-3, 3]: x / 3 + 1/2, largest at 3; linear outside.
    assert pointwise.HARDSWISH == 3 / 3 + 1 / 2
    # scale * alpha * exp(x) for x < 0, scale above; torch's constants to all their digits.
    selu = mpmath.mpf("1.0507009873554804934193349852946") * mpmath.mpf("1.6732632423543772848170429916717")
    assert selu <= pointwise.SELU <= selu * (1 + TIGHT)
    # 2 exp(-x^2) / sqrt(pi), largest at 0.
    assert 2 / mpmath.sqrt(mpmath.pi) <= pointwise.ERF <= 2 / mpmath.sqrt(mpmath.pi) * (1 + TIGHT)
    assert mpmath.mpf(1) / 6 <= SLOPES[aten.hardsigmoid.default][1] <= mpmath.mpf(1) / 6 * (1 + TIGHT)
    derived = {"silu", "mish", "hardswish", "hardsigmoid", "sigmoid", "tanh", "selu", "erf"}
    assert {name for name, slope in SLOPES.values() if slope != 1.0 and name not in derived} == set()


def test_forms_that_only_resemble_an_activation_are_not_taken_for_it() -> None:
    assert written_out(("mul", "x", ("sigmoid", "x"))) is not None
    assert written_out(("mul", ("sigmoid", "x"), ("mul", "x", "x"))) is None
    assert written_out(("mul", "x", ("sigmoid", ("mul", "x", "x")))) is None
    assert written_out(("mul", "x", ("tanh", "x"))) is None
    assert written_out(("mul", "x", ("hardtanh", ("add", "x", 3.0)))) is None


@pytest.mark.parametrize("off", [0.0, 4e-7, 9e-7, 2e-6, -4e-7])
def test_a_form_whose_constants_are_a_little_off_is_bounded_as_it_is_written(off: float) -> None:
    erf_gate = ("add", ("erf", ("mul", "x", 0.7071067811865476)), 1.0)
    half = 0.5 * (1 + off)
    found = written_out(("mul", ("mul", "x", half), erf_gate))
    # The slope's own derivative is phi(x) (2 - x^2), so the supremum is Phi + x phi at the root of two.
    root = mpmath.sqrt(2)
    supremum = mpmath.ncdf(root) + root * mpmath.npdf(root)
    assert found is None or supremum * (1 + off) <= found.slope <= supremum * (1 + 2e-5)
