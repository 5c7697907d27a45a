"""A short axis unrolled into channels: the same map, never below its norm, and provable from the certificate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import reference
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import convolutions

from lipcheck.engines import certified, enclose, finite, unrolled
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution
from lipcheck.proof import SemifiniteProof
from lipcheck.symbol import convolution_symbol, embedding_points, grids, trimmed
from lipcheck.verification import Limits, check_bound


def gaussian(channels: int, size: tuple[int, ...], kernel: tuple[int, ...], groups: int = 1) -> Convolution:
    noise = torch.Generator().manual_seed(0)
    weight = torch.randn(channels * groups, channels, *kernel, generator=noise)
    ones, offset = (1,) * len(size), tuple(k // 2 for k in kernel)
    return Convolution(weight, ones, ones, groups, offset, size, size)


@given(convolutions(paddings=("zeros", "same", "free")), st.data())
def test_an_unrolled_axis_leaves_the_map_as_it_is(operator: Convolution, data: st.DataObject) -> None:
    assume(operator.axes > 1)
    axis = data.draw(st.integers(0, operator.axes - 1))
    flat = unrolled.unrolled(operator, axis)
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(1, operator.input_channels, *operator.input_size, generator=noise, dtype=torch.float64)
    given_flat = x.movedim(2 + axis, 2).flatten(1, 2)
    there = replace(flat, weight=flat.weight.double()).forward(given_flat)
    truth = replace(operator, weight=operator.weight.double()).forward(x).movedim(2 + axis, 2).flatten(1, 2)
    largest = float(operator.weight.abs().max()) * operator.weight[0].numel()
    assert float((there - truth).abs().max()) <= 1e-13 * largest * float(x.abs().max())


@given(convolutions(paddings=("zeros", "same", "free")), st.data())
def test_no_matrix_exceeds_its_bound(operator: Convolution, data: st.DataObject) -> None:
    operator = trimmed(operator)
    assume(operator.axes > 1 and bool(operator.weight.any()))
    axis = data.draw(st.integers(0, operator.axes - 1))
    flat = trimmed(unrolled.unrolled(operator, axis))
    assume(bool(flat.weight.any()))
    short = unrolled.Unrolling(axis, flat, convolution_symbol(flat), cheap=True)
    bound = enclose._by_unrolling(operator, convolution_symbol(operator), short, Settings())
    reference.assert_encloses(bound, reference.written_out(operator))


@pytest.mark.parametrize(
    ("operator", "axis"),
    [
        (gaussian(48, (2, 7, 7), (3, 3, 3)), 0),
        (gaussian(32, (8, 4, 9), (3, 3, 3)), 1),
        (gaussian(16, (12, 14, 3), (3, 3, 3), groups=2), 2),
        (gaussian(80, (2, 7, 7), (3, 1, 1)), 0),
        (gaussian(40, (4, 22), (3, 3)), 0),
    ],
)
def test_a_short_axis_is_unrolled_by_default(operator: Convolution, axis: int) -> None:
    bound = enclose.spectral_norm(operator, Settings())
    exact = finite.spectral_norm(operator, Settings())
    loose = enclose._by_symbol(operator, convolution_symbol(operator), Settings())
    assert bound.method.startswith("semifinite")
    assert isinstance(bound.proof, SemifiniteProof)
    assert bound.proof.finite == (axis,)
    assert exact.lower <= bound.upper
    assert bound.lower <= exact.upper
    assert bound.upper < 0.97 * loose.upper
    assert check_bound(operator, bound.proof, bound.upper, Limits())[0] == ()
    lower_mu = replace(bound.proof, mu=0.9 * bound.proof.mu)
    assert "is not proved at frequency" in check_bound(operator, lower_mu, bound.upper, Limits())[0][0]


@pytest.mark.parametrize(
    "operator",
    [
        gaussian(512, (7, 7), (3, 3)),
        gaussian(512, (4, 4), (3, 3)),
        gaussian(8, (4, 400), (1, 3)),
        gaussian(1024, (4, 224, 224), (3, 3, 3)),
        replace(gaussian(48, (2, 7, 7), (3, 3, 3)), circular=True),
        gaussian(1, (2, 90, 90), (3, 3, 3), groups=8),
    ],
    ids=["no axis short", "both short", "not reached", "too much", "circular", "depthwise"],
)
def test_what_is_not_unrolled(operator: Convolution) -> None:
    assert unrolled.unrolling(operator, convolution_symbol(operator)) is None


def test_a_dear_unrolling_waits_for_a_loose_embedding() -> None:
    operator = gaussian(24, (4, 22, 22), (3, 3, 3))
    short = unrolled.unrolling(operator, convolution_symbol(operator))
    assert short is not None
    assert not short.cheap
    assert embedding_points(short.operator) == (23, 23)
    assert unrolled.worth(1.0, 1.031)
    assert not unrolled.worth(1.0, 1.029)
    weight = operator.weight.clone()
    weight[:, :, 0] = weight[:, :, 2] = 0
    weight[:, :, 0, 1, 1] = 1e-3 * torch.eye(24)
    bound = enclose.spectral_norm(replace(operator, weight=weight), Settings())
    assert bound.method.startswith("embedding")
    assert bound.slack < 0.03


def test_uncertain_weights_blur_an_unrolled_bound() -> None:
    operator = gaussian(48, (2, 7, 7), (3, 3, 3))
    sharp = enclose.spectral_norm(operator, Settings())
    wide = enclose.spectral_norm(replace(operator, uncertainty=1e-3), Settings())
    assert wide.lower < sharp.lower
    assert wide.upper >= sharp.upper * (1 + 1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_carry_through(scale: float) -> None:
    operator = gaussian(48, (2, 7, 7), (3, 3, 3))
    operator = replace(operator, weight=operator.weight.double())
    one = enclose.spectral_norm(operator, Settings())
    other = enclose.spectral_norm(replace(operator, weight=operator.weight * scale), Settings())
    assert math.isclose(other.upper, one.upper * scale, rel_tol=1e-6)


def test_a_loose_embedding_is_not_proved_before_it_is_unrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = gaussian(24, (4, 22, 22), (3, 3, 3))
    symbol = convolution_symbol(operator)
    loose = enclose._by_symbol(operator, symbol, Settings())
    looked = certified.estimate(
        symbol, grids(operator, symbol, 1e-3), tolerance=1e-3, device=torch.device("cpu"), memory=1 << 30
    )
    assert 0.95 * loose.upper <= looked.upper <= loose.upper
    monkeypatch.setattr(enclose, "_by_symbol", lambda *_: pytest.fail("the embedding was proved"))
    bound = enclose.spectral_norm(operator, Settings())
    assert bound.method.startswith("semifinite")
    assert 0.97 * bound.upper < bound.lower < bound.upper < loose.upper / 1.03
