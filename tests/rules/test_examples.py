"""Every rule against its operation: the constant it leads to holds wherever a Jacobian or a difference is taken."""

from __future__ import annotations

import math
from typing import Any

import networks
import pytest
import reference
import torch
from draws import draws
from hypothesis import HealthCheck, Phase, given, settings
from rules.examples import EXAMPLES, Call, Example

from lipcheck.bound import Bound
from lipcheck.capture import capture
from lipcheck.compose import Factor, compose
from lipcheck.engines.enclose import enclose
from lipcheck.graph import Graph
from lipcheck.operators import Linear, Operator
from lipcheck.rules import DEFAULT_RULES, operator_of

# Operations with a large family of arguments are worth more draws than the others.
_MANY = ("conv", "pool", "pad", "upsample", "index_select", "elu", "slice")


# The exporter's own note beside a conversion: without it a graph with one is made functional, the conversion rewritten.
KNOWN = {*DEFAULT_RULES, torch.ops.aten._assert_tensor_metadata.default}


def _count(op: Any) -> int:
    return 6 if any(word in str(op) for word in _MANY) else 2


def test_every_rule_has_a_drawn_example() -> None:
    assert set(EXAMPLES) == set(DEFAULT_RULES)


def constants(graph: Graph) -> tuple[dict[str, Operator], dict[str, Bound], float]:
    """The operators by node, the enclosures of the linear ones, and the graph's own constant."""
    operators = {node.name: operator_of(node, DEFAULT_RULES) for node in graph.nodes}
    linear = [name for name, found in operators.items() if isinstance(found, Linear)]
    bounds = dict(zip(linear, enclose([operators[name] for name in linear]), strict=True))
    factors = [
        Factor(node.name, tuple(value.name for value in node.inputs), operators[node.name],
               bounds[node.name].upper if node.name in bounds else math.inf)
        for node in graph.nodes
    ]  # fmt: skip
    return operators, bounds, compose(graph.input.name, factors, graph.output).output


def verify(example: Example) -> None:
    module = Call(example).eval()
    # Positive, so that roots and logarithms are numbers.
    graph, difference = capture(module, torch.rand(example.shape) + 0.1, known=KNOWN)
    assert difference < 1e-5
    assert example.rule in {node.op for node in graph.nodes}, "the example does not exercise its rule"
    _, bounds, log = constants(graph)
    if not example.bounded:
        assert log == math.inf
        return
    constant = math.exp(log) * (1 + 1e-15)
    double = networks.in_double(module)
    assert networks.largest_quotient(double, example.shape) <= constant
    if not example.linear:
        assert math.isfinite(constant)
        # torch's own derivatives have constants in single precision: the sixth of hardsigmoid, say.
        assert networks.largest_jacobian(double, example.shape) <= constant * (1 + 1e-7)
        return
    matrix = networks.matrix_of(double, example.shape)
    truth = reference.norm(matrix)
    assert truth <= constant * reference.slack(matrix)
    own = next(node for node in graph.nodes if node.op is example.rule)
    if own.name in bounds and len(graph.nodes) == 1:
        reference.assert_encloses(bounds[own.name], matrix)
        assert bounds[own.name].upper <= truth * 1.05 or truth == 0, "not even near the truth"


@pytest.mark.parametrize("op", sorted(EXAMPLES, key=str), ids=str)
def test_no_input_shows_more_than_the_constant_of_the_rule(op: Any) -> None:
    for form in EXAMPLES[op]:

        @settings(
            max_examples=draws(_count(op)),
            phases=[Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(form)
        def holds(example: Example) -> None:
            verify(example)

        holds()
