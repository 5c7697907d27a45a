"""Rules of pooling: averages are linear per axis, maxima select."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcheck.graph import Node, Value
from lipcheck.operators import Concatenation, Indexing, Operator, Separable, Unbounded
from lipcheck.rounding import UNIT
from lipcheck.rules.affine import per_axis, window_matrix
from lipcheck.rules.registry import rule

aten = torch.ops.aten
# 1 / n in float64.
_QUOTIENT = 2 * UNIT


def _input(node: Node) -> Value:
    value = node.arguments["self"] if "self" in node.arguments else node.arguments["input"]
    assert isinstance(value, Value)
    return value


@rule(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def average_pool(node: Node) -> Operator:
    """Axis by axis a window sum over a count; the count is a product over the axes, padding included or not."""
    given, size = node.arguments, _input(node).shape
    axes = int(node.op_name.split("avg_pool")[1][0])
    kernel = per_axis(given["kernel_size"], axes)
    stride = per_axis(given["stride"], axes) if given["stride"] else kernel
    padding = per_axis(given["padding"], axes)
    matrices = []
    for axis in range(axes):
        n, k, s, p = size[len(size) - axes + axis], kernel[axis], stride[axis], padding[axis]
        outputs = node.shape[len(node.shape) - axes + axis]
        windows = [(s * i - p, min(s * i - p + k, n + p)) for i in range(outputs)]
        inside = [(max(low, 0), min(high, n)) for low, high in windows]
        counted = windows if given["count_include_pad"] else inside
        weights = [1 / (high - low) if high > low else 0.0 for low, high in counted]
        if given.get("divisor_override"):
            weights = [1.0] * outputs
        matrices.append(window_matrix(n, outputs, inside, weights))
    if given.get("divisor_override"):
        matrices[0] = matrices[0] / abs(given["divisor_override"])
    return Separable(tuple(matrices), _QUOTIENT)


@rule(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
@rule(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
def adaptive_average_pool(node: Node) -> Operator:
    """Window i reaches from floor(i n / n') to ceil((i + 1) n / n')."""
    size, axes = _input(node).shape, int(node.op_name.split("avg_pool")[1][0])
    matrices = []
    for axis in range(axes):
        n, outputs = size[len(size) - axes + axis], node.shape[len(node.shape) - axes + axis]
        windows = [(i * n // outputs, -(-(i + 1) * n // outputs)) for i in range(outputs)]
        matrices.append(window_matrix(n, outputs, windows, [1 / (high - low) for low, high in windows]))
    return Separable(tuple(matrices), _QUOTIENT)


@rule(aten.mean.dim, aten.mean.default)
def mean(node: Node) -> Operator:
    """The mean of N numbers has norm N^(-1/2)."""
    count = math.prod(_input(node).shape) // max(1, math.prod(node.shape))
    return Separable((torch.full((1, count), 1 / count, dtype=torch.float64),), _QUOTIENT)


@rule(aten.sum.dim_IntList, aten.sum.default)
def total(node: Node) -> Operator:
    """The sum of N numbers has norm N^(1/2)."""
    count = math.prod(_input(node).shape) // max(1, math.prod(node.shape))
    return Separable((torch.ones((1, count), dtype=torch.float64),))


@rule(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
@rule(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
def max_pool(node: Node) -> Operator:
    """One input can be the maximum of every window it lies in: the root of the largest number of them."""
    given, size = node.arguments, _input(node).shape
    axes = int(node.op_name.split("max_pool")[1][0])
    kernel = per_axis(given["kernel_size"], axes)
    stride = per_axis(given["stride"], axes) if given["stride"] else kernel
    padding, dilation = per_axis(given["padding"], axes), per_axis(given["dilation"], axes)
    copies = 1
    for axis in range(axes):
        n, outputs = size[len(size) - axes + axis], node.shape[len(node.shape) - axes + axis]
        copies *= _most_windows(n, outputs, kernel[axis], stride[axis], padding[axis], dilation[axis])
    return Indexing(copies, selecting=True)


@rule(aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def adaptive_max_pool(node: Node) -> Operator:
    size, axes = _input(node).shape, int(node.op_name.split("max_pool")[1][0])
    copies = 1
    for axis in range(axes):
        n, outputs = size[len(size) - axes + axis], node.shape[len(node.shape) - axes + axis]
        matrix = window_matrix(
            n, outputs, [(i * n // outputs, -(-(i + 1) * n // outputs)) for i in range(outputs)], [1.0] * outputs
        )
        copies *= int(matrix.sum(0).max())
    return Indexing(copies, selecting=True)


def _most_windows(n: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The largest number of windows that one input lies in, along one axis."""
    reads: Tensor = torch.arange(outputs)[:, None] * stride - padding + torch.arange(kernel)[None] * dilation
    inside = reads[(reads >= 0) & (reads < n)]
    return int(torch.bincount(inside, minlength=1).max()) if inside.numel() else 1


@rule(aten.amax.default, aten.amin.default)
def maximum(node: Node) -> Operator:
    """Each output is one of the inputs, and no input is used twice."""
    return Indexing(1, selecting=True)


@rule(aten.max.default, aten.min.default, aten.max.dim, aten.min.dim)
def maximum_with_index(node: Node) -> Operator:
    return Indexing(1, selecting=True)


@rule(aten.sort.default, aten.sort.stable, aten.msort.default, aten.topk.default)
@rule(aten.kthvalue.default, aten.median.default, aten.median.dim, aten.nanmedian.default, aten.nanmedian.dim)
def order_statistic(node: Node) -> Operator:
    """Sorted values: sorting moves no two inputs apart, each result is one of the inputs, and none is used twice.

    Source: the rearrangement inequality, sum x_(i) y_(i) >= sum x_i y_i, hence |sort x - sort y| <= |x - y|.
    """
    if not node.arguments.get("sorted", True):
        return Unbounded("the largest values in no particular order: their places jump")
    return Indexing(1, selecting=True)


@rule(aten.cummax.default, aten.cummin.default)
def running_maximum(node: Node) -> Operator:
    """One input can be the maximum of every start of its line that it lies in."""
    shape = _input(node).shape
    return Indexing(shape[node.arguments["dim"]] if shape else 1, selecting=True)


@rule(aten.maximum.default, aten.minimum.default)
def larger_of_two(node: Node) -> Operator:
    if len(node.inputs) == 1:
        copies = math.prod(node.shape) // max(1, math.prod(node.inputs[0].shape))
        return Indexing(copies, selecting=True)
    if len({value.shape for value in node.inputs}) == 1:
        # Where one of the two moves by a and the other by b, the larger moves by at most sqrt(a^2 + b^2).
        return Concatenation()
    return Unbounded("maximum of two activations of different shapes has no rule yet")
