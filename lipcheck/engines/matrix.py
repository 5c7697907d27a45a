"""Operators that are matrices, or small enough to be formed as one: the norm itself, proved with one factorisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import lanczos
from lipcheck.engines.certified import certify
from lipcheck.engines.gram import half_product, matrix_magnitude, proves, scaled_by_power
from lipcheck.engines.search import top_eigenpairs
from lipcheck.engines.settings import Settings
from lipcheck.proof import MatrixProof, Proof, ZeroProof
from lipcheck.symbol import Grid, Symbol, matrix_symbol

# Matrices up to this side are given to LAPACK's eigenvalues, larger ones to Lanczos.
_SMALL = 128
_STEPS, _ACCURACY = 200, 1e-13
# Columns whose moduli are held at once.
_COLUMNS = 8192


def bound_matrices(batch: Tensor, uncertainty: float, settings: Settings) -> Bound:
    """The largest norm of a batch of matrices: one proof each, and the lower end from the same eigenvector.

    Shapes: (batch, rows, columns).
    """
    if len(batch) == 1:
        return bound_each([batch[0]], [uncertainty], settings)[0]
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
    lower = _attained(scaled, found.peak.vector, matrix_magnitude(scaled))
    lower = rounding.scale_down(lower, exponent)
    # Any matrix of the batch may be the largest once its entries move.
    blur = rounding.multiply_up(uncertainty, symbol_magnitude(symbol)) if uncertainty else 0.0
    return blurred(lower, found.upper, blur, "matrix", MatrixProof(found.mu))


def bound_each(matrices: Sequence[Tensor], uncertainties: Sequence[float], settings: Settings) -> list[Bound]:
    """The norm of every matrix by itself, all of them in one batch.

    Shapes: (rows, columns) each, the same but for transposition.
    """
    wide = [matrix.detach() if matrix.shape[0] <= matrix.shape[1] else matrix.detach().T for matrix in matrices]
    exponents = [math.frexp(float(matrix.abs().max()))[1] if matrix.numel() else 0 for matrix in wide]
    scaled = torch.stack([scaled_by_power(one.cpu(), -e) for one, e in zip(wide, exponents, strict=True)])
    magnitude = _magnitudes(scaled)
    mu, vectors = _proved(scaled, magnitude, settings)
    bounds = []
    for one, vector, size, bound, exponent, uncertainty in zip(
        scaled, vectors, magnitude.tolist(), mu.tolist(), exponents, uncertainties, strict=True
    ):
        if not bool(one.any()):
            bounds.append(Bound(0.0, 0.0, "matrix", proof=ZeroProof()))
            continue
        lower = rounding.scale_down(_attained(one, vector, size), exponent)
        upper = rounding.scale_up(bound, exponent)
        blur = rounding.multiply_up(uncertainty, rounding.scale_up(size, exponent))
        bounds.append(blurred(lower, upper, blur, "matrix", MatrixProof(upper)))
    return bounds


def _proved(scaled: Tensor, magnitude: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """A mu that is proved for each matrix, hardly above its norm, and the top left singular vectors.

    The same proof as for a symbol of degree zero. Shapes: scaled (n, r, c) near one; mu (n,), vectors (n, r).
    """
    gram = half_product(scaled.to(settings.device))
    error = rounding.gram_error(scaled.shape[2], 1)
    values, vectors = _top_eigenpairs(gram, 0)
    # What is left above the search's value is what an independent check of the proof may lose to its own rounding.
    slack = min(1e-7, settings.tolerance / 10)
    mu = values.clamp_min(1e-300).sqrt() * (1 + slack)
    open_ = torch.arange(len(scaled))
    attempt = 0
    # The proof overwrites what it is given: an indexed copy.
    while len(open_ := open_[~proves(gram[open_], mu[open_], magnitude[open_], error).cpu()]):
        attempt, slack = attempt + 1, 2 * slack
        again, others = _top_eigenpairs(gram[open_], attempt)
        better = again > values[open_]
        vectors[open_] = torch.where(better[:, None], others, vectors[open_])
        values[open_] = torch.where(better, again, values[open_])
        mu[open_] = torch.maximum(mu[open_], values[open_].clamp_min(1e-300).sqrt()) * (1 + slack)
    return mu, vectors


def _top_eigenpairs(gram: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    if gram.shape[-1] <= _SMALL:
        values, vectors = torch.linalg.eigh(gram)
        return values[:, -1].cpu(), vectors[:, :, -1].cpu()
    found, starts = top_eigenpairs(gram, steps=_STEPS, accuracy=_ACCURACY, seed=seed)
    return found.cpu(), starts.cpu()


def _magnitudes(scaled: Tensor) -> Tensor:
    """At least the spectral norm of each |S|, as `matrix_magnitude`. Shapes: (n, r, c) to (n,)."""
    each = [matrix_magnitude(*torch.split(one, _COLUMNS, dim=1)) for one in scaled]
    return torch.tensor(each, dtype=torch.float64)


def _attained(scaled: Tensor, vector: Tensor, magnitude: float) -> float:
    """At most the norm of a wide matrix near one, from its top left singular vector."""
    x = scaled.T @ vector.cpu().double().real
    return lanczos.attained(lambda v: scaled @ v, x, terms=scaled.shape[1], magnitude=magnitude)


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
