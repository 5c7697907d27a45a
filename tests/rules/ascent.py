"""Attacks on a nonlinear map's claims: values in its image, pairs under its constants, Jacobians by gradient ascent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lipcheck.operators import Nonlinear
from lipcheck.ranges import Range

Function = Callable[..., Tensor]
# What float64 may add to a Jacobian's norm or to a value, relative to the claim and to what the map is made of.
ROUNDING = 1e-9
_STARTS, _CLIMBERS, _STEPS = 15, 2, 8


def box(low: Tensor, high: Tensor) -> Range:
    """A box and nothing else."""
    return Range(low.double(), high.double())


def boxed_ball(low: Tensor, high: Tensor) -> Range:
    """A box with the ball around it, as a domain has it."""
    middle = (low.double() + high.double()) / 2
    norm = float(torch.linalg.vector_norm(torch.maximum(high - middle, middle - low)))
    return Range(low.double(), high.double(), middle, math.log(norm) + 1e-12 if norm else -math.inf).tightened()


def ball(center: Tensor, radius: float, rows: float = math.inf) -> Range:
    """All that is so close to a centre, every row closer than `rows`."""
    whole = Range.unknown(center.shape).with_ball(center.double(), math.log(radius), math.log(rows))
    return whole.tightened()


def ranges_of(seed: int, shape: Sequence[int], width: float, shift: float) -> Iterator[Range]:
    """A box, the same with its ball, a ball, a ball with close rows, around the same point."""
    noise = torch.Generator().manual_seed(seed)
    center = torch.randn(tuple(shape), generator=noise, dtype=torch.float64) + shift
    half = width * torch.rand(tuple(shape), generator=noise, dtype=torch.float64)
    yield box(center - half, center + half)
    yield boxed_ball(center - half, center + half)
    if width:
        yield ball(center, width)
        yield ball(center, width * 2, width)


def inside(one: Range, x: Tensor) -> Tensor:
    """The point moved into the range."""
    low, high = one.low.nan_to_num(neginf=-1e300), one.high.nan_to_num(posinf=1e300)
    for _ in range(8):
        x = torch.minimum(torch.maximum(x, low), high)
        if one.center is None:
            return x
        away = x - one.center
        if math.isfinite(one.rows):
            lengths = torch.linalg.vector_norm(away, dim=-1, keepdim=True) if away.dim() else away.abs()
            away = away * (math.exp(one.rows) / lengths.clamp_min(1e-300)).clamp_max(1)
        if math.isfinite(one.radius):
            away = away * min(1.0, math.exp(one.radius) / max(float(torch.linalg.vector_norm(away)), 1e-300))
        elif one.radius < 0:
            away = away * 0
        x = one.center + away * (1 - 1e-12)
    return x


def draw(one: Range, noise: torch.Generator, kind: int) -> Tensor:
    """A corner, an ordinary point or one with most entries at an end."""
    width = float((one.high - one.low).nan_to_num(1.0, 1.0, 1.0).max()) if one.low.numel() else 0.0
    middle = one.center if one.center is not None else (one.low + one.high) / 2
    normal = torch.randn(one.shape, generator=noise, dtype=torch.float64)
    if kind % 3 == 0:
        return inside(one, middle + width * 10 * normal.sign())
    if kind % 3 == 1:
        return inside(one, middle + width / 3 * normal)
    sparse = (torch.rand(one.shape, generator=noise) < 0.3).double()
    return inside(one, middle + width * 10 * normal * sparse)


def jacobian(function: Function, points: Sequence[Tensor], number: int) -> Tensor:
    """The partial Jacobian in one of the inputs. Shapes: (outputs, inputs)."""

    def one(x: Tensor) -> Tensor:
        return function(*points[:number], x, *points[number + 1 :]).flatten()

    found: Tensor = torch.func.jacrev(one)(points[number])
    return found.reshape(found.shape[0], -1)


def norm(matrix: Tensor) -> Tensor:
    found: Tensor = torch.linalg.matrix_norm(matrix, 2)
    return found


def climb(function: Function, ranges: Sequence[Range], number: int, points: list[Tensor]) -> float:
    """The largest Jacobian norm on a gradient's way up from here, inside the ranges."""
    best = 0.0
    widths = [float((one.high - one.low).nan_to_num(1.0, 1.0, 1.0).max()) for one in ranges]
    for step in range(_STEPS):
        points = [x.detach().requires_grad_() for x in points]
        found = norm(jacobian(function, points, number))
        if not bool(torch.isfinite(found)):
            break
        best = max(best, float(found.detach()))
        if not found.requires_grad:
            break
        try:
            slopes = torch.autograd.grad(found, points, allow_unused=True)
        except RuntimeError:  # a second derivative that torch has not
            break
        moved = []
        for x, slope, one, width in zip(points, slopes, ranges, widths, strict=True):
            if slope is None or not bool(torch.isfinite(slope).all()):
                moved.append(x.detach())
                continue
            length = float(torch.linalg.vector_norm(slope, ord=math.inf)) or 1.0
            moved.append(inside(one, x.detach() + slope / length * width * 0.7**step))
        points = moved
    return best


def largest_jacobian(function: Function, ranges: Sequence[Range], number: int, seed: int) -> float:
    """The largest partial Jacobian norm found on the ranges: many starts, the best of which climb."""
    noise = torch.Generator().manual_seed(seed)
    starts = []
    for kind in range(_STARTS):
        points = [draw(one, noise, kind + place) for place, one in enumerate(ranges)]
        found = float(norm(jacobian(function, points, number)).detach())
        starts.append((found if math.isfinite(found) else 0.0, points))
    starts.sort(key=lambda start: -start[0])
    return max([starts[0][0], *(climb(function, ranges, number, points) for _, points in starts[:_CLIMBERS])])


def assert_inside(value: Tensor, one: Range, scale: float) -> None:
    slack = ROUNDING * scale
    assert one.shape == tuple(value.shape)
    assert bool((value >= one.low - slack).all()), float((one.low - value).max())
    assert bool((value <= one.high + slack).all()), float((value - one.high).max())
    if one.center is not None:
        away = value - one.center
        assert float(torch.linalg.vector_norm(away)) <= math.exp(min(one.radius, 700.0)) + slack
        if away.dim():
            assert float(torch.linalg.vector_norm(away, dim=-1).max()) <= math.exp(min(one.rows, 700.0)) + slack


def assert_holds(mapping: Nonlinear, function: Function, ranges: Sequence[Range], seed: int = 0) -> list[float]:
    """Nothing found on the ranges is above the slopes or outside the image; the shares of the slopes that were met."""
    noise = torch.Generator().manual_seed(seed + 1)
    slopes = mapping.slopes(ranges)
    assert len(slopes) == len(ranges)
    example = function(*(draw(one, noise, 0) for one in ranges))
    image = mapping.image(ranges, tuple(example.shape)).tightened()
    for kind in range(_STARTS):
        points = [draw(one, noise, kind + place) for place, one in enumerate(ranges)]
        value = function(*points)
        assert_inside(value, image, float(value.abs().max()) + 1e-3)
        others = [inside(one, x + 1e-3 * torch.randn_like(x)) for one, x in zip(ranges, points, strict=True)]
        bound = sum(
            math.exp(min(slope, 700.0)) * float(torch.linalg.vector_norm(x - y))
            for slope, x, y in zip(slopes, points, others, strict=True)
        )
        gap = float(torch.linalg.vector_norm(value - function(*others)))
        assert gap <= bound * (1 + 1e-9) + 1e-10 * float(value.abs().max() + 1)
    shares = []
    for number, slope in enumerate(slopes):
        found = largest_jacobian(function, ranges, number, seed)
        constant = math.exp(min(slope, 700.0))
        assert found <= constant * (1 + ROUNDING) + 1e-250, (number, found, constant)
        shares.append(found / constant if constant else 0.0)
    return shares
