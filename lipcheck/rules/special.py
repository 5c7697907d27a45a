"""Rules of operations on their own: sampling at given places, and what jumps and so has no constant at all."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcheck.graph import Node, Value
from lipcheck.maps.sampling import GridSample
from lipcheck.operators import Operator, Separable, Sum, Unbounded
from lipcheck.rounding import UNIT, sqrt_up, up
from lipcheck.rules.registry import REASONS, rule
from lipcheck.rules.resampling import distance

aten = torch.ops.aten

_BILINEAR, _NEAREST, _BICUBIC = 0, 1, 2
# Matrices of at most so many entries are written out.
_ENTRIES = 1 << 22

_COMPARISON = "a comparison gives a truth value, which jumps"
_PLACE = "it gives the place of an element, which jumps from one to another"
_COUNT = "it counts, and a count jumps"
_SORTED_INTO = "it says between which boundaries a number lies, which jumps"

_JUMPS: dict[Any, str] = {
    **{
        overload: _COMPARISON
        for packet in (aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge)
        for overload in (packet.Scalar, packet.Tensor)
    },
    **{packet.default: _COMPARISON for packet in (aten.logical_not, aten.logical_and, aten.logical_or, aten.isnan)},
    **dict.fromkeys((aten.any.default, aten.any.dim, aten.all.default, aten.all.dim), _COMPARISON),
    **dict.fromkeys((aten.argmax.default, aten.argmin.default, aten.argsort.default, aten.argsort.stable), _PLACE),
    **dict.fromkeys((aten.histc.default, aten.count_nonzero.default, aten.count_nonzero.dim_IntList), _COUNT),
    aten.bucketize.Tensor: _SORTED_INTO,
    aten.searchsorted.Tensor: _SORTED_INTO,
    aten.floor_divide.default: "it rounds a quotient down, which jumps",
    aten.floor_divide.Scalar: "it rounds a quotient down, which jumps",
    aten.mode.default: "the most frequent element jumps to another",
}
_ROUTED = (
    "each row goes to an expert that is chosen by the input: where two are equally good the choice changes at once, "
    "and the output jumps from one expert's to the other's"
)
# Operations of libraries that need not be installed.
REASONS["transformers.grouped_mm_fallback.default"] = _ROUTED
REASONS["aten._grouped_mm.default"] = _ROUTED
REASONS["secondary_output"] = "no rule for a further result, such as the statistics of a normalisation"
REASONS["places_output"] = "it takes the places of what was chosen, of the largest elements say, and these jump"


@rule(*_JUMPS)
def jumping(node: Node) -> Operator:
    return Unbounded(_JUMPS[node.op])


@rule(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampling(node: Node) -> Operator:
    """Linear for constant places; for others see `GridSample`."""
    given, mode = node.arguments, node.arguments["interpolation_mode"]
    image, places = given["input"], given["grid"]
    if not isinstance(places, Value):
        return _at_constant_places(node, places)
    if mode == _BICUBIC:
        return Unbounded("cubic sampling at places that depend on the input has no rule yet")
    return GridSample(
        tuple(image.shape[2:]),
        math.prod(places.shape[1:-1]),
        zeros=given["padding_mode"] == 0,
        aligned=bool(given["align_corners"]),
        nearest=mode == _NEAREST,
        image_given=None if isinstance(image, Value) else image.detach(),
    )


def _at_constant_places(node: Node, places: Tensor) -> Operator:
    """One matrix per image, the same for all its channels: written out where small, else by the Schur test."""
    image = node.arguments["input"]
    pixels, samples = math.prod(image.shape[2:]), math.prod(places.shape[1:-1])
    if image.shape[0] == 1 and pixels * samples <= _ENTRIES:
        exact, rounded = (_matrix(node, image, places.to(dtype)) for dtype in (torch.float64, torch.float32))
        return Separable((exact,), 2 * distance(exact, rounded.double()) + 64 * UNIT)
    if node.arguments["interpolation_mode"] == _BICUBIC:
        return Unbounded("cubic sampling of an image this large has no rule yet")
    ones = torch.ones(image.shape[0], 1, *image.shape[2:], dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        samples_of_ones = _sampled(node, ones, places.double())
        (columns,) = torch.autograd.grad(samples_of_ones.sum(), ones)
    rows = float(samples_of_ones.detach().max())
    return Sum((up(sqrt_up(rows * float(columns.max()) * (1 + 2.0**-20)), 2),))


def _matrix(node: Node, image: Value, places: Tensor) -> Tensor:
    """Shapes: (samples, pixels)."""
    pixels = math.prod(image.shape[2:])
    units = torch.eye(pixels, dtype=places.dtype).reshape(1, pixels, *image.shape[2:])
    return _sampled(node, units, places).reshape(pixels, -1).T.contiguous()


def _sampled(node: Node, image: Tensor, places: Tensor) -> Tensor:
    given = node.arguments
    sampled: Tensor = aten.grid_sampler.default(
        image, places, given["interpolation_mode"], given["padding_mode"], given["align_corners"]
    )
    return sampled


@rule(aten.affine_grid_generator.default)
def affine_grid(node: Node) -> Operator:
    """Each coordinate is a row of theta times (x, y, 1): the matrix of these, for every image and row alike."""
    theta, size = node.inputs[0], node.arguments["size"]
    units = torch.eye(theta.shape[2], dtype=torch.float64)[:, None].expand(-1, theta.shape[1], -1)
    grid = aten.affine_grid_generator.default(units, [len(units), *size[1:]], node.arguments["align_corners"])
    return Separable((grid[..., 0].flatten(1).T.contiguous(),), 2.0**-20)
