"""Dense layers and convolutions seen by their channels: scaled on either side, merged, and what that rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from lipcheck import rounding
from lipcheck.operators import (
    Convolution,
    Dense,
    Diagonal,
    Padded,
    Weighted,
    multiplies_safely,
    scaled_rows,
    uncertainty_of,
    weights_of,
)

# Sums and products of non-negative numbers that bound errors are themselves computed; this covers what they round.
_SLOP = 1 + rounding.EVALUATION
# Products of gains stay between this and its reciprocal.
_LEAST = 2.0**-900


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """A linear map along one axis, its weights known to within `error` beside the operator's relative uncertainty.

    `axis` is where the channels are, counted from the end, in what it reads and in what it makes; 0 stands for any, in
    a Diagonal of one number.
    Shapes: `error` has the weights' shape, entries >= 0; None stands for zeros. The gain of a Diagonal is a vector of
        the channels, or of one number.
    """

    operator: Weighted | Diagonal
    axis: int
    error: Tensor | None = None

    @property
    def inputs(self) -> int:
        """How many channels it reads; 0 where any number will do."""
        return channels(self.operator)[0]

    @property
    def outputs(self) -> int:
        """How many channels it makes; 0 where any number will do."""
        return channels(self.operator)[1]

    def errors(self) -> Tensor:
        """What each entry may be off by at most, in all."""
        assert not isinstance(self.operator, Diagonal)
        relative = weights_of(self.operator).detach().double().abs() * uncertainty_of(self.operator)
        return relative if self.error is None else relative + self.error

    def blur(self) -> float:
        """At least the norm of any map whose entries are within `error`: Schur's test of the row and column sums."""
        if self.error is None or isinstance(self.operator, Diagonal):
            return 0.0
        inner = self.operator.convolution if isinstance(self.operator, Padded) else self.operator
        groups = inner.groups if isinstance(inner, Convolution) else 1
        # Shapes: (groups, outputs, inputs, taps).
        parts = self.error.reshape(groups, self.error.shape[0] // groups, self.error.shape[1], -1)
        if parts.numel() == 0:
            return 0.0
        rows, columns = float(parts.sum((2, 3)).max()), float(parts.sum((1, 3)).max())
        copies = self.operator.copies if isinstance(self.operator, Padded) else 1
        return rounding.up(math.sqrt(rows) * math.sqrt(columns) * rounding.sqrt_up(copies) * _SLOP, 4)


def channels(operator: Weighted | Diagonal) -> tuple[int, int]:
    """The channels of the network's input and output; of a diagonal of one number 0, which stands for any."""
    if isinstance(operator, Padded):
        return channels(operator.convolution)
    if isinstance(operator, Convolution):
        found = operator.input_channels, operator.weight.shape[0]
        return found[::-1] if operator.transposed else found
    if isinstance(operator, Dense):
        return operator.matrix.shape[1], operator.matrix.shape[0]
    count = operator.gain.numel()
    return (0, 0) if count == 1 else (count, count)


def scaled_columns(operator: Weighted, gain: Tensor, uncertainty: float) -> Weighted:
    """`operator` after diag(gain): each input channel multiplied by its gain, in float64.

    Shapes: `gain` has one entry per input channel of what the network applies, or one for all.
    """
    if isinstance(operator, Padded):
        inner = scaled_columns(operator.convolution, gain, uncertainty)
        assert isinstance(inner, Convolution)
        return replace(operator, convolution=inner)
    if isinstance(operator, Dense):
        rounded = operator.uncertainty + uncertainty + 2.0**-52
        return replace(operator, matrix=operator.matrix.double() * gain.double(), uncertainty=rounded)
    # The inputs of a convolution are the outputs of its adjoint.
    turned = scaled_rows(replace(operator, transposed=not operator.transposed), gain, uncertainty)
    assert isinstance(turned, Convolution)
    return replace(turned, transposed=operator.transposed)


def scaled(given: Map, outputs: Tensor | None, inputs: Tensor | None, uncertainty: float = 0.0) -> Map:
    """diag(outputs) A diag(inputs). Shapes: one entry per channel, or one for all; None for ones.

    `uncertainty` is the relative error of either vector. No product may leave float64's normal range.
    """
    operator, error = given.operator, given.error
    assert not isinstance(operator, Diagonal)
    for gain, scale in ((outputs, scaled_rows), (inputs, scaled_columns)):
        if gain is None:
            continue
        if error is not None:
            error = weights_of(scale(_holding(operator, error), gain.abs(), 0.0)) * (_SLOP + uncertainty)
        operator = scale(operator, gain, uncertainty)
    return Map(operator, given.axis, error)


def _holding(operator: Weighted, weights: Tensor) -> Weighted:
    """The same geometry with other weights, taken as exact."""
    if isinstance(operator, Padded):
        inner = _holding(operator.convolution, weights)
        assert isinstance(inner, Convolution)
        return replace(operator, convolution=inner)
    if isinstance(operator, Dense):
        return replace(operator, matrix=weights, uncertainty=0.0)
    return replace(operator, weight=weights, uncertainty=0.0)


# Merging


def composed(second: Map, first: Map) -> Map | None:
    """`second` after `first` as one map, None where that is no map of the same kind.

    What lies between them must be their channels only: a map that acts at each position by itself commutes with zero
    padding, with strides and with any padding that copies positions.
    """
    if second.axis and first.axis and second.axis != first.axis:
        return None
    if first.outputs and second.inputs and first.outputs != second.inputs:
        return None
    if isinstance(second.operator, Diagonal):
        return _after_diagonal(first, second)
    if isinstance(first.operator, Diagonal):
        if not multiplies_safely(second.operator, first.operator.gain):
            return None
        return scaled(second, None, first.operator.gain.double(), first.operator.uncertainty)
    if isinstance(second.operator, Dense) and isinstance(first.operator, Dense):
        matrix, error = _product(_held(second), _held(first))
        return Map(Dense(matrix), first.axis, error)
    if isinstance(second.operator, Dense) or isinstance(first.operator, Dense):
        return None
    if isinstance(second.operator, Convolution) and second.operator.transposed:
        return None
    if _is_pointwise(first.operator):
        # The kernel behind reads sums over the channels in front, at one position each.
        held, error = _held(second)
        matrix, matrix_error = (part.flatten(1) for part in _held(first))
        moved = _product((held.movedim(1, -1), error.movedim(1, -1)), (matrix, matrix_error))
        return _with_weights(second, *(part.movedim(-1, 1).contiguous() for part in moved))
    if isinstance(second.operator, Convolution) and _is_pointwise(second.operator, strided=True):
        return _sampled(second, second.operator, first)
    return None


def _after_diagonal(first: Map, second: Map) -> Map | None:
    assert isinstance(second.operator, Diagonal)
    gain, uncertainty = second.operator.gain.double(), second.operator.uncertainty
    if isinstance(first.operator, Diagonal):
        known = first.operator.uncertainty
        together = (1 + known) * (1 + uncertainty) * (1 + 2.0**-52) - 1
        held = first.operator.gain.double()
        product = held * gain
        size = product.abs()
        # What underflows would be taken for a gain of zero.
        lost = ~((size >= _LEAST) & (size <= 1 / _LEAST)) & (held != 0) & (gain != 0)
        if bool(lost.any()):
            return None
        return Map(Diagonal(product, together * _SLOP + 2.0**-60), first.axis or second.axis)
    return scaled(first, gain, None, uncertainty) if multiplies_safely(first.operator, gain) else None


def _sampled(second: Map, behind: Convolution, first: Map) -> Map | None:
    """A kernel of one tap, perhaps strided, behind any convolution: it mixes the channels and drops positions.

    Beyond the last position of what it reads it makes zeros, where the convolution would go on.
    """
    if any(reach > size for reach, size in zip(behind.reach, behind.input_size, strict=True)):
        return None
    inner = first.operator.convolution if isinstance(first.operator, Padded) else first.operator
    assert isinstance(inner, Convolution)
    if inner.transposed or inner.output_size != behind.input_size or (inner.circular and not _is_pointwise(behind)):
        return None
    held, error = _held(first)
    matrix, matrix_error = (part.flatten(1) for part in _held(second))
    weight, error = _product((matrix, matrix_error), (held.flatten(1), error.flatten(1)))
    found = _with_weights(first, weight.reshape(-1, *held.shape[1:]), error.reshape(-1, *held.shape[1:]))
    stride = tuple(s * t for s, t in zip(inner.stride, behind.stride, strict=True))
    operator = found.operator
    if isinstance(operator, Padded):
        inner = replace(operator.convolution, stride=stride, output_size=behind.output_size)
        return replace(found, operator=replace(operator, convolution=inner))
    assert isinstance(operator, Convolution)
    return replace(found, operator=replace(operator, stride=stride, output_size=behind.output_size))


def _with_weights(given: Map, weight: Tensor, error: Tensor) -> Map:
    """The same geometry with weights that every output reads from every input, within `error`."""
    operator = given.operator
    assert isinstance(operator, Convolution | Padded)
    inner = operator.convolution if isinstance(operator, Padded) else operator
    inner = replace(inner, weight=weight, groups=1, uncertainty=0.0)
    return Map(replace(operator, convolution=inner) if isinstance(operator, Padded) else inner, given.axis, error)


def _product(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A B in float64 and the error of each entry, A and B being known to within theirs.

    |fl(A B) - A B| <= gamma(n) |A| |B| for n terms in any order (Higham 2002, section 3.5).
    """
    (a, a_error), (b, b_error) = first, second
    size = a.abs()
    error = size @ (b.abs() * rounding.gamma(a.shape[-1] + 4) + b_error) + a_error @ (b.abs() + b_error)
    return a @ b, error * _SLOP + rounding.UNDERFLOW


def _held(given: Map) -> tuple[Tensor, Tensor]:
    """The weights and their errors in float64, one group."""
    operator = given.operator
    assert not isinstance(operator, Diagonal)
    weights, errors = weights_of(operator).detach().double(), given.errors()
    inner = operator.convolution if isinstance(operator, Padded) else operator
    groups = inner.groups if isinstance(inner, Convolution) else 1
    return (weights, errors) if groups == 1 else (_ungrouped(weights, groups), _ungrouped(errors, groups))


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The kernel of all groups as one, zero between them."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    whole = weight.new_zeros(groups, outputs, groups, inputs, *weight.shape[2:])
    for group, own in enumerate(weight.reshape(groups, outputs, *weight.shape[1:])):
        whole[group, :, group] = own
    return whole.reshape(groups * outputs, groups * inputs, *weight.shape[2:])


def _is_pointwise(operator: Weighted, *, strided: bool = False) -> bool:
    """Whether it acts at each position by itself; with `strided`, at some of them."""
    if not isinstance(operator, Convolution) or operator.transposed or any(operator.offset):
        return False
    if any(k != 1 for k in operator.kernel):
        return False
    return strided or (all(s == 1 for s in operator.stride) and operator.input_size == operator.output_size)


def added(first: Map | None, second: Map | None) -> Map | None:
    """The sum of two maps of the same input as one, None where it is none; None among them is the identity."""
    like = next((one for one in (first, second) if one is not None and not isinstance(one.operator, Diagonal)), None)
    if like is None:
        return None
    scalings = any(one is None or isinstance(one.operator, Diagonal) for one in (first, second))
    if scalings and like.inputs != like.outputs:
        return None
    one, other = _alike(first, like, like.inputs), _alike(second, like, like.inputs)
    if one is None or other is None:
        return None
    (a, a_error), (b, b_error) = _held_in_groups(one), _held_in_groups(other)
    if a.shape[:2] != b.shape[:2]:
        return None
    if isinstance(one.operator, Dense) and isinstance(other.operator, Dense):
        total = a + b
        return Map(Dense(total), like.axis, (a_error + b_error + total.abs() * 2.0**-53) * _SLOP)
    if not (isinstance(one.operator, Convolution) and isinstance(other.operator, Convolution)):
        return None
    if not _on_one_lattice(one.operator, other.operator):
        return None
    offset = tuple(map(max, one.operator.offset, other.operator.offset))
    ends = tuple(map(max, _ends(one.operator), _ends(other.operator)))
    widths = [_widths(part, offset, ends) for part in (one.operator, other.operator)]
    total = functional.pad(a, widths[0]) + functional.pad(b, widths[1])
    error = functional.pad(a_error, widths[0]) + functional.pad(b_error, widths[1]) + total.abs() * 2.0**-53
    whole = replace(
        one.operator,
        weight=total,
        offset=offset,
        dilation=(1,) * one.operator.axes,
        circular=one.operator.circular or other.operator.circular,
        uncertainty=0.0,
    )
    return Map(whole, like.axis, error * _SLOP)


def _ends(operator: Convolution) -> tuple[int, ...]:
    """One past the last tap, counted from the position itself, per axis."""
    return tuple(k - p for k, p in zip(operator.kernel, operator.offset, strict=True))


def _widths(operator: Convolution, offset: tuple[int, ...], ends: tuple[int, ...]) -> list[int]:
    """By how much the kernel is widened to reach from -offset to the ends, as torch.nn.functional.pad takes it."""
    before = [p - q for p, q in zip(offset, operator.offset, strict=True)]
    after = [e - f for e, f in zip(ends, _ends(operator), strict=True)]
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


def _held_in_groups(given: Map) -> tuple[Tensor, Tensor]:
    assert not isinstance(given.operator, Diagonal)
    return weights_of(given.operator).detach().double(), given.errors()


def _on_one_lattice(one: Convolution, other: Convolution) -> bool:
    """Whether the taps of two convolutions can stand in one kernel: the same outputs, each from its neighbourhood."""
    if one.transposed or other.transposed or one.groups != other.groups:
        return False
    if (one.stride, one.input_size, one.output_size) != (other.stride, other.input_size, other.output_size):
        return False
    if any(k > 1 and d > 1 for own in (one, other) for k, d in zip(own.kernel, own.dilation, strict=True)):
        return False
    # A tap at the position itself never meets the padding.
    return one.circular == other.circular or all(own.circular or _is_pointwise(own) for own in (one, other))


def _alike(given: Map | None, like: Map, count: int) -> Map | None:
    """A map of so many channels with the kind of operator that another has, and with its groups; None for no such."""
    operator = None if given is None else given.operator
    if given is not None and given.axis not in (0, like.axis):
        return None
    if given is not None and type(operator) is type(like.operator):
        return given
    if operator is not None and not isinstance(operator, Diagonal):
        return None
    inner = like.operator
    if given is not None and given.inputs not in (0, count):
        return None
    gain = torch.ones(count, dtype=torch.float64) if operator is None else operator.gain.double().expand(count)
    uncertainty = 0.0 if operator is None else operator.uncertainty
    if isinstance(inner, Dense):
        return Map(Dense(torch.diag(gain), uncertainty), like.axis)
    if not isinstance(inner, Convolution) or inner.input_size != inner.output_size or any(s != 1 for s in inner.stride):
        return None
    groups = inner.groups if count % inner.groups == 0 else 1
    size, ones = count // groups, (1,) * inner.axes
    weight = torch.diag_embed(gain.reshape(groups, size)).reshape(count, size, *ones)
    zeros = (0,) * inner.axes
    taps = Convolution(weight, ones, ones, groups, zeros, inner.input_size, inner.output_size, False, False,
                       uncertainty)  # fmt: skip
    return Map(taps, like.axis)


def beside(maps: Sequence[Map | None]) -> tuple[Map, tuple[int, ...]] | None:
    """[A B ...]: maps of different inputs, to be summed, as one of all inputs side by side, and the channels of each.

    All act at each position by itself; None among them is the identity. None where there is no such map.
    """
    like = next((one for one in maps if one is not None and not isinstance(one.operator, Diagonal)), None)
    if like is None:
        return None
    parts = []
    for one in maps:
        own = _alike(one, like, like.outputs)
        if own is None or own.outputs != like.outputs:
            return None
        parts.append(own)
    operators = [part.operator for part in parts]
    first = like.operator
    if not isinstance(first, Dense):
        if not all(isinstance(own, Convolution) and _is_pointwise(own) for own in operators):
            return None
        if len({own.input_size for own in operators if isinstance(own, Convolution)}) > 1:
            return None
    held = [_held(part) for part in parts]
    weight, error = (torch.cat([pair[n] for pair in held], 1) for n in (0, 1))
    widths = tuple(part.inputs for part in parts)
    if isinstance(first, Dense):
        return Map(Dense(weight), like.axis, error), widths
    assert isinstance(first, Convolution)
    return Map(replace(first, weight=weight, groups=1, circular=False, uncertainty=0.0), like.axis, error), widths
