"""Lipschitz constants forward through the graph, in logs, rounded up: from layers to the network.

L(input) = 1; a linear or pointwise node multiplies, a sum adds, a concatenation takes the root of the sum of squares.
Source: maths, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lipcheck import rounding
from lipcheck.operators import Concatenation, Linear, Normalisation, Operator, Pointwise, Sum, Unbounded


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """One node of the composition: what it does to the constants of the values it reads.

    `upper` is the norm's bound for a linear node, ignored for the others.
    """

    name: str
    inputs: tuple[str, ...]
    operator: Operator
    upper: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Composition:
    """The constants of every value, as natural logs, and how the output's depends on each node's own factor."""

    logs: Mapping[str, float]
    output: float
    elasticity: Mapping[str, float]  # d log L(output) / d log(factor), per node


def compose(source: str, factors: Sequence[Factor], output: str) -> Composition:
    """The Lipschitz constants of all values with respect to the network's input.

    Units: natural logarithms; inf where no constant is known, -inf where a value does not depend on the input.
    """
    logs = {source: 0.0}
    for factor in factors:
        logs[factor.name] = _forward(factor, [logs[name] for name in factor.inputs])
    return Composition(logs, logs.get(output, -math.inf), _elasticity(factors, logs, output))


def _forward(factor: Factor, inputs: list[float]) -> float:
    operator = factor.operator
    if isinstance(operator, Unbounded):
        # What multiplies or divides constants only is constant.
        return -math.inf if inputs and all(value == -math.inf for value in inputs) else math.inf
    if isinstance(operator, Sum):
        terms = zip(inputs, operator.weights, strict=True)
        return rounding.log_sum_up(*(rounding.log_multiply_up(value, rounding.log_up(w)) for value, w in terms))
    if isinstance(operator, Concatenation):
        return rounding.log_sum_up(*(rounding.log_multiply_up(value, value) for value in inputs)) / 2
    return rounding.log_multiply_up(max(inputs), rounding.log_up(own_factor(factor)))


def own_factor(factor: Factor) -> float:
    """What a node with one input multiplies the constant by."""
    operator = factor.operator
    if isinstance(operator, Linear):
        return factor.upper
    if isinstance(operator, Pointwise | Normalisation):
        return operator.slope
    return math.inf


def _elasticity(factors: Sequence[Factor], logs: Mapping[str, float], output: str) -> dict[str, float]:
    """Backwards through the graph: the share in which each value, and so each factor, moves the output's log."""
    weight = dict.fromkeys(logs, 0.0)
    if not math.isfinite(logs.get(output, math.inf)):
        return dict.fromkeys((factor.name for factor in factors), 0.0)
    weight[output] = 1.0
    for factor in reversed(factors):
        passed, own = weight[factor.name], logs[factor.name]
        if passed == 0.0 or not math.isfinite(own):
            continue
        operator = factor.operator
        if isinstance(operator, Sum):
            parts = [
                math.exp(logs[name] + math.log(w) - own) if w > 0 else 0.0
                for name, w in zip(factor.inputs, operator.weights, strict=True)
            ]
        elif isinstance(operator, Concatenation):
            parts = [math.exp(2 * (logs[name] - own)) for name in factor.inputs]
        else:
            parts = [1.0 if i == 0 else 0.0 for i in range(len(factor.inputs))]
        for name, part in zip(factor.inputs, parts, strict=True):
            weight[name] += passed * part
    return {factor.name: weight[factor.name] for factor in factors}
