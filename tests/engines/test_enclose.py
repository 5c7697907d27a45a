"""Every enclosure holds the norm of the operator written out; on the ways through small matrices and embeddings."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import mpmath
import pytest
import reference
import torch
from draws import draws
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import convolution_modules, convolutions, matrices
from torch import Tensor, nn

import lipcheck
from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import depthwise, enclose
from lipcheck.engines.enclose import Settings, spectral_norm
from lipcheck.operators import (
    IDENTITY,
    Concatenation,
    Convolution,
    Dense,
    Diagonal,
    Indexing,
    Separable,
    Sum,
)
from lipcheck.proof import CellsProof, GridProof
from lipcheck.symbol import convolution_symbol, trimmed

TOLERANCES = st.sampled_from((1e-3, 1e-3, 1e-6, 1e-1))


@contextlib.contextmanager
def no_small_matrices() -> Iterator[None]:
    """Every convolution by its symbol, however small."""
    with patch.multiple(enclose, _MATRIX_SIDE=0, _GROUP_SIDE=0):
        yield


def by_embedding(operator: Convolution, tolerance: float = 1e-3, memory: int = 1 << 28) -> Bound:
    with no_small_matrices():
        return spectral_norm(operator, Settings(tolerance=tolerance, memory=memory))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(weight: Tensor, n: int, groups: int = 1, circular: bool = False) -> Convolution:
    """Stride 1 and as many outputs as inputs on every axis."""
    axes = weight.dim() - 2
    offset = tuple((k - 1) // 2 for k in weight.shape[2:])
    return Convolution(weight, (1,) * axes, (1,) * axes, groups, offset, (n,) * axes, (n,) * axes, circular)


# Soundness


@settings(max_examples=draws(250))
@given(convolutions(), TOLERANCES)
def test_a_small_convolution_is_enclosed_as_a_matrix(operator: Convolution, tolerance: float) -> None:
    bound = spectral_norm(operator, Settings(tolerance=tolerance))
    matrix = reference.written_out(operator)
    reference.assert_encloses(bound, matrix)
    truth = reference.norm(matrix)
    rest = 1e-12 * float(operator.weight.double().abs().max())
    assert truth * (1 - 1e-6) <= bound.lower * reference.slack(matrix) + rest
    assert bound.upper <= truth * (1 + 1e-6) + rest


@settings(max_examples=draws(250))
@given(convolutions(), TOLERANCES, st.sampled_from((1 << 28, 1 << 28, 1)))
def test_a_small_convolution_is_enclosed_by_its_embedding(operator: Convolution, tolerance: float, memory: int) -> None:
    reference.assert_encloses(by_embedding(operator, tolerance, memory), reference.written_out(operator))


@settings(max_examples=draws(100))
@given(convolutions(), st.booleans(), st.booleans())
def test_an_upper_end_alone_is_above_the_norm(operator: Convolution, small: bool, dense: bool) -> None:
    only = Settings(upper_only=True)
    with contextlib.ExitStack() as changed:
        if not small:
            changed.enter_context(no_small_matrices())
        if not dense:
            changed.enter_context(patch.object(depthwise, "_DENSE", 0))
        bound = spectral_norm(operator, only)
    reference.assert_encloses(replace(bound, lower=0.0), reference.written_out(operator))


@given(matrices(), TOLERANCES)
def test_a_matrix_is_enclosed(matrix: Tensor, tolerance: float) -> None:
    bound = spectral_norm(Dense(matrix), Settings(tolerance=tolerance))
    reference.assert_encloses(bound, matrix)
    assert bound.upper <= reference.norm(matrix) * (1 + 1e-6)


@given(st.lists(matrices(side=6), min_size=1, max_size=3))
def test_a_separable_map_is_enclosed(parts: list[Tensor]) -> None:
    parts = [part.double() / max(1e-30, float(part.double().abs().max())) for part in parts]
    whole = torch.ones(1, 1, dtype=torch.float64)
    for part in parts:
        whole = torch.kron(whole, part)
    reference.assert_encloses(spectral_norm(Separable(tuple(parts))), whole)


@given(convolutions(), st.sampled_from((1e-15, 1e-6, 1e-2)), st.integers(0, 2**31), st.booleans())
def test_uncertain_entries_are_enclosed_wherever_they_are(
    operator: Convolution, uncertainty: float, seed: int, small: bool
) -> None:
    noise_of = torch.rand(operator.weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    entries = operator.weight.double()
    uncertain = replace(operator, weight=entries, uncertainty=uncertainty)
    bound = spectral_norm(uncertain) if small else by_embedding(uncertain)
    for moved in (
        entries * (1 + uncertainty * (2 * noise_of - 1)),
        entries * (1 + uncertainty),
        entries * (1 - uncertainty),
    ):
        matrix = reference.written_out(replace(operator, weight=moved))
        # The product that moves an entry is rounded.
        assert reference.norm(matrix) <= bound.upper * (reference.slack(matrix) + 2.0**-52)
        assert bound.lower <= reference.norm(matrix) * (reference.slack(matrix) + 2.0**-52)


@pytest.mark.parametrize("size", [1, 3])
def test_a_group_below_the_largest_is_as_uncertain_as_it(size: int) -> None:
    """The identity, a little enlarged, beside a Hadamard matrix of norm one: dense, so it can move twice as far."""
    uncertainty = 0.1
    hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64) / 2
    fixed = torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64) / 2
    moved = hadamard + uncertainty * hadamard.abs() * torch.outer(fixed, fixed).sign()
    identity = torch.eye(4, dtype=torch.float64) * (1 + uncertainty / 4)
    padded = torch.zeros(8, 4, size, dtype=torch.float64)
    padded[:, :, size // 2] = torch.cat([identity, hadamard])
    bound = spectral_norm(replace(same(padded, 2, groups=2), uncertainty=uncertainty))
    assert reference.norm(moved) == pytest.approx(1.2)
    assert bound.upper >= 1.2 * (1 - 1e-12)


@pytest.mark.parametrize(("groups", "taps"), [(1, (1.0, -1.0)), (2, (1.0, -1.0)), (2, (1.0, 0.5, -1.0))])
def test_dilated_circular_taps_that_cancel_are_bounded_near_what_is_left(groups: int, taps: tuple[float, ...]) -> None:
    weight = torch.tensor(taps, dtype=torch.float64).expand(2, 2 // groups, -1).contiguous()
    operator = replace(same(weight, 2, groups, circular=True), dilation=(2,), offset=(0,))
    truth = reference.norm(reference.written_out(operator))
    formed = spectral_norm(operator)
    assert truth - 1e-12 <= formed.upper <= truth * (1 + 1e-6) + 1e-12
    # Without the matrix, the error of the Gram matrices is all that is left.
    embedded = by_embedding(operator)
    assert truth - 1e-12 <= embedded.upper <= truth * (1 + 1e-3) + 1e-5


def test_circular_taps_that_cancel_leave_their_uncertainty() -> None:
    weight = torch.tensor([1.0, -0.9], dtype=torch.float64).reshape(1, 1, 2)
    bound = spectral_norm(replace(same(weight, 1, circular=True), uncertainty=0.01))
    assert bound.lower <= 0.99 - 0.9 * 1.01 + 1e-12
    assert bound.upper >= 1.01 - 0.9 * 0.99 - 1e-12


class Beside(nn.Module):
    """Layers side by side on one input, flattened into one output."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x).flatten(1) for layer in self.layers], dim=1)


def assert_layers_enclosed(layers: list[nn.Module], shape: tuple[int, ...]) -> None:
    report = lipcheck.check(Beside(layers), example=torch.zeros(1, *shape), samples=0)
    bounds = {entry.layer: entry.bound for entry in report.layers}
    assert sorted(bounds) == sorted(f"layers.{i}" for i in range(len(layers)))
    for i, layer in enumerate(layers):
        reference.assert_encloses(bounds[f"layers.{i}"], reference.jacobian_of(layer.double(), shape))


@pytest.mark.parametrize("size", [(9,), (1,), (6, 5), (2, 3), (4, 3, 2)])
def test_torch_layers_are_enclosed_as_torch_applies_them(size: tuple[int, ...]) -> None:
    # A network of twelve layers takes too long to be made smaller.
    @settings(max_examples=draws(3), phases=(Phase.generate,))
    @given(st.lists(convolution_modules(2, size), min_size=12, max_size=12))
    def holds(layers: list[nn.Module]) -> None:
        assert_layers_enclosed(layers, (2, *size))

    holds()


def test_even_kernels_with_same_padding_and_output_padding_are_enclosed() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(2, 3, (2, 4), padding="same"),
        nn.Conv2d(2, 3, (4, 2), padding="same", dilation=(1, 3)),
        nn.Conv2d(2, 3, 6, padding="same", padding_mode="circular"),
        nn.Conv2d(2, 2, 4, stride=3, padding=2, groups=2),
        nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(2, 3, (2, 3), stride=(3, 1), output_padding=(2, 0)),
        nn.ConvTranspose2d(2, 4, 2, stride=1, dilation=3, padding=1, output_padding=2, groups=2),
        nn.Conv2d(2, 2, 5, padding=2, padding_mode="circular"),
        nn.Conv2d(2, 2, (6, 7)),
    ]
    assert_layers_enclosed(layers, (2, 6, 7))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 3, 2, padding=1, padding_mode="circular"),
        nn.Conv1d(2, 3, 3, stride=2, padding=2, padding_mode="circular"),
        nn.Conv1d(2, 2, 1, padding=1, stride=3, padding_mode="circular"),
        nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(2, 2, 5, padding=2, padding_mode="replicate"),
    ],
    ids=str,
)
def test_padding_that_copies_is_bounded_with_its_copies(layer: nn.Module) -> None:
    report = lipcheck.check(layer, example=torch.zeros(1, 2, 7), samples=0)
    truth = reference.norm(reference.jacobian_of(layer.double(), (2, 7)))
    assert math.log10(truth) <= report.network.log10_upper + 1e-12


# Fifty digits, on the way through embeddings


HARD = {
    "rank one": noise(3, 1, 1) * noise(1, 2, 3, seed=1),
    "one output 1e8 times the rest": noise(3, 2, 3) * torch.tensor([1.0, 1e-8, 1e-8]).reshape(3, 1, 1),
    "one input 1e8 times the rest": noise(2, 3, 3) * torch.tensor([1.0, 1e-8, 1e-8]).reshape(1, 3, 1),
    "one tap": torch.tensor([0.0, 0.1, 0.0], dtype=torch.float64).reshape(1, 1, 3),
    "orthogonal shifts": torch.stack([torch.eye(3), torch.zeros(3, 3), torch.zeros(3, 3)], dim=2).double() * 0.7,
    "two peaks": torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).reshape(1, 1, 3),
    "ill-conditioned": noise(3, 3, 3) * 10.0 ** -torch.arange(0.0, 27.0, dtype=torch.float64).reshape(3, 3, 3),
    "zeros": torch.zeros(2, 2, 3, dtype=torch.float64),
    "one group of zeros": noise(4, 2, 3) * torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-200, 1e-300, 1e300, 1e-312])
def test_hard_weights_are_enclosed_to_fifty_digits(name: str, scale: float) -> None:
    operator = same(HARD[name] * scale, 4, groups=2 if "group" in name else 1)
    truth = reference.exact_norm(reference.written_out(operator))
    for bound in (spectral_norm(operator), by_embedding(operator)):
        reference.assert_encloses_exactly(bound, truth)
    # Subnormal numbers are as far apart as themselves.
    assert by_embedding(operator).upper <= float(truth) * 1.25 + 64 * 5e-324
    assert spectral_norm(operator).upper <= float(truth) * (1 + 1e-6) + 64 * 5e-324


# Tightness


@pytest.mark.parametrize("n", [3, 4, 7, 8, 16, 33])
def test_a_box_filter_is_known_exactly_from_the_half_step(n: int) -> None:
    """[1 1 1] on n points is tridiagonal: 1 + 2 cos(pi / (n + 1)), and so is the embedding with phase pi / m."""
    bound = by_embedding(reference.toeplitz([1.0, 1.0, 1.0], n))
    truth = 1 + 2 * math.cos(math.pi / (n + 1))
    assert truth <= bound.upper * (1 + 1e-15)
    assert bound.upper <= truth * (1 + 1e-12)
    assert truth * (1 - 1e-4) <= bound.lower <= truth * (1 + 1e-15)
    assert bound.upper < 3


@pytest.mark.parametrize("n", [16, 20])
@pytest.mark.parametrize("shape", [(4, 4, 3, 3), (8, 2, 3, 3), (2, 8, 3, 3), (4, 1, 3, 3)])
def test_an_embedding_of_sixteen_points_is_within_two_per_cent(shape: tuple[int, ...], n: int) -> None:
    operator = same(noise(*shape, seed=n), n, groups=4 if shape[1] == 1 else 1)
    bound = by_embedding(operator)
    matrix = reference.written_out(operator)
    reference.assert_encloses(bound, matrix)
    truth = reference.norm(matrix)
    assert bound.method.startswith("embedding")
    assert bound.upper <= 1.02 * truth
    assert bound.lower >= 0.99 * truth


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("n", [24, 60])
def test_a_line_is_within_two_per_cent(n: int, stride: int) -> None:
    operator = Convolution(noise(5, 4, 3, seed=n), (stride,), (1,), 1, (1,), (n,), ((n - 1) // stride + 1,))
    bound = by_embedding(operator)
    matrix = reference.written_out(operator)
    reference.assert_encloses(bound, matrix)
    assert bound.upper <= 1.02 * reference.norm(matrix)
    assert bound.lower >= 0.99 * reference.norm(matrix)


@settings(max_examples=draws(20))
@given(convolutions(paddings=("circular",)))
def test_circular_padding_is_exact_either_way(operator: Convolution) -> None:
    matrix = reference.written_out(operator)
    truth = reference.norm(matrix)
    bound = by_embedding(operator)
    reference.assert_encloses(bound, matrix)
    # Taps that meet on one input may cancel: what is left is rounding of what they were.
    rest = 1e-12 * float(operator.weight.double().abs().max())
    assert bound.upper <= truth * (1 + 1e-3) * reference.slack(matrix) + rest
    assert spectral_norm(operator).upper <= truth * (1 + 1e-6) + rest


@pytest.mark.parametrize("weights", ["high-pass", "drawn"])
def test_zero_padding_is_not_bounded_on_the_circular_grid(weights: str) -> None:
    """On n points with phase zero the peak can be missed: that grid would be below the truth."""
    operator = reference.toeplitz([-1.0, 2.0, -1.0] if weights == "high-pass" else [1.0, -1.9, 0.8], 7)
    circular = replace(operator, circular=True)
    truth = reference.norm(reference.written_out(operator))
    assert reference.norm(reference.written_out(circular)) < truth * (1 - 1e-4)
    assert by_embedding(operator).upper >= truth
    assert by_embedding(circular).upper < truth


def test_a_box_filter_with_zero_padding_is_below_the_circular_one() -> None:
    operator = same(torch.ones(1, 1, 3, 3, dtype=torch.float64), 7)
    truth = (1 + 2 * math.cos(math.pi / 8)) ** 2
    assert by_embedding(operator).upper == pytest.approx(truth, rel=1e-9)
    assert by_embedding(replace(operator, circular=True)).upper == pytest.approx(9, rel=1e-9)


# Long inputs, on grids coarser than their embedding


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 0.02, 1e-3, 1e-4])
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 6])
def test_a_coarse_grid_is_corrected_for_what_it_misses(degree: int, tolerance: float) -> None:
    """Two taps D apart attain the worst case of the sampling theorem when the grid straddles their D peaks.

    On n points with all outputs of full reach, the operator falls into D chains, the longest of m links: bidiagonal,
    of norm 2 cos(pi / (2 (m + 1))), here a part in a million below the symbol's peak of 2.
    """
    n = 4000
    weight = torch.zeros(1, 1, degree + 1, dtype=torch.float64)
    weight[..., 0], weight[..., -1] = 1, 1
    operator = Convolution(weight, (1,), (1,), 1, (0,), (n,), (n - degree,))
    links = -(-(n - degree) // degree)
    truth = 2 * math.cos(math.pi / (2 * (links + 1)))
    bound = spectral_norm(operator, Settings(tolerance=tolerance, memory=1 << 24))
    assert bound.method.startswith("symbol grid")
    assert truth <= bound.upper <= 2 * (1 + tolerance)
    assert bound.lower <= truth * (1 + 1e-15)


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 0.02])
@pytest.mark.parametrize("angle", [0.0, 0.05, 0.1, 0.3, 1.0, math.pi / 2])
def test_peaks_anywhere_between_the_points_are_found(angle: float, tolerance: float) -> None:
    """I + exp(i w) R(angle) has its peaks at -angle and angle, so some angle lies badly for any grid.

    The operator is 2 cos(pi / (2 (m + 1))) again: rotating each input by its position's multiple of the angle undoes R.
    """
    n = 4000
    cosine, sine = math.cos(angle), math.sin(angle)
    weight = torch.tensor([[[1.0, cosine], [0.0, -sine]], [[0.0, sine], [1.0, cosine]]], dtype=torch.float64)
    bound = spectral_norm(
        Convolution(weight, (1,), (1,), 1, (0,), (n,), (n - 1,)), Settings(tolerance=tolerance, memory=1 << 24)
    )
    assert bound.method.startswith("symbol grid")
    truth = 2 * math.cos(math.pi / (2 * n))
    # The entries of R are rounded.
    assert truth * (1 - 4e-16) <= bound.upper <= 2 * (1 + tolerance)
    assert truth * 0.95 <= bound.lower <= truth * (1 + 4e-16)


@settings(max_examples=draws(20))
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), TOLERANCES)
def test_a_long_line_is_bounded_above_what_a_wave_attains(
    seed: int, outputs: int, inputs: int, taps: int, tolerance: float
) -> None:
    """The peak's wave, windowed by a sine over 4000 points, comes within parts in a million of the peak."""
    n = 4000
    weight = noise(outputs, inputs, taps, seed=seed)
    operator = same(weight, n)
    bound = spectral_norm(operator, Settings(tolerance=tolerance, memory=1 << 26))
    turns = torch.arange(0, math.pi, 1e-3, dtype=torch.float64)
    waves = torch.polar(torch.ones(1, 1, dtype=torch.float64), turns[:, None] * torch.arange(taps))
    values = torch.einsum("nk,ock->noc", waves, weight.to(torch.complex128))
    top = int(torch.linalg.matrix_norm(values, 2).argmax())
    right = torch.linalg.svd(values[top])[2][0].conj()
    window = torch.sin(math.pi * (torch.arange(n, dtype=torch.float64) + 1) / (n + 1))
    wave = right[:, None] * torch.polar(window, -turns[top] * torch.arange(n, dtype=torch.float64)).conj()
    image = torch.complex(operator.forward(wave.real[None]), operator.forward(wave.imag[None]))
    attained = float(torch.linalg.vector_norm(image) / torch.linalg.vector_norm(wave))
    assert attained <= bound.upper * (1 + 1e-13)
    assert bound.upper <= attained * (1 + 1e-5) * (1 + tolerance)


# The rest of the contract


@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_give_the_same_bits(threads: int) -> None:
    operators = [same(noise(4, 3, 3, 3, seed=seed), 9 + seed) for seed in range(4)] + [Dense(noise(20, 30))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with no_small_matrices():
            first, second = enclose.enclose(operators), enclose.enclose(operators)
    finally:
        torch.set_num_threads(before)
    assert first == second


def test_one_thread_and_two_agree_within_the_tolerance() -> None:
    operators = [same(noise(6, 4, 3, 3, seed=seed), 12 + seed) for seed in range(4)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with no_small_matrices():
                found.append(enclose.enclose(operators))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert one.upper == pytest.approx(two.upper, rel=1e-3)
        assert one.lower == pytest.approx(two.lower, rel=1e-3)
        assert max(one.lower, two.lower) <= min(one.upper, two.upper)


def test_results_come_in_order_and_other_tasks_run_beside_them() -> None:
    operators = [Dense(torch.eye(3) * factor) for factor in (1.0, 2.0, 3.0)] + [same(noise(2, 2, 3), 5)]
    done: list[str] = []
    told: list[float] = []
    bounds = enclose.enclose(operators, advance=told.append, beside=[(5.0, lambda: done.append("beside"))])
    assert [round(bound.upper, 5) for bound in bounds[:3]] == [1.0, 2.0, 3.0]
    assert done == ["beside"]
    assert sum(told) == pytest.approx(5.0 + sum(enclose.cost(operator) for operator in operators))
    assert enclose.enclose([]) == []


@pytest.mark.parametrize("operator", [Sum((1.0, 1.0)), Concatenation()])
def test_an_operator_without_a_norm_is_refused(operator: Sum | Concatenation) -> None:
    with pytest.raises(TypeError, match=f"{type(operator).__name__} has no spectral norm"):
        spectral_norm(operator)


def test_diagonals_and_copies_are_exact() -> None:
    assert spectral_norm(Diagonal(torch.tensor([0.5, -0.75]))).upper == 0.75
    assert spectral_norm(Diagonal(torch.zeros(0))).upper == 0.0
    uncertain = spectral_norm(Diagonal(torch.tensor([3.0]), uncertainty=1e-3))
    assert uncertain.lower <= 2.997 < 3.003 <= uncertain.upper
    assert (spectral_norm(IDENTITY).lower, spectral_norm(IDENTITY).upper) == (1.0, 1.0)
    three = spectral_norm(Indexing(copies=3))
    with mpmath.workdps(reference.DIGITS):
        assert mpmath.mpf(three.lower) <= mpmath.sqrt(3) <= mpmath.mpf(three.upper)


def test_patches_that_do_not_overlap_are_one_matrix() -> None:
    """Stride equal to the kernel, as in the stem of a vision transformer: no frequency is left."""
    operator = Convolution(noise(5, 3, 4, 4), (4, 4), (1, 1), 1, (0, 0), (16, 16), (4, 4))
    bound = by_embedding(operator)
    assert bound.method == "matrix"
    truth = reference.norm(operator.weight.flatten(1))
    assert truth * (1 - 1e-6) <= bound.lower <= truth * (1 + 1e-12)
    assert truth <= bound.upper * (1 + 1e-13)
    assert bound.upper <= truth * (1 + 1e-6)


def test_patches_cut_by_the_edge_still_attain_their_lower_bound() -> None:
    """Every window is cut: no output sees the whole kernel, and its norm is not attained."""
    operator = Convolution(torch.ones(1, 1, 4, dtype=torch.float64), (4,), (1,), 1, (2,), (4,), (2,))
    reference.assert_encloses(by_embedding(operator), reference.written_out(operator))
    assert spectral_norm(operator).upper == pytest.approx(2**0.5, rel=1e-6)


@given(convolutions())
def test_the_magnitude_bounds_the_operator_of_absolute_weights(operator: Convolution) -> None:
    magnitude = enclose.symbol_magnitude(convolution_symbol(trimmed(operator)))
    matrix = reference.written_out(replace(operator, weight=operator.weight.abs()))
    assert reference.norm(matrix) <= magnitude * reference.slack(matrix)
    assert magnitude >= rounding.UNDERFLOW or not operator.weight.any()


def test_a_large_input_is_bounded_by_the_supremum_of_its_symbol() -> None:
    weight = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(3))
    large = Convolution(weight, (1, 1), (1, 1), 1, (1, 1), (160, 160), (160, 160))
    bound = spectral_norm(large)
    assert isinstance(bound.proof, CellsProof)
    assert bound.slack <= 1e-3
    with patch.object(enclose, "_MUCH", math.inf):
        embedded = spectral_norm(large)
    assert isinstance(embedded.proof, GridProof)
    # Both bound the same operator, and neither is below what the other attains.
    assert max(bound.lower, embedded.lower) <= min(bound.upper, embedded.upper)


def test_a_flat_symbol_falls_back_to_the_embedding() -> None:
    # Orthogonal at every frequency: no cell can be excluded.
    weight = torch.zeros(4, 4, 3, 3)
    weight[torch.arange(4), torch.arange(4), torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 2, 0])] = 1
    flat = Convolution(weight, (1, 1), (1, 1), 1, (1, 1), (160, 160), (160, 160))
    bound = spectral_norm(flat)
    assert 1 - 1e-6 <= bound.lower <= 1 <= bound.upper <= 1.001


@given(st.lists(st.integers(0, 99), min_size=1, max_size=9), st.sampled_from(((3, 5), (130, 140))))
@settings(max_examples=draws(12))
def test_matrices_of_one_shape_are_bounded_together_each_by_itself(seeds: list[int], sides: tuple[int, int]) -> None:
    operators: list[Dense | Convolution] = []
    matrices = []
    for place, seed in enumerate(seeds):
        matrix = torch.randn(*sides, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        matrix = matrix * (0.0 if seed % 7 == 3 else 10.0 ** (seed - 50))
        matrices.append(matrix)
        turned = matrix.T if place % 2 else matrix
        size = (3, 3)
        plain = Convolution(turned[:, :, None, None], (1, 1), (1, 1), 1, (0, 0), size, size)
        operators.append(plain if place % 3 else Dense(turned))
    for bound, matrix in zip(enclose.enclose(operators), matrices, strict=True):
        reference.assert_encloses(bound, matrix)
        assert bound.upper <= reference.norm(matrix) * (1 + 1e-6)
