"""The constants of the activations, derived: interval arithmetic on a bounded range, an argument on the tails."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from draws import draws
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from mpmath import iv
from networks import Function
from torch.nn import functional

from lipcheck.capture import capture
from lipcheck.maps import expressions, intervals
from lipcheck.maps import pointwise as curves
from lipcheck.maps.intervals import Interval as Cells
from lipcheck.maps.portraits import portrait
from lipcheck.operators import IDENTITY, Concatenation, Curve, Indexing, Operator, Pointwise, Sum, Unbounded
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES, operator_of, pointwise
from lipcheck.rules.pointwise import SLOPES, aten

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
    derived = {"silu", "mish", "hardswish", "hardsigmoid", "sigmoid", "tanh", "selu", "erf", "erfc"}
    finite = {name for name, slope, _ in SLOPES.values() if slope != 1.0 and math.isfinite(slope)}
    assert finite - derived == set()


@dataclass(frozen=True)
class Derived:
    """A curve, its function in interval arithmetic, and a range beyond which f' is within `_BESIDE` of its limit."""

    curve: Curve
    function: Callable[[Jet], Jet]
    low: int
    high: int
    tail: Callable[[Any], Any]  # a bound of |f' - limit| at |x|, falling beyond the range


# What the slopes are widened by in any case.
_BESIDE = 2.0**-40
_DERIVED = {
    "silu": Derived(curves.SILU, lambda x: x * of_sigmoid(x), -34, 34, lambda t: (1 + t) * iv.exp(-t)),
    "gelu": Derived(curves.GELU, gelu, -9, 9, lambda t: (t + 1 / t) * iv.exp(-(t**2) / 2)),
    # u >= 0.79 (x + x^3 / 25), as for the constant.
    "gelu tanh": Derived(
        curves.GELU_TANH, gelu_tanh, -9, 9,
        lambda t: (1 + 2 * t * iv.mpf("0.8") * (1 + iv.mpf("0.14") * t**2)) * iv.exp(-iv.mpf("1.58") * (t + t**3 / 25)),
    ),
    "mish": Derived(curves.MISH, lambda x: x * of_tanh(of_softplus(x)), -34, 34, lambda t: (1 + 4 * t) * iv.exp(-t)),
}  # fmt: skip


def sign_on(function: Callable[[Jet], Jet], order: int, low: Any, high: Any, depth: int = 0) -> int:
    """The sign of f' (order 1) or f'' (order 2) on an interval, 0 where it is not proved by halving."""
    found = jet_at(function, iv.mpf([low, high]))
    value = found.d if order == 1 else found.dd
    if value.a > 0 or value.b < 0:
        return 1 if value.a > 0 else -1
    if depth > 90:
        return 0
    middle = (mpmath.mpf(low) + mpmath.mpf(high)) / 2
    first = sign_on(function, order, low, middle, depth + 1)
    return first if first and first == sign_on(function, order, middle, high, depth + 1) else 0


@pytest.mark.parametrize("name", _DERIVED)
@pytest.mark.parametrize("order", [1, 2])
def test_between_its_places_a_curve_and_its_derivative_are_monotone(name: str, order: int) -> None:
    """Beyond the range f' is flat to within what slopes are widened by, and f falls on the left, as it is there:

    1 + x s(-x), Phi / phi + x, 1 + 2 x u' s(-2 u) and 4 (x + 1) + 4 exp(2 x) + exp(3 x) + exp(x) (4 x + 6), the signs
    of the four derivatives, are negative for x < -5. On the right f rises: all terms of f' are positive.
    """
    given = _DERIVED[name]
    before, iv.dps = iv.dps, 60
    try:
        places = given.curve.turns if order == 1 else given.curve.bends
        ends = [-5 if order == 1 else given.low, *(end for place in places for end in place), given.high]
        signs = [sign_on(given.function, order, *ends[i : i + 2]) for i in range(0, len(ends), 2)]
        assert 0 not in signs
        assert all(first == -second for first, second in itertools.pairwise(signs))
        for end in (given.low, given.high):
            assert given.tail(iv.mpf(abs(end))).b < _BESIDE
    finally:
        iv.dps = before


@pytest.mark.parametrize("name", _DERIVED)
def test_a_curve_is_the_function_that_its_places_are_derived_for(name: str) -> None:
    given = _DERIVED[name]
    for x in (-4.0, -3.1, -1.3, -1e-9, 0.0, 0.4, 1.45, 5.0):
        exact = jet_at(given.function, iv.mpf(x))
        point = torch.tensor(x, dtype=torch.float64)
        for found, truth in ((given.curve.value(point), exact.f), (given.curve.derivative(point), exact.d)):
            assert abs(float(found) - mpmath.mpf(truth.mid)) <= 1e-13 * abs(mpmath.mpf(truth.mid)) + _BESIDE / 16
    least = float(given.curve.value(torch.tensor(given.curve.turns[0][0], dtype=torch.float64)))
    assert given.curve.bounds[0] <= least <= given.curve.bounds[0] * (1 - 1e-9)
    ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    assert given.curve.value(ends).tolist() == [0.0, math.inf]
    assert given.curve.derivative(ends).tolist() == [0.0, 1.0]


def operator(forward: Any, *shape: int) -> Operator:
    graph, _ = capture(Function(lambda self, x: forward(x)).eval(), torch.rand(1, *shape) + 0.1, known=DEFAULT_RULES)
    return operator_of(graph.nodes[-1], DEFAULT_RULES)


_WEIGHT = torch.tensor([-1.5, 0.3, 0.0, 2.0])
# Each function with an interval that holds where it is defined, or most of what is worth looking at.
FUNCTIONS: dict[str, tuple[Any, float, float]] = {
    "relu": (torch.relu, -3, 3),
    "relu6": (torch.ops.aten.relu6, -3, 9),
    "hardtanh": (lambda x: functional.hardtanh(x, -0.7, 1.3), -3, 3),
    "clamp": (lambda x: torch.clamp(x, max=0.3), -3, 3),
    "crossed clamp": (lambda x: torch.clamp(x, 2.0, 1.0), -3, 3),
    "leaky relu": (lambda x: functional.leaky_relu(x, 0.2), -3, 3),
    "steep leaky relu": (lambda x: functional.leaky_relu(x, -1.3), -3, 3),
    "elu": (lambda x: functional.elu(x, 1.4), -6, 4),
    "celu": (lambda x: functional.celu(x, 0.7), -6, 4),
    "selu": (functional.selu, -6, 4),
    "gelu": (functional.gelu, -12, 7),
    "gelu tanh": (lambda x: functional.gelu(x, approximate="tanh"), -12, 7),
    "silu": (functional.silu, -40, 12),
    "mish": (functional.mish, -40, 12),
    "hardswish": (functional.hardswish, -6, 6),
    "hardsigmoid": (functional.hardsigmoid, -6, 6),
    "sigmoid": (torch.sigmoid, -30, 30),
    "tanh": (torch.tanh, -12, 12),
    "softplus": (lambda x: functional.softplus(x, 1.7, 30), -12, 12),
    "logsigmoid": (functional.logsigmoid, -12, 12),
    "softshrink": (lambda x: functional.softshrink(x, 0.4), -2, 2),
    "abs": (torch.abs, -3, 3),
    "sin": (torch.sin, -9, 9),
    "cos": (torch.cos, -9, 9),
    "atan": (torch.atan, -9, 9),
    "asinh": (torch.asinh, -9, 9),
    "erf": (torch.erf, -5, 5),
    "erfc": (torch.erfc, -5, 9),
    "prelu": (lambda x: functional.prelu(x, _WEIGHT.to(x)), -3, 3),
    "threshold": (lambda x: functional.threshold(x, 0.5, 0.5), -3, 3),
    "hardshrink, outside": (lambda x: functional.hardshrink(x, 0.5), 0.6, 3),
    "exp": (torch.exp, -9, 9),
    "exp2": (torch.exp2, -9, 9),
    "expm1": (torch.expm1, -9, 9),
    "log": (torch.log, 1e-3, 50),
    "log2": (torch.log2, 1e-3, 50),
    "log10": (torch.log10, 1e-3, 50),
    "log1p": (torch.log1p, -0.99, 50),
    "sqrt": (torch.sqrt, 1e-3, 50),
    "rsqrt": (torch.rsqrt, 1e-3, 50),
    "reciprocal": (torch.reciprocal, -9, -1e-2),
    "square": (torch.square, -3, 3),
    "cube": (lambda x: x**3, -3, 3),
    "fourth power": (lambda x: x**4, -3, 3),
    "power -2": (lambda x: x**-2.0, 0.1, 3),
    "power 1.5": (lambda x: x**1.5, 0, 3),
    "power 0.3": (lambda x: x**0.3, 0.01, 3),
    "3^x": (lambda x: torch.pow(3, x), -3, 3),
    "sinh": (torch.sinh, -3, 3),
    "cosh": (torch.cosh, -3, 3),
    "tan": (torch.tan, -1.5, 1.5),
    "asin": (torch.asin, -0.99, 0.99),
    "acos": (torch.acos, -0.99, 0.99),
    "atanh": (torch.atanh, -0.99, 0.99),
    "logit": (lambda x: torch.logit(x, 0.01), -1, 2),
}  # fmt: skip


@functools.cache
def found(name: str) -> Pointwise:
    forward, _, high = FUNCTIONS[name]
    made = operator(lambda x: forward(x / 2 if high < 1 else x), 4, 3)
    assert isinstance(made, Pointwise), made
    return made


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=draws(8), phases=[Phase.reuse, Phase.generate])
@given(where=st.floats(0, 1), width=st.sampled_from((1.0, 0.5, 0.1, 1e-3)), noise=st.integers(0, 2**32 - 1))
def test_image_and_slope_on_a_range_hold_and_are_tight(name: str, where: float, width: float, noise: int) -> None:
    forward, low, high = FUNCTIONS[name]
    half = (high - low) * width / 2
    middle = low + half + where * (high - low - 2 * half)
    shape = (1, 4, 3)
    random = torch.Generator().manual_seed(noise)
    ends = middle + half * torch.sort(2 * torch.rand(2, *shape, generator=random, dtype=torch.float64) - 1, 0)[0]
    where_it_is = Range(ends[0], ends[1])
    image = found(name).image([where_it_is], shape)
    shares = torch.linspace(0, 1, 401, dtype=torch.float64).reshape(-1, *(1,) * 3)
    x = (ends[0] + shares * (ends[1] - ends[0])).clamp(ends[0], ends[1])[:, 0].requires_grad_()
    y = forward(x)
    # torch's own constants in float64, and the cancellation of its kernels.
    forgiven = 1e-9 * (1 + y.detach().abs())
    assert bool((image.low <= y + forgiven).all())
    assert bool((y <= image.high + forgiven).all())
    spacing = (ends[1] - ends[0]) / 400
    slope = math.exp(found(name).slopes([where_it_is])[0])
    (derivative,) = torch.autograd.grad(y.sum(), x)
    steepest = float(derivative.abs().max())
    assert steepest <= slope * (1 + 1e-7) + 1e-12
    # Sampling misses what lies between two points: a part of the change of the derivative there.
    jumps = (derivative[1:] - derivative[:-1]).abs().max() if "elu" in name or "relu" in name else 0.0
    bending = float((derivative[1:] - derivative[:-1]).abs().max()) + float(jumps)
    assert slope <= steepest + 2 * bending + 1e-6 * (1 + steepest)
    missed = spacing * steepest + 1e-6 * (1 + y.detach().abs().amax(0))
    assert bool((image.low >= y.detach().amin(0) - missed).all())
    assert bool((image.high <= y.detach().amax(0) + missed).all())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_is_nan_on_half_lines_and_the_whole_line(name: str) -> None:
    made = found(name)
    for low, high in ((-math.inf, math.inf), (-math.inf, -0.5), (-0.5, math.inf), (0.0, math.inf), (-1e308, 1e308)):
        x = Range.between(low, high, (1, 4, 3))
        image = made.image([x], (1, 4, 3))
        assert image.shape == (1, 4, 3)
        assert bool((image.low <= image.high).all())
        (log,) = made.slopes([x])
        assert log <= (math.log(made.slope) + 1e-12 if made.slope else -math.inf)
    assert made.slopes([Range.unknown(())])[0] <= (math.log(made.slope) + 1e-12 if made.slope else -math.inf)


def test_images_end_where_the_functions_do() -> None:
    for name, low, high in (("relu", 0, math.inf), ("sigmoid", 0, 1), ("tanh", -1, 1), ("exp", 0, math.inf),
                            ("relu6", 0, 6), ("hardsigmoid", 0, 1), ("softplus", 0, math.inf), ("square", 0, math.inf),
                            ("logsigmoid", -math.inf, 0), ("abs", 0, math.inf), ("sin", -1, 1)):  # fmt: skip
        image = found(name).image([Range.unknown((1, 4, 3))], (1, 4, 3))
        assert (image.smallest, image.largest) == (low, high)
        assert not image.is_unknown
    assert found("silu").image([Range.unknown((2,))], (2,)).smallest == pytest.approx(-0.278464543, abs=1e-8)


def test_a_saturated_gate_has_a_tiny_slope_and_a_dead_relu_none() -> None:
    assert found("sigmoid").slopes([Range.between(40.0, 41.0, (1, 4, 3))])[0] == pytest.approx(
        math.log(2.0**-40 / 4), abs=1e-3
    )
    assert found("relu").slopes([Range.between(-3.0, -1.0, (1, 4, 3))])[0] < -25
    assert found("sigmoid").slopes([Range.between(-4.0, -3.0, (1, 4, 3))])[0] == pytest.approx(
        math.log(0.04517666), abs=1e-6
    )


@pytest.mark.parametrize(
    ("forward", "range_", "reason"),
    [
        (lambda x: x**2, (-math.inf, math.inf), r"x\^2 has no largest slope on the whole line; give --domain"),
        (torch.exp, (0.0, math.inf), r"exp has no largest slope on \[0, inf\)"),
        (torch.sqrt, (0.0, 4.0), r"sqrt has no largest slope on \[0, 4\]"),
        (torch.log, (-0.5, 4.0), r"log has no largest slope on \[-0.5, 4\]"),
        (torch.floor, (0.5, 1.5), r"floor has no largest slope on \[0.5, 1.5\]"),
        (torch.reciprocal, (-math.inf, 2.0), r"1 / x has no largest slope on \(-inf, 2\]"),
    ],
)
def test_what_has_no_slope_says_where(forward: Any, range_: tuple[float, float], reason: str) -> None:
    made = operator(forward, 3)
    assert isinstance(made, Pointwise)
    x = Range.between(*range_, (1, 3))
    assert made.slopes([x]) == (math.inf,)
    assert re.fullmatch(reason, made.unbounded_because([x]))
    assert made.unbounded_because([Range.between(1.1, 1.4, (1, 3))]) == ""
    assert made.slopes([Range.between(1.1, 1.4, (1, 3))])[0] < 3


@pytest.mark.parametrize("forward", [torch.sign, torch.floor, torch.ceil, torch.round, torch.trunc])
def test_stairs_are_constant_between_their_jumps(forward: Any) -> None:
    made = operator(forward, 3)
    assert isinstance(made, Pointwise)
    low, high = torch.tensor([[0.6, -0.4, 2.6]]).double(), torch.tensor([[0.9, -0.1, 2.9]]).double()
    assert made.slopes([Range(low, high)])[0] < -25
    torch.testing.assert_close(made.image([Range(low, high)], (1, 3)).low, forward(low), rtol=1e-8, atol=0)
    assert made.slopes([Range(low - 2, high)]) == (math.inf,)


def test_prelu_has_the_slope_of_each_channel() -> None:
    made = found("prelu")
    low = torch.tensor([-2.0, -2.0, -2.0, 0.0], dtype=torch.float64).reshape(1, 4, 1).expand(1, 4, 3)
    high = torch.tensor([-1.0, 1.0, 3.0, 1.0], dtype=torch.float64).reshape(1, 4, 1).expand(1, 4, 3)
    image = made.image([Range(low, high)], (1, 4, 3))
    assert image.low[0, :, 0].tolist() == pytest.approx([1.5, -0.6, 0.0, 0.0], abs=1e-6)
    assert image.high[0, :, 0].tolist() == pytest.approx([3.0, 1.0, 3.0, 1.0], abs=1e-6)
    assert made.slopes([Range(low, high)])[0] == pytest.approx(math.log(2.0))
    assert made.slopes([Range(low, low + 0.5)])[0] == pytest.approx(math.log(2.0))
    single = operator(lambda x: functional.prelu(x, torch.tensor([0.25])), 4, 3)
    assert isinstance(single, Pointwise)
    assert single.slopes([Range.between(-2.0, -1.0, (1, 4, 3))])[0] == pytest.approx(math.log(0.25))
    # One slope of two thousand is steep, where its channel can be negative.
    weight = torch.full((2000,), 0.1)
    weight[7] = 3.0
    many = operator(lambda x: functional.prelu(x, weight), 2000, 3)
    assert isinstance(many, Pointwise)
    ends = torch.full((1, 2000, 3), -1.0, dtype=torch.float64)
    assert many.slopes([Range(ends, ends + 0.5)])[0] == pytest.approx(math.log(3.0))
    ends[:, 7] = 1.0
    assert many.slopes([Range(ends, ends + 0.5)])[0] == pytest.approx(0.0, abs=1e-8)


def test_clamping_to_tensors_goes_element_by_element_and_pays_for_copies() -> None:
    low, high = torch.tensor([0.0, -1.0, 2.0]), torch.tensor([1.0, 1.0, 1.0])
    made = operator(lambda x: torch.clamp(x, low, high), 3)
    assert isinstance(made, Pointwise)
    image = made.image([Range.between(-5.0, 0.5, (1, 3))], (1, 3))
    assert image.low.tolist()[0] == pytest.approx([0.0, -1.0, 1.0], abs=1e-6)
    assert image.high.tolist()[0] == pytest.approx([0.5, 0.5, 1.0], abs=1e-6)
    assert made.slopes([Range.between(1.5, 2.5, (1, 3))])[0] < -25
    tall = torch.randn(4, 3)
    spread = operator(lambda x: torch.clamp_min(x, tall), 1, 3)
    assert isinstance(spread, Pointwise)
    assert spread.slopes([Range.unknown((1, 1, 3))])[0] == pytest.approx(math.log(2.0))
    assert spread.image([Range.between(0.0, 1.0, (1, 1, 3))], (1, 4, 3)).shape == (1, 4, 3)


def test_a_choice_by_a_constant_condition_is_linear() -> None:
    mask = torch.tensor([True, False, True])
    assert operator(lambda x: torch.where(mask, x, 2.0), 3) is IDENTITY
    assert isinstance(operator(lambda x: torch.where(mask, x, 3 * x), 3), Concatenation)
    tall = mask[:, None].expand(3, 3)
    copied = operator(lambda x: torch.where(tall, x, 2.0), 3)
    assert isinstance(copied, Indexing)
    assert copied.copies == 3
    both = operator(lambda x: torch.where(tall, x, x[:, :1]), 3)
    assert isinstance(both, Sum)
    assert both.weights == pytest.approx((math.sqrt(3), 3.0))
    assert isinstance(operator(lambda x: torch.where(x > 0, x, -x), 3), Unbounded)


def test_large_ranges_have_the_slope_of_their_steepest_element() -> None:
    noise = torch.Generator().manual_seed(0)
    low = torch.randn(3, 70_000, generator=noise, dtype=torch.float64)
    high = low + torch.rand(3, 70_000, generator=noise, dtype=torch.float64) * 0.1
    for curve in (curves.SILU, curves.TANH, curves.RELU, curves.power(3.0), curves.leaky(0.1), curves.SIN):
        for shift in (0.0, 5.0, -5.0):
            each = float(curve.slope(low + shift, high + shift).max())
            assert curve.steepest(low + shift, high + shift) == pytest.approx(each, rel=1e-12)
        assert curve.steepest(low[:0], high[:0]) == 0.0


def test_numbers_are_read_in_both_precisions() -> None:
    made = operator(lambda x: functional.hardtanh(x, -0.3, 0.3), 3)
    assert isinstance(made, Pointwise)
    image = made.image([Range.unknown((1, 3))], (1, 3))
    assert image.largest >= float(np.float32(0.3)) > 0.3
    leaky = operator(lambda x: functional.leaky_relu(x, 1.7), 3)
    assert isinstance(leaky, Pointwise)
    assert leaky.slope >= max(1.7, float(np.float32(1.7)))


# Interval arithmetic against mpmath's own.
_MONOTONE: list[tuple[str, Callable[[Any], Any], float, float]] = [
    ("exp", mpmath.exp, -700, 700),
    ("log", mpmath.log, 1e-300, 1e300),
    ("sigmoid", lambda x: 1 / (1 + mpmath.exp(-x)), -700, 700),
    ("softplus", lambda x: mpmath.log1p(mpmath.exp(x)), -700, 700),
    ("tanh", mpmath.tanh, -30, 30),
    ("erf", mpmath.erf, -6, 6),
    ("erfc", mpmath.erfc, -6, 26),
    ("atan", mpmath.atan, -1e6, 1e6),
    ("expm1", mpmath.expm1, -50, 700),
    ("log1p", mpmath.log1p, -0.999, 1e9),
    ("asinh", mpmath.asinh, -1e9, 1e9),
    ("sin", mpmath.sin, -1e3, 1e3),
    ("cos", mpmath.cos, -1e3, 1e3),
    ("reciprocal", lambda x: 1 / x, 1e-300, 1e300),
    ("sigmoid_slope", lambda x: mpmath.exp(-x) / (1 + mpmath.exp(-x)) ** 2, -700, 700),
    ("tanh_slope", lambda x: mpmath.sech(x) ** 2, -300, 300),
    ("erf_slope", lambda x: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-x * x), -20, 20),
]


@pytest.mark.parametrize(("name", "function", "low", "high"), _MONOTONE, ids=[row[0] for row in _MONOTONE])
def test_elementary_enclosures_hold_the_exact_values(
    name: str, function: Callable[[Any], Any], low: float, high: float
) -> None:
    random = np.random.default_rng(0)
    ends = np.sort(
        np.concatenate([random.uniform(low, high, (2, 300)), random.uniform(max(low, -2), min(high, 2), (2, 300))], 1),
        0,
    )
    if low > 0:
        ends = np.sort(10 ** random.uniform(math.log10(low), math.log10(high), (2, 600)), 0)
    enclosed = getattr(intervals, name)(Cells(ends[0], ends[1]))
    thin = getattr(intervals, name)(Cells(ends[0], ends[0]))
    with mpmath.workdps(40):
        for i in range(600):
            for share in (0.0, 0.37, 1.0):
                x = mpmath.mpf(ends[0, i]) + share * (mpmath.mpf(ends[1, i]) - mpmath.mpf(ends[0, i]))
                assert enclosed.lo[i] <= function(x) <= enclosed.hi[i]
            exact = function(mpmath.mpf(ends[0, i]))
            assert thin.lo[i] <= exact <= thin.hi[i]
            assert thin.hi[i] - thin.lo[i] <= 1e-12 * (1 + abs(exact))


@given(st.lists(st.floats(allow_nan=False, width=64), min_size=4, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_sums_and_products_of_intervals_hold_the_exact_ones(ends: list[float], first: float, second: float) -> None:
    (a, b), (c, d) = sorted(ends[:2]), sorted(ends[2:])
    assume(not any(low == high and math.isinf(low) for low, high in ((a, b), (c, d))))  # no number lies there
    x, y = Cells(np.float64(a), np.float64(b)), Cells(np.float64(c), np.float64(d))
    with mpmath.workdps(60):
        inner = [
            mpmath.mpf(low) + share * (mpmath.mpf(high) - mpmath.mpf(low)) if math.isfinite(low) and math.isfinite(high)
            else next((mpmath.mpf(end) for end in (low, high) if math.isfinite(end)), mpmath.mpf(0))
            for low, high, share in ((a, b, first), (c, d, second))
        ]  # fmt: skip
        for result, truth in ((x + y, inner[0] + inner[1]), (x * y, inner[0] * inner[1]), (x - y, inner[0] - inner[1])):
            assert result.lo <= truth <= result.hi


@pytest.mark.parametrize("exponent", [2.0, 3.0, 7.0, -1.0, -2.0, 0.5, -0.5, 1.5, 0.3])
def test_powers_of_intervals_hold_the_exact_ones(exponent: float) -> None:
    random = np.random.default_rng(1)
    ends = np.sort(random.normal(size=(2, 400)) * 10.0 ** random.integers(-3, 3, 400), 0)
    ends = np.abs(ends) if exponent % 1 else ends
    ends = np.sort(ends, 0)
    result = intervals.power(Cells(ends[0], ends[1]), exponent)
    with mpmath.workdps(40):
        for i in range(400):
            for share in (0.0, 0.3, 1.0):
                x = mpmath.mpf(ends[0, i]) + share * (mpmath.mpf(ends[1, i]) - mpmath.mpf(ends[0, i]))
                if x != 0 or exponent > 0:
                    assert result.lo[i] <= x**exponent <= result.hi[i]


def test_portraits_and_curves_agree() -> None:
    low = torch.linspace(-6, 4, 101, dtype=torch.float64)
    for curve, expression in (
        (curves.SILU, expressions.silu("x")),
        (curves.GELU, expressions.gelu("x")),
        (curves.GELU_TANH, expressions.gelu_tanh("x")),
        (curves.MISH, expressions.mish("x")),
        (curves.HARDSWISH, expressions.mul("x", expressions.hardsigmoid("x"))),
    ):
        other = portrait(expression)
        for width in (0.01, 1.0, 8.0):
            torch.testing.assert_close(
                curve.slope(low, low + width), other.slope(low, low + width), rtol=1e-6, atol=1e-6
            )
            for one, two in zip(curve.image(low, low + width), other.image(low, low + width), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
