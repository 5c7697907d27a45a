"""Normalisations, written out: x / sqrt(mean of squares + eps) in its many forms, and global response norm.

What is looked for is a product or a quotient whose one side is an activation (less its mean, perhaps) and whose other
side is computed from nothing but a norm of that same activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from lipcheck.capture import secondary_output
from lipcheck.graph import Graph, Node, Value
from lipcheck.maps.normalisations import Average, Groups, Response, Standardisation
from lipcheck.maps.products import WeightedMean
from lipcheck.operators import Operator
from lipcheck.rules.normalisation import correction
from lipcheck.rules.pointwise import scalar
from lipcheck.steps import Step

aten = torch.ops.aten

# These hand every element on, perhaps as another type of number.
_HANDS_ON = frozenset(
    {
        *(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other),
        *(aten.type_as.default, aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default),
    }
)
_EXPANDS = frozenset({aten.expand.default, aten.expand_as.default, aten.broadcast_to.default})
_MULTIPLIES = frozenset({aten.mul.Tensor, aten.multiply.Tensor})
_DIVIDES = frozenset({aten.div.Tensor, aten.divide.Tensor, aten.true_divide.Tensor})
_ADDS = frozenset({aten.add.Tensor, aten.add.Scalar})
_MEANS = frozenset({aten.mean.dim})
_SUMS = frozenset({aten.sum.dim_IntList})
_NORMS = frozenset({aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim})


@dataclass(frozen=True, slots=True)
class _Scale:
    """What a norm of groups of one activation comes to: sqrt(k n^2 + eps), max(sqrt(k) n, eps) or sqrt(k) n + eps."""

    source: str
    axes: tuple[int, ...]
    share: float
    about_mean: bool
    kind: Literal["root", "largest", "sum"] = "root"
    eps: float = 0.0


def recognise(graph: Graph, steps: dict[str, Step]) -> None:
    """The step of the last call of each written-out normalisation becomes that normalisation of its input."""
    reader = _Reader(graph)
    for node in graph.nodes:
        found = reader.response(node) or reader.normalised(node) or reader.average(node)
        if found is not None:
            source, operator = found
            steps[node.name] = replace(steps[node.name], operator=operator, inputs=(source,))
        elif (weighed := reader.weighted_mean(node)) is not None:
            sources, mean = weighed
            steps[node.name] = replace(steps[node.name], operator=mean, inputs=sources)


class _Reader:
    """Reads the calls behind a value."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = {node.name: node for node in graph.nodes}
        self.shapes = {node.name: node.shape for node in graph.nodes} | {graph.input.name: graph.input.shape}

    def behind(self, argument: Any, *, expanding: bool = False) -> str:
        """The value that an argument is but for its type, its place or, if allowed, copies; "" for a constant."""
        if not isinstance(argument, Value):
            return ""
        name = argument.name
        while (node := self.nodes.get(name)) is not None:
            first = node.arguments.get("self")
            if not isinstance(first, Value):
                break
            same_rank = len(first.shape) == len(node.shape)
            copies = same_rank and expanding and node.op in _EXPANDS
            once = same_rank and node.op in _MULTIPLIES and scalar(node.arguments["other"]) == 1
            if not copies and not once and (node.op not in _HANDS_ON or not _continuous(node)):
                break
            name = first.name
        return name

    def call(self, argument: Any, *, expanding: bool = False) -> Node | None:
        """The call that made the value."""
        return self.nodes.get(self.behind(argument, expanding=expanding))

    # A norm of an activation, kept with axes of length one

    def normalised(self, node: Node) -> tuple[str, Operator] | None:
        """v / s as a quotient, or as a product with 1 / s."""
        given = node.arguments
        if node.op in _DIVIDES:
            pairs = [(given["self"], self.scale(given["other"]))]
        elif node.op in _MULTIPLIES:
            sides = (given["self"], given["other"])
            pairs = [(one, self.reciprocal(other)) for one, other in (sides, sides[::-1])]
        else:
            return None
        for argument, scale in pairs:
            if scale is None or not isinstance(argument, Value) or argument.shape != node.shape:
                continue
            if self.shapes.get(scale.source) != node.shape:
                continue
            centred = self.centred(argument, scale)
            if centred is None:
                continue
            groups = Groups.along(node.shape, scale.axes)
            name = "layer_norm" if scale.about_mean else "rms_norm"
            operator = Standardisation(
                name, groups, node.shape, scale.kind, scale.share, scale.eps, centred, scale.about_mean
            )
            return scale.source, operator
        return None

    def centred(self, argument: Value, scale: _Scale) -> bool | None:
        """Whether a numerator is the normalised activation less its mean; None where it is neither that nor itself."""
        if self.behind(argument) == scale.source:
            return False
        return True if self.less_mean(argument) == (scale.source, scale.axes) else None

    def less_mean(self, argument: Any) -> tuple[str, tuple[int, ...]] | None:
        """x and the axes, where the value is x - mean(x)."""
        node = self.call(argument)
        if node is None or node.op is not aten.sub.Tensor or node.arguments["alpha"] != 1:
            return None
        source = self.behind(node.arguments["self"])
        mean = self.mean_of(node.arguments["other"])
        return mean if mean is not None and source == mean[0] and self.shapes.get(source) == node.shape else None

    def mean_of(self, argument: Any) -> tuple[str, tuple[int, ...]] | None:
        """x and the axes, where the value is x's mean over them, kept: by itself or beside a variance."""
        node = self.call(argument, expanding=True)
        if node is None:
            return None
        if node.op is secondary_output and node.arguments["index"] == 1:
            node = self.call(node.arguments["input"])
            if node is None or not str(node.op).startswith(("aten.var_mean.", "aten.std_mean.")):
                return None
        elif node.op not in _MEANS:
            return None
        axes = self.kept_axes(node)
        return None if axes is None else (self.behind(node.arguments["self"]), axes)

    def kept_axes(self, node: Node) -> tuple[int, ...] | None:
        """The axes of a reduction that keeps them with length one."""
        given = node.arguments
        value = given["self"]
        if not isinstance(value, Value) or not given.get("keepdim"):
            return None
        return Groups.along(value.shape, given.get("dim")).axes

    def reciprocal(self, argument: Any) -> _Scale | None:
        """s, where the value is 1 / s."""
        node = self.call(argument, expanding=True)
        if node is None:
            return None
        given = node.arguments
        if node.op is aten.rsqrt.default:
            return self.rooted(given["self"])
        if node.op is aten.reciprocal.default:
            return self.scale(given["self"])
        if node.op is aten.pow.Tensor_Scalar and given["exponent"] == -0.5:
            return self.rooted(given["self"])
        if node.op is aten.pow.Tensor_Scalar and given["exponent"] == -1:
            return self.scale(given["self"])
        if node.op in _DIVIDES and scalar(given["self"]) == 1:
            return self.scale(given["other"])
        return None

    def scale(self, argument: Any) -> _Scale | None:
        """A divisor: a norm or the root of a variance, perhaps with an eps beside it."""
        node = self.call(argument, expanding=True)
        if node is None:
            return None
        given = node.arguments
        if node.op is aten.sqrt.default or (node.op is aten.pow.Tensor_Scalar and given["exponent"] == 0.5):
            return self.rooted(given["self"])
        if (eps := _least(node)) is not None:
            return _with(self.norm(given["self"]), "largest", eps)
        if node.op in _ADDS and given["alpha"] == 1:
            pairs = ((given["self"], given["other"]), (given["other"], given["self"]))
            for part, other in pairs:
                if isinstance(part, Value) and (eps := scalar(other)) is not None:
                    return _with(self.norm(part), "sum", eps)
        return self.norm(argument)

    def norm(self, argument: Any) -> _Scale | None:
        """sqrt(k) n with nothing beside it."""
        node = self.call(argument, expanding=True)
        if node is None:
            return None
        given = node.arguments
        if node.op in _NORMS and given.get("ord", given.get("p")) in (2, None):
            axes = self.kept_axes(node)
            return None if axes is None else self.about(given["self"], axes, 1.0)
        if str(node.op).startswith("aten.std."):
            return self.deviation(node)
        if node.op is aten.sqrt.default:
            found = self.rooted(given["self"])
            return found if found is not None and found.kind == "root" and found.eps == 0 else None
        return None

    def rooted(self, argument: Any) -> _Scale | None:
        """The root of a mean or a sum of squares, perhaps with an eps below it."""
        node = self.call(argument, expanding=True)
        if node is None:
            return None
        given = node.arguments
        if (eps := _least(node)) is not None:
            return _with(self.squares(given["self"]), "largest", eps**0.5) if eps >= 0 else None
        if node.op in _ADDS and given["alpha"] == 1:
            pairs = ((given["self"], given["other"]), (given["other"], given["self"]))
            for part, other in pairs:
                if isinstance(part, Value) and (eps := scalar(other)) is not None:
                    return _with(self.squares(part), "root", eps)
        return self.squares(argument)

    def squares(self, argument: Any) -> _Scale | None:
        """k n^2: a mean or a sum of squares over some axes, or a variance."""
        node = self.call(argument, expanding=True)
        if node is None:
            return None
        given = node.arguments
        if node.op_name == "getitem" and given["index"] == 0:
            node = self.call(given["input"])
            return self.deviation(node) if node is not None and str(node.op).startswith("aten.var_mean.") else None
        if str(node.op).startswith("aten.var."):
            return self.deviation(node)
        if node.op not in _MEANS | _SUMS:
            return None
        axes = self.kept_axes(node)
        squared = _squared(self.call(given["self"]))
        if axes is None or squared is None:
            return None
        size = Groups.along(given["self"].shape, axes).size
        share = 1 / size if node.op in _MEANS else 1.0
        return self.about(squared, axes, share)

    def about(self, argument: Any, axes: tuple[int, ...], share: float) -> _Scale:
        """A norm of x - mean(x), or of what is none such difference."""
        less = self.less_mean(argument)
        if less is not None and less[1] == axes:
            return _Scale(less[0], axes, share, about_mean=True)
        return _Scale(self.behind(argument), axes, share, about_mean=False)

    def deviation(self, node: Node) -> _Scale | None:
        """torch's own variance or its root."""
        axes = self.kept_axes(node)
        if axes is None:
            return None
        divisor = Groups.along(node.arguments["self"].shape, axes).size - correction(node.arguments)
        source = self.behind(node.arguments["self"])
        return _Scale(source, axes, 1 / divisor, about_mean=True) if divisor > 0 else None

    def average(self, node: Node) -> tuple[str, Operator] | None:
        """The mean beside a variance, which is the second result of one call."""
        if node.op is not secondary_output or node.arguments["index"] != 1:
            return None
        source = self.call(node.arguments["input"])
        if source is None or not str(source.op).startswith(("aten.var_mean.", "aten.std_mean.")):
            return None
        value = source.arguments["self"]
        return value.name, Average(Groups.along(value.shape, source.arguments.get("dim")))

    def response(self, node: Node) -> tuple[str, Operator] | None:
        """x n / (mean of n + eps), n the norms of x over some axes and the mean over others."""
        if node.op not in _MULTIPLIES:
            return None
        sides = (node.arguments["self"], node.arguments["other"])
        for argument, other in (sides, sides[::-1]):
            ratio = self.call(other, expanding=True)
            if ratio is None or ratio.op not in _DIVIDES or not isinstance(argument, Value):
                continue
            norm = self.call(ratio.arguments["self"])
            if norm is None or norm.op not in _NORMS:
                continue
            scale, spread = self.norm(ratio.arguments["self"]), self.mean_and_eps(ratio.arguments["other"])
            if scale is None or spread is None or spread[0] != norm.name or spread[2] <= 0:
                continue
            if set(spread[1]) & set(scale.axes) or scale.source != self.behind(argument):
                continue
            if argument.shape != node.shape or self.shapes.get(scale.source) != node.shape:
                continue
            inner, outer = Groups.along(node.shape, scale.axes), Groups.along(norm.shape, spread[1])
            return scale.source, Response(node.shape, inner, outer, spread[2])
        return None

    def weighted_mean(self, node: Node) -> tuple[tuple[str, ...], Operator] | None:
        """q (k' v) / (q (k' 1) + eps), the ones a last column beside v: the product is cut into both parts."""
        if node.op not in _DIVIDES:
            return None
        above, added = self.call(node.arguments["self"]), self.call(node.arguments["other"])
        if above is None or added is None or added.op not in _ADDS or added.arguments["alpha"] != 1:
            return None
        below, eps = self.call(added.arguments["self"]), scalar(added.arguments["other"])
        if below is None or eps is None or eps <= 0 or not _cuts(above, 0, -1) or not _cuts(below, -1, None):
            return None
        whole = self.call(above.arguments["self"])
        if whole is None or whole.op is not aten.matmul.default or self.call(below.arguments["self"]) is not whole:
            return None
        inner = self.call(whole.arguments["other"])
        if inner is None or inner.op is not aten.matmul.default:
            return None
        turned, beside = self.call(inner.arguments["self"]), self.call(inner.arguments["other"])
        if turned is None or beside is None or not _turns(turned) or not _adds_ones(beside):
            return None
        parts = (whole.arguments["self"], turned.arguments["self"], beside.arguments["self"])
        sources = tuple(self.behind(part) for part in parts)
        shapes = [self.shapes.get(source, ()) for source in sources]
        if len({shape[:-2] for shape in shapes}) > 1 or min(map(len, shapes)) < 2:
            return None
        return sources, WeightedMean(eps)

    def mean_and_eps(self, argument: Any) -> tuple[str, tuple[int, ...], float] | None:
        """mean(n) + eps: n, the axes and eps."""
        node = self.call(argument)
        if node is None or node.op not in _ADDS or node.arguments["alpha"] != 1:
            return None
        mean, eps = self.call(node.arguments["self"]), scalar(node.arguments["other"])
        if mean is None or mean.op not in _MEANS or eps is None or (axes := self.kept_axes(mean)) is None:
            return None
        return self.behind(mean.arguments["self"]), axes, eps


def _cuts(node: Node, start: int, end: int | None) -> bool:
    """Whether a call takes this part of the last axis."""
    given = node.arguments
    if node.op is not aten.slice.Tensor or not isinstance(given["self"], Value) or given["step"] != 1:
        return False
    rank, n = len(given["self"].shape), given["self"].shape[-1]
    first, last = given["start"] or 0, n if given["end"] is None else min(given["end"], n)
    return given["dim"] % rank == rank - 1 and (first % n, last % n) == (start % n, 0 if end is None else end % n)


def _turns(node: Node) -> bool:
    """Whether a call exchanges the last two axes."""
    if node.op in (aten.mT.default, aten.adjoint.default):
        return True
    given, rank = node.arguments, len(node.shape)
    return node.op is aten.transpose.int and {given["dim0"] % rank, given["dim1"] % rank} == {rank - 2, rank - 1}


def _adds_ones(node: Node) -> bool:
    """Whether a call adds a last column of ones."""
    given = node.arguments
    padding = node.op in (aten.pad.default, aten.constant_pad_nd.default)
    return (
        padding and list(given["pad"]) == [0, 1] and given["value"] == 1 and given.get("mode", "constant") == "constant"
    )


def _with(scale: _Scale | None, kind: Literal["root", "largest", "sum"], eps: float) -> _Scale | None:
    """A bare norm with an eps; none is below zero."""
    return replace(scale, kind=kind, eps=eps) if scale is not None and scale.eps == 0 and eps >= 0 else None


def _continuous(node: Node) -> bool:
    """Whether a conversion is one to floating-point numbers."""
    dtype = node.arguments.get("dtype") or getattr(node.arguments.get("other"), "dtype", None)
    return dtype is None or bool(dtype.is_floating_point)


def _least(node: Node) -> float | None:
    """The number that a call clamps to from below, and nothing else."""
    given: Mapping[str, Any] = node.arguments
    if node.op in (aten.clamp_min.default, aten.clamp_min.Tensor):
        return scalar(given["min"])
    if node.op in (aten.clamp.default, aten.clamp.Tensor) and given["max"] is None:
        return scalar(given["min"])
    return None


def _squared(node: Node | None) -> Value | None:
    """x, where a call is x^2."""
    if node is None:
        return None
    given = node.arguments
    value = given.get("self")
    if node.op is aten.square.default or (node.op is aten.pow.Tensor_Scalar and given["exponent"] == 2):
        return value if isinstance(value, Value) else None
    other = given.get("other")
    if node.op in _MULTIPLIES and isinstance(value, Value) and isinstance(other, Value) and value.name == other.name:
        return value
    return None
