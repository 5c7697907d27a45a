"""||M|| <= mu, shown for matrices in float64: the one argument behind every proof.

With G the computed Gram matrix, e >= ||G - M M*|| and any matrix L,

    mu^2 I - M M* = s I + L L* + E - (M M* - G),    E = (mu^2 - s) I - G - L L*,

is positive semidefinite as soon as ||E|| + e <= s. A Cholesky factorisation finds such an L; it is not trusted, since E
is computed, and its own rounding added. A complex product of sums is two real ones of twice the length, and a modulus
at most sqrt(2) times the larger of its parts' bounds: hence the factors 1.5 gamma(2 n).
"""

from __future__ import annotations

import math

import numpy as np

from lipcheck.verification.arithmetic import PHASE, TINY, UNIT, Array, down, exponent_of, gamma, times_power, up
from lipcheck.verification.geometry import Grid, Symbols, grid_waves

_CHUNK = 96 << 20
_COLUMNS = 4096
_STRIP = 128


def below(gram: Array, mu: Array, error: Array) -> Array:
    """Where it is shown that every Hermitian H with ||H - gram|| <= error is at most mu^2 I.

    A Hermitian matrix is given by its lower triangle, on and below the diagonal. What stands above it is not read.
    Shapes: gram (n, r, r), overwritten, mu and error (n,); result (n,) of bool. What is undefined counts as not shown.
    """
    r = gram.shape[1]
    rounding = 1.5 * gamma(2 * r + 4) if np.iscomplexobj(gram) else gamma(r + 2)
    target = mu * mu * (1 - 16 * UNIT)
    spare = (target * (2 * r * rounding + 32 * UNIT) + error * (1 + 1e-3)) * (1 + 1e-6)
    diagonal = target - spare
    shifted = np.negative(gram, out=gram)
    shifted[:, range(r), range(r)] += diagonal[:, None]
    good = (diagonal > 0) & np.isfinite(shifted).all((1, 2))
    factor = _factors(shifted, good)
    remainder = lower_products(factor, triangular=True)
    remainder -= shifted
    # Entries below the diagonal stand for two, those above it for none.
    counted = 2 * np.tri(r, k=-1) + np.eye(r)
    total = np.sqrt(_weighted_squares(remainder, counted)) * (1 + 8 * UNIT)
    total = total + rounding * _weighted_squares(factor, np.tri(r)) + 4 * UNIT * target
    total = total * (1 + gamma(8 * r * r + 64)) + TINY
    shown: Array = good & (total + error <= spare * (1 - 8 * UNIT))
    return shown


def lower_products(rows: Array, *, triangular: bool = False) -> Array:
    """The lower triangle of M M* of each matrix, strip by strip; `triangular` says that M is zero above its diagonal.

    Shapes: rows (n, r, c); result (n, r, r), zero in what is left out above the strips.
    """
    n, r, _ = rows.shape
    result = np.zeros((n, r, r), dtype=rows.dtype)
    for low in range(0, r, _STRIP):
        high = min(low + _STRIP, r)
        across = slice(0, high) if triangular else slice(None)
        np.matmul(
            rows[:, low:high, across],
            rows[:, :high, across].conj().swapaxes(1, 2),
            out=result[:, low:high, :high],
        )  # fmt: skip
    return result


def _weighted_squares(matrices: Array, weights: Array) -> Array:
    """The sum of weight |entry|^2 of each matrix."""
    found: Array = np.einsum("nij,nij,ij->n", matrices.real, matrices.real, weights)
    if np.iscomplexobj(matrices):
        found = found + np.einsum("nij,nij,ij->n", matrices.imag, matrices.imag, weights)
    return found


def _factors(matrices: Array, good: Array) -> Array:
    """Lower triangular L with L L* near the matrix, zero and `good` unset where there is none."""
    factor = np.zeros_like(matrices)
    if good.all():
        try:
            return np.linalg.cholesky(matrices)
        except np.linalg.LinAlgError:
            pass
    for one in np.nonzero(good)[0]:
        try:
            factor[one] = np.linalg.cholesky(matrices[one])
        except np.linalg.LinAlgError:
            good[one] = False
    return factor


def norms_below(matrices: Array, mu: Array, size: Array, error: Array) -> Array:
    """Where ||M|| <= mu is shown for all M within `error` (in norm) of the given ones.

    Shapes: matrices (n, r, c) with r <= c; mu, size and error (n,), `size` at least the norm of |M|; result (n,).
    """
    c = matrices.shape[2]
    left = (mu - error) * (1 - 4 * UNIT)
    rounding = 1.5 * gamma(2 * c + 4) if np.iscomplexobj(matrices) else gamma(c + 2)
    product = rounding * size * size * (1 + 1e-6) + TINY
    shown: Array = below(lower_products(matrices), left, product) & (left > 0)
    return shown


def matrix_below(matrix: Array, mu: float, error: float = 0.0) -> bool:
    """Whether ||M|| <= mu is shown for one real matrix and all within `error` (in norm) of it; it may be float32."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    exponent = exponent_of(matrix)
    rows, columns = matrix.shape
    gram, squares = np.zeros((rows, rows)), 0.0
    across, along = np.zeros(rows), 0.0
    for start in range(0, columns, _COLUMNS):
        block = times_power(matrix[:, start : start + _COLUMNS].astype(np.float64), -exponent)
        gram += block @ block.T
        absolute = np.abs(block)
        squares, along = squares + float((block**2).sum()), max(along, float(absolute.sum(0).max()))
        across += absolute.sum(1)
    size = math.sqrt(min(squares, along * float(across.max(initial=0.0)))) * (1 + gamma(2 * matrix.size + 64)) + TINY
    scaled = down(math.ldexp(mu, -exponent), 2)
    left = (scaled - up(math.ldexp(error, -exponent), 2)) * (1 - 4 * UNIT)
    product = gamma(columns + columns // _COLUMNS + 4) * size * size * (1 + 1e-6) + TINY
    shown = below(gram[None], np.array([left]), np.array([product]))
    return left > 0 and bool(shown[0])


def first_above(symbols: Symbols, grid: Grid, mu: float) -> tuple[int, int] | None:
    """The first group and row of the grid at which ||F(w)|| <= mu is not shown, None when it is everywhere."""
    groups, taps, rows, columns = symbols.coefficients.shape
    scaled = math.ldexp(mu, -symbols.exponent) * (1 - 4 * UNIT) - TINY
    each = 16 * (2 * rows * columns + 4 * rows * rows)
    at_once = max(1, min(len(grid.index), _CHUNK // each))
    together = max(1, min(groups, _CHUNK // (each * at_once)))
    for g in range(0, groups, together):
        flat = symbols.coefficients[g : g + together].reshape(-1, taps, rows * columns)
        size = symbols.size[g : g + together]
        # The sum over q and its phases: what F is off by, as a share of the sum of the |P_q|.
        share = 1.5 * (gamma(taps + 4) + PHASE) * (1 + 1e-6)
        for low in range(0, len(grid.index), at_once):
            wave = grid_waves(grid.index[low : low + at_once], grid.half, grid.points, symbols.exponents)
            matrices = np.empty((len(flat), len(wave), rows * columns), dtype=np.complex128)
            matrices.real, matrices.imag = wave.real @ flat, wave.imag @ flat
            sizes = np.repeat(size, len(wave))
            bounds = np.full(len(sizes), scaled)
            shown = norms_below(matrices.reshape(-1, rows, columns), bounds, sizes * (1 + 1e-9), sizes * share)
            if not shown.all():
                group, place = divmod(int(np.argmin(shown)), len(wave))
                return g + group, low + place
    return None
