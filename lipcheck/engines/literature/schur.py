"""Schur's test, ||A|| <= sqrt(||A||_1 ||A||_inf), over entries or over the taps' matrices: an upper bound.

By entries, ||A||_inf is the largest sum of |W[o, c, k]| over what one output reads, ||A||_1 the same over what one
input is read by. By blocks, position i to position j is the matrix W_k, and the norm of a block matrix is at most that
of the matrix of its blocks' norms: the same test on the ||W_k||_2. Taps that lie outside the input at an output are
left out; so only those count that read the input together. Without an input size all of them do, and a stride splits
the columns into phases.
Source: Schur, J. reine angew. Math. 140 (1911); Horn and Johnson, Matrix Analysis, 5.6.P21; AOL (Prach and Lampert,
ECCV 2022) is the test on the Gram operator.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.engines.literature import errors
from lipcheck.engines.literature.subject import (
    Claim,
    Subject,
    normalised,
    nothing,
    power_of,
    rescaled,
    top_norms,
    weight_of,
)
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution, Dense, InfiniteConvolution

Form = Literal["entries", "blocks", "best"]


def spectral_norm(operator: Subject, *, form: Form = "best", dtype: torch.dtype = torch.float64) -> Tensor:
    """The test by entries, by blocks, or the smaller of both, the largest over the groups. Gradients flow."""
    exponent = power_of(operator)
    if exponent is None:
        return nothing(operator, dtype)
    scaled = normalised(operator, exponent, dtype)
    kernel = _grouped(scaled)
    parts = []
    if form != "blocks":
        parts.append(_entries(scaled, kernel))
    if form != "entries":
        parts.append(_blocks(scaled, _tap_norms(kernel)))
    products = torch.stack([rows * columns for rows, columns in parts])
    group = int(products.detach().amin(0).argmax())
    return rescaled(products[:, group].amin().sqrt(), exponent)


def _grouped(operator: Subject) -> Tensor:
    """Shapes: (groups, outputs, inputs, *kernel), no kernel axes for a matrix."""
    weight = weight_of(operator)
    groups = 1 if isinstance(operator, Dense) else operator.groups
    return weight.reshape(groups, -1, *weight.shape[1:])


def _entries(operator: Subject, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The largest absolute row and column sum per group."""
    size = kernel.abs()
    return _largest(size.sum(2), row_patterns(operator)), _largest(size.sum(1), column_patterns(operator))


def _blocks(operator: Subject, norms: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the taps' norms. Shapes: (groups, *kernel)."""
    size = norms[:, None]
    return _largest(size, row_patterns(operator)), _largest(size, column_patterns(operator))


def _tap_norms(kernel: Tensor) -> Tensor:
    """Shapes: (groups, outputs, inputs, *kernel) to (groups, *kernel)."""
    taps = _taps(kernel)
    return top_norms(taps).reshape(kernel.shape[0], *kernel.shape[3:])


def _taps(kernel: Tensor) -> Tensor:
    """The taps' matrices. Shapes: (groups * taps, outputs, inputs)."""
    return kernel.movedim((1, 2), (-2, -1)).reshape(-1, *kernel.shape[1:3])


def _largest(size: Tensor, patterns: list[Tensor]) -> Tensor:
    """The largest sum over what stands together, per group. Shapes: (groups, lines, *kernel) to (groups,)."""
    for pattern in patterns:
        size = torch.tensordot(size, pattern.to(size), dims=([2], [1]))
    return size.flatten(1).amax(1)


def row_patterns(operator: Subject) -> list[Tensor]:
    """Per axis, which taps read the input at some output: one row for each set. Shapes: (sets, kernel), booleans."""
    if isinstance(operator, Dense):
        return []
    if isinstance(operator, InfiniteConvolution) or operator.circular:
        return [torch.ones(1, k, dtype=torch.bool) for k in operator.weight.shape[2:]]
    patterns = []
    for axis, k in enumerate(operator.kernel):
        reads = _starts(operator, axis, k) + operator.stride[axis] * torch.arange(operator.output_size[axis])[:, None]
        patterns.append(torch.unique((reads >= 0) & (reads < operator.input_size[axis]), dim=0))
    return patterns


def column_patterns(operator: Subject) -> list[Tensor]:
    """Per axis, which taps read some input: one row for each set. Shapes: (sets, kernel), booleans."""
    if isinstance(operator, Dense):
        return []
    if isinstance(operator, InfiniteConvolution):
        axes = zip(operator.weight.shape[2:], operator.stride, operator.dilation, strict=True)
        return [(d * torch.arange(k)) % s == torch.arange(s)[:, None] for k, s, d in axes]
    patterns = []
    for axis, k in enumerate(operator.kernel):
        s, n = operator.stride[axis], operator.input_size[axis]
        # The output that reads input j with this tap stands at back / s, where that is one.
        back = torch.arange(n)[:, None] - _starts(operator, axis, k)
        if operator.circular:
            back = back % n
        reads = (back % s == 0) & (back >= 0) & (back < s * operator.output_size[axis])
        patterns.append(torch.unique(reads, dim=0))
    return patterns


def _starts(operator: Convolution, axis: int, kernel: int) -> Tensor:
    """Where each tap reads at output zero."""
    return operator.dilation[axis] * torch.arange(kernel) - operator.offset[axis]


def upper(operator: Subject, settings: Settings) -> float:
    """The smaller of both tests, rounded outwards: sums of non-negative numbers are relatively exact.

    The taps' norms are proved one by one, `errors.proved_norms`, as many at a time as fit.
    """
    exponent = power_of(operator)
    if exponent is None:
        return 0.0
    scaled = normalised(operator, exponent, torch.float64)
    kernel = _grouped(scaled)
    taps = _taps(kernel)
    step = max(1, settings.memory // (64 * taps[0].numel() + 64 * min(taps.shape[1:]) ** 2))
    norms = torch.cat([_proved(part) for part in torch.split(taps, step)])
    blocks = _blocks(scaled, norms.reshape(kernel.shape[0], *kernel.shape[3:]))
    products = [rows * columns for rows, columns in (_entries(scaled, kernel), blocks)]
    found = float(torch.minimum(*products).max().sqrt())
    total = found * (1 + rounding.gamma(2 * kernel[0].numel() + 32)) + rounding.UNDERFLOW
    return rounding.scale_up(total, exponent)


def _proved(matrices: Tensor) -> Tensor:
    """Upper bounds of the matrices' norms. Shapes: (n, r, c) to (n,)."""
    if min(matrices.shape[1:]) == 1:
        norms: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2))
        return norms * (1 + rounding.gamma(matrices[0].numel() + 16)) + rounding.UNDERFLOW
    size: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2))
    magnitude = size * (1 + rounding.gamma(matrices[0].numel() + 16)) + rounding.UNDERFLOW
    return errors.proved_norms(matrices, top_norms(matrices) * (1 + 1e-9), magnitude, 1)


def applies(operator: Subject) -> bool:
    """Everywhere."""
    return isinstance(operator, Dense | Convolution | InfiniteConvolution)


def claim(operator: Subject) -> Claim:
    """Always a bound."""
    return "upper"
