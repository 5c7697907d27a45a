"""Operators that are matrices, or small enough to be formed as one: the norm itself, proved with one factorisation."""

from __future__ import annotations

import math

from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import lanczos
from lipcheck.engines.certified import certify
from lipcheck.engines.gram import matrix_magnitude, scaled_by_power
from lipcheck.engines.settings import Settings
from lipcheck.proof import MatrixProof, Proof, ZeroProof
from lipcheck.symbol import Grid, Symbol, matrix_symbol


def bound_matrices(batch: Tensor, uncertainty: float, settings: Settings) -> Bound:
    """The largest norm of a batch of matrices: one proof each, and the lower end from the same eigenvector.

    Shapes: (batch, rows, columns).
    """
    symbol = matrix_symbol(batch)
    found = certify(
        [symbol], [Grid((1,), (0,))], tolerance=settings.tolerance, device=settings.device, memory=settings.memory
    )[0]
    if found.peak is None:
        return blurred(0.0, found.upper, 0.0, "matrix", ZeroProof())
    matrix = batch[found.peak.group].cpu()
    exponent = math.frexp(float(matrix.abs().max()))[1]
    scaled = scaled_by_power(matrix, -exponent)
    scaled = scaled if scaled.shape[0] <= scaled.shape[1] else scaled.T
    x = scaled.T @ found.peak.vector.cpu().double().real
    magnitude = matrix_magnitude(scaled)
    lower = lanczos.attained(lambda v: scaled @ v, x, terms=scaled.shape[1], magnitude=magnitude)
    lower = rounding.scale_down(lower, exponent)
    # Any matrix of the batch may be the largest once its entries move.
    blur = rounding.multiply_up(uncertainty, symbol_magnitude(symbol)) if uncertainty else 0.0
    return blurred(lower, found.upper, blur, "matrix", MatrixProof(found.mu))


def symbol_magnitude(symbol: Symbol) -> float:
    """At least the norm of the sum of the |P_q|, the largest over the groups: it bounds the operator of |W|."""
    largest = float(symbol.coefficients.abs().max())
    exponent = math.frexp(largest)[1]
    groups = (scaled_by_power(group, -exponent).abs().sum(0) for group in symbol.coefficients)
    return rounding.scale_up(max(matrix_magnitude(group) for group in groups), exponent)


def blurred(lower: float, upper: float, blur: float, method: str, proof: Proof | None = None) -> Bound:
    """The enclosure widened by what the operator's own entries are uncertain by."""
    if blur:
        blur = rounding.up(blur, 4)
        lower, upper = rounding.down(max(0.0, lower - blur)), rounding.up(upper + blur)
    return Bound(min(lower, upper), upper, method, proof=proof)
