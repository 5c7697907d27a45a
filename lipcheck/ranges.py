"""Where an activation can be: an elementwise box and a ball in the Euclidean norm, both around numbers in float64.

A range is a claim: every value that the network produces from an input of the domain lies in it. What is computed here
is widened by `rounding.EVALUATION`, so that the claim survives float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcheck import rounding

_SLOP = rounding.EVALUATION


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """x lies between `low` and `high`, and within exp(radius) of `center`.

    `rows` is the same for each row of x along its last axis by itself: its distance from the row of `center`.
    Shapes: low, high and center have the activation's shape (batch axis of one included), float64; they may be
        expanded. Without `center`, no ball is known.
    Units: radius and rows are natural logarithms, inf where nothing is known.
    """

    low: Tensor
    high: Tensor
    center: Tensor | None = None
    radius: float = math.inf
    rows: float = math.inf

    def __post_init__(self) -> None:
        assert not math.isnan(self.radius), "a range is never nan"
        assert not math.isnan(self.rows), "a range is never nan"

    @staticmethod
    def unknown(shape: Sequence[int]) -> Range:
        """Any real numbers."""
        return Range.between(-math.inf, math.inf, shape)

    @staticmethod
    def between(low: float, high: float, shape: Sequence[int]) -> Range:
        """The same two ends for every element."""
        first, last = (torch.tensor(end, dtype=torch.float64).expand(tuple(shape)) for end in (low, high))
        return Range(first, last)

    @staticmethod
    def box(low: Tensor, high: Tensor) -> Range:
        """Elementwise ends, which are widened by what their computation may be off by."""
        low, high = low - low.abs() * _SLOP, high + high.abs() * _SLOP
        return Range(low.nan_to_num(-math.inf, math.inf, -math.inf), high.nan_to_num(math.inf, math.inf, -math.inf))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.low.shape)

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known at all."""
        return math.isinf(self.radius) and math.isinf(self.rows) and _scalar(self.low) == -math.inf \
            and _scalar(self.high) == math.inf  # fmt: skip

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The box, its numbers once each where both ends were expanded. Shape: one for both, broadcasts to x's."""
        low, high = self.low, self.high
        for axis in range(low.dim()):
            if low.stride(axis) == high.stride(axis) == 0 and low.shape[axis] > 1:
                low, high = low.narrow(axis, 0, 1), high.narrow(axis, 0, 1)
        return low, high

    @property
    def bounded(self) -> bool:
        """Whether every element has two finite ends."""
        return all(math.isfinite(_largest(distinct(end).abs())) for end in (self.low, self.high))

    @property
    def smallest(self) -> float:
        """The lower end of all elements together."""
        return -_largest(-distinct(self.low))

    @property
    def largest(self) -> float:
        """The upper end of all elements together."""
        return _largest(distinct(self.high))

    def magnitude(self) -> Tensor:
        """At least |x|, elementwise; inf where it has no bound. Shapes: that of x."""
        low, high = self.ends
        return torch.maximum(low.abs(), high.abs()).expand(self.shape)

    def log_magnitude(self) -> float:
        """ln of at least every |x_i|."""
        ball = self.log_norm() if self.center is not None else math.inf
        return min(rounding.log_up(_largest(self.magnitude())), ball)

    def log_norm(self) -> float:
        """ln of at least ||x||."""
        boxed = log_norm(self.magnitude())
        if self.center is None or math.isinf(self.radius):
            return boxed
        return min(boxed, rounding.log_sum_up(log_norm(self.center), self.radius))

    def log_row_norm(self) -> float:
        """ln of at least ||x_i||, for every row x_i along the last axis."""
        boxed = log_row_norm(self.magnitude())
        if self.center is None:
            return boxed
        return min(boxed, rounding.log_sum_up(log_row_norm(self.center), min(self.rows, self.radius)), self.log_norm())

    def tightened(self) -> Range:
        """The box within the ball, the ball within the box, its centre in both: what is convex holds the way there."""
        if self.center is None:
            return self
        low, high, reach = self.low, self.high, min(self.radius, self.rows)
        if math.isfinite(reach) and reach < 700:
            width = math.exp(reach) * (1 + 4 * _SLOP)
            low = torch.maximum(low, self.center - width - self.center.abs() * _SLOP)
            high = torch.minimum(high, self.center + width + self.center.abs() * _SLOP)
        elif reach == -math.inf:
            low = high = self.center
        # The point of the box next to the centre is no farther from any other of its points.
        outside = bool(((self.center < low) | (self.center > high)).any())
        center = self.center.clamp(low, high) if outside else self.center
        away = torch.maximum(high - center, center - low).clamp_min(0) + center.abs() * _SLOP
        radius = min(self.radius, log_norm(away))
        return Range(low, high, center, radius, min(self.rows, log_row_norm(away), radius))

    def meet(self, other: Range) -> Range:
        """What lies in both: the boxes' intersection and the smaller of the balls."""
        smaller = min((self, other), key=lambda one: (one.radius, one.rows))
        low, high = torch.maximum(self.low, other.low), torch.minimum(self.high, other.high)
        # Both contain the true value, so ends that crossed did so by rounding, or no value exists.
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        return Range(low, high, smaller.center, smaller.radius, smaller.rows)

    def with_ball(self, center: Tensor | None, radius: float, rows: float = math.inf) -> Range:
        """The same box with this ball."""
        return replace(self, center=center, radius=radius, rows=rows)


def _scalar(expanded: Tensor) -> float | None:
    """The one number of an expanded scalar; None for a tensor of different numbers."""
    if expanded.numel() == 0 or any(expanded.stride()):
        return None
    return float(expanded.flatten()[0]) if expanded.dim() else float(expanded)


def distinct(values: Tensor) -> Tensor:
    """The same numbers, once each where they were expanded: an axis along which nothing varies has one entry."""
    for axis, stride in enumerate(values.stride()):
        if stride == 0 and values.shape[axis] > 1:
            values = values.narrow(axis, 0, 1)
    return values


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def log_norm(values: Tensor) -> float:
    """ln of at least the Euclidean norm of a tensor; -inf for zeros, inf where an entry is not finite."""
    return _log_of_largest(values, values.numel(), None)


def log_row_norm(values: Tensor) -> float:
    """ln of at least the largest Euclidean norm of a row along the last axis."""
    if values.dim() == 0:
        return log_norm(values)
    return _log_of_largest(values, values.shape[-1], -1)


def _log_of_largest(values: Tensor, size: int, axis: int | None) -> float:
    """ln of at least the largest norm of the parts, of so many entries each, along an axis; of the whole if None."""
    once = distinct(values)
    copies = size // max(1, once.numel() if axis is None else once.shape[axis])
    top = _largest(once.abs())
    if top == 0 or not math.isfinite(top):
        return -math.inf if top == 0 else math.inf
    norm = float(torch.linalg.vector_norm(once / top, dim=axis).max()) * math.sqrt(copies) * (1 + _SLOP)
    return rounding.log_multiply_up(rounding.log_up(norm), rounding.log_up(top))
