"""The finite operator's bound against its matrix written out: never below, and within a thousandth."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import reference
import torch
from draws import draws
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from strategies import convolutions
from torch import Tensor

from lipcheck.engines import banded, finite
from lipcheck.engines.settings import Settings
from lipcheck.errors import CertificateError
from lipcheck.operators import Convolution
from lipcheck.proof import FiniteProof, ZeroProof
from lipcheck.symbol import as_matrix, trimmed

CPU = torch.device("cpu")
PADDINGS = ("zeros", "same", "free")
BELOW = (0.5, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12)


def gaussian(channels: int, size: tuple[int, ...], kernel: int = 3, groups: int = 1, seed: int = 0) -> Convolution:
    """A 'same' convolution with Gaussian weights."""
    noise = torch.Generator().manual_seed(seed)
    axes = len(size)
    weight = torch.randn(channels * groups, channels, *(kernel,) * axes, generator=noise, dtype=torch.float64)
    ones = (1,) * axes
    return Convolution(weight, ones, ones, groups, ((kernel - 1) // 2,) * axes, size, size)


@given(convolutions(paddings=PADDINGS))
def test_no_matrix_exceeds_its_bound_and_the_bound_is_tight(operator: Convolution) -> None:
    matrix = reference.written_out(operator)
    bound = finite.spectral_norm(operator, Settings())
    reference.assert_encloses(bound, matrix)
    truth = reference.norm(matrix)
    assert bound.upper <= truth * 1.001 + 1e-270
    assert bound.kind == "certified"
    assert (
        bound.proof == FiniteProof(bound.upper, finite.plan(operator).axis)
        if bound.upper
        else isinstance(bound.proof, ZeroProof | FiniteProof)
    )


@given(convolutions(paddings=PADDINGS), st.data())
def test_every_side_and_axis_gives_the_gram_matrix(operator: Convolution, data: st.DataObject) -> None:
    operator = replace(trimmed(operator), weight=operator.weight.double(), groups=1)
    operator = trimmed(operator)
    outputs, axis = data.draw(st.booleans()), data.draw(st.integers(0, operator.axes - 1))
    channels = operator.weight.shape[0] if outputs else operator.weight.shape[1]
    lines = [finite.line_of(operator, a, outputs) for a in range(operator.axes)]
    chosen = finite.Plan(outputs, axis, lines[axis], (*lines[:axis], *lines[axis + 1 :]), channels)
    matrix = as_matrix(operator)[0]
    gram = matrix @ matrix.T if outputs else matrix.T @ matrix
    size = operator.output_size if outputs else operator.input_size
    # From channels first to the axis first and channels last.
    gram = gram.reshape(channels, *size, channels, *size)
    order = [axis + 1, *(a + 1 for a in range(operator.axes) if a != axis), 0]
    gram = gram.permute(*order, *(a + len(order) for a in order))
    block = chosen.inner * channels
    gram = gram.reshape(chosen.line.sites, block, chosen.line.sites, block)
    seen = torch.zeros_like(gram)
    taps = finite._taps(operator, chosen)
    for chain in chosen.chains:
        layout, rows = chosen.layout(chain), finite._Rows(chosen, chain, taps)
        assembled = torch.zeros(len(chain), block, len(chain), block, dtype=torch.float64)
        for t in range(len(chain)):
            row = rows(t).reshape(block, -1, block)
            low = t - row.shape[1] + 1
            assembled[t, :, low : t + 1] = row
        within = assembled.reshape(layout.order, layout.order)
        mirrored = (within.tril() + within.tril(-1).T).reshape(assembled.shape)
        assert not bool(within.tril(-layout.width - 1).any())
        place = torch.tensor(list(chain))
        torch.testing.assert_close(
            mirrored, gram[place][:, :, place], rtol=1e-12, atol=1e-12 * float(gram.abs().max()) + 1e-300
        )
        seen[place[:, None], :, place[None]] = 1
    assert not bool(gram[seen == 0].any()), "chains that are not independent"


@pytest.mark.parametrize("outputs", [True, False])
def test_gram_blocks_are_within_their_stated_error(outputs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against exact rationals."""
    operator = gaussian(2, (3, 4))
    lines = tuple(finite.line_of(operator, axis, outputs) for axis in range(2))
    chosen = finite.Plan(outputs, 0, lines[0], lines[1:], 2)
    blurs: list[float] = []
    monkeypatch.setattr(banded, "below", lambda rows, layout, mu, blur, device: blurs.append(blur) or True)
    finite.below(operator, chosen, 1.0, CPU)
    rows = finite._Rows(chosen, chosen.chains[0], finite._taps(operator, chosen))
    matrix = [[Fraction(v) for v in row] for row in as_matrix(operator)[0].tolist()]
    matrix = matrix if outputs else [list(column) for column in zip(*matrix, strict=True)]
    squares = 0.0
    for t in range(3):
        row = rows(t)
        low = t - row.shape[1] // row.shape[0] + 1
        for a, b in itertools.product(range(row.shape[0]), range(row.shape[1])):
            if low * 8 + b <= t * 8 + a:
                # Positions first, channels last, against channels first.
                one, other = (x % 2 * 12 + x // 2 for x in (t * 8 + a, low * 8 + b))
                exact = sum(x * y for x, y in zip(matrix[one], matrix[other], strict=True))
                squares += 2 * float(Fraction(float(row[a, b])) - exact) ** 2
    assert 0 < squares**0.5 <= blurs[0] < 1e-11


def orthogonal(channels: int) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(channels, channels, generator=noise, dtype=torch.float64))[0]


def flat(channels: int) -> Convolution:
    """A shift with orthogonal channels, all singular values one or zero."""
    weight = torch.zeros(channels, channels, 3, 3, dtype=torch.float64)
    weight[:, :, 0, 1] = orthogonal(channels)
    return Convolution(weight, (1, 1), (1, 1), 1, (1, 1), (5, 4), (5, 4))


KNOWN = {
    "flat": (flat(6), 1.0),
    "sines": (reference.toeplitz([1.0, 1.0, 1.0], 7), 1 + 2 * math.cos(math.pi / 8)),
    "one tap, one point": (reference.toeplitz([1.5], 1), 1.5),
    "gaussian": (gaussian(5, (6, 7)), None),
    "gaussian in space": (gaussian(2, (3, 4, 3)), None),
    "rank one": (replace(gaussian(3, (5, 5)), weight=torch.ones(3, 3, 3, 3, dtype=torch.float64)), None),
}


@pytest.mark.parametrize("panel", [4, 512])
@pytest.mark.parametrize("name", KNOWN)
def test_a_proof_says_yes_just_above_the_norm_and_never_below(
    name: str, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banded, "_PANEL", panel)
    operator, truth = KNOWN[name]
    truth = truth or reference.norm(reference.written_out(operator))
    chosen = finite.plan(operator)
    assert [f for f in BELOW if finite.below(operator, chosen, truth * f, CPU)] == []
    assert finite.below(operator, chosen, truth * (1 + 1e-8), CPU)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 2.0**-1000, 2.0**990])
def test_any_scale_gives_the_same_bound(scale: float) -> None:
    operator = gaussian(3, (5, 6))
    one = finite.spectral_norm(operator, Settings())
    other = finite.spectral_norm(replace(operator, weight=operator.weight * scale), Settings())
    assert other.upper == pytest.approx(one.upper * scale, rel=1e-7)
    assert other.lower == pytest.approx(one.lower * scale, rel=1e-7)
    reference.assert_encloses(other, reference.written_out(operator) * scale)


def test_only_groups_that_can_matter_are_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = gaussian(3, (6, 6), groups=4)
    weight = operator.weight.clone()
    weight[:6] *= 1e-3
    weight[9:] *= 1.5
    operator = replace(operator, weight=weight)
    factored = []
    below = finite.below
    monkeypatch.setattr(finite, "below", lambda own, *rest: factored.append(own.weight) or below(own, *rest))
    bound = finite.spectral_norm(operator, Settings())
    reference.assert_encloses(bound, reference.written_out(operator))
    assert len(factored) == 1


@pytest.mark.parametrize("groups", [1, 3])
def test_a_search_that_stops_short_raises_the_bound(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = gaussian(3, (6, 6), groups=groups)
    matrix = reference.written_out(operator)
    monkeypatch.setattr(finite, "search", lambda *_: 0.9)
    bound = finite.spectral_norm(operator, Settings())
    reference.assert_encloses(bound, matrix)
    assert bound.upper < 2.1 * reference.norm(matrix)


def test_a_bound_that_cannot_be_proved_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "below", lambda *_: False)
    with pytest.raises(CertificateError, match="finite operator: no factorisation at"):
        finite.spectral_norm(gaussian(2, (4, 4)), Settings())


def test_uncertain_weights_widen_the_enclosure() -> None:
    operator = gaussian(2, (5, 5))
    exact = finite.spectral_norm(operator, Settings())
    wide = finite.spectral_norm(replace(operator, uncertainty=1e-3), Settings())
    noise = torch.Generator().manual_seed(3)
    for _ in range(5):
        signs = torch.randint(0, 2, operator.weight.shape, generator=noise).double() * 2 - 1
        moved = replace(operator, weight=operator.weight * (1 + 1e-3 * signs))
        reference.assert_encloses(wide, reference.written_out(moved))
    assert wide.upper > exact.upper > exact.lower > wide.lower
    assert wide.proof == exact.proof


def test_the_cost_counts_the_cheapest_band() -> None:
    """3 x 3 kernels of 512 channels on 7 x 7 take some 1.5 TFlop and 2 GB."""
    large = gaussian(1, (7, 7))
    large = replace(large, weight=torch.zeros(1, 1, 3, 3).expand(512, 512, 3, 3))
    assert 1.2e12 < finite.cost(large) < 2.2e12
    assert 0.9e9 < finite.memory(large) < 4e9
    tall = replace(large, weight=torch.zeros(1, 1, 3, 3).expand(512, 64, 3, 3))
    assert not finite.plan(tall).outputs
    assert finite.cost(tall) < finite.cost(large) / 30
    long = replace(large, input_size=(7, 21), output_size=(7, 21))
    assert finite.plan(long).axis == 1


def test_dilation_falls_apart_into_chains() -> None:
    operator = replace(gaussian(2, (9, 9)), dilation=(2, 2), offset=(2, 2))
    assert finite.plan(operator).chains == [range(0, 9, 2), range(1, 9, 2)]
    assert finite.cost(operator) < finite.cost(gaussian(2, (9, 9))) * 1.5


@hypothesis_settings(max_examples=draws(20))
@given(convolutions(paddings=PADDINGS))
def test_cost_and_memory_are_finite_for_every_shape(operator: Convolution) -> None:
    assert 0 < finite.cost(operator) < 1e9
    assert 0 < finite.memory(operator) < 1e8
