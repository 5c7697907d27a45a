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
    Weighted,
    multiplies_safely,
    scaled_rows,
    weights_of,
)
from lipcheck.patterns import RECOGNISERS
from lipcheck.rules.affine import aten, pad_indices
from lipcheck.steps import Step

# Weights that are compared at a time: memory for all of them is slower to get than to fill.
_HELD = 1 << 20


def simplify(graph: Graph, operators: Sequence[Operator], *, merge: bool = True) -> list[Step]:
    """The graph's nodes with their operators, padding folded, activations recognised, scalings merged if asked to."""
    steps = {
        node.name: Step(node, operator, inputs=tuple(value.name for value in node.inputs))
        for node, operator in zip(graph.nodes, operators, strict=True)
    }
    users = graph.users()
    _fold_padding(graph, steps, users)
    for recognise in RECOGNISERS:
        recognise(graph, steps)
    for step in steps.values():
        # A recognised pattern reads what its last node may not: that value stays what it is.
        for name in step.inputs:
            if step.node not in users[name]:
                users[name].append(step.node)
    if merge:
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
                axis = channel_axis(node, operator)
                gain = channel_gain(scaling, last.shape, len(last.shape) + axis) if axis else None
                if gain is None or not multiplies_safely(merged, gain):
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


def channel_axis(node: Node, operator: Weighted) -> int:
    """Where a linear layer has its channels, in what it reads and in what it makes: counted from the end, 0 if unknown.

    Behind M x with the matrix on the left it is the last axis but one.
    """
    if isinstance(operator, Dense):
        if node.op in (aten.linear.default, aten.addmm.default):
            return -1
        if node.op in (aten.mm.default, aten.matmul.default, aten.linalg_matmul.default):
            first = node.arguments["self"]
            return -1 if isinstance(first, Value) else -2
        return 0
    axes = (operator.convolution if isinstance(operator, Padded) else operator).axes
    return -axes - 1 if len(node.shape) == len(node.inputs[0].shape) == axes + 2 else 0


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


def uniform_gain(before: Weighted, after: Weighted) -> float | None:
    """The factor g where `after` is exactly g times `before`, None where it is not."""
    first, second = weights_of(before), weights_of(after)
    place = first.abs().argmax()
    largest = first.flatten()[place].double()
    if float(largest) == 0 or first.shape != second.shape:
        return None
    factor = float(second.flatten()[place] / largest)
    rows = max(1, _HELD * len(first) // first.numel())
    parts = zip(torch.split(first, rows), torch.split(second, rows), strict=True)
    return factor if all(torch.equal(one.double() * factor, other) for one, other in parts) else None
