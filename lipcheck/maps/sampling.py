"""Sampling at places that depend on the input: interpolation between the pixels around each place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lipcheck import rounding
from lipcheck.operators import Nonlinear
from lipcheck.ranges import Range

_SLOP = rounding.EVALUATION
_NEEDS_A_RANGE = "how far a sample moves with its place needs a bounded range of the image: give --domain"
_NEAREST = "the nearest pixel changes at once when a place moves, and so the sample"


@dataclass(frozen=True, slots=True, eq=False)
class GridSample(Nonlinear):
    """y[c, p] = sum over pixels i of w_i(g_p) x[c, i], with the weights of (bi-, tri-)linear interpolation.

    In x, for fixed places: the weights of a sample are not negative and sum to 1 at most, the P samples' weights on a
    pixel to P at most, so the matrix has norm at most sqrt(P) (Schur), the same for every channel; attained where
    all places are one pixel. Taking the nearest pixel is the same with weights 0 and 1.

    In the places, for a fixed image: between pixels the interpolant is linear along each axis, with the difference of
    two neighbours as its slope, averaged over the other axes. So |dy[c, p] / dg_k| is at most s_k d_ck, with d_ck the
    largest difference of neighbours along axis k that the range of x allows, zeros outside it included where the
    padding is zeros, and s_k pixels per unit of the grid, n_k / 2 or (n_k - 1) / 2. Clamping and reflecting a place
    move it no further than it is moved. Samples depend on their own place only: the norm is the largest over p of
    that of the (channels, axes) Jacobian, at most its Frobenius norm.

    Shapes: x is (batch, channels, *size), the places (batch, *places, axes), the samples (batch, channels, *places).
    """

    size: tuple[int, ...]
    places: int  # samples of one image
    zeros: bool  # what lies outside the image; its border otherwise
    aligned: bool  # whether -1 and 1 are the centres of the corner pixels, as against their outer edges
    nearest: bool = False
    image_given: Tensor | None = None  # where the image is a constant

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        by_image = rounding.log_up(rounding.sqrt_up(self.places))
        by_places = math.inf if self.nearest else self._by_places(self._image(ranges))
        return (by_places,) if self.image_given is not None else (by_image, by_places)

    def _by_places(self, x: Range) -> float:
        if x.is_unknown or not x.bounded:
            return math.inf
        squares = torch.zeros((), dtype=torch.float64)
        for axis, n in enumerate(self.size):
            gap = self._neighbours(x, axis - len(self.size))
            squares = squares + (gap * ((n - 1 if self.aligned else n) / 2)) ** 2
        # Per image: the channels' slopes along all axes.
        norm = float(squares.sum(-1).max().sqrt()) if squares.numel() else 0.0
        return rounding.log_up(norm * (1 + 4 * _SLOP) + rounding.UNDERFLOW)

    def _neighbours(self, x: Range, axis: int) -> Tensor:
        """The largest difference of two neighbours along an axis. Shapes: (batch, channels)."""
        low, high = x.low, x.high
        if self.zeros:
            edges = [0, 0] * (-1 - axis) + [1, 1]
            low, high = functional.pad(low, edges), functional.pad(high, edges)
        count = low.shape[axis] - 1
        if count < 1:
            return torch.zeros(low.shape[:2], dtype=torch.float64)
        first_low, first_high = low.narrow(axis, 0, count), high.narrow(axis, 0, count)
        next_low, next_high = low.narrow(axis, 1, count), high.narrow(axis, 1, count)
        gaps = torch.maximum(next_high - first_low, first_high - next_low)
        return gaps.flatten(2).amax(2)

    def _image(self, ranges: Sequence[Range]) -> Range:
        given = self.image_given
        return ranges[0] if given is None else Range(given.double(), given.double())

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        x = self._image(ranges)
        if x.is_unknown or 0 in x.shape:
            return Range.unknown(shape)
        low, high = x.low.flatten(2).amin(2), x.high.flatten(2).amax(2)
        if self.zeros:
            low, high = low.clamp_max(0), high.clamp_min(0)
        axes = (1,) * (len(shape) - 2)
        ends = (end.reshape(*end.shape, *axes).expand(shape) for end in (low, high))
        return Range.box(*ends)

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        if not any(math.isinf(slope) and slope > 0 for slope in self.slopes(ranges)):
            return ""
        return _NEAREST if self.nearest else _NEEDS_A_RANGE
