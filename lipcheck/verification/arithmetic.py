"""Float64 numbers as claims, for checking only: outward steps, error constants, powers of two.

u = 2^-53, and gamma(n) = n u / (1 - n u) bounds the relative error of n chained operations in any order, with or
without fused multiply-add (Higham 2002, lemma 3.1).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

UNIT = 2.0**-53
# What gradual underflow can add, with weights scaled to be near one.
TINY = 1e-280
# exp(i pi t / m): the argument is off by at most 10 u, cosine and sine by one unit more each: 14 u in modulus. Up to
# three such factors are multiplied, each product adding less than 4 u.
PHASE = 64 * UNIT


class Refuted(Exception):
    """A stated bound is not proved, for the reason in the text."""


def gamma(n: float) -> float:
    """Relative error of n chained float64 operations, rounded up."""
    assert n < 2**50, "so many operations have no useful error bound"
    return n * UNIT / (1 - n * UNIT) * (1 + 8 * UNIT)


def up(value: float, steps: int = 1) -> float:
    """A float at least `steps` units in the last place above `value`."""
    for _ in range(steps):
        value = math.nextafter(value, math.inf)
    return value


def down(value: float, steps: int = 1) -> float:
    """A float at least `steps` units in the last place below `value`."""
    for _ in range(steps):
        value = math.nextafter(value, -math.inf)
    return value


def exponent_of(values: Array) -> int:
    largest = float(np.abs(values).max(initial=0.0))
    if not math.isfinite(largest):
        raise Refuted("the weights are not finite")
    return math.frexp(largest)[1]


def times_power(values: Array, exponent: int) -> Array:
    """values 2^exponent; exact but where it underflows. In two steps, since 2^1074 is no float."""
    return values * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)


def size_of(absolute: Array, terms: int) -> float:
    """At least the spectral norm of a non-negative matrix whose entries are sums of `terms`: ||.||_F or
    sqrt(||.||_1 ||.||_inf), whichever is smaller."""
    tightest = min(float((absolute**2).sum()), float(absolute.sum(0).max()) * float(absolute.sum(1).max()))
    return math.sqrt(tightest) * (1 + gamma(2 * absolute.size + 2 * terms + 16)) + TINY


def numbers(tensor: Any) -> Array:
    """A tensor of weights as float64 numbers, exactly."""
    result: Array = tensor.detach().cpu().double().numpy()
    return result
