"""The bound from a random start: it holds on every draw tried, says what it is, and steps as the theorem asks."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcheck.engines import randomised
from lipcheck.engines.enclose import spectral_norm
from lipcheck.engines.settings import Settings
from lipcheck.operators import LinearMap


def linear_map(matrix: torch.Tensor) -> LinearMap:
    rows, columns = matrix.shape
    return LinearMap(lambda x: x @ matrix.T, lambda y: y @ matrix, (columns,), (rows,))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000), st.sampled_from([1e-30, 1.0, 1e30]))
def test_the_norm_lies_within(rows: int, columns: int, seed: int, scale: float) -> None:
    matrix = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale
    bound = randomised.spectral_norm(linear_map(matrix), seed=seed)
    exact = reference.norm(matrix)
    assert bound.kind == "probabilistic"
    assert bound.lower <= exact * (1 + 1e-9)
    assert exact <= bound.upper


def test_a_slow_spectrum_is_bounded_on_every_draw() -> None:
    # Eigenvalues that crowd below the largest are where Lanczos falls short.
    values = 1 - torch.linspace(0, 1, 3000, dtype=torch.float64) ** 2 * 1e-2
    slow = LinearMap(lambda x: x * values, lambda y: y * values, (3000,), (3000,))
    for seed in range(5):
        bound = randomised.spectral_norm(slow, Settings(tolerance=1e-2), seed=seed)
        assert bound.lower <= 1 <= bound.upper <= 1.011 * bound.lower


def test_memory_limits_the_steps_and_so_the_slack() -> None:
    matrix = torch.randn(400, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ample = randomised.spectral_norm(linear_map(matrix))
    scarce = randomised.spectral_norm(linear_map(matrix), Settings(memory=8 * 400 * 30))
    assert ample.slack < 0.01 < scarce.slack
    assert reference.norm(matrix) <= min(ample.upper, scarce.upper)


def test_too_few_steps_for_any_claim_say_infinity() -> None:
    matrix = torch.eye(50, dtype=torch.float64)
    assert randomised.spectral_norm(linear_map(matrix), Settings(memory=1)).upper == math.inf


def test_zero_is_zero() -> None:
    assert randomised.spectral_norm(linear_map(torch.zeros(3, 4, dtype=torch.float64))).upper == 0


@given(st.integers(1, 10**9), st.floats(1e-4, 0.5), st.sampled_from([1e-3, 1e-9, 1e-30]))
def test_steps_are_enough_for_the_share_they_promise(size: int, share: float, delta: float) -> None:
    steps = randomised.steps_for(size, share, delta)
    assert randomised.missed(size, steps, delta) <= share * (1 + 1e-9)
    # The theorem itself, at that share: the probability is no larger than delta.
    failing = 1.648 * math.sqrt(size) * math.exp(-math.sqrt(randomised.missed(size, steps, delta)) * (2 * steps - 1))
    assert failing <= delta * (1 + 1e-6)


def test_a_map_of_ones_own_is_bounded_by_the_engine() -> None:
    matrix = torch.randn(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    bound = spectral_norm(linear_map(matrix))
    assert "1e-09" in bound.method
    assert bound.lower <= reference.norm(matrix) * (1 + 1e-9) <= bound.upper * (1 + 2e-9)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-9, math.nan])
def test_no_probability(delta: float) -> None:
    with pytest.raises(ValueError, match="delta is"):
        randomised.spectral_norm(linear_map(torch.eye(2, dtype=torch.float64)), delta=delta)
