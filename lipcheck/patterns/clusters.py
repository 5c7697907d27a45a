"""Clusters, written out."""

from __future__ import annotations

from lipcheck.graph import Graph
from lipcheck.steps import Step


def recognise(graph: Graph, steps: dict[str, Step]) -> None:
    """None yet."""
