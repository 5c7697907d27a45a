"""Rules of operations that only move numbers: each output is one of the inputs, a constant, or a sum of some."""

from __future__ import annotations

import math
import operator as python_operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lipcheck.graph import Node, Value
from lipcheck.operators import IDENTITY, Concatenation, Indexing, Operator, Separable, Sum, Unbounded
from lipcheck.rounding import sqrt_up, up
from lipcheck.rules.registry import rule

aten = torch.ops.aten

_MOVES = (
    *("view.default", "reshape.default", "_unsafe_view.default", "view_as.default", "reshape_as.default"),
    *("flatten.using_ints", "unflatten.int", "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default"),
    *("permute.default", "transpose.int", "t.default", "movedim.int", "swapaxes.default", "adjoint.default"),
    *("movedim.intlist", "moveaxis.int", "moveaxis.intlist", "swapdims.default", "ravel.default", "mH.default"),
    *("mT.default", "numpy_T.default", "roll.default", "flip.default", "pixel_shuffle.default", "rot90.default"),
    *("fliplr.default", "flipud.default", "positive.default", "resolve_conj.default", "resolve_neg.default"),
    *("pixel_unshuffle.default", "channel_shuffle.default", "native_channel_shuffle.default"),
    *("slice.Tensor", "select.int", "narrow.default", "diagonal.default", "tril.default", "triu.default"),
    *("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "unbind.int"),
    *("unsafe_split.Tensor", "unsafe_split_with_sizes.default", "unsafe_chunk.default"),
    *("tensor_split.sections", "tensor_split.indices", "diag_embed.default", "linalg_diagonal.default"),
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
    return _converted(node.arguments.get("dtype") or torch.float32)


@rule(aten.type_as.default, aten.to.other)
def conversion_alike(node: Node) -> Operator:
    """The other operand gives its type alone."""
    return _converted(node.constant("other").dtype)


def _converted(target: torch.dtype) -> Operator:
    if not target.is_floating_point:
        return Unbounded(f"conversion to {str(target).removeprefix('torch.')} is not continuous")
    return IDENTITY


@rule(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
def dropout(node: Node) -> Operator:
    """The identity at inference."""
    return Unbounded("dropout that is switched on") if node.arguments["train"] else IDENTITY


@rule(aten.expand.default, aten.expand_as.default, aten.broadcast_to.default, aten.repeat.default, aten.tile.default)
def copying(node: Node) -> Operator:
    """Every input appears equally often."""
    return Indexing(math.prod(node.shape) // max(1, math.prod(node.inputs[0].shape)))


@rule(aten.copy.default, aten.fill.Tensor)
def overwriting(node: Node) -> Operator:
    """What is written over only gives shape and type; what is written is copied as it is broadcast."""
    written = node.constant("self")
    if not written.is_floating_point():
        return _converted(written.dtype)
    return copying(node)


# Where the elements go or come from: with these constant, every element of the result is one known operand's.
_PLACES = frozenset(("index", "indices", "mask", "repeats"))


@rule(aten.index_select.default, aten.index.Tensor, aten._unsafe_index.Tensor, aten.gather.default, aten.take.default)
@rule(aten.take_along_dim.default, aten.embedding.default, aten.unfold.default, aten.im2col.default)
@rule(aten.repeat_interleave.self_int, aten.repeat_interleave.self_Tensor)
@rule(aten.slice_scatter.default, aten.select_scatter.default, aten.diagonal_scatter.default)
@rule(aten.scatter.src, aten.scatter.value, aten.index_copy.default, aten.masked_scatter.default)
@rule(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
@rule(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec)
@rule(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default)
@rule(aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact3d.vec)
@rule(aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact2d.default)
@rule(aten._upsample_nearest_exact3d.default)
@rule(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
@rule(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)
def selection(node: Node) -> Operator:
    """Each output is one element of one operand: the operation itself, run on numbered operands, says which.

    The squared change of the result is the sum over the operands' elements of theirs, times the copies of each.
    """
    if (name := _moving_place(node)) is not None:
        return _jumps(name)
    return _placed(copies_of(node))


def _placed(copies: list[int]) -> Operator:
    """Operands' elements side by side, each so often at most."""
    if len(copies) == 1:
        return Indexing(copies[0])
    return Concatenation() if max(copies) <= 1 else Sum(tuple(sqrt_up(max(1, count)) for count in copies))


@rule(aten.index_put.default, aten._unsafe_index_put.default)
def masked_write(node: Node) -> Operator:
    """Where a place is written twice, which of the values stays is left open: each has as many copies as places."""
    if node.arguments["accumulate"]:
        return _summed(node, "values")
    if (name := _moving_place(node)) is not None:
        return _jumps(name)
    copies = {"self": 1, "values": 1}
    if isinstance(values := node.arguments["values"], Value):
        places = aten.index.Tensor(torch.empty(node.shape), node.arguments["indices"])
        copies["values"] = places.numel() // max(1, math.prod(values.shape))
    own = [copies[name] for name in copies if isinstance(node.arguments[name], Value)]
    return _placed(own) if max(own) <= 1 else Sum(tuple(map(sqrt_up, own)))


@rule(aten.scatter_add.default)
def scatter_add(node: Node) -> Operator:
    return _summed(node, "src")


@rule(aten.scatter_reduce.two)
def scatter_reduce(node: Node) -> Operator:
    if node.arguments["reduce"] != "sum":
        return Unbounded(f"scattering with {node.arguments['reduce']} has no rule yet")
    return _summed(node, "src")


@rule(aten.index_add.default)
def index_add(node: Node) -> Operator:
    return _summed(node, "source", abs(float(node.arguments["alpha"])))


def _summed(node: Node, name: str, factor: float = 1.0) -> Operator:
    """Elements of one operand, times a factor, added to those of `self`, at constant places.

    With each of them used k times, and at most n in one sum, A'A has norm at most k n (Schur: row and column sums).
    """
    if (moving := _moving_place(node)) is not None:
        return _jumps(moving)
    added = node.arguments[name]
    ones = _filled(node, lambda argument, of: torch.full(argument.shape, float(of == name), dtype=torch.float64))
    sums = _run(node, ones | {"alpha": 1} if "alpha" in ones else ones)[0]
    copies = max(1, round(float(sums.sum()) / max(1, math.prod(added.shape))))
    most = round(float(sums.max())) if sums.numel() else 0
    root = sqrt_up(most * copies)
    weights = {"self": 1.0, name: root if factor == 1 else up(root * factor)}
    found = tuple(weights[key] for key, argument in node.arguments.items() if isinstance(argument, Value))
    return Sum(found) if found != (1.0,) else IDENTITY


@rule(aten.col2im.default)
def folding(node: Node) -> Operator:
    """Each input goes to one place at most: A A' is diagonal, with the number of terms of each sum on it."""
    ones = _filled(node, lambda argument, of: torch.ones(argument.shape, dtype=torch.float64))
    sums = _run(node, ones)[0]
    most = round(float(sums.max())) if sums.numel() else 0
    return Separable((torch.ones((1, max(1, most)), dtype=torch.float64),))


@rule(aten.as_strided.default, aten.as_strided_scatter.default)
def by_address(node: Node) -> Operator:
    return Unbounded("it reads memory by address, and the captured graph does not hold where elements lie")


def _moving_place(node: Node) -> str | None:
    """The argument that says where elements go, if it depends on the input."""
    return next((name for name in _PLACES if any(True for _ in _values(node.arguments.get(name)))), None)


def _jumps(name: str) -> Operator:
    return Unbounded(f"its {name} depends on the input: which elements it moves changes at once, and so its output")


def copies_of(node: Node) -> list[int]:
    """How often the most used element of each activation, in the order of `inputs`, appears in the results."""
    spans: list[tuple[int, int]] = []
    first = 1  # zero stands for constants

    def numbered(argument: Value | Tensor, name: str) -> Tensor:
        nonlocal first
        if not isinstance(argument, Value):
            return torch.zeros(argument.shape, dtype=torch.float64)
        count = math.prod(argument.shape)
        spans.append((first, first + count))
        first += count
        return torch.arange(first - count, first, dtype=torch.float64).reshape(argument.shape)

    results = _run(node, _filled(node, numbered))
    found = torch.cat([result.flatten() for result in results]).round().long()
    counts = torch.bincount(found, minlength=first)
    return [int(counts[start:end].max()) if end > start else 0 for start, end in spans]


def _filled(node: Node, operand: Callable[[Value | Tensor, str], Tensor]) -> dict[str, Any]:
    """The node's arguments with other operands of numbers; places and sizes are as they are, written scalars zero."""

    def real(argument: Any, name: str) -> Any:
        if isinstance(argument, Value) or (isinstance(argument, Tensor) and name not in _PLACES):
            return operand(argument, name)
        if isinstance(argument, list | tuple):
            return [real(part, name) for part in argument]
        return 0.0 if name == "value" else argument

    return {name: real(argument, name) for name, argument in node.arguments.items()}


def _run(node: Node, arguments: dict[str, Any]) -> list[Tensor]:
    result = node.op(**arguments)
    return [result] if isinstance(result, Tensor) else list(result)


def _values(argument: Any) -> Iterator[Value]:
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from _values(part)
