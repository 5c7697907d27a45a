"""Convolutions behind a padding that copies inputs (reflect, replicate): as a matrix, or by the two norms.

A = T P with T the convolution without padding, and P*P diagonal with the number of copies of each input:
||A|| <= sqrt(copies) ||T||. Source: maths, section 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import lanczos
from lipcheck.engines.matrix import blurred, bound_matrices, symbol_magnitude
from lipcheck.engines.settings import Settings
from lipcheck.operators import Padded
from lipcheck.proof import CopiesProof, ProductProof
from lipcheck.symbol import convolution_symbol, padded_matrix


def sides(operator: Padded) -> tuple[int, int]:
    """Rows and columns of each group's matrix."""
    inner = operator.convolution
    outputs, inputs = inner.weight.shape[0] // inner.groups, inner.weight.shape[1]
    return outputs * math.prod(inner.output_size), inputs * math.prod(operator.input_size)


def formed(operator: Padded, settings: Settings) -> Bound:
    """The norm of the whole, padding included, formed as one matrix a group."""
    inner = operator.convolution
    bound = bound_matrices(padded_matrix(operator), 0.0, settings)
    # An entry sums the taps that read copies of one input.
    error = inner.uncertainty + rounding.gamma(math.prod(inner.kernel)) * (1 + inner.uncertainty)
    magnitude = symbol_magnitude(convolution_symbol(inner))
    blur = rounding.multiply_up(error, magnitude, rounding.sqrt_up(operator.copies))
    return blurred(bound.lower, bound.upper, blur, bound.method, bound.proof)


def behind(operator: Padded, inner: Bound, settings: Settings) -> Bound:
    """The bound of the unpadded convolution times that of the padding; the lower end is of the whole."""
    upper = rounding.multiply_up(inner.upper, rounding.sqrt_up(operator.copies))
    proof = ProductProof((inner.proof, CopiesProof(operator.copies))) if inner.proof else None
    lower = min(_attained(operator, settings), upper)
    return Bound(lower, upper, f"{inner.method} × √{operator.copies} copies", proof=proof)


def _attained(operator: Padded, settings: Settings) -> float:
    """The lower end of a convolution behind a padding that copies: its norm is that of the whole, padding included."""
    inner = operator.convolution
    start: Tensor = torch.randn(
        1, inner.weight.shape[0], *inner.output_size, generator=torch.Generator().manual_seed(0)
    )
    magnitude = rounding.multiply_up(symbol_magnitude(convolution_symbol(inner)), rounding.sqrt_up(operator.copies))
    lower = lanczos.attained_from(
        operator, start, magnitude=magnitude, steps=48, accuracy=settings.tolerance / 50, device=settings.device
    )
    return max(0.0, rounding.down(lower - rounding.multiply_up(inner.uncertainty, magnitude), 2))
