"""Norms to fifty digits and more: integers in fixed point, so that sixty rows take a fraction of a second.

A number x is the integer x * 2^BITS, a matrix an array of such. Weights are dyadic, hence exact but for what lies below
2^-BITS of the largest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import mpmath
import numpy as np
import numpy.typing as npt
from torch import Tensor

from lipcheck.bound import Bound
from lipcheck.symbol import Grid, Symbol

BITS = 512
# Every relative error here stays below 2^-BITS * 2^squarings * rows.
_SQUARINGS = 220
_SURE = 1 << (BITS - 340)
# What the references here may be off by, relatively.
REST = Fraction(1, 10**48)

Fixed = npt.NDArray[np.object_]


def norm(matrix: Tensor) -> Fraction:
    """The largest singular value, off by less than REST relatively. Shapes: (rows, columns), any dtype."""
    fixed, exponent = _fixed(matrix)
    return _scaled(_norm(fixed), exponent)


def symbol_norm(coefficients: Tensor, exponents: Tensor, turns: Sequence[Fraction]) -> Fraction:
    """||F(w)|| for w = 2 pi turns, off by less than REST times the norm of the sum of the |P_q|.

    Shapes: coefficients (exponents, rows, columns); exponents (exponents, axes); one number of turns per axis.
    """
    fixed, exponent = _fixed(coefficients)
    real, imaginary = np.zeros(fixed.shape[1:], dtype=object), np.zeros(fixed.shape[1:], dtype=object)
    for block, lags in zip(fixed, exponents.tolist(), strict=True):
        cosine, sine = _wave(sum((t * lag for t, lag in zip(turns, lags, strict=True)), Fraction(0)))
        real, imaginary = real + block * cosine, imaginary + block * sine
    real, imaginary = real >> BITS, imaginary >> BITS
    # A complex matrix as a real one of twice the size has each singular value twice.
    whole = np.block([[real, -imaginary], [imaginary, real]])
    return _scaled(_norm(whole), exponent)


def grid_norm(symbol: Symbol, grid: Grid) -> Fraction:
    """The largest ||F|| over all groups and a grid; as F(-w) = conj F(w), half of the first axis suffices."""
    axes = [
        [Fraction(2 * j + half, 2 * points) for j in range(points) if axis > 0 or 2 * j + half <= points]
        for axis, (points, half) in enumerate(zip(grid.points, grid.half, strict=True))
    ]
    return max(
        symbol_norm(group, symbol.exponents, turns)
        for group in symbol.coefficients
        for turns in itertools.product(*axes)
    )


def assert_encloses(bound: Bound, truth: Fraction) -> None:
    """Both ends, with only the reference's own rounding forgiven."""
    assert_above(bound.upper, truth)
    assert bound.lower == 0 or Fraction(bound.lower) <= truth * (1 + REST), f"{bound} is above {shown(truth)}"


def assert_above(upper: float, truth: Fraction) -> None:
    assert upper == math.inf or truth * (1 - REST) <= Fraction(upper), f"{upper!r} is below {shown(truth)}"


def shown(value: Fraction) -> str:
    with mpmath.workdps(40):
        return mpmath.nstr(mpmath.mpf(value.numerator) / value.denominator, 30)


def float_below(value: Fraction) -> float:
    """The largest float not above a positive number."""
    near = float(value)
    return near if Fraction(near) <= value else math.nextafter(near, 0.0)


def _fixed(values: Tensor) -> tuple[Fixed, int]:
    """The values, divided by a power of two that takes the largest below one, and that power's exponent."""
    numbers = values.detach().double().numpy()
    if not np.isfinite(numbers).all():
        raise ValueError("no number has infinite or undefined digits")
    mantissas, exponents = np.frexp(numbers)
    exponent = int(exponents[numbers != 0].max(initial=-5000))
    fixed = np.empty(numbers.shape, dtype=object)
    for place in np.ndindex(numbers.shape):
        shift = BITS - 53 + int(exponents[place]) - exponent
        integer = int(mantissas[place] * 2.0**53)
        fixed[place] = integer << shift if shift >= 0 else integer >> -shift
    return fixed, exponent if numbers.any() else 0


def _wave(turns: Fraction) -> tuple[int, int]:
    """cos and sin of 2 pi turns, in fixed point."""
    with mpmath.workprec(BITS + 20):
        angle = 2 * mpmath.mpf((turns % 1).numerator) / (turns % 1).denominator
        return tuple(int(mpmath.nint(mpmath.ldexp(f(angle), BITS))) for f in (mpmath.cospi, mpmath.sinpi))


def _norm(matrix: Fixed) -> Fraction:
    """The largest singular value of a matrix in fixed point whose entries are below one."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    gram = (matrix @ matrix.T) >> BITS
    eigenvalue = _largest_eigenvalue(gram)
    return Fraction(math.isqrt(eigenvalue << BITS), 1 << BITS)


def _largest_eigenvalue(gram: Fixed) -> int:
    """Of a positive semidefinite matrix G: tr(G B) for B = G^m / tr(G^m) and m a power of two.

    The eigenvalues p of B are the weights of G's in that mean, which is never above the largest. Once the p that are
    not zero are all alike, their variance sum p^3 - (sum p^2)^2 being nil, only the largest eigenvalue is left in it.
    """
    total = int(np.trace(gram))
    if total == 0:
        return 0
    power = (gram << BITS) // total
    for _ in range(_SQUARINGS):
        square = (power @ power) >> BITS
        second = int(np.trace(square))
        third = int((power * square).sum()) >> BITS
        if abs(third - (second * second >> BITS)) < _SURE * second >> BITS:
            break
        power = (square << BITS) // second
    return int((gram * power).sum()) // int(np.trace(power))


def _scaled(value: Fraction, exponent: int) -> Fraction:
    return value * Fraction(2) ** exponent


def exact_quotient(matrix: Tensor, x: Tensor) -> Fraction:
    """||A x||^2 / ||x||^2 in rationals. Shapes: (rows, columns) and (columns,)."""
    vector = [Fraction(v) for v in x.double().tolist()]
    rows = matrix.double().tolist()
    image = (sum((Fraction(a) * v for a, v in zip(row, vector, strict=True)), Fraction(0)) for row in rows)
    return sum((y * y for y in image), Fraction(0)) / sum((v * v for v in vector), Fraction(0))
