"""The supremum of a symbol: above every value of it, its proof checked again by other means, its search exact."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import reference
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import convolutions
from torch import Tensor
from torch.nn import functional

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import branch, levelset
from lipcheck.engines.branch import infinite_symbol, spectral_norm
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution, InfiniteConvolution
from lipcheck.proof import CellsProof, GridProof, ZeroProof
from lipcheck.symbol import Symbol, convolution_symbol


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def infinite(weight: Tensor, stride: int = 1, dilation: int = 1, groups: int = 1) -> InfiniteConvolution:
    axes = weight.dim() - 2
    return InfiniteConvolution(weight, (stride,) * axes, (dilation,) * axes, groups)


def without_end(operator: Convolution) -> InfiniteConvolution:
    return InfiniteConvolution(operator.weight, operator.stride, operator.dilation, operator.groups)


def values(symbol: Symbol, frequencies: Tensor) -> Tensor:
    """||F(w)||_2, the largest over the groups, by SVD at each frequency. Shapes: frequencies (n, axes)."""
    angle = frequencies @ symbol.exponents.double().T
    largest = float(symbol.coefficients.double().abs().max()) or 1.0
    scaled = (symbol.coefficients.double() / largest).to(torch.complex128)
    matrices = torch.einsum("nq,gqrc->ngrc", torch.polar(torch.ones_like(angle), angle), scaled)
    return torch.linalg.matrix_norm(matrices, 2).amax(1) * largest


def uniform(operator: InfiniteConvolution, points: int) -> tuple[float, float]:
    """The largest norm on a uniform grid of the unreduced symbol, and the most that the supremum can be above it."""
    one = (1,) * len(operator.stride)
    finite = Convolution(
        operator.weight, operator.stride, operator.dilation, operator.groups, (0,) * len(one), one, one
    )
    symbol = convolution_symbol(finite)
    lines = [torch.arange(points if d else 1) * (2 * math.pi / points) for d in symbol.degrees]
    top = float(values(symbol, torch.cartesian_prod(*lines).reshape(-1, len(lines)).double()).max())
    ripple = math.prod(math.cos(math.pi * d / (2 * points)) for d in symbol.degrees)
    return top, top / ripple


def assert_proved(operator: InfiniteConvolution, bound: Bound) -> None:
    """The proof once more: the cells tile half of the torus, and an SVD at each centre is below what is needed."""
    proof, symbol = bound.proof, infinite_symbol(operator)
    assert isinstance(proof, CellsProof)
    assert proof.degrees == symbol.degrees
    active = [axis for axis, degree in enumerate(proof.degrees) if degree]
    assert all(proof.points[axis] % 2 == 0 for axis in active)
    deepest = max(cell[0] for cell in proof.cells)
    # Every smallest cell inside a leaf is counted once.
    sides = [(n << deepest if axis in active else 1) for axis, n in enumerate(proof.points)]
    if active:
        sides[active[0]] //= 2
    covered = torch.zeros(sides, dtype=torch.long)
    centres, shares = [], []
    for level, *place in proof.cells:
        below = [deepest - level if axis in active else 0 for axis in range(len(place))]
        covered[tuple(slice(j << b, (j + 1) << b) for j, b in zip(place, below, strict=True))] += 1
        cells = [n << level if axis in active else 1 for axis, n in enumerate(proof.points)]
        centres.append([math.pi * (2 * j + 1) / n for j, n in zip(place, cells, strict=True)])
        shares.append(math.cos(sum(d * math.pi / n for d, n in zip(proof.degrees, cells, strict=True)) / 2))
    assert bool((covered == 1).all())
    norms = values(symbol, torch.tensor(centres, dtype=torch.float64))
    assert bool((norms <= proof.mu * torch.tensor(shares, dtype=torch.float64) * (1 + 1e-9)).all())
    assert proof.mu <= bound.upper


# Soundness


@settings(max_examples=draws(50))
@given(convolutions(), st.sampled_from(((1e-3, 1 << 28), (1e-2, 1 << 28), (1e-1, 1 << 14))))
def test_the_supremum_is_enclosed_by_grids_of_the_unreduced_symbol(
    operator: Convolution, way: tuple[float, int]
) -> None:
    axes, (tolerance, memory) = operator.axes, way
    tolerance = tolerance if axes < 3 else 1e-1
    one = without_end(operator)
    bound = spectral_norm(one, Settings(tolerance=tolerance, memory=memory))
    low, high = uniform(one, {1: 300, 2: 40, 3: 14}[axes])
    rest = 1e-12 * float(operator.weight.double().abs().max())
    assert low <= bound.upper * (1 + 1e-12) + rest
    assert bound.lower <= high * (1 + 1e-12) + rest
    assert bound.slack <= tolerance or low == 0
    if isinstance(bound.proof, CellsProof) and len(bound.proof.cells) < 3000:
        assert_proved(one, bound)


@settings(max_examples=draws(60))
@given(convolutions(paddings=("zeros", "same", "free")))
def test_no_zero_padded_matrix_exceeds_the_supremum(operator: Convolution) -> None:
    bound = spectral_norm(without_end(operator), Settings(tolerance=1e-2))
    matrix = reference.written_out(operator)
    assert reference.norm(matrix) <= bound.upper * reference.slack(matrix)


@given(convolutions(), st.integers(1, 20), st.randoms(use_true_random=False))
def test_a_cells_centre_sees_the_share_of_any_peak_in_it(operator: Convolution, finer: int, random) -> None:
    """The theorem: whatever stands at the supremum, the centre of its cell is not below cos(S / 2) of it."""
    one = without_end(operator)
    symbol = infinite_symbol(one)
    if not bool(symbol.coefficients.any()):
        return
    search = branch._Search(symbol, Settings(tolerance=1e-2))
    top = search.top
    peak = [math.pi * i / n for i, n in zip(top.index, top.points, strict=True)]
    cells = tuple(d * len(peak) + random.randint(1, finer) if d else 1 for d in symbol.degrees)
    centre = [math.pi * (2 * math.floor(w * n / (2 * math.pi)) + 1) / n for w, n in zip(peak, cells, strict=True)]
    at_peak, at_centre = values(symbol, torch.tensor([peak, centre], dtype=torch.float64)).tolist()
    share = rounding.cell_share(symbol.degrees, cells)
    # The search may end beside the peak: 1e-3 covers the tolerance 1e-2 / 50 of its ascent.
    assert at_centre >= share * at_peak * (1 - 1e-9) - 1e-3 * at_peak


def test_a_bound_below_the_supremum_is_never_proved() -> None:
    """|1 + exp(i (v + w))| peaks at the corner of a cell, where the cell bound has nothing to spare at the centre."""
    weight = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    weight[0, 0, 0, 0] = weight[0, 0, 1, 1] = 1
    symbol = infinite_symbol(infinite(weight))
    family = branch._Vectors(symbol, Settings())
    for n in (6, 8, 32, 256):
        grid = branch.Grid((n, n), (1, 1))
        centre = torch.tensor([[1, 1]])
        share = rounding.cell_share(symbol.degrees, (n, n))
        true = 2.0 * 2.0**-family.exponent
        assert bool(family.unproved(grid, centre, share * true * (1 - 1e-9)))
        assert not bool(family.unproved(grid, centre, share * true * (1 + 1e-9)))


# Exactness


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1, 3, 3), (1, 1, 2, 3, 2), (4, 1, 5, 5)])
def test_a_box_has_its_sum_for_a_supremum(shape: tuple[int, ...]) -> None:
    bound = spectral_norm(infinite(torch.ones(shape), groups=shape[0]), Settings(tolerance=1e-3))
    truth = math.prod(shape[2:])
    assert truth * (1 - 1e-12) <= bound.lower <= truth <= bound.upper <= truth * (1 + 1e-3)


def test_alternating_signs_peak_at_pi_where_odd_circular_grids_have_no_point() -> None:
    signs = torch.tensor([1.0, -1.0, 1.0]).double()
    bound = spectral_norm(infinite(torch.outer(signs, signs).reshape(1, 1, 3, 3)))
    assert bound.lower <= 9.0 <= bound.upper <= 9.01
    circular = Convolution(signs.reshape(1, 1, 3), (1,), (1,), 1, (1,), (7,), (7,), circular=True)
    padded = replace(circular, circular=False)
    assert reference.norm(reference.written_out(circular)) < reference.norm(reference.written_out(padded))
    assert reference.norm(reference.written_out(padded)) < spectral_norm(without_end(padded)).upper


@settings(max_examples=draws(60))
@given(st.integers(1, 5), st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**31))
def test_one_axis_is_exact(outputs: int, inputs: int, taps: int, seed: int) -> None:
    """The H-infinity norm: level sets find the peak, and cells close in on it to a millionth."""
    operator = infinite(noise(outputs, inputs, taps, seed=seed))
    bound = spectral_norm(operator)
    low, high = uniform(operator, 6000)
    assert low * (1 - 1e-11) <= bound.lower <= high
    assert low <= bound.upper <= bound.lower * (1 + 1e-6)


def test_level_sets_find_the_higher_of_two_peaks_between_the_points_of_the_first_grid() -> None:
    symbol = infinite_symbol(infinite(noise(3, 3, 9, seed=3)))
    fine = torch.linspace(0, math.pi, 40001, dtype=torch.float64)[:, None]
    norms = values(symbol, fine)
    found = levelset.peak_frequency(symbol.coefficients[0], symbol.exponents[:, 0])
    assert float(values(symbol, torch.tensor([[found]], dtype=torch.float64))) >= float(norms.max()) * (1 - 1e-13)


def test_a_search_that_misses_the_peak_costs_time_and_no_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = infinite(noise(2, 2, 3, 3, seed=1))
    truth = spectral_norm(operator)

    def lost(self: branch._Search, grid: branch.Grid, index: Tensor) -> branch.Place:
        return self.family.place(grid, index[:1])

    monkeypatch.setattr(branch._Search, "_highest", lost)
    monkeypatch.setattr(branch._Search, "_ascended", lambda self, top: top)
    bound = spectral_norm(operator)
    assert truth.lower <= bound.upper
    assert bound.lower <= truth.upper
    if isinstance(bound.proof, CellsProof):
        assert_proved(operator, bound)


# Flat symbols and costs


def paraunitary(channels: int, axes: int, factors: int) -> Tensor:
    """A kernel whose symbol is unitary everywhere: products of P + (I - P) exp(i w_a) with projections P."""
    weight = torch.linalg.qr(noise(channels, channels, seed=9))[0].reshape(channels, channels, *(1,) * axes)
    for axis, step in itertools.product(range(axes), range(factors)):
        basis = torch.linalg.qr(noise(channels, channels // 2, seed=10 * axis + step))[0]
        kept = torch.einsum("ij,jk...->ik...", basis @ basis.T, weight)
        moved = weight - kept
        after, before = [0, 0] * axes, [0, 0] * axes
        after[2 * (axes - 1 - axis) + 1] = before[2 * (axes - 1 - axis)] = 1
        weight = functional.pad(kept, after) + functional.pad(moved, before)
    return weight


@pytest.mark.parametrize(("axes", "factors"), [(1, 2), (1, 5), (2, 1), (2, 2), (3, 1)])
def test_a_flat_symbol_ends_on_one_grid_within_the_tolerance(axes: int, factors: int) -> None:
    operator = infinite(paraunitary(4, axes, factors))
    bound = spectral_norm(operator, Settings(tolerance=3e-3))
    assert bound.lower <= 1 + 1e-12
    assert 1 - 1e-12 <= bound.upper <= 1 + 3e-3
    if axes > 1:
        assert isinstance(bound.proof, GridProof)
        assert bound.upper >= bound.proof.mu / rounding.grid_ripple(
            infinite_symbol(operator).degrees, bound.proof.points
        )
        assert "grid" in bound.method


def test_capped_work_gives_a_coarser_bound_that_says_so() -> None:
    operator = infinite(paraunitary(4, 2, 2))
    bound = spectral_norm(operator, Settings(tolerance=1e-6, time_budget=1e-3))
    assert 1 - 1e-12 <= bound.upper <= 2
    assert bound.slack > 1e-3
    assert isinstance(bound.proof, GridProof)
    assert math.prod(bound.proof.points) < 500


def test_a_wide_random_kernel_whose_symbol_is_nearly_flat_keeps_the_tolerance() -> None:
    operator = infinite(noise(48, 48, 3, 3, seed=4))
    bound = spectral_norm(operator)
    assert bound.slack <= 1e-3
    low, high = uniform(operator, 24)
    assert low <= bound.upper
    assert bound.lower <= high


def test_only_the_surroundings_of_peaks_are_refined() -> None:
    bound = spectral_norm(infinite(noise(8, 8, 3, 3, seed=2) * 0.3 + noise(8, 8, 1, 1)), Settings(tolerance=1e-5))
    assert isinstance(bound.proof, CellsProof)
    finest = max(cell[0] for cell in bound.proof.cells)
    assert len(bound.proof.cells) < 0.01 * math.prod(n << finest for n in bound.proof.points)


# Reductions and edges


def test_a_constant_symbol_is_one_cell() -> None:
    weight = noise(5, 3, 1, 1)
    bound = spectral_norm(infinite(weight))
    assert bound.method == "symbol's supremum, 1 cell"
    truth = reference.norm(weight[:, :, 0, 0])
    assert truth * (1 - 1e-12) <= bound.lower <= bound.upper <= truth * (1 + 1e-7)


@pytest.mark.parametrize("tap", [(0, 0), (2, 1), (1, 2)])
def test_a_single_tap_is_a_shifted_matrix(tap: tuple[int, int]) -> None:
    weight = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    weight[:, :, tap[0], tap[1]] = noise(3, 3)
    assert infinite_symbol(infinite(weight)).degrees == (0, 0)
    reference.assert_encloses(spectral_norm(infinite(weight)), noise(3, 3))


@pytest.mark.parametrize("dilation", [2, 3, 7])
def test_dilation_drops_out_without_a_stride(dilation: int) -> None:
    weight = noise(3, 2, 3, 3)
    plain, dilated = infinite(weight), infinite(weight, dilation=dilation)
    assert infinite_symbol(dilated).degrees == (2, 2)
    assert spectral_norm(dilated) == spectral_norm(plain)


def test_an_adjoint_has_the_same_norm() -> None:
    operator = infinite(noise(3, 2, 3, 3))
    assert spectral_norm(replace(operator, transposed=True)) == spectral_norm(operator)


@pytest.mark.parametrize("exponent", [-900, -100, 100, 900])
def test_powers_of_two_scale_the_enclosure_exactly(exponent: int) -> None:
    weight = noise(3, 2, 3, 3)
    plain, scaled = spectral_norm(infinite(weight)), spectral_norm(infinite(weight * 2.0**exponent))
    assert scaled.upper == plain.upper * 2.0**exponent
    assert scaled.lower == plain.lower * 2.0**exponent


@pytest.mark.parametrize("groups", [2, 6])
def test_groups_of_any_scale_and_none(groups: int) -> None:
    weight = noise(6, 6 // groups, 3, 3) * 1e30
    weight[: 6 // groups] = 0
    weight[-6 // groups :] *= 1e-60
    low, high = uniform(infinite(weight, groups=groups), 50)
    bound = spectral_norm(infinite(weight, groups=groups))
    assert low <= bound.upper
    assert bound.lower <= high


@pytest.mark.parametrize("factor", [0.25, 0.9, 3.0])
def test_groups_are_compared_at_one_scale(factor: float) -> None:
    weight = noise(6, 3, 3, 3, seed=5)
    weight[3:] *= factor
    both = spectral_norm(infinite(weight, groups=2))
    alone = [spectral_norm(infinite(part)) for part in weight.split(3)]
    assert both.slack <= 1e-3
    assert both.upper >= max(bound.lower for bound in alone)
    assert both.lower <= max(bound.upper for bound in alone)


def test_zero_weights() -> None:
    for groups in (1, 2):
        bound = spectral_norm(infinite(torch.zeros(4, 4 // groups, 3, 3), groups=groups))
        assert (bound.lower, bound.upper, bound.proof) == (0.0, 0.0, ZeroProof())


def test_uncertain_weights_widen_both_ends() -> None:
    operator = infinite(torch.ones(1, 1, 3, 3))
    bound = spectral_norm(replace(operator, uncertainty=0.1))
    assert bound.lower <= 9 * 0.9
    assert bound.upper >= 9 * 1.1


def test_a_place_attains_less_than_the_supremum_exactly() -> None:
    """Fifty digits: the box's symbol at frequency 0 is nine, no more."""
    symbol = infinite_symbol(infinite(torch.ones(1, 1, 3, 3)))
    place = branch.Place((8, 8), (0, 0), 0, torch.ones(1), 9.0)
    assert 9 * (1 - 1e-12) <= branch.attained(symbol, place) < 9


def test_gradients_and_half_precision_weights_are_read_exactly() -> None:
    weight = noise(3, 2, 3, 3).to(torch.bfloat16)
    plain = spectral_norm(infinite(weight.double()))
    assert spectral_norm(infinite(torch.nn.Parameter(weight))) == plain
