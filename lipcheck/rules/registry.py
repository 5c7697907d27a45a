"""The table of rules: which function says what operator an ATen call applies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lipcheck.graph import DependentError, Node
from lipcheck.operators import IDENTITY, Linear, Normalisation, Operator, Pointwise, Unbounded
from lipcheck.ranges import distinct

Rule = Callable[[Node], Operator]
_RULES: dict[Callable[..., Any], Rule] = {}
# By name, why operations of libraries that need not be installed have no constant.
REASONS: dict[str, str] = {}


def rule(*ops: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of these overloads.

    Errors: ValueError when one of them has a rule already.
    """

    def register(function: Rule) -> Rule:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"{op} has a rule already: {_RULES[op].__module__}.{_RULES[op].__name__}")
            _RULES[op] = function
        return function

    return register


def _finite(operator: Operator) -> bool:
    """Whether every weight is a number: folding or standardising can make of finite parameters what is none."""
    fields = [getattr(operator, name, ()) for name in ("weight", "matrix", "matrices", "gain")]
    values = [value for found in fields for value in (found if isinstance(found, tuple) else (found,))]
    return all(bool(torch.isfinite(distinct(torch.as_tensor(value))).all()) for value in values if value is not None)


def operator_of(node: Node, rules: Mapping[Callable[..., Any], Rule]) -> Operator:
    """What the node applies: its rule's answer, or Unbounded with the reason there is none."""
    function = rules.get(node.op)
    if function is None:
        return Unbounded(REASONS.get(node.op_name, "no rule for this operation"))
    try:
        operator = function(node)
        if isinstance(operator, Unbounded):
            return operator
        if (
            len(node.inputs) > 1
            and operator is not IDENTITY
            and isinstance(operator, Linear | Pointwise | Normalisation)
        ):
            # A bias or a mean that depends on the input: the operator is of one activation alone.
            return Unbounded("more than one of its operands depends on the input")
        if any(not value.dtype.is_floating_point for value in node.inputs):
            return Unbounded("its input is no floating-point number, so not continuous")
        return operator if _finite(operator) else Unbounded("its weights, as applied, are not finite")
    except DependentError as error:
        return Unbounded(f"its {error} depends on the input, so the operation multiplies two activations")
