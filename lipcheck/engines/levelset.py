"""Where a symbol of one axis peaks, by its level sets: a search, never a claim.

The frequencies at which an eigenvalue of F F* crosses a level are the real zeros of a matrix polynomial. Raising the
level to the largest value midway between two crossings ends at the peak, at a quadratic rate.
Source: Boyd and Balakrishnan 1990; Bruinsma and Steinbuch 1990, for filters of finite length.
"""

from __future__ import annotations

import cmath
import math

import torch
from torch import Tensor

# The polynomial is written in powers of tan: beyond this degree its coefficients spread too far.
LARGEST_DEGREE = 12


def peak_frequency(coefficients: Tensor, exponents: Tensor) -> float:
    """The frequency in [0, pi] where ||F||_2 is largest, to some eight digits.

    Shapes: coefficients (exponents, rows, columns) in float64, exponents (exponents,).
    """
    lags = _autocorrelations(coefficients, exponents)
    grid = torch.arange(8 * len(lags), dtype=torch.float64) * (math.pi / (8 * len(lags) - 1))
    values = _eigenvalues(lags, grid)
    quiet = float(grid[values.argmin()])
    peak, level = float(grid[values.argmax()]), float(values.max())
    if float(values.min()) >= level * (1 - 1e-9):
        return peak  # flat: no frequency is surely below the level
    for _ in range(20):
        crossings = _crossings(lags, level * (1 + 1e-14), quiet)
        if len(crossings) < 2:
            break
        after = torch.cat([crossings[1:], crossings[:1] + 2 * math.pi])
        middles = (crossings + after) / 2
        values = _eigenvalues(lags, middles)
        if float(values.max()) <= level * (1 + 1e-13):
            break
        peak, level = float(middles[values.argmax()]), float(values.max())
    return abs((peak + math.pi) % (2 * math.pi) - math.pi)


def _autocorrelations(coefficients: Tensor, exponents: Tensor) -> Tensor:
    """sum of P_i P_j^T over q_i - q_j = l, for l = -D ... D. Shapes: (2 D + 1, rows, rows)."""
    start = exponents - exponents.min()
    degree, rows = int(start.max()), coefficients.shape[1]
    dense = coefficients.new_zeros(degree + 1, *coefficients.shape[1:]).index_add_(0, start, coefficients)
    lags = coefficients.new_zeros(2 * degree + 1, rows, rows)
    for i in range(degree + 1):
        lags[degree - i : 2 * degree + 1 - i] += dense @ dense[i].T
    return lags


def _eigenvalues(lags: Tensor, frequencies: Tensor) -> Tensor:
    """lambda_max(F F*) at each frequency."""
    degree = len(lags) // 2
    angle = torch.outer(frequencies, torch.arange(-degree, degree + 1, dtype=torch.float64))
    waves = torch.polar(torch.ones_like(angle), angle)
    matrices = torch.einsum("nl,lij->nij", waves, lags.to(waves))
    values: Tensor = torch.linalg.eigvalsh(matrices)[:, -1]
    return values


def _crossings(lags: Tensor, level: float, quiet: float) -> Tensor:
    """The frequencies in (-pi, pi], in order, where the level is an eigenvalue of F F*; some may be spurious.

    With z = exp(i w) = z0 (s - i) / (s + i) the circle becomes the real line and z0, at the frequency `quiet` that is
    below the level, its infinity: the leading coefficient of the polynomial in s is definite.
    """
    degree, rows = len(lags) // 2, lags.shape[1]
    matrices = -lags.to(torch.complex128)
    matrices[degree] += level * torch.eye(rows, dtype=torch.float64)
    base = cmath.exp(1j * quiet)
    polynomial = torch.zeros(2 * degree + 1, rows, rows, dtype=torch.complex128)
    for k in range(2 * degree + 1):
        expanded = torch.ones(1, dtype=torch.complex128)
        for root in [1j] * k + [-1j] * (2 * degree - k):
            expanded = torch.cat([expanded, expanded.new_zeros(1)]) - root * torch.cat(
                [expanded.new_zeros(1), expanded]
            )
        polynomial += expanded[:, None, None] * (base**k * matrices[k])
    leading, rest = polynomial[0], polynomial[1:]
    companion = torch.zeros(2 * degree * rows, 2 * degree * rows, dtype=torch.complex128)
    companion[:rows] = -torch.cat(list(torch.linalg.solve(leading, rest)), dim=1)
    companion[rows:, :-rows] = torch.eye((2 * degree - 1) * rows, dtype=torch.complex128)
    roots = torch.linalg.eigvals(companion)
    real = roots.real[roots.imag.abs() <= 1e-4 * (1 + roots.abs())]
    z = base * (real - 1j) / (real + 1j)
    crossings: Tensor = z.angle().sort().values
    return crossings
