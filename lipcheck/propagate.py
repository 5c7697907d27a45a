"""Ranges forward through the graph, operation by operation, and the constants that nonlinear nodes have on them.

Boxes go by interval arithmetic, balls by each node's own Lipschitz constant around the image of their centre; each is
cut down by the other, and both start afresh behind what is bounded: sigmoid, softmax, clamps, normalisations.
Source: maths, section 6; interval bound propagation: Gowal et al., ICCV 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.graph import Graph, Node, Value
from lipcheck.operators import (
    IDENTITY,
    BatchedDense,
    Concatenation,
    Convolution,
    Dense,
    Diagonal,
    Indexing,
    Linear,
    Nonlinear,
    Operator,
    Padded,
    Pointwise,
    Separable,
    Sum,
)
from lipcheck.ranges import Range, log_norm
from lipcheck.rules.affine import padding
from lipcheck.rules.normalisation import type_eps
from lipcheck.steps import Step

aten = torch.ops.aten
_SLOP = rounding.EVALUATION
_LOG_SLOP = rounding.log_up(_SLOP)
# Changes of type and place: the identity in real arithmetic.
_CONVERSIONS = frozenset(
    {
        *(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device),
        *(aten.to.other, aten.type_as.default),
    }
)
# A node with several results has the range of each.
Ranges = Range | tuple[Range, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Propagation:
    """The logs of every nonlinear step's constants, one for each of its inputs, and why some are infinite, by node."""

    slopes: Mapping[str, tuple[float, ...]]
    reasons: Mapping[str, str]
    output: Range | None = None


Upper = Callable[[Linear], float]
# A step, the ranges so far, the norms of linear operators and the step's own constants, to the range of its result.
Image = Callable[[Step, Mapping[str, Ranges], Upper, tuple[float, ...]], Ranges]


def propagate(
    graph: Graph,
    steps: Sequence[Step],
    upper: Upper,
    domain: Range,
    image: Image | None = None,
    *,
    whole: bool = True,
) -> Propagation:
    """The constants of all nonlinear steps on the ranges that the domain leaves them.

    `upper` gives a linear operator's certified norm. Ranges are forgotten once nobody reads them; without `whole`
    only those are followed on which some constant depends, and the output's may stay unknown. `image` may take the
    place of `image_of`: with wider ranges that are quicker to have.
    Shapes: `domain` has the shape of the graph's input.
    """
    read = None if whole else _read(steps)
    ranges: dict[str, Ranges] = {graph.input.name: domain.tightened()}
    slopes: dict[str, tuple[float, ...]] = {}
    reasons: dict[str, str] = {}
    last = _last_readers(graph, steps)
    with torch.no_grad():
        for step in steps:
            node, operator = step.node, step.operator
            inputs = [ranges[name] for name in step.inputs]
            if isinstance(operator, Nonlinear) and all(isinstance(one, Range) for one in inputs):
                known = [one for one in inputs if isinstance(one, Range)]
                slopes[node.name] = operator.slopes(known)
                if math.inf in slopes[node.name] and (reason := operator.unbounded_because(known)):
                    reasons[node.name] = reason
            if read is None or node.name in read:
                ranges[node.name] = (image or image_of)(step, ranges, upper, slopes.get(node.name, ()))
            else:
                ranges[node.name] = Range.unknown(node.shape)
            for name in last.get(node.name, ()):
                if name != graph.output:
                    ranges.pop(name, None)
    found = ranges.get(graph.output)
    return Propagation(slopes, reasons, found if isinstance(found, Range) else None)


def _read(steps: Sequence[Step]) -> set[str]:
    """The values on whose ranges some constant depends."""
    found: set[str] = set()
    for step in reversed(steps):
        operator = step.operator
        if step.node.name in found or (isinstance(operator, Nonlinear) and operator.is_local):
            found.update(step.inputs)
            found.update(value.name for value in step.node.inputs)
    return found


def _last_readers(graph: Graph, steps: Sequence[Step]) -> dict[str, list[str]]:
    """For each node the values that nobody reads after it."""
    last: dict[str, str] = {}
    for step in steps:
        for name in (*step.inputs, *(value.name for value in step.node.inputs)):
            last[name] = step.node.name
    found: dict[str, list[str]] = {}
    for name, reader in last.items():
        found.setdefault(reader, []).append(name)
    return found


def image_of(step: Step, ranges: Mapping[str, Ranges], upper: Upper, slopes: tuple[float, ...]) -> Ranges:
    """The range of a step's result: of each part where there are several."""
    node, operator = step.node, step.operator
    own = [ranges[value.name] for value in node.inputs]
    if node.op_name == "getitem":
        (source,) = own
        return source[node.arguments["index"]] if isinstance(source, tuple) else source
    if any(isinstance(one, tuple) for one in own):
        return Range.unknown(node.shape)
    given = {value.name: one for value, one in zip(node.inputs, own, strict=True) if isinstance(one, Range)}
    if isinstance(operator, Nonlinear):
        inputs = [one for name in step.inputs if isinstance(one := ranges[name], Range)]
        found = operator.image(inputs, node.shape)
        if _foreign(node):
            return found.tightened()
        recognised = step.inputs != tuple(value.name for value in node.inputs)
        # A curve is accurate where the node's own call may cancel.
        known = recognised or (isinstance(operator, Pointwise) and operator.curve is not None)
        value = operator.value if known else None
        moved = _moved(node, given, inputs, slopes, keeps_rows=isinstance(operator, Pointwise), value=value)
        return found.meet(moved).tightened() if moved is not None else found.tightened()
    if _foreign(node):
        return Range.unknown(node.shape)
    if node.op in _CONVERSIONS and operator is IDENTITY:
        return given[node.inputs[0].name]
    if step.absorbed_by and node.op is aten.pad.default:
        # The network's padding belongs to the convolution behind it; its own result still holds the copies.
        operator = padding(node)
    if isinstance(operator, Indexing | Concatenation):
        return _ordered(node, operator, given)
    if isinstance(operator, Separable) and _mixed(operator):
        return _affine(node, operator, given, upper, _by_moduli(operator))
    if isinstance(operator, Diagonal | Separable | Sum):
        return _affine(node, operator, given, upper, _by_differences)
    if isinstance(operator, Dense | BatchedDense | Convolution | Padded):
        return _affine(node, operator, given, upper, _by_magnitudes)
    return Range.unknown(node.shape)


def _foreign(node: Node) -> bool:
    """Whether a plugin's operation is called: what it does in float64 is not known, so only its map tells its range."""
    schema = getattr(node.op, "_schema", None)
    return schema is not None and not str(schema.name).startswith("aten::")


def evaluate(node: Node, given: Mapping[str, Tensor], weigh: Callable[[str, Tensor], Tensor] | None = None) -> Any:
    """The node's operation in float64 on these activations, by name; `weigh` may change its constant tensors.

    Shapes: as in the network, batch axis of one included.
    """

    def real(argument: Any, name: str) -> Any:
        if isinstance(argument, Value):
            value = given[argument.name]
            # A view needs the layout that the network has; expanded ranges have none.
            return value.contiguous() if "view" in node.op_name else value
        if isinstance(argument, Tensor):
            tensor = argument.double() if argument.is_floating_point() else argument
            return tensor if weigh is None else weigh(name, tensor)
        if isinstance(argument, list | tuple):
            return [real(part, name) for part in argument]
        return argument

    arguments = {name: real(argument, name) for name, argument in node.arguments.items()}
    if node.op is aten.rms_norm.default and arguments["eps"] is None:
        arguments["eps"] = type_eps(node.inputs[0].dtype)  # that of the network's numbers, not of these
    schema = getattr(node.op, "_schema", None)
    if schema is None:
        return node.op(*arguments.values())
    # A view depends on how its operand lies in memory, which is not how the network's does.
    op = aten.reshape.default if node.op in (aten.view.default, aten._unsafe_view.default) else node.op
    positional = [arguments[p.name] for p in schema.arguments if not p.kwarg_only]
    found = op(*positional, **{p.name: arguments[p.name] for p in schema.arguments if p.kwarg_only})
    # Of several different results the first is the node's: behind it stand statistics or places.
    return found[0] if isinstance(found, tuple) and len(schema.returns) > 1 else found


def _constants(node: Node) -> bool:
    """Whether some constant of the node is a weight, in which case it is evaluated with it."""
    return any(isinstance(argument, Tensor) for argument in node.arguments.values())


def _moved(
    node: Node,
    given: Mapping[str, Range],
    inputs: Sequence[Range],
    slopes: Sequence[float],
    *,
    keeps_rows: bool,
    value: Callable[[Sequence[Tensor]], Tensor | None] | None = None,
) -> Range | None:
    """The ball around the image of the centres, by the constants; None where some input has no ball.

    `value` maps the inputs' centres where the node's own call, on `given`, does not: in a recognised cluster.
    """
    centers = {name: one.center for name, one in given.items()}
    known = inputs if value else given.values()
    if any(one.center is None for one in known) or any(math.isinf(r) and r > 0 for r in slopes):
        return None
    reach = [rounding.log_multiply_up(one.radius, by) for one, by in zip(inputs, slopes, strict=True)]
    if not all(value < math.inf for value in reach):
        return None
    center = value(_centers(inputs)) if value else evaluate(node, {n: c for n, c in centers.items() if c is not None})
    if not isinstance(center, Tensor) or not bool(torch.isfinite(center).all()):
        return None
    moved = [rounding.log_multiply_up(log_norm(c), by) for c, by in zip(_centers(inputs), slopes, strict=True)]
    slop = rounding.log_multiply_up(_LOG_SLOP, rounding.log_sum_up(log_norm(center), *moved))
    radius = rounding.log_sum_up(*reach, slop)
    rows = rounding.log_sum_up(rounding.log_multiply_up(inputs[0].rows, slopes[0]), slop) if keeps_rows else radius
    return Range.unknown(node.shape).with_ball(center, radius, min(rows, radius))


def _centers(inputs: Sequence[Range]) -> list[Tensor]:
    return [one.center for one in inputs if one.center is not None]


def _ordered(node: Node, operator: Operator, given: Mapping[str, Range]) -> Ranges:
    """What picks or moves elements keeps their order: the ends of the box are the images of its ends."""
    if all(one.is_unknown for one in given.values()):
        return _shaped(node, given)
    lows = evaluate(node, {name: one.low for name, one in given.items()})
    highs = evaluate(node, {name: one.high for name, one in given.items()})
    # A row of the result holds no input more often than the whole result does.
    scale = rounding.log_up(rounding.sqrt_up(operator.copies)) if isinstance(operator, Indexing) else 0.0
    # What is read twice is there twice.
    balls = [given[value.name].radius for value in node.inputs]
    radius = rounding.log_sum_up(*(rounding.log_multiply_up(b, b) for b in balls)) / 2 if len(balls) > 1 else balls[0]
    radius = rounding.log_multiply_up(radius, scale)
    known = all(one.center is not None for one in given.values())
    centers = evaluate(node, {n: one.center for n, one in given.items() if one.center is not None}) if known else None
    parts = [(lows, highs, centers)] if isinstance(lows, Tensor) else None
    if parts is None:
        parts = list(zip(lows, highs, centers if centers is not None else [None] * len(lows), strict=True))
    selecting = isinstance(operator, Indexing) and operator.selecting
    rows = _rows(node, given, parts[0][0]) if known and not selecting else math.inf
    rows = rounding.log_multiply_up(rows, scale, rounding.log_up(rounding.sqrt_up(len(balls))))
    results = tuple(
        # Around a constant that is not finite there is no ball.
        Range(low, high, center, radius, min(rows, radius)).tightened()
        if center is not None and bool(torch.isfinite(center).all())
        else Range(low, high)
        for low, high, center in parts
    )
    return results[0] if isinstance(lows, Tensor) else results


def _shaped(node: Node, given: Mapping[str, Range]) -> Ranges:
    """Unknown ranges of the results' shapes."""
    shapes = shapes_of(node, given)
    return tuple(map(Range.unknown, shapes)) if shapes else Range.unknown(node.shape)


def shapes_of(node: Node, given: Mapping[str, Range]) -> tuple[tuple[int, ...], ...]:
    """The shapes of a node's several results; none where it has one."""
    returns = list(getattr(getattr(node.op, "_schema", None), "returns", ()))
    if len(returns) == 1 and str(returns[0].type) == "Tensor":
        return ()
    results = evaluate(node, {name: torch.empty(one.shape, device="meta") for name, one in given.items()}, _on_meta)
    return () if isinstance(results, Tensor) else tuple(tuple(result.shape) for result in results)


def _on_meta(name: str, constant: Tensor) -> Tensor:
    return constant.to("meta")


def _rows(node: Node, given: Mapping[str, Range], example: Tensor) -> float:
    """The rows' bound where every row of the result is a part of one row of the input; inf where it is not.

    The operation itself, run on the rows' numbers, says so.
    """
    if len(given) != 1 or example.dim() == 0:
        return max((one.rows for one in given.values()), default=math.inf) if _beside(node, given) else math.inf
    ((name, one),) = given.items()
    if math.isinf(one.rows) or not one.shape:
        return one.rows
    evaluated = _numbered(node, name, one.shape)
    parts = [evaluated] if isinstance(evaluated, Tensor) else list(evaluated)
    return one.rows if all(part.dim() and bool((part == part[..., :1]).all()) for part in parts) else math.inf


def _numbered(node: Node, name: str, shape: tuple[int, ...]) -> Any:
    """The image of an input whose rows each hold their own number."""
    rows = math.prod(shape[:-1])
    numbers = torch.arange(1, rows + 1, dtype=torch.float64).reshape(*shape[:-1], 1).expand(shape)
    return evaluate(node, {name: numbers})


def _beside(node: Node, given: Mapping[str, Range]) -> bool:
    """Whether several inputs stand beside each other with whole rows."""
    dim = node.arguments.get("dim", 0)
    rank = len(node.shape)
    return node.op in (aten.cat.default, aten.stack.default) and dim % max(rank, 1) != rank - 1 and len(given) > 1


_Half = Callable[[Node, dict[str, Tensor], dict[str, Tensor]], Tensor]


def _affine(
    node: Node, operator: Operator, given: Mapping[str, Range], upper: Callable[[Linear], float], half: _Half
) -> Range:
    """A x + b: the box from its middle and |A| times its halves, the ball from the norm of A."""
    boxed = Range.unknown(node.shape)
    if all(one.bounded for one in given.values()):
        middles = {name: (one.low + one.high) / 2 for name, one in given.items()}
        halves = {name: torch.maximum(one.high - middles[name], middles[name] - one.low) for name, one in given.items()}
        # What computing A m + b and |A| h may be off by is a part in 2^30 of |A| |m| + |b|, and is added there.
        widened = {name: h * (1 + _SLOP) + middles[name].abs() * _SLOP for name, h in halves.items()}
        middle, width = evaluate(node, middles), half(node, widened, middles)
        boxed = Range.box(middle - width, middle + width)
    weights = (
        [rounding.log_up(weight) for weight in operator.weights]
        if isinstance(operator, Sum)
        else [rounding.log_up(upper(operator))]
        if isinstance(operator, Linear)
        else [math.inf]
    )
    inputs = [given[value.name] for value in node.inputs]
    # A matrix on the left mixes rows, one on the right maps each by itself.
    left = not isinstance(node.arguments.get("self", node.inputs[0]), Value)
    whole = (
        isinstance(operator, Dense) and not (left and node.op in (aten.mm.default, aten.matmul.default))
    ) or (isinstance(operator, Diagonal) and operator.gain.numel() == 1)  # fmt: skip
    moved = _moved(node, given, inputs[: len(weights)], weights, keeps_rows=whole)
    if moved is not None and isinstance(operator, Sum) and all(one.shape == node.shape for one in inputs):
        rows = [rounding.log_multiply_up(one.rows, by) for one, by in zip(inputs, weights, strict=True)]
        slop = rounding.log_multiply_up(_LOG_SLOP, rounding.log_sum_up(*(log_norm(c) for c in _centers(inputs))))
        moved = moved.with_ball(moved.center, moved.radius, min(moved.radius, rounding.log_sum_up(*rows, slop)))
    return boxed.tightened() if moved is None else boxed.meet(moved).tightened()


def _by_magnitudes(node: Node, halves: dict[str, Tensor], middles: dict[str, Tensor]) -> Tensor:
    """|A| h + 2^-30 |b|, with the weights' magnitudes in place of the weights."""
    biases = ("bias",) if "bias" in node.arguments else ("self",) if node.op is aten.addmm.default else ()

    def weigh(name: str, constant: Tensor) -> Tensor:
        return constant.abs() * (_SLOP if name in biases else 1.0) if constant.is_floating_point() else constant

    weighed: Tensor = evaluate(node, halves, weigh)
    return weighed * (1 + _SLOP)


def _by_differences(node: Node, halves: dict[str, Tensor], middles: dict[str, Tensor]) -> Tensor:
    """|A| h + 2^-30 |b| where the entries in each row of A have one sign: |f(h) - f(0)|, for each input by itself."""
    zeros = {name: torch.zeros_like(half) for name, half in halves.items()}
    offset = evaluate(node, zeros)
    width: Tensor = offset.abs() * _SLOP
    for name, half in halves.items():
        width = width + (evaluate(node, zeros | {name: half}) - offset).abs() * (1 + _SLOP)
    return width


def _mixed(operator: Separable) -> bool:
    """Whether some row of the map has entries of both signs, as in cubic interpolation."""
    return any(bool(((matrix < 0).any(1) & (matrix > 0).any(1)).any()) for matrix in operator.matrices)


def _by_moduli(operator: Separable) -> _Half:
    """|A| h + 2^-30 |b| from the moduli of the matrices, where those are what the node applies to its last axes."""

    def half(node: Node, halves: dict[str, Tensor], middles: dict[str, Tensor]) -> Tensor:
        ((name, width),) = halves.items()
        offset: Tensor = evaluate(node, {name: torch.zeros_like(width)})
        if width.shape[-len(operator.matrices) :] == tuple(matrix.shape[1] for matrix in operator.matrices):
            applied = _along_last_axes(operator.matrices, middles[name])
            moduli = _along_last_axes([matrix.abs() for matrix in operator.matrices], width)
            error = evaluate(node, middles) - offset - applied if applied.shape == offset.shape else math.inf
            if bool((torch.as_tensor(error).abs() <= _SLOP * (middles[name].abs().max() + offset.abs().max())).all()):
                return moduli * (1 + _SLOP) + offset.abs() * _SLOP
        return torch.full_like(offset, math.inf)

    return half


def _along_last_axes(matrices: Sequence[Tensor], x: Tensor) -> Tensor:
    """The Kronecker product of the matrices, applied to the last axes of x, in their order."""
    for place, matrix in enumerate(matrices):
        axis = place - len(matrices)
        x = (x.movedim(axis, -1) @ matrix.double().T).movedim(-1, axis)
    return x
