"""Ranges with one lower and one upper end for all elements of an activation: wider than an audit's, and quick to have.

Where a constant is finite on these it is finite on the audit's own, which they contain.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lipcheck.graph import Graph, Node, Value
from lipcheck.operators import Indexing, Nonlinear
from lipcheck.propagate import Ranges, Upper, image_of, shapes_of
from lipcheck.ranges import Range, distinct
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
            return _flat(image_of(step, points, upper, slopes), node.shape)
    return _flat(image_of(step, ranges, upper, slopes))


def _flat(found: Ranges, shape: tuple[int, ...] | None = None) -> Ranges:
    if isinstance(found, tuple):
        return tuple(one for part in found if isinstance(one := _flat(part), Range))
    return Range.between(-_top(-distinct(found.low)), _top(distinct(found.high)), shape or found.shape)


def _top(values: torch.Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def remembering(graph: Graph, steps: Sequence[Step]) -> list[Step]:
    """The same steps, where nonlinear maps that are alike, as in equal blocks, are asked once for the same ends."""
    nodes = {node.name: node for node in graph.nodes}
    memory: dict[Hashable, Any] = {}
    return [
        replace(step, operator=_Remembered(step.operator, (type(step.operator), _signature(step, nodes)), memory))
        if isinstance(step.operator, Nonlinear)
        else step
        for step in steps
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Remembered(Nonlinear):
    """The inner map, its answers kept for ranges that are flat and bounded: those of its ends and shapes."""

    inner: Nonlinear
    key: Hashable
    memory: dict[Hashable, Any]

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        ends = _ends(ranges)
        if ends is None:
            return self.inner.slopes(ranges)
        key = (self.key, ends)
        if key not in self.memory:
            self.memory[key] = self.inner.slopes(ranges)
        found: tuple[float, ...] = self.memory[key]
        return found

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        ends = _ends(ranges)
        if ends is None:
            return self.inner.image(ranges, shape)
        key = (self.key, ends, shape)
        if key not in self.memory:
            self.memory[key] = _flat(self.inner.image(ranges, shape))
        found: Range = self.memory[key]
        return found

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        return self.inner.unbounded_because(ranges)


def _ends(ranges: Sequence[Range]) -> Hashable:
    """The two ends of each range and its shape; None where one is not flat or has an end that is infinite."""
    found = []
    for one in ranges:
        low, high = distinct(one.low), distinct(one.high)
        if one.center is not None or low.numel() != 1 or high.numel() != 1 or not one.bounded:
            return None
        found.append((float(low.flatten()[0]), float(high.flatten()[0]), one.shape))
    return tuple(found)


def _signature(step: Step, nodes: Mapping[str, Node]) -> Hashable:
    """Equal for steps that are the same map: the calls back to what they read, with the same constants."""
    numbers: dict[str, int] = {}
    calls: list[Hashable] = []

    def sign(argument: Any) -> Hashable:
        if isinstance(argument, Value):
            if argument.name in step.inputs:
                return ("reads", step.inputs.index(argument.name), argument.shape, argument.dtype)
            return ("calls", number(nodes[argument.name]))
        if isinstance(argument, torch.Tensor):
            same = distinct(argument)
            value = same.flatten()[0].item() if same.numel() == 1 else same.data_ptr()
            return (tuple(argument.shape), argument.dtype, value)
        if isinstance(argument, list | tuple):
            return tuple(map(sign, argument))
        return (type(argument), argument)

    def number(node: Node) -> int:
        if node.name not in numbers:
            numbers[node.name] = -1
            calls.append((node.op, node.shape, tuple((name, sign(one)) for name, one in node.arguments.items())))
            numbers[node.name] = len(calls) - 1
        return numbers[node.name]

    number(step.node)
    return (tuple(calls), len(step.inputs), step.absorbed_by)
