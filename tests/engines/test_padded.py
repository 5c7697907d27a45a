"""Convolutions behind reflect, replicate and inexact circular padding, against torch's own padding column by column."""

from __future__ import annotations

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from lipcheck.engines import enclose as engine
from lipcheck.engines.enclose import spectral_norm
from lipcheck.operators import Convolution, Padded
from lipcheck.rules.affine import pad_indices
from lipcheck.symbol import padded_matrix


def behind_padding(
    weight: Tensor,
    size: tuple[int, ...],
    widths: tuple[tuple[int, int], ...],
    mode: str,
    stride: int = 1,
    groups: int = 1,
) -> Padded:
    places = tuple(pad_indices(n, a, b, mode) for n, (a, b) in zip(size, widths, strict=True))
    padded = tuple(len(place) for place in places)
    outputs = tuple((n - k) // stride + 1 for n, k in zip(padded, weight.shape[2:], strict=True))
    axes = len(size)
    inner = Convolution(weight, (stride,) * axes, (1,) * axes, groups, (0,) * axes, padded, outputs)
    return Padded(inner, places, size, mode)


@st.composite
def paddings(draw: st.DrawFn) -> tuple[Padded, Tensor]:
    """A padded convolution, and its matrix from torch's padding applied to each basis vector."""
    axes = draw(st.integers(1, 2))
    mode = draw(st.sampled_from(["reflect", "replicate", "circular"]))
    size = tuple(draw(st.integers(3, 6)) for _ in range(axes))
    widths = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(axes))
    groups = draw(st.sampled_from([1, 2]))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    stride = draw(st.integers(1, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    weight = torch.randn(2 * groups, 1, *kernel, dtype=torch.float64, generator=generator)
    operator = behind_padding(weight, size, widths, mode, stride, groups)
    inputs = groups
    basis = torch.eye(inputs * int(torch.tensor(size).prod()), dtype=torch.float64).reshape(-1, inputs, *size)
    flat = [width for pair in reversed(widths) for width in pair]
    convolve = (functional.conv1d, functional.conv2d)[axes - 1]
    columns = convolve(functional.pad(basis, flat, mode=mode), weight, stride=stride, groups=groups)
    return operator, columns.flatten(1).T


@given(paddings())
def test_forward_adjoint_and_matrix_are_torchs(drawn: tuple[Padded, Tensor]) -> None:
    operator, matrix = drawn
    inputs, outputs = operator.convolution.input_channels, operator.convolution.weight.shape[0]
    x = torch.randn(1, inputs, *operator.input_size, dtype=torch.float64)
    y = torch.randn(1, outputs, *operator.convolution.output_size, dtype=torch.float64)
    torch.testing.assert_close(operator.forward(x).flatten(), matrix @ x.flatten())
    torch.testing.assert_close(operator.adjoint(y).flatten(), matrix.T @ y.flatten())
    blocks = torch.block_diag(*padded_matrix(operator))
    torch.testing.assert_close(blocks, matrix)


@given(paddings(), st.booleans())
def test_the_norm_lies_within(drawn: tuple[Padded, Tensor], formed: bool) -> None:
    operator, matrix = drawn
    with pytest.MonkeyPatch.context() as patch:
        if not formed:
            patch.setattr(engine, "_MATRIX_SIDE", 0)
        bound = spectral_norm(operator)
    exact = reference.norm(matrix)
    assert exact <= bound.upper * reference.slack(matrix)
    assert bound.lower <= exact * reference.slack(matrix)
    if formed:
        assert bound.upper <= exact * (1 + 1e-6) + 1e-12


def test_a_box_behind_reflection_exceeds_its_symbol() -> None:
    box = torch.ones(1, 1, 3, 3)
    bound = spectral_norm(behind_padding(box, (7, 7), ((1, 1), (1, 1)), "reflect"))
    assert 9.60 <= bound.lower <= bound.upper <= 9.61
    larger = spectral_norm(behind_padding(box, (64, 64), ((1, 1), (1, 1)), "reflect"))
    assert 9.3 <= larger.lower <= larger.upper <= 18
    assert "copies" in larger.method


def test_copies_are_counted_per_axis() -> None:
    box = torch.ones(1, 1, 3, 3)
    assert behind_padding(box, (5, 5), ((1, 1), (1, 1)), "reflect").copies == 4
    assert behind_padding(box, (5, 5), ((2, 0), (1, 0)), "replicate").copies == 6


@pytest.mark.parametrize("scale", [1e-290, 1e-30, 1e30, 1e290])
@pytest.mark.parametrize("formed", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_scales_far_from_one(scale: float, formed: bool, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not formed:
        monkeypatch.setattr(engine, "_MATRIX_SIDE", 0)
    weight = torch.randn(3, 3 // groups, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) * scale
    operator = behind_padding(weight, (5, 4), ((2, 1), (0, 2)), "reflect", stride=2, groups=groups)
    exact = reference.norm(torch.block_diag(*padded_matrix(operator)))
    bound = spectral_norm(operator)
    assert 0.99 * exact <= bound.lower <= exact * (1 + 1e-12)
    assert exact <= bound.upper * (1 + 1e-12)
