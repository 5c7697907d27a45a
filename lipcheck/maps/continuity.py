"""Whether a function that is chosen by a condition jumps where the condition changes: by exact arithmetic.

A float that is equal to another is no proof: what is compared are rational numbers, once with the numbers of float64
networks and once with those of float32 networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from lipcheck.maps.jets import Expression

Condition = tuple[Any, ...]


def meet(condition: Condition, a: Expression, b: Expression) -> bool:
    """Whether the two are equal wherever the condition can change, with numbers of float64 and those of float32."""
    for single in (False, True):
        for first, second in _comparisons(condition):
            places = _crossings(first, second, single)
            if places is None:
                return False
            for place in places:
                values = _exact(a, place, single), _exact(b, place, single)
                if values[0] is None or values[0] != values[1]:
                    return False
    return True


def _comparisons(condition: Condition) -> Iterator[tuple[Expression, Expression]]:
    if condition[0] in ("gt", "ge"):
        yield condition[1], condition[2]
    else:
        for part in condition[1:]:
            yield from _comparisons(part)


def _crossings(a: Expression, b: Expression, single: bool) -> list[Fraction] | None:
    """The places where a and b are equal, None where they are not known: a of |p x + q| or p x + q, b constant."""
    if isinstance(a, float):
        a, b = b, a
    if not isinstance(b, float):
        return None
    level = _number(b, single)
    if level is None:
        return None
    levels = [level]
    if isinstance(a, tuple) and a[0] == "abs":
        a, levels = a[1], [level, -level]
    line = _line(a, single)
    if line is None or line[0] == 0:
        return None
    return [(value - line[1]) / line[0] for value in levels]


def _line(a: Expression, single: bool) -> tuple[Fraction, Fraction] | None:
    """p and q where the expression is p x + q."""
    if a == "x":
        return Fraction(1), Fraction(0)
    if isinstance(a, float):
        number = _number(a, single)
        return None if number is None else (Fraction(0), number)
    if not isinstance(a, tuple) or a[0] not in ("add", "mul"):
        return None
    first, second = (_line(part, single) for part in a[1:])
    if first is None or second is None:
        return None
    if a[0] == "add":
        return first[0] + second[0], first[1] + second[1]
    return (first[1] * second[0], first[1] * second[1]) if first[0] == 0 else None


def _number(value: float, single: bool) -> Fraction | None:
    if single and abs(value) < 3e38:
        value = float(np.float32(value))
    return Fraction(value) if math.isfinite(value) else None


# Values of the functions that are no polynomials, where they are rational.
_KNOWN: dict[tuple[Any, Any], Fraction | int] = {
    ("exp", 0): 1, ("log", 1): 0, ("sigmoid", 0): Fraction(1, 2), ("tanh", 0): 0, ("erf", 0): 0, ("erfc", 0): 1,
    ("sin", 0): 0, ("cos", 0): 1, ("atan", 0): 0,
}  # fmt: skip


def _exact(a: Expression, x: Fraction, single: bool) -> Fraction | None:
    """The value at x, None where it is not known to be rational."""
    if a == "x":
        return x
    if isinstance(a, float):
        return _number(a, single)
    assert isinstance(a, tuple), "an expression is x, a number or an operation"
    operation, *operands = a
    if operation == "where":
        return None
    u = _exact(operands[0], x, single)
    if operation == "mul":
        v = _exact(operands[1], x, single)
        return None if u is None or v is None else u * v
    if u is None:
        return None
    if operation in ("add", "max"):
        v = _exact(operands[1], x, single)
        return None if v is None else u + v if operation == "add" else max(u, v)
    if operation == "clamp":
        ends = [None if math.isinf(end) else _number(end, single) for end in operands[1:]]
        u = u if ends[0] is None else max(u, ends[0])
        return u if ends[1] is None else min(u, ends[1])
    if operation == "abs":
        return abs(u)
    if operation == "sign":
        return Fraction((u > 0) - (u < 0))
    if operation == "pow":
        exponent = operands[1]
        small = exponent == int(exponent) and abs(exponent) < 16 and (u != 0 or exponent > 0)
        return u ** int(exponent) if small else None
    found = _KNOWN.get((operation, u))
    return None if found is None else Fraction(found)
