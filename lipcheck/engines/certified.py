"""The certified upper bound: guess mu where the symbol is largest, then prove it at every frequency of the grid.

Matrices and convolutions alike: a matrix is a symbol with one frequency. Source: maths, sections 1, 2 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.engines.gram import GramFamily, gram_family, proves
from lipcheck.engines.search import top_eigenpairs
from lipcheck.engines.vectors import bound_groups
from lipcheck.proof import Proof
from lipcheck.symbol import Grid, Symbol

# Frequencies at which a first guess is made, before all of them are proved.
_GUESSES = 48
_WARM = 24 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Peak:
    """Where a certified symbol came closest to its bound: the start for a lower bound.

    Shapes: `angle` holds w per axis; `vector` is a top eigenvector of R(w) of the group `group`, for the wide symbol.
    """

    group: int
    angle: tuple[float, ...]
    vector: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Certified:
    """||F|| <= mu on the whole grid, proved; `upper` is mu over the grid's share of the supremum.

    Where groups have grids of their own (`shared` is False), `grid` is that of the largest. Where mu was proved for all
    frequencies by other means than a grid, `proof` says by which.
    """

    upper: float
    grid: Grid
    peak: Peak | None
    mu: float = 0.0
    shared: bool = True
    proof: Proof | None = None


def certify(
    symbols: Sequence[Symbol],
    grids: Sequence[Grid],
    *,
    tolerance: float,
    device: torch.device,
    memory: int,
    advance: Callable[[float], None] = lambda work: None,
) -> list[Certified]:
    """An upper bound of every symbol's norm on its best grid, within `tolerance` of the maximum there.

    Shapes: symbols of equal shape and exponents; `grids` are the candidates, the same for all of them.
    Errors: none; the bound is raised until the proof succeeds.
    """
    first = symbols[0]
    if first.side == 1:
        return [_vectors(symbol, grids, device, memory) for symbol in symbols]
    family = gram_family(list(symbols), max(1, _frequencies(grids[0])), device, memory)
    groups = first.coefficients.shape[0]
    prover = _Prover(family, groups, memory, tolerance)
    results = []
    for one in range(len(symbols)):
        results.append(prover.prove(one, grids))
        advance(1.0)
    return results


def _frequencies(grid: Grid) -> int:
    return math.prod(grid.points) // 2 + 1


class _Prover:
    """Searches and proves the bounds of one Gram family, symbol by symbol."""

    def __init__(self, family: GramFamily, groups: int, memory: int, tolerance: float) -> None:
        self.family, self.groups, self.tolerance = family, groups, tolerance
        # A chunk of R lives up to four times: itself, its shifted copy, the factor, and scratch. On a CPU small chunks
        # are faster, since the allocator hands the same warm pages out again.
        budget = memory // 5 if family.device.type == "cuda" else min(memory // 5, _WARM)
        self.chunk = max(1, budget // family.bytes_per_matrix)

    def prove(self, symbol: int, grids: Sequence[Grid]) -> Certified:
        items = torch.arange(symbol * self.groups, (symbol + 1) * self.groups)
        zero = self.family.magnitude[items] <= 2 * rounding.UNDERFLOW
        if bool(zero.all()):
            return Certified(0.0, grids[0], None)
        scale = int(self.family.exponent[items][~zero].max())
        # Groups are compared at one common scale.
        steps = torch.where(zero, 0, scale - self.family.exponent[items])
        relative = torch.tensor([2.0 ** min(step, 1000) for step in steps.tolist()], dtype=torch.float64)
        exact = self.family.real
        # What is left above the search's value is what an independent check of the proof may lose to its own rounding.
        slack = min(1e-7 if exact else 1e-4, self.tolerance / 10)
        grid, place, vector = self._choose(items, relative, grids)
        index = grid.indices()
        open_pairs = torch.cartesian_prod(torch.arange(len(items)), torch.arange(len(index)))
        value, vector = self._sharpen(items, relative, grid, index, place, vector, exact)
        mu = value**0.5 * (1 + slack)
        while True:
            open_pairs = self._unproved(items, relative, grid, index, open_pairs, mu)
            if len(open_pairs) == 0:
                break
            guess, at, top = self._estimate(items, relative, grid, index, open_pairs, steps=10)
            guess, top = self._sharpen(items, relative, grid, index, at, top, exact)
            if guess > value:
                value, place, vector = guess, at, top
            slack = slack * 2 if guess**0.5 * (1 + slack) <= mu else slack
            mu = max(guess**0.5 * (1 + slack), mu * (1 + slack))
        proved = upper = rounding.scale_up(mu, scale)
        if grid.share < 1:
            upper = rounding.up(upper / grid.share, 2)
        angle = tuple(math.pi * t / m for t, m in zip(index[place[1]].tolist(), grid.points, strict=True))
        return Certified(upper, grid, Peak(int(place[0]), angle, vector), proved)

    def _choose(self, items: Tensor, relative: Tensor, grids: Sequence[Grid]) -> tuple[Grid, Tensor, Tensor]:
        """The grid that best straddles the highest place found on the first one, and its own highest place there.

        A peak lies between the frequencies of the grid that bounds it best. So the half steps around the peak are
        evaluated, each of which belongs to one of the grids, and the grid whose points there are lowest is taken.
        Shapes: the place is (group, frequency).
        """
        first = grids[0]
        index = first.indices()
        pairs = torch.cartesian_prod(torch.arange(len(items)), torch.arange(len(index)))
        every = max(1, len(pairs) // _GUESSES)
        value, place, vector = self._estimate(items, relative, first, index, pairs[::every], steps=6)
        if len(grids) == 1:
            return first, place, vector
        best: tuple[float, Grid, Tensor, Tensor] | None = None
        for grid in grids:
            near = grid.neighbours(index[place[1]])
            pairs = torch.stack([place[0].expand(len(near)), torch.tensor(near)], dim=1)
            value, at, top = self._estimate(items, relative, grid, grid.indices(), pairs, steps=6)
            if best is None or value < best[0]:
                best = (value, grid, at, top)
        assert best is not None
        return best[1], best[2], best[3]

    def _estimate(
        self, items: Tensor, relative: Tensor, grid: Grid, index: Tensor, pairs: Tensor, steps: int
    ) -> tuple[float, Tensor, Tensor]:
        """The largest eigenvalue estimated over the pairs of item and frequency, in float32."""
        best: tuple[float, Tensor, Tensor] | None = None
        for chunk in torch.split(pairs, 2 * self.chunk):
            matrices = self.family.matrices(items[chunk[:, 0]], grid, index[chunk[:, 1]], torch.float32)
            values, vectors = top_eigenpairs(matrices, steps=steps, orthogonal=False)
            scaled = values.double().cpu() / relative[chunk[:, 0]] / relative[chunk[:, 0]]
            top = int(scaled.argmax())
            if best is None or float(scaled[top]) > best[0]:
                best = (float(scaled[top]), chunk[top], vectors[top])
        assert best is not None
        return best

    def _sharpen(
        self, items: Tensor, relative: Tensor, grid: Grid, index: Tensor, where: Tensor, vector: Tensor, exact: bool
    ) -> tuple[float, Tensor]:
        """The eigenvalue and its vector at one place, in float64."""
        matrix = self.family.matrices(items[where[:1]], grid, index[where[1:]])
        start = vector.to(matrix)[None]
        steps, accuracy = (200, 1e-13) if exact else (100, 1e-9)
        values, vectors = top_eigenpairs(matrix, steps=steps, start=start, accuracy=accuracy)
        value = float(values[0]) / float(relative[where[0]]) / float(relative[where[0]])
        return max(value, 1e-300), vectors[0]

    def _unproved(self, items: Tensor, relative: Tensor, grid: Grid, index: Tensor, pairs: Tensor, mu: float) -> Tensor:
        """The pairs of item and frequency at which mu is not proved."""
        failed = []
        for chunk in torch.split(pairs, self.chunk):
            matrices = self.family.matrices(items[chunk[:, 0]], grid, index[chunk[:, 1]])
            # A power of two, so that mu is compared at each item's own scale without rounding.
            bound = mu * relative[chunk[:, 0]]
            magnitude = self.family.magnitude[items[chunk[:, 0]]]
            failed.append(chunk[~proves(matrices, bound, magnitude, self.family.error).cpu()])
        return torch.cat(failed)


def _vectors(symbol: Symbol, grids: Sequence[Grid], device: torch.device, memory: int) -> Certified:
    """The largest of the groups' bounds for a symbol with one row."""
    if float(symbol.coefficients.abs().max()) == 0:
        return Certified(0.0, grids[0], None)
    bounds = bound_groups(symbol, grids, device, memory)
    top = bounds.top
    peak = Peak(top, bounds.angle[top], torch.ones(1, dtype=torch.float64))
    upper = float(bounds.upper[top])
    return Certified(upper, bounds.grid[top], peak, upper, shared=False)
