"""sqrt(taps) times the kernel's norm as a tensor: an upper bound if that norm were known, so here an estimate.

    ||F(w)|| = max |sum of W[o, c, k] u_o v_c z_k|,  z_k = exp(i w k),    ||A|| <= sqrt(taps) max |W(u, v, x_1, ...)|

over complex unit vectors: each exp(i w_a k_a) is one of norm sqrt(K_a). The maximum is the tensor's spectral norm, no
more than that of any unfolding, hence no more than `fantastic4`. To find it is hard in general; the alternating power
method climbs from several starts and may stop at a lower peak, so the number is a lower estimate of an upper bound:
usually above the norm, with no proof that it is. Vectors are complex, as the argument needs: over real ones the maximum
of a real tensor may be smaller.
Source: Grishina, Gorbunov, Rakhuba, Tight and efficient upper bound on spectral norm of convolutional layers, ECCV
2024; De Lathauwer, De Moor, Vandewalle, SIAM J. Matrix Anal. Appl. 21 (2000) for the iteration.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcheck.engines.literature.subject import (
    Claim,
    Subject,
    folded_kernel,
    normalised,
    nothing,
    power_of,
    rescaled,
)
from lipcheck.operators import Convolution, Dense, InfiniteConvolution

RESTARTS = 4
SWEEPS = 200
_LETTERS = "klm"


def spectral_norm(
    operator: Subject,
    *,
    restarts: int = RESTARTS,
    sweeps: int = SWEEPS,
    accuracy: float = 1e-7,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """sqrt(taps) times the best of the restarts, the largest over the groups. Gradients flow to the weight.

    The sweeps stop once none of the restarts rises by more than `accuracy`, relatively.
    """
    exponent = power_of(operator)
    if exponent is None:
        return nothing(operator, dtype)
    kernel = folded_kernel(normalised(operator, exponent, dtype))
    with torch.no_grad():
        vectors = _climbed(kernel, restarts, sweeps, accuracy, seed)
        values = _value(kernel, vectors)
    group, best = divmod(int(values.argmax()), restarts)
    chosen = [vector[group : group + 1, best : best + 1] for vector in vectors]
    found = _value(kernel[group : group + 1], chosen)[0, 0]
    return rescaled(found * math.sqrt(math.prod(kernel.shape[3:])), exponent)


def _climbed(kernel: Tensor, restarts: int, sweeps: int, accuracy: float, seed: int) -> list[Tensor]:
    """Unit vectors u, v, x_1, ... at which |W(u, v, x_1, ...)| rises no more. Shapes: each (groups, restarts, size)."""
    vectors = _starts(kernel, restarts, seed)
    by_output, by_input = _reading(kernel, 1), _reading(kernel, 2)
    last = torch.zeros(kernel.shape[0], restarts, dtype=kernel.dtype, device=kernel.device)
    for sweep in range(sweeps):
        # Each of the two passes over the kernel contracts one channel axis, the long ones; the rest is small.
        vectors[0] = _unit(_contract_taps(_apply(by_input, vectors[1], kernel, 1), vectors[2:]).conj())
        half = _apply(by_output, vectors[0], kernel, 2)
        vectors[1] = _unit(_contract_taps(half, vectors[2:]).conj())
        small = torch.einsum("grc...,grc->gr...", half, vectors[1])
        for axis in range(2, len(vectors)):
            vectors[axis] = _unit(_contract_but(small, vectors[2:], axis - 2).conj())
        value = _contract_all(small, vectors[2:]).abs()
        if sweep and bool((value - last <= accuracy * value).all()):
            break
        last = value
    return vectors


def _starts(kernel: Tensor, restarts: int, seed: int) -> list[Tensor]:
    """Seeded complex unit vectors, one for each axis of the tensor."""
    dtype = torch.complex128 if kernel.dtype == torch.float64 else torch.complex64
    generator = torch.Generator().manual_seed(seed)
    shapes = [(kernel.shape[0], restarts, size) for size in kernel.shape[1:]]
    vectors = [torch.randn(shape, generator=generator, dtype=torch.complex128) for shape in shapes]
    return [_unit(vector).to(kernel.device, dtype) for vector in vectors]


def _value(kernel: Tensor, vectors: list[Tensor]) -> Tensor:
    """|W(u, v, x_1, ...)|. Shapes: (groups, restarts)."""
    half = _apply(_reading(kernel, 1), vectors[0], kernel, 2)
    small = torch.einsum("grc...,grc->gr...", half, vectors[1])
    return _contract_all(small, vectors[2:]).abs()


def _reading(kernel: Tensor, axis: int) -> Tensor:
    """The kernel as matrices that read this axis. Shapes: (groups, the other channels * taps, its size)."""
    return kernel.movedim(axis, -1).flatten(1, -2).contiguous()


def _apply(matrices: Tensor, vectors: Tensor, kernel: Tensor, kept: int) -> Tensor:
    """One channel axis contracted. Shapes: vectors (groups, restarts, size) to (groups, restarts, other, *box)."""
    image = _real_times_complex(matrices, vectors.mT).mT
    return image.reshape(*vectors.shape[:2], kernel.shape[kept], *kernel.shape[3:])


def _contract_taps(half: Tensor, vectors: list[Tensor]) -> Tensor:
    """All kernel axes contracted. Shapes: (groups, restarts, channels, *box) to (groups, restarts, channels)."""
    wave = torch.ones_like(vectors[0][..., :1])
    for vector in vectors:
        wave = (wave[..., None] * vector[:, :, None]).flatten(2)
    return (half.flatten(3) @ wave[..., None])[..., 0]


def _real_times_complex(real: Tensor, factor: Tensor) -> Tensor:
    """A real batch of matrices times a complex one, without a complex copy of the first."""
    return torch.complex(real @ factor.real, real @ factor.imag)


def _contract_but(small: Tensor, vectors: list[Tensor], axis: int) -> Tensor:
    """All axes but one. Shapes: (groups, restarts, *box) to (groups, restarts, size of that axis)."""
    letters = _LETTERS[: len(vectors)]
    others = [(letter, vector) for at, (letter, vector) in enumerate(zip(letters, vectors, strict=True)) if at != axis]
    terms = ",".join([f"gr{letters}", *(f"gr{letter}" for letter, _ in others)])
    result: Tensor = torch.einsum(f"{terms}->gr{letters[axis]}", small, *(vector for _, vector in others))
    return result


def _contract_all(small: Tensor, vectors: list[Tensor]) -> Tensor:
    letters = _LETTERS[: len(vectors)]
    terms = ",".join([f"gr{letters}", *(f"gr{letter}" for letter in letters)])
    result: Tensor = torch.einsum(f"{terms}->gr", small, *vectors)
    return result


def _unit(vectors: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.clamp_min(torch.finfo(length.dtype).tiny)


def applies(operator: Subject) -> bool:
    """Everywhere."""
    return isinstance(operator, Dense | Convolution | InfiniteConvolution)


def claim(operator: Subject) -> Claim:
    """The theorem bounds by the tensor's norm; the number found may be below that."""
    return "estimate"
