"""A dilated convolution has the norm of the largest of its undilated parts, and the parts are its own blocks."""

from __future__ import annotations

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcheck.engines import enclose as engine
from lipcheck.engines.enclose import spectral_norm
from lipcheck.lattices import sublattices
from lipcheck.operators import Convolution


@st.composite
def dilated(draw: st.DrawFn) -> Convolution:
    """One or two axes with any stride, dilation, offset (negative ones too) and sizes."""
    axes = draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(axes))
    weight = torch.randn(
        2, 1, *kernel, dtype=torch.float64, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    )
    tuples = [
        tuple(draw(st.integers(low, high)) for _ in range(axes))
        for low, high in [(1, 4), (1, 4), (-2, 6), (1, 9), (1, 7)]
    ]
    stride, dilation, offset, inputs, outputs = tuples
    return Convolution(weight, stride, dilation, 1, offset, inputs, outputs)


@given(dilated())
def test_the_largest_part_has_the_norm_of_the_whole(operator: Convolution) -> None:
    exact = reference.norm(reference.written_out(operator))
    parts = [part for part in sublattices(operator) if 0 not in part.input_size]
    largest = max((reference.norm(reference.written_out(part)) for part in parts), default=0.0)
    assert largest == pytest.approx(exact, rel=1e-12, abs=1e-300)


@given(dilated(), st.booleans())
def test_the_enclosure_holds(operator: Convolution, formed: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not formed:
            patch.setattr(engine, "_MATRIX_SIDE", 0)
        bound = spectral_norm(operator)
    matrix = reference.written_out(operator)
    reference.assert_encloses(bound, matrix)


def test_a_dilation_shortens_the_embedding() -> None:
    weight = torch.randn(48, 48, 3, generator=torch.Generator().manual_seed(0))
    operator = Convolution(weight, (1,), (50,), 1, (50,), (5000,), (5000,))
    parts = sublattices(operator)
    assert [part.input_size for part in parts] == [(100,)]
    assert "101" in spectral_norm(operator).method


def test_without_dilation_nothing_changes() -> None:
    operator = Convolution(torch.ones(1, 1, 3), (2,), (1,), 1, (1,), (8,), (4,))
    assert sublattices(operator) == [operator]
