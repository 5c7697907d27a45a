"""The smallest norm of the kernel's unfoldings: an upper bound at every input size, zero padded or circular.

Let some of the kernel's axes stand with the outputs and the others with the inputs: U is the matrix with rows (o,
k_left) and columns (c, k_right). With z_left the products of exp(i w k) over the left axes, z_right those over the
right ones,

    F(w) = (I kron z_left)^T U (I kron z_right),    ||I kron z_left|| ||I kron z_right|| = sqrt(product of the kernel),

so ||A|| <= sqrt(taps) ||U|| for each of the 2^axes choices: the published four in two dimensions, two in one, eight in
three. A stride is folded into channels first, which lowers the number of taps. A matrix has one tap, and this is its
norm.
Source: Singla and Feizi, Fantastic four: differentiable and efficient bounds on singular values of convolution layers,
ICLR 2021, the main theorem; the stride and other dimensions by the argument above.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.engines.certified import certify
from lipcheck.engines.literature.subject import (
    Claim,
    Subject,
    folded_kernel,
    normalised,
    nothing,
    power_of,
    rescaled,
    top_norms,
)
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution, Dense, InfiniteConvolution
from lipcheck.symbol import Grid, matrix_symbol


def spectral_norm(operator: Subject, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """sqrt(taps) times the smallest of the unfoldings' norms, each the largest over the groups. Gradients flow."""
    exponent = power_of(operator)
    if exponent is None:
        return nothing(operator, dtype)
    kernel = folded_kernel(normalised(operator, exponent, dtype))
    norms = torch.stack([top_norms(unfolding).amax() for unfolding in unfoldings(kernel)])
    return rescaled(norms.amin() * math.sqrt(math.prod(kernel.shape[3:])), exponent)


def unfoldings(kernel: Tensor) -> Iterator[Tensor]:
    """The matrices of all choices of axes that stand with the outputs, none first.

    Shapes: (groups, outputs, inputs, *box) to (groups, outputs * left, inputs * right). Axes of one tap stay right.
    """
    groups, outputs, inputs = kernel.shape[:3]
    axes = [axis for axis in range(3, kernel.dim()) if kernel.shape[axis] > 1]
    for size in range(len(axes) + 1):
        for left in itertools.combinations(axes, size):
            right = [axis for axis in range(3, kernel.dim()) if axis not in left]
            rows = outputs * math.prod(kernel.shape[axis] for axis in left)
            columns = inputs * math.prod(kernel.shape[axis] for axis in right)
            yield kernel.permute(0, 1, *left, 2, *right).reshape(groups, rows, columns)


def upper(operator: Subject, settings: Settings) -> float:
    """The bound with each unfolding's norm proved by a Cholesky factorisation, `lipcheck.engines.certified`."""
    exponent = power_of(operator)
    if exponent is None:
        return 0.0
    kernel = folded_kernel(normalised(operator, exponent, torch.float64))
    found = [
        certify(
            [matrix_symbol(unfolding)],
            [Grid((1,), (0,))],
            tolerance=settings.tolerance,
            device=settings.device,
            memory=settings.memory,
        )[0].upper
        for unfolding in unfoldings(kernel)
    ]
    taps = rounding.sqrt_up(math.prod(kernel.shape[3:]))
    return rounding.scale_up(rounding.multiply_up(min(found), taps), exponent)


def applies(operator: Subject) -> bool:
    """Everywhere."""
    return isinstance(operator, Dense | Convolution | InfiniteConvolution)


def claim(operator: Subject) -> Claim:
    """A bound for every padding that is zero or circular, at every size."""
    return "upper"
