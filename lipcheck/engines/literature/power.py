"""Power iteration on the operator itself, with its padding and stride: never above the norm but for rounding.

v <- A* A v / ||A* A v||, a fixed number of times from a seeded start, then ||A v||. How far below the norm it is, it
cannot tell. The gradient is that of ||A v|| at the v found, as usual: exact once v has converged.
Source: Virmaux and Scaman, Lipschitz regularity of deep neural networks, NeurIPS 2018; Gouk, Frank, Pfahringer, Cree,
Regularisation of neural networks by enforcing Lipschitz continuity, Machine Learning 110 (2021).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipcheck.engines.literature.subject import (
    Claim,
    Subject,
    normalised,
    nothing,
    power_of,
    rescaled,
)
from lipcheck.errors import UsageError
from lipcheck.operators import Convolution, Dense, InfiniteConvolution, Padded

STEPS = 100


def spectral_norm(
    operator: Subject | Padded, *, steps: int = STEPS, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """||A v|| for a v of norm one after so many steps. Gradients flow to the weight.

    Errors: UsageError for a convolution without an input size.
    """
    inner = operator.convolution if isinstance(operator, Padded) else operator
    exponent = power_of(inner)
    if exponent is None:
        return nothing(inner, dtype)
    scaled = normalised(inner, exponent, dtype)
    if isinstance(operator, Padded):
        assert isinstance(scaled, Convolution)
        return rescaled(_iterated(replace(operator, convolution=scaled), steps, seed, scaled.weight), exponent)
    if isinstance(scaled, InfiniteConvolution):
        raise UsageError("power iteration needs the convolution's input size")
    if isinstance(scaled, Dense):
        return rescaled(_matrix(scaled.matrix, steps, seed), exponent)
    return rescaled(_iterated(scaled, steps, seed, scaled.weight), exponent)


def _iterated(operator: Convolution | Padded, steps: int, seed: int, like: Tensor) -> Tensor:
    channels = (operator.convolution if isinstance(operator, Padded) else operator).input_channels
    with torch.no_grad():
        v = _start((1, channels, *operator.input_size), seed, like)
        for _ in range(steps):
            v = _unit(operator.adjoint(operator.forward(v)))
    image: Tensor = torch.linalg.vector_norm(operator.forward(v))
    return image


def _matrix(matrix: Tensor, steps: int, seed: int) -> Tensor:
    with torch.no_grad():
        v = _start((matrix.shape[1],), seed, matrix)
        for _ in range(steps):
            v = _unit(matrix.mT @ (matrix @ v))
    image: Tensor = torch.linalg.vector_norm(matrix @ v)
    return image


def _start(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return _unit(torch.randn(shape, generator=generator, dtype=torch.float64).to(like))


def _unit(v: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v)
    return v / length.clamp_min(torch.finfo(v.dtype).tiny)


def applies(operator: Subject | Padded) -> bool:
    """Wherever the operator can be applied."""
    return isinstance(operator, Dense | Convolution | Padded)


def claim(operator: Subject | Padded) -> Claim:
    """Never above the norm, so never an upper bound."""
    return "estimate"
