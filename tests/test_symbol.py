"""Symbols and grids: the symbol has the operator's singular values, and every grid is fine enough."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import mpmath
import pytest
import reference
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import convolutions, matrices
from torch import Tensor

from lipcheck import rounding
from lipcheck.operators import Convolution, Dense
from lipcheck.symbol import (
    Grid,
    Symbol,
    convolution_symbol,
    dense_symbol,
    embedding_points,
    grids,
    trimmed,
)


def values_at(symbol: Symbol, frequencies: Tensor) -> Tensor:
    """F(w) by its definition. Shapes: frequencies (n, axes); result (n, groups, rows, columns)."""
    turns = frequencies.double() @ symbol.exponents.double().T
    waves = torch.polar(torch.ones_like(turns), turns)
    return torch.einsum("nq,gqrc->ngrc", waves, symbol.coefficients.to(torch.complex128))


def all_frequencies(points: tuple[int, ...], half: tuple[int, ...]) -> Tensor:
    axes = [[math.pi * (2 * j + h) / m for j in range(m)] for m, h in zip(points, half, strict=True)]
    return torch.tensor(list(itertools.product(*axes)), dtype=torch.float64)


def largest_on(symbol: Symbol, points: tuple[int, ...], half: tuple[int, ...]) -> float:
    return float(torch.linalg.matrix_norm(values_at(symbol, all_frequencies(points, half)), 2).max())


def scaled_to_one(operator: Convolution) -> Convolution:
    largest = float(operator.weight.double().abs().max())
    return replace(operator, weight=operator.weight.double() * 2.0 ** -math.frexp(largest)[1])


@given(convolutions(paddings=("circular",)))
def test_a_circular_convolution_has_the_singular_values_of_its_symbol(operator: Convolution) -> None:
    operator = scaled_to_one(operator)
    symbol = convolution_symbol(operator)
    frequencies = all_frequencies(operator.output_size, (0,) * operator.axes)
    parts = torch.linalg.svdvals(values_at(symbol, frequencies)).flatten().sort(descending=True).values
    whole = torch.linalg.svdvals(reference.written_out(operator))
    count = min(len(parts), len(whole))
    torch.testing.assert_close(parts[:count], whole[:count], rtol=1e-10, atol=1e-10)
    assert not (parts[count:] > 1e-10).any()
    assert not (whole[count:] > 1e-10).any()


@given(convolutions(paddings=("zeros", "same", "free")), st.data())
def test_no_matrix_exceeds_its_symbol_on_any_embedding(operator: Convolution, data: st.DataObject) -> None:
    """On the fewest points that `embedding_points` allows and on more, with either phase on each axis."""
    operator = scaled_to_one(operator)
    symbol, points = convolution_symbol(operator), embedding_points(operator)
    points = tuple(m + data.draw(st.sampled_from((0, 0, 1, 3))) for m in points)
    half = tuple(data.draw(st.integers(0, 1)) for _ in points)
    matrix = reference.written_out(operator)
    assert reference.norm(matrix) <= largest_on(symbol, points, half) * reference.slack(matrix) + 1e-14


@given(convolutions())
def test_trimming_leaves_the_matrix(operator: Convolution) -> None:
    short = trimmed(operator)
    assert torch.equal(reference.written_out(short), reference.written_out(operator))
    assert all(a <= b for a, b in zip(short.kernel, operator.kernel, strict=True))
    if not operator.circular:
        assert all(q == 0 for q, n in zip(convolution_symbol(short).degrees, short.output_size, strict=True) if n == 1)


def test_trimming_drops_taps_that_only_meet_zeros() -> None:
    operator = reference.toeplitz([5.0, 4.0, 3.0, 2.0, 1.0], 2)
    assert trimmed(operator).weight.flatten().tolist() == [4.0, 3.0, 2.0]
    beyond = replace(operator, offset=(-7,), output_size=(3,))
    assert not trimmed(beyond).weight.any()


@given(convolutions())
def test_a_symbol_holds_every_weight_once_per_group(operator: Convolution) -> None:
    symbol = convolution_symbol(operator)
    assert symbol.coefficients.shape[0] == operator.groups
    assert int((symbol.coefficients != 0).sum()) == int((operator.weight != 0).sum())
    assert symbol.side == min(symbol.coefficients.shape[2:])
    assert symbol.wide.coefficients.shape[2] == symbol.side
    assert len({tuple(q) for q in symbol.exponents.tolist()}) == len(symbol.exponents)
    expected = (d * (k - 1) // s for d, k, s in zip(operator.dilation, operator.kernel, operator.stride, strict=True))
    assert symbol.degrees == tuple(expected)


@given(matrices())
def test_a_matrix_is_a_constant_symbol(matrix: Tensor) -> None:
    symbol = dense_symbol(Dense(matrix))
    assert symbol.degrees == (0,)
    assert torch.equal(symbol.coefficients[0, 0], matrix)


GRIDS = st.integers(1, 3).flatmap(
    lambda axes: st.builds(
        Grid,
        st.tuples(*[st.integers(1, 7)] * axes),
        st.tuples(*[st.integers(0, 1)] * axes),
    )
)


@given(GRIDS)
def test_half_the_grid_stands_for_all_of_it(grid: Grid) -> None:
    index = [tuple(t) for t in grid.indices().tolist()]
    full = set(itertools.product(*(range(h, 2 * m, 2) for m, h in zip(grid.points, grid.half, strict=True))))
    mirrors = {tuple(-t % (2 * m) for t, m in zip(place, grid.points, strict=True)) for place in index}
    assert len(set(index)) == len(index)
    assert set(index) | mirrors == full
    assert len(index) <= len(full) // 2 + 2 ** (len(grid.points) - 1)


@given(GRIDS, st.data())
def test_a_place_has_neighbours_on_every_grid(grid: Grid, data: st.DataObject) -> None:
    place = torch.tensor([data.draw(st.integers(0, 2 * m - 1)) for m in grid.points])
    found = grid.neighbours(place)
    assert found
    modulus = 2 * torch.tensor(grid.points)
    for at in grid.indices()[found]:
        away = torch.minimum(*((sign * at - place) % modulus for sign in (1, -1)))
        there = torch.minimum(*((place - sign * at) % modulus for sign in (1, -1)))
        assert bool((torch.minimum(away, there) <= 1).all()) or bool((modulus == 2).any())


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 1), st.integers(-40, 40)), min_size=1, max_size=3),
    st.integers(0, 10**6),
)
def test_phases_are_as_accurate_as_they_say(axes: list[tuple[int, int, int]], j: int) -> None:
    grid = Grid(tuple(m for m, _, _ in axes), tuple(h for _, h, _ in axes))
    index = torch.tensor([[(2 * (j % m) + h) % (2 * m) for m, h, _ in axes]])
    lags = torch.tensor([[lag for _, _, lag in axes]])
    cosine, sine = grid.phases(index, lags)
    with mpmath.workdps(reference.DIGITS):
        turns = sum(mpmath.mpf(int(t) * lag) / m for t, (m, _, lag) in zip(index[0], axes, strict=True))
        assert abs(mpmath.mpf(float(cosine)) - mpmath.cospi(turns)) <= rounding.PHASE_ERROR
        assert abs(mpmath.mpf(float(sine)) - mpmath.sinpi(turns)) <= rounding.PHASE_ERROR


@given(convolutions(), st.floats(1e-6, 3.0))
def test_every_grid_offered_embeds_or_corrects(operator: Convolution, tolerance: float) -> None:
    symbol = convolution_symbol(operator)
    embedding = embedding_points(operator)
    offered = grids(operator, symbol, tolerance)
    assert offered
    for grid in offered:
        axes = zip(grid.points, embedding, symbol.degrees, strict=True)
        short = [(m, d) for m, e, d in axes if d and m < e]
        assert all(m > d for m, d in short)
        assert grid.share < 1 or not short
        assert 0 < grid.share <= 1
    if operator.circular:
        (grid,) = offered
        assert not any(grid.half)
        assert all(m == n or d == 0 for m, n, d in zip(grid.points, operator.output_size, symbol.degrees, strict=True))


@pytest.mark.parametrize("tolerance", [1e-6, 1e-3, 0.1, 1.0, 5.0, 20.0, 1e6])
def test_a_long_input_has_grids_at_any_tolerance(tolerance: float) -> None:
    operator = reference.toeplitz([1.0] * 31, 10**5)
    for grid in grids(operator, convolution_symbol(operator), tolerance):
        assert grid.points[0] > 30
        assert grid.share >= min(1 - tolerance / 2, 1) or tolerance > 1


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1))
def test_the_share_is_attained_by_two_distant_taps(degree: int, multiple: int, half: int) -> None:
    """F = 1 + exp(i D w) has D equal peaks; on a multiple of D points with half a step, all lie between two points.

    |F| = 2 |cos(D w / 2)|, so the grid sees exactly the share that Ehlich and Zeller allow, and not an ulp may be lost.
    """
    points = degree * (multiple + 1)
    assume(points > degree)
    weight = torch.zeros(1, 1, degree + 1, dtype=torch.float64)
    weight[..., 0] = weight[..., -1] = 1
    symbol = convolution_symbol(Convolution(weight, (1,), (1,), 1, (0,), (1000,), (1000 - degree,)))
    seen = largest_on(symbol, (points,), (1,))
    corrected = seen / rounding.grid_ripple((degree,), (points,))
    assert corrected * (1 + 1e-14) >= 2
    assert corrected == pytest.approx(2, rel=1e-13)
    if half == 0:
        assert largest_on(symbol, (points,), (0,)) == pytest.approx(2, rel=1e-14)


@given(convolutions(), st.integers(1, 3))
def test_no_symbol_hides_more_than_its_share_between_the_points(operator: Convolution, finer: int) -> None:
    operator = scaled_to_one(operator)
    symbol = convolution_symbol(operator)
    assume(math.prod(symbol.degrees) <= 100)
    points = tuple(d + finer for d in symbol.degrees)
    supremum = largest_on(
        symbol, tuple(5 * m if d else 1 for m, d in zip(points, symbol.degrees, strict=True)), (0,) * operator.axes
    )
    for half in itertools.product((0, 1), repeat=len(points)):
        seen = largest_on(symbol, points, half)
        assert supremum <= seen / rounding.grid_ripple(symbol.degrees, points) * (1 + 1e-12)


def test_an_embedding_that_is_one_point_short_would_not_be_a_bound() -> None:
    """[1 1], every output that reads anything: 2 cos(pi / 8), which four points with half a step see and three miss."""
    weight = torch.ones(1, 1, 2, dtype=torch.float64)
    operator = Convolution(weight, (1,), (1,), 1, (1,), (3,), (4,))
    (points,) = embedding_points(operator)
    truth = reference.norm(reference.written_out(operator))
    symbol = convolution_symbol(operator)
    assert points == 4
    assert largest_on(symbol, (points,), (1,)) == pytest.approx(truth, rel=1e-14)
    assert largest_on(symbol, (points - 1,), (1,)) < 0.95 * truth
