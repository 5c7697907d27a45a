"""The normalisation layers of a network and what they multiply by: one operation, or written out in several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lipcheck.graph import Graph, Node
from lipcheck.maps.normalisations import Standardisation
from lipcheck.operators import IDENTITY, Diagonal
from lipcheck.ranges import Range
from lipcheck.steps import Step

_OPERATIONS = ("layer_norm", "group_norm", "instance_norm", "rms_norm")
# Changes of type and place between a normalisation and its gain.
_FURTHEST = 4


@dataclass(frozen=True, slots=True, eq=False)
class NormLayer:
    """A normalisation: `step` divides by the deviation, and what has passed is multiplied by `gain`.

    `outside` says that the gain is a step of its own behind that one. Shapes: `channels` numbers make the gain;
    `size` is one input's.
    """

    kind: str  # layer_norm, group_norm, instance_norm, rms_norm
    step: Step
    gain: Diagonal
    outside: bool
    channels: int
    groups: int
    size: tuple[int, ...]

    def everywhere(self) -> float:
        """ln of the constant of the step for any input at all."""
        assert isinstance(self.step.operator, Standardisation)
        return self.step.operator.slopes([Range.unknown(self.size)])[0]


def norm_layers(graph: Graph, steps: Sequence[Step]) -> dict[str, NormLayer]:
    """The normalisation layers by the node of the last of their operations, where the gain is."""
    users = graph.users()
    by_name = {step.node.name: step for step in steps}
    shared: dict[Any, Diagonal] = {}
    found = {}
    for step in steps:
        operator = step.operator
        if not isinstance(operator, Standardisation) or step.absorbed_by:
            continue
        whole = any(name in step.node.op_name for name in _OPERATIONS)
        behind = None if whole or operator.gain is not None else _gain_behind(step.node, by_name, users)
        if behind is not None:
            assert isinstance(behind.operator, Diagonal)
            found[behind.node.name] = _layer(step, operator, behind.operator, outside=True)
        elif whole or operator.gain is not None:
            place = None if operator.gain is None else operator.gain.data_ptr()
            gain = torch.ones(1, dtype=torch.float64) if operator.gain is None else operator.gain
            found[step.node.name] = _layer(step, operator, shared.setdefault(place, Diagonal(gain)), outside=False)
    return found


def _layer(step: Step, operator: Standardisation, gain: Diagonal, *, outside: bool) -> NormLayer:
    rank = len(operator.shape)
    by_channel = operator.name in ("group_norm", "instance_norm") and rank > 1
    channels = operator.shape[1] if by_channel else operator.groups.size
    groups = operator.groups.count // max(1, operator.shape[0]) if operator.name == "group_norm" else 1
    return NormLayer(operator.name, step, gain, outside, channels, groups, operator.shape)


def _gain_behind(node: Node, steps: Mapping[str, Step], users: Mapping[str, Sequence[Node]]) -> Step | None:
    """The scaling by a module's own weight right behind a normalisation of the same module."""
    name, layer = node.name, node.layer
    for _ in range(_FURTHEST):
        readers = users.get(name, [])
        if len(readers) != 1:
            return None
        step = steps[readers[0].name]
        if isinstance(step.operator, Diagonal):
            own = step.node.layer == layer and not step.absorbed_by and step.operator.gain.numel() > 1
            return step if own else None
        if step.operator is not IDENTITY or step.node.shape != node.shape:
            return None
        name = step.node.name
    return None
