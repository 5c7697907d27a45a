"""A node of the graph with what it applies: what rules, patterns and simplification make of a captured network."""

from __future__ import annotations

from dataclasses import dataclass, field

from lipcheck.graph import Node
from lipcheck.operators import Operator


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One node, what it applies by itself, and what the network is composed of in its place.

    `merged` is None where nothing was merged; where the node was absorbed by another it is the identity and
    `absorbed_by` names that node. `inputs` are the values it reads, which differ from the node's own where a cluster
    of calls was recognised as one function.
    """

    node: Node
    operator: Operator
    merged: Operator | None = None
    absorbed_by: str = ""
    merged_with: tuple[str, ...] = ()
    inputs: tuple[str, ...] = field(default=())

    @property
    def effective(self) -> Operator:
        return self.operator if self.merged is None else self.merged
