"""Ranges by themselves: what they say of norms is above the norms, and cutting one with another loses nothing."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcheck.ranges import Range, log_norm, log_row_norm

SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from([1e-150, 1e-3, 1.0, 1e160, 1e300])
SHAPE = (1, 4, 5)


def drawn(seed: int, scale: float) -> tuple[Range, torch.Tensor]:
    """A box and a ball around different places, and a point of both."""
    generator = torch.Generator().manual_seed(seed)
    x, other, width = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    low, high = x - width.abs() * torch.rand(1, generator=generator), x + width.abs()
    radius = float(torch.linalg.vector_norm(x - other)) * (1 + 1e-12)
    rows = float(torch.linalg.vector_norm(x - other, dim=-1).max()) * (1 + 1e-12)
    one = Range(low * scale, high * scale, other * scale)
    logs = (math.log(radius) + math.log(scale) + 1e-9, math.log(rows) + math.log(scale) + 1e-9)
    return one.with_ball(one.center, *logs), x * scale


def truth(x: torch.Tensor) -> float:
    top = float(x.abs().max())
    return math.log(float(torch.linalg.vector_norm(x / top))) + math.log(top)


@given(SEEDS, SCALES)
def test_norms_of_a_point_are_below_those_of_its_range(seed: int, scale: float) -> None:
    one, x = drawn(seed, scale)
    assert log_norm(x) >= truth(x) - 1e-13 * abs(truth(x))
    assert one.log_norm() >= truth(x)
    assert one.log_row_norm() >= max(truth(row) for row in x[0])
    assert one.log_magnitude() >= math.log(float(x.abs().max()))
    assert log_row_norm(x) <= log_norm(x) + 1e-8


@given(SEEDS, SCALES)
def test_tightening_and_meeting_keep_the_point(seed: int, scale: float) -> None:
    one, x = drawn(seed, scale)
    tight = one.tightened()
    wide = Range(x - 2.0 * scale, x + 1.5 * scale)
    for found in (tight, tight.meet(wide), wide.meet(one).tightened()):
        assert bool((found.low <= x).all())
        assert bool((x <= found.high).all())
        assert found.center is not None
        assert log_norm(x - found.center) <= found.radius + 1e-8
        assert log_row_norm(x - found.center) <= found.rows + 1e-8
    assert tight.radius <= one.radius
    assert bool((tight.high - tight.low <= (one.high - one.low) * (1 + 1e-9)).all())


def test_what_is_not_known_is_infinite() -> None:
    one = Range.unknown(SHAPE)
    assert one.is_unknown
    assert not one.bounded
    assert one.log_norm() == one.log_row_norm() == one.log_magnitude() == math.inf
    assert Range.between(-1, 2, SHAPE).largest == 2
    assert Range.between(-1, 2, SHAPE).smallest == -1


def test_numbers_that_are_none_become_infinite_ends() -> None:
    one = Range.box(torch.tensor([math.nan, -math.inf, 1.0]), torch.tensor([math.nan, 3.0, math.inf]))
    assert one.low.tolist()[:2] == [-math.inf, -math.inf]
    assert one.high.tolist()[0] == one.high.tolist()[2] == math.inf
