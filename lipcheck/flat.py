"""Ranges with one lower and one upper end for all elements of an activation: wider than an audit's, and quick to have.

Where a constant is finite on these it is finite on the audit's own, which they contain.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lipcheck.graph import Graph, signature
from lipcheck.maps.attention import Attention
from lipcheck.maps.normalisations import Softmax, Standardisation
from lipcheck.maps.products import Bilinear, Product
from lipcheck.operators import Indexing, Nonlinear
from lipcheck.propagate import Ranges, Upper, image_of, shapes_of
from lipcheck.ranges import Range, distinct
from lipcheck.rounding import EVALUATION
from lipcheck.rules import DEFAULT_RULES, structural
from lipcheck.steps import Step

aten = torch.ops.aten

_MOVES = frozenset(op for op, rule in DEFAULT_RULES.items() if rule in (structural.moves, structural.copying))
# These leave zeros where they move nothing to.
_WITH_ZEROS = frozenset({aten.tril.default, aten.triu.default, aten.diag_embed.default})
_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})


def flat_image(step: Step, ranges: Mapping[str, Ranges], upper: Upper, slopes: tuple[float, ...]) -> Ranges:
    """The range of a step's result as `image_of` has it, or wider, with the same ends for all elements."""
    node, own = step.node, [ranges[value.name] for value in step.node.inputs]
    plain = step.inputs == tuple(value.name for value in node.inputs) and not step.absorbed_by
    if plain and node.op_name != "getitem" and all(isinstance(one, Range) and not one.is_unknown for one in own):
        given = {v.name: one for v, one in zip(node.inputs, own, strict=True) if isinstance(one, Range)}
        if node.op in _MOVES and isinstance(step.operator, Indexing) and len(own) == 1:
            (one,) = given.values()
            low, high = one.smallest, one.largest
            if node.op in _WITH_ZEROS:
                low, high = min(low, 0.0), max(high, 0.0)
            shapes = shapes_of(node, given)
            found = tuple(Range.between(low, high, shape) for shape in shapes or (node.shape,))
            return found if shapes else found[0]
        if node.op in _SUMS and len(own) == 2:
            points = {
                name: Range.between(one.smallest, one.largest, (1,) * len(one.shape)) for name, one in given.items()
            }
            summed = image_of(step, points, upper, slopes)
            return _flat_range(summed, node.shape) if isinstance(summed, Range) else summed
    return _flat(image_of(step, ranges, upper, slopes))


def _flat(found: Ranges) -> Ranges:
    return tuple(map(_flat_range, found)) if isinstance(found, tuple) else _flat_range(found)


def _flat_range(found: Range, shape: tuple[int, ...] | None = None) -> Range:
    return Range.between(
        -_top(-distinct(found.low)), _top(distinct(found.high)), found.shape if shape is None else shape
    )


def _top(values: torch.Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def remembering(graph: Graph, steps: Sequence[Step]) -> list[Step]:
    """The same steps, where nonlinear maps that are alike, as in equal blocks, are asked once for the same ends."""
    nodes = {node.name: node for node in graph.nodes}
    memory: dict[Hashable, Any] = {}
    return [
        replace(
            step,
            operator=_Remembered(
                step.operator, (type(step.operator), step.absorbed_by, signature(step.node, step.inputs, nodes)), memory
            ),
        )
        if isinstance(step.operator, Nonlinear)
        else step
        for step in steps
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Remembered(Nonlinear):
    """The inner map, its answers kept for ranges that are flat and bounded, by their ends and shapes.

    The ends are moved outwards to powers of 16 before it is asked: streams that grow from block to block share them.
    """

    inner: Nonlinear
    key: Hashable
    memory: dict[Hashable, Any]

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        wider = self._widened(ranges)
        if wider is None:
            return self.inner.slopes(ranges)
        if self._confined or isinstance(self._bare, Softmax):  # these have a constant wherever their input is
            wider = tuple((-math.inf, math.inf, shape) for _, _, shape in wider)
        key = (self.key, wider)
        if key not in self.memory:
            self.memory[key] = self.inner.slopes([Range.between(*one) for one in wider])
        found: tuple[float, ...] = self.memory[key]
        return found

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        wider = self._widened(ranges)
        if wider is None:
            return self.inner.image(ranges, shape)
        key = (self.key, wider, shape)
        if key not in self.memory:
            self.memory[key] = self._flat_image(wider, shape)
        found: Range = self.memory[key]
        return found

    def _flat_image(self, ends: Sequence[_Ends], shape: tuple[int, ...]) -> Range:
        inner = self.inner
        activations = isinstance(inner, Product) and inner.first.constant is None and inner.second.constant is None
        if activations and not any(low == -math.inf and high == math.inf for low, high, _ in ends):
            # Of every element the same is known: one stands for all.
            points = [Range.between(low, high, (1,) * len(own)) for low, high, own in ends]
            return _flat_range(inner.image(points, (1,) * len(shape)), shape)
        if (norm := self._confined) is not None:
            gain = 1.0 if norm.gain is None else _top(distinct(norm.gain).double().abs())
            shift = 0.0 if norm.shift is None else _top(distinct(norm.shift).double().abs())
            # ||v|| / s <= 1 / sqrt(k), as in the proof there; what follows it is wider by several roundings.
            most = (gain / math.sqrt(norm.share) + shift) * (1 + 16 * EVALUATION)
            return Range.between(-most, most, shape)
        if isinstance(self._bare, Softmax) and self._bare.kind == "softmax":
            return Range.between(0.0, 1 + 16 * EVALUATION, shape)
        finite = all(math.isfinite(end) for one in ends for end in one[:2])
        if isinstance(inner, Bilinear) and len(ends) == 2 and inner.addend is None and finite:
            # An entry is a sum of so many products, all between the same ends.
            products = [a * b for a in ends[0][:2] for b in ends[1][:2]]
            factor = inner.factor * inner.form.size(inner.form.summed)
            low, high = sorted((factor * min(products), factor * max(products)))
            slop = max(abs(low), abs(high)) * 16 * EVALUATION
            return Range.between(low - slop, high + slop, shape)
        return _flat_range(inner.image([Range.between(*one) for one in ends], shape), shape)

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        return self.inner.unbounded_because(ranges)

    @property
    def _bare(self) -> Nonlinear:
        """The map itself, whose constants may have no values."""
        found: Nonlinear = getattr(self.inner, "inner", self.inner)
        return found

    @property
    def _confined(self) -> Standardisation | None:
        """The inner map where it is a normalisation whose result is bounded and that has a constant everywhere."""
        inner = self._bare
        if isinstance(inner, Standardisation) and inner.eps > 0 and (inner.centred or not inner.about_mean):
            return inner
        return None

    def _widened(self, ranges: Sequence[Range]) -> tuple[_Ends, ...] | None:
        """The ranges with ends moved outwards; None where one is not flat, or where more than the ends counts."""
        found = []
        for one in ranges:
            low, high = distinct(one.low), distinct(one.high)
            if one.center is not None or low.numel() != 1 or high.numel() != 1:
                return None
            # What is known of attention's operands without ends is known from other activations.
            if isinstance(self.inner, Attention) and not one.bounded:
                return None
            found.append((-_above(-float(low.flatten()[0])), _above(float(high.flatten()[0])), one.shape))
        return tuple(found)


# Both ends and the shape of a flat range.
_Ends = tuple[float, float, tuple[int, ...]]


def _above(value: float) -> float:
    """The next power of 16 of the same sign, or one less far out for a negative number."""
    if value == 0 or not 1e-60 < abs(value) < 1e200:
        return value
    places = math.log2(abs(value)) / 4
    whole = math.ceil(places - 1e-9) if value > 0 else math.floor(places + 1e-9)
    power = math.copysign(16.0**whole, value)
    return power if power >= value else value
