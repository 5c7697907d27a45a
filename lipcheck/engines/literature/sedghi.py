"""The largest of all singular values of the circular convolution: exact for circular padding.

The circular operator is block diagonal in the Fourier basis, with F(2 pi j / n) as blocks. For zero padding the number
is neither an upper nor a lower bound, except where the grid embeds the operator. The largest singular value of a block
is the root of the largest eigenvalue of F F*, to full precision and for less than all of them.
Source: Sedghi, Gupta, Long, The singular values of convolutional layers, ICLR 2019, theorem 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.engines.literature import errors
from lipcheck.engines.literature.frequencies import Samples, circular_grid, embeds
from lipcheck.engines.literature.subject import (
    MEMORY,
    Claim,
    Subject,
    normalised,
    nothing,
    power_of,
    rescaled,
    symbol_of,
    top_norms,
)
from lipcheck.engines.settings import Settings
from lipcheck.errors import UsageError
from lipcheck.operators import Convolution, Dense, InfiniteConvolution


def spectral_norm(operator: Subject, *, memory: int = MEMORY, dtype: torch.dtype = torch.float64) -> Tensor:
    """The largest singular value over the circular grid and the groups. Gradients flow to the weight.

    Errors: UsageError for a convolution without an input size.
    """
    exponent = power_of(operator)
    if exponent is None:
        return nothing(operator, dtype)
    samples = _samples(normalised(operator, exponent, dtype))
    _, place = samples.peak(_norms, memory)
    return rescaled(top_norms(samples.one(place))[0], exponent)


def _norms(matrices: Tensor) -> Tensor:
    if matrices.shape[1] == 1:
        norms: Tensor = torch.linalg.vector_norm(matrices[:, 0], dim=1)
        return norms
    values: Tensor = torch.linalg.eigvalsh(matrices @ matrices.mH)[:, -1]
    return values.clamp_min(0).sqrt()


def upper(operator: Subject, settings: Settings) -> float:
    """The largest singular value, raised by about 1e-9 and proved at every frequency by a Cholesky factorisation.

    The rounding of F, of F F* and of the factorisation are those of `errors.proved_norms`.
    """
    exponent = power_of(operator)
    if exponent is None:
        return 0.0
    samples = _samples(normalised(operator, exponent, torch.float64))
    magnitude = errors.magnitudes(samples.symbol)
    taps = samples.symbol.coefficients.shape[1]
    found, _ = samples.peak(_norms, settings.memory)
    bound = found * (1 + 1e-9)
    for _, matrices in samples.chunks(settings.memory):
        flat = matrices.flatten(0, 1)
        proved = errors.proved_norms(
            flat, magnitude.new_full((len(flat),), bound), magnitude.repeat(len(matrices)), taps
        )
        bound = max(bound, float(proved.max()))
    return rounding.scale_up(bound, exponent)


def _samples(operator: Subject) -> Samples:
    if isinstance(operator, InfiniteConvolution):
        raise UsageError("sedghi needs the convolution's input size")
    return Samples(symbol_of(operator).wide, circular_grid(operator))


def applies(operator: Subject) -> bool:
    """Wherever the input has a size."""
    return isinstance(operator, Dense | Convolution)


def claim(operator: Subject) -> Claim:
    """A bound where the circular grid embeds the operator."""
    return "upper" if embeds(operator) else "estimate"
