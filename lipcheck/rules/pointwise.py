"""Rules of elementwise functions: each contributes the supremum of |f'| over the reals.

The constants are upper bounds in the last digit given; the tests derive each by interval arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipcheck.graph import Node
from lipcheck.operators import Operator, Pointwise, Unbounded
from lipcheck.rounding import up
from lipcheck.rules.registry import rule

aten = torch.ops.aten

# sup |f'|, rounded up.
GELU = 1.128904146  # Phi(x) + x phi(x), at x = sqrt 2
GELU_TANH = 1.128993069  # the tanh approximation
SILU = 1.099839321  # s(x) (1 + x (1 - s(x)))
MISH = 1.088498162  # tanh(softplus) + x s sech^2(softplus), at 1.4906
HARDSWISH = 1.5
SELU = 1.758099341  # scale * alpha, at 0 from the left
ERF = 1.128379168  # 2 / sqrt(pi)

SLOPES: dict[Any, tuple[str, float]] = {
    aten.relu.default: ("relu", 1.0),
    aten.relu6.default: ("relu6", 1.0),
    aten.hardtanh.default: ("hardtanh", 1.0),
    aten.clamp.default: ("clamp", 1.0),
    aten.clamp_min.default: ("clamp", 1.0),
    aten.clamp_max.default: ("clamp", 1.0),
    aten.silu.default: ("silu", SILU),
    aten.mish.default: ("mish", MISH),
    aten.hardswish.default: ("hardswish", HARDSWISH),
    aten.hardsigmoid.default: ("hardsigmoid", 0.16666666666666669),
    aten.sigmoid.default: ("sigmoid", 0.25),
    aten.tanh.default: ("tanh", 1.0),
    aten.selu.default: ("selu", SELU),
    aten.log_sigmoid.default: ("logsigmoid", 1.0),
    aten.softshrink.default: ("softshrink", 1.0),
    aten.abs.default: ("abs", 1.0),
    aten.sin.default: ("sin", 1.0),
    aten.cos.default: ("cos", 1.0),
    aten.atan.default: ("atan", 1.0),
    aten.erf.default: ("erf", ERF),
}


@rule(*SLOPES)
def fixed_slope(node: Node) -> Operator:
    return Pointwise(*SLOPES[node.op])


@rule(aten.softplus.default)
def softplus(node: Node) -> Operator:
    """log(1 + exp(beta x)) / beta has slope below 1; above the threshold it is x, a jump of log1p(exp(-t)) / beta.

    The bound is that of the function without the jump, which is 2e-9 at the usual threshold of 20: an artefact of
    evaluation, like rounding. Where the jump is larger than float32 resolves, there is no constant.
    """
    if node.arguments["threshold"] < 15:
        return Unbounded("softplus jumps at a threshold this low")
    return Pointwise("softplus", 1.0)


@rule(aten.gelu.default)
def gelu(node: Node) -> Operator:
    return Pointwise("gelu", GELU if node.arguments["approximate"] == "none" else GELU_TANH)


@rule(aten.leaky_relu.default)
def leaky_relu(node: Node) -> Operator:
    return Pointwise("leaky relu", max(1.0, abs(float(node.arguments["negative_slope"]))))


@rule(aten.elu.default)
def elu(node: Node) -> Operator:
    """scale * (x for x > 0, alpha (exp(input_scale x) - 1) below)."""
    given = node.arguments
    if float(given["input_scale"]) < 0:
        return Unbounded("elu with a negative input scale grows exponentially")
    alpha, scale, inner = (abs(float(given[name])) for name in ("alpha", "scale", "input_scale"))
    return Pointwise("elu", up(scale * max(1.0, up(alpha * inner))) if (scale, inner) != (1, 1) else max(1.0, alpha))


@rule(aten.celu.default)
def celu(node: Node) -> Operator:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1)): slope at most 1 for any positive alpha."""
    return Pointwise("celu", 1.0) if float(node.arguments["alpha"]) > 0 else Unbounded("celu with alpha below 0")


@rule(aten.prelu.default)
def prelu(node: Node) -> Operator:
    return Pointwise("prelu", max(1.0, float(node.constant("weight").abs().max())))


@rule(aten.threshold.default)
def threshold(node: Node) -> Operator:
    """x above the threshold, a value below: continuous only where the two are equal."""
    if node.arguments["threshold"] != node.arguments["value"]:
        return Unbounded("threshold jumps from its value to its threshold")
    return Pointwise("threshold", 1.0)


@rule(aten.hardshrink.default)
def hardshrink(node: Node) -> Operator:
    if float(node.arguments["lambd"]) == 0:
        return Pointwise("hardshrink", 1.0)
    return Unbounded("hardshrink jumps at its threshold")


@rule(aten.exp.default, aten.pow.Tensor_Scalar, aten.square.default, aten.log.default, aten.sqrt.default)
@rule(aten.rsqrt.default, aten.reciprocal.default)
def unbounded_slope(node: Node) -> Operator:
    """Exponentials, powers, logarithms and roots have no largest slope on the whole line."""
    if node.op is aten.pow.Tensor_Scalar and node.arguments["exponent"] == 1:
        return Pointwise("power 1", 1.0)
    return Unbounded("its slope is unbounded on the whole space")


# Clusters of elementwise calls that write an activation out, as nested tuples over the source "x" with constants
# to six digits or more.
Expression = tuple[Any, ...] | str | float

_SIX_DIGITS = 1e-6
_SQRT_HALF, _SQRT_2_OVER_PI = 0.70710678, 0.79788456


def written_out(expression: Expression) -> Pointwise | None:
    """The activation that an expression of one source is, None if it is none that is known."""
    for name, slope, form in _FORMS:
        if _equal(expression, form):
            # Constants are compared to six digits; a slope moves by no more than a few times what they do.
            return Pointwise(name, slope * (1 + 10 * _SIX_DIGITS) if _has_constants(form) else slope)
    if isinstance(expression, tuple) and expression[0] == "mul":
        # x s(a x) is s(y) y / a at y = a x: the slope is that of SiLU for any a.
        for x, gate in ((expression[1], expression[2]), (expression[2], expression[1])):
            if x == "x" and _is_scaled_sigmoid(gate):
                return Pointwise("silu", SILU)
    return None


def _is_scaled_sigmoid(gate: Expression) -> bool:
    if not (isinstance(gate, tuple) and gate[0] == "sigmoid"):
        return False
    inner = gate[1]
    return inner == "x" or (
        isinstance(inner, tuple)
        and inner[0] == "mul"
        and "x" in inner[1:]
        and any(isinstance(part, float) for part in inner[1:])
    )


def _has_constants(form: Expression) -> bool:
    return isinstance(form, float) or (isinstance(form, tuple) and any(_has_constants(part) for part in form[1:]))


def _equal(a: Expression, b: Expression) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= _SIX_DIGITS * max(abs(a), abs(b))
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and a[0] == b[0]:
        if a[0] in ("mul", "add"):
            return (_equal(a[1], b[1]) and _equal(a[2], b[2])) or (_equal(a[1], b[2]) and _equal(a[2], b[1]))
        return all(_equal(p, q) for p, q in zip(a[1:], b[1:], strict=True))
    return type(a) is type(b) and a == b


def _products(*factors: Expression) -> list[Expression]:
    """The ways to write a product of three factors as products of two."""
    a, b, c = factors
    return [("mul", ("mul", a, b), c), ("mul", ("mul", a, c), b), ("mul", ("mul", b, c), a)]


_RELU6_GATE: Expression = ("hardtanh", ("add", "x", 3.0))
_ERF_GATE: Expression = ("add", ("erf", ("mul", "x", _SQRT_HALF)), 1.0)
_CUBIC: list[Expression] = [
    ("add", "x", ("mul", ("pow", "x", 3.0), 0.044715)),
    ("add", "x", ("mul", ("mul", ("mul", "x", "x"), "x"), 0.044715)),
    ("add", "x", ("mul", ("mul", ("mul", "x", 0.044715), "x"), "x")),
]
_TANH_GATES: list[Expression] = [("add", ("tanh", ("mul", cubic, _SQRT_2_OVER_PI)), 1.0) for cubic in _CUBIC]
_FORMS: list[tuple[str, float, Expression]] = [
    ("silu", SILU, ("mul", "x", ("sigmoid", "x"))),
    ("mish", MISH, ("mul", "x", ("tanh", ("softplus", "x")))),
    ("hardswish", HARDSWISH, ("mul", "x", ("hardsigmoid", "x"))),
    *(("hardswish", HARDSWISH, form) for form in _products("x", _RELU6_GATE, 1 / 6)),
    *(("gelu", GELU, form) for form in _products("x", _ERF_GATE, 0.5)),
    *(("gelu", GELU_TANH, form) for gate in _TANH_GATES for form in _products("x", gate, 0.5)),
    ("tanhshrink", 1.0, ("sub", "x", ("tanh", "x"))),
]


def scalar(argument: Any) -> float | None:
    """A constant operand that is one number, None otherwise."""
    if isinstance(argument, bool):
        return None
    if isinstance(argument, int | float):
        return float(argument)
    if isinstance(argument, Tensor) and argument.numel() == 1:
        return float(argument)
    return None
