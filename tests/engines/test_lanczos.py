"""Lower bounds: what a vector attains, less its rounding, is never above the norm, and the search finds most of it."""

from __future__ import annotations

import math

import mpmath
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import convolutions, matrices
from torch import Tensor

from lipcheck.engines import lanczos
from lipcheck.engines.certified import Certified, certify
from lipcheck.engines.gram import matrix_magnitude, scaled_by_power
from lipcheck.operators import Convolution
from lipcheck.symbol import Grid, convolution_symbol, grids


def scaled(matrix: Tensor) -> Tensor:
    largest = float(matrix.double().abs().max()) if matrix.numel() else 0.0
    return scaled_by_power(matrix, -math.frexp(largest)[1])


def certified(operator: Convolution) -> Certified:
    symbol = convolution_symbol(operator)
    offered = grids(operator, symbol, 1e-3)
    return certify([symbol], offered, tolerance=1e-3, device=torch.device("cpu"), memory=1 << 28)[0]


@given(matrices(side=10), st.integers(0, 2**31), st.sampled_from((1.0, 1e-200, 1e200)))
def test_what_a_vector_attains_is_lowered_below_the_truth(matrix: Tensor, seed: int, length: float) -> None:
    matrix = scaled(matrix)
    x = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * length
    claimed = lanczos.attained(lambda v: matrix @ v, x, terms=matrix.shape[1], magnitude=matrix_magnitude(matrix))
    truth = reference.attained_norm(matrix, x)
    assert mpmath.mpf(claimed) <= truth
    assert claimed >= float(truth) * (1 - 1e-12) - 1e-12 * matrix_magnitude(matrix)


@given(st.integers(0, 2**31), st.integers(2, 40))
def test_what_is_left_of_a_cancellation_is_not_claimed(seed: int, columns: int) -> None:
    """A row and a vector that are orthogonal but for rounding: the computed image is nothing but rounding."""
    generator = torch.Generator().manual_seed(seed)
    row, x = torch.randn(2, columns, generator=generator, dtype=torch.float64)
    x = x - (x @ row) / (row @ row) * row
    claimed = lanczos.attained(
        lambda v: (row * v).sum()[None], x, terms=columns, magnitude=matrix_magnitude(row[None])
    )  # fmt: skip
    assert mpmath.mpf(claimed) <= reference.attained_norm(row[None], x)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.tensor([1.0, math.inf, 0.0]), torch.tensor([math.nan, 0.0, 0.0])])
def test_a_vector_that_shows_nothing_claims_nothing(x: Tensor) -> None:
    assert lanczos.attained(lambda v: v, x, terms=1, magnitude=1.0) == 0.0


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 0.9])
@pytest.mark.parametrize("rows", [10**4, 10**5, 10**6])
def test_the_rounding_of_a_long_image_is_taken_off_too(value: float, rows: int) -> None:
    """One input and many outputs: the sum of the outputs' squares is what rounds most."""
    column = torch.full((rows,), value, dtype=torch.float64)
    with mpmath.workdps(reference.DIGITS):
        truth = mpmath.sqrt(rows) * mpmath.mpf(value)
        claimed = lanczos.attained(
            lambda v: column * v, torch.ones(1), terms=1, magnitude=float(truth) * (1 + 1e-9)
        )  # fmt: skip
        assert mpmath.mpf(claimed) <= truth
    assert claimed >= float(truth) * (1 - 1e-8)


@given(convolutions())
def test_the_search_finds_nearly_all_of_the_norm(operator: Convolution) -> None:
    weight = scaled(operator.weight)
    operator = Convolution(weight, operator.stride, operator.dilation, operator.groups, operator.offset,
                           operator.input_size, operator.output_size, operator.circular)  # fmt: skip
    matrix = reference.written_out(operator)
    truth = reference.norm(matrix)
    if truth == 0:
        return
    # As the engine does: a start that is the adjoint of something has no part that the operator does not see.
    noise = torch.randn(1, len(weight), *operator.output_size, generator=torch.Generator().manual_seed(1))
    start = operator.adjoint(noise.double())
    found = lanczos.leading_vector(operator.forward, operator.adjoint, start, steps=30, accuracy=1e-6)
    assert found.shape == start.shape
    attained = float(torch.linalg.vector_norm(matrix @ found.flatten()) / torch.linalg.vector_norm(found))
    assert attained <= truth * reference.slack(matrix)
    assert attained >= 0.98 * truth


@given(convolutions())
def test_a_start_is_an_output_of_the_convolution(operator: Convolution) -> None:
    start = lanczos.start_vector(operator, convolution_symbol(operator), certified(operator))
    if start is None:
        assert not operator.weight.any()
        return
    assert start.shape == (1, operator.weight.shape[0], *operator.output_size)
    assert start.dtype == torch.float32
    assert bool(torch.isfinite(start).all())
    assert bool(start.any())


@pytest.mark.parametrize(("outputs", "inputs"), [(3, 3), (6, 2), (2, 6)])
def test_the_start_alone_shows_most_of_the_norm_of_a_large_input(outputs: int, inputs: int) -> None:
    weight = torch.randn(outputs, inputs, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    operator = Convolution(weight, (1,), (1,), 1, (2,), (400,), (400,))
    found = certified(operator)
    start = lanczos.start_vector(operator, convolution_symbol(operator), found)
    assert start is not None
    image = operator.adjoint(start.double())
    assert float(torch.linalg.vector_norm(image) / torch.linalg.vector_norm(start)) >= 0.99 * found.upper


def test_no_peak_no_start() -> None:
    operator = reference.toeplitz([0.0, 0.0, 0.0], 5)
    nothing = Certified(0.0, Grid((1,), (0,)), None)
    assert lanczos.start_vector(operator, convolution_symbol(operator), nothing) is None
