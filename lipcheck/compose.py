"""Lipschitz constants forward through the graph, in logs, rounded up: from layers to the network.

L(input) = 1; a linear or pointwise node multiplies, a sum adds, a concatenation takes the root of the sum of squares.
Source: maths, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lipcheck import rounding
from lipcheck.operators import Concatenation, Linear, Nonlinear, Operator, Sum, Unbounded
from lipcheck.ranges import Range


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """One node of the composition: what it does to the constants of the values it reads.

    `upper` is the norm's bound for a linear node, ignored for the others. `slopes` are the logs of a nonlinear node's
    constants in each of its inputs, on the ranges that they have.
    """

    name: str
    inputs: tuple[str, ...]
    operator: Operator
    upper: float = math.inf
    slopes: tuple[float, ...] = ()

    def logs(self) -> tuple[float, ...]:
        """What the constant of each input is multiplied by, as natural logs."""
        operator = self.operator
        if isinstance(operator, Linear):
            return (rounding.log_up(self.upper),) * len(self.inputs)
        if isinstance(operator, Sum):
            return tuple(map(rounding.log_up, operator.weights))
        if isinstance(operator, Concatenation):
            return (0.0,) * len(self.inputs)
        if isinstance(operator, Nonlinear):
            return self.slopes or operator.slopes([Range.unknown(()) for _ in self.inputs])
        return (math.inf,) * len(self.inputs)


@dataclass(frozen=True, slots=True, eq=False)
class Composition:
    """The constants of every value, as natural logs, and how the output's depends on each node's own factor."""

    logs: Mapping[str, float]
    output: float
    elasticity: Mapping[str, float]  # d log L(output) / d log(factor), per node
    growth: Mapping[str, float]  # what each node adds to log L(output): elasticity times the log of its own factor


def compose(source: str, factors: Sequence[Factor], output: str) -> Composition:
    """The Lipschitz constants of all values with respect to the network's input.

    Units: natural logarithms; inf where no constant is known, -inf where a value does not depend on the input.
    """
    logs = {source: 0.0}
    for factor in factors:
        logs[factor.name] = _forward(factor, [logs[name] for name in factor.inputs])
    elasticity, growth = _shares(factors, logs, output)
    return Composition(logs, logs.get(output, -math.inf), elasticity, growth)


def _forward(factor: Factor, inputs: list[float]) -> float:
    operator = factor.operator
    if isinstance(operator, Unbounded):
        # What multiplies or divides constants only is constant.
        return -math.inf if inputs and all(value == -math.inf for value in inputs) else math.inf
    if isinstance(operator, Concatenation):
        return rounding.log_sum_up(*(rounding.log_multiply_up(value, value) for value in inputs)) / 2
    if isinstance(operator, Linear):
        # Several inputs of a linear node are one activation, read more than once.
        return rounding.log_multiply_up(max(inputs), factor.logs()[0])
    return rounding.log_sum_up(*map(rounding.log_multiply_up, inputs, factor.logs()))


def _shares(
    factors: Sequence[Factor], logs: Mapping[str, float], output: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Backwards through the graph: how far each node's factor moves the output's log, and what of that log is its own.

    With p_k the shares of its inputs, a node adds log L - sum p_k log L_k: the log of its factor if it has one input.
    What all nodes add is the output's log.
    """
    weight = dict.fromkeys(logs, 0.0)
    growth = dict.fromkeys((factor.name for factor in factors), 0.0)
    if not math.isfinite(logs.get(output, math.inf)):
        return dict.fromkeys(growth, 0.0), growth
    weight[output] = 1.0
    for factor in reversed(factors):
        passed, own = weight[factor.name], logs[factor.name]
        if passed == 0.0 or not math.isfinite(own):
            continue
        operator = factor.operator
        if isinstance(operator, Concatenation):
            parts = [math.exp(2 * (logs[name] - own)) for name in factor.inputs]
        elif isinstance(operator, Linear):
            parts = [1.0 if i == 0 else 0.0 for i in range(len(factor.inputs))]
        else:
            terms = zip(factor.inputs, factor.logs(), strict=True)
            parts = [math.exp(min(0.0, logs[name] + by - own)) if by > -math.inf else 0.0 for name, by in terms]
        before = 0.0
        for name, part in zip(factor.inputs, parts, strict=True):
            weight[name] += passed * part
            before += part * logs[name] if part else 0.0
        growth[factor.name] = passed * (own - before)
    return {name: weight[name] for name in growth}, growth
