"""Networks of operators made simpler without changing what they compute: folded padding, merged scalings,
activations that were written out.

Everything here is exact. `Step` pairs a node with its operator; `simplify` returns the same steps with more precise
operators, those that were absorbed marked as the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipcheck.graph import Graph, Node, Value
from lipcheck.operators import (
    IDENTITY,
    Convolution,
    Dense,
    Diagonal,
    Operator,
    Padded,
    Pointwise,
    Unbounded,
    Weighted,
    multiplies_safely,
    scaled_rows,
    weights_of,
)
from lipcheck.patterns import RECOGNISERS
from lipcheck.rules.affine import aten, pad_indices
from lipcheck.rules.pointwise import Expression, scalar, written_out
from lipcheck.steps import Step


def simplify(graph: Graph, operators: Sequence[Operator]) -> list[Step]:
    """The graph's nodes with their operators, padding folded, scalings merged, activations recognised."""
    steps = {
        node.name: Step(node, operator, inputs=tuple(value.name for value in node.inputs))
        for node, operator in zip(graph.nodes, operators, strict=True)
    }
    users = graph.users()
    _fold_padding(graph, steps, users)
    _recognise_activations(graph, steps)
    for recognise in RECOGNISERS:
        recognise(graph, steps)
    _merge_scalings(graph, steps, users)
    return [steps[node.name] for node in graph.nodes]


def _only_user(name: str, graph: Graph, users: dict[str, list[Node]]) -> Node | None:
    readers = users.get(name, [])
    return readers[0] if len(readers) == 1 and name != graph.output else None


def _fold_padding(graph: Graph, steps: dict[str, Step], users: dict[str, list[Node]]) -> None:
    """A pad node in front of a convolution becomes its own padding: zeros, circular where exact, copies otherwise."""
    for node in graph.nodes:
        if node.op not in (aten.pad.default, aten.constant_pad_nd.default):
            continue
        following = _only_user(node.name, graph, users)
        operator = steps[following.name].operator if following else None
        if following is None or not isinstance(operator, Convolution) or operator.transposed:
            continue
        folded = _with_padding(node, operator)
        if folded is not None:
            steps[node.name] = replace(steps[node.name], operator=IDENTITY, absorbed_by=following.name)
            steps[following.name] = replace(steps[following.name], operator=folded)


def _with_padding(node: Node, operator: Convolution) -> Convolution | Padded | None:
    size = node.inputs[0].shape[2:]
    widths = list(node.arguments["pad"])
    if len(widths) > 2 * len(size) or min(widths, default=0) < 0:
        return None
    widths += [0] * (2 * len(size) - len(widths))
    before = tuple(widths[2 * (len(size) - 1 - axis)] for axis in range(len(size)))
    after = tuple(widths[2 * (len(size) - 1 - axis) + 1] for axis in range(len(size)))
    offset = tuple(p + b for p, b in zip(operator.offset, before, strict=True))
    mode = node.arguments.get("mode", "constant")
    if mode == "constant":
        return replace(operator, offset=offset, input_size=size)
    if any(operator.offset):
        return None
    exact = mode == "circular" and all(
        n == s * outputs and reach <= n + b + a
        for n, s, outputs, reach, b, a in zip(
            size, operator.stride, operator.output_size, operator.reach, before, after, strict=True
        )
    )
    if exact:
        return replace(operator, offset=before, input_size=size, circular=True)
    try:
        places = tuple(pad_indices(n, b, a, mode) for n, b, a in zip(size, before, after, strict=True))
    except RuntimeError:
        return None
    return Padded(operator, places, size, mode)


def _merge_scalings(graph: Graph, steps: dict[str, Step], users: dict[str, list[Node]]) -> None:
    """Batch norms and per-channel scalings behind a linear layer that nothing else reads are folded into it."""
    for node in graph.nodes:
        operator = steps[node.name].operator
        if not isinstance(operator, Weighted):
            continue
        merged: Weighted = operator
        names, last = list[str](), node
        while (following := _only_user(last.name, graph, users)) is not None:
            scaling = steps[following.name].operator
            if isinstance(scaling, Diagonal):
                if following.shape != node.shape:
                    break  # axes were added in front: which one holds the channels is no longer known
                axis = _channel_axis(node, operator)
                gain = channel_gain(scaling, last.shape, axis)
                if gain is None:
                    break
                if not multiplies_safely(merged, gain):
                    break
                merged = scaled_rows(merged, gain, scaling.uncertainty)
                names.append(following.layer)
            elif not _passes_channels(following, scaling):
                break
            steps[following.name] = replace(steps[following.name], merged=IDENTITY, absorbed_by=node.name)
            last = following
        if names:
            merged_with = tuple(dict.fromkeys(names))
            steps[node.name] = replace(steps[node.name], merged=merged, merged_with=merged_with)


def _channel_axis(node: Node, operator: Weighted) -> int:
    """Where a linear layer's outputs stand: behind M x with the matrix on the left it is the last axis but one."""
    if not isinstance(operator, Dense):
        return 1
    first = node.arguments.get("self")
    left = node.op in (aten.mm.default, aten.matmul.default) and not isinstance(first, Value)
    return len(node.shape) - (2 if left and len(node.inputs[0].shape) > 1 else 1)


def _passes_channels(node: Node, operator: Operator) -> bool:
    """Whether a node hands the whole activation on, as the getitem behind a batch norm does."""
    return (
        operator is IDENTITY
        and len(node.inputs) == 1
        and (node.op_name == "getitem" or node.op in (aten.clone.default, aten.dropout.default))
        and node.shape == node.inputs[0].shape
    )


def channel_gain(operator: Diagonal, shape: tuple[int, ...], axis: int) -> Tensor | None:
    """The gain as one number per channel of an axis (or one for all), None where it varies along another axis."""
    gain = operator.gain
    if gain.numel() == 1:
        return gain.reshape(1)
    if gain.dim() > len(shape):
        return None
    padded = (1,) * (len(shape) - gain.dim()) + tuple(gain.shape)
    if gain.numel() != padded[axis] or padded[axis] != shape[axis]:
        return None
    return gain.flatten()


_UNARY = {
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.softplus.default: "softplus",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.erf.default: "erf",
}
_BINARY = {"aten.mul": "mul", "aten.add": "add", "aten.sub": "sub", "aten.div": "div"}
_DEEPEST = 12


def _recognise_activations(graph: Graph, steps: dict[str, Step]) -> None:
    """x sigmoid(x) and its like: a product whose two sides are functions of one activation alone."""
    nodes = {node.name: node for node in graph.nodes}
    for node in graph.nodes:
        if not node.op_name.startswith(("aten.mul", "aten.div", "aten.sub")):
            continue
        if not (
            isinstance(steps[node.name].operator, Unbounded)
            or len({v.name for v in node.inputs}) > 1
            or _outer_factor(node)
        ):
            continue
        for source in _sources(node, nodes):
            expression = _expression(node, source, nodes, _DEEPEST)
            found = written_out(expression) if expression is not None else None
            if isinstance(found, Pointwise):
                steps[node.name] = replace(steps[node.name], operator=found, inputs=(source,))
                break


def _outer_factor(node: Node) -> bool:
    """Whether the node multiplies by one constant, as the 0.5 in front of a GELU."""
    return any(scalar(argument) is not None for argument in node.arguments.values())


def _sources(node: Node, nodes: dict[str, Node]) -> list[str]:
    """The activations of the same shape within reach behind a node, the farthest last."""
    found: dict[str, None] = {}
    frontier: list[tuple[Value, int]] = [(value, 0) for value in node.inputs]
    while frontier:
        value, depth = frontier.pop(0)
        if value.shape != node.shape or depth > _DEEPEST or value.name in found:
            continue
        found[value.name] = None
        if value.name in nodes and _symbol(nodes[value.name]) is not None:
            frontier += [(v, depth + 1) for v in nodes[value.name].inputs]
    return list(found)


def _symbol(node: Node) -> str | None:
    if node.op in _UNARY:
        return _UNARY[node.op]
    if node.op in (aten.hardtanh.default, aten.relu6.default, aten.clamp.default):
        return "hardtanh"
    if node.op is aten.pow.Tensor_Scalar:
        return "pow"
    return _BINARY.get(node.op_name.rpartition(".")[0])


def _expression(node: Node, source: str, nodes: dict[str, Node], depth: int) -> Expression | None:
    """The node as a function of the source alone, None where it is not."""
    symbol = _symbol(node)
    if symbol is None or depth == 0:
        return None
    given = node.arguments

    def part(argument: object) -> Expression | None:
        if isinstance(argument, Value):
            if argument.name == source:
                return "x"
            return _expression(nodes[argument.name], source, nodes, depth - 1) if argument.name in nodes else None
        return scalar(argument)

    first = part(given["input"] if "input" in given else given["self"])
    if first is None:
        return None
    if symbol == "softplus":
        return (symbol, first) if given["beta"] == 1 and given["threshold"] >= 15 else None
    if symbol == "hardtanh":
        low = 0 if node.op is aten.relu6.default else given.get("min_val", given.get("min"))
        high = 6 if node.op is aten.relu6.default else given.get("max_val", given.get("max"))
        return (symbol, first) if (low, high) == (0, 6) else None
    if symbol == "pow":
        exponent = scalar(given["exponent"])
        return None if exponent is None else (symbol, first, exponent)
    if symbol in _UNARY.values():
        return (symbol, first)
    second = part(given["other"])
    if second is None or given.get("alpha", 1) != 1 or given.get("rounding_mode"):
        return None
    if symbol == "div":
        return ("mul", first, 1 / second) if isinstance(second, float) and second else None
    return (symbol, first, second)


def uniform_gain(before: Weighted, after: Weighted) -> float | None:
    """The factor g where `after` is exactly g times `before`, None where it is not."""
    first, second = weights_of(before).double(), weights_of(after)
    place = first.abs().argmax()
    if float(first.flatten()[place]) == 0:
        return None
    factor = float(second.flatten()[place] / first.flatten()[place])
    return factor if torch.equal(first * factor, second) else None
