"""Rules of normalisations and softmax: what is Lipschitz on the whole space thanks to an eps or a simplex."""

from __future__ import annotations

import torch

from lipcheck.graph import Node
from lipcheck.operators import Normalisation, Operator, Unbounded
from lipcheck.rounding import sqrt_down, sqrt_up, up
from lipcheck.rules.affine import input_of
from lipcheck.rules.registry import rule

aten = torch.ops.aten


@rule(aten.layer_norm.default, aten.native_layer_norm.default, aten.group_norm.default, aten.instance_norm.default)
def statistics_norm(node: Node) -> Operator:
    """The Jacobian is (gamma / sigma)(I - 11'/d - xx'/d) with sigma >= sqrt(eps): at most max|gamma| / sqrt(eps)."""
    input_of(node)
    eps = float(node.arguments["eps"])
    if node.arguments.get("use_input_stats") is False:
        return Unbounded("instance norm with running statistics has no rule yet")
    if eps <= 0:
        return Unbounded("normalisation without eps has no slope bound on the whole space")
    gain = node.arguments["weight"]
    largest = 1.0 if gain is None else float(node.constant("weight").abs().max())
    name = node.op_name.split(".")[1].removeprefix("native_")
    return Normalisation(name, up(largest / sqrt_down(eps)), "max|gamma| / sqrt(eps)")


@rule(aten.softmax.int, aten._softmax.default)
def softmax(node: Node) -> Operator:
    """diag(p) - pp' has norm at most 1/2: row i sums to 2 p_i (1 - p_i) in absolute value (Gershgorin)."""
    return Normalisation("softmax", 0.5, "diag(p) - pp' has norm at most 1/2")


@rule(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(node: Node) -> Operator:
    """I - 1p' is a projection along 1, so its norm is that of 1p', sqrt(n) |p| <= sqrt(n)."""
    return Normalisation("log_softmax", sqrt_up(node.inputs[0].shape[node.arguments["dim"]]), "norm of I - 1p'")
