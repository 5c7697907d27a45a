"""What the published methods are given: a matrix, a convolution or one without end, near one in size and as a symbol.

Weights are taken near one by a power of two, which is exact, and the result is taken back: no method meets overflow.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lipcheck.engines.gram import scaled_by_power
from lipcheck.engines.search import top_eigenpairs
from lipcheck.operators import Convolution, Dense, InfiniteConvolution
from lipcheck.symbol import Symbol, convolution_symbol, matrix_symbol

Subject = Dense | Convolution | InfiniteConvolution
Claim = Literal["upper", "estimate"]

# What one batch may hold at a time, in bytes, unless the caller says otherwise.
MEMORY = 1 << 30
# Matrices up to this side are diagonalised, larger ones searched.
_DIAGONALISED = 128
_SEARCH_STEPS = 150


def weight_of(subject: Subject) -> Tensor:
    """The matrix or the kernel."""
    return subject.matrix if isinstance(subject, Dense) else subject.weight


def with_weight(subject: Subject, weight: Tensor) -> Subject:
    """The same map with other weights of the same shape."""
    if isinstance(subject, Dense):
        return replace(subject, matrix=weight)
    return replace(subject, weight=weight)


def power_of(subject: Subject) -> int | None:
    """The power of two that takes the largest weight into [1/2, 1); None where all are zero."""
    weight = weight_of(subject).detach()
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    return math.frexp(largest)[1] if largest else None


def normalised(subject: Subject, exponent: int, dtype: torch.dtype) -> Subject:
    """The subject times 2^-exponent, in this precision; gradients flow to the weight."""
    return with_weight(subject, scaled_by_power(weight_of(subject), -exponent).to(dtype))


def rescaled(value: Tensor, exponent: int) -> Tensor:
    """value * 2^exponent, in two steps as 2^1074 is no float."""
    half = exponent // 2
    return value * 2.0**half * 2.0 ** (exponent - half)


def nothing(subject: Subject, dtype: torch.dtype) -> Tensor:
    """Zero, with a gradient of zeros."""
    return weight_of(subject).to(dtype).sum() * 0.0


def symbol_of(subject: Subject) -> Symbol:
    """The symbol; a matrix is one of degree zero. Gradients flow to the weight."""
    if isinstance(subject, Dense):
        return matrix_symbol(subject.matrix)
    if isinstance(subject, InfiniteConvolution):
        axes = subject.weight.dim() - 2
        none, one = (0,) * axes, (1,) * axes
        return convolution_symbol(
            Convolution(subject.weight, subject.stride, subject.dilation, subject.groups, none, one, one)
        )
    return convolution_symbol(subject)


def reduced(symbol: Symbol) -> Symbol:
    """The symbol on the coarsest lattice that holds its exponents: F(w) = F'(g w) per axis has the same supremum.

    This is what drops a dilation. Exponents start at zero and have no common divisor along any axis.
    """
    exponents = symbol.exponents - symbol.exponents.amin(0)
    for axis in range(exponents.shape[1]):
        divisor = math.gcd(*exponents[:, axis].tolist())
        if divisor > 1:
            exponents[:, axis] //= divisor
    return Symbol(symbol.coefficients, exponents)


def folded_kernel(subject: Subject) -> Tensor:
    """The undilated kernel of stride 1 with the same symbol: each phase of the input is a channel of its own.

    Shapes: (groups, outputs, phases * inputs, *box); one tap for a matrix.
    """
    symbol = reduced(symbol_of(subject))
    box = [degree + 1 for degree in symbol.degrees]
    groups, _, rows, columns = symbol.coefficients.shape
    place = torch.zeros(len(symbol.exponents), dtype=torch.long)
    for axis, size in enumerate(box):
        place = place * size + symbol.exponents[:, axis]
    empty = symbol.coefficients.new_zeros(groups, math.prod(box), rows, columns)
    full = empty.index_copy(1, place.to(empty.device), symbol.coefficients)
    return full.permute(0, 2, 3, 1).reshape(groups, rows, columns, *box)


def top_norms(matrices: Tensor) -> Tensor:
    """The largest singular value of each matrix: an estimate, never above it but for rounding.

    The gradient is that of ||v* M|| at the singular vector v found, which is the singular value's own.
    Shapes: (n, r, c), real or complex, to (n,) real.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mH
    with torch.no_grad():
        gram = wide @ wide.mH
        if gram.shape[1] <= _DIAGONALISED:
            vector = torch.linalg.eigh(gram)[1][:, :, -1]
        else:
            vector = top_eigenpairs(gram, steps=_SEARCH_STEPS, accuracy=1e-16)[1]
    image: Tensor = torch.linalg.vector_norm((vector.conj()[:, None] @ wide)[:, 0], dim=1)
    return image
