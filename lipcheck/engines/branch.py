"""The supremum of a symbol over all frequencies, by branch and bound: no input size is needed.

The torus is cut into cells; each is excluded by one proof at its centre, or cut further. Let w* be where
M = sup ||F||^2 is attained and v a unit vector with ||F(w*) v||^2 = M. Along one axis, the others held fixed,
f(w) = ||F(w) v||^2 is a trigonometric polynomial of degree at most D_a = max q_a - min q_a, and 0 <= f <= ||F||^2 <= M
everywhere. So g = 2 f / M - 1 lies in [-1, 1], and Bernstein and Szego's inequality g'^2 + D^2 g^2 <= D^2 says that
theta = arccos(g) changes by at most D_a per unit of w_a. It is 0 at w*. Going from w* to the centre c of the cell that
holds w*, one axis after the other, theta(c) <= S = sum_a D_a h_a with half-widths h_a; where S < pi,

    ||F(c)||^2 >= f(c) = M cos^2(theta(c) / 2) >= M cos^2(S / 2).

Hence: if ||F(c)|| <= mu cos(S / 2) is proved at the centre of every cell of a covering, then M <= mu^2, since M > mu^2
would contradict the proof at the centre of the cell that holds w*. The unknown M has left the condition, so mu may be
any trial value, and what was proved stays proved when mu is raised. By F(-w) = conj F(w), half of the torus suffices.

A symbol so flat that next to no cell can be excluded gets one uniform grid instead (`rounding.grid_ripple`), with half
as many points on two axes. Sources: Bernstein 1912 and Szego 1928 (Riesz for the cosine); maths, sections 3 and 4.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import lanczos
from lipcheck.engines.certified import Certified, Peak
from lipcheck.engines.gram import gram_family, matrix_magnitude, proves, scaled_by_power
from lipcheck.engines.levelset import LARGEST_DEGREE, peak_frequency
from lipcheck.engines.matrix import blurred, symbol_magnitude
from lipcheck.engines.search import top_eigenpairs
from lipcheck.engines.settings import DEFAULT_SETTINGS, Settings
from lipcheck.operators import Convolution, InfiniteConvolution
from lipcheck.proof import CellsProof, GridProof, ZeroProof
from lipcheck.symbol import Grid, Symbol, convolution_symbol

# One axis is refined so far where it is cheap; nothing is refined further than the second.
_FINE = 1e-6
_FINEST = 1e-8
_COARSEST = 0.1
# Floating-point operations after which a coarser bound is preferred, and how many a second is taken to have.
_MOST_WORK = 4e12
_SPEED = 2e10
# Where one axis has at most so many rows, its peak is found by level sets and narrowed down with so many cells.
_ROWS = 64
_CHEAP = 4000
# Matrices of at most this side are searched by LAPACK's eigenvalues instead of Lanczos.
_SMALL = 32
# Frequencies that are looked at among those not proved, and how many of any are evaluated to full accuracy.
_SAMPLES = 48
_SHARPENED = 3
_WARM = 24 << 20


def spectral_norm(operator: InfiniteConvolution, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    """[lower, upper] of sup ||F(w)||_2 over all w, the largest over the groups.

    `upper` is proved on cells that cover the torus, or on one uniform grid, within the tolerance of `lower` unless
    that takes too much work: then the slack says so. `lower` is attained at one frequency.
    """
    symbol = infinite_symbol(operator)
    if not bool(symbol.coefficients.any()):
        return Bound(0.0, 0.0, "zero", proof=ZeroProof())
    search = _Search(symbol, settings)
    upper, proof = search.prove()
    blur = rounding.multiply_up(operator.uncertainty, symbol_magnitude(symbol)) if operator.uncertainty else 0.0
    return blurred(attained(symbol, search.top), upper, blur, _method(proof), proof)


def certified_supremum(symbol: Symbol, settings: Settings, most: int) -> Certified | None:
    """What `certify` gives for a grid, for the supremum; None where it takes more than `most` proofs.

    A convolution on a large input is hardly below its symbol's supremum, whose proof needs fewer frequencies than the
    embedding has.
    """
    reduced, divisors = _reduced(symbol)
    search = _Search(reduced, settings)
    found = search._by_cells(search.tolerance, most)
    if found is None:
        return None
    upper, proof = found
    top = search.top
    angle = tuple(math.pi * i / (n * d) for i, n, d in zip(top.index, top.points, divisors, strict=True))
    return Certified(
        upper, Grid(proof.points, (1,) * len(proof.points)), Peak(top.group, angle, top.vector), upper, proof=proof
    )


def _method(proof: CellsProof | GridProof) -> str:
    if isinstance(proof, GridProof):
        return f"symbol's supremum, grid {'×'.join(map(str, proof.points))}"
    count = len(proof.cells)
    return f"symbol's supremum, {count} cell{'s' if count > 1 else ''}"


def infinite_symbol(operator: InfiniteConvolution) -> Symbol:
    """The symbol with the smallest degree that has the same supremum, in the shape with no more rows than columns.

    Exponents at which every matrix is zero are dropped, and a common divisor of the others' differences: F(w) = G(d w)
    takes the values of G.
    """
    axes = len(operator.stride)
    one = (1,) * axes
    weight = operator.weight.detach()
    finite = Convolution(weight, operator.stride, operator.dilation, operator.groups, (0,) * axes, one, one)
    symbol = convolution_symbol(finite)
    return _reduced(symbol)[0]


def _reduced(symbol: Symbol) -> tuple[Symbol, list[int]]:
    """G and the divisors d per axis with F(w) = G(d w) but for a phase."""
    axes = symbol.exponents.shape[1]
    used = symbol.coefficients.ne(0).any(3).any(2).any(0).cpu()
    if not bool(used.any()):
        return symbol.wide, [1] * axes
    exponents = symbol.exponents[used] - symbol.exponents[used].amin(0)
    divisors = [max(1, math.gcd(*exponents[:, axis].tolist())) for axis in range(axes)]
    kept = symbol.coefficients[:, used.to(symbol.coefficients.device)]
    return Symbol(kept, exponents // torch.tensor(divisors)).wide, divisors


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A frequency w = pi index / points, a group, and a top left singular vector of its F(w), with norm ||F(w)||_2."""

    points: tuple[int, ...]
    index: tuple[int, ...]
    group: int
    vector: Tensor
    norm: float  # at the family's scale, an estimate


def attained(symbol: Symbol, place: Place) -> float:
    """At most ||F(w)* u|| / ||u|| for the place's vector u: never above the supremum.

    In real arithmetic F(w)* u is a map with matrix [[C, S], [-S, C]]^T, C and S the sums of P_q cos<w, q> and
    P_q sin<w, q>: `taps` products and the error of the phases in an entry, 2 `rows` products in an output.
    """
    largest = float(symbol.coefficients[place.group].abs().max())
    exponent = math.frexp(largest)[1]
    blocks = scaled_by_power(symbol.coefficients[place.group].cpu(), -exponent)
    taps, rows = blocks.shape[:2]
    grid = Grid(place.points, (0,) * len(place.points))
    cosine, sine = grid.phases(torch.tensor([place.index]), symbol.exponents)
    flat = blocks.reshape(taps, -1)
    c, s = (cosine @ flat).reshape(blocks.shape[1:]), (sine @ flat).reshape(blocks.shape[1:])
    real_form = torch.cat([torch.cat([c, s]), torch.cat([-s, c])], dim=1)
    u = place.vector.cpu().to(torch.complex128)
    # The phases' error, 64 u, counts as 64 operations more.
    lower = lanczos.attained(
        lambda x: x @ real_form,
        torch.cat([u.real, u.imag]),
        terms=taps + 2 * rows + 72,
        magnitude=2 * matrix_magnitude(blocks.abs().sum(0), terms=taps),
    )
    return rounding.scale_down(lower, exponent)


class _Family(Protocol):
    """The norms of all groups of a symbol at given frequencies, with weights scaled by 2^-exponent.

    Shapes: index (frequencies, axes), in units of pi / grid.points.
    """

    exponent: int
    work: float

    def norms(self, grid: Grid, index: Tensor) -> Tensor:
        """Quick estimates of the largest norm over the groups, at each frequency; seldom too large, often too small."""

    def highest(self, grid: Grid, index: Tensor, near: Place) -> Place:
        """The highest of a few frequencies for the group of a place close by, whose vector starts the search."""

    def unproved(self, grid: Grid, index: Tensor, bound: float) -> Tensor:
        """Where it is not proved that no group's norm is above the bound."""

    def place(self, grid: Grid, index: Tensor) -> Place:
        """The group with the largest norm at one frequency. Shapes: index (1, axes)."""


class _Vectors:
    """Symbols of one row: the norm of a vector needs no factorisation."""

    def __init__(self, symbol: Symbol, settings: Settings) -> None:
        coefficients = symbol.coefficients[:, :, 0]
        self.groups, taps, self.columns = coefficients.shape
        self.exponent = math.frexp(float(coefficients.abs().max()))[1]
        scaled = scaled_by_power(coefficients, -self.exponent).to(settings.device)
        self.flat = scaled.transpose(0, 1).reshape(taps, -1)
        self.exponents = symbol.exponents
        self.work = 8.0 * self.flat.numel()
        self.chunk = max(1, min(settings.memory, 64 << 20) // (64 * self.groups * self.columns))
        # As in `vectors.bound_groups`: |F| of what is summed, and the roundings of F, of the squares and of their sum.
        magnitude = scaled.abs().sum(1).square().sum(1).sqrt() * (1 + rounding.gamma(taps + self.columns + 8))
        self.error = float(magnitude.max()) * rounding.gram_error(taps + self.columns, taps) + rounding.UNDERFLOW

    def _squares(self, grid: Grid, index: Tensor) -> Tensor:
        """|F|^2. Shapes: (frequencies, groups)."""
        cosine, sine = (phase.to(self.flat) for phase in grid.phases(index, self.exponents))
        squares = (cosine @ self.flat).square() + (sine @ self.flat).square()
        return squares.reshape(len(index), self.groups, self.columns).sum(2)

    def norms(self, grid: Grid, index: Tensor) -> Tensor:
        parts = [self._squares(grid, part).amax(1).sqrt().cpu() for part in torch.split(index, self.chunk)]
        return torch.cat(parts)

    def unproved(self, grid: Grid, index: Tensor, bound: float) -> Tensor:
        above = self.norms(grid, index) * (1 + rounding.gamma(self.columns + 12)) + self.error
        return above * (1 + 8 * rounding.UNIT) > bound

    def highest(self, grid: Grid, index: Tensor, near: Place) -> Place:
        squares = self._squares(grid, index)[:, near.group]
        best = int(squares.argmax())
        return Place(grid.points, _entries(index[best]), near.group, near.vector, float(squares[best]) ** 0.5)

    def place(self, grid: Grid, index: Tensor) -> Place:
        squares = self._squares(grid, index)[0]
        return Place(grid.points, _entries(index[0]), int(squares.argmax()), torch.ones(1), float(squares.max()) ** 0.5)


class _Matrices:
    """Symbols of several rows: R = F F*, estimated by Lanczos and proved by Cholesky."""

    def __init__(self, symbol: Symbol, settings: Settings, frequencies: int) -> None:
        self.family = gram_family([symbol], frequencies, settings.device, settings.memory)
        self.groups, rows = len(self.family.exponent), self.family.rows
        nonzero = [bool(group.any()) for group in symbol.coefficients]
        self.exponent = max(int(e) for e, some in zip(self.family.exponent, nonzero, strict=True) if some)
        # The common scale in units of each group's own, a power of two; groups of zeros need no proof.
        self.relative = [
            2.0 ** min(self.exponent - int(e), 1000) if some else math.inf
            for e, some in zip(self.family.exponent, nonzero, strict=True)
        ]
        # Small matrices take the time of some 5e5 operations, whatever they hold.
        self.work = self.groups * (8 / 3 * rows**3 + 8.0 * len(self.family.lags) * rows**2 + 5e5)
        budget = settings.memory // 5 if settings.device.type == "cuda" else min(settings.memory // 5, _WARM)
        self.chunk = max(1, budget // self.family.bytes_per_matrix)

    def norms(self, grid: Grid, index: Tensor) -> Tensor:
        return self._group_norms(grid, index).amax(0)

    def _group_norms(self, grid: Grid, index: Tensor) -> Tensor:
        """Shapes: (groups, frequencies)."""
        result = torch.zeros(self.groups, len(index), dtype=torch.float64)
        for group, relative in enumerate(self.relative):
            if relative == math.inf or float(self.family.magnitude[group]) / relative <= 0.5 * float(result.max()):
                continue
            parts = []
            for part in torch.split(index, 2 * self.chunk):
                item = torch.full((len(part),), group)
                if self.family.rows <= _SMALL:
                    values = torch.linalg.eigvalsh(self.family.matrices(item, grid, part))[:, -1]
                else:
                    matrices = self.family.matrices(item, grid, part, torch.float32)
                    values = top_eigenpairs(matrices, steps=8, orthogonal=False)[0]
                parts.append(values.double().cpu().clamp_min(0).sqrt())
            result[group] = torch.cat(parts) / relative
        return result

    def unproved(self, grid: Grid, index: Tensor, bound: float) -> Tensor:
        open_ = torch.zeros(len(index), dtype=torch.bool)
        for group, relative in enumerate(self.relative):
            magnitude = self.family.magnitude[group]
            # ||F(w)|| <= magnitude everywhere; well below the bound, a factorisation would succeed as well.
            if relative == math.inf or float(magnitude) / relative <= 0.99 * bound:
                continue
            for part in torch.split(torch.nonzero(~open_).flatten(), self.chunk):
                if len(part) == 0:
                    break
                matrices = self.family.matrices(torch.full((len(part),), group), grid, index[part])
                mu = torch.full((len(part),), bound * relative, dtype=torch.float64)
                open_[part] = ~proves(matrices, mu, magnitude.expand(len(part)), self.family.error).cpu()
        return open_

    def highest(self, grid: Grid, index: Tensor, near: Place) -> Place:
        item = torch.full((len(index),), near.group)
        if self.family.rows <= _SMALL:
            values, vectors = torch.linalg.eigh(self.family.matrices(item, grid, index))
            values, vectors = values[:, -1], vectors[:, :, -1]
        else:
            matrices = self.family.matrices(item, grid, index, torch.float32)
            start = near.vector.to(matrices).expand(len(index), -1)
            values, vectors = top_eigenpairs(matrices, steps=8, start=start, orthogonal=False)
        best = int(values.argmax())
        norm = max(float(values[best]), 0.0) ** 0.5 / self.relative[near.group]
        return Place(grid.points, _entries(index[best]), near.group, vectors[best], norm)

    def place(self, grid: Grid, index: Tensor) -> Place:
        group = int(self._group_norms(grid, index)[:, 0].argmax())
        matrix = self.family.matrices(torch.tensor([group]), grid, index)
        if self.family.rows <= _SMALL:
            values, vectors = torch.linalg.eigh(matrix)
            value, vector = float(values[0, -1]), vectors[0, :, -1]
        else:
            steps, accuracy = (200, 1e-13) if self.family.real else (100, 1e-9)
            tops, starts = top_eigenpairs(matrix, steps=steps, accuracy=accuracy)
            value, vector = float(tops[0]), starts[0]
        norm = max(value, 0.0) ** 0.5 / self.relative[group]
        return Place(grid.points, _entries(index[0]), group, vector, norm)


class _Search:
    """The search for the supremum of one symbol and its proof. `top` is the highest place found so far."""

    def __init__(self, symbol: Symbol, settings: Settings) -> None:
        self.symbol, self.degrees = symbol, symbol.degrees
        self.active = [axis for axis, degree in enumerate(self.degrees) if degree]
        self.tolerance = min(max(settings.tolerance, _FINEST), _COARSEST) if self.active else _FINEST
        frequencies = _frequencies(self._uniform_points(self.tolerance))
        self.family: _Family = (
            _Vectors(symbol, settings) if symbol.side == 1 else _Matrices(symbol, settings, frequencies)
        )
        self.affordable = max(64.0, min(_MOST_WORK, settings.time_budget * _SPEED) / self.family.work)
        points, _ = self._levels(self.tolerance)
        self.top = self._first(points)

    def prove(self) -> tuple[float, CellsProof | GridProof]:
        """An upper bound of the supremum, and its proof."""
        if len(self.active) == 1 and self.symbol.side <= _ROWS and self.tolerance > _FINE:
            found = self._by_cells(_FINE, min(_CHEAP, self.affordable))
            if found is not None:
                return found
        most = min(self.affordable, _frequencies(self._uniform_points(self.tolerance))) if self.active else math.inf
        return self._by_cells(self.tolerance, most) or self._by_grid()

    # Sizes of grids

    def _levels(self, tolerance: float) -> tuple[tuple[int, ...], int]:
        """The number of cells per axis to begin with, and how often they are halved until any cell can be proved.

        Even numbers, so that no cell is its own mirror image: half of those along the first axis stand for all.
        """
        # With this many per unit of degree, cos(S / 2) = 1 / (1 + 0.9 tolerance).
        enough = math.pi * len(self.active) / (2 * math.acos(1 / (1 + 0.9 * tolerance)))
        halvings = max(0, math.floor(math.log2(enough / (1.5 * len(self.active))))) if self.active else 0
        base = enough / 2**halvings
        return tuple(2 * math.ceil(degree * base / 2) if degree else 1 for degree in self.degrees), halvings

    def _uniform_points(self, tolerance: float) -> tuple[int, ...]:
        """The points per axis of one grid whose ripple is 1 / (1 + 0.9 tolerance) at most."""
        if not self.active:
            return self.degrees
        each = math.acos((1 + 0.9 * tolerance) ** (-1 / len(self.active)))
        return tuple(max(d + 1, math.ceil(d * math.pi / (2 * each))) if d else 1 for d in self.degrees)

    # The search

    def _first(self, points: tuple[int, ...]) -> Place:
        """The highest place that the coarsest cells, level sets and an ascent find."""
        grid = Grid(points, (0,) * len(points))
        index = 2 * _half_torus(points) + 1
        top = self._ascended(self._highest(grid, index))
        if len(self.active) == 1 and self.symbol.side <= _ROWS and max(self.degrees) <= LARGEST_DEGREE:
            top = max(top, self._by_level_sets(top.group), key=lambda place: place.norm)
        return top

    def _by_level_sets(self, group: int) -> Place:
        axis = self.active[0]
        coefficients = scaled_by_power(self.symbol.coefficients[group].cpu(), -self.family.exponent)
        frequency = peak_frequency(coefficients, self.symbol.exponents[:, axis])
        points = tuple(2**30 if a == axis else 1 for a in range(len(self.degrees)))
        index = torch.zeros(1, len(points), dtype=torch.long)
        index[0, axis] = round(frequency / math.pi * 2**30)
        return self.family.place(Grid(points, (0,) * len(points)), index)

    def _highest(self, grid: Grid, index: Tensor) -> Place:
        """The highest of those few of these frequencies that quick estimates put first."""
        order = self.family.norms(grid, index).argsort(descending=True, stable=True)
        places = [self.family.place(grid, index[i : i + 1]) for i in order[:_SHARPENED].tolist()]
        return max(places, key=lambda place: place.norm)

    def _ascended(self, top: Place) -> Place:
        """The place moved uphill on finer and finer grids, until what a step can gain is far below the tolerance."""
        moves = torch.tensor(list(itertools.product(*((-1, 0, 1) if degree else (0,) for degree in self.degrees))))
        factor = torch.tensor([2 if degree else 1 for degree in self.degrees])
        points, at = torch.tensor(top.points), torch.tensor(top.index)
        width = float((torch.tensor(self.degrees) / points).sum()) * math.pi
        best = top
        while self.active and width**2 / 8 > self.tolerance / 50:
            points, at, width = factor * points, factor * at, width / 2
            grid = Grid(tuple(points.tolist()), (0,) * len(points))
            for _ in range(2):
                best = self.family.highest(grid, at + moves, best)
                if best.index == _entries(at):
                    break
                at = torch.tensor(best.index)
        grid = Grid(tuple(points.tolist()), (0,) * len(points))
        return max(top, self.family.place(grid, at[None] % (2 * points)), key=lambda place: place.norm)

    # The proofs

    def _by_cells(self, tolerance: float, most: float) -> tuple[float, CellsProof] | None:
        """The supremum proved on cells, refined where that is needed; None where it takes more than `most` of them."""
        base, finest = self._levels(tolerance)
        cells, level, tried = _half_torus(base), 0, 0
        leaves: list[tuple[int, ...]] = []
        trial = _Trial(self.top.norm, tolerance)
        while True:
            points = tuple(n << level if degree else n for n, degree in zip(base, self.degrees, strict=True))
            grid = Grid(points, (1,) * len(points))
            share = rounding.cell_share(self.degrees, points)
            open_ = self.family.unproved(grid, 2 * cells + 1, rounding.multiply_down(trial.mu, share))
            leaves += [(level, *cell) for cell in cells[~open_].tolist()]
            tried, cells = tried + len(cells), cells[open_]
            if len(cells) == 0:
                mu = rounding.scale_up(trial.mu, self.family.exponent)
                return mu, CellsProof(mu, self.degrees, base, tuple(leaves))
            if self._improved(grid, 2 * cells + 1, trial) or level == finest:
                trial.raise_to(self.top.norm)
                continue
            if tried + (len(cells) << len(self.active)) > most:
                return None
            cells, level = self._halved(cells), level + 1

    def _improved(self, grid: Grid, index: Tensor, trial: _Trial) -> bool:
        """Whether some of the frequencies at which the trial was not proved lead higher than the top."""
        few = index[torch.linspace(0, len(index) - 1, min(len(index), _SAMPLES)).long()]
        found = self._highest(grid, few)
        if found.norm <= self.top.norm * (1 + 0.02 * trial.tolerance):
            return False
        self.top = self._ascended(found)
        return True

    def _halved(self, cells: Tensor) -> Tensor:
        """Each cell's children, halved along every axis that has a degree."""
        sides = torch.tensor(list(itertools.product(*((0, 1) if degree else (0,) for degree in self.degrees))))
        factor = torch.tensor([2 if degree else 1 for degree in self.degrees])
        return (cells[:, None] * factor + sides).flatten(0, 1)

    def _by_grid(self) -> tuple[float, GridProof]:
        """The supremum proved on one uniform grid, as fine as the tolerance asks and the work allows."""
        tolerance = self.tolerance
        while _frequencies(points := self._uniform_points(tolerance)) > self.affordable and tolerance < 1:
            tolerance *= 1.2
        half = (0,) * len(points)
        grid = Grid(points, half, rounding.grid_ripple(self.degrees, points))
        index = grid.indices()
        trial = _Trial(self.top.norm, 0.05 * tolerance)
        while True:
            index = index[self.family.unproved(grid, index, trial.mu)]
            if len(index) == 0:
                break
            self._improved(grid, index, trial)
            trial.raise_to(self.top.norm)
        mu = rounding.scale_up(trial.mu, self.family.exponent)
        corrected = tuple(degree > 0 for degree in self.degrees)
        return rounding.up(mu / grid.share, 2), GridProof(mu, points, half, corrected)


class _Trial:
    """A bound that is tried: a little above the highest norm found, and raised in growing steps where that fails."""

    def __init__(self, norm: float, tolerance: float) -> None:
        self.tolerance = tolerance
        self.step = 0.03 * tolerance
        # Never zero, so that raising it gets somewhere.
        self.mu = max(norm, 1e-100) * (1 + 0.97 * tolerance)

    def raise_to(self, norm: float) -> None:
        mu = norm * (1 + 0.97 * self.tolerance)
        if mu < self.mu * (1 + self.step):
            mu, self.step = self.mu * (1 + self.step), 2 * self.step
        self.mu = mu


def _half_torus(points: tuple[int, ...]) -> Tensor:
    """One cell of each pair that mirrors the other. Shapes: (cells, axes)."""
    first = next((axis for axis, n in enumerate(points) if n > 1), 0)
    lines = [torch.arange(max(1, n // 2) if axis == first else n) for axis, n in enumerate(points)]
    return torch.cartesian_prod(*lines).reshape(-1, len(points))


def _entries(index: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in index)


def _frequencies(points: tuple[int, ...]) -> int:
    return math.prod(points) // 2 + 1
