"""The banded factorisation says yes just above the norm and never below it, whatever a library's kernels return."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lipcheck.engines import banded
from lipcheck.engines.banded import Layout

CPU = torch.device("cpu")
BELOW = (1 - 1e-3, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1 - 1e-15)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels so narrow that small matrices slide through the window."""
    monkeypatch.setattr(banded, "_PANEL", 5)
    monkeypatch.setattr(banded, "_TILE", 3)


def banded_gram(layout: Layout, seed: int, kind: str = "gaussian") -> Tensor:
    """A A^T with this band, entries near one."""
    n = layout.order
    noise = torch.Generator().manual_seed(seed)
    root = torch.randn(n, 2 * n, generator=noise, dtype=torch.float64)
    if kind == "rank one":
        root = torch.ones(n, 1, dtype=torch.float64) * torch.arange(1.0, n + 1, dtype=torch.float64)[:, None]
    elif kind == "flat":
        root = torch.linalg.qr(root.T)[0].T
    elif kind == "graded":
        root = root * 10.0 ** -torch.linspace(0, 12, n, dtype=torch.float64)[:, None]
    if kind == "gaussian":
        row, column = torch.arange(n)[:, None], torch.arange(2 * n)
        # Rows share no column where they are more than `width` or their blocks more than `reach` apart.
        last = torch.minimum(row + layout.width, (row // layout.block + layout.reach + 1) * layout.block - 1)
        root = root * ((column >= row) & (column <= last))
    return root @ root.T / n


def rows_of(matrix: Tensor, layout: Layout) -> Callable[[int], Tensor]:
    def row(t: int) -> Tensor:
        first = max(0, t - layout.reach) * layout.block
        return matrix[t * layout.block : (t + 1) * layout.block, first : (t + 1) * layout.block].contiguous()

    return row


LAYOUTS = (
    Layout(1, 1, 0, 0),
    Layout(1, 17, 0, 16),
    Layout(7, 4, 2, 11),
    Layout(7, 4, 2, 9),
    Layout(9, 1, 3, 3),
    Layout(3, 11, 1, 15),
    Layout(6, 3, 5, 17),
    Layout(5, 6, 0, 5),
)


def norm_of(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix)[-1]) ** 0.5


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_proof_says_yes_just_above_the_norm_and_never_below(layout: Layout) -> None:
    for seed in range(4):
        matrix = banded_gram(layout, seed)
        truth = norm_of(matrix)
        rows = rows_of(matrix, layout)
        assert [f for f in BELOW[:-2] if banded.below(rows, layout, truth * f, 0.0, CPU)] == []
        assert banded.below(rows, layout, truth * (1 + 1e-9), 0.0, CPU)
        assert banded.below(rows, layout, truth * 1e3, 0.0, CPU)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", ["flat", "rank one", "graded"])
def test_singular_matrices_are_not_proved_at_their_norm(kind: str) -> None:
    """At the norm every pivot of the flat one vanishes, and a factorisation may well run through."""
    layout = Layout(6, 3, 5, 17)
    for seed in range(20):
        matrix = banded_gram(layout, seed, kind)
        truth = norm_of(matrix) if kind != "flat" else layout.order**-0.5
        rows = rows_of(matrix, layout)
        assert [f for f in BELOW if banded.below(rows, layout, truth * f, 0.0, CPU)] == []
        assert banded.below(rows, layout, truth * (1 + 1e-9), 0.0, CPU)


def test_a_blur_is_taken_off() -> None:
    layout = Layout(1, 1, 0, 0)
    rows = rows_of(torch.ones(1, 1, dtype=torch.float64), layout)
    assert banded.below(rows, layout, 1.01, 0.02, CPU)
    assert not banded.below(rows, layout, 1.01, 0.021, CPU)
    assert not banded.below(rows, layout, 1.01, 2.0, CPU)


@pytest.mark.usefixtures("narrow")
@given(st.sampled_from(LAYOUTS), st.integers(0, 2**32 - 1), st.floats(1.0, 30.0))
def test_the_residual_bounds_what_the_factor_misses(layout: Layout, seed: int, spread: float) -> None:
    """M + residual is positive semidefinite for the M that was factored, also where M is all but singular."""
    matrix = banded_gram(layout, seed)
    diagonal = norm_of(matrix) ** 2 * (1 + 2.0**-spread)
    residual = banded.factorisation_residual(rows_of(matrix, layout), layout, diagonal, CPU)
    assert residual < 1e-11 * diagonal
    smallest = float(torch.linalg.eigvalsh(diagonal * torch.eye(layout.order, dtype=torch.float64) - matrix)[0])
    assert smallest >= -residual - 4 * layout.order * 2.0**-52 * diagonal


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("lie", ["factor", "rounded factor", "solve", "nothing", "nan"])
def test_kernels_that_lie_prove_nothing(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(7, 4, 2, 11)
    matrix = banded_gram(layout, 0)
    truth = norm_of(matrix)
    factor, solve = torch.linalg.cholesky_ex, torch.linalg.solve_triangular

    def wrong_factor(block: Tensor) -> tuple[Tensor, Tensor]:
        # What a lie before this one left behind need not be finite.
        block = (block.tril() + block.tril(-1).T).nan_to_num(0, 1, -1)
        values, vectors = torch.linalg.eigh(block)
        root = torch.linalg.qr((vectors * values.clamp_min(1e-12).sqrt()).T)[1].T
        return {
            "factor": root * root.diagonal().sign(),
            "rounded factor": factor(block + 1e-6 * truth**2 * torch.eye(len(block)))[0].float().double(),
            "nothing": torch.zeros_like(block),
            "nan": torch.full_like(block, math.nan),
        }[lie], torch.zeros((), dtype=torch.int32)

    if lie == "solve":
        monkeypatch.setattr(torch.linalg, "solve_triangular", lambda *a, **k: solve(*a, **k) * (1 - 1e-6))
    else:
        monkeypatch.setattr(torch.linalg, "cholesky_ex", wrong_factor)
    for f in (0.5, *BELOW):
        assert not banded.below(rows_of(matrix, layout), layout, truth * f, 0.0, CPU)
    if lie == "solve":
        assert not banded.below(rows_of(matrix, layout), layout, truth * (1 + 1e-9), 0.0, CPU)


@pytest.mark.parametrize("layout", [Layout(30, 60, 2, 150), Layout(4, 300, 1, 599), Layout(200, 6, 3, 20)])
def test_work_and_memory_are_known_beforehand(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banded, "_PANEL", 32)
    monkeypatch.setattr(banded, "_TILE", 64)
    n, flops, held = layout.order, 0.0, 0
    empty, factored, update = torch.empty, banded._panel_factor, banded._update

    def counted_empty(*shape: int, **how: Any) -> Tensor:
        nonlocal held
        held += 8 * math.prod(shape)
        return empty(*shape, **how)

    def counted_factor(panel: Tensor, columns: int) -> Tensor | None:
        nonlocal flops
        rows = float(len(panel))
        flops += columns**3 / 3 + (rows - columns) * columns**2 + 2 * rows * columns**2
        return factored(panel, columns)

    def counted_update(trailing: Tensor, factor: Tensor) -> None:
        nonlocal flops
        rows, columns = factor.shape
        flops += sum(2.0 * (rows - start) * min(64, rows - start) * columns for start in range(0, rows, 64))
        update(trailing, factor)

    monkeypatch.setattr(torch, "empty", counted_empty)
    monkeypatch.setattr(banded, "_panel_factor", counted_factor)
    monkeypatch.setattr(banded, "_update", counted_update)
    rows = rows_of(torch.zeros(n, n, dtype=torch.float64), layout)
    assert banded.below(rows, layout, 1.0, 0.0, CPU)
    assert flops == pytest.approx(layout.flops, rel=0.03)
    assert held == 8 * layout.window**2 < layout.memory
    assert layout.memory < 8 * n * n or layout.window > n / 2


def test_the_error_of_large_layouts_is_small() -> None:
    for layout in (Layout(7, 3584, 2, 8703), Layout(28, 3584, 2, 7423)):
        assert banded._error(layout, 0.0, layout.order, 1.0) < 1e-7
