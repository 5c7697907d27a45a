"""Interval arithmetic on arrays of float64, rounded outwards: what is certified about a scalar function stands on it.

Sums and products are exact or moved to the next float. The elementary functions of numpy and torch are good to a few
units in the last place (SVML and SLEEF state at most four); `_ULPS` covers that sixteen times over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
_ULPS = 2.0**-46
# What gradual underflow can hide.
_TINY = 1e-320
_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """Real numbers between lo and hi, elementwise; an infinite end is no bound.

    Shapes: both ends broadcast with each other. A product of zero and an unbounded interval is zero.
    """

    lo: Array
    hi: Array

    @staticmethod
    def of(lo: Any, hi: Any = None) -> Interval:
        """The interval of these ends, or of a single number."""
        return Interval(np.asarray(lo, np.float64), np.asarray(lo if hi is None else hi, np.float64))

    def __add__(self, other: Interval) -> Interval:
        return Interval(_sum(self.lo, other.lo, -np.inf), _sum(self.hi, other.hi, np.inf))

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo)

    def __sub__(self, other: Interval) -> Interval:
        return self + -other

    def __mul__(self, other: Interval) -> Interval:
        a, b, c, d = self.lo, self.hi, other.lo, other.hi
        with np.errstate(all="ignore"):
            products = [_product(x, y) for x in (a, b) for y in (c, d)]
        least = np.minimum(np.minimum(products[0], products[1]), np.minimum(products[2], products[3]))
        largest = np.maximum(np.maximum(products[0], products[1]), np.maximum(products[2], products[3]))
        # What underflows keeps its sign, and zero times anything is zero.
        negative = ((a < 0) & (d > 0)) | ((b > 0) & (c < 0))
        positive = ((b > 0) & (d > 0)) | ((a < 0) & (c < 0))
        low, high = np.nextafter(least, -np.inf), np.nextafter(largest, np.inf)
        low, high = np.where(negative, low, np.maximum(low, 0.0)), np.where(positive, high, np.minimum(high, 0.0))
        unit = ((a == b) & (np.abs(a) == 1)) | ((c == d) & (np.abs(c) == 1))
        return Interval(np.where(unit, least, low), np.where(unit, largest, high))

    def meet(self, other: Interval) -> Interval:
        """What lies in both, which hold the same number."""
        return Interval(np.maximum(self.lo, other.lo), np.minimum(self.hi, other.hi))

    def hull(self, other: Interval) -> Interval:
        """What lies in one of them, or between them."""
        return Interval(np.minimum(self.lo, other.lo), np.maximum(self.hi, other.hi))

    def where(self, condition: Array, other: Interval) -> Interval:
        """This where the condition holds, the other elsewhere."""
        return Interval(np.where(condition, self.lo, other.lo), np.where(condition, self.hi, other.hi))

    def clip(self, low: float, high: float) -> Interval:
        """This, of numbers that are known to lie between these ends."""
        return Interval(np.clip(self.lo, low, high), np.clip(self.hi, low, high))

    def expanded(self, shape: tuple[int, ...]) -> Interval:
        return Interval(np.broadcast_to(self.lo, shape), np.broadcast_to(self.hi, shape))

    @property
    def magnitude(self) -> Array:
        """The largest absolute value."""
        return np.maximum(np.abs(self.lo), np.abs(self.hi))

    @property
    def width(self) -> Array:
        with np.errstate(all="ignore"):
            found: Array = np.nextafter(self.hi - self.lo, np.inf)
        return found

    @property
    def middle(self) -> Array:
        """A float in it; of a half line, its end."""
        with np.errstate(all="ignore"):
            found = self.lo / 2 + self.hi / 2
        found = np.where(np.isfinite(self.lo), np.where(np.isfinite(self.hi), found, self.lo), self.hi)
        return np.clip(np.where(np.isfinite(found), found, 0.0), self.lo, self.hi)

    @property
    def nearest(self) -> Array:
        """The number of smallest absolute value."""
        found: Array = np.clip(0.0, self.lo, self.hi)
        return found


EVERYTHING = Interval.of(-np.inf, np.inf)
ZERO, ONE = Interval.of(0.0), Interval.of(1.0)


def _product(x: Array, y: Array) -> Array:
    """x y, zero where it is zero times infinity."""
    product = x * y
    found: Array = np.where(np.isnan(product), 0.0, product)
    return found


def _sum(a: Array, b: Array, outwards: float) -> Array:
    """The sum, moved to the next float where it is not exact (Knuth's two-sum tells)."""
    with np.errstate(all="ignore"):
        total = a + b
        part = total - a
        exact = (a - (total - part)) + (b - part) == 0
        moved = np.where(exact, total, np.nextafter(total, outwards))
    return np.where(np.isnan(moved), outwards, moved)


def _widened(lo: Array, hi: Array) -> Interval:
    """Ends that an elementary function was evaluated at, moved by what it may be off."""
    with np.errstate(all="ignore"):
        low, high = lo - np.abs(lo) * _ULPS - _TINY, hi + np.abs(hi) * _ULPS + _TINY
    # An end that overflowed is only known to exceed every float.
    low, high = np.where(lo == np.inf, _LARGEST, low), np.where(hi == -np.inf, -_LARGEST, high)
    return Interval(np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high))


def _rising(x: Interval, function: Callable[[Array], Array], fixed: tuple[float, float] | None = None) -> Interval:
    """The image under an increasing function; it takes the first number of `fixed` to the second exactly."""
    with np.errstate(all="ignore"):
        found = _widened(function(x.lo), function(x.hi))
    if fixed is None:
        return found
    place, value = fixed
    return Interval(np.where(x.lo == place, value, found.lo), np.where(x.hi == place, value, found.hi))


def _bell(x: Interval, function: Callable[[Array], Array]) -> Interval:
    """The image under an even function that falls away from zero."""
    with np.errstate(all="ignore"):
        return _widened(function(x.magnitude), function(np.abs(x.nearest)))


def exp(x: Interval) -> Interval:
    return _rising(x, np.exp, (0.0, 1.0)).clip(0.0, np.inf)


def log(x: Interval) -> Interval:
    """Of the positive part; everything where there is none."""
    with np.errstate(all="ignore"):
        found = _rising(Interval(np.maximum(x.lo, 0.0), np.maximum(x.hi, 0.0)), np.log, (1.0, 0.0))
    return found.where(x.hi > 0, EVERYTHING)


def sigmoid(x: Interval) -> Interval:
    return _rising(x, _sigmoid, (0.0, 0.5)).clip(0.0, 1.0)


def _sigmoid(x: Array) -> Array:
    with np.errstate(all="ignore"):
        part = np.exp(-np.abs(x))
        return np.where(x >= 0, 1.0, part) / (1.0 + part)


def sigmoid_slope(x: Interval) -> Interval:
    """s(x) s(-x), largest at zero."""
    return _bell(x, lambda v: _sigmoid(v) * _sigmoid(-v)).clip(0.0, 0.25)


def softplus(x: Interval) -> Interval:
    """log(1 + exp(x))."""
    return _rising(x, lambda v: np.maximum(v, 0.0) + np.log1p(np.exp(-np.abs(v)))).clip(0.0, np.inf)


def tanh(x: Interval) -> Interval:
    return _rising(x, np.tanh, (0.0, 0.0)).clip(-1.0, 1.0)


def tanh_slope(x: Interval) -> Interval:
    """sech^2."""
    return _bell(x, lambda v: 4.0 * _sigmoid(2.0 * v) * _sigmoid(-2.0 * v)).clip(0.0, 1.0)


def erf(x: Interval) -> Interval:
    return _rising(x, lambda v: _by_torch(torch.erf, v), (0.0, 0.0)).clip(-1.0, 1.0)


def erfc(x: Interval) -> Interval:
    """1 - erf(x), accurate where it is small."""
    found = _widened(_by_torch(torch.erfc, x.hi), _by_torch(torch.erfc, x.lo)).clip(0.0, 2.0)
    return Interval(np.where(x.hi == 0, 1.0, found.lo), np.where(x.lo == 0, 1.0, found.hi))


def erf_slope(x: Interval) -> Interval:
    """2 exp(-x^2) / sqrt(pi)."""
    return exp(-power(x, 2.0)) * Interval.of(1.1283791670955125, 1.1283791670955128)


def _by_torch(function: Callable[[torch.Tensor], torch.Tensor], x: Array) -> Array:
    found: Array = function(torch.from_numpy(np.array(x, np.float64))).numpy()
    return found.reshape(np.shape(x))


def expm1(x: Interval) -> Interval:
    return _rising(x, np.expm1, (0.0, 0.0)).clip(-1.0, np.inf)


def log1p(x: Interval) -> Interval:
    """Of the part above -1; everything where there is none."""
    found = _rising(Interval(np.maximum(x.lo, -1.0), np.maximum(x.hi, -1.0)), np.log1p, (0.0, 0.0))
    return found.where(x.hi > -1, EVERYTHING)


def asinh(x: Interval) -> Interval:
    return _rising(x, np.arcsinh, (0.0, 0.0))


def atan(x: Interval) -> Interval:
    return _rising(x, np.arctan, (0.0, 0.0))


def cos(x: Interval) -> Interval:
    """With the extrema that lie inside; at arguments of a million and more, all of [-1, 1]."""
    with np.errstate(all="ignore"):
        first, last = np.cos(x.lo), np.cos(x.hi)
        turns = np.stack([x.lo, x.hi]) / np.pi
        slop = 1e-12 * (1 + x.magnitude)
        # Multiples of pi inside, those that may be included: even ones are maxima, odd ones minima.
        start, stop = turns[0] - slop, turns[1] + slop
        top = np.floor(stop / 2) >= np.ceil(start / 2)
        bottom = np.floor((stop - 1) / 2) >= np.ceil((start - 1) / 2)
    low, high = np.minimum(first, last) - _ULPS, np.maximum(first, last) + _ULPS
    far = ~(x.magnitude < 2.0**20)
    return Interval(np.where(bottom | far, -1.0, low), np.where(top | far, 1.0, high)).clip(-1.0, 1.0)


def sin(x: Interval) -> Interval:
    half = Interval.of(1.5707963267948963, 1.5707963267948968)
    found = cos(x - half)
    exact = (x.lo == 0) & (x.hi == 0)
    return ZERO.where(exact, found)


def reciprocal(x: Interval) -> Interval:
    """1 / x; of an interval that ends at zero, what is inside it; everything where zero is inside."""
    with np.errstate(all="ignore"):
        low, high = np.nextafter(1.0 / x.hi, -np.inf), np.nextafter(1.0 / x.lo, np.inf)
    exact = np.abs(x.hi) == 1, np.abs(x.lo) == 1
    low, high = np.where(exact[0], x.hi, low), np.where(exact[1], x.lo, high)
    low, high = np.where(x.hi == 0, -np.inf, low), np.where(x.lo == 0, np.inf, high)
    low, high = np.where(x.lo >= 0, np.maximum(low, 0.0), low), np.where(x.hi <= 0, np.minimum(high, 0.0), high)
    inside = ((x.lo < 0) & (x.hi > 0)) | ((x.lo == 0) & (x.hi == 0))
    return EVERYTHING.where(inside, Interval(low, high))


def power(x: Interval, exponent: float) -> Interval:
    """x^p: for every x where p is a whole number, of the part x >= 0 otherwise."""
    if exponent < 0:
        return reciprocal(power(x, -exponent))
    if exponent == 0:
        return ONE
    if exponent % 2 == 1:
        found = _widened(_power(x.lo, exponent), _power(x.hi, exponent))
        return _exactly(x.lo, x.hi, found)
    if exponent % 2 == 0:
        near, far = np.abs(x.nearest), x.magnitude
        return _exactly(near, far, _widened(_power(near, exponent), _power(far, exponent)).clip(0.0, np.inf))
    low, high = np.maximum(x.lo, 0.0), np.maximum(x.hi, 0.0)
    found = _exactly(low, high, _widened(_power(low, exponent), _power(high, exponent)).clip(0.0, np.inf))
    return found.where(x.hi >= 0, EVERYTHING)


def _power(x: Array, exponent: float) -> Array:
    with np.errstate(all="ignore"):
        found: Array = np.power(x, exponent)
    return found


def _exactly(low: Array, high: Array, found: Interval) -> Interval:
    """Powers of these bases, which are exact at -1, 0 and 1: odd ones where a base is negative."""
    return Interval(np.where(_fixed(low), low, found.lo), np.where(_fixed(high), high, found.hi))


def _fixed(base: Array) -> Array:
    fixed: Array = (base == 0) | (np.abs(base) == 1)
    return fixed


def maximum(x: Interval, y: Interval) -> Interval:
    return Interval(np.maximum(x.lo, y.lo), np.maximum(x.hi, y.hi))


def minimum(x: Interval, y: Interval) -> Interval:
    return Interval(np.minimum(x.lo, y.lo), np.minimum(x.hi, y.hi))
