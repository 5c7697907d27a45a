"""The captured network: a frozen list of ATen calls in topological order, with constants evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
