"""Any convolution as its matrix trigonometric polynomial, and the frequency grids on which its norm is decided.

    F(w) = sum_q P_q exp(i <w, q>),    ||A|| <= max over the grid of ||F(w)||_2

A stride folds the input's phases into columns, groups are a batch of symbols, an adjoint has the symbol's norm.
A matrix is a symbol of degree zero. Sources: Gray 2006; Araujo et al., AAAI 2021; the embedding is a circulant one
(Dietrich and Newsam 1997) with the phase that leaves it free.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.operators import Convolution, Dense, Padded

# However large the tolerance, a corrected grid loses no more than this.
_MOST_LOSS = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Symbol:
    """One symbol per group, with P_q for every exponent q of the shared lattice.

    Shapes: `coefficients` is (groups, exponents, rows, columns); `exponents` is (exponents, axes), integers >= 0.
    Columns run over the used phases of the input, outermost, and its channels.
    """

    coefficients: Tensor
    exponents: Tensor

    @property
    def degrees(self) -> tuple[int, ...]:
        return tuple(int(e) for e in self.exponents.amax(0) - self.exponents.amin(0))

    @property
    def side(self) -> int:
        return min(self.coefficients.shape[2:])

    @property
    def wide(self) -> Symbol:
        """The symbol or its transpose, whichever has no more rows than columns; both have the same norm."""
        rows, columns = self.coefficients.shape[2:]
        if rows <= columns:
            return self
        return Symbol(self.coefficients.transpose(2, 3), self.exponents)


@dataclass(frozen=True, slots=True)
class Grid:
    """Frequencies w = pi (2 j + half) / points for j = 0 ... points - 1, per axis.

    `half` is 0 or 1 per axis: these two phases keep F(-w) = conj F(w) on the grid, so half of it suffices.
    `share` is the part of the symbol's supremum that the grid is sure to see: 1 for an embedding, which needs no
    correction, less where the grid is coarser than the embedding (Ehlich-Zeller).
    """

    points: tuple[int, ...]
    half: tuple[int, ...]
    share: float = 1.0

    def indices(self) -> Tensor:
        """One of each pair of frequencies +-w. Shapes: (frequencies, axes), the integers 2 j + half."""
        return _indices(self.points, self.half)

    def neighbours(self, place: Tensor) -> list[int]:
        """Positions in `indices` of the grid's points within half a step of a place, which is in half steps.

        Shapes: place (axes,), integers modulo twice the points, of either phase.
        """
        index = self.indices()
        modulus = 2 * torch.tensor(self.points)
        found = []
        for mirrored in (index, -index):
            distance = (mirrored - place + 1) % modulus
            found.append(((distance <= 2) | (modulus == 2)).all(1))
        return torch.nonzero(found[0] | found[1]).flatten().tolist()

    def phases(self, index: Tensor, lags: Tensor) -> tuple[Tensor, Tensor]:
        """cos <w, q> and sin <w, q>, each entry off by less than rounding.PHASE_ERROR.

        Shapes: index (frequencies, axes) and lags (lags, axes) integers; both results (frequencies, lags) float64.
        """
        wave = torch.ones((), dtype=torch.complex128)
        for axis, m in enumerate(self.points):
            turns = torch.outer(index[:, axis], lags[:, axis]) % (2 * m)
            # Each of the 2 m angles is evaluated once, where there are fewer of them than entries.
            wave = wave * (_turned(torch.arange(2 * m), m)[turns] if 2 * m < turns.numel() else _turned(turns, m))
        return wave.real.contiguous(), wave.imag.contiguous()

    @property
    def spread(self) -> str:
        """The grid for people, such as 15x15."""
        return "×".join(map(str, self.points))


@functools.lru_cache(maxsize=16)
def _indices(points: tuple[int, ...], half: tuple[int, ...]) -> Tensor:
    """`Grid.indices`, which nobody changes: the same few grids are asked again and again."""
    axes = [range(h, 2 * m, 2) for m, h in zip(points, half, strict=True)]
    index = torch.cartesian_prod(*(torch.tensor(list(axis)) for axis in axes)).reshape(-1, len(axes))
    modulus = 2 * torch.tensor(points)
    mirror = (-index) % modulus
    # Lexicographic order of the index against that of its mirror image.
    radix = torch.ones(len(axes), dtype=torch.long)
    for axis in range(len(axes) - 1, 0, -1):
        radix[axis - 1] = radix[axis] * modulus[axis]
    return index[(index * radix).sum(1) <= (mirror * radix).sum(1)]


def _turned(turns: Tensor, m: int) -> Tensor:
    """exp(i pi t / m) for integers 0 <= t < 2 m, the argument reduced to (-pi, pi]."""
    angle = torch.where(turns > m, turns - 2 * m, turns).double() * math.pi / m
    return torch.complex(angle.cos(), angle.sin())


def matrix_symbol(matrix: Tensor) -> Symbol:
    """A matrix, or a batch of them, as a symbol of degree zero. Shapes: (rows, columns) or (batch, rows, columns)."""
    batch = matrix if matrix.dim() == 3 else matrix[None]
    return Symbol(batch[:, None], torch.zeros(1, 1, dtype=torch.long))


def trimmed(operator: Convolution) -> Convolution:
    """The same map without the taps that only ever meet zero padding: leading and trailing ones go, others are zero.

    An axis with a single output has no use for its stride: one as long as the kernel's reach makes every tap a phase
    of its own, so that the symbol is constant along that axis.
    """
    if operator.circular:
        return operator
    weight, offset = operator.weight, list(operator.offset)
    for axis in range(operator.axes):
        used = _used_taps(operator, axis)
        first, last = (used[0], used[-1] + 1) if used else (0, 0)
        unread = [k - first for k in range(first, last) if k not in used]
        weight = weight.narrow(axis + 2, first, last - first)
        if unread:
            weight = weight.index_fill(axis + 2, torch.tensor(unread, device=weight.device), 0)
        offset[axis] -= operator.dilation[axis] * first
    if 0 in weight.shape:
        weight = weight.new_zeros(*weight.shape[:2], *(1,) * operator.axes)
    short = replace(operator, weight=weight, offset=tuple(offset))
    stride = (r if n == 1 else s for s, r, n in zip(short.stride, short.reach, short.output_size, strict=True))
    return replace(short, stride=tuple(stride))


def convolution_symbol(operator: Convolution) -> Symbol:
    """The symbol of a convolution on the frequencies of its strided input.

    Source: maths, section 1: tap k reads position d k = s q + a, phase a of the input, q strides further on.
    """
    groups = operator.groups
    outputs, inputs = operator.weight.shape[0] // groups, operator.weight.shape[1]
    weight = operator.weight.reshape(groups, outputs, inputs, *operator.kernel)
    taps_at: dict[tuple[int, ...], dict[tuple[int, ...], tuple[int, ...]]] = {}
    phases: dict[tuple[int, ...], None] = {}
    for tap in itertools.product(*map(range, operator.kernel)):
        split = [divmod(d * k, s) for d, k, s in zip(operator.dilation, tap, operator.stride, strict=True)]
        exponent, phase = tuple(q for q, _ in split), tuple(a for _, a in split)
        taps_at.setdefault(exponent, {})[phase] = tap
        phases[phase] = None
    nothing = weight.new_zeros(groups, outputs, inputs)
    blocks = [
        torch.cat([_tap(weight, at[phase]) if phase in at else nothing for phase in phases], dim=2)
        for at in taps_at.values()
    ]
    return Symbol(torch.stack(blocks, dim=1), torch.tensor(list(taps_at)))


def _tap(weight: Tensor, tap: tuple[int, ...]) -> Tensor:
    """The matrices at one place of the kernel. Shapes: weight (groups, outputs, inputs, *kernel)."""
    for k in reversed(tap):
        weight = weight.select(-1, k)
    return weight


def _used_taps(operator: Convolution, axis: int) -> list[int]:
    """The taps that read the input at some output."""
    kernel, n = operator.kernel[axis], operator.input_size[axis]
    s, d, p = operator.stride[axis], operator.dilation[axis], operator.offset[axis]
    return [
        k
        for k in range(kernel)
        if any(0 <= s * i + d * k - p < n for i in _window(s, d * k - p, operator.output_size[axis]))
    ]


def _window(stride: int, shift: int, outputs: int) -> range:
    """The first outputs i at which stride i + shift is not negative."""
    low = max(0, -(shift // stride))
    return range(low, min(outputs, low + 1))


def embedding_points(operator: Convolution) -> tuple[int, ...]:
    """The fewest points per axis with which a circular convolution has this one as a corner.

    Source: maths, section 2: m s >= n + p and m s >= s (n' - 1) + d (K - 1) + 1 - p, so that what wraps meets no input.
    """
    if operator.circular:
        return operator.output_size
    points = []
    for n, s, p, reach in zip(operator.input_size, operator.stride, operator.offset, operator.reach, strict=True):
        read = min(n, reach - p)
        points.append(max(1, -(-max(read + max(p, 0), reach - p) // s)))
    return tuple(points)


def grids(operator: Convolution, symbol: Symbol, tolerance: float) -> list[Grid]:
    """The grids worth trying: each bounds the operator, and the engine certifies the one that promises least.

    An axis of degree zero needs one point. Where the embedding is longer than a corrected grid that loses no more
    than `tolerance`, the shorter one is taken. A circular convolution has exactly one grid.
    """
    embedding = embedding_points(operator)
    degrees = symbol.degrees
    points, corrected = list(embedding), [0] * len(degrees)
    loss = min(tolerance, _MOST_LOSS) / (4 * len(degrees))
    for axis, degree in enumerate(degrees):
        if degree == 0:
            points[axis] = 1
        elif not operator.circular:
            # acos(1 - l) >= sqrt(2 l), so this many points lose at most l.
            enough = degree * math.pi / (2 * math.sqrt(2 * loss)) + 1
            if enough < points[axis]:
                points[axis], corrected[axis] = math.ceil(enough), degree
    if operator.circular:
        return [Grid(tuple(points), (0,) * len(points))]
    share = rounding.grid_ripple(tuple(corrected), tuple(points))
    free = [(0, 1) if m > 1 else (0,) for m in points]
    return [Grid(tuple(points), half, share) for half in itertools.product(*free)]


def as_matrix(operator: Convolution) -> Tensor:
    """The finite operator's matrix in float64, one per group. Shapes: (groups, outputs * n', inputs * n).

    Exact but for circular padding where the kernel wraps onto itself and taps are added: `aliasing_error`.
    """
    groups, axes = operator.groups, operator.axes
    outputs, inputs = operator.weight.shape[0] // groups, operator.weight.shape[1]
    shape = (groups, outputs, *operator.output_size, inputs, *operator.input_size)
    matrix = operator.weight.new_zeros(shape, dtype=torch.float64)
    weight = operator.weight.double().reshape(groups, outputs, inputs, *operator.kernel)
    for tap in itertools.product(*(range(k) for k in operator.kernel)):
        pairs = []
        for axis, k in enumerate(tap):
            i = torch.arange(operator.output_size[axis])
            j = operator.stride[axis] * i + operator.dilation[axis] * k - operator.offset[axis]
            n = operator.input_size[axis]
            inside = torch.ones_like(j, dtype=torch.bool) if operator.circular else (j >= 0) & (j < n)
            pairs.append((i[inside], j[inside] % n))
        if not all(len(i) for i, _ in pairs):
            continue
        rows = [pairs[a][0].reshape([-1 if b == a else 1 for b in range(axes)]) for a in range(axes)]
        columns = [pairs[a][1].reshape([-1 if b == a else 1 for b in range(axes)]) for a in range(axes)]
        block = _tap(weight, tap).reshape(*(1,) * axes, groups, outputs, inputs)
        # Advanced indices in the middle and at the end: their joint shape comes first.
        everything: list[Any] = [slice(None)]
        where = tuple(everything * 2 + rows + everything + columns)
        matrix[where] = matrix[where] + block
    return matrix.reshape(groups, outputs * math.prod(operator.output_size), inputs * math.prod(operator.input_size))


def padded_matrix(operator: Padded) -> Tensor:
    """The matrix of a convolution and the padding in front of it, in float64, one per group.

    Shapes: (groups, outputs * n', inputs * n). An entry is the sum of at most as many taps as the kernel has.
    """
    inner = operator.convolution
    matrix = as_matrix(inner)
    groups, rows = matrix.shape[:2]
    matrix = matrix.reshape(groups, rows, -1, *inner.input_size)
    for axis, (place, n) in enumerate(zip(operator.places, operator.input_size, strict=True), start=3):
        shape = (*matrix.shape[:axis], n, *matrix.shape[axis + 1 :])
        matrix = matrix.new_zeros(shape).index_add_(axis, place.to(matrix.device), matrix)
    return matrix.reshape(groups, rows, -1)


def aliasing_error(operator: Convolution) -> float:
    """Entrywise error of `as_matrix` relative to the sum of the |W_k|: zero unless taps fall onto one another."""
    return rounding.gamma(math.prod(operator.kernel)) if operator.circular else 0.0


def matrix_entries(operator: Convolution) -> int:
    """How many numbers `as_matrix` would hold."""
    return operator.groups * math.prod(matrix_sides(operator))


def matrix_sides(operator: Convolution) -> tuple[int, int]:
    """Rows and columns of each group's matrix in `as_matrix`."""
    outputs, inputs = operator.weight.shape[0] // operator.groups, operator.weight.shape[1]
    return outputs * math.prod(operator.output_size), inputs * math.prod(operator.input_size)


def dense_symbol(operator: Dense) -> Symbol:
    """A matrix as a symbol of degree zero."""
    return matrix_symbol(operator.matrix)
