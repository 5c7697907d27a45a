"""Rules of normalisations, norms, variances and softmax: what is Lipschitz thanks to an eps, a simplex or a range."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lipcheck.graph import DependentError, Node, Value
from lipcheck.maps.normalisations import Groups, LongNorm, Moment, Softmax, Standardisation
from lipcheck.operators import Diagonal, Operator, Unbounded
from lipcheck.rounding import UNIT
from lipcheck.rules.registry import rule

aten = torch.ops.aten


def _activation(node: Node, name: str = "input") -> Value:
    """The only operand that may depend on the input.

    Errors: DependentError of another one that does.
    """
    value = node.arguments[name]
    others = [key for key, argument in node.arguments.items() if isinstance(argument, Value) and key != name]
    if others or not isinstance(value, Value):
        raise DependentError(others[0])
    return value


def _parameter(node: Node, name: str, shape: tuple[int, ...]) -> Tensor | None:
    """A gain or a shift, with the axes that it broadcasts along."""
    given = node.arguments[name]
    return None if given is None else node.constant(name).detach().reshape(shape)


@rule(aten.layer_norm.default, aten.native_layer_norm.default)
def layer_norm(node: Node) -> Operator:
    value = _activation(node)
    axes = len(node.arguments["normalized_shape"])
    groups = Groups.along(value.shape, range(-axes, 0))
    gain, shift = (_parameter(node, name, tuple(node.arguments["normalized_shape"])) for name in ("weight", "bias"))
    return _standardisation("layer_norm", node, value, groups, gain, shift)


@rule(aten.group_norm.default, aten.native_group_norm.default)
def group_norm(node: Node) -> Operator:
    """A group is a run of channels with all their positions: neighbours in memory."""
    value = _activation(node)
    batch, channels, *space = value.shape
    parts = node.arguments["group" if "group" in node.arguments else "num_groups"]
    groups = Groups((batch, parts, channels // parts * math.prod(space)), (2,))
    gain, shift = (_parameter(node, name, (channels, *(1,) * len(space))) for name in ("weight", "bias"))
    return _standardisation("group_norm", node, value, groups, gain, shift)


@rule(aten.instance_norm.default)
def instance_norm(node: Node) -> Operator:
    """Each channel of each image by itself; with running statistics a scaling per channel."""
    value = _activation(node)
    batch, channels, *space = value.shape
    shape = (channels, *(1,) * len(space))
    gain, shift = (_parameter(node, name, shape) for name in ("weight", "bias"))
    if node.arguments["use_input_stats"]:
        groups = Groups((batch, channels, math.prod(space)), (2,))
        return _standardisation("instance_norm", node, value, groups, gain, shift)
    scale = 1 / torch.sqrt(node.constant("running_var").double() + node.arguments["eps"])
    scale = scale.reshape(shape) if gain is None else scale.reshape(shape) * gain.double()
    return Diagonal(scale[None], 8 * UNIT)


def type_eps(dtype: torch.dtype) -> float:
    """What RMS norm adds where no eps is given; half precision is normalised in single."""
    return torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps


@rule(aten.rms_norm.default, aten._fused_rms_norm.default)
def rms_norm(node: Node) -> Operator:
    """x / sqrt(mean of x^2 + eps); without eps that of the activation's type."""
    value = _activation(node)
    given = node.arguments
    normalised = tuple(given["normalized_shape"])
    eps = given["eps"]
    eps = type_eps(value.dtype) if eps is None else eps
    groups = Groups.along(value.shape, range(-len(normalised), 0))
    gain = _parameter(node, "weight", normalised)
    return _checked(
        Standardisation(
            "rms_norm", groups, value.shape, "root", 1 / max(1, groups.size), float(eps),
            centred=False, about_mean=False, gain=gain,
        )
    )  # fmt: skip


def _standardisation(
    name: str, node: Node, value: Value, groups: Groups, gain: Tensor | None, shift: Tensor | None
) -> Operator:
    eps = float(node.arguments["eps"])
    return _checked(
        Standardisation(name, groups, value.shape, "root", 1 / max(1, groups.size), eps, gain=gain, shift=shift)
    )


def _checked(found: Standardisation) -> Operator:
    finite = all(bool(torch.isfinite(one).all()) for one in (found.gain, found.shift) if one is not None)
    return found if finite else Unbounded("its weights, as applied, are not finite")


def _softmax(node: Node, kind: Literal["softmax", "log", "sum"]) -> Operator:
    value = _activation(node, "self")
    dims = node.arguments["dim"]
    return Softmax(Groups.along(value.shape, dims if isinstance(dims, list | tuple) else [dims]), kind)


@rule(aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
def softmax(node: Node) -> Operator:
    return _softmax(node, "softmax")


@rule(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(node: Node) -> Operator:
    return _softmax(node, "log")


@rule(aten.logsumexp.default)
def log_sum_exp(node: Node) -> Operator:
    return _softmax(node, "sum")


@rule(aten.linalg_vector_norm.default)
@rule(aten.norm.ScalarOpt_dim, aten.norm.Scalar, aten.frobenius_norm.dim)
def norm(node: Node) -> Operator:
    """The p-norm over some axes, two if none is given."""
    given = node.arguments
    value = _activation(node, "self")
    order = given.get("ord", given.get("p"))
    order = 2.0 if order is None else float(order)
    groups = Groups.along(value.shape, given.get("dim"))
    if order == 2:
        return Moment(groups, 1.0, centred=False, squared=False)
    if order >= 1:
        return LongNorm(groups, order)
    return Unbounded(f"a norm of order {order:g} is not Lipschitz")


_VARIANCES = ("var.dim", "var.correction", "var.default", "std.dim", "std.correction", "std.default",
              "var_mean.dim", "var_mean.correction", "std_mean.dim", "std_mean.correction")  # fmt: skip


@rule(*(getattr(getattr(aten, name.split(".")[0]), name.split(".")[1]) for name in _VARIANCES))
def variance(node: Node) -> Operator:
    """The sum of squares about the mean over d - 1, or what `correction` says, or its root."""
    value = _activation(node, "self")
    groups = Groups.along(value.shape, node.arguments.get("dim"))
    divisor = groups.size - correction(node.arguments)
    if divisor <= 0:
        return Unbounded("the variance of so few numbers is none")
    return Moment(groups, 1 / divisor, centred=True, squared=node.op_name.startswith("aten.var"))


def correction(given: Any) -> float:
    """What is taken off the count in a variance: one unless told otherwise."""
    if "unbiased" in given:
        return 1.0 if given["unbiased"] else 0.0
    return 1.0 if given.get("correction") is None else float(given["correction"])
