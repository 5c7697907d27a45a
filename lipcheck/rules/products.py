"""Rules of products and ratios: by constants they are linear, of activations they need ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipcheck.graph import Node, Value
from lipcheck.maps.products import (
    Bilinear,
    Contraction,
    GatedHalf,
    Interpolation,
    Operand,
    Product,
    copied_axes,
)
from lipcheck.operators import BatchedDense, Dense, Diagonal, Indexing, Operator, Separable, Sum, Unbounded
from lipcheck.rounding import UNIT, up
from lipcheck.rules.registry import rule

aten = torch.ops.aten
_NOT_FINITE = "scaling by a factor that is not finite"


def _operand(argument: Any) -> Operand:
    """An activation or a constant, numbers written in the code included."""
    return Operand(argument.shape) if isinstance(argument, Value) else Operand.fixed(_constant(argument))


def _constant(argument: Any) -> Tensor:
    return argument.detach() if isinstance(argument, Tensor) else torch.as_tensor(argument, dtype=torch.float64)


def _finite(*arguments: Any) -> bool:
    constants = (_constant(one) for one in arguments if not isinstance(one, Value))
    return all(not one.is_complex() and bool(torch.isfinite(one).all()) for one in constants)


def _rounding(number: float) -> float:
    """What a number written in the code is off by, relatively, in the activations' precision when the network runs."""
    return 0.0 if number == float(torch.tensor(number, dtype=torch.float32)) else 2.0**-24


def _scaled_copies(gain: Tensor, own: tuple[int, ...], whole: tuple[int, ...]) -> float:
    """At least the norm of x -> g x, x broadcast from its own shape: the largest norm of the g that meet one entry."""
    aligned = gain.double().reshape((1,) * (len(whole) - gain.dim()) + tuple(gain.shape)).expand(whole)
    top = float(aligned.abs().max()) if aligned.numel() else 0.0
    if not top or not math.isfinite(top):
        return top
    axes = copied_axes(own, whole)
    norms = torch.linalg.vector_norm(aligned / top, dim=axes) if axes else (aligned / top).abs()
    return up(float(norms.max()) * top * (1 + 2.0**-30))


@rule(aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
@rule(aten.multiply.Tensor, aten.multiply.Scalar, aten.divide.Tensor, aten.divide.Scalar)
@rule(aten.true_divide.Tensor, aten.true_divide.Scalar)
def scaling(node: Node) -> Operator:
    """A constant factor: one number, or one per channel or element; otherwise a product or a ratio of activations."""
    first, second = node.arguments["self"], node.arguments["other"]
    dividing = "div" in node.op_name
    if any(isinstance(one, complex) or (isinstance(one, Tensor) and one.is_complex()) for one in (first, second)):
        return Unbounded("scaling by complex numbers")
    if isinstance(second, Value) and (dividing or isinstance(first, Value)):
        if not _finite(first):
            return Unbounded(_NOT_FINITE)
        same = isinstance(first, Value) and first.name == second.name
        return Product(_operand(first), _operand(second), node.shape, dividing=dividing, same=same)
    value, factor = (first, second) if isinstance(first, Value) else (second, first)
    gain = _constant(factor).double()
    if dividing:
        gain = 1 / gain
    if not bool(torch.isfinite(gain).all()):
        return Unbounded(_NOT_FINITE)
    if copied_axes(value.shape, node.shape):
        return Sum((_scaled_copies(gain, value.shape, node.shape),))
    rounded = 0.0 if isinstance(factor, Tensor) else _rounding(float(gain))
    return Diagonal(gain, rounded + (4 * UNIT if dividing else 0.0))


@rule(aten.addcmul.default, aten.addcdiv.default)
def add_product(node: Node) -> Operator:
    """a + c x y, a + c x / y: linear in a, and in x alone where nothing else of the product is an activation."""
    given = node.arguments
    addend, first, second = given["self"], given["tensor1"], given["tensor2"]
    factor, dividing = float(given["value"]), "div" in node.op_name
    if not _finite(first, second, factor):
        return Unbounded(_NOT_FINITE)
    if isinstance(second, Value) and (dividing or isinstance(first, Value)):
        return Product(
            _operand(first), _operand(second), node.shape, _operand(addend), factor, dividing=dividing
        )  # fmt: skip
    weights = [_scaled_copies(torch.ones(()), addend.shape, node.shape)] if isinstance(addend, Value) else []
    if isinstance(first, Value) or isinstance(second, Value):
        value, other = (first, second) if isinstance(first, Value) else (second, first)
        gain = _constant(other).double()
        gain = (1 / gain if dividing else gain) * factor
        if not bool(torch.isfinite(gain).all()):
            return Unbounded(_NOT_FINITE)
        if not weights and not copied_axes(value.shape, node.shape):
            return Diagonal(gain, 4 * UNIT + _rounding(factor))
        weights.append(_scaled_copies(gain, value.shape, node.shape))
    return Sum(tuple(weights))


@rule(aten.lerp.Scalar, aten.lerp.Tensor)
def interpolation(node: Node) -> Operator:
    """x + w (y - x): x weighs 1 - w, y weighs w."""
    start, end, weight = (node.arguments[name] for name in ("self", "end", "weight"))
    if isinstance(weight, Value):
        if isinstance(start, Value) and isinstance(end, Value):
            return Interpolation((start.shape, end.shape, weight.shape), node.shape)
        return Unbounded("interpolation from or to a constant by an activation has no rule yet")
    if not _finite(weight):
        return Unbounded(_NOT_FINITE)
    share = _constant(weight).double()
    pairs = ((start, 1 - share), (end, share))
    return Sum(tuple(_scaled_copies(by, one.shape, node.shape) for one, by in pairs if isinstance(one, Value)))


@rule(aten.glu.default)
def gated_half(node: Node) -> Operator:
    return GatedHalf(node.arguments["dim"])


# Contractions


def matmul_letters(first: Sequence[int], second: Sequence[int]) -> tuple[str, str, str]:
    """torch.matmul as an einsum: the letters of both operands and of the result."""
    batch = "abcdefgh"[: max(len(first), len(second), 2) - 2]
    left = batch[len(batch) - max(len(first) - 2, 0) :] + ("i" if len(first) > 1 else "") + "k"
    right = batch[len(batch) - max(len(second) - 2, 0) :] + "k" + ("j" if len(second) > 1 else "")
    result = batch + ("i" if len(first) > 1 else "") + ("j" if len(second) > 1 else "")
    return left, right, result


def einsum_letters(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result, an ellipsis in spare ones. None for what has no such form."""
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands, spare = left.split(","), [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    if len(operands) != len(shapes):
        return None
    found, most = [], 0
    for letters, shape in zip(operands, shapes, strict=True):
        extra = len(shape) - len(letters.replace("...", ""))
        most = max(most, extra if "..." in letters else 0)
        found.append(letters.replace("...", "".join(spare[len(spare) - extra :]) if extra else ""))
    ellipsis = "".join(spare[len(spare) - most :]) if most else ""
    if not arrow:
        counts = {c: sum(one.count(c) for one in found) for one in found for c in one}
        right = ellipsis + "".join(sorted(c for c, n in counts.items() if n == 1 and c not in ellipsis))
    result = right.replace("...", ellipsis)
    repeated = any(len(set(letters)) < len(letters) for letters in (*found, result))
    return None if repeated else (found, result)


def contraction(letters: Sequence[str], result: str, shapes: Sequence[Sequence[int]]) -> Contraction | None:
    """The contraction of two operands, without axes that are broadcast; None where an operand is summed alone."""
    sizes: dict[str, int] = {}
    for own, shape in zip(letters, shapes, strict=True):
        for letter, n in zip(own, shape, strict=True):
            sizes[letter] = n if sizes.get(letter, 1) == 1 else sizes[letter]
    kept = [
        "".join(c for c, n in zip(own, shape, strict=True) if n == sizes[c])
        for own, shape in zip(letters, shapes, strict=True)
    ]
    found = Contraction(kept[0], kept[1], result, tuple(sizes.items()))
    alone = [c for own, other in (kept, kept[::-1]) for c in own if c not in other and c not in result]
    return None if alone else found


def _contracted(
    node: Node, first: Any, second: Any, letters: Sequence[str], result: str, *, factor: float = 1.0
) -> Operator:
    """A contraction of two operands, one of them constant or none."""
    shapes = [tuple(one.shape) for one in (first, second)]
    form = contraction(letters, result, shapes)
    if form is None:
        return Unbounded("a contraction that sums one operand alone has no rule yet")
    if not _finite(first, second, factor):
        return Unbounded(_NOT_FINITE)
    if isinstance(first, Value) and isinstance(second, Value):
        return Bilinear(_operand(first), _operand(second), form, factor=factor)
    matrices = form.right(second.detach()).mT if isinstance(first, Value) else form.left(first.detach())
    return BatchedDense(*_times(matrices.contiguous(), factor))


def _times(matrices: Tensor, factor: float) -> tuple[Tensor, float]:
    """A multiple and its relative error."""
    return (matrices, 0.0) if factor == 1 else (matrices.double() * factor, 2 * UNIT + _rounding(factor))


@rule(aten.mm.default, aten.bmm.default)
def mm(node: Node) -> Operator:
    return _product_with_matrix(node, "self", "mat2")


@rule(aten.matmul.default, aten.linalg_matmul.default)
def matmul(node: Node) -> Operator:
    return _product_with_matrix(node, "self", "other")


def _product_with_matrix(node: Node, left: str, right: str) -> Operator:
    """x M for a constant matrix on the right, M x for one on the left; every other axis is a position."""
    first, second = node.arguments[left], node.arguments[right]
    for one, constant in ((first, second), (second, first)):
        if isinstance(one, Value) and isinstance(constant, Tensor) and constant.dim() == 2 and len(one.shape) > 1:
            return Dense(constant.detach().T if one is first else constant.detach())
    *letters, result = matmul_letters(first.shape, second.shape)
    return _contracted(node, first, second, letters, result)


@rule(aten.mv.default)
def matrix_vector(node: Node) -> Operator:
    return _contracted(node, node.arguments["self"], node.arguments["vec"], ("ik", "k"), "i")


@rule(aten.dot.default)
def inner_product(node: Node) -> Operator:
    return _contracted(node, node.arguments["self"], node.arguments["tensor"], ("k", "k"), "")


@rule(aten.addmm.default, aten.baddbmm.default)
def addmm(node: Node) -> Operator:
    """b a + c A B. As linear layers are written out, with a and B constant, it is a matrix."""
    given = node.arguments
    batched = "batch1" in given
    addend = given["self"]
    first, second = (given[name] for name in (("batch1", "batch2") if batched else ("mat1", "mat2")))
    factor, addend_factor = float(given["alpha"]), float(given["beta"])
    letters, result = (("aik", "akj"), "aij") if batched else (("ik", "kj"), "ij")
    linear = not isinstance(addend, Value) and not (isinstance(first, Value) and isinstance(second, Value))
    if linear and min(factor, addend_factor) >= 0:
        if not batched and not isinstance(second, Value):
            return Dense(*_times(second.detach().T, factor))
        return _contracted(node, first, second, letters, result, factor=factor)
    form = contraction(letters, result, [first.shape, second.shape])
    if form is None or not _finite(first, second, addend, factor, addend_factor):
        return Unbounded(_NOT_FINITE)
    return Bilinear(_operand(first), _operand(second), form, _operand(addend), factor, addend_factor)


@rule(aten.einsum.default)
def einsum(node: Node) -> Operator:
    """One or two operands, no letter twice in one: a product of matrices, or a sum over some axes."""
    equation, tensors = node.arguments["equation"], node.arguments["tensors"]
    shapes = [tuple(one.shape) for one in tensors]
    found = einsum_letters(equation, shapes)
    if found is None or len(tensors) > 2:
        return Unbounded(f"einsum {equation} has no rule yet")
    letters, result = found
    if len(tensors) == 1:
        summed = math.prod(n for c, n in zip(letters[0], shapes[0], strict=True) if c not in result)
        return Separable((torch.ones((1, summed), dtype=torch.float64),)) if summed > 1 else Indexing()
    return _contracted(node, tensors[0], tensors[1], letters, result)


# What else is linear


@rule(aten.cumsum.default)
def running_sum(node: Node) -> Operator:
    """A lower triangle of ones along its axis."""
    shape = node.arguments["self"].shape
    n = shape[node.arguments["dim"]] if shape else 1
    return Separable((torch.ones((n, n), dtype=torch.float64).tril(),))


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(node: Node) -> Operator:
    """A constant where the constant mask is set, the activation elsewhere."""
    value, mask = node.arguments["self"], node.constant("mask")
    filled = node.arguments["value"]
    if isinstance(value, Value) and isinstance(filled, Value):
        return Unbounded("filling with an activation has no rule yet")
    if isinstance(filled, Value):
        return Indexing(max(1, int(mask.expand(node.shape).sum())))
    return Indexing(math.prod(node.shape) // max(1, math.prod(value.shape)))
