"""The rows of a report: which steps of the network are listed, and what is said of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.gains import NormLayer, norm_layers
from lipcheck.graph import Graph
from lipcheck.operators import (
    BatchedDense,
    Convolution,
    Dense,
    Diagonal,
    Indexing,
    Operator,
    Padded,
    Separable,
    Weighted,
)
from lipcheck.projections import Projections, projections
from lipcheck.propagate import Propagation
from lipcheck.report import EmbeddingReport, LayerReport
from lipcheck.steps import Step


class Enclosures(Protocol):
    """What is known of the operators' norms."""

    def of(self, operator: Operator) -> Bound:
        """The enclosure of a linear operator's norm."""

    def compared_with(self, operator: Operator) -> dict[str, Bound]:
        """What other methods say of it."""

    def key(self, operator: Operator) -> Hashable:
        """Equal for operators that are the same map."""


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """What has rows beyond the steps' own operators: parts of linear layers, gains of normalisations, tables.

    Shapes: a table has one row for each of its entries.
    """

    needed: frozenset[str]  # the nodes that the output depends on
    found: Projections
    norms: Mapping[str, NormLayer]  # by the node that has the row
    tables: Mapping[str, Dense] = field(default_factory=dict)  # by module path

    @property
    def operators(self) -> Iterator[Operator]:
        """The linear operators whose norms the rows need, beyond those of the steps."""
        for parts in self.found.parts.values():
            yield from (part.operator for part in parts)
        yield from (norm.gain for norm in self.norms.values())
        yield from self.tables.values()

    def inside(self, steps: Sequence[Step]) -> frozenset[str]:
        """The nodes that the rows tell of: those that have one, and normalisations whose gain has it."""
        listed = {step.node.name for step in steps if self.listed(step)}
        return frozenset(listed | {norm.step.node.name for norm in self.norms.values()})

    def listed(self, step: Step) -> bool:
        """Weights, pooling, normalisations, standing batch norms and scalings by more than one number have rows.

        What has no weights has none where the output does not need it, such as the mean within a recognised cluster.
        """
        if step.absorbed_by:
            return False
        operator = step.operator
        if isinstance(operator, Weighted | BatchedDense) or step.node.name in self.norms:
            return True
        if step.node.name not in self.needed:
            return False
        if isinstance(operator, Separable):
            return True
        if isinstance(operator, Diagonal):
            return operator.gain.numel() > 1
        return isinstance(operator, Indexing) and operator.selecting and "pool" in step.node.op_name


def listing(graph: Graph, steps: Sequence[Step], *, heads: bool = False, tables: Mapping[str, Tensor]) -> Listing:
    """What is listed of this network beside its linear steps; with `heads` the projections of attention by head."""
    distinct: dict[Any, tuple[str, Tensor]] = {}
    for path, table in tables.items():
        distinct.setdefault((table.data_ptr(), tuple(table.shape), table.stride()), (path, table))
    dense = {path: Dense(table) for path, table in distinct.values()}
    found = projections(graph, steps, heads=heads)
    return Listing(_needed(graph, steps), found, norm_layers(graph, steps), dense)


def _needed(graph: Graph, steps: Sequence[Step]) -> frozenset[str]:
    """What the output depends on."""
    needed = {graph.output}
    for step in reversed(steps):
        if step.node.name in needed:
            needed.update(step.inputs)
    return frozenset(needed)


def embedding_tables(module: nn.Module) -> dict[str, Tensor]:
    """The weights of the module's embeddings, by path. Shapes: (entries, width)."""
    found = {path: part.weight for path, part in module.named_modules() if isinstance(part, nn.Embedding)}
    return {path: table.detach() for path, table in found.items() if table.is_floating_point() and table.numel()}


def layer_rows(
    steps: Sequence[Step],
    bounds: Enclosures,
    share_of: Callable[[Step], float | None],
    known: Propagation,
    extra: Listing,
) -> tuple[LayerReport, ...]:
    """One row a layer and one a part of it, in the order of the network; a layer applied again at the same size counts
    its calls."""
    rows: dict[Any, LayerReport] = {}
    roles: dict[Any, str] = {}
    for step in (step for step in steps if extra.listed(step)):
        node = step.node
        norm = extra.norms.get(node.name)
        if norm is None:
            row = _row(step, bounds, share_of(step))
        else:
            row = _normalisation_row(step, norm, bounds, share_of, known)
        own = step.operator if norm is None else norm.gain
        key = (row.layer, row.op, row.kind, bounds.key(own), row.merged_with)
        _add(rows, key, row)
        roles[key] = extra.found.roles.get(node.name, "")
        for part in extra.found.parts.get(node.name, ()):
            name = (row.layer, row.op, row.kind, bounds.key(part.operator), part.name)
            of_part = replace(row, bound=bounds.of(part.operator), merged=None, merged_with="", compared={}, share=None)
            _add(rows, name, replace(_sized(of_part, part.operator), part=part.name))
    return tuple(_told_apart(rows, roles))


def _add(rows: dict[Any, LayerReport], key: Any, row: LayerReport) -> None:
    if key in rows:
        known = rows[key]
        share = None if known.share is None or row.share is None else known.share + row.share
        slope = row.slope if known.slope is None else _larger(known.slope, row.slope)
        row = replace(known, calls=known.calls + 1, share=share, slope=slope)
    rows[key] = row


def _larger(one: Bound, other: Bound | None) -> Bound:
    return one if other is None or one.upper >= other.upper else other


def _told_apart(rows: Mapping[Any, LayerReport], roles: Mapping[Any, str]) -> Iterator[LayerReport]:
    """Rows of one module whose weights are projections of their own say which: of a packed one applied in pieces."""
    names = [(row.layer, row.op, row.part) for row in rows.values()]
    for key, row in rows.items():
        role = roles.get(key, "")
        ambiguous = role and not row.part and names.count((row.layer, row.op, "")) > 1
        yield replace(row, part=role) if ambiguous else row


def embedding_rows(bounds: Enclosures, extra: Listing) -> tuple[EmbeddingReport, ...]:
    """The tables, each with its norm as a matrix and its largest row."""
    tables = ((path, table, table.matrix) for path, table in extra.tables.items())
    return tuple(
        EmbeddingReport(path, matrix.shape[0], matrix.shape[1], bounds.of(table), _largest_row(matrix))
        for path, table, matrix in tables
    )


def _largest_row(table: Tensor) -> Bound:
    """An enclosure of the largest norm of a row."""
    top = float(table.abs().max()) if table.numel() else 0.0
    if top == 0:
        return Bound(0.0, 0.0, "norm of a row")
    # In chunks: a table of a hundred thousand rows is not copied to float64 as a whole.
    norms = [float(torch.linalg.vector_norm(rows.double() / top, dim=1).max()) for rows in torch.split(table, 4096)]
    error = 4 * rounding.gamma(table.shape[1] + 8)
    lower = rounding.multiply_down(max(norms) * (1 - error), top)
    return Bound(lower, rounding.multiply_up(max(norms) * (1 + error), top), "norm of a row")


def _row(step: Step, bounds: Enclosures, share: float | None) -> LayerReport:
    node, operator = step.node, step.operator
    row = LayerReport(
        layer=node.layer,
        op=node.op_name,
        kind=_kind(node.op_name, operator),
        bound=bounds.of(operator),
        compared=bounds.compared_with(operator),
        merged=None if step.merged is None else bounds.of(step.merged),
        merged_with=", ".join(step.merged_with),
        share=share,
    )
    before, after = node.inputs[0].shape, node.shape
    if isinstance(operator, Weighted | BatchedDense):
        return _sized(row, operator)
    if isinstance(operator, Diagonal):
        return _scaling_row(row, operator, before)
    return replace(
        row,
        kernel=_window(node.arguments, "kernel_size", len(before) - 2),
        stride=_window(node.arguments, "stride", len(before) - 2),
        input_size=before[2:],
        output_size=after[2:],
        channels=_channels(before, after),
    )


def _normalisation_row(
    step: Step, norm: NormLayer, bounds: Enclosures, share_of: Callable[[Step], float | None], known: Propagation
) -> LayerReport:
    """The norm of the gain, and the slope of the whole normalisation: on the ranges at hand, and everywhere."""
    gain = bounds.of(norm.gain)
    shares = [share_of(step), share_of(norm.step)] if norm.outside else [share_of(step)]
    by_position = norm.kind in ("group_norm", "instance_norm")
    times = rounding.log_up(gain.upper) if norm.outside else 0.0
    on_ranges = known.slopes.get(norm.step.node.name, (math.inf,))[0]
    return LayerReport(
        layer=step.node.layer,
        op=step.node.op_name,
        kind=norm.kind,
        bound=gain,
        share=None if None in shares else sum(share for share in shares if share is not None),
        channels=(norm.channels, norm.channels),
        groups=norm.groups,
        input_size=norm.size[2:] if by_position else (),
        output_size=norm.size[2:] if by_position else (),
        slope=_slope(rounding.log_multiply_up(on_ranges, times), "on the ranges of its input"),
        slope_everywhere=_slope(rounding.log_multiply_up(norm.everywhere(), times), "on every input"),
    )


def _slope(log: float, method: str) -> Bound:
    """At least exp of the log."""
    try:
        return Bound(0.0, rounding.up(math.exp(log) * (1 + rounding.EVALUATION), 2), method)
    except OverflowError:
        return Bound(0.0, math.inf, method)


def _sized(row: LayerReport, operator: Weighted | BatchedDense) -> LayerReport:
    """The row with its layer's geometry."""
    if isinstance(operator, Padded):
        inner = _convolution_row(row, operator.convolution)
        return replace(inner, padding_mode=operator.mode, input_size=operator.input_size)
    if isinstance(operator, Convolution):
        return _convolution_row(row, operator)
    if isinstance(operator, BatchedDense):
        parts, outputs, inputs = operator.matrices.shape
        return replace(row, channels=(parts * inputs, parts * outputs), groups=parts)
    return replace(row, channels=(operator.matrix.shape[1], operator.matrix.shape[0]))


def _convolution_row(row: LayerReport, operator: Convolution) -> LayerReport:
    outputs, inputs = operator.weight.shape[0], operator.input_channels
    sizes = operator.input_size, operator.output_size
    return replace(
        row,
        kernel=operator.kernel,
        stride=operator.stride,
        dilation=operator.dilation,
        groups=operator.groups,
        channels=(outputs, inputs) if operator.transposed else (inputs, outputs),
        padding_mode="circular" if operator.circular else "zeros",
        input_size=sizes[1] if operator.transposed else sizes[0],
        output_size=sizes[0] if operator.transposed else sizes[1],
    )


def _scaling_row(row: LayerReport, operator: Diagonal, shape: tuple[int, ...]) -> LayerReport:
    """Channels are what the gain differs along; the other axes are positions."""
    gain = (1,) * (len(shape) - operator.gain.dim()) + tuple(operator.gain.shape)
    axes = [axis for axis, size in enumerate(gain) if size > 1]
    if len(axes) != 1:
        return replace(row, input_size=shape[2:], output_size=shape[2:], channels=_channels(shape, shape))
    rest = tuple(size for axis, size in enumerate(shape) if axis not in (0, axes[0]))
    last = axes[0] == len(shape) - 1
    sizes = () if last else rest
    return replace(row, input_size=sizes, output_size=sizes, channels=(gain[axes[0]],) * 2)


def _channels(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, int] | None:
    return (before[1], after[1]) if len(before) > 1 and len(after) > 1 else None


def _window(arguments: Any, name: str, axes: int) -> tuple[int, ...]:
    given = arguments.get(name)
    if given is None or given == []:
        return (
            () if name == "kernel_size" or "kernel_size" not in arguments else _window(arguments, "kernel_size", axes)
        )
    values = (given,) if isinstance(given, int) else tuple(given)
    return values * axes if len(values) == 1 else values


def _kind(op: str, operator: Operator) -> str:
    """What people call the layer."""
    if isinstance(operator, Padded):
        operator = operator.convolution
    if isinstance(operator, Convolution):
        return f"conv_transpose{operator.axes}d" if operator.transposed else f"conv{operator.axes}d"
    if isinstance(operator, Dense):
        return "linear"
    if isinstance(operator, Diagonal):
        return next((name for name in ("batch_norm", "instance_norm") if name in op), "scale")
    if "max_pool" in op:
        return "max_pool"
    return "avg_pool" if "avg_pool" in op else op.split(".")[1]
