"""The published methods, as their authors or their users run them, each returning its one number for a layer."""

from __future__ import annotations

import torch

from benchmarks.spectrum import spectrum
from lipcheck.operators import Convolution

GRAM_ITERATIONS = 7
POWER_STEPS = 100


@torch.no_grad()
def gram_grid(operator: Convolution, memory: int, iterations: int = GRAM_ITERATIONS) -> float:
    """Gram iteration at every frequency of the circular grid: an upper bound of the circular operator's norm.

    G <- G* G / ||G||_F^2 with the logs of the scales kept; then ||G||_F^(1 / 2^t).
    Source: Delattre, Barthelemy, Araujo, Allauzen, ICML 2023, algorithm 3.
    """
    return max(_gram_iteration(matrices, iterations) for matrices in spectrum(operator, memory))


def _gram_iteration(matrices: torch.Tensor, iterations: int) -> float:
    scale = torch.zeros(len(matrices), dtype=matrices.real.dtype)
    for _ in range(iterations):
        # A zero matrix stays zero.
        norm = torch.linalg.matrix_norm(matrices).clamp_min(torch.finfo(scale.dtype).tiny)
        matrices = matrices / norm[:, None, None]
        scale = 2 * (scale + norm.log())
        matrices = matrices.mH @ matrices
    power = 0.5**iterations
    return float((torch.linalg.matrix_norm(matrices).pow(power) * (scale * power).exp()).max())


@torch.no_grad()
def exact_fft(operator: Convolution, memory: int) -> float:
    """The largest of all singular values of the circular operator.

    Source: Sedghi, Gupta, Long, ICLR 2019.
    """
    return max(float(torch.linalg.svdvals(matrices).max()) for matrices in spectrum(operator, memory))


@torch.no_grad()
def power_iteration(operator: Convolution, seed: int, steps: int = POWER_STEPS) -> float:
    """||A v|| after so many steps of v <- A* A v / ||A* A v|| on the layer itself, in float32: an estimate from below.

    Source: Farnia, Zhang, Tse, ICLR 2019, among others.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(1, operator.input_channels, *operator.input_size, generator=generator)
    for _ in range(steps):
        v = operator.adjoint(operator.forward(v))
        v = v / torch.linalg.vector_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
    return float(torch.linalg.vector_norm(operator.forward(v)))
