"""Rules of linear layers with weights: convolutions, linear, batch norm, scaling, sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcheck.graph import DependentError, Node, Value
from lipcheck.operators import (
    IDENTITY,
    Concatenation,
    Convolution,
    Dense,
    Diagonal,
    Indexing,
    Operator,
    Sum,
    Unbounded,
)
from lipcheck.rounding import UNIT, sqrt_up, up
from lipcheck.rules.registry import rule

aten = torch.ops.aten


def per_axis(value: int | list[int], axes: int) -> tuple[int, ...]:
    """One entry per spatial axis, as PyTorch's arguments allow a single one for all."""
    values = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (values * axes if len(values) == 1 else values))


def input_of(node: Node, name: str = "input") -> Value:
    """The activation of a node whose other operands are constant.

    Errors: DependentError of the operand that depends on the input in its place.
    """
    argument = node.arguments[name]
    if not isinstance(argument, Value):
        other = next(key for key, value in node.arguments.items() if isinstance(value, Value))
        raise DependentError(other)
    return argument


@rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
@rule(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def convolution(node: Node) -> Operator:
    """The bias moves the output and leaves differences alone; 'same' pads the right side more when it must."""
    given, weight = node.arguments, node.constant("weight")
    axes = weight.dim() - 2
    stride, dilation = per_axis(given["stride"], axes), per_axis(given["dilation"], axes)
    size = input_of(node).shape[2:]
    if len(size) != axes:
        return Unbounded("convolution of an input without a batch axis")
    padding = given["padding"]
    if padding == "same":
        offset = tuple(d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True))
    elif padding == "valid":
        offset = (0,) * axes
    else:
        offset = per_axis(padding, axes)
    return Convolution(weight, stride, dilation, given["groups"], offset, size, node.shape[2:])


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def transposed_convolution(node: Node) -> Operator:
    """The adjoint of the convolution with the same weight from this node's output to its input."""
    given, weight = node.arguments, node.constant("weight")
    axes = weight.dim() - 2
    if len(input_of(node).shape) != axes + 2:
        return Unbounded("convolution of an input without a batch axis")
    return Convolution(
        weight,
        per_axis(given["stride"], axes),
        per_axis(given["dilation"], axes),
        given["groups"],
        per_axis(given["padding"], axes),
        node.shape[2:],
        input_of(node).shape[2:],
        transposed=True,
    )


@rule(aten.convolution.default)
def any_convolution(node: Node) -> Operator:
    """What the exporter leaves of a convolution that it took apart."""
    if node.arguments["transposed"]:
        return transposed_convolution(node)
    return convolution(node)


@rule(aten.linear.default)
def linear(node: Node) -> Operator:
    input_of(node)
    if node.constant("weight").dim() != 2:
        return Unbounded("linear with a weight that is no matrix")
    return Dense(node.constant("weight"))


@rule(aten._native_batch_norm_legit_no_training.default)
def batch_norm(node: Node) -> Operator:
    """gamma / sqrt(var + eps) per channel: at inference the statistics are constants."""
    return _batch_norm(node, node.constant("running_var"))


@rule(aten.batch_norm.default)
def whole_batch_norm(node: Node) -> Operator:
    if node.arguments["training"] or node.arguments["running_var"] is None:
        return Unbounded("batch norm over the statistics of the batch")
    return _batch_norm(node, node.constant("running_var"))


def _batch_norm(node: Node, variance: Tensor) -> Operator:
    gain = 1 / torch.sqrt(variance.double() + node.arguments["eps"])
    if node.arguments["weight"] is not None:
        gain = gain * node.constant("weight").double()
    rank = len(input_of(node).shape)
    # Sum, root, quotient and product: four roundings, of which the sum's counts half.
    return Diagonal(gain.reshape(1, -1, *(1,) * (rank - 2)), 8 * UNIT)


@rule(aten.neg.default)
def negation(node: Node) -> Operator:
    return Diagonal(torch.tensor(-1.0, dtype=torch.float64))


@rule(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar, aten.rsub.Tensor)
@rule(aten.subtract.Tensor, aten.subtract.Scalar)
def addition(node: Node) -> Operator:
    """A sum of activations; a constant only moves the output. A smaller operand is copied as it is broadcast."""
    given = node.arguments
    alpha = float(given.get("alpha", 1)) * (-1 if "sub" in node.op_name else 1)
    # What each operand is multiplied by, its sign included.
    factors = {"self": 1.0, "other": 1.0} | {"self" if "rsub" in node.op_name else "other": alpha}
    weights, signed = [], 1.0
    for name, factor in factors.items():
        operand = given[name]
        if isinstance(operand, Value):
            copies = math.prod(node.shape) / max(1, math.prod(operand.shape))
            weight, signed = sqrt_up(copies), factor
            weights.append(weight if abs(factor) == 1.0 else up(weight * abs(factor)))
    if weights != [1.0]:
        return Sum(tuple(weights))
    return Diagonal(torch.tensor(-1.0, dtype=torch.float64)) if signed < 0 else IDENTITY


@rule(aten.cat.default)
def concatenation(node: Node) -> Operator:
    """Constants among the parts add nothing to differences."""
    return Concatenation()


@rule(aten.stack.default)
def stacking(node: Node) -> Operator:
    return Concatenation()


def window_matrix(length: int, outputs: int, windows: list[tuple[int, int]], weights: list[float]) -> Tensor:
    """One axis of an averaging: each output sums a window of the input, times its weight.

    Shapes: (outputs, length) float64.
    """
    matrix = torch.zeros(outputs, length, dtype=torch.float64)
    for row, ((low, high), weight) in enumerate(zip(windows, weights, strict=True)):
        matrix[row, max(low, 0) : max(min(high, length), 0)] = weight
    return matrix


def most_copies(index: Tensor) -> int:
    """How often the most used input appears among these indices."""
    return int(torch.bincount(index.flatten()).max()) if index.numel() else 0


def pad_indices(length: int, before: int, after: int, mode: str) -> Tensor:
    """Which inputs stand at the positions of a padded axis."""
    line = torch.arange(length, dtype=torch.float64)[None, None]
    padded: Tensor = torch.nn.functional.pad(line, (before, after), mode=mode)
    return padded[0, 0].round().long()


@rule(aten.pad.default)
def padding(node: Node) -> Operator:
    """Zeros cost nothing; circular, reflect and replicate padding copy some inputs."""
    mode, widths = node.arguments["mode"], list(node.arguments["pad"])
    if mode == "constant":
        return IDENTITY
    shape = node.arguments["self"].shape
    copies = 1
    for axis in range(len(widths) // 2):
        before, after = widths[2 * axis], widths[2 * axis + 1]
        try:
            copies *= most_copies(pad_indices(shape[-1 - axis], before, after, mode))
        except RuntimeError:
            return Unbounded(f"{mode} padding by {before} and {after} of {shape[-1 - axis]} positions")
    return Indexing(copies)


@rule(aten.constant_pad_nd.default)
def constant_padding(node: Node) -> Operator:
    return IDENTITY
