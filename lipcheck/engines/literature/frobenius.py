"""The Frobenius norm of the finite operator, the largest over the groups: an upper bound.

Each tap counts as often as it reads the input rather than padding: ||A||_F^2 = sum_k count(k) ||W_k||_F^2, with count
the product over the axes. Where a circular kernel is longer than its input, taps that meet at one position are added
first. Groups are blocks of a block diagonal operator, whose norm is the largest of theirs.
Source: Frobenius; as a bound for convolutions Gouk et al., Machine Learning 110 (2021), among others.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.engines.literature.subject import (
    Claim,
    Subject,
    normalised,
    nothing,
    power_of,
    rescaled,
    weight_of,
)
from lipcheck.engines.settings import Settings
from lipcheck.errors import UsageError
from lipcheck.operators import Convolution, Dense, InfiniteConvolution


def spectral_norm(operator: Subject, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """The largest of the groups' Frobenius norms. Gradients flow to the weight.

    Errors: UsageError for a convolution without an input size.
    """
    exponent = power_of(operator)
    if exponent is None:
        return nothing(operator, dtype)
    return rescaled(_norms(normalised(operator, exponent, dtype)).amax(), exponent)


def _norms(operator: Subject) -> Tensor:
    """Per group. Shapes: (groups,)."""
    if isinstance(operator, InfiniteConvolution):
        raise UsageError("a convolution without end has no Frobenius norm; give the input's size")
    if isinstance(operator, Dense):
        return operator.matrix.square().sum().sqrt()[None]
    weight = operator.weight
    counts = torch.ones((), dtype=torch.float64)
    for axis in range(operator.axes):
        weight, count = _met(operator, weight, axis)
        counts = counts[..., None] * count
    weighted = weight * counts.sqrt().to(weight)
    norms: Tensor = torch.linalg.vector_norm(weighted.reshape(operator.groups, -1), dim=1)
    return norms


def _met(operator: Convolution, weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The kernel with the taps that meet on the circle added along this axis, and how often each is applied."""
    n, outputs = operator.input_size[axis], operator.output_size[axis]
    s, d, p = operator.stride[axis], operator.dilation[axis], operator.offset[axis]
    start = d * torch.arange(weight.shape[axis + 2]) - p
    if operator.circular:
        places, inverse = torch.unique(start % n, return_inverse=True)
        shape = list(weight.shape)
        shape[axis + 2] = len(places)
        if len(places) < len(start):
            weight = weight.new_zeros(shape).index_add(axis + 2, inverse.to(weight.device), weight)
        return weight, torch.full((shape[axis + 2],), float(outputs), dtype=torch.float64)
    # 0 <= s i + start < n for i from `first` to `last`.
    first = (-(start // s)).clamp_min(0)
    last = ((n - 1 - start) // s).clamp_max(outputs - 1)
    return weight, (last - first + 1).clamp_min(0).double()


def upper(operator: Subject, settings: Settings) -> float:
    """The norm, rounded outwards: a sum of squares, each off by the root of its count and the product with it.

    Taps that are added on a circle cancel: there the rounding is relative to the norm of |W|.
    """
    exponent = power_of(operator)
    if exponent is None:
        return 0.0
    scaled = normalised(operator, exponent, torch.float64)
    weight = weight_of(scaled)
    norm = float(_norms(scaled).max())
    if isinstance(scaled, Convolution) and scaled.circular:
        size = float(_norms(replace(scaled, weight=weight.abs())).max())
        norm += size * rounding.gamma(math.prod(scaled.kernel)) * 1.01
    total = norm * (1 + rounding.gamma(weight.numel() + 32)) + rounding.UNDERFLOW
    return rounding.scale_up(total, exponent)


def applies(operator: Subject) -> bool:
    """Wherever the input has a size."""
    return isinstance(operator, Dense | Convolution)


def claim(operator: Subject) -> Claim:
    """Always a bound."""
    return "upper"
