"""The search for two inputs that a function moves further apart than a constant allows, or for an output out of range.

Pairs are sampled at many magnitudes, near and far; the most promising climb the norm of the Jacobian, by derivatives
where there are some, else by differences. All points stay within the range that the claim is about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcheck.ranges import Range

Function = Callable[[Tensor], Tensor]
# How far apart the inputs of a pair are, in units of the search's scale.
_STEPS = (1e-5, 1e-3, 1e-1, 1.0)
_CLIMB = 30
_CLIMBERS = 10  # of so many starts one climbs


@dataclass(frozen=True, slots=True)
class Claim:
    """What is said of a function while the input's numbers from `start` to `stop` move: a constant."""

    what: str
    constant: float
    start: int
    stop: int


class Refuted(Exception):
    """Two inputs that refute a claim, or one whose output lies out of range; `second` is None then."""

    def __init__(self, claim: Claim, first: Tensor, second: Tensor | None, found: float) -> None:
        super().__init__(claim.what)
        self.claim, self.first, self.second, self.found = claim, first, second, found


@dataclass(slots=True)
class Search:
    """The search on one function.

    `within` is the convex range of inputs, None for the whole space; `output` the range stated of the output, if any.
    Shapes: `example` is an input, in the precision of the search.
    Units: `rounding` is what the function's arithmetic may be off by, relative to its result.
    """

    function: Function
    example: Tensor
    within: Range | None
    output: Range | None
    rounding: float
    trials: int
    seed: int
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def attack(self, claim: Claim) -> float:
        """The largest quotient found.

        Errors: Refuted where it is above the claim, or an output lies out of its range.
        """
        mask = torch.zeros(self.example.numel(), dtype=self.example.dtype)
        mask[claim.start : claim.stop] = 1
        mask = mask.reshape(self.example.shape)
        rated = []
        for number in range(self.trials):
            x, scale = self._start(number)
            direction = self._normal() * mask
            rated.append((self._pairs(claim, x, direction, scale), x, direction, scale))
        rated.sort(key=lambda entry: -entry[0])
        best = max((entry[0] for entry in rated), default=0.0)
        for _, x, direction, scale in rated[: max(3, self.trials // _CLIMBERS)]:
            x, direction = self._climb(x, direction, mask, scale)
            best = max(best, self._pairs(claim, x, direction, scale))
        return best

    def _pairs(self, claim: Claim, x: Tensor, direction: Tensor, scale: float) -> float:
        """The largest quotient of x and points from it in the direction and against it, near and far."""
        length = float(torch.linalg.vector_norm(direction))
        best = 0.0
        if not 0 < length < math.inf:
            return best
        image = self._value(x)
        self._check(claim, x, image)
        for step in _STEPS:
            for sign in (1, -1):
                y = self._project(x + direction * (sign * step * scale / length))
                best = max(best, self._quotient(claim, x, image, y))
        return best

    def _quotient(self, claim: Claim, x: Tensor, first: Tensor, y: Tensor) -> float:
        """||f(x) - f(y)|| / ||x - y||, less what rounding may have added; `first` is f(x), known to be in its range.

        Errors: Refuted.
        """
        distance = float(torch.linalg.vector_norm((x - y).double()))
        if distance == 0:
            return 0.0
        second = self._value(y)
        self._check(claim, y, second)
        if not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
            return 0.0
        noise = self.rounding * float(torch.linalg.vector_norm(first) + torch.linalg.vector_norm(second))
        found = max(0.0, float(torch.linalg.vector_norm(first - second)) - noise) / distance
        if found > claim.constant:
            raise Refuted(claim, x, y, found)
        return found

    def _check(self, claim: Claim, point: Tensor, image: Tensor) -> None:
        """Errors: Refuted where the image is finite and out of its range."""
        if bool(torch.isfinite(image).all()) and not self._in_range(image):
            raise Refuted(claim, point, None, math.nan)

    def _value(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.function(x).double()

    def _in_range(self, image: Tensor) -> bool:
        stated = self.output
        if stated is None or stated.shape != tuple(image.shape):
            return True
        slack = self.rounding * (image.abs() + 1)
        if bool((torch.maximum(stated.low - image, image - stated.high) > slack).any()):
            return False
        if stated.center is None or stated.radius > 700:
            return True
        away = float(torch.linalg.vector_norm(image - stated.center))
        return away <= math.exp(stated.radius) + float(torch.linalg.vector_norm(slack))

    def _normal(self) -> Tensor:
        return torch.randn(self.example.shape, generator=self.generator, dtype=torch.float64).to(self.example)

    def _uniform(self) -> Tensor:
        return torch.rand(self.example.shape, generator=self.generator, dtype=torch.float64).to(self.example)

    def _start(self, number: int) -> tuple[Tensor, float]:
        """An input, and how large a step from it is: the example, then ordinary, tiny, equal, loud, whole ones."""
        scale = 10.0 ** float(torch.rand((), generator=self.generator) * 6 - 3) if number % 3 else 1.0
        loud = torch.zeros_like(self.example).flatten()
        loud[number % loud.numel()] = 1
        kinds = (
            *(self._normal(), self._normal() * 1e-6, torch.ones_like(self.example), self._normal()),
            *(loud.reshape(self.example.shape), self._normal().round(), self._normal().sign()),
        )
        x = kinds[number % len(kinds)] * scale if number else self.example
        if self.within is None:
            return x, scale
        low, high = (end.to(self.example) for end in (self.within.low, self.within.high))
        width = float((high - low).max())
        drawn = low + self._uniform() * (high - low)
        corner = torch.where(self._uniform() < 0.5, low, high)
        inside = (x, drawn, corner, corner + (drawn - corner) * 1e-2, (low + high) / 2 + x * width)
        return self._project(inside[number % len(inside)]), width

    def _project(self, x: Tensor) -> Tensor:
        """A point of the range: the nearest one of the box, moved into the ball."""
        within = self.within
        if within is None:
            return x
        x = torch.minimum(torch.maximum(x.double(), within.low), within.high)
        if within.center is not None and within.radius < 700:
            away, radius = x - within.center, math.exp(within.radius)
            length = float(torch.linalg.vector_norm(away))
            if length > radius:
                x = within.center + away * (radius / length * (1 - 1e-9))
        return x.to(self.example)

    def _climb(self, x: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """An input and a direction that it amplifies much, uphill from these on the norm of the Jacobian."""
        try:
            return self._climb_derivatives(x, v, mask, scale)
        except (RuntimeError, NotImplementedError):
            return self._climb_differences(x, v, mask, scale)

    def _climb_derivatives(self, x: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Power iteration for the direction and gradient ascent for the input, side by side."""
        best, found = 0.0, (x, v)
        for step in range(_CLIMB):
            x = x.detach().requires_grad_()
            v = (v * mask).detach()
            v = v / torch.linalg.vector_norm(v)
            y = self.function(x)
            dummy = torch.zeros_like(y, requires_grad=True)
            (pulled,) = torch.autograd.grad(y, x, dummy, create_graph=True)
            (image,) = torch.autograd.grad(pulled, dummy, v, create_graph=True)
            norm = torch.linalg.vector_norm(image)
            reached = float(norm.detach())
            if not 0 < reached < math.inf:
                break
            if reached > best:
                best, found = reached, (x.detach(), v)
            (back,) = torch.autograd.grad(y, x, image.detach(), retain_graph=True)
            uphill = torch.autograd.grad(norm, x, allow_unused=True)[0] if norm.requires_grad else None
            v = back
            length = 0.0 if uphill is None else float(torch.linalg.vector_norm(uphill))
            if uphill is not None and 0 < length < math.inf:
                x = self._project(x.detach() + uphill * (0.5 * scale * 0.85**step / length))
        return found

    def _climb_differences(self, x: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Random steps of both, kept where the difference quotient grows."""
        v = v / torch.linalg.vector_norm(v)
        best = self._rate(x, v, scale)
        for step in range(4 * _CLIMB):
            reach = 0.5 * 0.97**step
            moved = self._project(x + self._normal() * (reach * scale))
            turned = v + self._normal() * mask * reach
            turned = turned / torch.linalg.vector_norm(turned)
            found = self._rate(moved, turned, scale)
            if found > best:
                best, x, v = found, moved, turned
        return x, v

    def _rate(self, x: Tensor, v: Tensor, scale: float) -> float:
        y = self._project(x + v * (1e-3 * scale))
        distance = float(torch.linalg.vector_norm(y - x))
        gap = float(torch.linalg.vector_norm(self._value(y) - self._value(x)))
        return gap / distance if distance > 0 and math.isfinite(gap) else 0.0
