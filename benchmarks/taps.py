"""A zero-padded convolution and its adjoint in float64, tap by tap: one product of matrices each.

torch's own convolutions in float64 are several times slower, those of three axes and depthwise ones most of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipcheck.operators import Convolution

Window = tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """The same map as `operator`.

    Shapes: `weight` is (groups, outputs / groups, inputs / groups, *kernel).
    """

    operator: Convolution
    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """A x. Shapes: x is (batch, inputs, *input_size)."""
        x = x.reshape(len(x), self.operator.groups, -1, *self.operator.input_size)
        y = x.new_zeros(len(x), self.operator.groups, self.weight.shape[1], *self.operator.output_size)
        for tap, read, written in self._windows():
            y[written] += _product(tap, x[read])
        return y.flatten(1, 2)

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y. Shapes: y is (batch, outputs, *output_size)."""
        y = y.reshape(len(y), self.operator.groups, -1, *self.operator.output_size)
        x = y.new_zeros(len(y), self.operator.groups, self.weight.shape[2], *self.operator.input_size)
        for tap, read, written in self._windows():
            x[read] += _product(tap.mT, y[written])
        return x.flatten(1, 2)

    def _windows(self) -> Iterator[tuple[Tensor, Window, Window]]:
        """Every tap's matrices with the inputs that it reads and the outputs that it is added to."""
        axes = range(self.operator.axes)
        lines = [[_line(self.operator, axis, k) for k in range(self.operator.kernel[axis])] for axis in axes]
        taps = self.weight.flatten(3).unbind(3)
        for tap, pairs in zip(taps, itertools.product(*lines), strict=True):
            if all(written.start < written.stop for _, written in pairs):
                yield tap, (..., *(read for read, _ in pairs)), (..., *(written for _, written in pairs))


def taps(operator: Convolution) -> Taps:
    """The operator in float64. Errors: ValueError for one that wraps around."""
    if operator.circular:
        raise ValueError("a circular convolution has no windows")
    weight = operator.weight.detach().double()
    return Taps(operator, weight.reshape(operator.groups, -1, *weight.shape[1:]).contiguous())


def _line(operator: Convolution, axis: int, k: int) -> tuple[slice, slice]:
    """The inputs that tap k reads and the outputs at which it reads them, along one axis."""
    s, shift = operator.stride[axis], operator.dilation[axis] * k - operator.offset[axis]
    low = max(0, -(shift // s))
    high = min(operator.output_size[axis], (operator.input_size[axis] - 1 - shift) // s + 1)
    first = s * low + shift
    return slice(first, max(first, first + s * (high - low - 1) + 1), s), slice(low, max(low, high))


def _product(tap: Tensor, part: Tensor) -> Tensor:
    """Shapes: tap (groups, o, c), part (batch, groups, c, *positions), result (batch, groups, o, *positions)."""
    if tap.shape[1:] == (1, 1):
        return tap.reshape(-1, *(1,) * (part.dim() - 2)) * part
    product: Tensor = tap @ part.flatten(3)
    return product.reshape(*product.shape[:3], *part.shape[3:])
