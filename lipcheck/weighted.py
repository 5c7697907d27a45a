"""Constants between norms ||D x||, D a positive scale for every element: what each map of a chain does to them.

For any positive D, L(y) bounds ||D_y dy|| per ||D_x dx|| at the input, where D = 1 gives the plain constant. A linear
map A of channels has the norm of D_y A D_x^-1, its weights scaled. For other maps it is enough to know which elements
of the input an element of the output can depend on: a Jacobian of norm s that is a direct sum of blocks, each between
some elements I of the input and some O of the output that meet no other block, has ||D_y J D_x^-1|| <= s times the
largest, over the blocks, of max D_y on O over min D_x on I. A map that takes each output from one input, up to
factors j_e, is the extreme: the sum over the outputs e of an input i of j_e^2 is at most s^2, so what counts is the
largest D_y(e) / D_x(i). The other extreme is one block.

Soundness rests on `followed` alone, whoever chose D and for whatever reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.channels import Map, scaled
from lipcheck.compose import Factor
from lipcheck.graph import Node
from lipcheck.maps.normalisations import Groups, Softmax, Standardisation
from lipcheck.maps.products import GatedHalf, Product
from lipcheck.merging import SPLITTING, Chain, Link
from lipcheck.operators import (
    IDENTITY,
    Concatenation,
    Diagonal,
    Indexing,
    Linear,
    Nonlinear,
    Pointwise,
    Separable,
    Sum,
)
from lipcheck.propagate import evaluate

Scale = Tensor | tuple[Tensor, ...]
"""D of a value, broadcast to its shape: as many axes, each of full length or of one. Of each part of several."""

# Each element of the result is an element of the operand, whatever the values, or a constant.
_MOVING = frozenset(
    (
        *("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint", "mT", "numpy_T"),
        *("ravel", "mH", "roll", "flip", "fliplr", "flipud", "rot90", "pixel_shuffle", "pixel_unshuffle"),
        *("channel_shuffle", "native_channel_shuffle", "slice", "select", "narrow", "diagonal", "expand", "repeat"),
        *("tile", "broadcast_to", "index_select", "unfold", "repeat_interleave"),
        *("clone", "contiguous", "alias", "detach", "lift_fresh_copy"),
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *SPLITTING,
    )
)
# The same for each axis as a whole, however long it is.
_PERMUTING = frozenset(
    ("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint", "mT", "mH")
)
_PADDING = frozenset(("pad", "constant_pad_nd"))
# Each element of the result depends on the element of each operand that stands in its place, as they are broadcast.
_ELEMENTWISE = frozenset(
    (
        *("add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "addcmul", "addcdiv"),
        *("lerp", "where", "maximum", "minimum", "neg", "positive", "dropout", "feature_dropout", "alpha_dropout"),
        *("_to_copy", "to"),
    )
)
_POOLING = tuple(f"{kind}{axes}d" for kind in ("avg_pool", "max_pool") for axes in (1, 2, 3))
# Along the spatial axes, each channel by itself.
_SPATIAL = frozenset(
    (
        *_POOLING,
        *(f"adaptive_{name}" for name in _POOLING),
        *(f"_adaptive_{name}" for name in _POOLING),
        *("max_pool2d_with_indices", "max_pool3d_with_indices"),
    )
)
_REDUCING = frozenset(("mean", "sum", "amax", "amin", "max", "min", "logsumexp"))


def followed(link: Link, place: int, held: Scale, shapes: Mapping[str, tuple[int, ...]]) -> Scale:
    """For every element of the result the least of `held` over the elements of one operand that it can depend on.

    More exactly: over those of its block, where the map is a direct sum of blocks. What is constant may have any
    number. Without knowledge of the map it is one block.
    Shapes: `held` is the scale of the operand at `place`; the result broadcasts to the link's shape.
    """
    rank, shape = len(link.shape), shapes[link.inputs[place]]
    if isinstance(held, tuple):
        index = link.node.arguments["index"] if link.base == "getitem" and link.own else -1
        if 0 <= index < len(held):
            return held[index]
        return torch.stack([part.amin() for part in held]).amin().reshape((1,) * rank)
    if held.numel() == 0 or 0 in shape:
        return torch.ones((1,) * rank, dtype=torch.float64)
    if held.numel() == 1:
        return held.reshape((1,) * rank)
    if is_elementwise(link, place, shape):
        return held.reshape((1,) * (rank - held.dim()) + tuple(held.shape))
    groups = groups_of(link)
    if groups is not None and shape == link.shape:
        least = groups.of(held.expand(shape)).amin(1, keepdim=True)
        return narrowed(groups.back(least.expand(groups.count, groups.size), shape))
    found = _by_operation(link, place, held, shapes) if link.own else None
    return held.amin().reshape((1,) * rank) if found is None else found


def is_elementwise(link: Link, place: int, shape: tuple[int, ...]) -> bool:
    """Whether an element of the operand reaches only the place in the result that broadcasting gives it."""
    if not _broadcasts(shape, link.shape):
        return False
    operator = link.operator
    if isinstance(operator, Product):
        operands = [one for one in (operator.addend, operator.first, operator.second) if one and one.constant is None]
        return len(operands) == len(link.inputs) and operands[place].shape == shape
    if link.elementwise or isinstance(operator, Diagonal | Pointwise):
        return True
    return link.own and link.base in _ELEMENTWISE and isinstance(operator, Sum | Concatenation | Indexing | Nonlinear)


def _broadcasts(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    if len(shape) > len(whole):
        return False
    return all(n in (1, m) for n, m in zip(reversed(shape), reversed(whole), strict=False))


def _by_operation(link: Link, place: int, held: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Scale | None:
    """What the captured operation says of a link that applies just that; None where nothing is known of it."""
    operator, base = link.operator, link.base
    if isinstance(operator, GatedHalf) and base == "glu":
        axis = link.node.arguments["dim"]
        return torch.minimum(*held.chunk(2, axis)) if held.shape[axis] > 1 else held
    moving = isinstance(operator, Indexing) and not operator.selecting and len(link.inputs) == 1
    if moving and base in _PADDING:
        return held if _pads_along_ones(link.node, held) else None
    if (moving and base in _MOVING) or (isinstance(operator, Concatenation) and base in ("cat", "stack")):
        return _moved(link, place, held, shapes)
    axes, kept = reduced(link, shapes[link.inputs[place]])
    if axes is None or len(link.inputs) > 1:
        return None
    return held.amin(axes, keepdim=kept) if axes else held


def groups_of(link: Link) -> Groups | None:
    """The groups of a map that takes each by itself, from its place to the same place."""
    operator = link.operator
    if isinstance(operator, Standardisation) or (isinstance(operator, Softmax) and operator.kind != "sum"):
        groups: Groups = operator.groups
        return groups if math.prod(groups.view) == math.prod(link.shape) else None
    return None


def _moved(link: Link, place: int, held: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Scale:
    """The operation itself, run on the scales; whatever else it reads has none."""
    node = link.node
    given = {value.name: torch.full(value.shape, math.inf, dtype=torch.float64) for value in node.inputs}
    value = node.inputs[place]
    assert value.shape == shapes[link.inputs[place]], f"{link.name} does not read what its node reads"
    given[value.name] = held if link.base in _PERMUTING else held.expand(value.shape).contiguous()
    found = evaluate(node, given, _without_scale)
    if isinstance(found, Tensor):
        return _positive(found)
    return tuple(_positive(part) for part in found)


def _without_scale(name: str, constant: Tensor) -> Tensor:
    return torch.full_like(constant, math.inf) if constant.is_floating_point() else constant


def _positive(part: Tensor) -> Tensor:
    """A scale is positive: what is not was no operand's."""
    return narrowed(torch.where(part > 0, part, math.inf))


def _pads_along_ones(node: Node, held: Tensor) -> bool:
    """Whether a padding touches only axes along which the scale does not vary."""
    widths = list(node.arguments["pad"])
    if len(widths) > 2 * held.dim():
        return False
    return all(held.shape[-1 - n // 2] == 1 or not width for n, width in enumerate(widths))


def narrowed(values: Tensor) -> Tensor:
    """The same numbers, axes along which they do not vary cut to one."""
    for axis in range(values.dim()):
        if values.shape[axis] > 1 and values.numel():
            first = values.narrow(axis, 0, 1)
            if values.stride(axis) == 0 or bool((values == first).all()):
                values = first
    return values


def reduced(link: Link, shape: tuple[int, ...]) -> tuple[tuple[int, ...] | None, bool]:
    """The axes over which an operation takes elements together, and whether they stay; None where that is not known."""
    operator, rank = link.operator, len(shape)
    if not isinstance(operator, Indexing | Separable | Softmax):
        return None, True
    if link.base in _SPATIAL:
        axes = int(link.base.removesuffix("_with_indices")[-2])
        same = rank == len(link.shape) and shape[: rank - axes] == link.shape[: rank - axes]
        return (tuple(range(rank - axes, rank)) if same else None), True
    if link.base in _REDUCING:
        given = link.node.arguments.get("dim")
        kept = bool(link.node.arguments.get("keepdim", False))
        chosen = range(rank) if given is None or given == [] else [given] if isinstance(given, int) else given
        axes_ = tuple(sorted({axis % rank for axis in chosen})) if rank else ()
        expected = tuple(1 if axis in axes_ else n for axis, n in enumerate(shape) if kept or axis not in axes_)
        return (axes_ if expected == link.shape else None), kept
    return None, True


def gain_of(link: Link) -> Tensor | None:
    """The factor by which each element of the result is multiplied last, relative to the largest of its block.

    A normalisation's slope is at least the largest, over its groups, of its largest gain there times the constant of
    what comes before: each group's part of that constant is at most the slope over its own largest gain.
    Shapes: the link's, entries in [0, 1].
    """
    operator, groups = link.operator, groups_of(link)
    if groups is None or not isinstance(operator, Standardisation) or operator.gain is None:
        return None
    gain = operator.gain.double().abs().expand(link.shape)
    largest = groups.of(gain).amax(1, keepdim=True)
    rows = torch.where(largest > 0, groups.of(gain) / largest, 1.0)
    # The quotient is rounded; a part in 2^50 more covers it.
    return (groups.back(rows, link.shape) * (1 + 2.0**-50)).clamp_max(1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """D of every value, and for a map of several inputs side by side one more number for each of them."""

    of: Mapping[str, Scale]
    balance: Mapping[str, tuple[float, ...]]


def ratio(link: Link, place: int, scales: Scales, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """At least the factor by which the operand's constant grows, beside the map's own constant."""
    own, given = scales.of[link.name], followed(link, place, scales.of[link.inputs[place]], shapes)
    owns, givens = (one if isinstance(one, tuple) else (one,) for one in (own, given))
    if len(owns) != len(givens):
        givens = (torch.stack([part.amin() for part in givens]).amin(),) * len(owns)
    gain = _gain(link) if len(owns) == 1 else None
    return max(_largest(a, b, gain) for a, b in zip(owns, givens, strict=True))


def _gain(link: Link) -> Tensor | None:
    """|g| of a scaling by constants, `gain_of` of a normalisation."""
    operator = link.operator
    if isinstance(operator, Diagonal):
        gain = operator.gain.double().abs() * (1 + operator.uncertainty) * (1 + 2.0**-51)
        return gain.reshape((1,) * (len(link.shape) - gain.dim()) + tuple(gain.shape))
    return gain_of(link)


def _largest(own: Tensor, given: Tensor, gain: Tensor | None) -> float:
    """At least the largest own / given, times the gain."""
    if own.numel() == 0 or given.numel() == 0:
        return 0.0
    quotient = own / given if gain is None else own * gain / given
    return rounding.up(float(quotient.max()) * (1 + 2.0**-50), 2) if not _ones(quotient) else 1.0


def _ones(values: Tensor) -> bool:
    return bool((values == 1).all())


def along(scale: Tensor, axis: int, *, largest: bool) -> Tensor:
    """One number per channel: the largest or the least over all positions. Shapes: (channels,) or (1,)."""
    others = tuple(n for n in range(scale.dim()) if n != scale.dim() + axis)
    found = scale
    if others:
        found = scale.amax(others) if largest else scale.amin(others)
    return found.reshape(-1)


def weighed(link: Link, scales: Scales) -> Map | None:
    """D_y A D_x^-1 of a map along channels, its norm to be raised by `rounding.UNDERFLOW` where it is not A itself.

    None where its weights might leave float64's range.
    """
    own = link.map
    assert own is not None
    outputs = along(_whole(scales.of[link.name]), own.axis, largest=True)
    columns = []
    balance = scales.balance.get(link.name, (1.0,) * len(link.inputs))
    for place, name in enumerate(link.inputs):
        least = along(_whole(scales.of[name]), own.axis, largest=False)
        width = link.widths[place] if link.widths else own.inputs
        columns.append((1 / least / balance[place]).expand(width))
    inputs = torch.cat(columns)
    if _ones(outputs) and _ones(inputs):
        return own
    if not float(torch.cat([outputs, inputs]).log2().abs().max()) <= _LARGEST_POWER:
        return None
    return scaled(own, outputs, inputs, 2.0**-51)


# The exponents of scales: weights of single precision times two of them are within the range of float64. What products
# of the smallest weights lose to gradual underflow, 2^-1074 each, stays below `rounding.UNDERFLOW` all together.
_LARGEST_POWER = 350.0


def _whole(scale: Scale) -> Tensor:
    assert isinstance(scale, Tensor), "a map along channels reads one activation"
    return scale


def factors(
    chain: Chain,
    scales: Scales,
    norm: Callable[[Link], float],
    slopes: Mapping[str, tuple[float, ...]],
) -> list[Factor]:
    """The composition of the chain from ||D x|| at its input to the plain norm of its output, which is named "".

    `norm` is a linear link's own norm: for maps along channels that of `weighed`, balance included. `slopes` are the
    logs of the nonlinear links' constants on their ranges, as `propagate` finds them.
    """
    found: list[Factor] = []
    for link in chain.links:
        found += _factors(link, scales, norm, slopes, chain.shapes)
    last = scales.of[chain.output]
    largest = max(
        _largest(torch.ones_like(part), part, None) for part in (last if isinstance(last, tuple) else (last,))
    )
    return [*found, Factor("", (chain.output,), IDENTITY, largest)]


def _factors(
    link: Link,
    scales: Scales,
    norm: Callable[[Link], float],
    slopes: Mapping[str, tuple[float, ...]],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Factor]:
    if link.map is not None:
        return assembled(link, norm(link), (), scales.balance.get(link.name, ()), ())
    ratios = [ratio(link, place, scales, shapes) for place in range(len(link.inputs))]
    own = norm(link) if isinstance(link.operator, Linear) and not isinstance(link.operator, Diagonal) else 1.0
    return assembled(link, own, ratios, (), slopes.get(link.name, ()))


def assembled(
    link: Link, norm: float, ratios: Sequence[float], balance: Sequence[float], slopes: tuple[float, ...]
) -> list[Factor]:
    """The factors of one link: its norm if it is linear, the ratios of its inputs' scales, or the balance of several
    inputs side by side.
    """
    operator, name = link.operator, link.name
    if link.map is not None:
        if len(link.inputs) == 1:
            return [Factor(name, link.inputs, operator, norm)]
        edges = _edges(link, balance)
        joint = Factor(f"{name}/", tuple(edge.name for edge in edges), Concatenation())
        return [*edges, joint, Factor(name, (joint.name,), operator, norm)]
    if isinstance(operator, Linear):
        # Several inputs of a linear node are one activation, read more than once.
        return [Factor(name, link.inputs, IDENTITY, rounding.multiply_up(norm, max(ratios)))]
    if all(by == 1.0 for by in ratios):
        return [Factor(name, link.inputs, operator, slopes=slopes)]
    edges = _edges(link, ratios)
    return [*edges, Factor(name, tuple(edge.name for edge in edges), operator, slopes=slopes)]


def _edges(link: Link, uppers: Sequence[float]) -> list[Factor]:
    """The inputs of a link, each times a number."""
    pairs = enumerate(zip(link.inputs, uppers, strict=True))
    return [Factor(f"{link.name}/{place}", (value,), IDENTITY, by) for place, (value, by) in pairs]
