"""Expressions of one variable: constructors that keep them in a form whose enclosures are tight.

What is rewritten is equal in real arithmetic: x x is a square, x / (1 + exp(-x)) is x s(x), 1 + tanh(u) is 2 s(2 u).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, TypeGuard

import numpy as np

from lipcheck.maps.continuity import meet
from lipcheck.maps.jets import Expression

X: Expression = "x"
Condition = tuple[Any, ...]


def add(a: Expression, b: Expression) -> Expression:
    for one, other in ((a, b), (b, a)):
        if one == 0.0:
            return other
        if isinstance(one, float) and one in (1.0, -1.0) and (found := _beside_one(one, other)) is not None:
            return found
    if isinstance(a, float) and isinstance(b, float):
        return _folded(a, b, a + b, "add")
    return ("add", a, b)


def _beside_one(one: float, other: Expression) -> Expression | None:
    """1 + tanh(u), 1 + erf(u), 1 - s(u), and their negatives: what vanishes on one side, without cancellation."""
    factor, u = 1.0, other
    if _is(other, "mul") and isinstance(other[1], float):
        factor, u = other[1], other[2]
    if _is(u, "sigmoid") and factor == -one:
        return mul(one, sigmoid(negative(u[1])))
    sign = factor * one
    if abs(sign) == 1.0 and _is(u, "tanh"):
        return mul(one, mul(2.0, sigmoid(mul(2.0, mul(sign, u[1])))))
    if abs(sign) == 1.0 and _is(u, "erf"):
        return mul(one, ("erfc", mul(-sign, u[1])))
    return None


def negative(a: Expression) -> Expression:
    return mul(-1.0, a)


def subtract(a: Expression, b: Expression) -> Expression:
    return 0.0 if a == b else add(a, negative(b))


def mul(a: Expression, b: Expression) -> Expression:
    """Numbers come first."""
    if isinstance(b, float) and not isinstance(a, float):
        a, b = b, a
    if a == 1.0:
        return b
    if isinstance(a, float) and isinstance(b, float):
        return _folded(a, b, a * b, "mul")
    if a == -1.0 and _is(b, "mul") and isinstance(b[1], float):
        return mul(-b[1], b[2])
    if _is_power_of_two(a) and _is(b, "mul") and isinstance(b[1], float) and 1e-30 < abs(a * b[1]) < 1e30:
        return mul(a * b[1], b[2])
    for one, other in ((a, b), (b, a)):
        if _is(one, "sign") and one[1] == other:
            return absolute(other)
        if _is(one, "where") and isinstance(one[2], float) and isinstance(one[3], float):
            # A truth value times a function chooses it.
            return where(one[1], mul(one[2], other), mul(one[3], other))
    base, first = _power(a)
    other, second = _power(b)
    # x^p x^q is x^(p + q), for whole exponents of one sign: with others the domain changes.
    if base == other and base != 0.0 and not isinstance(base, float) and first * second > 0 and _whole(first, second):
        return power(base, first + second)
    return ("mul", a, b)


def _is_power_of_two(a: Expression) -> TypeGuard[float]:
    """Products with it are exact, unless they leave the range."""
    return isinstance(a, float) and math.isfinite(a) and abs(math.frexp(a)[0]) == 0.5


def _folded(a: float, b: float, result: float, operation: str) -> Expression:
    """Two numbers as one where that is exact, in float32 as well."""
    if not _single(a, b, result):
        return (operation, a, b)
    exact = Fraction(a) + Fraction(b) if operation == "add" else Fraction(a) * Fraction(b)
    return result if Fraction(result) == exact else (operation, a, b)


def _single(*numbers: float) -> bool:
    """Whether float32 holds them as they are."""
    return all(abs(number) < 3e38 and float(np.float32(number)) == number for number in numbers)


def _power(a: Expression) -> tuple[Expression, float]:
    if _is(a, "pow"):
        return a[1], float(a[2])
    return a, 1.0


def _whole(*numbers: float) -> bool:
    return all(number == int(number) for number in numbers)


def _is(a: Expression, operation: str) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(a, tuple) and a[0] == operation


def power(a: Expression, exponent: float) -> Expression:
    if exponent == 0.0:
        return 1.0
    if exponent == 1.0:
        return a
    if _is(a, "pow") and (a[2] != int(a[2]) or _whole(a[2], exponent)):
        # With a root inside, the base is not negative.
        product = Fraction(a[2]) * Fraction(exponent)
        if _single(a[2], exponent) and _single(float(product)) and Fraction(float(product)) == product:
            return power(a[1], float(product))
    if exponent == 2.0 and _is(a, "sin"):
        return add(0.5, mul(-0.5, ("cos", mul(2.0, a[1]))))
    if exponent == 2.0 and _is(a, "cos"):
        return add(0.5, mul(0.5, ("cos", mul(2.0, a[1]))))
    if exponent == 2.0 and _is(a, "abs"):
        return power(a[1], 2.0)
    if exponent < 0 and (denominator := _beside_exponential(a)) is not None:
        return power(sigmoid(negative(denominator)), -exponent)
    if exponent < 0 and _is(a, "exp"):
        return exponential(mul(exponent, a[1])) if _whole(exponent) else ("pow", a, exponent)
    return ("pow", a, exponent)


def _beside_exponential(a: Expression) -> Expression | None:
    """u where the expression is 1 + exp(u)."""
    if not (_is(a, "add") and 1.0 in a[1:]):
        return None
    other: Expression = a[2] if a[1] == 1.0 else a[1]
    if not _is(other, "exp"):
        return None
    inner: Expression = other[1]
    return inner


def divide(a: Expression, b: Expression) -> Expression:
    if _is_power_of_two(b):
        return mul(a, 1.0 / b)
    denominator = _beside_exponential(b)
    if denominator is not None and a == ("exp", denominator):
        return sigmoid(denominator)
    return mul(a, power(b, -1.0))


def exponential(a: Expression) -> Expression:
    return ("exp", a)


def logarithm(a: Expression) -> Expression:
    """log(1 + exp(u)) is softplus, log(s(u)) its negative mirror image."""
    denominator = _beside_exponential(a)
    if denominator is not None:
        return ("softplus", denominator)
    return negative(("softplus", negative(a[1]))) if _is(a, "sigmoid") else ("log", a)


def sigmoid(a: Expression) -> Expression:
    return ("sigmoid", a)


def softplus(a: Expression, beta: float = 1.0) -> Expression:
    return divide(("softplus", mul(beta, a)), beta)


def clamp(a: Expression, low: float, high: float) -> Expression:
    """As torch: the upper end wins where the two have crossed."""
    return ("clamp", a, low, high) if low <= high else high


def maximum(a: Expression, b: Expression) -> Expression:
    if isinstance(a, float) and not isinstance(b, float):
        return clamp(b, a, math.inf)
    return clamp(a, b, math.inf) if isinstance(b, float) else ("max", a, b)


def minimum(a: Expression, b: Expression) -> Expression:
    return negative(maximum(negative(a), negative(b)))


def relu(a: Expression) -> Expression:
    return clamp(a, 0.0, math.inf)


def absolute(a: Expression) -> Expression:
    return ("abs", a)


def gelu(a: Expression) -> Expression:
    """x Phi(x)."""
    return mul(0.5, mul(a, ("erfc", mul(-math.sqrt(0.5), a))))


def gelu_tanh(a: Expression) -> Expression:
    cubic = add(a, mul(0.044715, power(a, 3.0)))
    return mul(a, sigmoid(mul(2.0, mul(math.sqrt(2 / math.pi), cubic))))


def silu(a: Expression) -> Expression:
    return mul(a, sigmoid(a))


def mish(a: Expression) -> Expression:
    return mul(a, ("tanh", ("softplus", a)))


def hardsigmoid(a: Expression) -> Expression:
    return divide(clamp(add(a, 3.0), 0.0, 6.0), 6.0)


def where(condition: Condition | bool, a: Expression, b: Expression) -> Expression:
    """One of two functions; whether they meet where the condition changes is proved here, by exact arithmetic."""
    if isinstance(condition, bool):
        return a if condition else b
    if a == b:
        return a
    softened = _softplus_by_threshold(condition, a, b)
    if softened is not None:
        return softened
    return ("where", condition, a, b, meet(condition, a, b))


# Above its threshold softplus is replaced by x: the jump there is below 3e-7 at 15, an artefact of evaluation.
_SMALLEST_THRESHOLD = 15.0


def _softplus_by_threshold(condition: Condition, a: Expression, b: Expression) -> Expression | None:
    """softplus(u) / beta, written as u / beta above a threshold of u."""
    if condition[0] not in ("gt", "ge") or not isinstance(condition[2], float) or condition[2] < _SMALLEST_THRESHOLD:
        return None
    u = condition[1]
    if b == ("softplus", u) and a == u:
        return b
    beta = u[1] if _is(u, "mul") and isinstance(u[1], float) else 0.0
    if beta > 0 and a == u[2] and b in (divide(("softplus", u), beta), ("mul", ("softplus", u), ("pow", beta, -1.0))):
        return b
    return None


def compare(kind: str, a: Expression, b: Expression) -> Condition | bool:
    """a > b, a >= b, a < b or a <= b."""
    if isinstance(a, float) and isinstance(b, float):
        return {"gt": a > b, "ge": a >= b, "lt": a < b, "le": a <= b}[kind]
    return (kind, a, b) if kind in ("gt", "ge") else ({"lt": "gt", "le": "ge"}[kind], b, a)


def complement(condition: Condition | bool) -> Condition | bool:
    return not condition if isinstance(condition, bool) else ("not", condition)


def both(first: Condition | bool, second: Condition | bool) -> Condition | bool:
    if isinstance(first, bool):
        return second if first else False
    return both(second, first) if isinstance(second, bool) else ("and", first, second)


def either(first: Condition | bool, second: Condition | bool) -> Condition | bool:
    return complement(both(complement(first), complement(second)))


def size(expression: Any) -> int:
    """The number of operations, shared parts counted each time."""
    return 1 + sum(map(size, expression[1:])) if isinstance(expression, tuple) else 0
