"""Scalar functions on intervals with their first two derivatives: automatic differentiation of expressions.

An expression is "x", a number, or a tuple of an operation and its operands, expressions again, as `expressions` makes
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipcheck.maps import intervals
from lipcheck.maps.intervals import EVERYTHING, ONE, ZERO, Array, Interval

Expression = tuple[Any, ...] | str | float
_TWO, _SIGN = Interval.of(2.0), Interval.of(-1.0, 1.0)
_NO = np.asarray(False)


@dataclass(frozen=True, slots=True, eq=False)
class Jet:
    """Enclosures of a function of x and of its derivatives on cells of the line, or around points.

    On a cell they hold at every inner point, and `slope` for the difference quotients of any two; at a point they hold
    for it and for the limits from either side. `kinked` says that the derivative may not exist or may jump, and
    `curvature` is everything there; `broken` that the function may, or that it is infinitely steep at the point, and
    `slope` is everything. Derivatives that are not wanted are None.
    """

    value: Interval
    slope: Interval | None
    curvature: Interval | None
    kinked: Array
    broken: Array

    @property
    def strict(self) -> Array:
        """Whether it is strictly monotone, so that it takes a value at its interval's end at the cell's end alone."""
        if self.slope is None:
            return _NO
        found: Array = ((self.slope.lo > 0) | (self.slope.hi < 0)) & ~self.broken
        return found

    @property
    def lost(self) -> Array:
        """Where nothing is known of the value, which may be infinite: times zero it is no zero."""
        found: Array = self.broken & np.isinf(self.value.lo) & np.isinf(self.value.hi)
        return found

    def into(
        self,
        value: Interval,
        slope: Callable[[], Interval],
        curvature: Callable[[], Interval],
        kinked: Array = _NO,
        broken: Array = _NO,
    ) -> Jet:
        """The composition with an outer function that has this value and these derivatives on `self.value`."""
        broken = broken | self.broken
        kinked = kinked | self.kinked | broken
        first = second = None
        if self.slope is not None:
            outer = slope()
            first = EVERYTHING.where(broken, outer * self.slope)
            if self.curvature is not None:
                second = curvature() * intervals.power(self.slope, 2.0) + outer * self.curvature
                second = EVERYTHING.where(kinked, second)
        return Jet(value, first, second, kinked, broken)

    def __add__(self, other: Jet) -> Jet:
        broken, kinked = self.broken | other.broken, self.kinked | other.kinked
        first = second = None
        if self.slope is not None and other.slope is not None:
            first = self.slope + other.slope
            if self.curvature is not None and other.curvature is not None:
                second = self.curvature + other.curvature
        return Jet(self.value + other.value, first, second, kinked, broken)

    def __mul__(self, other: Jet) -> Jet:
        broken, kinked = self.broken | other.broken, self.kinked | other.kinked
        value = EVERYTHING.where(self.lost | other.lost, self.value * other.value)
        first = second = None
        if self.slope is not None and other.slope is not None:
            first = EVERYTHING.where(broken, self.slope * other.value + self.value * other.slope)
            if self.curvature is not None and other.curvature is not None:
                second = self.curvature * other.value + _TWO * self.slope * other.slope + self.value * other.curvature
                second = EVERYTHING.where(kinked, second)
        return Jet(value, first, second, kinked, broken)

    def expanded(self, shape: tuple[int, ...]) -> Jet:
        """The same, of something that may be constant."""
        slope, curvature = (part and part.expanded(shape) for part in (self.slope, self.curvature))
        kinked, broken = (np.broadcast_to(flag, shape) for flag in (self.kinked, self.broken))
        return Jet(self.value.expanded(shape), slope, curvature, kinked, broken)

    def choose(self, surely: Array, surely_not: Array, other: Jet, *, continuous: bool) -> Jet:
        """This where a condition surely holds, the other where it surely does not, either elsewhere."""
        unsure = ~(surely | surely_not)

        def mixed(first: Interval, second: Interval) -> Interval:
            return first.where(surely, second.where(surely_not, first.hull(second)))

        broken = np.where(surely, self.broken, np.where(surely_not, other.broken, self.broken | other.broken))
        broken = broken if continuous else broken | unsure
        kinked = np.where(surely, self.kinked, np.where(surely_not, other.kinked, True)) | broken
        first = second = None
        if self.slope is not None and other.slope is not None:
            first = EVERYTHING.where(broken, mixed(self.slope, other.slope))
            if self.curvature is not None and other.curvature is not None:
                second = EVERYTHING.where(kinked, mixed(self.curvature, other.curvature))
        return Jet(mixed(self.value, other.value), first, second, kinked, broken)


def jet(expression: Expression, x: Interval, order: int = 2, *, points: bool = False) -> Jet:
    """The function that an expression is, on cells or, with `points`, at points (lo and hi are equal there).

    Shapes: those of x. `order` is that of the last derivative wanted; on cells it is two.
    """
    with np.errstate(all="ignore"):
        return _Evaluation(x, order, points).jet(expression).expanded(np.broadcast(x.lo, x.hi).shape)


class _Evaluation:
    """One evaluation of an expression, each part once."""

    def __init__(self, x: Interval, order: int, points: bool) -> None:
        shape = np.broadcast(x.lo, x.hi).shape
        self.order, self.points = order, points
        self.none = np.zeros(shape, bool)
        self.zero = Interval(np.zeros(shape), np.zeros(shape))
        self.known: dict[Expression, Jet] = {"x": self._smooth(x, Interval(np.ones(shape), np.ones(shape)))}

    def _smooth(self, value: Interval, slope: Interval) -> Jet:
        return Jet(value, slope if self.order else None, self.zero if self.order > 1 else None, self.none, self.none)

    def jet(self, expression: Expression) -> Jet:
        if expression not in self.known:
            self.known[expression] = self._evaluate(expression)
        return self.known[expression]

    def _evaluate(self, expression: Expression) -> Jet:
        if isinstance(expression, float):
            return self._smooth(constant(expression), self.zero)
        assert isinstance(expression, tuple), "x is known"
        operation, *operands = expression
        if operation in ANALYTIC:
            return analytic(str(operation), self.jet(operands[0]))
        found: Jet = getattr(self, f"_{operation}")(*operands)
        return found

    def _add(self, a: Expression, b: Expression) -> Jet:
        return self.jet(a) + self.jet(b)

    def _mul(self, a: Expression, b: Expression) -> Jet:
        return self.jet(a) * self.jet(b)

    def _pow(self, a: Expression, exponent: float) -> Jet:
        """A pole where the exponent is negative and a is zero; of a >= 0 only where it is no whole number."""
        u = self.jet(a)
        v = u.value
        if exponent == int(exponent):
            pole = self._touches((v.lo < 0) & (v.hi > 0), (v.lo <= 0) & (v.hi >= 0), u)
            broken = pole if exponent < 0 else _NO
        else:
            # At zero, roots are infinitely steep; higher powers are not.
            end = v.lo <= 0 if exponent < 1 else v.lo < 0
            broken = self._touches(v.lo < 0, end, u) if exponent < 0 else end if self.points else v.lo < 0
        value, slope, curvature = (_derivative_of_power(v, exponent, order) for order in range(3))
        return u.into(value(), slope, curvature, broken=broken)

    def _log(self, a: Expression) -> Jet:
        u = self.jet(a)
        positive = Interval(np.maximum(u.value.lo, 0.0), np.maximum(u.value.hi, 0.0))
        return u.into(
            intervals.log(u.value),
            lambda: intervals.reciprocal(positive),
            lambda: -intervals.power(intervals.reciprocal(positive), 2.0),
            broken=self._touches(u.value.lo < 0, u.value.lo <= 0, u),
        )

    def _touches(self, inside: Array, at_end: Array, u: Jet) -> Array:
        """Whether u takes a forbidden value inside the cell, or at the point."""
        found: Array = at_end if self.points else inside | (at_end & ~u.strict)
        return found

    def _clamp(self, a: Expression, low: float, high: float) -> Jet:
        """Shapes: low <= high."""
        u, least, largest = self.jet(a), constant(low), constant(high)
        v = u.value
        if self.points:
            inside = (v.lo > least.hi) & (v.hi < largest.lo)
            outside = (v.hi < least.lo) | (v.lo > largest.hi)
        else:
            # On a cell where u only touches an end, the clamp is u itself, or constant.
            outside = (v.hi <= least.lo) | (v.lo >= largest.hi)
            inside = (v.lo >= least.hi) & (v.hi <= largest.lo) & ~outside
        slope = ONE.where(inside, ZERO.where(outside, ZERO.hull(ONE)))
        value = intervals.minimum(intervals.maximum(v, least), largest)
        return u.into(value, lambda: slope, lambda: ZERO, kinked=~(inside | outside))

    def _max(self, a: Expression, b: Expression) -> Jet:
        u, v = self.jet(a), self.jet(b)
        found = u.choose(*self._order(u.value - v.value), v, continuous=True)
        value = found.value.meet(intervals.maximum(u.value, v.value))
        return Jet(value, found.slope, found.curvature, found.kinked, found.broken)

    def _abs(self, a: Expression) -> Jet:
        u = self.jet(a)
        above, below = self._order(u.value)
        slope = ONE.where(above, (-ONE).where(below, _SIGN))
        value = Interval(np.abs(u.value.nearest), u.value.magnitude)
        return u.into(value, lambda: slope, lambda: ZERO, kinked=~(above | below))

    def _order(self, difference: Interval) -> tuple[Array, Array]:
        """Where the larger of two is the first one, or the second: on cells where they are equal, either will do."""
        if self.points:
            return difference.lo > 0, difference.hi < 0
        above: Array = difference.lo >= 0
        return above, (difference.hi <= 0) & ~above

    def _sign(self, a: Expression) -> Jet:
        u = self.jet(a)
        above, below = self._signs(u.value, u.strict, None)
        value = ONE.where(above, (-ONE).where(below, _SIGN))
        return u.into(value, lambda: ZERO, lambda: ZERO, broken=~(above | below))

    def _where(self, condition: tuple[Any, ...], a: Expression, b: Expression, continuous: bool) -> Jet:
        return self.jet(a).choose(*self._condition(condition), self.jet(b), continuous=continuous)

    def _condition(self, condition: tuple[Any, ...]) -> tuple[Array, Array]:
        """Where a condition surely holds, but for the ends of a cell, and where it surely does not."""
        kind, *operands = condition
        if kind == "not":
            surely, surely_not = self._condition(operands[0])
            return surely_not, surely
        if kind in ("and", "or"):
            first, second = (self._condition(operand) for operand in operands)
            if kind == "and":
                return first[0] & second[0], first[1] | second[1]
            return first[0] | second[0], first[1] & second[1]
        difference = self.jet(operands[0]) + self.jet(operands[1]).into(
            -self.jet(operands[1]).value, lambda: -ONE, lambda: ZERO
        )
        return self._signs(difference.value, difference.strict, kind == "ge")

    def _signs(self, value: Interval, strict: Array, zero_above: bool | None) -> tuple[Array, Array]:
        """Where a value is above zero, and where below; zero itself on neither side unless it is said.

        On a cell, zeros do not count where the value is strictly monotone: they are at its ends.
        """
        if self.points:
            return value.lo > 0, value.hi < 0
        above = (value.lo > 0) | ((value.lo >= 0) & (strict | (zero_above is True)))
        below = (value.hi < 0) | ((value.hi <= 0) & (strict | (zero_above is False)))
        return above, below & ~above


def constant(number: float) -> Interval:
    """A number written in the code, as networks of float64 and of float32 read it."""
    rounded = float(np.float32(number)) if abs(number) < 3e38 else number
    return Interval.of(min(number, rounded), max(number, rounded))


def _derivative_of_power(x: Interval, exponent: float, order: int) -> Callable[[], Interval]:
    """x^p, or its derivative of this order."""
    exponents = constant(exponent)

    def derivative() -> Interval:
        factor = ONE
        for i in range(order):
            factor = factor * (exponents - Interval.of(float(i)))
        if (factor.lo == 0) & (factor.hi == 0):
            return ZERO
        # For every x >= 0, powers are monotone in the exponent.
        first, last = (intervals.power(x, float(end) - order) for end in (exponents.lo, exponents.hi))
        return factor * first.hull(last)

    return derivative


# What is smooth on the whole line: value, derivative, second derivative.
ANALYTIC: dict[Any, tuple[Callable[[Interval], Interval], ...]] = {
    "exp": (intervals.exp, intervals.exp, intervals.exp),
    "sigmoid": (
        intervals.sigmoid,
        intervals.sigmoid_slope,
        lambda u: -(intervals.sigmoid_slope(u) * intervals.tanh(u * Interval.of(0.5))),
    ),
    "softplus": (intervals.softplus, intervals.sigmoid, intervals.sigmoid_slope),
    "tanh": (intervals.tanh, intervals.tanh_slope, lambda u: -(_TWO * intervals.tanh(u) * intervals.tanh_slope(u))),
    "erf": (intervals.erf, intervals.erf_slope, lambda u: -(_TWO * u * intervals.erf_slope(u))),
    "erfc": (intervals.erfc, lambda u: -intervals.erf_slope(u), lambda u: _TWO * u * intervals.erf_slope(u)),
    "sin": (intervals.sin, intervals.cos, lambda u: -intervals.sin(u)),
    "cos": (intervals.cos, lambda u: -intervals.sin(u), lambda u: -intervals.cos(u)),
    "atan": (
        intervals.atan,
        lambda u: intervals.reciprocal(ONE + intervals.power(u, 2.0)),
        lambda u: -(_TWO * u * intervals.power(intervals.reciprocal(ONE + intervals.power(u, 2.0)), 2.0)),
    ),
}


def analytic(operation: str, u: Jet) -> Jet:
    """One of the functions that are smooth on the whole line, after u."""
    value, slope, curvature = ANALYTIC[operation]
    return u.into(value(u.value), lambda: slope(u.value), lambda: curvature(u.value))
