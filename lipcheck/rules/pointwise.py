"""Rules of elementwise functions: each contributes the supremum of |f'| over the reals, or over the range it has.

The constants are upper bounds in the last digit given; the tests derive each by interval arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lipcheck.graph import Node, Value
from lipcheck.maps import expressions, pointwise
from lipcheck.maps.expressions import X
from lipcheck.maps.jets import Expression
from lipcheck.maps.portraits import portrait
from lipcheck.operators import (
    IDENTITY,
    Concatenation,
    Indexing,
    Operator,
    Pointwise,
    ScalarFunction,
    Sum,
    Unbounded,
)
from lipcheck.rounding import sqrt_up, up
from lipcheck.rules.registry import rule

aten = torch.ops.aten

# sup |f'|, rounded up.
GELU = 1.128904146  # Phi(x) + x phi(x), at x = sqrt 2
GELU_TANH = 1.128993069  # the tanh approximation
SILU = 1.099839321  # s(x) (1 + x (1 - s(x)))
MISH = 1.088498162  # tanh(softplus) + x s sech^2(softplus), at 1.4906
HARDSWISH = 1.5
SELU = 1.758099347  # scale * alpha, at 0 from the left, as float32 rounds them
ERF = 1.128379168  # 2 / sqrt(pi)
# The constants of torch's selu.
_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

SLOPES: dict[Any, tuple[str, float, ScalarFunction]] = {
    aten.relu.default: ("relu", 1.0, pointwise.RELU),
    aten.relu6.default: ("relu6", 1.0, pointwise.RELU6),
    aten.silu.default: ("silu", SILU, pointwise.SILU),
    aten.mish.default: ("mish", MISH, pointwise.MISH),
    aten.hardswish.default: ("hardswish", HARDSWISH, pointwise.HARDSWISH),
    aten.hardsigmoid.default: ("hardsigmoid", 0.16666666666666669, pointwise.HARDSIGMOID),
    aten.sigmoid.default: ("sigmoid", 0.25, pointwise.SIGMOID),
    aten.tanh.default: ("tanh", 1.0, pointwise.TANH),
    aten.selu.default: ("selu", SELU, pointwise.read_twice(pointwise.elu, _ALPHA, _SCALE, 1.0)),
    aten.log_sigmoid.default: ("logsigmoid", 1.0, pointwise.LOG_SIGMOID),
    aten.abs.default: ("abs", 1.0, pointwise.ABSOLUTE),
    aten.sin.default: ("sin", 1.0, pointwise.SIN),
    aten.cos.default: ("cos", 1.0, pointwise.COS),
    aten.atan.default: ("atan", 1.0, pointwise.ATAN),
    aten.asinh.default: ("asinh", 1.0, pointwise.ASINH),
    aten.erf.default: ("erf", ERF, pointwise.ERF),
    aten.erfc.default: ("erfc", ERF, pointwise.ERFC),
    aten.exp.default: ("exp", math.inf, pointwise.EXP),
    aten.exp2.default: ("2^x", math.inf, pointwise.EXP2),
    aten.expm1.default: ("expm1", math.inf, pointwise.EXPM1),
    aten.log.default: ("log", math.inf, pointwise.LOG),
    aten.log2.default: ("log2", math.inf, pointwise.LOG2),
    aten.log10.default: ("log10", math.inf, pointwise.LOG10),
    aten.log1p.default: ("log1p", math.inf, pointwise.LOG1P),
    aten.sqrt.default: ("sqrt", math.inf, pointwise.power(0.5)),
    aten.rsqrt.default: ("1 / sqrt", math.inf, pointwise.power(-0.5)),
    aten.reciprocal.default: ("1 / x", math.inf, pointwise.power(-1.0)),
    aten.square.default: ("x^2", math.inf, pointwise.power(2.0)),
}
# Functions that jump.
STAIRS: dict[Any, tuple[str, Callable[[Tensor], Tensor]]] = {
    aten.sign.default: ("sign", torch.sign),
    aten.floor.default: ("floor", torch.floor),
    aten.ceil.default: ("ceil", torch.ceil),
    aten.round.default: ("round", torch.round),
    aten.trunc.default: ("trunc", torch.trunc),
}


@rule(*SLOPES)
def fixed_slope(node: Node) -> Operator:
    return Pointwise(*SLOPES[node.op])


@rule(*STAIRS)
def stairs(node: Node) -> Operator:
    """Constant between its jumps."""
    name, value = STAIRS[node.op]
    return Pointwise(name, math.inf, pointwise.Stairs(value))


def drawn(name: str, expression: Expression) -> Pointwise:
    """The function that an expression of x is, with what is certified about it."""
    found = portrait(expression)
    return Pointwise(name, found.supremum, found)


def _largest(*numbers: float) -> float:
    """The largest absolute value, as networks of float64 or of float32 read it."""
    return max(float(pointwise.constant_interval(number).magnitude) for number in numbers)


def _copies(node: Node, name: str = "self") -> int:
    """In how many elements of the output one of this operand stands: constants may be larger than it."""
    value = node.arguments[name]
    assert isinstance(value, Value), "an activation"
    return math.prod(node.shape) // max(1, math.prod(value.shape))


@rule(aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
@rule(aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
def clamp(node: Node) -> Operator:
    given = node.arguments
    ends = given.get("min", given.get("min_val")), given.get("max", given.get("max_val"))
    if any(isinstance(end, Value) for end in ends):
        return Unbounded("one of the numbers that it clamps to depends on the input")
    return Pointwise("clamp", 1.0, pointwise.clamp(*ends), _copies(node))


@rule(aten.softplus.default)
def softplus(node: Node) -> Operator:
    """log(1 + exp(beta x)) / beta has slope below 1; above the threshold it is x, a jump of log1p(exp(-t)) / beta.

    The bound is that of the function without the jump, which is 2e-9 at the usual threshold of 20: an artefact of
    evaluation, like rounding. Where the jump is larger than float32 resolves, there is no constant.
    """
    if node.arguments["threshold"] < 15:
        return Unbounded("softplus jumps at a threshold this low")
    if not node.arguments["beta"]:
        return Unbounded("softplus with a beta of zero is infinite")
    return Pointwise("softplus", 1.0, pointwise.softplus(float(node.arguments["beta"])))


@rule(aten.gelu.default)
def gelu(node: Node) -> Operator:
    if node.arguments["approximate"] == "none":
        return Pointwise("gelu", GELU, pointwise.GELU)
    return Pointwise("gelu", GELU_TANH, pointwise.GELU_TANH)


@rule(aten.leaky_relu.default)
def leaky_relu(node: Node) -> Operator:
    return _leaky("leaky relu", float(node.arguments["negative_slope"]))


@rule(aten.rrelu.default)
def randomised_relu(node: Node) -> Operator:
    """At inference the slope is the middle of its range."""
    if node.arguments["training"]:
        return Unbounded("rrelu that draws random slopes")
    return _leaky("rrelu", (float(node.arguments["lower"]) + float(node.arguments["upper"])) / 2)


def _leaky(name: str, slope: float) -> Pointwise:
    return Pointwise(name, max(1.0, _largest(slope)), pointwise.read_twice(pointwise.leaky, slope))


@rule(aten.elu.default)
def elu(node: Node) -> Operator:
    """scale * (x for x > 0, alpha (exp(input_scale x) - 1) below)."""
    alpha, scale, inner = (float(node.arguments[name]) for name in ("alpha", "scale", "input_scale"))
    return _elu("elu", alpha, scale, inner)


def _elu(name: str, alpha: float, scale: float, inner: float) -> Operator:
    if inner < 0:
        return Unbounded("elu with a negative input scale grows exponentially")
    slope = _largest(scale) if (scale, inner) != (1, 1) else 1.0
    below = up(up(_largest(alpha) * _largest(scale)) * _largest(inner)) if (scale, inner) != (1, 1) else _largest(alpha)
    curve = pointwise.read_twice(pointwise.elu, alpha, scale, inner) if scale and inner else None
    return Pointwise(name, max(slope, below), curve)


@rule(aten.celu.default)
def celu(node: Node) -> Operator:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1)): slope at most 1 for any positive alpha, but for rounding."""
    alpha = float(node.arguments["alpha"])
    return _elu("celu", alpha, 1.0, 1 / alpha) if alpha > 0 else Unbounded("celu with alpha below 0")


@rule(aten.prelu.default)
def prelu(node: Node) -> Operator:
    """A slope below zero for each channel, or one for all."""
    weight = node.constant("weight").detach().double()
    if weight.numel() > 1:
        weight = weight.reshape(-1, *(1,) * (len(node.shape) - 2))
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    return Pointwise("prelu", max(1.0, largest), pointwise.leaky(weight))


@rule(aten.threshold.default)
def threshold(node: Node) -> Operator:
    """x above the threshold, a value below: continuous only where the two are equal."""
    level, value = (float(node.arguments[name]) for name in ("threshold", "value"))
    return drawn("threshold", expressions.where(expressions.compare("gt", X, level), X, value))


@rule(aten.hardshrink.default)
def hardshrink(node: Node) -> Operator:
    """x where |x| > lambda, else zero: a jump at both ends."""
    width = float(node.arguments["lambd"])
    inside = expressions.compare("le", expressions.absolute(X), width)
    return drawn("hardshrink", expressions.where(inside, 0.0, X))


@rule(aten.softshrink.default)
def softshrink(node: Node) -> Operator:
    """max(x - lambda, 0) - max(-x - lambda, 0)."""
    width = float(node.arguments["lambd"])
    above, below = (expressions.relu(expressions.add(side, -width)) for side in (X, expressions.negative(X)))
    return drawn("softshrink", expressions.subtract(above, below))


@rule(aten.tan.default, aten.asin.default, aten.acos.default, aten.atanh.default, aten.sinh.default, aten.cosh.default)
def by_exponentials_and_roots(node: Node) -> Operator:
    """asin x = atan(x / sqrt(1 - x^2)), acos x = pi / 2 - asin x, atanh x = log((1 + x) / (1 - x)) / 2."""
    name = node.op_name.split(".")[1]
    return drawn(name, _COMPOSED[name])


_ARCSINE: Expression = (
    "atan",
    expressions.mul(X, expressions.power(expressions.subtract(1.0, expressions.power(X, 2.0)), -0.5)),
)
_RISING, _FALLING = ("exp", X), ("exp", expressions.negative(X))
_COMPOSED: Mapping[str, Expression] = {
    "tan": expressions.divide(("sin", X), ("cos", X)),
    "asin": _ARCSINE,
    "acos": expressions.subtract(math.pi / 2, _ARCSINE),
    "atanh": expressions.mul(
        0.5, expressions.subtract(("log", expressions.add(1.0, X)), ("log", expressions.subtract(1.0, X)))
    ),
    "sinh": expressions.mul(0.5, expressions.subtract(_RISING, _FALLING)),
    "cosh": expressions.mul(0.5, expressions.add(_RISING, _FALLING)),
}


@rule(aten.logit.default)
def logit(node: Node) -> Operator:
    """log(x / (1 - x)), of x clamped to [eps, 1 - eps] where there is an eps."""
    eps = node.arguments["eps"]
    x = X if eps is None else expressions.clamp(X, float(eps), 1 - float(eps))
    return drawn("logit", expressions.subtract(("log", x), ("log", expressions.subtract(1.0, x))))


@rule(aten.pow.Tensor_Scalar)
def power(node: Node) -> Operator:
    return _power(float(node.arguments["exponent"]))


def _power(exponent: float) -> Operator:
    """x^p has no largest slope on the whole line, but for p = 0 and p = 1."""
    if exponent == 1:
        return IDENTITY
    if not math.isfinite(exponent):
        return Unbounded("power with an exponent that is not finite")
    return Pointwise(f"x^{exponent:g}", 0.0 if exponent == 0 else math.inf, pointwise.power(exponent))


@rule(aten.pow.Scalar)
def exponential(node: Node) -> Operator:
    return _exponential(float(node.arguments["self"]))


def _exponential(base: float) -> Operator:
    """b^x = exp(x ln b), for a positive b."""
    if not 0 < base < math.inf:
        return Unbounded("power of a base that is not positive")
    return Pointwise(f"{base:g}^x", 0.0 if base == 1 else math.inf, pointwise.exponential(base))


@rule(aten.pow.Tensor_Tensor)
def power_of_tensors(node: Node) -> Operator:
    """Of one activation and one number."""
    base, exponent = node.arguments["self"], node.arguments["exponent"]
    if isinstance(base, Value) and isinstance(exponent, Value):
        return Unbounded("power of two activations")
    number = scalar(exponent if isinstance(base, Value) else base)
    if number is None or node.inputs[0].shape != node.shape:
        return Unbounded("power with different numbers for different elements")
    return _power(number) if isinstance(base, Value) else _exponential(number)


@rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
def selection(node: Node) -> Operator:
    """By a constant condition: every element of the output is one of an operand, or a constant."""
    if isinstance(node.arguments["condition"], Value):
        return Unbounded("its condition depends on the input, and where that changes it may jump")
    return _selected(node, "self", "other")


def _selected(node: Node, *names: str) -> Operator:
    """Of two activations of the output's shape, their parts stand side by side; a smaller one is copied."""
    copies = [_copies(node, name) for name in names if isinstance(node.arguments[name], Value)]
    if len(copies) == 1:
        return Indexing(copies[0]) if copies[0] > 1 else IDENTITY
    return Concatenation() if copies == [1, 1] else Sum(tuple(map(sqrt_up, copies)))


def scalar(argument: Any) -> float | None:
    """A constant operand that is one number, None otherwise."""
    if isinstance(argument, bool):
        return None
    if isinstance(argument, int | float):
        return float(argument)
    if isinstance(argument, Tensor) and argument.numel() == 1 and not argument.is_complex():
        return float(argument)
    return None
