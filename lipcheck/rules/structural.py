"""Rules of operations that only move numbers: each output is one of the inputs."""

from __future__ import annotations

import math
import operator as python_operator
from typing import Any

import torch

from lipcheck.graph import Node, Value
from lipcheck.operators import IDENTITY, Indexing, Operator, Unbounded
from lipcheck.rules.affine import most_copies
from lipcheck.rules.registry import rule

aten = torch.ops.aten

_MOVES = (
    *("view.default", "reshape.default", "_unsafe_view.default", "view_as.default", "reshape_as.default"),
    *("flatten.using_ints", "unflatten.int", "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default"),
    *("permute.default", "transpose.int", "t.default", "movedim.int", "swapaxes.default", "adjoint.default"),
    *("mT.default", "numpy_T.default", "roll.default", "flip.default", "pixel_shuffle.default"),
    *("pixel_unshuffle.default", "channel_shuffle.default", "native_channel_shuffle.default"),
    *("slice.Tensor", "select.int", "narrow.default", "diagonal.default", "tril.default", "triu.default"),
    *("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "unbind.int"),
    *("tensor_split.sections", "tensor_split.indices"),
    *("clone.default", "contiguous.default", "alias.default", "detach.default", "lift_fresh_copy.default"),
)


def _overloads(names: tuple[str, ...]) -> list[Any]:
    """The overloads of this torch: a few come and go between releases."""
    found = []
    for name in names:
        packet, overload = name.rsplit(".", 1)
        if hasattr(aten, packet) and overload in getattr(aten, packet).overloads():
            found.append(getattr(getattr(aten, packet), overload))
    return found


@rule(python_operator.getitem, *_overloads(_MOVES))
def moves(node: Node) -> Operator:
    """Every input appears at most once."""
    return IDENTITY


@rule(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device)
def conversion(node: Node) -> Operator:
    """A change of floating-point type: the identity up to rounding, as all bounds are of real arithmetic."""
    target = node.arguments.get("dtype") or torch.float32
    if not target.is_floating_point:
        return Unbounded(f"conversion to {str(target).removeprefix('torch.')} is not continuous")
    return IDENTITY


@rule(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
def dropout(node: Node) -> Operator:
    """The identity at inference."""
    return Unbounded("dropout that is switched on") if node.arguments["train"] else IDENTITY


@rule(aten.expand.default, aten.repeat.default, aten.tile.default)
def copying(node: Node) -> Operator:
    """Every input appears equally often."""
    before = node.inputs[0].shape
    return Indexing(math.prod(node.shape) // max(1, math.prod(before)))


@rule(aten.index_select.default)
def index_select(node: Node) -> Operator:
    return Indexing(most_copies(node.constant("index")))


@rule(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec)
@rule(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default)
def nearest(node: Node) -> Operator:
    """Each output is one input: the operation itself, run on numbered inputs, says which."""
    size = node.inputs[0].shape[2:]
    numbered = torch.arange(math.prod(size), dtype=torch.float64).reshape(1, 1, *size)
    arguments = {name: numbered if isinstance(value, Value) else value for name, value in node.arguments.items()}
    return Indexing(most_copies(node.op(**arguments).round().long()))
