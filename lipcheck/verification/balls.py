"""The same as `matrices`, in balls: phases and products enclosed by python-flint at 128 bits, nothing left to estimate.

With A = mu^2 I - F F* enclosed in balls and any exact L, A is positive semidefinite where A - L L* is diagonally
dominant: each diagonal entry at least the sum of the moduli of the others in its row. L is the Cholesky factor that
float64 finds of A less a small multiple of the identity, taken as the exact numbers that it holds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lipcheck.errors import MissingExtraError
from lipcheck.verification.arithmetic import Array
from lipcheck.verification.geometry import Grid, Symbols

_BITS = 128
# What is taken from the diagonal before the factorisation, relative to mu^2 and for each row: above float64's rounding.
_SPARE = 1e-13


class Balls:
    """Compares matrices with mu in ball arithmetic.

    Errors: MissingExtraError where python-flint is not installed.
    """

    name = "balls"

    def __init__(self) -> None:
        try:
            import flint
        except ImportError as error:
            raise MissingExtraError("--arb needs python-flint; install it with: pip install 'lipcheck[arb]'") from error
        self.flint: Any = flint

    def first_above(self, symbols: Symbols, grid: Grid, mu: float) -> tuple[int, int] | None:
        """A group and row of the grid at which ||F(w)|| <= mu is not shown, None when it is everywhere."""
        flint = self.flint
        scaled = math.ldexp(mu, -symbols.exponent)
        with flint.ctx.workprec(_BITS):
            groups = [[flint.acb_mat(block.tolist()) for block in group] for group in symbols.coefficients]
            for row, index in enumerate(grid.index.tolist()):
                waves = [self._wave(index, exponents, grid) for exponents in symbols.exponents.tolist()]
                for number, parts in enumerate(groups):
                    matrix = parts[0] * waves[0]
                    for part, wave in zip(parts[1:], waves[1:], strict=True):
                        matrix += part * wave
                    if not self._below(matrix, scaled, 0.0):
                        return number, row
        return None

    def _wave(self, index: list[int], exponents: list[int], grid: Grid) -> Any:
        """exp(i pi sum of q (2 j + half) / points), from one exact fraction."""
        turns = self.flint.fmpq(0)
        for j, q, half, points in zip(index, exponents, grid.half, grid.points, strict=True):
            turns += self.flint.fmpq(q * (2 * j + half), points)
        return self.flint.acb(turns).exp_pi_i()

    def matrix_below(self, matrix: Array, mu: float, error: float = 0.0) -> bool:
        """Whether ||M|| <= mu is shown for all M within `error` (in norm) of the given one."""
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        with self.flint.ctx.workprec(_BITS):
            return self._below(self.flint.acb_mat(matrix.astype(np.float64).tolist()), mu, error)

    def _below(self, matrix: Any, mu: float, error: float) -> bool:
        """Whether mu^2 I - M M* is positive semidefinite, mu less the error."""
        flint = self.flint
        if not (0 < mu < math.inf and error < mu):
            return False
        square = (flint.arb(mu) - flint.arb(error)) ** 2
        size = matrix.nrows()
        left = -(matrix * _adjoint(matrix))
        for i in range(size):
            left[i, i] += square
        if size == 1:
            return bool(left[0, 0].real >= 0)
        middle = np.array([[complex(x.mid()) for x in row] for row in left.tolist()])
        middle[range(size), range(size)] -= size * _SPARE * mu * mu
        try:
            factor = flint.acb_mat(np.linalg.cholesky(middle).tolist())
        except (np.linalg.LinAlgError, ValueError, OverflowError):
            return False
        left -= factor * _adjoint(factor)
        return all(self._dominant(row, i) for i, row in enumerate(left.tolist()))

    def _dominant(self, row: list[Any], i: int) -> bool:
        """Whether the diagonal entry is at least the sum of the moduli of the others."""
        others = sum((abs(x) for j, x in enumerate(row) if j != i), self.flint.arb(0))
        return bool(row[i].real >= others)


def _adjoint(matrix: Any) -> Any:
    return matrix.transpose().conjugate()
