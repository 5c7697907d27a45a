"""A short axis in full: its positions become channels, and only the other axes are embedded.

Over an axis of a few positions the circular embedding lets in as many blocks as it has to leave out: 512 channels on
2 x 7 x 7 positions are bounded 27% above their norm, on 4 x 14 x 14 (256 channels) 7%. Written with one channel for
each channel and position of that axis, the same operator is a convolution over the other axes alone, whose weight is
block Toeplitz: its embedding is 3% and 0.8% above. Less is formed and factored than by `semifinite`, which keeps
an axis of any length, in bands. Source: maths, section 2, one axis as a finite block-Toeplitz matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lipcheck.operators import Convolution
from lipcheck.symbol import Symbol, convolution_symbol, embedding_points, trimmed

# An axis is short whose embedding has at most so many points; every other one has to be long, or it stays as loose.
_SHORT, _LONG = 5, 8
# An unrolling that takes at most so many times the embedding's work is made in its place.
_CHEAP = 4.0
# The slack of an embedding that is worth a dearer unrolling, of at most so many operations.
_LOOSE, _MUCH = 0.03, 4e11
# Weights of the unrolled convolution at most: not a share of the memory, which would let bounds depend on the threads.
_ENTRIES = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Unrolling:
    """A convolution with one axis unrolled into channels: the same map, but for the order of its entries.

    `cheap` says that it may take the embedding's place.
    """

    axis: int
    operator: Convolution
    symbol: Symbol
    cheap: bool


def worth(lower: float, upper: float) -> bool:
    """Whether an embedding with these ends is so loose that a dear unrolling pays."""
    return upper > lower * (1 + _LOOSE)


def unrolling(operator: Convolution, symbol: Symbol) -> Unrolling | None:
    """The unrolling of the one short axis of a zero-padded convolution, where there is one, at a bearable cost.

    Shapes: `symbol` is the operator's own.
    """
    axis = _short_axis(operator, symbol)
    if axis is None or symbol.side == 1:
        return None
    n, outputs = operator.input_size[axis], operator.output_size[axis]
    if operator.weight.numel() * n * outputs // operator.kernel[axis] > _ENTRIES:
        return None
    points = _counted(embedding_points(operator), symbol)
    side = min(operator.weight.shape[0] // operator.groups * outputs, _symbol_columns(operator, axis) * n)
    before = operator.groups * _half(math.prod(points)) * symbol.side**3
    after = operator.groups * _half(math.prod(_without(points, axis))) * side**3
    cheap = after <= _CHEAP * before
    if side == 1 or (not cheap and after * 8 / 3 > _MUCH):
        return None
    flat = trimmed(unrolled(operator, axis))
    return Unrolling(axis, flat, convolution_symbol(flat), cheap)


def _symbol_columns(operator: Convolution, axis: int) -> int:
    """The columns of the symbol over all axes but one: the channels, for each phase of those axes' strides."""
    return int(operator.weight.shape[1] * math.prod(_without(operator.stride, axis)))


def unrolled(operator: Convolution, axis: int) -> Convolution:
    """The same map over the other axes: channel o at position i of the axis becomes channel o n' + i, inputs likewise.

    Shapes: the weight is (outputs n', inputs / groups n, *the other axes' kernel).
    """
    weight = operator.weight
    outputs, inputs = weight.shape[:2]
    n, images = operator.input_size[axis], operator.output_size[axis]
    wide: Tensor = weight.new_zeros(outputs, images, inputs, n, *_without(operator.kernel, axis))
    for i in range(images):
        for k in range(operator.kernel[axis]):
            j = operator.stride[axis] * i + operator.dilation[axis] * k - operator.offset[axis]
            if 0 <= j < n:
                wide[:, i, :, j] = weight.select(axis + 2, k)
    return Convolution(
        wide.flatten(2, 3).flatten(0, 1),
        _without(operator.stride, axis),
        _without(operator.dilation, axis),
        operator.groups,
        _without(operator.offset, axis),
        _without(operator.input_size, axis),
        _without(operator.output_size, axis),
    )


def _short_axis(operator: Convolution, symbol: Symbol) -> int | None:
    if operator.circular or operator.axes == 1:
        return None
    reaching = [axis for axis, degree in enumerate(symbol.degrees) if degree]
    points = embedding_points(operator)
    short = [axis for axis in reaching if points[axis] <= _SHORT]
    if len(short) != 1 or any(points[axis] < _LONG for axis in reaching if axis != short[0]):
        return None
    return short[0]


def _counted(points: tuple[int, ...], symbol: Symbol) -> tuple[int, ...]:
    return tuple(m if degree else 1 for m, degree in zip(points, symbol.degrees, strict=True))


def _half(points: int) -> int:
    """Frequencies of a real symbol, one of each pair."""
    return points // 2 + 1


def _without(values: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return values[:axis] + values[axis + 1 :]
