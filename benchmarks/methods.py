"""The methods by name: what each claims, whether it says something of a layer, and how it is had.

The published Gram grid and the singular values by FFT are written here as their authors run them. The others are
lipcheck's own implementations of the published methods, in float64 and rounded outwards where they are bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.spectrum import spectrum, unstrided
from lipcheck.engines import finite
from lipcheck.engines.methods import applies, bound_by
from lipcheck.engines.settings import Settings
from lipcheck.methods import LITERATURE
from lipcheck.operators import Convolution

GRAM_ITERATIONS = 7
# A bound for circular padding only, without a word about rounding.
CIRCULAR = "circular"
OWN = ("semifinite", "finite", "randomised")

Kind = str


@dataclass(frozen=True, slots=True)
class Method:
    """One way to a number for a layer's norm: `run` gives it with the kind of claim that it is."""

    name: str
    label: str
    run: Callable[[Convolution], tuple[float, Kind]]
    applies: Callable[[Convolution], bool] = lambda operator: True


def published(memory: int) -> list[Method]:
    """The methods as published, at `memory` bytes for a block of frequencies."""

    def gram_published(operator: Convolution) -> tuple[float, Kind]:
        return gram_grid(unstrided(operator), memory), CIRCULAR

    def gram_folded(operator: Convolution) -> tuple[float, Kind]:
        return gram_grid(operator, memory), CIRCULAR

    def fft(operator: Convolution) -> tuple[float, Kind]:
        return exact_fft(operator, memory), CIRCULAR

    return [
        Method("gram-published", "Gram grid (published)", gram_published),
        Method("gram-folded", "Gram grid, folded", gram_folded),
        Method("fft", "exact SVD by FFT", fft),
    ]


def implemented(settings: Settings) -> list[Method]:
    """The literature's methods and lipcheck's further ones by lipcheck's implementation."""
    return [_implemented(name, settings) for name in (*LITERATURE, *OWN)]


def _implemented(name: str, settings: Settings) -> Method:
    def run(operator: Convolution) -> tuple[float, Kind]:
        bound = bound_by(name, operator, settings)
        return bound.upper, bound.kind

    def fits(operator: Convolution) -> bool:
        if not applies(name, operator):
            return False
        if name == "finite":
            return finite.memory(operator) <= settings.memory
        return name != "semifinite" or operator.axes > 1

    return Method(name, name, run, fits)


def known(settings: Settings, memory: int) -> list[Method]:
    """All methods but lipcheck's default, in the order of the table."""
    return published(memory) + implemented(settings)


def by_default() -> list[str]:
    """The methods that are run where none are named: not the slow ones, nor lipcheck's own further ones."""
    return ["gram-published", *LITERATURE]


def names() -> list[str]:
    return [method.name for method in known(Settings(), 1)]


def chosen(wanted: Sequence[str], settings: Settings, memory: int) -> list[Method]:
    """The methods of these names, in the order of the table."""
    return [method for method in known(settings, memory) if method.name in wanted]


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
