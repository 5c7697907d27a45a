"""Rules of attention, and the contractions that it is written out with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcheck.graph import Node, Value
from lipcheck.maps.attention import Attention, Operand
from lipcheck.operators import Operator, Unbounded
from lipcheck.rounding import EVALUATION, sqrt_up
from lipcheck.rules.registry import rule

aten = torch.ops.aten

# A number written in the code is rounded to the activations' precision when the network runs.
WRITTEN = 1 + 2.0**-23


@rule(aten.scaled_dot_product_attention.default)
def attention(node: Node) -> Operator:
    """softmax(scale q k' + mask) v, with the scale 1 / sqrt(d) unless another is given."""
    given = node.arguments
    if given["dropout_p"]:
        return Unbounded("dropout that is switched on")
    query, key, value = (tuple(given[name].shape) for name in ("query", "key", "value"))
    if any(len(shape) < 2 or 0 in shape for shape in (query, key, value)):
        return Unbounded("attention without positions or features")
    constant = _constant_mask(given, query[-2], key[-2])
    if constant is not None and not bool((constant < math.inf).all()):
        return Unbounded("attention with a mask that is not a number")
    mask, heads = given["attn_mask"], math.prod(node.shape[:-2])
    copies = [heads // math.prod(shape[:-2]) for shape in (query, key, value)]
    least, most, readers = seen_keys(constant) if constant is not None else (key[-2], key[-2], query[-2])
    logits = heads * query[-2] * key[-2]
    return Attention(
        _operand(given["query"]),
        _operand(given["key"]),
        _operand(given["value"]),
        readers=(copies[0], readers * copies[1], readers * copies[2]),
        seen=(max(least, 1), most),
        scale=abs(1 / math.sqrt(query[-1]) if given["scale"] is None else float(given["scale"])) * WRITTEN,
        assemble=lambda row: _for_every_query(row, node.shape),
        uneven=0.0 if constant is None else unevenness(constant),
        biases=((1.0, sqrt_up(logits // math.prod(mask.shape))),) if isinstance(mask, Value) else (),
        empty=least == 0,
    )


def _for_every_query(row: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One row for each head of the values at every position of the output; several heads may share one of the values.

    Shapes: `row` is (..., heads of the values, features), `shape` is (..., heads, queries, features).
    """
    if row.dim() > 1 and row.shape[-2] not in (1, shape[-3]):
        row = row.repeat_interleave(shape[-3] // row.shape[-2], -2)
    return row.unsqueeze(-2).expand(shape)


def _operand(argument: Value | Tensor) -> Operand:
    return Operand(fixed=argument.detach().double()) if isinstance(argument, Tensor) else Operand()


def _constant_mask(given: Mapping[str, Any], queries: int, keys: int) -> Tensor | None:
    """What is added to the logits, -inf where a query does not see a key; None where it is nothing or no constant.

    Shapes: the last two axes are (queries, keys).
    """
    mask = given["attn_mask"]
    if given["is_causal"]:
        mask = torch.ones(queries, keys, dtype=torch.bool).tril()
    if not isinstance(mask, Tensor):
        return None
    added = torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask
    return added.double().expand(*mask.shape[:-2], queries, keys)


def seen_keys(mask: Tensor) -> tuple[int, int, int]:
    """The least and the largest number of keys that a query sees, and the largest number of queries that see a key.

    Shapes: `mask` is (..., queries, keys), -inf where a query does not see a key.
    """
    visible = mask > -math.inf
    keys = visible.sum(-1)
    return int(keys.min()), int(keys.max()), int(visible.sum(-2).max())


def unevenness(mask: Tensor) -> float:
    """The most that what is added to the logits of one query differs between keys that it sees.

    Shapes: `mask` is (..., keys), -inf where a key is not seen.
    """
    high = mask.amax(-1)
    low = torch.where(mask > -math.inf, mask, math.inf).amin(-1)
    return float((high - low).nan_to_num(math.inf, math.inf, 0.0).max()) * (1 + EVALUATION)


@dataclass(frozen=True, slots=True, eq=False)
class Contraction:
    """A product, of activations or one of them with a constant, summed over the axes that the result lacks.

    An axis has the same label wherever it stands. Axes that all three have are its places; an operand may have one
    entry there that serves for all.
    """

    operands: tuple[Value | Tensor, Value | Tensor]
    axes: tuple[tuple[int, ...], tuple[int, ...]]
    result: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def places(self) -> tuple[int, ...]:
        return tuple(label for label in self.result if label in self.axes[0] and label in self.axes[1])

    @property
    def summed(self) -> tuple[int, ...]:
        return tuple(label for label in self.axes[0] if label not in self.result)

    @property
    def agrees(self) -> bool:
        """Whether the axes summed over have one length in both operands."""
        left, right = (dict(zip(a, o.shape, strict=True)) for a, o in zip(self.axes, self.operands, strict=True))
        return all(left[label] == right[label] for label in self.summed)

    def own(self, side: int) -> tuple[int, ...]:
        """The axes of the result that only this operand has."""
        return tuple(label for label in self.axes[side] if label in self.result and label not in self.axes[1 - side])

    def copies(self, side: int) -> int:
        """How often an operand's entry serves for several places."""
        sizes = dict(zip(self.result, self.shape, strict=True))
        own = dict(zip(self.axes[side], self.operands[side].shape, strict=True))
        return math.prod(sizes[label] for label in self.places) // math.prod(own[label] for label in self.places)

    def arranged(self, side: int, rows: Sequence[int], features: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """An operand's places in front, then these two groups of its axes, each as one axis."""
        return _arrangement(self.axes[side], self.places, rows, features)

    def assembled(self, side: int) -> Callable[[Tensor], Tensor]:
        """From (places, this operand's own axes as one) to the result, the same for all of the other's own."""
        sizes = dict(zip(self.axes[side], self.operands[side].shape, strict=True))
        labels = (*self.places, *self.own(side))

        def assemble(row: Tensor) -> Tensor:
            apart = row.reshape([sizes[label] for label in labels])
            ordered = apart.permute([labels.index(label) for label in self.result if label in labels])
            for axis, label in enumerate(self.result):
                if label not in labels:
                    ordered = ordered.unsqueeze(axis)
            return ordered.expand(self.shape)

        return assemble


def _arrangement(
    axes: Sequence[int], places: Sequence[int], rows: Sequence[int], features: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    order = [axes.index(label) for label in (*places, *rows, *features)]

    def arrange(tensor: Tensor) -> Tensor:
        moved = tensor.permute(order)
        sizes = moved.shape[: len(places)]
        count = math.prod(moved.shape[len(places) : len(places) + len(rows)])
        return moved.reshape(*sizes, count, math.prod(moved.shape[len(places) + len(rows) :]))

    return arrange


_OPERANDS = {
    aten.matmul.default: ("self", "other"),
    aten.mm.default: ("self", "mat2"),
    aten.bmm.default: ("self", "mat2"),
    aten.baddbmm.default: ("batch1", "batch2"),
}


def contraction(node: Node) -> Contraction | None:
    """The node as a contraction; None where it is none."""
    if node.op is aten.einsum.default:
        tensors = node.arguments["tensors"]
        if len(tensors) != 2:
            return None
        axes = _einsum_axes(node.arguments["equation"], [len(tensor.shape) for tensor in tensors])
        if axes is None:
            return None
        first, second, result = axes
        found = Contraction((tensors[0], tensors[1]), (first, second), result, node.shape)
        return found if found.agrees else None
    if node.op not in _OPERANDS:
        return None
    left, right = (node.arguments[name] for name in _OPERANDS[node.op])
    if min(len(left.shape), len(right.shape)) < 2:
        return None
    places = len(node.shape) - 2
    row, summed, column = places, places + 1, places + 2

    def of(value: Value | Tensor, *last: int) -> tuple[int, ...]:
        return (*range(places + 2 - len(value.shape), places), *last)

    return Contraction(
        (left, right), (of(left, row, summed), of(right, summed, column)), (*range(places), row, column), node.shape
    )


def _einsum_axes(equation: str, ranks: Sequence[int]) -> tuple[tuple[int, ...], ...] | None:
    """The labels of the operands' axes and of the result's; None for what is no plain contraction of two operands."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = [*inputs.split(","), output]
    if not arrow or len(terms) != 3:
        return None
    letters = [len(term.replace("...", "")) for term in terms]
    dots = max(rank - count for rank, count in zip(ranks, letters[:2], strict=True))
    ranks = [*ranks, letters[2] + (dots if "..." in output else 0)]
    found = []
    for term, rank, count in zip(terms, ranks, letters, strict=True):
        before, _, after = term.partition("...")
        missing = tuple(range(-(rank - count), 0)) if "..." in term else ()
        found.append((*map(ord, before), *missing, *map(ord, after)))
    left, right, result = (set(term) for term in found)
    plain = all(len(set(term)) == len(term) == rank for term, rank in zip(found, ranks, strict=True))
    if not plain or result - (left | right) or (left ^ right) - result:
        return None
    return tuple(found)
