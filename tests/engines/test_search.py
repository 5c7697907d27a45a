"""Estimates of eigenvalues: never above by more than rounding, and close where they are asked to be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lipcheck.engines.search import top_eigenpairs


def gram(seed: int, n: int, r: int, columns: int, dtype: torch.dtype = torch.float64) -> Tensor:
    factor = torch.randn(n, r, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return factor @ factor.mH


@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 30),
    st.integers(1, 12),
    st.sampled_from((torch.float64, torch.complex128)),
    st.booleans(),
)
def test_an_estimate_is_never_above(
    seed: int, n: int, r: int, columns: int, steps: int, dtype: torch.dtype, orthogonal: bool
) -> None:
    matrices = gram(seed, n, r, columns, dtype)
    values, vectors = top_eigenpairs(matrices, steps=steps, orthogonal=orthogonal)
    exact = torch.linalg.eigvalsh(matrices)[:, -1]
    assert bool((values <= exact * (1 + 1e-12)).all())
    torch.testing.assert_close(torch.linalg.vector_norm(vectors, dim=1), torch.ones(n, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("r", [1, 2, 7, 40])
def test_enough_steps_find_the_eigenpair(dtype: torch.dtype, r: int) -> None:
    matrices = gram(r, 3, r, r + 2, dtype)
    values, vectors = top_eigenpairs(matrices, steps=200, accuracy=1e-13)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrices)[:, -1], rtol=1e-11, atol=0)
    residual = torch.bmm(matrices, vectors[:, :, None])[:, :, 0] - values[:, None] * vectors
    assert bool((torch.linalg.vector_norm(residual, dim=1) <= 1e-5 * values).all())


def test_a_dozen_plain_steps_in_float32_find_most_of_it() -> None:
    matrices = gram(3, 8, 64, 64)
    values, _ = top_eigenpairs(matrices.float(), steps=10, orthogonal=False)
    assert bool((values.double() >= 0.97 * torch.linalg.eigvalsh(matrices)[:, -1]).all())


@pytest.mark.parametrize(
    "matrix",
    [torch.zeros(6, 6), torch.eye(6), torch.ones(6, 6), torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0]))],
)
def test_repeated_and_vanishing_eigenvalues_break_nothing(matrix: Tensor) -> None:
    """The Krylov space is exhausted after one step or two."""
    values, vectors = top_eigenpairs(matrix.double()[None], steps=50, accuracy=1e-13)
    assert float(values) == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-12, abs=1e-12)
    assert bool(torch.isfinite(vectors).all())


def test_a_good_start_is_used() -> None:
    matrices = gram(1, 1, 30, 30)
    top = torch.linalg.eigh(matrices)[1][:, :, -1]
    values, _ = top_eigenpairs(matrices, steps=1, start=top)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrices)[:, -1], rtol=1e-13, atol=0)


def test_the_same_call_gives_the_same_bits() -> None:
    matrices = gram(1, 5, 16, 16)
    first, second = (top_eigenpairs(matrices, steps=8) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
