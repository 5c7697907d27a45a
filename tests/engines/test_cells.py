"""A block of frequencies stands for its centre: never less than what its points can hold, and worth something."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcheck.engines import cells
from lipcheck.engines.certified import certify
from lipcheck.symbol import Grid, Symbol

CPU = torch.device("cpu")


def norms(symbol: Symbol, grid: Grid, index: torch.Tensor) -> torch.Tensor:
    cosine, sine = grid.phases(index, symbol.exponents)
    wave = torch.complex(cosine, sine)
    values = torch.einsum("nq,qij->nij", wave, symbol.coefficients[0].to(torch.complex128))
    return torch.linalg.matrix_norm(values, 2)


def drawn(degrees: tuple[int, ...], side: int, seed: int) -> Symbol:
    exponents = torch.tensor(list(itertools.product(*(range(d + 1) for d in degrees))))
    noise = torch.Generator().manual_seed(seed)
    return Symbol(torch.randn(1, len(exponents), side, side, generator=noise, dtype=torch.float64), exponents)


def assert_blocks_hold(symbol: Symbol, grid: Grid, span: int) -> None:
    """The largest norm on the grid is at most the largest at a centre over the share: what the proofs conclude."""
    index = grid.indices()
    axes = [axis for axis, d in enumerate(symbol.degrees) if d]
    share = cells.block_share(symbol.degrees, grid, axes, span)
    if share == 0:
        return
    _, centre, inside = cells.blocks(grid, axes, span, torch.zeros(len(index), dtype=torch.long), index)
    assert int(inside.max()) == len(centre) - 1
    distance = (index - centre[inside]).abs()
    assert bool((distance <= span - 1).all())
    top = float(norms(symbol, grid, index).max())
    assert top * share <= float(norms(symbol, grid, centre).max()) * (1 + 1e-12)


@settings(max_examples=draws(60))
@given(
    st.sampled_from(((1,), (2,), (5,), (1, 1), (2, 2), (2, 1))),
    st.integers(1, 3),
    st.integers(0, 99),
    st.sampled_from((2, 3, 4, 8)),
    st.integers(2, 14),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_no_point_is_above_what_the_centres_allow(
    degrees: tuple[int, ...], side: int, seed: int, span: int, fine: int, half: tuple[int, int]
) -> None:
    grid = Grid(tuple(fine * d + 1 for d in degrees), half[: len(degrees)])
    assert_blocks_hold(drawn(degrees, side, seed), grid, span)


@pytest.mark.parametrize("span", [2, 3, 4, 8])
@pytest.mark.parametrize("turn", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("half", [0, 1])
def test_the_steepest_polynomial_is_no_exception(span: int, turn: float, half: int) -> None:
    # |1 + exp(i (3 w - t))| / 2 = |cos(3 w / 2 - t / 2)|: Bernstein's and Szego's inequality holds with equality. As a
    # rotation in two channels, for real coefficients.
    rotation = torch.tensor(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64
    )  # fmt: skip
    coefficients = torch.stack([torch.eye(2, dtype=torch.float64), rotation])[None] / 2
    symbol = Symbol(coefficients, torch.tensor([[0], [3]]))
    for points in range(10, 60):
        assert_blocks_hold(symbol, Grid((points,), (half,)), span)


def test_blocks_lose_little_on_fine_grids() -> None:
    grid = Grid((200,), (0,))
    assert cells.block_share((2,), grid, [0], 2) > 1 - 1e-3
    assert cells.block_share((2,), grid, [0], 2) < 1
    assert cells.block_share((2,), grid, [0], 1) == pytest.approx(1, abs=1e-13)
    assert cells.block_share((2,), Grid((9,), (0,)), [0], 8) == 0


@pytest.mark.parametrize("points", [(90, 70), (17, 130)])
@pytest.mark.parametrize("half", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_pruned_grid_is_bounded_above_its_maximum(
    points: tuple[int, int], half: tuple[int, int], monkeypatch
) -> None:
    symbol = drawn((2, 2), 6, 3)
    # One shared peak among much that is low, so that blocks are excluded.
    symbol = Symbol(symbol.coefficients * 0.1 + torch.ones(6, 6) / 6, symbol.exponents)
    grid = Grid(points, half)
    proved = []
    original = cells.blocks

    def counted(*arguments: object) -> object:
        found = original(*arguments)
        proved.append(len(found[0]))
        return found

    monkeypatch.setattr(cells, "blocks", counted)
    found = certify([symbol], [grid], tolerance=1e-3, device=CPU, memory=1 << 28)[0]
    assert proved
    top = float(norms(symbol, grid, grid.indices()).max())
    assert top * (1 - 1e-13) <= found.upper <= top * (1 + 2e-4)
