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
from lipcheck.engines import cells, threads
from lipcheck.engines.gram import GramFamily, gram_family, least_proved, proves
from lipcheck.engines.search import top_eigenpairs
from lipcheck.engines.vectors import bound_groups
from lipcheck.proof import Proof
from lipcheck.symbol import Grid, Symbol

# Frequencies at which a first guess is made, before all of them are proved.
_GUESSES = 48
_WARM = 24 << 20
# Groups of one row that are looked at on all grids to begin with.
_FEW = 8


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
    prover = _Prover(family, groups, first.degrees, memory, tolerance)
    results = []
    for one in range(len(symbols)):
        results.append(prover.prove(one, grids))
        advance(1.0)
    return results


def estimate(
    symbol: Symbol, grids: Sequence[Grid], *, tolerance: float, device: torch.device, memory: int
) -> Certified:
    """What `certify` would begin with, and hardly be below: nothing in it is proved.

    Shapes: a symbol of several rows.
    """
    family = gram_family([symbol], max(1, _frequencies(grids[0])), device, memory)
    prover = _Prover(family, symbol.coefficients.shape[0], symbol.degrees, memory, tolerance)
    return prover.estimate(grids)


def _frequencies(grid: Grid) -> int:
    return math.prod(grid.points) // 2 + 1


class _Prover:
    """Searches and proves the bounds of one Gram family, symbol by symbol."""

    def __init__(
        self, family: GramFamily, groups: int, degrees: tuple[int, ...], memory: int, tolerance: float
    ) -> None:
        self.family, self.groups, self.degrees, self.tolerance = family, groups, degrees, tolerance
        # A chunk of R lives up to four times: itself, its shifted copy, the factor, and scratch. On a CPU small chunks
        # are faster, since the allocator hands the same warm pages out again.
        budget = memory // 5 if family.device.type == "cuda" else min(memory // 5, _WARM)
        self.chunk = max(1, budget // family.bytes_per_matrix)

    def estimate(self, grids: Sequence[Grid]) -> Certified:
        """The norm at the highest place of the best grid, after a first look."""
        items = torch.arange(self.groups)
        scale, relative = self._scales(items)
        if scale is None:
            return Certified(0.0, grids[0], None)
        grid, place, vector = self._choose(items, relative, grids)
        index = grid.indices()
        value, vector = self._sharpen(items, relative, grid, index, place, vector, self.family.real)
        return Certified(rounding.scale_down(value**0.5, scale), grid, self._peak(grid, index, place, vector))

    def prove(self, symbol: int, grids: Sequence[Grid]) -> Certified:
        items = torch.arange(symbol * self.groups, (symbol + 1) * self.groups)
        scale, relative = self._scales(items)
        if scale is None:
            return Certified(0.0, grids[0], None)
        exact = self.family.real
        # What is left above the search's value is what an independent check of the proof may lose to its own rounding.
        slack = min(1e-7 if exact else 1e-4, self.tolerance / 10)
        grid, place, vector = self._choose(items, relative, grids)
        index = grid.indices()
        value, vector = self._sharpen(items, relative, grid, index, place, vector, exact)
        mu = value**0.5 * (1 + slack)
        pairs = torch.cartesian_prod(torch.arange(len(items)), torch.arange(len(index)))
        open_pairs = self._pruned(items, relative, grid, index, pairs, mu)
        while True:
            open_pairs = open_pairs[~self._proved(items, relative, grid, index[open_pairs[:, 1]], open_pairs[:, 0], mu)]
            if len(open_pairs) == 0:
                break
            guess, at, top = self._estimate(items, relative, grid, index, open_pairs, steps=10)
            guess, top = self._sharpen(items, relative, grid, index, at, top, exact)
            if guess > value:
                value, place, vector = guess, at, top
            slack = slack * 2 if guess**0.5 * (1 + slack) <= mu else slack
            items_left = items[open_pairs[:, 0]]
            least = least_proved(self.family.magnitude[items_left] / relative[open_pairs[:, 0]], self.family.error)
            mu = max(guess**0.5 * (1 + slack), mu * (1 + slack), least)
        proved = upper = rounding.scale_up(mu, scale)
        if grid.share < 1:
            upper = rounding.up(upper / grid.share, 2)
        return Certified(upper, grid, self._peak(grid, index, place, vector), proved)

    def _scales(self, items: Tensor) -> tuple[int | None, Tensor]:
        """The power of two at which groups are compared, None for zeros, and it over each group's own."""
        zero = self.family.magnitude[items] <= 2 * rounding.UNDERFLOW
        scale = None if bool(zero.all()) else int(self.family.exponent[items][~zero].max())
        steps = torch.where(zero, 0, (scale or 0) - self.family.exponent[items])
        return scale, torch.tensor([2.0 ** min(step, 1000) for step in steps.tolist()], dtype=torch.float64)

    @staticmethod
    def _peak(grid: Grid, index: Tensor, place: Tensor, vector: Tensor) -> Peak:
        angle = tuple(math.pi * t / m for t, m in zip(index[place[1]].tolist(), grid.points, strict=True))
        return Peak(int(place[0]), angle, vector)

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
        # Far below the slack that stands above the value.
        steps, accuracy = (200, 1e-13) if exact else (100, 1e-7)
        values, vectors = top_eigenpairs(matrix, steps=steps, start=start, accuracy=accuracy)
        value = float(values[0]) / float(relative[where[0]]) / float(relative[where[0]])
        return max(value, 1e-300), vectors[0]

    def _proved(
        self, items: Tensor, relative: Tensor, grid: Grid, index: Tensor, group: Tensor, bound: float
    ) -> Tensor:
        """Where it is proved that a group's norm at a frequency is below the bound.

        Shapes: index (n, axes) in units of the grid's half steps, group (n,); result (n,) of bool.
        """

        def below(part: tuple[Tensor, Tensor]) -> Tensor:
            own, where = part
            matrices = self.family.matrices(items[own], grid, where)
            # A power of two, so that the bound is compared at each item's own scale without rounding.
            mu = bound * relative[own]
            return proves(matrices, mu, self.family.magnitude[items[own]], self.family.error).cpu()

        # Threads that share the work have chunks of their own.
        size = min(self.chunk, max(1, -(-len(group) // threads.workers(self.family.device))))
        parts = list(zip(torch.split(group, size), torch.split(index, size), strict=True))
        return torch.cat(threads.shared(below, parts, self.family.device))

    def _pruned(self, items: Tensor, relative: Tensor, grid: Grid, index: Tensor, pairs: Tensor, mu: float) -> Tensor:
        """The pairs of group and frequency that are left when one proof for a block of them excludes what it can.

        A level of blocks is left out where those tried first promise no gain. See `cells`.
        """
        for span in cells.SPANS:
            axes = cells.fine_axes(self.degrees, grid)
            share = cells.block_share(self.degrees, grid, axes, span)
            if not axes or share == 0 or len(pairs) < cells.FEWEST:
                continue
            group, centre, inside = cells.blocks(grid, axes, span, pairs[:, 0], index[pairs[:, 1]])
            bound = rounding.multiply_down(mu, share)
            proved = torch.zeros(len(group), dtype=torch.bool)
            first = torch.arange(0, len(group), cells.stride(len(group)))
            proved[first] = self._proved(items, relative, grid, centre[first], group[first], bound)
            rest = torch.ones(len(group), dtype=torch.bool)
            rest[first] = False
            if bool(rest.any()) and float(proved[first].double().mean()) > 1.2 / 2 ** len(axes):
                proved[rest] = self._proved(items, relative, grid, centre[rest], group[rest], bound)
            pairs = pairs[~proved[inside]]
        return pairs


def _vectors(symbol: Symbol, grids: Sequence[Grid], device: torch.device, memory: int) -> Certified:
    """The largest of the groups' bounds for a symbol with one row."""
    if float(symbol.coefficients.abs().max()) == 0:
        return Certified(0.0, grids[0], None)
    first = bound_groups(symbol, grids[:1], device, memory)
    order = first.upper.argsort(descending=True, stable=True)
    best = Certified(0.0, grids[0], None)
    step = _FEW
    # All grids for those groups only that the first one leaves above the largest bound so far.
    while len(order := order[first.upper[order] > best.upper]):
        few = Symbol(symbol.coefficients[order[:step]], symbol.exponents)
        bounds = bound_groups(few, grids, device, memory)
        top = bounds.top
        upper = float(bounds.upper[top])
        if upper > best.upper:
            peak = Peak(int(order[top]), bounds.angle(top), torch.ones(1, dtype=torch.float64))
            best = Certified(upper, bounds.grid(top), peak, upper, shared=False)
        order, step = order[step:], 4 * step
    return best
