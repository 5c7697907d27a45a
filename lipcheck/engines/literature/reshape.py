"""The norm of the kernel written as an outputs x (inputs * taps) matrix: an estimate, not a bound.

It is the norm of what the convolution does to one patch. Patches overlap, so the convolution's norm may be up to
sqrt(taps) times larger (`fantastic4` has the proof); it may also be smaller, where no input has only such patches.
Source: Miyato, Kataoka, Koyama, Yoshida, Spectral normalization for generative adversarial networks, ICLR 2018, where
convolutions are treated so in the experiments.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
from lipcheck.operators import Convolution, Dense, InfiniteConvolution


def spectral_norm(operator: Subject, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """The largest singular value of the reshaped kernel, the largest over the groups. Gradients flow to the weight."""
    exponent = power_of(operator)
    if exponent is None:
        return nothing(operator, dtype)
    weight = weight_of(normalised(operator, exponent, dtype))
    groups = 1 if isinstance(operator, Dense) else operator.groups
    matrices = weight.reshape(groups, weight.shape[0] // groups, -1)
    return rescaled(top_norms(matrices).amax(), exponent)


def applies(operator: Subject) -> bool:
    """Everywhere."""
    return isinstance(operator, Dense | Convolution | InfiniteConvolution)


def claim(operator: Subject) -> Claim:
    """Never a bound, not even where it is one: a matrix is reshaped into itself."""
    return "estimate"
