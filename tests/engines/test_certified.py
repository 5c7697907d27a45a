"""The certified bound to fifty digits, on symbols that leave no room: nothing is forgiven here."""

from __future__ import annotations

import math

import mpmath
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import matrices
from torch import Tensor

from lipcheck.engines import certified
from lipcheck.engines.certified import Certified, certify
from lipcheck.operators import Convolution
from lipcheck.symbol import Grid, Symbol, convolution_symbol, embedding_points, grids, matrix_symbol

CPU = torch.device("cpu")
ONE = [Grid((1,), (0,))]


def certify_one(symbol: Symbol, offered: list[Grid], tolerance: float = 1e-3, memory: int = 1 << 28) -> Certified:
    return certify([symbol], offered, tolerance=tolerance, device=CPU, memory=memory)[0]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hilbert(side: int) -> Tensor:
    index = torch.arange(1.0, side + 1, dtype=torch.float64)
    return 1 / (index[:, None] + index - 1)


def loud(rows: int, columns: int, axis: int) -> Tensor:
    matrix = noise(rows, columns)
    matrix.narrow(axis, 1, matrix.shape[axis] - 1).mul_(1e-8)
    return matrix


MATRICES = {
    "hilbert": hilbert(10),
    "gaussian": noise(9, 14),
    "tall": noise(14, 3),
    "one number": torch.tensor([[0.1]], dtype=torch.float64),
    "one row": noise(1, 12),
    "one column": noise(12, 1),
    "rank one": torch.outer(noise(9), noise(11, seed=1)),
    "rank one in float32": torch.outer(noise(9), noise(11, seed=1)).float(),
    "one output 1e8 times the rest": loud(9, 11, 0),
    "one input 1e8 times the rest": loud(9, 11, 1),
    "graded": noise(10, 10) * 10.0 ** -torch.arange(0.0, 20.0, 2.0, dtype=torch.float64),
    "zeros": torch.zeros(4, 5),
    "one entry": torch.zeros(6, 6, dtype=torch.float64).index_fill_(0, torch.tensor(2), 0.3)[:, :1] * torch.eye(1, 6),
    "flat": torch.linalg.qr(noise(8, 8))[0],
    "flat, signs": torch.eye(8, dtype=torch.float64).roll(3, 0) * 0.1,
    "repeated": torch.diag(torch.tensor([0.3, 0.3, 0.3, 0.1], dtype=torch.float64)),
    "bfloat16": noise(7, 7).bfloat16(),
    "float16": noise(7, 7).half(),
}
SCALES = (1.0, 1e-30, 1e30, 1e-150, 1e150, 1e-300, 1e300, 1e-310, 5e-324)


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_is_never_bounded_below_its_norm(name: str) -> None:
    for scale in SCALES if MATRICES[name].dtype == torch.float64 else (1.0,):
        matrix = MATRICES[name] * scale
        truth = reference.exact_norm(matrix)
        upper = certify_one(matrix_symbol(matrix), ONE).upper
        assert mpmath.mpf(upper) >= truth
        # 1e-4 is the least that the search leaves; subnormal numbers are as far apart as themselves.
        assert mpmath.mpf(upper) <= truth * (1 + 1e-6) + 4 * mpmath.mpf(5e-324)


@given(matrices(side=7))
def test_a_drawn_matrix_is_never_bounded_below_its_norm(matrix: Tensor) -> None:
    upper = certify_one(matrix_symbol(matrix), ONE).upper
    truth = reference.exact_norm(matrix)
    assert truth <= mpmath.mpf(upper) <= truth * (1 + 1e-6)


def exact_on(symbol: Symbol, grid: Grid) -> mpmath.mpf:
    """max ||F|| over the whole grid, to fifty digits: the real matrix [[Re, -Im], [Im, Re]] has F's norm."""
    best = mpmath.mpf(0)
    with mpmath.workdps(reference.DIGITS):
        for place in grid.indices().tolist():
            for coefficients in symbol.coefficients.double():
                rows, columns = coefficients.shape[1:]
                both = mpmath.zeros(2 * rows, 2 * columns)
                for block, q in zip(coefficients.tolist(), symbol.exponents.tolist(), strict=True):
                    turns = sum(mpmath.mpf(t * x) / m for t, x, m in zip(place, q, grid.points, strict=True))
                    cosine, sine = mpmath.cospi(turns), mpmath.sinpi(turns)
                    for i in range(rows):
                        for j in range(columns):
                            both[i, j] += block[i][j] * cosine
                            both[rows + i, j] += block[i][j] * sine
                for i in range(rows):
                    for j in range(columns):
                        both[rows + i, columns + j], both[i, columns + j] = both[i, j], -both[rows + i, j]
                both = both.T if rows > columns else both
                best = max(best, max(mpmath.svd_r(both, compute_uv=False)))
    return best


def single(*weights: float) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64).reshape(1, 1, -1)


def rotations(angle: float) -> Tensor:
    """I + exp(i w) R(angle): peaks at -angle and angle, wherever that is between the points of a grid."""
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    return torch.stack([torch.eye(2, dtype=torch.float64), rotation], dim=2)


KERNELS = {
    "box": single(1.0, 1.0, 1.0),
    "high-pass": single(-0.1, 0.2, -0.1),
    "flat: one tap": single(0.0, 0.3, 0.0),
    "flat: orthogonal": torch.linalg.qr(noise(3, 3))[0][..., None] * torch.tensor([0.0, 1.0, 0.0]),
    "flat: a shift in one channel, none in the other": torch.diag_embed(
        torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ).mT.double(),
    "repeated peaks": single(1.0, 0.0, 0.0, 0.0, 1.0),
    "peaks between the points": rotations(0.123),
    "gaussian": noise(2, 3, 3),
    "rank one": noise(3, 1, 1) * noise(1, 2, 3, seed=1),
    "one channel 1e8 times the rest": noise(2, 2, 3) * torch.tensor([1.0, 1e-8]).reshape(2, 1, 1),
    "one input 1e8 times the rest": noise(2, 2, 3) * torch.tensor([1.0, 1e-8]).reshape(1, 2, 1),
    "zeros": torch.zeros(2, 2, 3),
    "one group of zeros": noise(4, 2, 3) * torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(4, 1, 1),
    "groups far apart": noise(4, 2, 2) * torch.tensor([1e-30, 1e-30, 1.0, 1.0]).reshape(4, 1, 1),
    "depthwise far apart": noise(4, 1, 3) * torch.tensor([1.0, 1e-20, 0.0, 1e-8]).reshape(4, 1, 1),
    "bfloat16": noise(2, 2, 3).bfloat16(),
}
GROUPS = {"one group of zeros": 2, "groups far apart": 2, "depthwise far apart": 4}


@pytest.mark.parametrize("name", KERNELS)
def test_a_symbol_is_never_bounded_below_its_largest_value_on_the_grid(name: str) -> None:
    weight = KERNELS[name]
    k = weight.shape[2]
    for scale in (1.0, 1e-30, 1e30, 1e-312) if weight.dtype == torch.float64 else (1.0,):
        operator = Convolution(weight * scale, (1,), (1,), GROUPS.get(name, 1), (k // 2,), (8,), (8 + k % 2 - 1,))
        symbol = convolution_symbol(operator)
        for half in (0, 1):
            grid = Grid(embedding_points(operator), (half,))
            found = certify_one(symbol, [grid])
            assert found.grid == grid
            truth = exact_on(symbol, grid)
            assert mpmath.mpf(found.upper) >= truth
            assert mpmath.mpf(found.upper) <= truth * (1 + mpmath.mpf(1e-3)) + 64 * mpmath.mpf(5e-324)


@pytest.mark.parametrize("memory", [1, 1 << 12, 1 << 28])
def test_little_memory_changes_the_chunks_and_not_the_claim(memory: int) -> None:
    operator = Convolution(noise(4, 3, 3, 3), (1, 1), (1, 1), 1, (1, 1), (9, 9), (9, 9))
    symbol = convolution_symbol(operator)
    offered = grids(operator, symbol, 1e-3)
    upper = certify_one(symbol, offered, memory=memory).upper
    assert upper == pytest.approx(certify_one(symbol, offered).upper, rel=1e-3)
    assert reference.norm(reference.written_out(operator)) <= upper


def test_symbols_bounded_together_are_bounded_as_alone() -> None:
    symbols = [
        convolution_symbol(Convolution(noise(4, 2, 3, seed=seed) * 10.0 ** (5 * seed), (1,), (1,), 2, (1,), (9,), (9,)))
        for seed in range(3)
    ]
    offered = [Grid((10,), (0,)), Grid((10,), (1,))]
    told: list[float] = []
    together = certify(symbols, offered, tolerance=1e-3, device=CPU, memory=1 << 28, advance=told.append)
    assert told == [1.0, 1.0, 1.0]
    for symbol, found in zip(symbols, together, strict=True):
        assert found.upper == pytest.approx(certify_one(symbol, offered).upper, rel=1e-3)
        assert mpmath.mpf(found.upper) >= exact_on(symbol, found.grid)
        assert found.upper <= min(float(exact_on(symbol, grid)) for grid in offered) * 1.05


def test_a_bad_guess_is_raised_until_it_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimates are not trusted: with guesses far too low the bound still ends above the truth."""
    operator = Convolution(noise(3, 3, 3), (1,), (1,), 1, (1,), (12,), (12,))
    symbol = convolution_symbol(operator)
    genuine = certified.top_eigenpairs

    def low(matrices_: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        values, vectors = genuine(matrices_, **options)  # type: ignore[arg-type]
        return values * 0.9, vectors

    monkeypatch.setattr(certified, "top_eigenpairs", low)
    for grid in grids(operator, symbol, 1e-3):
        upper = certify_one(symbol, [grid]).upper
        truth = exact_on(symbol, grid)
        # The steps double, so they overshoot by no more than what was missing.
        assert truth <= mpmath.mpf(upper) <= truth * mpmath.mpf(1.06)


@given(st.integers(0, 2**31), st.integers(1, 3))
def test_the_peak_is_where_the_symbol_comes_near_its_bound(seed: int, rows: int) -> None:
    operator = Convolution(noise(rows, 3, 3, seed=seed), (1,), (1,), 1, (1,), (11,), (11,))
    symbol = convolution_symbol(operator)
    found = certify_one(symbol, grids(operator, symbol, 1e-3))
    assert found.peak is not None
    turns = symbol.exponents.double()[:, 0] * found.peak.angle[0]
    waves = torch.polar(torch.ones_like(turns), turns)
    value = torch.einsum("q,qrc->rc", waves, symbol.coefficients[found.peak.group].to(torch.complex128))
    assert float(torch.linalg.matrix_norm(value, 2)) >= found.upper * (1 - 2e-3)
