"""Convolutions from their definition: per axis, which output reads which input with which tap.

From these places alone follow the finite matrix, the symbol F(w) = sum_q P_q exp(i <w, q>), and whether a grid of
frequencies embeds the finite operator.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from lipcheck.operators import Convolution, InfiniteConvolution, Padded
from lipcheck.verification.arithmetic import Array, exponent_of, numbers, size_of, times_power, up


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One spatial axis. Shapes: `places` holds rows (output i, input j, tap k); `taps` are those kept.

    `starts` is where each kept tap reads for output 0; taps that read no input at any output only ever meet zeros and
    are dropped. `inputs` and `outputs` are None on an axis without end.
    """

    stride: int
    dilation: int
    taps: tuple[int, ...]
    starts: Array
    places: Array
    inputs: int | None
    outputs: int | None
    circular: bool = False

    @property
    def lattice(self) -> tuple[tuple[int, int], ...]:
        """Per kept tap its exponent and its phase: it reads position s q + a, the first kept tap position 0.

        With a single output a stride means nothing: one longer than the kernel makes every tap a phase of its own.
        """
        apart = [self.dilation * (k - self.taps[0]) for k in self.taps]
        single = self.outputs == 1 and not self.circular
        return tuple(divmod(t, apart[-1] + 1 if single else self.stride) for t in apart)

    @property
    def degree(self) -> int:
        exponents = [q for q, _ in self.lattice]
        return max(exponents) - min(exponents)


def axes_of(operator: Convolution | InfiniteConvolution | Padded) -> list[Axis]:
    """The axes of a convolution, from the definition y[i] = sum_k W[k] x[s i + d k - p]."""
    if isinstance(operator, InfiniteConvolution):
        kernel = operator.weight.shape[2:]
        nothing = np.zeros((0, 3), dtype=np.int64)
        return [
            Axis(s, d, tuple(range(k)), d * np.arange(k), nothing, None, None)
            for s, d, k in zip(operator.stride, operator.dilation, kernel, strict=True)
        ]
    inner = operator.convolution if isinstance(operator, Padded) else operator
    copied = operator.places if isinstance(operator, Padded) else (None,) * inner.axes
    sizes = operator.input_size if isinstance(operator, Padded) else inner.input_size
    return [
        _axis(inner, a, n, None if c is None else c.numpy()) for a, (n, c) in enumerate(zip(sizes, copied, strict=True))
    ]


def _axis(operator: Convolution, axis: int, inputs: int, copied: Array | None) -> Axis:
    s, d, p = operator.stride[axis], operator.dilation[axis], operator.offset[axis]
    n, outputs, taps = operator.input_size[axis], operator.output_size[axis], np.arange(operator.weight.shape[axis + 2])
    position = s * np.arange(outputs)[:, None] + d * taps - p
    reads = np.ones_like(position, dtype=bool) if operator.circular else (position >= 0) & (position < n)
    i, k = np.nonzero(reads)
    j = position[i, k] % n
    if copied is not None:
        j = copied[j]
    used = taps if operator.circular or len(k) == 0 else np.unique(k)
    places = np.stack([i, j, k], axis=1)
    return Axis(s, d, tuple(used.tolist()), d * used - p, places, inputs, outputs, operator.circular)


def undilated(operator: Convolution) -> list[Convolution]:
    """Undilated convolutions that a dilated one is the direct sum of, less those that are corners of another.

    With g = gcd(s, d) and i = r + (d / g) a, output i reads s i + d k - p = c + d (s a / g + k + e), where
    s r - p = c + d e and 0 <= c < d. Each r < d / g has another c, so no two classes share an output or an input.
    """
    each = []
    geometry = zip(
        operator.stride, operator.dilation, operator.offset, operator.input_size, operator.output_size, strict=True
    )
    for s, d, p, n, outputs in geometry:
        classes = d // math.gcd(s, d)
        lines = set()
        for r in range(min(classes, outputs)):
            e, c = divmod(s * r - p, d)
            lines.add((s // math.gcd(s, d), -e, max(0, -(-(n - c) // d)), -(-(outputs - r) // classes)))
        kept = {a for a in lines if not any(a != b and _corner(a, b) for b in lines)}
        each.append(sorted(kept))
    return [
        replace(
            operator,
            stride=tuple(line[0] for line in one),
            dilation=(1,) * len(one),
            offset=tuple(line[1] for line in one),
            input_size=tuple(line[2] for line in one),
            output_size=tuple(line[3] for line in one),
        )
        for one in itertools.product(*each)
    ]


def _corner(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Whether outputs and inputs of one line (stride, offset, inputs, outputs) are among the other's, shifted by t
    outputs and s t + p - p' inputs."""
    s, p, n, outputs = one
    shifts = (s * t + p - other[1] for t in range(other[3] - outputs + 1))
    return s == other[0] and any(shift >= 0 and shift + n <= other[2] for shift in shifts)


def embeds(axis: Axis, points: int) -> bool:
    """Whether a circular convolution on `points` strided positions has the finite one as a corner.

    Only outputs that read something and inputs that are read matter, the other rows and columns are zero. Modulo
    stride * points these must be distinct, and what an output reads must be no other input than it reads really.
    """
    if len(axis.places) == 0:
        return True
    length = axis.stride * points
    outputs, inputs = np.unique(axis.places[:, 0]), np.unique(axis.places[:, 1])
    residues = inputs % length
    if len(np.unique(outputs % points)) < len(outputs) or len(np.unique(residues)) < len(inputs):
        return False
    order = np.argsort(residues)
    reads = (axis.stride * outputs[:, None] + axis.starts).ravel()
    near = np.minimum(np.searchsorted(residues[order], reads % length), len(order) - 1)
    meets = inputs[order][near]
    return not bool(((meets % length == reads % length) & (meets != reads)).any())


def needed_points(axis: Axis) -> int:
    """Enough points for `embeds`: the span of what is read, counted from what output 0 reads first."""
    if len(axis.places) == 0:
        return 1
    last_read, last = int(axis.places[:, 1].max()), axis.stride * int(axis.places[:, 0].max()) + int(axis.starts[-1])
    first = min(0, int(axis.starts[0]))
    return -(-(max(last_read - first, last) + 1) // axis.stride)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The frequencies w = pi (2 j + half) / points for the rows j of `index`. Shapes: index (frequencies, axes)."""

    points: tuple[int, ...]
    half: tuple[int, ...]
    index: Array

    @property
    def spread(self) -> str:
        return "×".join(map(str, self.points))


def frequencies(points: tuple[int, ...], half: tuple[int, ...]) -> Array:
    """One of each pair +-w of the grid w = pi (2 j + half) / points: real weights have F(-w) = conj F(w).

    Shapes: (frequencies, axes), the integers j.
    """
    every = np.indices(points, dtype=np.int64).reshape(len(points), -1).T
    mirrored = (-every - np.array(half)) % np.array(points)
    number = np.ravel_multi_index(tuple(every.T), points)
    kept: Array = every[number <= np.ravel_multi_index(tuple(mirrored.T), points)]
    return kept


def grid_waves(index: Array, half: tuple[int, ...], points: tuple[int, ...], exponents: Array) -> Array:
    """exp(i <w, q>), off by less than PHASE. Shapes: index (n, axes), exponents (taps, axes); result (n, taps)."""
    result = np.ones((len(index), len(exponents)), dtype=np.complex128)
    for axis, m in enumerate(points):
        turns = np.outer(2 * index[:, axis] + half[axis], exponents[:, axis]) % (2 * m)
        met, where = np.unique(turns, return_inverse=True)
        angles = [math.pi * (t - 2 * m if t > m else t) / m for t in met.tolist()]
        circle = np.array([complex(math.cos(angle), math.sin(angle)) for angle in angles])
        result *= circle[where.reshape(turns.shape)]
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Symbols:
    """F(w) = sum_q P_q exp(i <w, q>), one per group, times 2^exponent.

    Shapes: `coefficients` (groups, exponents, rows, columns), rows <= columns; `exponents` (exponents, axes) integers;
    `size` (groups,) is at least || sum_q |P_q| ||, which the operator of the |W| has at most as its norm.
    """

    coefficients: Array
    exponents: Array
    size: Array
    exponent: int

    def largest(self) -> float:
        """At least || sum_q |P_q| || of every group, unscaled."""
        return up(math.ldexp(float(self.size.max()), self.exponent))


def scaled_weight(operator: Convolution | InfiniteConvolution) -> tuple[Array, int]:
    """The weights in float64 times 2^-e, the largest near one, and e. Shapes: (groups, outputs, inputs, *kernel)."""
    weight = numbers(operator.weight)
    exponent = exponent_of(weight)
    shape = (operator.groups, weight.shape[0] // operator.groups, *weight.shape[1:])
    return times_power(weight, -exponent).reshape(shape), exponent


def tap_of(weight: Array, tap: tuple[int, ...]) -> Array:
    """The matrices at one place of the kernel, whose axes are the last. Shapes: (..., outputs, inputs, *kernel)."""
    for k in reversed(tap):
        weight = weight[..., k]
    return weight


def symbols_of(operator: Convolution | InfiniteConvolution, axes: list[Axis]) -> Symbols:
    """The symbols of all groups. The columns are the inputs at each phase of the stride that a tap reads."""
    weight, exponent = scaled_weight(operator)
    groups, outputs, inputs = weight.shape[:3]
    lattices = [axis.lattice for axis in axes]
    exponents = sorted({tuple(q for q, _ in split) for split in itertools.product(*lattices)})
    phases = sorted({tuple(a for _, a in split) for split in itertools.product(*lattices)})
    coefficients = np.zeros((groups, len(exponents), outputs, len(phases), inputs))
    for number in itertools.product(*(range(len(axis.taps)) for axis in axes)):
        split = [lattice[n] for lattice, n in zip(lattices, number, strict=True)]
        q, a = exponents.index(tuple(q for q, _ in split)), phases.index(tuple(a for _, a in split))
        tap = tuple(axis.taps[n] for axis, n in zip(axes, number, strict=True))
        coefficients[:, q, :, a] = tap_of(weight, tap)
    flat = coefficients.reshape(groups, len(exponents), outputs, -1)
    if flat.shape[2] > flat.shape[3]:
        flat = np.ascontiguousarray(flat.swapaxes(2, 3))
    size = np.array([size_of(np.abs(group).sum(0), len(exponents)) for group in flat])
    return Symbols(flat, np.array(exponents, dtype=np.int64).reshape(len(exponents), len(axes)), size, exponent)


def reduced(symbols: Symbols) -> Symbols:
    """The symbol without the exponents at which all matrices are zero, and without a common divisor of the others'
    differences: F(w) = G(d w) takes the values of G."""
    used: Array = np.asarray(symbols.coefficients.any((0, 2, 3)))
    if not used.any():
        used[0] = True
    exponents = symbols.exponents[used] - symbols.exponents[used].min(0)
    divisors = np.array([max(1, math.gcd(*column)) for column in exponents.T.tolist()])
    return replace(symbols, coefficients=symbols.coefficients[:, used], exponents=exponents // divisors)
