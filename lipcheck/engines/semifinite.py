"""One axis finite, the others embedded in circles: tighter than the embedding, far cheaper than the finite operator.

At each frequency w of the embedded axes the operator is a convolution along the finite axis alone, with complex taps
W_k(w); written with real and imaginary parts it is a real one with twice the channels, which `finite` bounds.

    ||A|| <= max over the grid of ||A(w)||

Source: maths, section 2, bound (3) on all axes but one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import finite
from lipcheck.engines.gram import scaled_by_power
from lipcheck.engines.matrix import blurred
from lipcheck.engines.settings import Settings
from lipcheck.errors import CertificateError
from lipcheck.operators import Convolution
from lipcheck.proof import SemifiniteProof, ZeroProof
from lipcheck.symbol import Grid, convolution_symbol, embedding_points, trimmed

_STEPS = 12
_SHARP_STEPS = 120
_MOST_SLACK = 1e-4
_ATTEMPTS = 40
_AT_ONCE = 64
# What is left of a vector below this share of the norm is rounding of float32.
_EXHAUSTED = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """A convolution with one axis kept finite: for each tap of that axis a symbol over the others, the embedded axes.

    Shapes: `coefficients` is (groups, taps, exponents, rows, columns), `exponents` (exponents, axes - 1); `line` is the
    convolution along the axis without its channels.
    """

    axis: int
    points: tuple[int, ...]
    coefficients: Tensor
    exponents: Tensor
    line: Convolution

    @property
    def grids(self) -> list[Grid]:
        """All phases that keep F(-w) = conj F(w)."""
        free = [(0, 1) if m > 1 else (0,) for m in self.points]
        return [Grid(self.points, half) for half in itertools.product(*free)]

    def taps(self, group: int, grid: Grid, index: Tensor) -> Tensor:
        """The taps of A(w) with real and imaginary part as [[Re, -Im], [Im, Re]], which has the norm of Re + i Im.

        Each is off by at most `error` times the sum of the moduli of its coefficients.
        Shapes: index (n, axes - 1), the integers of `Grid.indices`; result (n, 2 rows, 2 columns, taps).
        """
        cosine, sine = grid.phases(index, self.exponents)
        coefficients = self.coefficients[group].double()
        real, imaginary = (
            torch.einsum("nq,kqrc->nrck", wave.to(coefficients), coefficients) for wave in (cosine, sine)
        )
        return torch.cat([torch.cat([real, -imaginary], 2), torch.cat([imaginary, real], 2)], 1)

    def slice(self, group: int, grid: Grid, place: Tensor) -> Convolution:
        """A(w) of one group as a real convolution of one axis. Shapes: place (axes - 1,)."""
        taps = self.taps(group, grid, place[None])[0]
        if all(int(t) % m == 0 for t, m in zip(place, grid.points, strict=True)):
            # w is its own mirror image, so the taps are real.
            rows, columns = self.coefficients.shape[3:]
            taps = taps[:rows, :columns]
        return replace(self.line, weight=taps.contiguous())

    @property
    def error(self) -> float:
        """||A(w) - slice|| over the norm of the convolution with |W|: real and imaginary part are each off by half."""
        return 2 * (rounding.gamma(len(self.exponents) + 2) + 2 * rounding.PHASE_ERROR)


def strips(operator: Convolution) -> list[Strip]:
    """Every way to keep one axis finite. An axis on which the symbol is constant is embedded in a single point."""
    return [_strip(operator, axis) for axis in range(operator.axes)]


def _strip(operator: Convolution, axis: int) -> Strip:
    rest = [a for a in range(operator.axes) if a != axis]
    taps = [
        _along(operator, rest, operator.weight.select(axis + 2, k), operator.groups)
        for k in range(operator.kernel[axis])
    ]
    symbols = [convolution_symbol(tap) for tap in taps]
    points = tuple(m if d else 1 for m, d in zip(embedding_points(taps[0]), symbols[0].degrees, strict=True))
    coefficients = torch.stack([symbol.coefficients for symbol in symbols], dim=1)
    line = _along(operator, [axis], operator.weight.new_zeros(1, 1, operator.kernel[axis]), 1)
    return Strip(axis, points, coefficients, symbols[0].exponents, line)


def _along(operator: Convolution, axes: Sequence[int], weight: Tensor, groups: int) -> Convolution:
    """A convolution with the geometry of some of the operator's axes."""

    def some(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(values[axis] for axis in axes)

    return Convolution(weight, some(operator.stride), some(operator.dilation), groups, some(operator.offset),
                       some(operator.input_size), some(operator.output_size))  # fmt: skip


def cost(operator: Convolution) -> float:
    """Floating-point operations of all factorisations and of the search, for the dearest choice of the finite axis."""
    operator = trimmed(operator)
    if operator.axes == 1:
        return finite.cost(operator)
    rows = operator.weight.shape[0] // operator.groups
    most = 0.0
    for strip in strips(replace(operator, weight=operator.weight[:1, :1], groups=1)):
        columns = operator.weight.shape[1] * strip.coefficients.shape[4]
        weight = torch.zeros(1, 1, 1).expand(2 * rows, 2 * columns, operator.kernel[strip.axis])
        frequencies = math.prod(strip.points) // 2 + 1
        most = max(most, operator.groups * frequencies * finite.cost(replace(strip.line, weight=weight)))
    return most


def spectral_norm(operator: Convolution, settings: Settings) -> Bound:
    """The enclosure of a zero-padded convolution's norm with one axis finite, of all its groups.

    The axis and the phases are those that promise least; then the grid is proved, frequency by frequency.
    Errors: CertificateError where mu could not be proved.
    """
    assert not operator.circular, "a circular convolution's symbol is exact"
    operator = trimmed(operator)
    if not bool(operator.weight.any()):
        return Bound(0.0, 0.0, "zero", proof=ZeroProof())
    if operator.axes == 1:
        return finite.spectral_norm(operator, settings)
    exponent = math.frexp(float(operator.weight.abs().max()))[1]
    scaled = replace(operator, weight=scaled_by_power(operator.weight, -exponent))
    lower = finite.search(scaled, settings)
    chosen = _choose(scaled, settings)
    size = finite.magnitude(scaled)
    mu = rounding.up(_prove(chosen, lower, settings) + rounding.up(chosen.strip.error * size, 4))
    lower, mu = rounding.scale_down(lower, exponent), rounding.scale_up(mu, exponent)
    proof = SemifiniteProof(mu, (chosen.strip.axis,), chosen.grid.points, chosen.grid.half)
    blur = rounding.multiply_up(operator.uncertainty, rounding.scale_up(size, exponent))
    return blurred(lower, mu, blur, f"semifinite {chosen.grid.spread}", proof)


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """A strip, its grid, and all slices with their estimated norms, the largest first."""

    strip: Strip
    grid: Grid
    places: list[tuple[float, int, Tensor]]  # estimate, group, frequency


def _choose(scaled: Convolution, settings: Settings) -> _Choice:
    """The axis and the grid with the least estimate of the largest norm on it."""
    best: _Choice | None = None
    for strip in strips(scaled):
        for grid in strip.grids:
            index = grid.indices()
            places: list[tuple[float, int, Tensor]] = []
            for group in range(scaled.groups):
                values = _estimates(strip, group, grid, index, settings)
                places += [(value, group, place) for value, place in zip(values, index, strict=True)]
            places.sort(key=lambda place: -place[0])
            if best is None or places[0][0] < best.places[0][0]:
                best = _Choice(strip, grid, places)
    assert best is not None
    return best


def _estimates(strip: Strip, group: int, grid: Grid, index: Tensor, settings: Settings) -> list[float]:
    """The norms of a group's slices at these frequencies, estimated in float32, side by side as groups."""
    found = []
    for part in torch.split(index, _AT_ONCE):
        weight = strip.taps(group, grid, part).float().to(settings.device)
        stacked = replace(strip.line, weight=weight.flatten(0, 1), groups=len(part))
        found += _norms(stacked, _STEPS).tolist()
    return found


def _norms(stacked: Convolution, steps: int) -> Tensor:
    """Estimates of each group's norm, by Lanczos without reorthogonalisation. Shapes: (groups,)."""
    g = stacked.groups
    noise = torch.Generator().manual_seed(0)
    vector = torch.randn(1, stacked.input_channels, *stacked.input_size, generator=noise).to(stacked.weight)
    steps = min(steps, vector.numel() // g)
    triangle = torch.zeros(g, steps, steps, dtype=torch.float64)
    before, length = torch.zeros_like(vector), torch.zeros(g, 1)

    def each(value: Tensor) -> Tensor:
        return value.reshape(g, -1)

    norm = torch.linalg.vector_norm(each(vector), dim=1, keepdim=True)
    for step in range(steps):
        vector = (each(vector) / norm.clamp_min(1e-30)).reshape(vector.shape)
        image = stacked.adjoint(stacked.forward(vector))
        along = (each(image) * each(vector)).sum(1, keepdim=True)
        triangle[:, step, step] = along[:, 0].double().cpu()
        image = (each(image) - along * each(vector) - length.to(along) * each(before)).reshape(vector.shape)
        length = torch.linalg.vector_norm(each(image), dim=1, keepdim=True)
        # The reachable space is exhausted: the tridiagonal matrix decouples.
        length = torch.where(length > _EXHAUSTED * along.abs(), length, 0.0)
        image = (each(image) * (length > 0)).reshape(vector.shape)
        if step + 1 < steps:
            triangle[:, step, step + 1] = triangle[:, step + 1, step] = length[:, 0].double().cpu()
        before, vector, norm = vector, image, length
    norms: Tensor = torch.linalg.eigvalsh(triangle)[:, -1].clamp_min(0).sqrt()
    return norms


def _prove(chosen: _Choice, lower: float, settings: Settings) -> float:
    """A mu that no slice exceeds, proved for each; the promising ones first, so that mu rises early.

    Errors: CertificateError where no proof succeeds.
    """
    strip, grid = chosen.strip, chosen.grid
    slack = min(settings.tolerance / 10, _MOST_SLACK)
    mu = lower * (1 + slack) + rounding.UNDERFLOW
    for rank, (_, group, place) in enumerate(chosen.places):
        one = strip.slice(group, grid, place)
        plan = finite.plan(one)
        if rank == 0:
            mu = max(mu, finite.search(one, settings) * (1 + slack))
        for _ in range(_ATTEMPTS):
            if finite.magnitude(one) <= mu or finite.below(one, plan, mu, settings.device):
                break
            mu, slack = max(finite.search(one, settings) * (1 + slack), mu * (1 + slack)), slack * 2
        else:
            raise CertificateError(f"one finite axis: no factorisation at {mu} or below; use the embedding's bound")
    return mu
