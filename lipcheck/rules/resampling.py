"""Rules of interpolation: linear per axis, with few weights for each output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipcheck.graph import Node, Value
from lipcheck.operators import Operator, Separable, Unbounded
from lipcheck.rounding import UNIT
from lipcheck.rules.affine import input_of
from lipcheck.rules.registry import rule

aten = torch.ops.aten

# What the kernels compute, by the overload that takes sizes: the number of axes follows from the name.
_KERNELS: dict[Any, Any] = {
    overload: packet.default
    for packet in (
        *(aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d),
        *(aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa),
    )
    for overload in (packet.default, packet.vec)
}


@rule(*_KERNELS)
def interpolation(node: Node) -> Operator:
    """The Kronecker product of one matrix per axis: the operation itself, along one axis, says which.

    The weights follow from quotients of sizes, which the network computes in its own precision, and their cubics: the
    uncertainty covers what float32 and float64 make of them, measured in the norm, and the roundings of either.
    """
    value = input_of(node, "self" if "self" in node.arguments else "input")
    axes = len(value.shape) - 2
    matrices, uncertainty = [], 0.0
    for axis in range(axes):
        n, outputs = value.shape[2 + axis], node.shape[2 + axis]
        if not n or not outputs:
            return Unbounded("interpolation of an empty image")
        exact = _along(node, axis, n, outputs, torch.float64)
        rounded = _along(node, axis, n, outputs, torch.float32).double()
        matrices.append(exact)
        uncertainty = max(uncertainty, distance(exact, rounded))
    if not _is_their_product(node, value, matrices):
        return Unbounded("interpolation whose weights are no product over the axes")
    return Separable(tuple(matrices), 2 * uncertainty + 64 * UNIT)


def _along(node: Node, axis: int, n: int, outputs: int, dtype: torch.dtype) -> Tensor:
    """The matrix of one axis, from what the kernel does to unit vectors that are constant along the other axes.

    Shapes: (outputs, n). Each unit vector is a channel; the other axes have two positions, before and after.
    """
    given, axes = node.arguments, len(node.shape) - 2
    kernel = _KERNELS[node.op]
    scales = given.get("scale_factors") or [given.get(name) for name in _scale_names(kernel)]
    own = [scales[axis] if place == axis and len(scales) == axes else None for place in range(axes)]
    before, after = ([m if place == axis else 2 for place in range(axes)] for m in (n, outputs))
    units = torch.eye(n, dtype=dtype).reshape(1, n, *(n if place == axis else 1 for place in range(axes)))
    images: Tensor = kernel(units.expand(1, n, *before).contiguous(), after, given["align_corners"], *own)
    return images.movedim(2 + axis, 2).reshape(n, outputs, -1)[..., 0].T.contiguous()


def _is_their_product(node: Node, value: Value, matrices: Sequence[Tensor]) -> bool:
    """Whether the operation does to one image what the matrices do."""
    noise = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, *value.shape[2:], generator=noise, dtype=torch.float64)
    found = node.op(**{name: image if isinstance(given, Value) else given for name, given in node.arguments.items()})
    for axis, matrix in enumerate(matrices, 2):
        image = (image.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return bool(torch.isclose(found, image, rtol=1e-9, atol=1e-9).all())


def _scale_names(kernel: Any) -> list[str]:
    return [argument.name for argument in kernel._schema.arguments if argument.name.startswith("scales")]


def distance(exact: Tensor, rounded: Tensor) -> float:
    """At least ||A - B|| / max |A|, by the Schur test."""
    gap = (exact - rounded).abs()
    norm = math.sqrt(float(gap.sum(0).max() * gap.sum(1).max()))
    return norm / max(float(exact.abs().max()), 1e-300) * (1 + 1e-9)
