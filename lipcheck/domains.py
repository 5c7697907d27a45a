"""Where a network's inputs are: a box of pixel values or a Euclidean ball, and the Range that the input then has.

A bound on a domain holds for every two inputs in it. Domains are convex: the argument runs along the segment between
the two, so each operation's slope need only be bounded on the range that it takes there (maths, section 6).
Constants stay those of the network itself, with respect to its own input, behind any normalisation of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.errors import InputSizeError, UsageError
from lipcheck.notation import WrittenDomain, check_box, check_radius
from lipcheck.ranges import Range, log_norm
from lipcheck.text import shape as shown

# A pixel normalised in single precision is off by three roundings of numbers up to (|x| + |mean|) / std.
_SINGLE = 2.0**-21
# How far from its centre a sample is moved in, where rounding it to the network's precision took it out.
_INWARDS = (1.0, 0.999, 0.9, 0.5, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """A convex set of inputs."""

    def range(
        self, shape: Sequence[int], mean: Sequence[float] = (), std: Sequence[float] = (), axis: int = -3
    ) -> Range:
        """The inputs as the network receives them, rounded outwards: a box and a ball.

        Pixels x become (x - mean) / std, per channel; without a mean they are the network's own input.
        Shapes: `shape` has the batch axis of one; `mean` and `std` have one entry per channel, which is `axis`.
        Errors: UsageError, InputSizeError where they do not fit.
        """
        raise NotImplementedError

    def sample(self, within: Range, generator: torch.Generator, count: int, dtype: torch.dtype) -> list[Tensor]:
        """At most `count` inputs drawn uniformly from the domain, whose range is `within`: none lies outside.

        A domain so small that it may hold no number of this precision gives fewer.
        Shapes: each is that of the range.
        """
        drawn = (self._point(within, generator) for _ in range(count))
        found = (_inside(within, point, dtype) for point in drawn)
        return [point for point in found if point is not None]

    def _point(self, within: Range, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def described(self, mean: Sequence[float] = (), std: Sequence[float] = ()) -> str:
        """The domain for people, with its units."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False)
class Box(Domain):
    """Every element of the input lies between `low` and `high`, as pixels are before the model's own normalisation.

    With `normalised`, or where the model's config knows of no normalisation, they are ends of the network's own input.
    Shapes: numbers, or tensors that broadcast to the shape of one input.
    """

    low: float | Tensor
    high: float | Tensor
    normalised: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.low, int | float) and isinstance(self.high, int | float):
            check_box(self.low, self.high)
            return
        low, high = self._ends()
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise UsageError("an end of the box is not finite; give two tensors of finite numbers")
        try:
            low, high = low + torch.zeros_like(high), high + torch.zeros_like(low)
        except RuntimeError as error:
            raise UsageError(
                f"the ends of the box have shapes {shown(tuple(low.shape))} and {shown(tuple(high.shape))}; "
                "give two tensors of one input's shape"
            ) from error
        if bool((low > high).any()):
            raise UsageError(f"the box is empty: {int((low > high).sum())} elements have their low end above the high")
        if bool((low == high).all()):
            raise UsageError("the box is a single point: both its ends are equal; give low < high")

    def _ends(self) -> tuple[Tensor, Tensor]:
        low, high = (_real(end, "an end of the box") for end in (self.low, self.high))
        return low, high

    def range(
        self, shape: Sequence[int], mean: Sequence[float] = (), std: Sequence[float] = (), axis: int = -3
    ) -> Range:
        low, high = (_fitted(end, shape, "an end of the box") for end in self._ends())
        if not self.normalised and (mean or std):
            middle, spread = _per_channel(mean, std, shape, axis)
            slack = [(end.abs() + middle.abs()) / spread * _SINGLE for end in (low, high)]
            low, high = (low - middle) / spread - slack[0], (high - middle) / spread + slack[1]
        boxed = Range.box(low, high)
        return boxed.with_ball((boxed.low + boxed.high) / 2, math.inf).tightened()

    def _point(self, within: Range, generator: torch.Generator) -> Tensor:
        share = torch.rand(within.shape, generator=generator, dtype=torch.float64)
        return within.low + share * (within.high - within.low)

    def described(self, mean: Sequence[float] = (), std: Sequence[float] = ()) -> str:
        low, high = self._ends()
        elementwise = "" if low.numel() == high.numel() == 1 else " (elementwise ends)"
        text = f"box:{float(low.min()):g},{float(high.max()):g}{elementwise}"
        if self.normalised or not (mean or std):
            return f"{text} in the network's own input units"
        return f"{text} in pixels, before the model's normalisation (mean {_listed(mean)}, std {_listed(std)})"


@dataclass(frozen=True, slots=True, eq=False)
class Ball(Domain):
    """Every input within Euclidean distance `radius` of `center` (zero without one), in the network's own units.

    `name` tells people what the centre is. Shapes: `center` is one input, with or without a batch axis of one.
    """

    radius: float
    center: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.radius, int | float):
            raise UsageError(f"the radius of the ball is a {type(self.radius).__name__}; give a positive number")
        check_radius(self.radius)
        if self.center is not None and not bool(torch.isfinite(_real(self.center, "the centre of the ball")).all()):
            raise UsageError("the centre of the ball is not finite; give a tensor of finite numbers")

    def range(
        self, shape: Sequence[int], mean: Sequence[float] = (), std: Sequence[float] = (), axis: int = -3
    ) -> Range:
        center = _real(0.0 if self.center is None else self.center, "the centre of the ball")
        if self.center is not None and tuple(center.shape) not in (tuple(shape), tuple(shape[1:])):
            place = f" in {self.name}" if self.name else ""
            raise InputSizeError(
                f"the centre of the ball{place} is {shown(tuple(center.shape)) or 'a single number'}, the network "
                f"takes {shown(tuple(shape[1:]))}; give one input of that shape"
            )
        center = center.expand(tuple(shape))
        radius = rounding.up(float(self.radius))
        boxed = Range.box(center - radius * (1 + rounding.EVALUATION), center + radius * (1 + rounding.EVALUATION))
        return boxed.with_ball(center, rounding.log_up(radius), rounding.log_up(radius)).tightened()

    def _point(self, within: Range, generator: torch.Generator) -> Tensor:
        assert within.center is not None
        direction = torch.randn(within.shape, generator=generator, dtype=torch.float64)
        length = float(torch.rand((), generator=generator, dtype=torch.float64)) ** (1 / max(1, direction.numel()))
        norm = torch.linalg.vector_norm(direction).clamp_min(1e-300)
        point: Tensor = within.center + direction * (math.exp(within.radius) * length / norm)
        return point

    def described(self, mean: Sequence[float] = (), std: Sequence[float] = ()) -> str:
        around = self.name or ("zero" if self.center is None else "the given centre")
        return f"ball:{float(self.radius):g} around {around} in the network's own input units"


def domain_of(written: WrittenDomain, center: Tensor | None = None) -> Domain:
    """The domain that a text names; `center` is what its file holds."""
    if written.kind == "box":
        low, high = written.numbers
        return Box(low, high)
    return Ball(written.numbers[0], center, written.file)


def _real(value: float | Tensor, what: str) -> Tensor:
    """Numbers in float64, on the CPU."""
    try:
        found = torch.tensor(value, dtype=torch.float64) if isinstance(value, int | float) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{what} is a {type(value).__name__}; give a number or a tensor") from error
    if found.is_complex() or found.layout != torch.strided:
        raise UsageError(f"{what} is no plain tensor of real numbers; give one")
    return found.detach().cpu().double()


def _fitted(end: Tensor, shape: Sequence[int], what: str) -> Tensor:
    try:
        return end.expand(tuple(shape))
    except RuntimeError as error:
        raise InputSizeError(
            f"{what} is {shown(tuple(end.shape))}, the network takes {shown(tuple(shape[1:]))}; "
            "give numbers, or tensors of one input's shape"
        ) from error


def _per_channel(mean: Sequence[float], std: Sequence[float], shape: Sequence[int], axis: int) -> tuple[Tensor, Tensor]:
    """Mean and std along the channels' axis. Shapes: they broadcast to `shape`."""
    channels = shape[axis] if -len(shape) < axis else 0
    stated = f"the model's config normalises by mean {_listed(mean)} and std {_listed(std)}"
    for values in (mean, std):
        if len(values) not in (1, channels):
            raise InputSizeError(
                f"{stated}, which does not fit its input of {shown(tuple(shape[1:]))}; give the ends of the input that "
                "the network receives: lipcheck.Box(low, high, normalised=True)"
            )
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise UsageError(f"{stated}, which is no normalisation; give lipcheck.Box(low, high, normalised=True)")
    behind = (1,) * (-axis - 1)
    return tuple(torch.tensor(values, dtype=torch.float64).reshape(-1, *behind) for values in (mean, std))  # type: ignore[return-value]


def _inside(within: Range, point: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The point in this precision, moved towards the centre where rounding took it out; None where nothing is in."""
    assert within.center is not None
    for share in _INWARDS:
        rounded = (within.center + share * (point - within.center)).to(dtype)
        exact = rounded.double()
        away = log_norm(exact - within.center)
        if bool(((within.low <= exact) & (exact <= within.high)).all()) and away <= within.radius:
            return rounded
    return None


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
