"""A symbol at the frequencies of a grid, a bounded number at a time, and where something of it is largest.

The maximum over a grid is found without gradients; then its one place is evaluated again with them, so that the
gradient is exact and costs one frequency. Few taps and many channels: a product with cosines and sines is less work
than an FFT, and its rounding is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck.engines.literature.subject import Subject
from lipcheck.operators import Convolution, Dense
from lipcheck.symbol import Grid, Symbol, embedding_points

# On a CPU small chunks are faster: the allocator hands the same warm pages out again.
_WARM = 48 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """A frequency of a grid, in its half steps per axis, and a group."""

    index: tuple[int, ...]
    group: int


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """F(w) = sum of P_q exp(i <w, q>) for every group, at the frequencies of a grid."""

    symbol: Symbol
    grid: Grid

    def at(self, index: Tensor, group: int | None = None) -> Tensor:
        """The matrices at some frequencies. Shapes: index (f, axes) to (f, groups, rows, columns), complex."""
        coefficients = self.symbol.coefficients
        if group is not None:
            coefficients = coefficients[group : group + 1]
        groups, taps, rows, columns = coefficients.shape
        flat = coefficients.transpose(0, 1).reshape(taps, -1)
        cosine, sine = (wave.to(flat) for wave in self.grid.phases(index, self.symbol.exponents))
        return torch.complex(cosine @ flat, sine @ flat).reshape(len(index), groups, rows, columns)

    def chunks(self, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All frequencies of half the grid, which is enough for real weights, with their matrices."""
        groups, _, rows, columns = self.symbol.coefficients.shape
        each = 16 * groups * (3 * rows * columns + 4 * rows * rows)
        budget = min(memory, _WARM) if self.symbol.coefficients.device.type == "cpu" else memory
        for index in torch.split(self.grid.indices(), max(1, budget // each)):
            yield index, self.at(index)

    def peak(self, norms: Callable[[Tensor], Tensor], memory: int) -> tuple[float, Place]:
        """The largest norm over the grid and the groups, and its place. `norms` takes (n, r, c) to (n,)."""
        best, where = -math.inf, Place((0,) * len(self.grid.points), 0)
        with torch.no_grad():
            for index, matrices in self.chunks(memory):
                groups = matrices.shape[1]
                values = norms(matrices.flatten(0, 1))
                top = int(values.argmax())
                if float(values[top]) > best:
                    best, where = float(values[top]), Place(tuple(index[top // groups].tolist()), top % groups)
        return best, where

    def peaks(self, norms: Callable[[Tensor], Tensor], memory: int) -> Tensor:
        """Where each group has its largest norm. Shapes: (groups, axes), as `Grid.indices`; `norms` as for `peak`."""
        groups = len(self.symbol.coefficients)
        best, where = torch.full((groups,), -math.inf), torch.zeros(groups, len(self.grid.points), dtype=torch.long)
        with torch.no_grad():
            for index, matrices in self.chunks(memory):
                values, places = norms(matrices.flatten(0, 1)).reshape(len(index), groups).max(0)
                values, places = values.double().cpu(), places.cpu()
                where = torch.where((values > best)[:, None], index[places], where)
                best = torch.maximum(values, best)
        return where

    def each(self, index: Tensor) -> Tensor:
        """Each group's matrix at its own frequency, with gradients.

        Shapes: (groups, axes) to (groups, rows, columns).
        """
        coefficients = self.symbol.coefficients
        groups, taps, rows, columns = coefficients.shape
        flat = coefficients.reshape(groups, taps, -1)
        cosine, sine = (wave.to(flat) for wave in self.grid.phases(index, self.symbol.exponents))
        real, imaginary = (torch.bmm(wave[:, None], flat)[:, 0] for wave in (cosine, sine))
        return torch.complex(real, imaginary).reshape(groups, rows, columns)

    def one(self, place: Place) -> Tensor:
        """The matrix at one place, with gradients. Shapes: (1, rows, columns)."""
        return self.at(torch.tensor([place.index]), place.group)[0]


def circular_grid(operator: Dense | Convolution) -> Grid:
    """The published grid: as many points as strided inputs, the first at frequency zero; one for a matrix."""
    if isinstance(operator, Dense):
        return Grid((1,), (0,))
    sizes = zip(operator.input_size, operator.stride, strict=True)
    return _thinned(operator, tuple(-(-n // s) for n, s in sizes))


def embedding_grid(operator: Dense | Convolution) -> Grid:
    """The shortest grid whose circular operator has this one as a corner; one point for a matrix."""
    if isinstance(operator, Dense):
        return Grid((1,), (0,))
    return _thinned(operator, embedding_points(operator))


def _thinned(operator: Convolution, points: tuple[int, ...]) -> Grid:
    """One point is enough along an axis on which the symbol is constant."""
    thin = tuple(1 if flat else m for m, flat in zip(points, _constant(operator), strict=True))
    return Grid(thin, (0,) * len(thin))


def _constant(operator: Convolution) -> list[bool]:
    """Whether all taps fall into the first stride, per axis."""
    axes = zip(operator.kernel, operator.dilation, operator.stride, strict=True)
    return [d * (k - 1) < s for k, d, s in axes]


def embeds(operator: Subject) -> bool:
    """Whether the published grid is an embedding of the operator, so that its maximum is an upper bound.

    It is for circular padding, for which it was made, and for a convolution whose input is padded no further than the
    grid is long: without padding, for example. It is not for a `same` zero-padded convolution of more than one tap.
    """
    if isinstance(operator, Dense):
        return True
    if not isinstance(operator, Convolution):
        return False
    published, needed = circular_grid(operator).points, embedding_points(operator)
    return all(flat or have >= need for have, need, flat in zip(published, needed, _constant(operator), strict=True))
