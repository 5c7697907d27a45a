"""What can be said of a network's bound without its weights: finite on the whole space, on a bounded domain, or not.

The audit's own rules, patterns, ranges and composition are run on a graph whose constants have no values. Behind what
depends on such a constant the range is taken to be as wide as weights of the usual size make it, and its sign is
forgotten. A verdict is about weights that are ordinary numbers; the bound of a network with its weights is the audit's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lipcheck.compose import Factor, compose
from lipcheck.flat import flat_image, remembering
from lipcheck.graph import Graph
from lipcheck.operators import (
    Concatenation,
    Diagonal,
    Indexing,
    Linear,
    Nonlinear,
    Operator,
    Separable,
    Sum,
    Unbounded,
)
from lipcheck.propagate import Image, image_of, propagate
from lipcheck.ranges import Range
from lipcheck.rules import Rule, operator_of
from lipcheck.simplify import simplify
from lipcheck.skeleton import STAND_IN, Skeleton
from lipcheck.steps import Step

NO_RULE = "no rule for this operation"
GLOBAL, DOMAIN, INFINITE, MISSING = _WORSE = ("global", "domain", "infinite", "no rule")
# A layer with weights of the usual size moves its result by at most so much per largest entry of its input: the sum of
# a row's magnitudes, 0.016 * 768 for the linear layers of a small transformer. Ranges end well within float64.
_GROWTH, _WIDEST = 10.0, 1e100


@dataclass(frozen=True, slots=True)
class Structure:
    """The verdict, how many operations depend on the input, and which of them stand in the way.

    `reasons` are pairs of an operation and why it has no constant, each once: for a network that is finite on a domain
    those that need it. `missing` are the operations without a rule.
    """

    verdict: str
    nodes: int
    reasons: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()


def structure(network: Skeleton, table: Mapping[Any, Rule]) -> Structure:
    """The verdict on a network without weights.

    Calls that were recognised as one map may have been so for the number that stands for a constant among them: then
    that number is taken negative as well, and the worse verdict stands.
    """
    found, trusting = _verdict(network, table, STAND_IN)
    if not trusting or found.verdict not in (GLOBAL, DOMAIN):
        return found
    return max(found, _verdict(network, table, -STAND_IN)[0], key=lambda one: _WORSE.index(one.verdict))


def _verdict(network: Skeleton, table: Mapping[Any, Rule], number: float) -> tuple[Structure, bool]:
    """The verdict with this number in the place of values, and whether some recognised map contains it."""
    graph, unvalued = network.graph(number)
    steps = simplify(graph, [operator_of(node, table) for node in graph.nodes], merge=False)
    trusting = any(_recognised(step) and not unvalued.isdisjoint(_members(step, graph)) for step in steps)
    return _structure(graph, steps, unvalued), trusting


def _recognised(step: Step) -> bool:
    return step.inputs != tuple(value.name for value in step.node.inputs)


def _members(step: Step, graph: Graph) -> set[str]:
    """The nodes of a recognised cluster: what its last one reads, back to what the cluster reads."""
    nodes = {node.name: node for node in graph.nodes}
    found, behind = set[str](), [step.node.name]
    while behind:
        name = behind.pop()
        if name in nodes and name not in found and (name not in step.inputs or name == step.node.name):
            found.add(name)
            behind += [value.name for value in nodes[name].inputs]
    return found


def _structure(graph: Graph, steps: Sequence[Step], unvalued: Collection[str]) -> Structure:
    """The verdict on a graph of which the named nodes have constants without values."""
    everywhere = _obstacles(graph, steps, unvalued, Range.unknown(graph.input.shape))
    missing = tuple(dict.fromkeys(op for op, reason in everywhere if reason == NO_RULE))
    if missing:
        return Structure(MISSING, len(steps), everywhere, missing)
    if not everywhere:
        return Structure(GLOBAL, len(steps))
    inside = _obstacles(graph, steps, unvalued, Range.between(0.0, 1.0, graph.input.shape))
    return Structure(INFINITE, len(steps), inside) if inside else Structure(DOMAIN, len(steps), everywhere)


def _obstacles(
    graph: Graph, steps: Sequence[Step], unvalued: Collection[str], domain: Range
) -> tuple[tuple[str, str], ...]:
    """The operations without a finite constant that the output depends on; none where its own constant is finite."""
    walked = [replace(step, operator=_without_values(step, unvalued)) for step in steps]
    # What is finite on wider ranges needs no narrower ones.
    quickly = remembering(graph, walked)
    return _infinite(graph, steps, quickly, domain, flat_image) and _infinite(graph, steps, walked, domain, image_of)


def _infinite(
    graph: Graph, steps: Sequence[Step], walked: Sequence[Step], domain: Range, image: Image
) -> tuple[tuple[str, str], ...]:
    """The same, with ranges followed in one way; `walked` has what stands for operators without values."""
    known = propagate(graph, walked, lambda operator: 1.0, domain, image)
    factors = [
        Factor(step.node.name, step.inputs, step.operator, 1.0, known.slopes.get(step.node.name, ())) for step in steps
    ]
    found = compose(graph.input.name, factors, graph.output)
    if found.output < math.inf:
        return ()
    return tuple(dict.fromkeys(_reasons(graph, factors, steps, known.reasons, found.logs)))


def _reasons(
    graph: Graph,
    factors: Sequence[Factor],
    steps: Sequence[Step],
    stated: Mapping[str, str],
    logs: Mapping[str, float],
) -> Iterator[tuple[str, str]]:
    """Where the constants become infinite on the way to the output, in the order of the network."""
    needed = {graph.output}
    for step in reversed(steps):
        if step.node.name in needed:
            needed.update(step.inputs)
    for factor, step in zip(factors, steps, strict=True):
        if step.node.name not in needed or all(logs[name] == -math.inf for name in factor.inputs):
            continue
        if isinstance(step.operator, Unbounded):
            yield step.node.op_name, step.operator.reason
        elif math.inf in factor.logs():
            yield step.node.op_name, stated.get(step.node.name) or "its constant is infinite on the range of its input"


def _without_values(step: Step, unvalued: Collection[str]) -> Operator:
    """What stands for the step while ranges are followed."""
    operator = step.operator
    hollow = step.node.name in unvalued
    if isinstance(operator, Linear) and not isinstance(operator, Diagonal | Indexing | Separable):
        return _Spread()
    if hollow and isinstance(operator, Linear | Sum | Concatenation):
        return _Spread()
    return _Signless(operator) if hollow and isinstance(operator, Nonlinear) else operator


@dataclass(frozen=True, slots=True, eq=False)
class _Spread(Nonlinear):
    """A linear map with weights that are not known, of its inputs."""

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        return (0.0,) * len(ranges)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        largest = max((max(abs(one.smallest), abs(one.largest)) for one in ranges), default=0.0)
        return _symmetric(largest * _GROWTH + 1, shape)


@dataclass(frozen=True, slots=True, eq=False)
class _Signless(Nonlinear):
    """A map whose range is known up to the values, and so the signs, of its constants."""

    inner: Nonlinear

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        return self.inner.slopes(ranges)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        found = self.inner.image(ranges, shape)
        return _symmetric(max(abs(found.smallest), abs(found.largest)), shape)

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        return self.inner.unbounded_because(ranges)


def _symmetric(largest: float, shape: tuple[int, ...]) -> Range:
    if not math.isfinite(largest):
        return Range.unknown(shape)
    largest = min(largest, _WIDEST)
    return Range.between(-largest, largest, shape)
