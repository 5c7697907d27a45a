"""The limit that a certification by factorisations works against: one Cholesky per frequency that cannot be excluded.

Two counts, both at the frequencies of half the embedding grid, whose norms are taken as known. `all`: each of them is
factored. `needed`: a factorisation at one frequency, with the room that its norm leaves, excludes those around it
(maths, section 3: with M = sup ||F||^2 and theta(w) = arccos(2 ||F(w)||^2 / M - 1), theta changes by at most D per unit
of w per axis), and factorisations are placed greedily until all frequencies are proved or excluded. M is the grid's
maximum over its share of the supremum. Only factorisations are timed: neither forming the matrices, nor the search.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.layers import Layer, one_of_each_shape
from benchmarks.peaks import Norms, norms
from lipcheck import rounding
from lipcheck.operators import Convolution
from lipcheck.symbol import convolution_symbol, trimmed

_WARM = 24 << 20
_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Count:
    """The factorisations for one layer: of which side, complex or real, at all frequencies and at those needed."""

    side: int
    complex_valued: bool
    all: int
    needed: int

    def seconds(self, threads: int) -> tuple[float, float]:
        """At all frequencies and at those needed, shared evenly among the threads."""
        each = cholesky_seconds(self.side, complex_valued=self.complex_valued) / threads
        return self.all * each, self.needed * each


@dataclass(frozen=True, slots=True)
class Floor:
    """The factorisations for all layers of a network, each shape counted once. Units: seconds."""

    all_seconds: float
    needed_seconds: float
    counts: dict[int, Count]  # by the place of the layer


def floor(layers: Sequence[Layer], threads: int) -> Floor:
    """The limit for these layers."""
    places = {id(layer): place for place, layer in enumerate(layers)}
    counts, everything, needed = {}, 0.0, 0.0
    for layer, times in one_of_each_shape(layers):
        found = counts[places[id(layer)]] = count(layer.operator)
        seconds = found.seconds(threads)
        everything, needed = everything + times * seconds[0], needed + times * seconds[1]
    return Floor(everything, needed, counts)


def count(operator: Convolution) -> Count:
    """How many factorisations the operator takes; one a group where its symbol is constant."""
    symbol = convolution_symbol(trimmed(operator))
    if not any(symbol.degrees) or not bool(operator.weight.any()):
        return Count(symbol.side, False, operator.groups, operator.groups)
    found = norms(operator)
    return Count(symbol.side, True, found.values.numel(), _needed(found))


def _needed(found: Norms) -> int:
    """The frequencies, over all groups, at which a factorisation is placed."""
    points, degrees = found.grid.points, found.symbol.degrees
    largest = float(found.values.max())
    if any(0 < degree >= m for degree, m in zip(degrees, points, strict=True)):
        return found.values.numel()
    supremum = largest / rounding.grid_ripple(degrees, points)
    radius = _radius(found.values.double(), supremum, largest)
    around, distance = _neighbourhood(points, degrees)
    return sum(_placed(row.numpy(), found.index // 2, points, around, distance) for row in radius)


def _radius(values: Tensor, supremum: float, largest: float) -> Tensor:
    """How far around a frequency of this norm none exceeds `largest`, in the sum of D |w - w'|; negative: nowhere."""
    return 2 * (torch.acos((values / supremum).clamp(max=1)) - math.acos(largest / supremum))


def _neighbourhood(points: tuple[int, ...], degrees: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """All steps on the grid, the nearest first, and the sum of D |w - w'| over the axes for each."""
    steps = np.stack(np.meshgrid(*(np.arange(m) for m in points), indexing="ij"), axis=-1).reshape(-1, len(points))
    modulus = np.array(points)
    distance = (np.minimum(steps, modulus - steps) * (2 * np.pi * np.array(degrees) / modulus)).sum(1)
    order = distance.argsort(kind="stable")
    return steps[order], distance[order]


def _placed(
    radius: np.ndarray, place: Tensor, points: tuple[int, ...], around: np.ndarray, distance: np.ndarray
) -> int:
    """How many factorisations prove one group: the widest first, each with its mirror image."""
    modulus, covered = np.array(points), np.zeros(points, dtype=bool)
    centres = place.numpy()
    reach = np.searchsorted(distance, radius, side="right").clip(1)
    placed = 0
    for one in radius.argsort()[::-1]:
        centre = centres[one]
        if covered[tuple(centre)]:
            continue
        placed += 1
        near = (centre + around[: reach[one]]) % modulus
        covered[tuple(near.T)] = True
        covered[tuple((-near % modulus).T)] = True
    return placed


@functools.cache
def cholesky_seconds(side: int, *, complex_valued: bool) -> float:
    """One factorisation in float64 on one thread, in batches that fit a cache: the best of several."""
    dtype = torch.complex128 if complex_valued else torch.float64
    batch = max(1, min(256, _WARM // (side**2 * dtype.itemsize)))
    noise = torch.randn(batch, side, side, dtype=dtype, generator=torch.Generator().manual_seed(0))
    matrices = noise + noise.mH
    matrices.diagonal(dim1=1, dim2=2).add_(8.0 * side**0.5 + 8)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best, begun = math.inf, time.perf_counter()
        while best == math.inf or time.perf_counter() - begun < _SECONDS:
            start = time.perf_counter()
            torch.linalg.cholesky_ex(matrices)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return best / batch
