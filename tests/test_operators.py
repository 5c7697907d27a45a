"""The operators as maps: forward and adjoint are the same matrix, the one that torch's own layers apply."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import convolutions
from torch import Tensor
from torch.nn import functional

from lipcheck.operators import Convolution, Dense, output_length, scaled_rows
from lipcheck.symbol import as_matrix, matrix_entries, matrix_sides


def by_definition(operator: Convolution) -> Tensor:
    """y[o, i] = sum_c sum_k W[o, c, k] x[c, s i + d k - p], one product at a time."""
    outputs, per_group = operator.weight.shape[0] // operator.groups, operator.weight.shape[1]
    shape = (operator.weight.shape[0], *operator.output_size, operator.input_channels, *operator.input_size)
    matrix = torch.zeros(shape, dtype=torch.float64)
    weight = operator.weight.double()
    places = itertools.product(*map(range, operator.output_size))
    for place, tap in itertools.product(places, itertools.product(*map(range, operator.kernel))):
        read = [s * i + d * k - p for s, i, d, k, p in
                zip(operator.stride, place, operator.dilation, tap, operator.offset, strict=True)]  # fmt: skip
        if operator.circular:
            read = [x % n for x, n in zip(read, operator.input_size, strict=True)]
        if any(not 0 <= x < n for x, n in zip(read, operator.input_size, strict=True)):
            continue
        for o, c in itertools.product(range(len(weight)), range(per_group)):
            matrix[(o, *place, (o // outputs) * per_group + c, *read)] += weight[(o, c, *tap)]
    return matrix.reshape(shape[0] * math.prod(operator.output_size), -1)


def whole(operator: Convolution) -> Tensor:
    """The groups' matrices of `as_matrix` on one diagonal. Shapes: as `written_out`."""
    matrix: Tensor = torch.block_diag(*as_matrix(operator).double())  # type: ignore[no-untyped-call]
    return matrix


def units(channels: int, size: tuple[int, ...]) -> Tensor:
    count = channels * math.prod(size)
    return torch.eye(count, dtype=torch.float64).reshape(count, channels, *size)


def test_the_reference_is_the_definition() -> None:
    weight = torch.randn(4, 2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for circular, offset in itertools.product((False, True), ((1, 0), (4, -2), (-1, 3))):
        sizes = ((6, 4), (3, 4)) if circular else ((5, 4), (4, 3))
        operator = Convolution(weight, (2, 1), (1, 2), 2, offset, *sizes, circular=circular)
        torch.testing.assert_close(reference.written_out(operator), by_definition(operator), rtol=1e-15, atol=1e-15)


@given(convolutions())
def test_forward_adjoint_and_matrix_agree(operator: Convolution) -> None:
    matrix = reference.written_out(operator)
    # Circular taps that fall on one input are summed: that sum alone is rounded.
    rest = 8 * torch.finfo(torch.float64).eps * float(operator.weight.double().abs().max())
    forward = operator.forward(units(operator.input_channels, operator.input_size)).flatten(1).T
    adjoint = operator.adjoint(units(operator.weight.shape[0], operator.output_size)).flatten(1)
    torch.testing.assert_close(forward, matrix, rtol=0.0, atol=rest)
    torch.testing.assert_close(adjoint, matrix, rtol=0.0, atol=rest)
    torch.testing.assert_close(whole(operator), matrix, rtol=0.0, atol=rest)
    rows, columns = matrix_sides(operator)
    assert (operator.groups * rows, operator.groups * columns) == matrix.shape
    assert matrix_entries(operator) == operator.groups * rows * columns


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_circular_taps_that_meet_are_summed_in_float64(dtype: torch.dtype) -> None:
    """A kernel longer than its circular input: the sum of two taps is no number of the weight's own dtype."""
    weight = torch.rand(1, 1, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    operator = Convolution(weight, (1,), (1,), 1, (2,), (3,), (3,), circular=True)
    torch.testing.assert_close(whole(operator), reference.written_out(operator), rtol=1e-15, atol=0.0)


@given(convolutions(), st.integers(0, 2**32 - 1), st.booleans())
def test_scaled_rows_scale_the_outputs_of_what_is_applied(operator: Convolution, seed: int, single: bool) -> None:
    channels = operator.input_channels if operator.transposed else operator.weight.shape[0]
    generator = torch.Generator().manual_seed(seed)
    gain = torch.randn(1 if single else channels, generator=generator, dtype=torch.float64)
    scaled = scaled_rows(operator, gain, 0.0)
    assert isinstance(scaled, Convolution)
    before, after = reference.written_out(operator), reference.written_out(scaled)
    if operator.transposed:
        before, after = before.T, after.T
    spread = gain.expand(channels).repeat_interleave(len(before) // channels)
    expected = spread[:, None] * before
    scale = float(operator.weight.double().abs().max()) * float(gain.abs().max())
    torch.testing.assert_close(after, expected, rtol=1e-15, atol=1e-15 * scale)
    assert scaled.uncertainty >= 2.0**-53


def test_scaled_rows_of_a_matrix() -> None:
    matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    scaled = scaled_rows(Dense(matrix), torch.tensor([2.0, -1.0]), 1e-3)
    assert isinstance(scaled, Dense)
    assert scaled.matrix.tolist() == [[2.0, 4.0], [-3.0, -4.0]]
    assert scaled.uncertainty >= 1e-3 + 2.0**-53


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4))
def test_output_length_is_that_of_torch(n: int, k: int, s: int, d: int, padding: int) -> None:
    length = output_length(n, k, s, d, 2 * padding)
    if length < 1:
        return
    y = functional.conv1d(torch.zeros(1, 1, n), torch.zeros(1, 1, k), None, s, padding, d)
    assert y.shape[2] == length


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_work_in_the_dtype_of_their_argument(dtype: torch.dtype) -> None:
    operator = replace(reference.toeplitz([1.0, 2.0, 1.0], 5), weight=torch.ones(1, 1, 3, dtype=torch.bfloat16))
    assert operator.forward(torch.ones(1, 1, 5, dtype=dtype)).dtype == dtype
    assert operator.adjoint(torch.ones(1, 1, 5, dtype=dtype)).dtype == dtype
