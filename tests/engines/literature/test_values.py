"""Numbers that can be found by hand, options, precision and memory."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import convolutions

from lipcheck.engines.literature import METHODS, bound_by, errors, gram_kernel, lipbound, schur, tensor_norm
from lipcheck.engines.literature.subject import reduced, symbol_of
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution, Dense, InfiniteConvolution

BOX = reference.toeplitz([1.0, 1.0, 1.0], 7)
EXACT = {
    # Fifty points of degree two, one of them at the peak.
    "lipbound": 3 / math.cos(math.pi / 50),
    "gram": 3.0,
    "gram-embedding": 3.0,
    # All taps are positive: the row sums are the peak itself.
    "gram-kernel": 3.0,
    "fantastic4": 3.0,
    "tensor-norm": 3.0,
    "sedghi": 3.0,
    "reshape": math.sqrt(3),
    "power": 1 + 2 * math.cos(math.pi / 8),
    # The outer taps read the padding once each.
    "frobenius": math.sqrt(6 + 7 + 6),
    "schur": 3.0,
}


@pytest.mark.parametrize("name", METHODS)
def test_the_box_on_seven_points(name: str) -> None:
    options = {"steps": 400} if name == "power" else {}
    assert float(METHODS[name].run(BOX, **options)) == pytest.approx(EXACT[name], rel=1e-9)


def test_polygrid_is_the_weaker_correction() -> None:
    published = lipbound.spectral_norm(BOX, samples=10, correction="polygrid")
    assert float(published) == pytest.approx(3 / (1 - 4 / 10) ** 0.25)
    assert float(lipbound.spectral_norm(BOX, samples=10)) == pytest.approx(3 / math.cos(math.pi / 10))


def test_a_grid_too_coarse_for_the_degree_is_refined() -> None:
    assert float(lipbound.spectral_norm(BOX, samples=3)) == float(lipbound.spectral_norm(BOX, samples=8))


def test_rows_and_columns() -> None:
    """Two equal outputs: the rows see nothing of it, the columns do."""
    weight = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]], dtype=torch.float64)
    operator = Convolution(weight, (1,), (1,), 1, (0,), (6,), (5,))
    correction = math.cos(math.pi / 100)
    rows, columns, best = (
        float(lipbound.spectral_norm(operator, orientation=side)) * correction for side in ("rows", "columns", "best")
    )
    assert rows == pytest.approx(math.sqrt(4 + 4))
    assert columns == best == pytest.approx(2)


def test_schur_leaves_out_taps_that_never_read_together() -> None:
    assert float(schur.spectral_norm(reference.toeplitz([1.0, 1.0, 1.0], 2))) == pytest.approx(2)
    endless = InfiniteConvolution(BOX.weight, (2,), (1,), 1)
    # A row has three taps, a column two or one.
    assert float(schur.spectral_norm(endless)) == pytest.approx(math.sqrt(3 * 2))


def test_schur_by_blocks_is_below_schur_by_entries_where_channels_mix() -> None:
    rotation = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    operator = InfiniteConvolution(torch.stack([rotation, rotation], dim=2), (1,), (1,), 1)
    assert float(schur.spectral_norm(operator, form="entries")) == pytest.approx(2.8)
    assert float(schur.spectral_norm(operator, form="blocks")) == pytest.approx(2)
    assert float(schur.spectral_norm(operator)) == pytest.approx(2)


@given(convolutions(), st.sampled_from(("entries", "blocks")))
@settings(max_examples=draws(25))
def test_schur_bounds_in_either_form(operator: Convolution, form: schur.Form) -> None:
    value = float(schur.spectral_norm(operator, form=form))
    assert reference.norm(reference.written_out(operator)) <= value * (1 + 1e-9)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("offset", [-1, 0, 2])
def test_schur_by_entries_is_that_of_the_matrix(stride: int, dilation: int, offset: int) -> None:
    weight = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = Convolution(weight, (stride,), (dilation,), 1, (offset,), (6,), (4,))
    matrix = reference.written_out(operator).abs()
    product = float(matrix.sum(1).max() * matrix.sum(0).max())
    assert float(schur.spectral_norm(operator, form="entries")) == pytest.approx(math.sqrt(product))
    assert float(METHODS["frobenius"].run(operator)) == pytest.approx(float(torch.linalg.vector_norm(matrix)))


@given(convolutions())
@settings(max_examples=draws(40))
def test_frobenius_is_that_of_the_largest_block(operator: Convolution) -> None:
    matrix = reference.written_out(operator)
    blocks = matrix.reshape(operator.groups, -1, matrix.shape[1])
    truth = max(float(torch.linalg.vector_norm(block / 1e15)) for block in blocks.unbind()) * 1e15
    assert float(METHODS["frobenius"].run(operator)) == pytest.approx(truth, rel=1e-9)


def test_a_tensor_of_rank_one() -> None:
    u, v, x, y = (torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (4, 3, 5, 2))
    weight = torch.einsum("o,c,k,l->ockl", u, v, x, y)
    norms = [float(torch.linalg.vector_norm(vector)) for vector in (u, v, x, y)]
    operator = InfiniteConvolution(weight, (1, 1), (1, 1), 1)
    assert float(METHODS["tensor-norm"].run(operator)) == pytest.approx(math.sqrt(10) * math.prod(norms))


@given(convolutions())
@settings(max_examples=draws(25))
def test_no_tensor_norm_exceeds_that_of_an_unfolding(operator: Convolution) -> None:
    assert float(tensor_norm.spectral_norm(operator, sweeps=20)) <= float(METHODS["fantastic4"].run(operator)) * (
        1 + 1e-9
    )


def test_the_tensor_norm_is_taken_over_complex_vectors() -> None:
    """Re (x + i y)^3 as a tensor: its norm is 1 over the reals and the square root of 2 over the complex numbers."""
    weight = torch.zeros(2, 2, 2, dtype=torch.float64)
    weight[0, 0, 0], weight[0, 1, 1], weight[1, 0, 1], weight[1, 1, 0] = 1, -1, -1, -1
    operator = InfiniteConvolution(weight, (1,), (1,), 1)
    assert float(tensor_norm.spectral_norm(operator, accuracy=1e-12)) == pytest.approx(math.sqrt(2) * math.sqrt(2))


@pytest.mark.parametrize("name", METHODS)
def test_single_precision_is_an_option(name: str) -> None:
    weight = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(2)) * 1e20
    operator = Convolution(weight, (2, 1), (1, 1), 2, (1, 1), (7, 6), (4, 6))
    fast, exact = METHODS[name].run(operator, dtype=torch.float32), METHODS[name].run(operator)
    assert (fast.dtype, exact.dtype) == (torch.float32, torch.float64)
    assert float(fast) == pytest.approx(float(exact), rel=1e-3)


@pytest.mark.parametrize("name", ["lipbound", "gram", "gram-embedding", "sedghi"])
def test_memory_changes_nothing(name: str) -> None:
    weight = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    operator = Convolution(weight, (2, 1), (1, 1), 2, (1, 1), (7, 6), (4, 6))
    assert float(METHODS[name].run(operator, memory=1)) == pytest.approx(float(METHODS[name].run(operator)), rel=1e-13)


def test_the_kernel_iterates_less_where_memory_is_short_and_still_bounds() -> None:
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    operator = Convolution(weight, (1, 1), (1, 1), 1, (1, 1), (6, 6), (6, 6))
    symbol = reduced(symbol_of(operator))
    assert gram_kernel.fitting_iterations(symbol, 5, 1 << 30) == 5
    assert gram_kernel.fitting_iterations(symbol, 5, 1) == 1
    few, many = (bound_by("gram-kernel", operator, Settings(memory=memory)) for memory in (1, 1 << 30))
    reference.assert_encloses(few, reference.written_out(operator))
    assert many.upper < few.upper


@given(convolutions(), st.integers(1, 4))
@settings(max_examples=draws(25))
def test_every_number_of_kernel_iterations_bounds(operator: Convolution, iterations: int) -> None:
    value = float(gram_kernel.spectral_norm(operator, iterations=iterations))
    assert reference.norm(reference.written_out(operator)) <= value * (1 + 1e-9)


def test_the_kernel_form_is_the_autocorrelations_row_sum() -> None:
    """One iteration by hand: [1 2] has the autocorrelation [2 5 2]."""
    operator = reference.toeplitz([1.0, -2.0], 5)
    assert float(gram_kernel.spectral_norm(operator, iterations=1)) == pytest.approx(3)
    # [2 -5 2] squared: [4 -20 33 -20 4].
    assert float(gram_kernel.spectral_norm(operator, iterations=2)) == pytest.approx(81**0.25)
    two = Dense(torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64))
    assert float(gram_kernel.spectral_norm(two, iterations=1)) == pytest.approx(math.sqrt(7))


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6))
def test_polygrid_reaches_its_share(seed: int, degree: int, more: int) -> None:
    """Of |F|, F of this degree, so that |F|^2 is a real trigonometric polynomial of it."""
    noise = torch.randn(degree + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = 2 * degree + more
    on_grid = torch.fft.fft(noise, n=points).abs().max()
    fine = torch.fft.fft(noise, n=64 * points).abs().max()
    assert float(fine) <= float(on_grid) / errors.polygrid_share((degree,), (points,)) * (1 + 1e-12)


def test_polygrid_needs_more_than_twice_the_degree() -> None:
    with pytest.raises(ValueError, match="use at least 5"):
        errors.polygrid_share((2,), (4,))


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=draws(20))
def test_proved_norms_are_above_the_norms_however_low_the_guess(seed: int, rows: int, columns: int) -> None:
    matrices = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrices[2] = 0
    magnitude = torch.linalg.vector_norm(matrices, dim=(1, 2)) * (1 + 1e-12) + 1e-280
    bounds = errors.proved_norms(matrices, torch.zeros(3), magnitude, 1)
    truth = torch.linalg.matrix_norm(matrices, 2)
    assert bool((bounds >= truth * (1 - 1e-14)).all())
    assert bool((bounds <= truth * 2 * (1 + 1e-8) + 1e-100).all())
