"""Scalar functions far out on the line: enclosures of value and slope on a half line.

x is a multiple of a variable y >= FAR. A germ is p_0 + p_1 y + ... + p_d y^d + r with coefficients in intervals, which
may depend on y, and a rest of |r| <= exp(k + n ln y - c y). Sums and products of germs are germs, and so are functions
with limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipcheck.maps import intervals
from lipcheck.maps.intervals import EVERYTHING, ONE, ZERO, Interval
from lipcheck.maps.jets import Expression, constant, jet

FAR = 2.0**300
_LOG_FAR = 300 * math.log(2.0)
_SIGN = Interval.of(-1.0, 1.0)
_HIGHEST = 12
Rest = tuple[float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Germ:
    """The polynomial's coefficients from degree 0 on, and the rest: k, n and c, None for zero."""

    polynomial: tuple[Interval, ...]
    rest: Rest | None = None

    def __add__(self, other: Germ) -> Germ:
        longer, shorter = sorted((self.polynomial, other.polynomial), key=len, reverse=True)
        added = [a + b for a, b in zip(longer, shorter, strict=False)] + list(longer[len(shorter) :])
        return Germ(_trimmed(added), _either(self.rest, other.rest))

    def __mul__(self, other: Germ) -> Germ:
        product = [ZERO] * (len(self.polynomial) + len(other.polynomial) - 1)
        for i, a in enumerate(self.polynomial):
            for j, b in enumerate(other.polynomial):
                product[i + j] = product[i + j] + a * b
        rest = _times(self.rest, other.rest)
        rest = _either(rest, _times(self.rest, _size(other.polynomial)))
        rest = _either(rest, _times(other.rest, _size(self.polynomial)))
        return Germ(_trimmed(product), rest)

    @property
    def largest_rest(self) -> float:
        """At least |r|; inf where it has no bound that falls."""
        return 0.0 if self.rest is None else _largest(self.rest, 0)

    def lead(self) -> tuple[float, int, Interval] | None:
        """A sign s, a degree d >= 1 and a, with s g = a y^d for a positive a in the interval; None if there is none."""
        degree = len(self.polynomial) - 1
        if degree < 1:
            return None
        leading = self.polynomial[-1]
        sign = 1.0 if leading.lo > 0 else -1.0 if leading.hi < 0 else 0.0
        below = sum(float(p.magnitude) * math.exp((i - degree) * _LOG_FAR) for i, p in enumerate(self.polynomial[:-1]))
        below += 0.0 if self.rest is None else _largest(self.rest, degree)
        below = below * (1 + 1e-9) + 1e-300
        factor = leading * Interval.of(sign) + Interval.of(-below, below)
        return (sign, degree, factor) if sign and factor.lo > 0 and math.isfinite(float(factor.hi)) else None

    def enclosure(self) -> Interval:
        """All values, a half line where it grows."""
        if len(self.polynomial) == 1 and math.isfinite(self.largest_rest):
            return self.polynomial[0] + Interval.of(-self.largest_rest, self.largest_rest)
        found = self.lead()
        if found is None:
            return EVERYTHING
        return Interval.of(0.0, math.inf) if found[0] > 0 else Interval.of(-math.inf, 0.0)


def _trimmed(polynomial: Sequence[Interval]) -> tuple[Interval, ...]:
    degree = len(polynomial) - 1
    while degree > 0 and polynomial[degree].lo == 0 and polynomial[degree].hi == 0:
        degree -= 1
    return tuple(polynomial[: degree + 1])


def _up(k: float) -> float:
    return k + 1e-9 * (1 + abs(k))


def _either(a: Rest | None, b: Rest | None) -> Rest | None:
    """A bound of the sum."""
    if a is None or b is None:
        return b if a is None else a
    return (_up(max(a[0], b[0]) + math.log(2.0)), max(a[1], b[1]), min(a[2], b[2]))


def _times(a: Rest | None, b: Rest | None) -> Rest | None:
    if a is None or b is None:
        return None
    return (_up(a[0] + b[0]), a[1] + b[1], (a[2] + b[2]) * (1 - 1e-9))


def _size(polynomial: Sequence[Interval]) -> Rest | None:
    """A bound of the polynomial itself: y is above one."""
    total = sum(float(p.magnitude) for p in polynomial)
    return (_up(math.log(total)), float(len(polynomial) - 1), 0.0) if 0 < total < math.inf else _nothing(total)


def _nothing(total: float) -> Rest | None:
    return None if total == 0 else (math.inf, 0.0, 0.0)


def _largest(rest: Rest, degree: int) -> float:
    """At least |r| / y^degree for all y >= FAR; inf where that need not fall."""
    k, n, c = rest
    n -= degree
    if not math.isfinite(k) or n > c * FAR * (1 - 1e-9):
        return math.inf
    exponent = _up(k + n * _LOG_FAR + 1e-9 * abs(n)) - c * FAR * (1 - 1e-9)
    return math.exp(exponent) * (1 + 1e-9) + 1e-300 if exponent < 700 else math.inf


Pair = tuple[Germ, Germ]  # a function and its derivative


def tail(expression: Expression, start: float) -> tuple[Interval, Interval]:
    """Enclosures of value and slope for all x beyond the start, a power of two or its negative.

    Everything where nothing is known.
    """
    known: dict[Expression, Pair | None] = {"x": (Germ((ZERO, Interval.of(start / FAR))), Germ((ONE,)))}
    with np.errstate(all="ignore"):
        found = _pair(expression, known)
    return (EVERYTHING, EVERYTHING) if found is None else (found[0].enclosure(), found[1].enclosure())


def _pair(expression: Expression, known: dict[Expression, Pair | None]) -> Pair | None:
    if expression not in known:
        found = _germs(expression, known)
        if found is not None and len(found[0].polynomial) > _HIGHEST:
            found = None
        known[expression] = found
    return known[expression]


def _germs(expression: Expression, known: dict[Expression, Pair | None]) -> Pair | None:
    if isinstance(expression, float):
        return Germ((constant(expression),)), Germ((ZERO,))
    assert isinstance(expression, tuple), "x is known"
    operation, *operands = expression
    if operation == "where":
        chosen = _sign_of(operands[0], known)
        return None if chosen is None else _pair(operands[1] if chosen else operands[2], known)
    first = _pair(operands[0], known)
    if operation in ("add", "mul", "max"):
        second = _pair(operands[1], known)
        if first is None or second is None:
            return None
        return _joined(operation, first, second)
    if operation == "log":
        return None if first is None else _logarithm(first)
    if first is None:
        return None
    if operation == "pow":
        return _powered(*first, operands[1])
    return _after(expression, first)


def _joined(operation: str, first: Pair, second: Pair) -> Pair | None:
    (u, du), (v, dv) = first, second
    if operation == "add":
        return u + v, du + dv
    if operation == "mul":
        return u * v, du * v + u * dv
    sign = _definite(u + v * Germ((-ONE,)))
    return None if not sign else first if sign > 0 else second


def _definite(u: Germ) -> float:
    """The sign that u has everywhere, 0 where it is not known."""
    found = u.lead()
    if found is not None:
        return found[0]
    whole = u.enclosure()
    return 1.0 if whole.lo > 0 else -1.0 if whole.hi < 0 else 0.0


def _sign_of(condition: tuple[Any, ...], known: dict[Expression, Pair | None]) -> bool | None:
    """Whether the condition holds everywhere, None where that is not known."""
    kind, *operands = condition
    if kind == "not":
        found = _sign_of(operands[0], known)
        return None if found is None else not found
    if kind in ("and", "or"):
        parts = [_sign_of(operand, known) for operand in operands]
        deciding = kind == "or"
        return deciding if deciding in parts else None if None in parts else not deciding
    pairs = [_pair(operand, known) for operand in operands]
    if pairs[0] is None or pairs[1] is None:
        return None
    sign = _definite(pairs[0][0] + pairs[1][0] * Germ((-ONE,)))
    return None if not sign else sign > 0


def _logarithm(u: Pair) -> Pair | None:
    """The logarithm grows, more slowly than any power; its derivative is 1 / u."""
    inverse = _inverse(u[0])
    if inverse is None or _definite(u[0]) <= 0:
        return None
    whole = u[0].enclosure()
    if math.isfinite(float(whole.hi)):
        return Germ((intervals.log(whole),)), inverse * u[1]
    found = u[0].lead()
    if found is None:
        return None
    # |ln(a y^d)| <= (|ln a| + d) y.
    _, degree, factor = found
    return Germ((ZERO,), (_up(math.log(_log_size(factor) + degree)), 1.0, 0.0)), inverse * u[1]


def _log_size(positive: Interval) -> float:
    """At least |ln a|, for every a in it."""
    return max(abs(math.log(float(end))) for end in (positive.lo, positive.hi)) * (1 + 1e-9) + 1e-9


def _inverse(u: Germ) -> Germ | None:
    """1 / u: of order y^-d where u grows, 1 / p_0 and a rest where it has a limit."""
    found = u.lead()
    if found is not None:
        _, degree, factor = found
        return Germ((ZERO,), (_up(-math.log(float(factor.lo))), float(-degree), 0.0))
    whole = u.enclosure()
    if not (whole.lo > 0 or whole.hi < 0) or len(u.polynomial) > 1:
        return None
    limit = u.polynomial[0]
    if u.rest is None or not (limit.lo > 0 or limit.hi < 0):
        return Germ((intervals.reciprocal(whole),))
    # |1 / u - 1 / p| = |r| / |u p|.
    least = float(np.abs(whole.nearest)) * float(np.abs(limit.nearest))
    if least == 0.0:
        return None
    return Germ((intervals.reciprocal(limit),), _times(u.rest, (_up(-math.log(least)), 0.0, 0.0)))


def _raised(u: Germ, exponent: float) -> Germ | None:
    """u^p: the product for small whole p, else a bound of order y^(d p), else the power of what u has for values."""
    if exponent == int(exponent) and 0 <= exponent <= _HIGHEST:
        product = Germ((ONE,))
        for _ in range(int(exponent)):
            product = product * u
        return product
    if exponent == int(exponent) and -_HIGHEST <= exponent < 0:
        inverse = _inverse(u)
        return None if inverse is None else _raised(inverse, -exponent)
    found = u.lead()
    if found is not None:
        sign, degree, factor = found
        if sign < 0 and exponent != int(exponent):
            return None
        exponents = constant(exponent)
        size = _log_size(factor) * float(exponents.magnitude)
        return Germ((ZERO,), (_up(size), degree * float(exponents.hi), 0.0))
    whole = u.enclosure()
    if not whole.lo > 0 or not math.isfinite(float(whole.hi)):
        return None
    ends = constant(exponent)
    first, last = (intervals.power(whole, float(end)) for end in (ends.lo, ends.hi))
    return Germ((first.hull(last),))


def _powered(u: Germ, du: Germ, exponent: float) -> Pair | None:
    value, below = _raised(u, exponent), _raised(u, exponent - 1)
    if value is None or below is None:
        return None
    return value, Germ((constant(exponent),)) * below * du


def _after(expression: tuple[Any, ...], inner: Pair) -> Pair | None:
    """A function of one variable after u: by its limit where u grows, by its enclosure where u is bounded."""
    (u, du), operation = inner, expression[0]
    found = u.lead()
    if found is not None:
        sign, degree, factor = found
        # |u| >= rate y.
        rate = min(float(factor.lo) * math.exp((degree - 1) * _LOG_FAR) * (1 - 1e-9), 1e300)
        limit = _limit(expression, u, sign, rate)
        return None if limit is None else (limit[0], limit[1] * du)
    whole = u.enclosure()
    if not math.isfinite(float(whole.magnitude)) or (operation == "sign" and whole.lo <= 0 <= whole.hi):
        return None
    # The cell of values, as if it were one of x: kinks inside count with both slopes.
    outer = jet((operation, "x", *expression[2:]), whole)
    if bool(outer.broken) or outer.slope is None or outer.curvature is None:
        return None
    # F(p + r) is F(p) + F' r, where u has a limit.
    there = jet((operation, "x", *expression[2:]), u.polynomial[0])
    assert there.slope is not None, "cells have both derivatives"
    value = Germ((there.value,), _times(u.rest, _size((outer.slope,))))
    slope = Germ((there.slope,), _times(u.rest, _size((outer.curvature,))))
    return value, (Germ((outer.slope,)) if bool(outer.kinked) else slope) * du


def _limit(expression: tuple[Any, ...], u: Germ, sign: float, rate: float) -> Pair | None:
    """The function and its derivative at u, as u goes to infinity with this sign, |u| >= rate y."""
    operation, operands = expression[0], expression[2:]
    decay: Rest = (0.0, 0.0, rate)
    zero, one = Germ((ZERO,)), Germ((ONE,))
    if operation not in ("clamp", "abs", "sign") and rate * FAR < 4:
        return None
    if operation == "exp":
        return (Germ((ZERO,), decay),) * 2 if sign < 0 else None
    if operation == "sigmoid":
        return Germ((ONE if sign > 0 else ZERO,), decay), Germ((ZERO,), decay)
    if operation == "softplus":
        return (u + Germ((ZERO,), decay), Germ((ONE,), decay)) if sign > 0 else (Germ((ZERO,), decay),) * 2
    if operation in ("tanh", "erf", "erfc"):
        # 1 - tanh v, sech^2 v, 1 - erf v, erf' v: all below 4 exp(-v) for v >= 4.
        decay = (_up(math.log(4.0)), 0.0, rate)
        end = sign if operation != "erfc" else 1 - sign
        return Germ((Interval.of(end),), decay), Germ((ZERO,), decay)
    if operation in ("sin", "cos"):
        return Germ((_SIGN,)), Germ((_SIGN,))
    if operation == "atan":
        # pi / 2 - atan v <= 1 / v.
        order: Rest = (_up(-math.log(rate)), -1.0, 0.0)
        half = Interval.of(1.5707963267948963, 1.5707963267948968) * Interval.of(sign)
        return Germ((half,), order), Germ((ZERO,), _times(order, order))
    if operation == "abs":
        return u * Germ((Interval.of(sign),)), Germ((Interval.of(sign),))
    if operation == "sign":
        return Germ((Interval.of(sign),)), zero
    if operation == "clamp":
        low, high = (constant(float(end)) for end in operands)
        end_reached = high if sign > 0 else low
        if math.isinf(float(end_reached.lo)) or math.isinf(float(end_reached.hi)):
            other = float((low if sign > 0 else high).magnitude)
            return (u, one) if not math.isfinite(other) or rate * FAR > other * (1 + 1e-9) else None
        return (Germ((end_reached,)), zero) if rate * FAR > float(end_reached.magnitude) * (1 + 1e-9) else None
    raise AssertionError(f"{operation} is no function of one variable")
