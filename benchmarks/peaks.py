"""Estimates of a symbol's norms on the embedding grid, and where its peak is: what searches start from, no claims."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck.engines.certified import Certified, Peak
from lipcheck.engines.gram import gram_family
from lipcheck.engines.lanczos import start_vector
from lipcheck.engines.search import top_eigenpairs
from lipcheck.operators import Convolution
from lipcheck.symbol import Grid, Symbol, convolution_symbol, embedding_points, trimmed

# Lanczos steps for a norm and for a first look, and bytes of the matrices looked at together.
_STEPS, _FIRST_LOOK = 24, 8
_WARM = 24 << 20
# How often the step is halved on the way to the peak.
_HALVINGS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Norms:
    """||F(w)|| of every group at one of each pair of frequencies +-w of the embedding grid, in float32.

    Shapes: `index` (frequencies, axes), as `Grid.indices`; `values` (groups, frequencies).
    """

    symbol: Symbol
    grid: Grid
    index: Tensor
    values: Tensor


def embedding(operator: Convolution, symbol: Symbol) -> Grid:
    """The embedding grid from frequency zero on, a single point along an axis on which the symbol is constant."""
    pairs = zip(embedding_points(operator), symbol.degrees, strict=True)
    points = tuple(m if degree else 1 for m, degree in pairs)
    return Grid(points, (0,) * len(points))


@torch.no_grad()
def norms(operator: Convolution, steps: int = _STEPS) -> Norms:
    """The norms of a convolution that is not zero; estimates from below, the better the more steps."""
    operator = trimmed(operator)
    symbol = convolution_symbol(operator)
    grid = embedding(operator, symbol)
    index = grid.indices()
    family = gram_family([symbol], len(index), torch.device("cpu"), 1 << 28)
    values = torch.zeros(family.items, len(index))
    chunk = max(1, _WARM // family.bytes_per_matrix)
    for group in range(family.items):
        for part in torch.arange(len(index)).split(chunk):
            item = torch.full((len(part),), group)
            matrices = family.matrices(item, grid, index[part], torch.float32)
            tops = top_eigenpairs(matrices, steps=steps, orthogonal=False)[0]
            values[group, part] = tops.clamp_min(0).sqrt().float() * 2.0 ** int(family.exponent[group])
    return Norms(symbol, grid, index, values)


@torch.no_grad()
def start(operator: Convolution) -> Tensor:
    """An output near the one that is amplified most: the wave at the symbol's peak under a sine window.

    Shapes: (1, outputs, *output_size), float64.
    """
    short = trimmed(operator)
    found = norms(short, _FIRST_LOOK)
    group, place = divmod(int(found.values.argmax()), len(found.index))
    angle = [math.pi * t / m for t, m in zip(found.index[place].tolist(), found.grid.points, strict=True)]
    peak = _climbed(found.symbol.wide, group, angle, found.grid.points)
    wave = start_vector(short, found.symbol, Certified(0.0, found.grid, peak))
    assert wave is not None
    return wave.double()


def _climbed(wide: Symbol, group: int, angle: list[float], points: tuple[int, ...]) -> Peak:
    """The peak near an angle, to a small part of the grid's step, with its top left singular vector."""
    step = [math.pi / m if degree else 0.0 for m, degree in zip(points, wide.degrees, strict=True)]
    best, vector = _top(wide, group, angle)
    for _, axis in itertools.product(range(_HALVINGS), range(len(angle))):
        for sign in (1, -1) if step[axis] else ():
            moved = [w + sign * step[axis] * (a == axis) for a, w in enumerate(angle)]
            value, top = _top(wide, group, moved)
            if value > best:
                best, vector, angle = value, top, moved
                break
        step[axis] /= 2
    return Peak(group, tuple(angle), vector)


def _top(wide: Symbol, group: int, angle: list[float]) -> tuple[float, Tensor]:
    """The largest eigenvalue of F F* at an angle, and its vector."""
    turns = wide.exponents.double() @ torch.tensor(angle, dtype=torch.float64)
    coefficients = wide.coefficients[group].double()
    flat = coefficients.reshape(len(turns), -1)
    matrix = torch.complex(turns.cos() @ flat, turns.sin() @ flat).reshape(coefficients.shape[1:])
    values, vectors = top_eigenpairs((matrix @ matrix.mH)[None], steps=100, accuracy=1e-9)
    return float(values[0]), vectors[0]
