"""Rotary embeddings, written out, and other linear maps of one activation that read it in pairs."""

from __future__ import annotations

import math
import operator as python_operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lipcheck.graph import Graph, Node, Value, signature
from lipcheck.maps.attention import Pairs
from lipcheck.rules.pointwise import scalar
from lipcheck.steps import Step

aten = torch.ops.aten

_LARGEST = 2**23
_LONGEST = 60


def overloads(*packets: str) -> frozenset[Any]:
    """All overloads of these operations, those that this torch has."""
    known = [getattr(aten, packet) for packet in packets if hasattr(aten, packet)]
    return frozenset(getattr(packet, overload) for packet in known for overload in packet.overloads())


# Each entry of the result is one of the operand's; none is copied.
MOVES = overloads(
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t"),
    *("movedim", "swapaxes", "mT", "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind"),
    *("clone", "contiguous", "alias", "detach", "roll", "flip"),
) | {python_operator.getitem}
# Of these the result has several parts.
SEVERAL = overloads("split", "split_with_sizes", "chunk", "unbind")
_TYPES = overloads("_to_copy", "to", "type_as")


def converts(node: Node) -> bool:
    """Whether the node changes the type of floating-point numbers, or does nothing at inference."""
    if node.op is aten.dropout.default:
        return not node.arguments["train"]
    target = node.arguments.get("dtype") or torch.float32
    return node.op in _TYPES and isinstance(target, torch.dtype) and target.is_floating_point


def evaluated(node: Node, given: Mapping[str, Any]) -> Any:
    """The node's operation in float64 on these activations, by name; a change of type does nothing."""

    def real(argument: Any) -> Any:
        if isinstance(argument, Value):
            return given[argument.name]
        if isinstance(argument, Tensor):
            return argument.detach().double() if argument.is_floating_point() else argument
        return [real(part) for part in argument] if isinstance(argument, list | tuple) else argument

    if converts(node):
        return given[node.inputs[0].name]
    arguments = {name: real(argument) for name, argument in node.arguments.items()}
    if node.op is python_operator.getitem:
        return node.op(*arguments.values())
    if isinstance(arguments.get("dtype"), torch.dtype):
        arguments["dtype"] = None
    schema = node.op._schema.arguments  # type: ignore[attr-defined]
    positional = [arguments[p.name] for p in schema if not p.kwarg_only]
    # A view depends on how its operand lies in memory, which is not how the network's does.
    op = aten.reshape.default if node.op in (aten.view.default, aten._unsafe_view.default) else node.op
    return op(*positional, **{p.name: arguments[p.name] for p in schema if p.kwarg_only})


def recognise(graph: Graph, steps: dict[str, Step]) -> None:
    """The step of each sum, concatenation or stack of parts of one activation, in pairs, becomes that map of it."""
    reader = _Reader(graph)
    for node in graph.nodes:
        if node.op in _JOINS and len(node.inputs) > 1 and (found := reader.pairs(node)) is not None:
            source, operator = found
            steps[node.name] = replace(steps[node.name], operator=operator, inputs=(source,))


_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})
_BESIDE = frozenset({aten.cat.default, aten.stack.default})
_JOINS = _SUMS | _BESIDE
_FACTORS = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})

# Of each entry y_i = a_i x_f(i) + b_i x_s(i): a, f, b, s.
_Form = tuple[Tensor, Tensor, Tensor, Tensor]


class _Reader:
    def __init__(self, graph: Graph) -> None:
        self.nodes = {node.name: node for node in graph.nodes}
        self.order = {node.name: place for place, node in enumerate(graph.nodes)}
        self.shapes: dict[str, tuple[int, ...]] = {node.name: node.shape for node in graph.nodes}
        self.shapes[graph.input.name] = graph.input.shape
        # As large as activations, and the same in all layers: each is made and kept once.
        self.known: dict[Hashable, Pairs | None] = {}

    def pairs(self, last: Node) -> tuple[str, Pairs] | None:
        """The activation that all parts come from, and the map from it."""
        behind = self._source(last)
        if behind is None:
            return None
        source, between = behind
        key = signature(last, (source,), self.nodes)
        if key not in self.known:
            found = self._map(last, source, between)
            same = (one for one in self.known.values() if one is not None and found is not None and one.same(found))
            self.known[key] = next(same, found)
        operator = self.known[key]
        return None if operator is None else (source, operator)

    def _map(self, last: Node, source: str, between: Sequence[Node]) -> Pairs | None:
        """The cluster between an activation and its last node, if it reads the activation in pairs."""
        shape = self.shapes[source]
        count = math.prod(shape)
        index = torch.arange(count).reshape(shape)
        one, zero = torch.ones(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        forms: dict[str, Any] = {source: (one, index, zero, index)}
        for node in between:
            form = self._form(node, forms)
            if form is None:
                return None
            forms[node.name] = form
        a, first, b, second = forms[last.name]
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            return None
        if Pairs.partners(first, b, second, count) is None:
            return None
        row = first // max(shape[-1], 1)
        rows = bool((row == row[..., :1]).all()) and bool((second // max(shape[-1], 1) == row)[b != 0].all())
        return Pairs(a, first, b, second, rows)

    def _source(self, last: Node) -> tuple[str, list[Node]] | None:
        """The nearest activation on every way to the node, and the nodes behind it in order."""
        frontier, between, spread = {last.name}, list[Node](), False
        for _ in range(_LONGEST):
            latest = max(frontier, key=lambda name: self.order.get(name, -1))
            node = self.nodes.get(latest)
            if len(frontier) == 1 and spread and 0 not in self.shapes[latest] and not self._several(latest):
                return latest, between[::-1]
            if node is None or not self._linear(node) or math.prod(node.shape) > _LARGEST:
                return None
            frontier.remove(latest)
            frontier |= {value.name for value in node.inputs}
            between.append(node)
            spread = spread or len(frontier) > 1
        return None

    def _several(self, name: str) -> bool:
        """Whether a node has several results."""
        return name in self.nodes and self.nodes[name].op in SEVERAL

    def _linear(self, node: Node) -> bool:
        if node.op in MOVES or node.op is aten.neg.default or converts(node):
            return True
        if node.op in _FACTORS:
            first, second = node.arguments["self"], node.arguments["other"]
            return (
                len(node.inputs) == 1
                and (isinstance(first, Value) or "mul" in node.op_name)
                and not (isinstance(second, complex))
            )
        if node.op in _SUMS:
            return len(node.inputs) == 2 and all(value.shape == node.shape for value in node.inputs)
        return node.op in _BESIDE and all(isinstance(part, Value) for part in node.arguments["tensors"])

    def _form(self, node: Node, forms: Mapping[str, Any]) -> Any:
        """The result's entries as combinations of two of the source's; None where they are none."""
        given = [forms[value.name] for value in node.inputs]
        if node.op in MOVES or node.op in _BESIDE or converts(node):
            names = [value.name for value in node.inputs]
            parts = [evaluated(node, {n: one[k] for n, one in zip(names, given, strict=True)}) for k in range(4)] \
                if node.op is not python_operator.getitem else given[0][node.arguments["index"]]  # fmt: skip
            if isinstance(parts[0], Tensor):
                return tuple(parts)
            return [tuple(each) for each in zip(*parts, strict=True)]
        if node.op in _SUMS:
            sign = float(node.arguments["alpha"]) * (-1 if node.op is aten.sub.Tensor else 1)
            return _added(given[0], given[1], sign)
        a, first, b, second = given[0]
        if node.op is aten.neg.default:
            return -a, first, -b, second
        factor = self._factor(node)
        a, b = a * factor, b * factor
        return (a, first, b, second) if a.shape == first.shape else None

    def _factor(self, node: Node) -> Tensor:
        first, second = node.arguments["self"], node.arguments["other"]
        constant = second if isinstance(first, Value) else first
        number = scalar(constant)
        factor = torch.tensor(number) if number is not None else constant.detach()
        return 1 / factor.double() if "div" in node.op_name else factor.double()


def _added(one: _Form, other: _Form, sign: float) -> _Form | None:
    """The sum of two forms of one entry each."""
    if bool(one[2].any()) or bool(other[2].any()):
        return None
    return one[0], one[1], sign * other[0], other[1]
