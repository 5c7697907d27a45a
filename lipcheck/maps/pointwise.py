"""Scalar functions by name: their values and slopes on intervals.

Activations that fall and rise are curves, with the places where they and their derivatives turn; what is built from
monotone parts is evaluated in interval arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcheck.maps import intervals
from lipcheck.maps.intervals import Array, Interval
from lipcheck.operators import Curve, ScalarFunction, steepest

_EVERYWHERE = (-math.inf, math.inf)
Image = Callable[[Interval], Interval]


@dataclass(frozen=True, slots=True, eq=False)
class Enclosed:
    """A function whose value and derivative are tight in interval arithmetic: the monotone ones and their like."""

    value: Image
    derivative: Image
    bounds: tuple[float, float] = _EVERYWHERE

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        found = self.value(Interval(low.numpy(), high.numpy()))
        return _tensor(found.lo, low), _tensor(found.hi, low)

    def slope(self, low: Tensor, high: Tensor) -> Tensor:
        return _tensor(self.derivative(Interval(low.numpy(), high.numpy())).magnitude, low)

    def steepest(self, low: Tensor, high: Tensor) -> float:
        return steepest(self, low, high)

    def at(self, points: Tensor) -> Tensor | None:
        return _tensor(self.value(Interval(points.numpy(), points.numpy())).middle, points)


def _tensor(values: Array, like: Tensor) -> Tensor:
    """Shapes: that of `like`, which parameters may have broadcast."""
    return torch.from_numpy(np.array(np.broadcast_arrays(values, like.numpy())[0]))


@dataclass(frozen=True, slots=True, eq=False)
class Clamp:
    """min(max(x, least), largest), as torch: the upper end wins where the two have crossed.

    Shapes: the ends are single numbers, or broadcast with x.
    """

    least: Interval
    largest: Interval

    @property
    def bounds(self) -> tuple[float, float]:
        least, largest = np.minimum(self.least.lo, self.largest.lo), self.largest.hi
        return float(least.min(initial=math.inf)), float(largest.max(initial=-math.inf))

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least = np.minimum(np.maximum(low.numpy(), self.least.lo), self.largest.lo)
        largest = np.minimum(np.maximum(high.numpy(), self.least.hi), self.largest.hi)
        return torch.from_numpy(np.array(least)), torch.from_numpy(np.array(largest))

    def slope(self, low: Tensor, high: Tensor) -> Tensor:
        lows, highs = low.numpy(), high.numpy()
        inside = (highs > self.least.lo) & (lows < self.largest.hi) & (self.least.lo < self.largest.hi)
        return torch.from_numpy(np.array(np.where(inside, 1.0, 0.0)))

    def steepest(self, low: Tensor, high: Tensor) -> float:
        return float(self.slope(low, high).max()) if low.numel() else 0.0

    def at(self, points: Tensor) -> Tensor | None:
        found = np.minimum(np.maximum(points.numpy(), self.least.middle), self.largest.middle)
        return torch.from_numpy(np.array(found))


@dataclass(frozen=True, slots=True, eq=False)
class Stairs:
    """A function that only jumps, never down: constant on an interval without a jump."""

    value: Callable[[Tensor], Tensor]
    bounds: tuple[float, float] = _EVERYWHERE

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(low), self.value(high)

    def slope(self, low: Tensor, high: Tensor) -> Tensor:
        first, last = self.image(low, high)
        return torch.where(first == last, 0.0, math.inf)

    def steepest(self, low: Tensor, high: Tensor) -> float:
        return float(self.slope(low, high).max()) if low.numel() else 0.0

    def at(self, points: Tensor) -> Tensor | None:
        return self.value(points)


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """One of several functions: a number in the code is one in float64 and another one in float32."""

    functions: tuple[ScalarFunction, ...]

    @property
    def bounds(self) -> tuple[float, float]:
        least, largest = zip(*(function.bounds for function in self.functions), strict=True)
        return min(least), max(largest)

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        images = [function.image(low, high) for function in self.functions]
        least, largest = images[0]
        for one, other in images[1:]:
            least, largest = torch.minimum(least, one), torch.maximum(largest, other)
        return least, largest

    def slope(self, low: Tensor, high: Tensor) -> Tensor:
        slopes = [function.slope(low, high) for function in self.functions]
        return torch.stack(slopes).amax(0)

    def steepest(self, low: Tensor, high: Tensor) -> float:
        return max(function.steepest(low, high) for function in self.functions)

    def at(self, points: Tensor) -> Tensor | None:
        return self.functions[0].at(points)


def read_twice(make: Callable[..., ScalarFunction], *numbers: float) -> ScalarFunction:
    """The function that these numbers make, as float64 and as float32 networks read them."""
    single = tuple(float(np.float32(number)) if abs(number) < 3e38 else number for number in numbers)
    return make(*numbers) if single == numbers else Readings((make(*numbers), make(*single)))


def constant_interval(value: float | Tensor) -> Interval:
    """A number or numbers as an interval: one written in the code as networks of float64 and of float32 read it."""
    if isinstance(value, Tensor):
        exact = value.detach().double().numpy()
        return Interval(exact, exact)
    rounded = float(np.float32(value)) if abs(value) < 3e38 else value
    return Interval.of(min(value, rounded), max(value, rounded))


def clamp(least: float | Tensor | None, largest: float | Tensor | None) -> Clamp:
    """An end that is None does not clamp."""
    low, high = -math.inf if least is None else least, math.inf if largest is None else largest
    return Clamp(constant_interval(low), constant_interval(high))


RELU, RELU6 = clamp(0.0, None), clamp(0.0, 6.0)


def power(exponent: float) -> ScalarFunction:
    """x^p: for x >= 0 where p is no whole number."""
    positive = exponent % 2 != 1
    return read_twice(
        lambda p: Enclosed(
            lambda x: intervals.power(x, p),
            lambda x: Interval.of(p) * intervals.power(x, p - 1),
            (0.0, math.inf) if positive else _EVERYWHERE,
        ),
        exponent,
    )


def exponential(base: float | None = None) -> Enclosed:
    """base^x, for a positive base, e unless given."""
    rate = intervals.ONE if base is None else intervals.log(constant_interval(base))
    return Enclosed(lambda x: intervals.exp(x * rate), lambda x: intervals.exp(x * rate) * rate, (0.0, math.inf))


def logarithm(factor: Interval = intervals.ONE) -> Enclosed:
    """A multiple of the natural logarithm."""
    return Enclosed(lambda x: intervals.log(x) * factor, lambda x: factor * _inverse(x))


def _inverse(x: Interval) -> Interval:
    """1 / x of the positive part."""
    return intervals.reciprocal(Interval(np.maximum(x.lo, 0.0), np.maximum(x.hi, 0.0)))


def softplus(beta: float) -> Enclosed:
    """log(1 + exp(beta x)) / beta."""
    rate = constant_interval(beta)
    bounds = (0.0, math.inf) if beta > 0 else (-math.inf, 0.0)
    return Enclosed(
        lambda x: intervals.softplus(x * rate) * intervals.reciprocal(rate),
        lambda x: intervals.sigmoid(x * rate),
        bounds,
    )


SIGMOID = Enclosed(intervals.sigmoid, intervals.sigmoid_slope, (0.0, 1.0))
TANH = Enclosed(intervals.tanh, intervals.tanh_slope, (-1.0, 1.0))
ERF = Enclosed(intervals.erf, intervals.erf_slope, (-1.0, 1.0))
ERFC = Enclosed(intervals.erfc, intervals.erf_slope, (0.0, 2.0))
ATAN = Enclosed(
    intervals.atan, lambda x: intervals.reciprocal(intervals.ONE + intervals.power(x, 2.0)), (-1.571, 1.571)
)
SIN = Enclosed(intervals.sin, intervals.cos, (-1.0, 1.0))
COS = Enclosed(intervals.cos, intervals.sin, (-1.0, 1.0))
ASINH = Enclosed(intervals.asinh, lambda x: intervals.power(intervals.ONE + intervals.power(x, 2.0), -0.5))
LOG_SIGMOID = Enclosed(lambda x: -intervals.softplus(-x), lambda x: intervals.sigmoid(-x), (-math.inf, 0.0))
ABSOLUTE = Enclosed(
    lambda x: Interval(np.abs(x.nearest), x.magnitude), lambda x: Interval.of(np.ones(np.shape(x.lo))), (0.0, math.inf)
)
EXP, LOG = exponential(), logarithm()
EXP2, EXPM1 = exponential(2.0), Enclosed(intervals.expm1, intervals.exp, (-1.0, math.inf))
LOG1P = Enclosed(intervals.log1p, lambda x: _inverse(intervals.ONE + x))
LOG2, LOG10 = (logarithm(intervals.reciprocal(intervals.log(Interval.of(base)))) for base in (2.0, 10.0))

_SIXTH = Interval.of(math.nextafter(1 / 6, 0.0), math.nextafter(1 / 6, 1.0))


def _hardsigmoid(x: Interval) -> Interval:
    inner = (x + Interval.of(3.0)) * _SIXTH
    return inner.clip(0.0, 1.0)


def _hardsigmoid_slope(x: Interval) -> Interval:
    inside = (x.hi > -3) & (x.lo < 3)
    return _SIXTH.where(inside, intervals.ZERO)


HARDSIGMOID = Enclosed(_hardsigmoid, _hardsigmoid_slope, (0.0, 1.0))

# A number beyond which the decaying parts of activations are zero in float64.
_FAR = 1e3


def _silu(x: Tensor) -> Tensor:
    return x.clamp(min=-_FAR) * torch.sigmoid(x)


def _silu_slope(x: Tensor) -> Tensor:
    x = x.clamp(-_FAR, _FAR)
    s = torch.sigmoid(x)
    return s + x * s * torch.sigmoid(-x)


# x s(x) falls up to the zero of 1 + x s(-x); its derivative turns where x tanh(x / 2) = 2.
SILU = Curve(
    _silu, _silu_slope, ((-1.278464542762, -1.278464542761),),
    ((-2.399357280516, -2.399357280515), (2.399357280515, 2.399357280516)), (-0.278464542762, math.inf),
)  # fmt: skip


def _normal(x: Tensor) -> Tensor:
    return torch.erfc(-x * math.sqrt(0.5)) / 2


def _gelu(x: Tensor) -> Tensor:
    return x.clamp(min=-_FAR) * _normal(x)


def _gelu_slope(x: Tensor) -> Tensor:
    x = x.clamp(-_FAR, _FAR)
    return _normal(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


# The derivative of Phi + x phi is phi (2 - x^2).
GELU = Curve(
    _gelu, _gelu_slope, ((-0.751791524694, -0.751791524693),),
    ((-1.414213562374, -1.414213562373), (1.414213562373, 1.414213562374)), (-0.169971207480, math.inf),
)  # fmt: skip


def _gelu_tanh(x: Tensor) -> Tensor:
    x = x.clamp(min=-_FAR)
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    x = x.clamp(-_FAR, _FAR)
    u = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    rate = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    s = torch.sigmoid(u)
    return s + x * rate * s * torch.sigmoid(-u)


GELU_TANH = Curve(
    _gelu_tanh, _gelu_tanh_slope, ((-0.752461422072, -0.752461422071),),
    ((-1.418504008791, -1.418504008790), (1.418504008790, 1.418504008791)), (-0.170040750572, math.inf),
)  # fmt: skip


def _mish(x: Tensor) -> Tensor:
    return x.clamp(min=-_FAR) * torch.tanh(_softplus(x))


def _softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def _mish_slope(x: Tensor) -> Tensor:
    x = x.clamp(-_FAR, _FAR)
    y = _softplus(x)
    return torch.tanh(y) + x * torch.sigmoid(x) * 4 * torch.sigmoid(2 * y) * torch.sigmoid(-2 * y)


MISH = Curve(
    _mish, _mish_slope, ((-1.192431214516, -1.192431214515),),
    ((-2.256376396361, -2.256376396360), (1.490571179485, 1.490571179486)), (-0.308843413018, math.inf),
)  # fmt: skip


def _hardswish(x: Tensor) -> Tensor:
    return torch.where(x > 3, x, x.clamp(-3, 3) * (x.clamp(-3, 3) + 3) / 6)


def _hardswish_slope(x: Tensor) -> Tensor:
    return torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, x.clamp(-3, 3) / 3 + 0.5))


HARDSWISH = Curve(_hardswish, _hardswish_slope, ((-1.5, -1.5),), ((-3.0, -3.0), (3.0, 3.0)), (-0.375, math.inf))


def elu(alpha: float, scale: float, inner: float) -> Curve:
    """scale x above zero, scale alpha (exp(inner x) - 1) below; inner is not negative."""

    def value(x: Tensor) -> Tensor:
        return torch.where(x > 0, scale * x, scale * alpha * torch.expm1(inner * x.clamp(max=0)))

    def derivative(x: Tensor) -> Tensor:
        return torch.where(x >= 0, scale, scale * alpha * inner * torch.exp(inner * x.clamp(max=0)))

    # At zero the derivative jumps: it is taken from either side.
    return Curve(value, derivative, ((0.0, 0.0),), ((-1e-300, 0.0),))


def leaky(slope: float | Tensor) -> Curve:
    """x above zero, slope x below. Shapes: a tensor of slopes broadcasts with x."""
    below = torch.as_tensor(slope, dtype=torch.float64)
    steeper = torch.where(below.abs() > 1, below, 1.0)

    def value(x: Tensor) -> Tensor:
        # Zero times infinity is zero.
        return torch.where(x >= 0, x, torch.where(below == 0, 0.0, below * x))

    def derivative(x: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, torch.where(x < 0, below, steeper))

    return Curve(value, derivative, ((0.0, 0.0),))
