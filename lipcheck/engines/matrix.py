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
from lipcheck.engines.gram import half_product, magnitude_of, matrix_magnitude, proves, scaled_by_power
from lipcheck.engines.search import top_eigenpairs
from lipcheck.engines.settings import Settings
from lipcheck.proof import MatrixProof, Proof, ZeroProof
from lipcheck.symbol import Grid, Symbol, matrix_symbol

# Matrices up to this side are given to LAPACK's eigenvalues, larger ones to Lanczos.
_SMALL = 128
_STEPS, _ACCURACY = 200, 1e-13
# Columns whose moduli are held at once.
_COLUMNS = 8192
# A matrix with more entries is never held in float64 as a whole, but by columns, so many entries at once.
_LARGE, _BLOCK = 1 << 22, 1 << 23
# Rows of which only the lower half of a Gram matrix is formed.
_ROWS = 1024


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
    """The norm of every matrix by itself, all of them in one batch; a large one by blocks of its columns.

    Shapes: (rows, columns) each, the same but for transposition.
    """
    if len(matrices) == 1 and matrices[0].numel() > _LARGE:
        return [_bound_by_columns(matrices[0].detach(), uncertainties[0], settings)]
    wide = [matrix.detach() if matrix.shape[0] <= matrix.shape[1] else matrix.detach().T for matrix in matrices]
    exponents = [math.frexp(float(matrix.abs().max()))[1] if matrix.numel() else 0 for matrix in wide]
    scaled = torch.stack([scaled_by_power(one.cpu(), -e) for one, e in zip(wide, exponents, strict=True)])
    magnitude = _magnitudes(scaled)
    gram = half_product(scaled.to(settings.device))
    mu, vectors = _proved(gram, magnitude, scaled.shape[2], settings)
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


def _bound_by_columns(matrix: Tensor, uncertainty: float, settings: Settings) -> Bound:
    """The norm of one matrix in its own format, of which float64 holds its Gram matrix and a block of columns."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    rows, columns = wide.shape
    width = max(1, _BLOCK // rows)
    # The entry of largest modulus, without a copy of the matrix.
    largest = max(abs(float(wide.min())), abs(float(wide.max())))
    if largest == 0:
        return Bound(0.0, 0.0, "matrix", proof=ZeroProof())
    exponent = math.frexp(largest)[1]
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=settings.device)
    sums = torch.zeros(rows, dtype=torch.float64)
    column = squares = 0.0
    for block in torch.split(wide, width, dim=1):
        scaled = scaled_by_power(block, -exponent).to(settings.device)
        for low in range(0, rows, _ROWS):
            strip = scaled[low : low + _ROWS]
            gram[low:, low : low + _ROWS].addmm_(scaled[low:], strip.T)
        moduli = scaled.abs_()
        sums += moduli.sum(1).cpu()
        column = max(column, float(moduli.sum(0).max()))
        squares += float(moduli.square_().sum())
    size = magnitude_of(float(sums.max()), column, squares, matrix.numel())
    for low in range(0, rows, _ROWS):
        # The upper half is the lower one's mirror image.
        gram[low : low + _ROWS, low + _ROWS :] = gram[low + _ROWS :, low : low + _ROWS].T
        corner = gram[low : low + _ROWS, low : low + _ROWS]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    mu, vectors = _proved(gram[None], torch.tensor([size], dtype=torch.float64), columns, settings)
    blocks = torch.split(wide, width, dim=1)
    vector = vectors[0].double().real.cpu()
    x = torch.cat([scaled_by_power(block, -exponent).T @ vector for block in blocks])

    def forward(v: Tensor) -> Tensor:
        pieces = zip(blocks, torch.split(v, width), strict=True)
        image = torch.zeros(rows, dtype=torch.float64)
        for block, piece in pieces:
            image += scaled_by_power(block, -exponent) @ piece
        return image

    lower = rounding.scale_down(lanczos.attained(forward, x, terms=columns, magnitude=size), exponent)
    upper = rounding.scale_up(float(mu[0]), exponent)
    blur = rounding.multiply_up(uncertainty, rounding.scale_up(size, exponent))
    return blurred(lower, upper, blur, "matrix", MatrixProof(upper))


def _proved(gram: Tensor, magnitude: Tensor, columns: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """A mu that is proved for each matrix, hardly above its norm, and the top left singular vectors.

    The same proof as for a symbol of degree zero. Shapes: gram (n, r, r) of matrices near one with so many columns;
    mu (n,), vectors (n, r).
    """
    error = rounding.gram_error(columns, 1)
    values, vectors = _top_eigenpairs(gram, 0)
    # What is left above the search's value is what an independent check of the proof may lose to its own rounding.
    slack = min(1e-7, settings.tolerance / 10)
    mu = values.clamp_min(1e-300).sqrt() * (1 + slack)
    open_ = torch.arange(len(gram))
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
