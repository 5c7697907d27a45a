"""One finite axis: never below the matrix written out, and between the finite operator and the embedding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import reference
import torch
from draws import draws
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from strategies import convolutions

from lipcheck.engines import finite, semifinite
from lipcheck.engines.certified import certify
from lipcheck.engines.settings import Settings
from lipcheck.errors import CertificateError
from lipcheck.operators import Convolution
from lipcheck.proof import FiniteProof, SemifiniteProof
from lipcheck.symbol import Grid, convolution_symbol, embedding_points, grids, trimmed

PADDINGS = ("zeros", "same", "free")


def gaussian(channels: int, size: tuple[int, ...], groups: int = 1, seed: int = 0) -> Convolution:
    noise = torch.Generator().manual_seed(seed)
    axes = len(size)
    weight = torch.randn(channels * groups, channels, *(3,) * axes, generator=noise, dtype=torch.float64)
    ones = (1,) * axes
    return Convolution(weight, ones, ones, groups, ones, size, size)


def embedding(operator: Convolution) -> float:
    operator = trimmed(operator)
    symbol = convolution_symbol(operator)
    candidates = [grid for grid in grids(operator, symbol, 1e-9) if grid.share == 1]
    found = certify([symbol], candidates, tolerance=1e-4, device=torch.device("cpu"), memory=1 << 28)
    return found[0].upper


@given(convolutions(paddings=PADDINGS))
def test_no_matrix_exceeds_its_bound(operator: Convolution) -> None:
    bound = semifinite.spectral_norm(operator, Settings())
    reference.assert_encloses(bound, reference.written_out(operator))


@pytest.mark.parametrize(
    "operator",
    [
        gaussian(4, (7, 7)),
        gaussian(3, (5, 9), groups=2),
        gaussian(2, (4, 5, 3)),
        replace(gaussian(3, (9, 9)), stride=(2, 2), output_size=(5, 5)),
        replace(gaussian(3, (9, 9)), stride=(1, 2), output_size=(9, 5)),
        replace(gaussian(3, (9, 9)), dilation=(2, 2), offset=(2, 2)),
        replace(gaussian(3, (6, 6)), offset=(0, 2), output_size=(4, 8)),
    ],
)
def test_it_lies_between_the_finite_operator_and_the_embedding(operator: Convolution) -> None:
    bound = semifinite.spectral_norm(operator, Settings())
    exact = finite.spectral_norm(operator, Settings())
    reference.assert_encloses(bound, reference.written_out(operator))
    assert exact.lower <= bound.upper <= embedding(operator) * (1 + 2e-4)
    assert bound.lower == pytest.approx(exact.lower, rel=1e-4)


def test_it_halves_the_slack_of_the_embedding() -> None:
    operator = gaussian(16, (7, 7))
    truth = reference.norm(reference.written_out(operator))
    bound = semifinite.spectral_norm(operator, Settings())
    assert bound.upper / truth - 1 < 0.6 * (embedding(operator) / truth - 1)
    assert bound.method == "semifinite 8"


def test_the_proof_names_the_finite_axis_and_the_grid_of_the_others() -> None:
    bound = semifinite.spectral_norm(gaussian(2, (4, 5, 3)), Settings())
    proof = bound.proof
    assert isinstance(proof, SemifiniteProof)
    (axis,) = proof.finite
    size = [4, 5, 3]
    del size[axis]
    assert proof.points == tuple(n + 1 for n in size)
    assert all(half in (0, 1) for half in proof.half)
    assert proof.mu == bound.upper


def test_one_axis_alone_is_the_finite_operator() -> None:
    bound = semifinite.spectral_norm(reference.toeplitz([1.0, 1.0, 1.0], 7), Settings())
    assert isinstance(bound.proof, FiniteProof)
    assert bound.upper == pytest.approx(1 + 2 * math.cos(math.pi / 8), rel=2e-4)


@hypothesis_settings(max_examples=draws(40))
@given(convolutions(paddings=PADDINGS), st.data())
def test_slices_have_the_norm_of_the_symbol_along_the_other_axes(operator: Convolution, data: st.DataObject) -> None:
    """A(w) written out with complex entries, by definition."""
    operator = replace(trimmed(operator), weight=trimmed(operator).weight.double())
    largest = float(operator.weight.abs().max())
    if operator.axes == 1 or not largest:
        return
    operator = replace(operator, weight=operator.weight / largest)
    axis = data.draw(st.integers(0, operator.axes - 1))
    strip = semifinite.strips(operator)[axis]
    grid = data.draw(st.sampled_from(strip.grids))
    index = grid.indices()
    place = index[data.draw(st.integers(0, len(index) - 1))]
    group = data.draw(st.integers(0, operator.groups - 1))
    angles = [math.pi * int(t) / m for t, m in zip(place, grid.points, strict=True)]
    rest = [a for a in range(operator.axes) if a != axis]
    rows, inputs = operator.weight.shape[0] // operator.groups, operator.weight.shape[1]
    n, count, s = operator.input_size[axis], operator.output_size[axis], operator.stride[axis]
    phases = math.prod(operator.stride[a] for a in rest)
    matrix = torch.zeros(rows, count, inputs, phases, n, dtype=torch.complex128)
    kernel = operator.kernel
    for flat in range(math.prod(kernel)):
        tap = [int(k) for k in torch.unravel_index(torch.tensor(flat), kernel)]
        wave, phase = 1.0 + 0j, 0
        for a, angle in zip(rest, angles, strict=True):
            q, r = divmod(operator.dilation[a] * tap[a], operator.stride[a])
            wave *= complex(math.cos(angle * q), math.sin(angle * q))
            phase = phase * operator.stride[a] + r
        own = operator.weight[group * rows : (group + 1) * rows]
        for i in range(count):
            j = s * i + operator.dilation[axis] * tap[axis] - operator.offset[axis]
            if 0 <= j < n:
                matrix[:, i, :, phase, j] += wave * own[(slice(None), slice(None), *tap)]
    truth = float(torch.linalg.matrix_norm(matrix.reshape(rows * count, -1), 2))
    found = reference.norm(reference.written_out(strip.slice(group, grid, place)))
    assert found == pytest.approx(truth, rel=1e-10, abs=1e-12)
    assert float(semifinite._norms(strip.slice(group, grid, place), 12)[0]) <= truth * (1 + 1e-9) + 1e-12


def test_a_search_that_stops_short_raises_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = gaussian(3, (5, 5))
    matrix = reference.written_out(operator)
    monkeypatch.setattr(finite, "search", lambda *_: 0.5)
    bound = semifinite.spectral_norm(operator, Settings())
    reference.assert_encloses(bound, matrix)
    assert bound.upper < 2.5 * reference.norm(matrix)


def test_a_bound_that_cannot_be_proved_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "below", lambda *_: False)
    monkeypatch.setattr(semifinite, "_ATTEMPTS", 3)
    with pytest.raises(CertificateError, match="one finite axis: no factorisation at"):
        semifinite.spectral_norm(gaussian(2, (4, 4)), Settings())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale_gives_the_same_bound(scale: float) -> None:
    operator = gaussian(2, (5, 6), groups=2)
    one = semifinite.spectral_norm(operator, Settings())
    other = semifinite.spectral_norm(replace(operator, weight=operator.weight * scale), Settings())
    assert other.upper == pytest.approx(one.upper * scale, rel=1e-6)
    reference.assert_encloses(other, reference.written_out(operator) * scale)


def test_uncertain_weights_widen_the_enclosure() -> None:
    operator = gaussian(2, (5, 5))
    exact = semifinite.spectral_norm(operator, Settings())
    wide = semifinite.spectral_norm(replace(operator, uncertainty=1e-3), Settings())
    assert wide.upper >= exact.upper + 1e-3 * exact.upper
    assert wide.lower < exact.lower
    assert wide.proof == exact.proof


def test_nothing_is_zero() -> None:
    operator = gaussian(2, (5, 5))
    assert semifinite.spectral_norm(replace(operator, weight=operator.weight * 0), Settings()).upper == 0


def test_it_costs_a_small_part_of_the_finite_operator() -> None:
    large = replace(gaussian(1, (7, 7)), weight=torch.zeros(1, 1, 3, 3).expand(256, 256, 3, 3))
    assert semifinite.cost(large) < 0.4 * finite.cost(large)
    assert embedding_points(large) == (8, 8)


def test_every_slice_is_proved_however_the_search_ranks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = gaussian(3, (5, 6))
    # Between a half and one, so that nothing is scaled.
    operator = replace(operator, weight=operator.weight * (0.75 / operator.weight.abs().max()))
    proved: list[float] = []
    below = finite.below

    def recorded(one: Convolution, *rest: Any) -> bool:
        if below(one, *rest):
            proved.append(reference.norm(reference.written_out(one)))
            return True
        return False

    monkeypatch.setattr(semifinite, "_norms", lambda stacked, steps: torch.zeros(stacked.groups))
    monkeypatch.setattr(finite, "below", recorded)
    bound = semifinite.spectral_norm(operator, Settings())
    assert isinstance(bound.proof, SemifiniteProof)
    strip = semifinite.strips(operator)[bound.proof.finite[0]]
    grid = Grid(bound.proof.points, bound.proof.half)
    slices = [strip.slice(0, grid, place) for place in grid.indices()]
    assert proved == [pytest.approx(reference.norm(reference.written_out(one)), rel=1e-12) for one in slices]
    assert max(proved) <= bound.proof.mu


def test_a_box_is_bounded_by_its_sines() -> None:
    """The grid with half a step straddles the peak so that nothing is lost, and one point fewer would be too few."""
    box = Convolution(torch.ones(1, 1, 3, 3), (1, 1), (1, 1), 1, (1, 1), (7, 7), (7, 7))
    truth = (1 + 2 * math.cos(math.pi / 8)) ** 2
    bound = semifinite.spectral_norm(box, Settings())
    assert truth * (1 - 1e-13) <= bound.upper <= truth * (1 + 2e-4)
