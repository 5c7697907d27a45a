"""The captured network: a frozen list of ATen calls in topological order, with constants evaluated."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Value:
    """An activation: what depends on the network's input."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One ATen call on at least one activation.

    `arguments` holds every argument by its schema name, defaults included: a Value where it is an activation, a
    real Tensor where it is constant, plain Python otherwise, lists of these.
    """

    name: str
    op: Callable[..., Any]
    layer: str  # dotted module path, "" for the model itself
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]  # of the output; of the first one where there are several

    @property
    def op_name(self) -> str:
        """The overload's name, such as aten.conv2d.default."""
        return str(self.op) if hasattr(self.op, "_schema") else getattr(self.op, "__name__", str(self.op))

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The activations among the arguments, in order, one entry for each use."""
        return tuple(_values(list(self.arguments.values())))

    def constant(self, name: str) -> Tensor:
        """An argument that must not depend on the input.

        Errors: DependentError when it does.
        """
        argument = self.arguments[name]
        if isinstance(argument, Value):
            raise DependentError(name)
        assert isinstance(argument, Tensor), f"{self.op_name}: {name} is {type(argument).__name__}"
        return argument


class DependentError(Exception):
    """An operand that a rule needs constant depends on the input; the registry turns it into Unbounded."""


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A network from one input to one output."""

    input: Value
    nodes: tuple[Node, ...]
    output: str  # name of the value that is bounded
    output_name: str = ""  # its key among several outputs

    def users(self) -> dict[str, list[Node]]:
        """For every value the nodes that read it, one entry for each use."""
        found: dict[str, list[Node]] = {self.input.name: []}
        for node in self.nodes:
            found.setdefault(node.name, [])
            for value in node.inputs:
                found.setdefault(value.name, []).append(node)
        return found


def _values(argument: Any) -> Iterator[Value]:
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from _values(part)


def signature(last: Node, reads: Sequence[str], nodes: Mapping[str, Node]) -> Hashable:
    """Equal for clusters of calls that are one map of what they read: the calls behind `last`, with their constants.

    `reads` names the values that the cluster reads, `nodes` holds the graph's nodes by name. Constants are the same
    where they have one and the same number, or lie in one place of memory: while the graph is there, they stay.
    """
    numbers: dict[str, int] = {}
    calls: list[Hashable] = []

    def signed(argument: Any) -> Hashable:
        if isinstance(argument, Value):
            if argument.name in reads:
                return ("reads", reads.index(argument.name), argument.shape, argument.dtype)
            return ("calls", number(nodes[argument.name]))
        if isinstance(argument, Tensor):
            return _signed_constant(argument)
        if isinstance(argument, list | tuple):
            return tuple(map(signed, argument))
        return (type(argument), argument)

    def number(node: Node) -> int:
        if node.name not in numbers:
            arguments = tuple((name, signed(one)) for name, one in node.arguments.items())
            calls.append((node.op, node.shape, arguments))
            numbers[node.name] = len(calls) - 1
        return numbers[node.name]

    number(last)
    return (tuple(calls), len(reads))


def _signed_constant(tensor: Tensor) -> Hashable:
    expanded = tensor.numel() > 0 and all(
        n == 1 or step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True)
    )
    held = tensor.flatten()[0].item() if expanded else (tensor.data_ptr(), tensor.stride())
    return (tuple(tensor.shape), tensor.dtype, held)
