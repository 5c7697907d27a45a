"""Gram matrices within their stated error, and a proof that says yes where it can and never where it must not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import mpmath
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import convolutions, matrices
from torch import Tensor

from lipcheck import rounding
from lipcheck.engines import gram
from lipcheck.engines.gram import GramFamily, gram_family, matrix_magnitude, proves, scaled_by_power
from lipcheck.operators import Convolution
from lipcheck.symbol import Grid, Symbol, convolution_symbol, matrix_symbol

CPU = torch.device("cpu")
Prove = Callable[[Tensor, Tensor, Tensor, float], Tensor]
DIRECT, TABLE = 1, 10**9  # so few, so many frequencies that R is summed directly, that autocorrelations pay


def exact_gram(symbol: Symbol, group: int, grid: Grid, place: Tensor, exponent: int) -> tuple[mpmath.matrix, ...]:
    """Re R, Im R and B B^T of the scaled wide symbol, by definition. Call with enough digits."""
    coefficients = symbol.wide.coefficients[group].double()
    taps, r, c = coefficients.shape
    real, imaginary, size = (mpmath.zeros(r, c) for _ in range(3))
    for q in range(taps):
        lags = zip(place.tolist(), symbol.exponents[q].tolist(), grid.points, strict=True)
        turns = sum(mpmath.mpf(t * lag) / m for t, lag, m in lags)
        for i in range(r):
            for j in range(c):
                weight = mpmath.ldexp(mpmath.mpf(float(coefficients[q, i, j])), -exponent)
                real[i, j] += weight * mpmath.cospi(turns)
                imaginary[i, j] += weight * mpmath.sinpi(turns)
                size[i, j] += abs(weight)
    return (
        real * real.T + imaginary * imaginary.T,
        imaginary * real.T - real * imaginary.T,
        size * size.T,
    )


@given(convolutions(), st.sampled_from((DIRECT, TABLE)), st.data())
def test_gram_matrices_are_within_their_stated_error(
    operator: Convolution, frequencies: int, data: st.DataObject
) -> None:
    symbol = convolution_symbol(operator)
    family = gram_family([symbol], frequencies, CPU)
    points = tuple(data.draw(st.integers(1, 6)) for _ in operator.input_size)
    grid = Grid(points, tuple(data.draw(st.integers(0, 1)) for _ in points))
    index = grid.indices()
    place = index[data.draw(st.integers(0, len(index) - 1))]
    group = data.draw(st.integers(0, operator.groups - 1))
    computed = family.matrices(torch.tensor([group]), grid, place[None])[0]
    r = symbol.side
    if len(symbol.exponents) * r * max(symbol.coefficients.shape[2:]) > 600:
        return
    with mpmath.workdps(reference.DIGITS):
        real, imaginary, size = exact_gram(symbol, group, grid, place, int(family.exponent[group]))
        for i in range(r):
            for j in range(r):
                entry = complex(computed[i, j])
                away = abs(mpmath.mpc(entry) - mpmath.mpc(real[i, j], imaginary[i, j]))
                assert away <= family.error * size[i, j] + rounding.UNDERFLOW
        if r <= 4:
            assert mpmath.sqrt(max(mpmath.eigsy(size, eigvals_only=True))) <= mpmath.mpf(float(family.magnitude[group]))
    assert family.error < 1e-11


@given(convolutions(paddings=("free",)))
def test_both_ways_to_the_gram_matrices_agree(operator: Convolution) -> None:
    symbol = convolution_symbol(operator)
    grid = Grid((3,) * operator.axes, (1,) * operator.axes)
    index = grid.indices()
    items = torch.arange(operator.groups).repeat_interleave(len(index))
    places = index.repeat(operator.groups, 1)
    one, other = (gram_family([symbol], f, CPU) for f in (DIRECT, TABLE))
    size = float(one.magnitude.max()) ** 2
    first, second = (family.matrices(items, grid, places).to(torch.complex128) for family in (one, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12 * size + 1e-300)
    rough = other.matrices(items, grid, places, torch.float32).to(torch.complex128)
    torch.testing.assert_close(first, rough, rtol=0, atol=1e-4 * size + 1e-30)


def test_large_matrices_are_correlated_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(11, 13, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    symbol = convolution_symbol(Convolution(weight, (1,), (1,), 1, (1,), (20,), (20,)))
    grid = Grid((9,), (1,))
    index = grid.indices()
    items = torch.zeros(len(index), dtype=torch.long)
    whole = gram_family([symbol], TABLE, CPU)
    monkeypatch.setattr(gram, "_COLUMNS", 4)
    monkeypatch.setattr(gram, "_ROWS", 3)
    parts = gram_family([symbol], TABLE, CPU)
    first, second = (family.matrices(items, grid, index) for family in (parts, whole))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    assert float(parts.magnitude) == pytest.approx(float(whole.magnitude), rel=1e-12)


@given(matrices(side=10))
def test_a_magnitude_is_never_below_the_norm_of_absolute_values(matrix: Tensor) -> None:
    assert matrix_magnitude(matrix.double()) >= reference.norm(matrix.abs()) / reference.slack(matrix)
    blocks = matrix.double().split(3, dim=1)
    assert matrix_magnitude(*blocks) == pytest.approx(matrix_magnitude(matrix.double()), rel=1e-12)


@given(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True))
def test_scaling_near_one_is_exact(value: float) -> None:
    exponent = math.frexp(value)[1]
    scaled = float(scaled_by_power(torch.tensor(value, dtype=torch.float64), -exponent))
    assert math.ldexp(scaled, exponent) == value
    assert scaled == 0 or 0.5 <= abs(scaled) < 1


# Matrices whose norm is known exactly, or to far more digits than the attack takes away.


def hadamard(order: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def gaussian(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


def loud(rows: int) -> Tensor:
    matrix = gaussian(rows, rows)
    matrix[1:] *= 1e-8
    return matrix


RANK_ONE = torch.arange(1.0, 31.0, dtype=torch.float64)
KNOWN = {
    # All singular values equal: at the true norm every pivot vanishes.
    "flat": (hadamard(16), 4.0),
    "flat, large": (hadamard(128), 128**0.5),
    "permutation": (torch.eye(30, dtype=torch.float64).roll(7, 0), 1.0),
    "rank one": (torch.outer(RANK_ONE, RANK_ONE), 30 * 31 * 61 / 6),
    "one row": (RANK_ONE[None], math.sqrt(30 * 31 * 61 / 6)),
    "two equal peaks": (torch.diag(torch.tensor([3.0, 1.0, 3.0, 0.0], dtype=torch.float64)), 3.0),
    "ill-conditioned": (torch.diag(10.0 ** -torch.arange(0.0, 40.0, dtype=torch.float64)), 1.0),
    "loud": (loud(20), float(reference.exact_norm(loud(20)))),
    "gaussian": (gaussian(12, 15), float(reference.exact_norm(gaussian(12, 15)))),
    "gaussian, large": (gaussian(150, 200), reference.norm(gaussian(150, 200))),
    "tiny": (gaussian(9, 9) * 1e-30, float(reference.exact_norm(gaussian(9, 9) * 1e-30))),
    "huge": (gaussian(9, 9) * 1e30, float(reference.exact_norm(gaussian(9, 9) * 1e30))),
}
BELOW = (0.0, 0.3, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12)


def family_and_grid(matrix: Tensor, complex_valued: bool) -> tuple[GramFamily, Grid]:
    """The matrix alone, or as a symbol exp(2 i w) M with one frequency: complex arithmetic, the same norm."""
    if not complex_valued:
        return gram_family([matrix_symbol(matrix)], 1, CPU), Grid((1,), (0,))
    blocks = torch.stack([torch.zeros_like(matrix), matrix])[None]
    symbol = Symbol(blocks, torch.tensor([[0], [2]]))
    return gram_family([symbol], DIRECT, CPU), Grid((5,), (1,))


def by_residual(matrices: Tensor, mu: Tensor, magnitude: Tensor, error: float) -> Tensor:
    """What `proves` does on a device whose factorisation it does not trust, on this one."""
    r = matrices.shape[-1]
    budget = mu.square() * (1 - 8 * rounding.UNIT)
    blur = error * magnitude.square() * (1 + 8 * rounding.UNIT) + rounding.UNDERFLOW
    reserve = rounding.cholesky_shift(r, complex_valued=True) * r
    shift = (budget * (4 * reserve + 8 * rounding.UNIT) + blur) * (1 + 1e-6)
    diagonal = (budget - shift)[:, None] * torch.ones(r, dtype=torch.float64)
    return gram._proved_by_residual(matrices, diagonal, 4 * reserve * budget)


@pytest.mark.parametrize("prove", [proves, by_residual])
@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("name", KNOWN)
def test_a_proof_says_yes_just_above_the_norm_and_never_below(name: str, complex_valued: bool, prove: Prove) -> None:
    matrix, truth = KNOWN[name]
    family, grid = family_and_grid(matrix, complex_valued)
    place = grid.indices()[:1]
    scaled = math.ldexp(truth, -int(family.exponent[0]))

    def says(factor: float) -> bool:
        held = family.matrices(torch.tensor([0]), grid, place)
        return bool(prove(held, torch.tensor([scaled * factor], dtype=torch.float64), family.magnitude, family.error))

    assert [factor for factor in BELOW if says(factor)] == []
    assert says(1 + 1e-6)
    assert says(1e3)


@pytest.mark.parametrize("prove", [proves, by_residual])
def test_proofs_in_a_batch_are_each_their_own(prove: Prove) -> None:
    """Some pass by their Frobenius norm, some by a factorisation, some not at all; in any order."""
    parts = [gaussian(6, 6), hadamard(8)[:6, :6], loud(6), torch.zeros(6, 6, dtype=torch.float64)]
    family = gram_family([matrix_symbol(torch.stack(parts))], 1, CPU)
    truths = torch.tensor([reference.norm(part) for part in parts], dtype=torch.float64)
    truths = torch.ldexp(truths, -family.exponent)
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(0, 4, (40,), generator=generator)
    factors = torch.tensor([0.5, 1 - 1e-9, 1 + 1e-6, 5.0], dtype=torch.float64)[
        torch.randint(0, 4, (40,), generator=generator)
    ]
    mu = truths[items] * factors + (items == 3) * factors.sub(1)
    keep = mu >= 0
    items, factors, mu = items[keep], factors[keep], mu[keep]
    held = family.matrices(items, Grid((1,), (0,)), torch.zeros(len(items), 1, dtype=torch.long))
    answers = prove(held, mu, family.magnitude[items], family.error)
    assert answers.tolist() == (factors > 1).tolist()


@pytest.mark.parametrize("name", ["flat", "gaussian", "loud", "rank one"])
def test_a_factorisation_that_lies_proves_nothing_by_its_residual(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever factor a device returns, with success reported: below the norm its residual gives it away."""
    matrix, truth = KNOWN[name]
    family, grid = family_and_grid(matrix, False)
    scaled = math.ldexp(truth, -int(family.exponent[0]))
    genuine = torch.linalg.cholesky_ex

    def clipped(shifted: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest positive semidefinite matrix, factored."""
        values, vectors = torch.linalg.eigh(shifted)
        root = vectors * values.clamp_min(0).sqrt()[:, None]
        return torch.linalg.qr(root.mT)[1].mT, torch.zeros(len(shifted), dtype=torch.int32)

    def rough(shifted: Tensor) -> tuple[Tensor, Tensor]:
        """In float32, with a shift that makes it run."""
        factor = genuine((shifted + 1e-5 * truth * torch.eye(shifted.shape[-1])).float())[0]
        return factor.double().nan_to_num(), torch.zeros(len(shifted), dtype=torch.int32)

    for lie in (clipped, rough):
        monkeypatch.setattr(torch.linalg, "cholesky_ex", lie)
        for factor in (0.5, 1 - 1e-6, 1 - 1e-9):
            held = family.matrices(torch.tensor([0]), grid, grid.indices()[:1])
            mu = torch.tensor([scaled * factor], dtype=torch.float64)
            assert not bool(by_residual(held, mu, family.magnitude, family.error))


@given(matrices(side=12), st.floats(0.2, 1.5))
def test_a_frobenius_norm_is_below_the_budget_where_it_is_said_to_be(matrix: Tensor, factor: float) -> None:
    square = matrix.double() @ matrix.double().T
    exponent = math.frexp(float(square.abs().max()))[1]
    square = scaled_by_power(square, -exponent)
    batch = square.repeat(6, 1, 1)
    with mpmath.workdps(reference.DIGITS):
        exact = mpmath.norm([mpmath.mpf(v) for v in square.flatten().tolist()], 2)
        budgets = torch.tensor([float(exact) * f for f in (0.0, factor, 1 - 1e-15, 1.0, 1 + 1e-12, 2.0)])
        budgets = budgets.double()
        said = gram._small_frobenius(batch, budgets)
        assert all(exact <= mpmath.mpf(b) for b, yes in zip(budgets.tolist(), said.tolist(), strict=True) if yes)


def test_a_family_of_zeros_has_no_magnitude() -> None:
    family = gram_family([matrix_symbol(torch.zeros(3, 4))], 1, CPU)
    assert float(family.magnitude) <= rounding.UNDERFLOW
    assert family.items == 1
    assert family.real
    assert int(family.exponent) == 0


@pytest.mark.parametrize("points", [(40,), (5, 30), (3, 4, 25), (1, 30)])
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("contiguous", [True, False])
def test_lags_summed_axis_by_axis_are_the_same_gram_matrices(
    points: tuple[int, ...], half: int, contiguous: bool
) -> None:
    axes = len(points)
    taps = torch.tensor(list(itertools.product(*(range(3 if m > 1 else 1) for m in points))))
    noise = torch.Generator().manual_seed(0)
    symbol = Symbol(torch.randn(2, len(taps), 4, 5, generator=noise, dtype=torch.float64), taps)
    family = gram_family([symbol], TABLE, CPU)
    grid = Grid(points, (half,) * axes)
    index = grid.indices() if contiguous else grid.indices()[::7]
    item = torch.arange(2).repeat_interleave(len(index))
    found = family.matrices(item, grid, index.repeat(2, 1))
    cosine, sine = grid.phases(index, taps)
    values = torch.einsum("nq,gqij->gnij", torch.complex(cosine, sine), symbol.coefficients.to(torch.complex128))
    values = values * (2.0 ** -family.exponent.double())[:, None, None, None]
    expected = (values @ values.mH).flatten(0, 1)
    error = family.error * family.magnitude[item] ** 2
    assert bool((torch.linalg.matrix_norm(found - expected, 2) <= error).all())


def test_half_of_a_product_is_the_whole() -> None:
    matrices = torch.randn(2, 300, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = gram.half_product(matrices)
    assert torch.equal(found, found.mT)
    assert torch.allclose(found, matrices @ matrices.mT, rtol=0, atol=1e-12)
