"""Depthwise convolutions, group by group: each group's bound holds for that group, and the largest group is found."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import reference
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import weights
from torch import Tensor

from lipcheck.engines.enclose import Settings, spectral_norm
from lipcheck.engines.vectors import bound_groups
from lipcheck.operators import Convolution
from lipcheck.symbol import as_matrix, convolution_symbol, grids

CPU = torch.device("cpu")


@st.composite
def depthwise(draw: st.DrawFn, *, most_groups: int = 12) -> Convolution:
    """One input or one output per group, on one axis or two."""
    axes, groups = draw(st.integers(1, 2)), draw(st.integers(2, most_groups))
    outputs, inputs = draw(st.sampled_from(((1, 1), (1, 1), (3, 1), (1, 2))))
    kernel, size = draw(st.integers(1, 5)), draw(st.integers(1, 8 if axes == 1 else 5))
    stride = draw(st.integers(1, 2))
    weight = draw(weights((groups * outputs, inputs, *(kernel,) * axes)))
    after = (size - 1) // stride + 1
    return Convolution(
        weight, (stride,) * axes, (1,) * axes, groups, ((kernel - 1) // 2,) * axes, (size,) * axes, (after,) * axes
    )


@given(depthwise(most_groups=5), st.sampled_from((1 << 26, 1)))
def test_every_group_has_a_bound_of_its_own(operator: Convolution, memory: int) -> None:
    symbol = convolution_symbol(operator)
    if symbol.side != 1:
        return
    found = bound_groups(symbol, grids(operator, symbol, 1e-3), CPU, memory)
    assert found.upper.shape == (operator.groups,)
    assert float(found.upper[found.top]) == float(found.upper.max())
    for matrix, upper in zip(as_matrix(operator).double(), found.upper.tolist(), strict=True):
        assert reference.norm(matrix) <= upper * reference.slack(matrix)


@settings(max_examples=draws(150))
@given(depthwise(), st.sampled_from((1e-3, 1e-6)), st.sampled_from((1 << 28, 1)))
def test_the_largest_group_is_found(operator: Convolution, tolerance: float, memory: int) -> None:
    bound = spectral_norm(operator, Settings(tolerance=tolerance, memory=memory))
    matrix = reference.written_out(operator)
    reference.assert_encloses(bound, matrix)
    if memory > 1:
        assert bound.upper <= reference.norm(matrix) * (1 + 1e-6)


@pytest.mark.parametrize("uncertainty", [1e-2, 1e-1])
def test_a_group_that_is_looked_at_no_further_is_as_uncertain_as_the_rest(uncertainty: float) -> None:
    """One tap above one, and [1 1 1 -1 1] with norm one, whose negative tap lowers its peak: it can move more."""
    quiet = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    quiet = quiet / reference.norm(reference.written_out(reference.toeplitz(quiet.tolist(), 40)))
    single = torch.tensor([0.0, 0.0, 1 + uncertainty / 4, 0.0, 0.0], dtype=torch.float64)
    weight = torch.stack([single, quiet])[:, None]
    operator = Convolution(weight, (1,), (1,), 2, (2,), (40,), (40,), uncertainty=uncertainty)
    bound = spectral_norm(operator)
    moved = _most_moved(quiet, uncertainty)
    matrix = reference.written_out(replace(operator, weight=torch.stack([single, moved])[:, None]))
    assert reference.norm(matrix) <= bound.upper * reference.slack(matrix)


def _most_moved(taps: Tensor, uncertainty: float) -> Tensor:
    """Every tap larger or smaller by its uncertainty, whichever raises the norm most."""
    choices = torch.cartesian_prod(*[torch.tensor([1 - uncertainty, 1 + uncertainty], dtype=torch.float64)] * len(taps))
    moved = [taps * choice for choice in choices]
    return max(moved, key=lambda one: reference.norm(reference.written_out(reference.toeplitz(one.tolist(), 40))))


def test_groups_whose_symbols_tie_are_all_bounded() -> None:
    weight = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64).expand(70, 1, 3).clone()
    operator = Convolution(weight, (1,), (1,), 70, (1,), (6,), (6,))
    bound = spectral_norm(operator)
    assert bound.upper == pytest.approx(2 + 2 * math.cos(math.pi / 7), rel=1e-6)
    reference.assert_encloses(bound, reference.written_out(operator))
