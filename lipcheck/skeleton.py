"""The graph of a network without weights: exported on the meta device, one number of the right shape for values.

What such a graph says of operations and of how they depend on each other is true; what it says of constants is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lipcheck.capture import _draws, _first_line, _quiet, _readable, _Reader, choose_output
from lipcheck.errors import CaptureError
from lipcheck.graph import Graph, Value

_META = torch.device("meta")
# Nobody's constant, and exact in every floating-point format.
STAND_IN = 0.8125
# Variances have a sign, whatever stands for the others.
_POSITIVE = "running_var"


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """An exported network whose constants may have no values."""

    program: torch.export.ExportedProgram
    output: int
    output_name: str

    def graph(self, number: float = STAND_IN) -> tuple[Graph, frozenset[str]]:
        """The graph with this number in the place of values, and the nodes that have such a constant operand.

        Nothing is computed but what has values: constants that are written in the forward, such as grids of positions.
        Errors: CaptureError.
        """
        reader = _Skeleton(self.program, number)
        try:
            with torch.no_grad():
                return reader.graph(self.output, self.output_name), frozenset(reader.unvalued)
        except (RuntimeError, NotImplementedError) as error:
            raise CaptureError(f"a constant cannot be evaluated: {_first_line(error)}") from error


def skeleton(module: nn.Module, example: Tensor, *, keyword: str = "", known: Any = ()) -> Skeleton:
    """The network as it is exported at this input.

    Shapes: `example` has the batch axis; it and the module's tensors may be on the meta device, the module is in
    evaluation mode. Errors: CaptureError.
    """
    args, kwargs = ((), {keyword: example}) if keyword else ((example,), {})
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(module, args, kwargs, strict=False)
            if not _readable(program, known):
                program = program.run_decompositions({})
        except Exception as error:  # of whatever the module's forward calls
            raise CaptureError(f"torch.export fails: {_first_line(error)}") from error
        random = next((node for node in program.graph.nodes if _draws(node)), None)
        if random is not None:
            raise CaptureError(f"the forward draws random numbers ({random.target})")
        chosen, name, _ = choose_output(_outputs(program))
    return Skeleton(program, chosen, name)


def _outputs(program: torch.export.ExportedProgram) -> Any:
    """What the forward returns, with tensors that have a shape and no values."""
    specs = program.graph_signature.output_specs
    node = next(node for node in program.graph.nodes if node.op == "output")
    results: Any = node.args[0]
    leaves = [one.meta.get("val") if isinstance(one, torch.fx.Node) else one for one in results]
    user = [leaf for leaf, spec in zip(leaves, specs, strict=True) if spec.kind.name == "USER_OUTPUT"]
    return pytree.tree_unflatten(user, program.call_spec.out_spec)


class _Skeleton(_Reader):
    """A reader that puts a number in the place of values, and remembers what depends on it."""

    def __init__(self, program: torch.export.ExportedProgram, number: float) -> None:
        super().__init__(program)
        self.number = number
        self.hollow = {name for name, value in self.known.items() if _valueless(value)}
        self.unvalued: set[str] = set()
        for name in self.hollow:
            positive = self.qualified.get(name, "").endswith(_POSITIVE)
            self.known[name] = stand_in(self.known[name], abs(number) if positive else number)

    def _call(self, node: torch.fx.Node) -> None:
        super()._call(node)
        if any(one.name in self.hollow for one in node.all_input_nodes):
            if node.name in self.known:
                self.hollow.add(node.name)
            else:
                self.unvalued.add(node.name)

    def _evaluate(self, node: torch.fx.Node) -> Any:
        if any(one.name in self.hollow for one in node.all_input_nodes):
            return pytree.tree_map_only(Tensor, self._filled, node.meta.get("val"))
        target: Any = node.target
        on_cpu = pytree.tree_map(_on_cpu, (node.args, dict(node.kwargs)))
        args, kwargs = torch.fx.node.map_arg(on_cpu, self._real)
        return target(*args, **kwargs)

    def _filled(self, value: Tensor) -> Tensor:
        return stand_in(value, self.number)

    def _real(self, node: torch.fx.Node) -> Any:
        found = self._argument(node)
        return torch.zeros((), dtype=found.dtype).expand(found.shape) if isinstance(found, Value) else found


def _on_cpu(argument: Any) -> Any:
    return torch.device("cpu") if isinstance(argument, torch.device) else argument


def _valueless(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device == _META


def stand_in(value: Tensor, number: float = STAND_IN) -> Tensor:
    """The number in the place of a tensor without values: one and the same, that takes no memory.

    Truth values alternate along the last axis, so that a mask keeps something and hides something; whole numbers are
    zeros, valid as indices.
    """
    shape, dtype = tuple(value.shape), value.dtype
    if dtype == torch.bool:
        pattern = torch.arange(shape[-1] if shape else 1) % 2 == 0
        return pattern.expand(shape) if shape else pattern[0]
    return torch.tensor(number if dtype.is_floating_point or dtype.is_complex else 0).to(dtype).expand(shape)
