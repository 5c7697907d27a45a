"""Depthwise convolutions: Gram matrices of the groups as they are, and enclosures of what LAPACK finds."""

from __future__ import annotations

import pytest
import reference
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import convolutions

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import depthwise
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution
from lipcheck.symbol import as_matrix, convolution_symbol, trimmed


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def square(weight: torch.Tensor, n: int, stride: int = 1) -> Convolution:
    axes, outputs = weight.dim() - 2, -(-n // stride)
    offset = tuple(k // 2 for k in weight.shape[2:])
    return Convolution(weight, (stride,) * axes, (1,) * axes, len(weight), offset, (n,) * axes, (outputs,) * axes)


def bounded(operator: Convolution, tolerance: float = 1e-3) -> Bound:
    return depthwise.spectral_norm(operator, convolution_symbol(operator), Settings(tolerance=tolerance))


@given(convolutions())
def test_gram_matrices_are_within_their_error_of_those_of_the_matrix(operator: Convolution) -> None:
    weight = operator.weight.double()
    operator = trimmed(Convolution(weight / weight.abs().max().clamp_min(1e-300), *_geometry(operator)))
    found = depthwise._gram_matrices(operator)
    matrix, size = as_matrix(operator), as_matrix(_with(operator, operator.weight.abs()))
    if not found.outputs:
        matrix, size = matrix.mT, size.mT
    # The same positions in another order: those of the first axis come before the channels.
    sides = (found.channels, found.size[0], -1)
    order = torch.arange(matrix.shape[1]).reshape(sides).transpose(0, 1).flatten()
    matrix, size = matrix[:, order], size[:, order]
    # LAPACK's product has the rounding of as many terms.
    allowed = (found.error + rounding.gamma(matrix.shape[2] + 2)) * (size @ size.mT) + 1e-280
    assert bool(((found.matrices - matrix @ matrix.mT).abs() <= allowed).all())


def _geometry(operator: Convolution) -> tuple[object, ...]:
    sizes = (operator.offset, operator.input_size, operator.output_size)
    return (operator.stride, operator.dilation, operator.groups, *sizes, operator.circular)


def _with(operator: Convolution, weight: torch.Tensor) -> Convolution:
    return Convolution(weight, *_geometry(operator))


@settings(max_examples=draws(60))
@given(
    st.integers(1, 12),
    st.sampled_from(((3, 3), (7, 7), (1, 5), (4,), (2, 3, 2))),
    st.integers(1, 3),
    st.integers(0, 99),
    st.sampled_from((1.0, 1e-30, 1e30)),
    st.booleans(),
)
def test_no_group_is_above_the_bound(
    groups: int, kernel: tuple[int, ...], stride: int, seed: int, scale: float, alike: bool
) -> None:
    weight = noise(groups, 1, *kernel, seed=seed) * scale
    if alike:
        # Many groups within an ulp or so of the largest.
        weight = weight[:1] * (1 + 1e-15 * noise(groups, *(1,) * (len(kernel) + 1), seed=seed))
    # The whole matrix is written out, all groups of it: shorter sides where there are three.
    operator = trimmed(square(weight, 6 if len(kernel) < 3 else 4, stride))
    bound = bounded(operator)
    matrix = reference.written_out(operator)
    reference.assert_encloses(bound, matrix)
    assert bound.upper <= reference.norm(matrix) * (1 + 1e-5)


def test_a_side_too_large_for_eigenvalues_is_searched_and_proved_by_a_factorisation() -> None:
    operator = square(noise(24, 1, 5, 5), 15)
    bound = bounded(operator)
    truth = max(float(torch.linalg.matrix_norm(one, 2)) for one in as_matrix(operator))
    assert bound.lower <= truth * (1 + 1e-12)
    assert truth * (1 - 1e-12) <= bound.upper <= truth * (1 + 1e-4)


@pytest.mark.parametrize("side", [13, 21])  # matrices that are searched as they are, and through the convolution
def test_a_search_that_stops_short_is_made_up_for(monkeypatch, side) -> None:
    operator = square(noise(6, 1, 3, 3), side)
    truth = max(float(torch.linalg.matrix_norm(one, 2)) for one in as_matrix(operator))
    searches = []
    original = depthwise._Search._searched

    def short(self: depthwise._Search, group: int, *matrix: object) -> float:
        searches.append(group)
        return 0.5 * original(self, group, *matrix)

    monkeypatch.setattr(depthwise._Search, "_searched", short)
    bound = bounded(operator)
    assert searches
    assert truth * (1 - 1e-12) <= bound.upper <= truth * (1 + 1e-4)


def test_groups_that_are_far_below_the_largest_are_not_formed(monkeypatch) -> None:
    formed = []
    original = depthwise._gram_matrices

    def counted(operator: Convolution) -> object:
        formed.append(operator.groups)
        return original(operator)

    monkeypatch.setattr(depthwise, "_gram_matrices", counted)
    weight = noise(40, 1, 3, 3) * 1e-3
    weight[17] *= 1e4
    bounded(square(weight, 14))
    assert formed == [1]


def test_groups_of_zeros_and_of_nothing_but_rounding() -> None:
    weight = torch.zeros(5, 1, 3, 3, dtype=torch.float64)
    weight[2, 0, 1, 1] = 5e-324
    bound = bounded(square(weight, 4))
    assert bound.lower <= 5e-324 <= bound.upper <= 4 * 5e-324
