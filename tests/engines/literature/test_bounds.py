"""Each published method against the matrix written out: above it where it claims to be, and honest where it is not."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
import pytest
import reference
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import convolutions, matrices
from torch import Tensor

from lipcheck.engines.literature import METHODS, applies, bound_by
from lipcheck.engines.literature.subject import folded_kernel, reduced, symbol_of
from lipcheck.engines.settings import Settings
from lipcheck.errors import UsageError
from lipcheck.operators import Convolution, Dense, InfiniteConvolution, Padded
from lipcheck.symbol import padded_matrix

SIZED = ("gram", "gram-embedding", "sedghi", "power", "frobenius")
UPPER = tuple(name for name, method in METHODS.items() if method.upper is not None)


def ready(operator: Convolution) -> Convolution:
    return replace(operator, weight=operator.weight.double())


def high_pass(n: int, axes: int = 1) -> Convolution:
    """[1 -1 1] along each axis, `same` zero padding: the symbol's peak stands at pi."""
    line = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    weight = line
    for _ in range(axes - 1):
        weight = weight[..., None] * line
    one = (1,) * axes
    return Convolution(weight[None, None], one, one, 1, one, (n,) * axes, (n,) * axes)


@pytest.mark.parametrize("name", METHODS)
@given(operator=convolutions())
@settings(max_examples=draws(25))
def test_what_is_certified_is_above_the_norm(name: str, operator: Convolution) -> None:
    bound = bound_by(name, operator)
    assert bound.kind == ("certified" if METHODS[name].claim(operator) == "upper" else "estimate")
    if bound.kind == "certified":
        reference.assert_encloses(bound, reference.written_out(operator))


@pytest.mark.parametrize("name", UPPER)
@given(operator=convolutions())
@settings(max_examples=draws(12))
def test_what_is_certified_is_just_above_what_is_computed(name: str, operator: Convolution) -> None:
    value = float(METHODS[name].run(operator))
    upper = METHODS[name].upper
    assert upper is not None
    # Where the taps cancel, on a single point say, only the size of what was added can be proved.
    cancelled = 1e-6 * float(operator.weight.double().abs().sum())
    assert value * (1 - 1e-13) <= upper(operator, Settings()) <= value * (1 + 2e-5) + cancelled


@pytest.mark.parametrize("name", UPPER)
@given(matrix=matrices(side=12))
@settings(max_examples=draws(25))
def test_matrices(name: str, matrix: Tensor) -> None:
    bound = bound_by(name, Dense(matrix))
    assert bound.kind == "certified"
    reference.assert_encloses(bound, matrix)


@pytest.mark.parametrize("name", UPPER)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3), columns=st.integers(1, 3))
@settings(max_examples=draws(15))
def test_rounding_is_outwards(name: str, seed: int, rows: int, columns: int) -> None:
    """Of rank one, all methods but Schur's and the row sums are exact: nothing is forgiven."""
    left, right = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = torch.outer(left[:rows], right[:columns])
    bound = bound_by(name, Dense(matrix))
    assert reference.exact_norm(matrix) <= mpmath.mpf(bound.upper)


@given(convolutions())
@settings(max_examples=draws(25))
def test_power_iteration_is_never_above_the_norm(operator: Convolution) -> None:
    matrix = reference.written_out(operator)
    assert float(METHODS["power"].run(operator)) <= reference.norm(matrix) * reference.slack(matrix) * (1 + 1e-13)


@given(convolutions(paddings=("circular",)))
@settings(max_examples=draws(25))
def test_sedghi_is_the_norm_of_the_circular_operator(operator: Convolution) -> None:
    truth = reference.norm(reference.written_out(operator))
    assert float(METHODS["sedghi"].run(operator)) == pytest.approx(truth, rel=1e-9)
    # Where taps cancel, the error of the Gram matrices is all that is left.
    floor = 1e-6 * float(operator.weight.abs().sum())
    assert bound_by("sedghi", operator).upper == pytest.approx(truth, rel=1e-7, abs=floor)


@given(convolutions(paddings=("circular",)), st.integers(0, 9))
@settings(max_examples=draws(25))
def test_gram_falls_to_the_maximum_on_its_grid(operator: Convolution, iterations: int) -> None:
    """From above, within rank^(1 / 2^(t + 1))."""
    truth = reference.norm(reference.written_out(operator))
    found = float(METHODS["gram"].run(operator, iterations=iterations))
    rank = min(operator.weight.shape[0], operator.weight[0].numel())
    assert truth * (1 - 1e-12) <= found <= truth * rank ** (0.5 ** (iterations + 1)) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["gram", "sedghi"])
@pytest.mark.parametrize(("n", "axes"), [(3, 1), (5, 1), (7, 1), (3, 2), (5, 2), (7, 2)])
def test_a_circular_grid_that_misses_the_peak_is_only_an_estimate(name: str, n: int, axes: int) -> None:
    operator = high_pass(n, axes)
    truth = reference.norm(reference.written_out(operator))
    bound = bound_by(name, operator, lower=truth * (1 - 1e-12))
    assert bound.upper < truth * (1 - 1e-3) ** axes
    assert bound.kind == "estimate"
    assert bound.lower == bound.upper
    embedded = bound_by("gram-embedding", operator, lower=truth * (1 - 1e-12))
    assert embedded.kind == "certified"
    assert embedded.upper >= truth * (1 - 1e-14)


@pytest.mark.parametrize("name", ["gram", "sedghi"])
def test_a_box_is_overestimated_and_still_an_estimate(name: str) -> None:
    bound = bound_by(name, reference.toeplitz([1.0, 1.0, 1.0], 7))
    assert bound.kind == "estimate"
    assert bound.upper == pytest.approx(3, rel=1e-12)


@pytest.mark.parametrize("name", ["gram", "sedghi"])
def test_without_padding_the_circular_grid_is_an_embedding(name: str) -> None:
    operator = replace(high_pass(7), offset=(0,), output_size=(5,))
    assert bound_by(name, operator).kind == "certified"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_the_size_of_the_weights_does_not_matter(name: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64)
    operator = Convolution(weight, (2, 1), (1, 2), 2, (1, 0), (7, 6), (4, 2))
    large = replace(operator, weight=weight * scale)
    assert bound_by(name, large).upper == pytest.approx(bound_by(name, operator).upper * scale, rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_zero_weights_have_norm_zero_and_no_gradient(name: str) -> None:
    weight = torch.zeros(2, 2, 3, dtype=torch.float64, requires_grad=True)
    operator = Convolution(weight, (1,), (1,), 1, (1,), (5,), (5,))
    assert bound_by(name, operator).upper == 0.0
    value = METHODS[name].run(operator)
    value.backward()
    assert value == 0
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("name", METHODS)
def test_a_group_of_zeros_is_harmless(name: str) -> None:
    weight = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[:2] = 0
    weight.requires_grad_()
    operator = Convolution(weight, (1,), (1,), 2, (1,), (5,), (5,))
    METHODS[name].run(operator).backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())
    alone = replace(operator, weight=weight.detach()[2:], groups=1)
    assert bound_by(name, operator).upper == pytest.approx(bound_by(name, alone).upper, rel=1e-2)


@pytest.mark.parametrize("name", METHODS)
@given(operator=convolutions(paddings=("zeros", "same")))
@settings(max_examples=draws(15))
def test_without_a_size_the_bound_holds_for_every_size(name: str, operator: Convolution) -> None:
    endless = InfiniteConvolution(operator.weight, operator.stride, operator.dilation, operator.groups)
    assert applies(name, endless) == (name not in SIZED)
    if not applies(name, endless):
        with pytest.raises(UsageError, match="input size"):
            bound_by(name, endless)
        return
    bound = bound_by(name, endless)
    if METHODS[name].claim(endless) == "upper":
        assert bound.kind == "certified"
        reference.assert_encloses(bound, reference.written_out(operator))


def reflected(n: int) -> Padded:
    weight = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inner = Convolution(weight, (1,), (1,), 1, (0,), (n + 2,), (n,))
    return Padded(inner, (torch.tensor([1, *range(n), n - 2]),), (n,), "reflect")


@pytest.mark.parametrize("name", METHODS)
def test_behind_padding_that_copies_a_bound_pays_for_the_copies(name: str) -> None:
    operator = reflected(6)
    matrix = padded_matrix(operator)[0]
    if name in ("tensor-norm", "reshape"):
        assert not applies(name, operator)
        with pytest.raises(UsageError, match=f"{name} says nothing about .*reflect"):
            bound_by(name, operator)
        return
    bound = bound_by(name, operator)
    if name == "power":
        assert bound.kind == "estimate"
        assert bound.upper == pytest.approx(reference.norm(matrix), rel=1e-2)
        return
    assert bound.kind == "certified"
    reference.assert_encloses(bound, matrix)
    assert bound.upper == pytest.approx(bound_by(name, operator.convolution).upper * math.sqrt(2))


@pytest.mark.parametrize("name", UPPER)
def test_uncertain_weights_widen_the_bound(name: str) -> None:
    operator = Dense(torch.eye(3))
    sure, unsure = (bound_by(name, replace(operator, uncertainty=error)).upper for error in (0.0, 1e-3))
    assert sure + 1e-3 <= unsure <= sure + 2e-3


def test_an_unknown_method_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no method is called 'grams'; there are lipbound, gram, "):
        bound_by("grams", Dense(torch.eye(2)))


def test_every_method_says_where_it_is_from_and_what_it_bounds() -> None:
    assert all(
        name == method.name and method.source and method.bounds.endswith(".") for name, method in METHODS.items()
    )


@given(convolutions())
@settings(max_examples=draws(25))
def test_folding_keeps_every_tap_once(operator: Convolution) -> None:
    kernel = folded_kernel(ready(operator))
    taps = operator.weight.double().reshape(operator.groups, -1)
    folded = kernel.flatten(1)
    for group, weights in zip(folded, taps, strict=True):
        assert torch.equal(group[group != 0].sort()[0], weights[weights != 0].sort()[0])


def test_a_dilation_drops_out() -> None:
    weight = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    symbol = reduced(symbol_of(InfiniteConvolution(weight, (1,), (3,), 1)))
    assert symbol.exponents.flatten().tolist() == [0, 1, 2]
