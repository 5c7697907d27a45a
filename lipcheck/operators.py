"""The maps that networks apply, free of ATen: what a rule returns and an engine bounds.

Linear operators (`Linear`) have a norm that an engine encloses. The others say how Lipschitz constants combine.
Every tensor of weights is taken as exact; where an entry had to be computed, `uncertainty` is its relative error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lipcheck import rounding
from lipcheck.ranges import Range


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """A map from one or more inputs to an output; bounded by an engine or combined by `compose`."""


@dataclass(frozen=True, slots=True, eq=False)
class Linear(Operator):
    """A linear map of one input, up to a constant that moves the output and leaves differences alone."""


def _widened(values: Tensor) -> Tensor:
    """The same numbers where torch can compute with them: floats of eight bits it only stores."""
    return values.float() if values.is_floating_point() and values.dtype.itemsize == 1 else values


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Linear):
    """y = M x, applied to each position alike.

    Shapes: `matrix` is (outputs, inputs).
    """

    matrix: Tensor
    uncertainty: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", _widened(self.matrix))


@dataclass(frozen=True, slots=True, eq=False)
class BatchedDense(Linear):
    """A direct sum of matrices, each applied to its own part of the input, at each position alike.

    Shapes: `matrices` is (parts, outputs, inputs).
    """

    matrices: Tensor
    uncertainty: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrices", _widened(self.matrices))

    @property
    def grouped(self) -> Convolution:
        """The same matrices as the groups of a convolution of one tap: the same norm."""
        parts, outputs, inputs = self.matrices.shape
        weight = self.matrices.reshape(parts * outputs, inputs, 1)
        return Convolution(weight, (1,), (1,), parts, (0,), (1,), (1,), uncertainty=self.uncertainty)


@dataclass(frozen=True, slots=True, eq=False)
class Convolution(Linear):
    """y[o, i] = sum_c sum_k W[o, c, k] x[c, s i + d k - p] for 0 <= i < n', as torch.nn.Conv*; x is 0 outside [0, n).

    Shapes: `weight` is (outputs, inputs / groups, *kernel); every tuple has one entry per spatial axis.
    `offset` is the left padding p; what is padded on the right follows from the sizes. With `circular`, indices
    of x wrap at n, s divides n and n' = n / s. With `transposed` the network applies the adjoint of this map,
    whose norm is the same: then the sizes are those of this map, the network's the other way round.
    """

    weight: Tensor
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    offset: tuple[int, ...]
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    circular: bool = False
    transposed: bool = False
    uncertainty: float = 0.0

    _CONVOLUTIONS: ClassVar = (functional.conv1d, functional.conv2d, functional.conv3d)
    _ADJOINTS: ClassVar = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _widened(self.weight))

    @property
    def axes(self) -> int:
        return len(self.input_size)

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def reach(self) -> tuple[int, ...]:
        """One past the last position read, counted from the first position read, per axis."""
        return tuple(
            s * (n - 1) + d * (k - 1) + 1
            for s, n, d, k in zip(self.stride, self.output_size, self.dilation, self.kernel, strict=True)
        )

    @property
    def input_channels(self) -> int:
        return self.weight.shape[1] * self.groups

    def forward(self, x: Tensor) -> Tensor:
        """A x in the dtype of x. Shapes: x is (batch, inputs, *input_size)."""
        weight = self.weight.to(x)
        if not self.circular and all(
            p >= 0 and n + 2 * p >= r for n, p, r in zip(self.input_size, self.offset, self.reach, strict=True)
        ):
            padding: tuple[int, ...] = self.offset
        else:
            x, padding = self._padded(x), (0,) * self.axes
        y = self._CONVOLUTIONS[self.axes - 1](x, weight, None, self.stride, padding, self.dilation, self.groups)
        for axis, n in enumerate(self.output_size, start=2):
            y = y.narrow(axis, 0, n)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y in the dtype of y. Shapes: y is (batch, outputs, *output_size)."""
        weight = self.weight.to(y)
        missing = tuple(n - (r - 2 * p) for n, r, p in zip(self.input_size, self.reach, self.offset, strict=True))
        adjoint = self._ADJOINTS[self.axes - 1]
        if not self.circular and all(
            p >= 0 and 0 <= e < max(s, d)
            for p, e, s, d in zip(self.offset, missing, self.stride, self.dilation, strict=True)
        ):
            return adjoint(y, weight, None, self.stride, self.offset, missing, self.groups, self.dilation)
        full = adjoint(y, weight, None, self.stride, 0, 0, self.groups, self.dilation)
        return self._cropped(full)

    def _padded(self, x: Tensor) -> Tensor:
        """The positions -p ... reach - p - 1 of x, wrapped or filled with zeros."""
        for axis, (n, p, r) in enumerate(zip(self.input_size, self.offset, self.reach, strict=True), start=2):
            if self.circular:
                x = x.index_select(axis, (torch.arange(r, device=x.device) - p) % n)
            else:
                x = _positions(x, axis, -p, r)
        return x

    def _cropped(self, full: Tensor) -> Tensor:
        """The adjoint of `_padded`."""
        for axis, (n, p, r) in enumerate(zip(self.input_size, self.offset, self.reach, strict=True), start=2):
            if self.circular:
                shape = (*full.shape[:axis], n, *full.shape[axis + 1 :])
                index = (torch.arange(r, device=full.device) - p) % n
                full = full.new_zeros(shape).index_add_(axis, index, full)
            else:
                full = _positions(full, axis, p, n)
        return full


@dataclass(frozen=True, slots=True, eq=False)
class Padded(Linear):
    """A convolution without padding of its own behind a padding that copies inputs: reflect, replicate, or circular
    where it does not wrap around exactly.

    Shapes: `convolution` has offset 0 and reads the padded input; `places` holds, per axis, the input position that
    stands at each position of the padded axis; `input_size` is the size in front of the padding.
    """

    convolution: Convolution
    places: tuple[Tensor, ...]
    input_size: tuple[int, ...]
    mode: str

    @property
    def copies(self) -> int:
        """How often the most copied input stands in the padded one: the square of the padding's norm."""
        return math.prod(int(torch.bincount(place).max()) for place in self.places)

    def forward(self, x: Tensor) -> Tensor:
        """A x in the dtype of x. Shapes: x is (batch, inputs, *input_size)."""
        for axis, place in enumerate(self.places, start=2):
            x = x.index_select(axis, place.to(x.device))
        return self.convolution.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y in the dtype of y. Shapes: y is (batch, outputs, *output_size)."""
        x = self.convolution.adjoint(y)
        for axis, (place, n) in enumerate(zip(self.places, self.input_size, strict=True), start=2):
            shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
            x = x.new_zeros(shape).index_add_(axis, place.to(x.device), x)
        return x


@dataclass(frozen=True, slots=True, eq=False)
class InfiniteConvolution(Linear):
    """A convolution on an input without end: what a zero-padded one of any size is a compression of.

    Its norm is the supremum of the symbol, an upper bound for zero padding at every input size, whatever the padding's
    width, and the limit as the input grows. The offset has no meaning here.
    Shapes: `weight` is (outputs, inputs / groups, *kernel); every tuple has one entry per spatial axis.
    """

    weight: Tensor
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    uncertainty: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _widened(self.weight))


@dataclass(frozen=True, slots=True, eq=False)
class LinearMap(Linear):
    """Any linear map, known by what it and its adjoint do to tensors of float32 or float64.

    Shapes: `apply` takes (1, *input_shape) to (1, *output_shape), `apply_adjoint` the other way.
    """

    apply: Callable[[Tensor], Tensor]
    apply_adjoint: Callable[[Tensor], Tensor]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Separable(Linear):
    """The Kronecker product of one small matrix per axis: average pooling, interpolation, means.

    Shapes: each matrix is (outputs, inputs) along its axis. The norm is the product of the matrices' norms.
    """

    matrices: tuple[Tensor, ...]
    uncertainty: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrices", tuple(map(_widened, self.matrices)))


@dataclass(frozen=True, slots=True, eq=False)
class Diagonal(Linear):
    """y = g x, elementwise, g broadcast to the shape of x without enlarging it: norm max |g|.

    Shapes: `gain` broadcasts to the input's shape, batch axis included.
    """

    gain: Tensor
    uncertainty: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gain", _widened(self.gain))


@dataclass(frozen=True, slots=True, eq=False)
class Indexing(Linear):
    """Each output is one of the inputs or a constant: norm sqrt(copies), copies of the most used input.

    Reshapes, permutations and slices have one copy; `selecting` says that which input is taken depends on the
    values, as in max pooling: not linear, with the same constant, attained by an input with one large entry.
    """

    copies: int = 1
    selecting: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Nonlinear(Operator):
    """A map that is no linear one, Lipschitz in each of its inputs as far as their ranges allow."""

    @property
    def is_local(self) -> bool:
        """Whether its constants may be smaller on a range than everywhere."""
        return True

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        """For each input the log of its Lipschitz constant while all stay in their ranges; inf where none is known.

        With partial Jacobians of norm at most s_i on the ranges, the output moves by at most the sum of s_i |dx_i|.
        Units: natural logarithms. Without a domain the ranges may be unknown (`Range.unknown`).
        """
        raise NotImplementedError

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        """Where the output can be, beyond what the slopes say of it. Shapes: `shape` is the output's."""
        return Range.unknown(shape)

    def value(self, points: Sequence[Tensor]) -> Tensor | None:
        """The map at one point of each input, in float64; None where only its node's own call says it.

        Asked for where several calls were recognised as this map: the last of them does not compute it alone.
        """
        return None

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        """Why the slopes are infinite on these ranges; "" where they are not."""
        return ""


class ScalarFunction(Protocol):
    """A function of one number, or of each element by its own parameters, on intervals [low, high].

    Shapes: the ends are float64 tensors of one shape, which parameters may broadcast. Ends may be infinite.
    """

    @property
    def bounds(self) -> tuple[float, float]:
        """Numbers that no value lies beyond."""

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest value, elementwise, good to `rounding.EVALUATION`."""

    def slope(self, low: Tensor, high: Tensor) -> Tensor:
        """The largest |f'|, elementwise, good to that as well; inf where there is none."""

    def steepest(self, low: Tensor, high: Tensor) -> float:
        """The largest of all slopes, 0 where there is no element."""

    def at(self, points: Tensor) -> Tensor | None:
        """The values, good to that as well; None where they may be off by more."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A scalar function, for its range and its slope on an interval.

    `value` and `derivative` work elementwise in float64. Between two neighbouring `turns` (zeros of the derivative) the
    function is monotone, between two neighbouring `bends` (extrema of the derivative) the derivative is; both are given
    as enclosures (low, high) of the places. Limits at infinity are what `value` and `derivative` return there; where
    the derivative jumps, `derivative` is the limit of larger absolute value. No value lies beyond `bounds`.
    """

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    turns: tuple[tuple[float, float], ...] = ()
    bends: tuple[tuple[float, float], ...] = ()
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """What underflow may hide is added: the least and the largest value on [low, high], elementwise."""
        least, largest = _extremes(self.value, self.turns, low, high)
        return least - rounding.UNDERFLOW, largest + rounding.UNDERFLOW

    def slope(self, low: Tensor, high: Tensor) -> Tensor:
        """The largest |f'| on [low, high], elementwise, not yet widened."""
        least, largest = _extremes(self.derivative, self.bends, low, high)
        return torch.maximum(least.abs(), largest.abs())

    def steepest(self, low: Tensor, high: Tensor) -> float:
        return steepest(self, low, high)

    def at(self, points: Tensor) -> Tensor | None:
        return self.value(points)


def _extremes(
    function: Callable[[Tensor], Tensor], places: Sequence[tuple[float, float]], low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The extrema of a function that is monotone between these places: at the ends and at the places inside.

    A place is known as an interval so narrow that the function is flat on it to within rounding: both its ends count.
    """
    first, last = function(low), function(high)
    least, largest = torch.minimum(first, last), torch.maximum(first, last)
    for before, after in places:
        inside = (low < after) & (before < high)
        one, other = (function(torch.tensor(end, dtype=torch.float64)) for end in (before, after))
        least = torch.where(inside, torch.minimum(least, torch.minimum(one, other)), least)
        largest = torch.where(inside, torch.maximum(largest, torch.maximum(one, other)), largest)
    return least, largest


# So many elements are looked at one by one.
_FEW = 4096


def steepest(curve: ScalarFunction, low: Tensor, high: Tensor) -> float:
    """The largest slope on all the intervals: that on their hull where one of a few elements reaches it."""
    if low.numel() == 0:
        return 0.0
    if low.numel() > _FEW:
        lows, highs = low.flatten(), high.flatten()
        hull = curve.slope(lows.min(), highs.max())
        around = torch.minimum(highs, -lows)
        some = torch.stack([lows.argmin(), highs.argmax(), (highs - lows).argmax(), around.argmax()])
        # With parameters for each element the hull is none of theirs.
        if hull.numel() == 1 and bool((curve.slope(lows[some], highs[some]) >= hull).any()):
            return float(hull)
    return float(curve.slope(low, high).max())


@dataclass(frozen=True, slots=True, eq=False)
class Pointwise(Nonlinear):
    """A scalar function applied to every element, with sup |f'| <= `slope`; its curve, where known, says more.

    Each element of the input appears in as many elements of the output as there are `copies`.
    """

    name: str
    slope: float
    curve: ScalarFunction | None = None
    copies: int = 1

    @property
    def is_local(self) -> bool:
        # Of a function with few slopes each is met on nearly any range.
        return self.curve is not None and self.name not in _FEW_SLOPES

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        (x,) = ranges
        slope = self.slope
        if self.curve is not None:
            found = self.curve.steepest(*x.ends)
            # A derivative that no float can hold says nothing; one near zero is off by a part of the largest.
            beside = rounding.UNDERFLOW + (2.0**-40 * self.slope if math.isfinite(self.slope) else 0.0)
            found = math.inf if math.isnan(found) else found * (1 + 2 * rounding.EVALUATION) + beside
            slope = min(slope, found)
        return (rounding.log_multiply_up(rounding.log_up(slope), rounding.log_up(rounding.sqrt_up(self.copies))),)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        (x,) = ranges
        if self.curve is None:
            return Range.unknown(shape)
        found = Range.box(*self.curve.image(*x.ends))
        least, largest = self.curve.bounds
        return Range(found.low.clamp(least, largest).expand(shape), found.high.clamp(least, largest).expand(shape))

    def value(self, points: Sequence[Tensor]) -> Tensor | None:
        return None if self.curve is None else self.curve.at(points[0])

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        if math.isfinite(self.slope) or self.slopes(ranges)[0] < math.inf:
            return ""
        (x,) = ranges
        low, high = x.smallest, x.largest
        if low == -math.inf and high == math.inf:
            return f"{self.name} has no largest slope on the whole line; give --domain"
        ends = "(-inf" if low == -math.inf else f"[{low:.3g}", "inf)" if high == math.inf else f"{high:.3g}]"
        return f"{self.name} has no largest slope on {ends[0]}, {ends[1]}"


_FEW_SLOPES = frozenset(("relu", "relu6", "leaky_relu", "prelu", "abs", "hardtanh", "clamp"))


@dataclass(frozen=True, slots=True, eq=False)
class Normalisation(Nonlinear):
    """A map whose Jacobian has norm at most `slope` everywhere, given with the reason for it."""

    name: str
    slope: float
    reason: str

    @property
    def is_local(self) -> bool:
        return False

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        return (rounding.log_up(self.slope),)


@dataclass(frozen=True, slots=True, eq=False)
class Sum(Operator):
    """The sum of the inputs, each after a linear map of norm at most its weight.

    Shapes: one weight per activation among the node's inputs, in order.
    """

    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Concatenation(Operator):
    """The inputs side by side: the root of the sum of the squares."""


@dataclass(frozen=True, slots=True, eq=False)
class Unbounded(Operator):
    """No finite constant is known, for this reason."""

    reason: str


IDENTITY = Indexing()


def _positions(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """The positions start ... start + length - 1 of x along an axis, zeros where there are none."""
    low, high = max(start, 0), max(min(start + length, x.shape[axis]), 0)
    kept = x.narrow(axis, min(low, x.shape[axis]), max(high - low, 0))
    before = min(max(-start, 0), length)
    edges = [0, 0] * (x.dim() - axis - 1) + [before, length - before - kept.shape[axis]]
    return functional.pad(kept, edges)


Weighted = Dense | Convolution | Padded


def weights_of(operator: Weighted) -> Tensor:
    """The matrix or the kernel."""
    if isinstance(operator, Padded):
        return operator.convolution.weight
    return operator.matrix if isinstance(operator, Dense) else operator.weight


def uncertainty_of(operator: Weighted) -> float:
    """The relative error of the weights."""
    return (operator.convolution if isinstance(operator, Padded) else operator).uncertainty


def multiplies_safely(operator: Weighted, gain: Tensor) -> bool:
    """Whether no product of a weight and a gain, neither zero, leaves the range where float64 rounds relatively."""
    weight = weights_of(operator).double().abs()
    gain = gain.double().abs()
    if not bool(weight.any()) or not bool(gain.any()):
        return True
    low = math.log2(float(weight[weight > 0].min())) + math.log2(float(gain[gain > 0].min()))
    high = math.log2(float(weight.max())) + math.log2(float(gain.max()))
    return low > -1000 and high < 1000


def scaled_rows(operator: Weighted, gain: Tensor, uncertainty: float) -> Weighted:
    """diag(gain) after `operator`: each output channel multiplied by its gain, in float64.

    Shapes: `gain` has one entry per output channel of what the network applies, or one for all.
    """
    if isinstance(operator, Padded):
        inner = scaled_rows(operator.convolution, gain, uncertainty)
        assert isinstance(inner, Convolution)
        return replace(operator, convolution=inner)
    weight = scaled_outputs(operator, weights_of(operator).double(), gain.double())
    uncertainty = operator.uncertainty + uncertainty + 2.0**-52
    if isinstance(operator, Dense):
        return replace(operator, matrix=weight, uncertainty=uncertainty)
    return replace(operator, weight=weight, uncertainty=uncertainty)


def scaled_outputs(operator: Dense | Convolution, weight: Tensor, gain: Tensor) -> Tensor:
    """The weight with each output channel of what the network applies multiplied by its gain. Gradients flow to both.

    Shapes: `weight` is one for `operator`; `gain` has one entry per output channel, or one for all.
    """
    if isinstance(operator, Convolution) and operator.transposed and gain.numel() > 1:
        # The output channels of an adjoint are the weight's inputs: (groups * inputs / groups) of them in order.
        grouped = weight.reshape(operator.groups, -1, *weight.shape[1:])
        spread = gain.reshape(operator.groups, 1, -1, *(1,) * operator.axes)
        return (grouped * spread).reshape(weight.shape)
    return weight * gain.reshape(-1, *(1,) * (weight.dim() - 1))


def output_length(length: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    """How many outputs a convolution has along one axis, `padding` being the sum of both sides."""
    return (length + padding - dilation * (kernel - 1) - 1) // stride + 1
