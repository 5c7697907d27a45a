"""Simplifying changes no function: folded and merged operators against the matrices they stand for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference
import torch
from draws import draws
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from networks import Function, WrittenSwish, in_double, matrix_of, normalised
from torch import Tensor, nn
from torch.nn import functional

from lipcheck.capture import capture
from lipcheck.engines.enclose import enclose
from lipcheck.operators import Convolution, Diagonal, Indexing, Linear, Padded, Pointwise, Unbounded
from lipcheck.rules import DEFAULT_RULES, operator_of, pointwise
from lipcheck.simplify import simplify, uniform_gain
from lipcheck.steps import Step


def steps_of(module: nn.Module, *shape: int) -> list[Step]:
    graph, _ = capture(module.eval(), torch.randn(1, *shape), known=DEFAULT_RULES)
    return simplify(graph, [operator_of(node, DEFAULT_RULES) for node in graph.nodes])


def product_of_bounds(steps: list[Step]) -> float:
    operators = [step.effective for step in steps if isinstance(step.effective, Linear)]
    assert len(operators) == len(steps)
    return math.prod(bound.upper for bound in enclose(operators))


def written(steps: list[Step]) -> Pointwise:
    found = steps[-1].effective
    assert isinstance(found, Pointwise)
    return found


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (2, 1, 1), (5, 1, 2), (4, 2, 1), (3, 3, 1)]
)
def test_padding_in_front_of_a_convolution(mode: str, kernel: int, stride: int, padding: int) -> None:
    torch.manual_seed(kernel)
    module = nn.Conv2d(2, 3, kernel, stride, padding, padding_mode=mode)
    steps = steps_of(module, 2, 6, 6)
    truth = reference.norm(matrix_of(in_double(module), (1, 2, 6, 6)))
    assert truth <= product_of_bounds(steps) * (1 + 1e-12)
    last = steps[-1].operator
    # Folded, and formed as one matrix with its padding, it is exact: no root of copies is paid.
    assert product_of_bounds(steps) <= truth * 1.0011
    exact = 6 % stride == 0 and last.output_size == (6 // stride,) * 2 if isinstance(last, Convolution) else False
    assert isinstance(last, Convolution) == (mode == "zeros" or (mode == "circular" and exact))
    if isinstance(last, Padded):
        assert (last.mode, last.input_size) == (mode, (6, 6))


def test_zero_padding_of_either_kind_is_the_convolutions_own() -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    module = nn.Sequential(nn.ZeroPad2d((2, 0, 1, 3)), conv)
    steps = steps_of(module, 1, 5, 5)
    last = steps[-1].operator
    assert isinstance(last, Convolution)
    assert (last.offset, last.input_size) == ((2, 3), (5, 5))
    assert steps[0].absorbed_by == steps[-1].node.name
    truth = reference.norm(matrix_of(in_double(module), (1, 1, 5, 5)))
    assert truth <= product_of_bounds(steps) <= truth * 1.0011


def test_padding_that_another_node_reads_stays() -> None:
    def forward(self: Function, x: Tensor) -> Tensor:
        padded = functional.pad(x, (1,) * 4)
        return self.conv(padded) + padded[..., 1:-1, 1:-1]

    assert not any(step.absorbed_by for step in steps_of(Function(forward, conv=nn.Conv2d(1, 1, 3)), 1, 5, 5))


@pytest.mark.parametrize("pad", [(1, 1, 1, 1, 1, 0), (-1, 1, 0, 0), ()])
def test_padding_of_channels_and_cropping_are_bounded(pad: tuple[int, ...]) -> None:
    conv = nn.Conv2d(3 if len(pad) == 6 else 2, 2, 3)
    module = Function(lambda self, x: self.conv(functional.pad(x, pad)), conv=conv)
    truth = reference.norm(matrix_of(in_double(module), (1, 2, 5, 5)))
    steps = steps_of(module, 2, 5, 5)
    assert truth <= product_of_bounds(steps) * (1 + 1e-12)


LINEARS = {
    "conv": lambda: nn.Conv2d(2, 4, 3, padding=1),
    "grouped": lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1),
    "transposed, grouped": lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, groups=2),
}


@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize("scaling", ["norm", "scale", "two", "number"])
def test_a_scaling_behind_a_convolution_is_folded(name: str, scaling: str) -> None:
    torch.manual_seed(len(name))
    behind: dict[str, list[nn.Module]] = {
        "norm": [normalised(4)],
        "scale": [Function(lambda self, x: x * self.g, g=torch.randn(4, 1, 1))],
        "two": [normalised(4), nn.Dropout(), Function(lambda self, x: self.g * x, g=torch.randn(1, 4, 1, 1))],
        "number": [Function(lambda self, x: x / -3.7)],
    }
    module = nn.Sequential(LINEARS[name](), *behind[scaling])
    steps = steps_of(module, 2, 4, 4)
    assert steps[0].merged is not None
    assert steps[0].merged_with
    assert all(step.absorbed_by == steps[0].node.name for step in steps[1:])
    truth = reference.norm(matrix_of(in_double(module), (1, 2, 4, 4)))
    # The gains are quotients and roots: the reference rounds as well.
    assert truth <= product_of_bounds(steps) * (1 + 1e-12)
    assert product_of_bounds(steps) <= truth * 1.02


def test_what_is_read_twice_or_returned_is_not_folded() -> None:
    conv, norm = nn.Conv2d(1, 2, 1), normalised(2)
    twice = steps_of(
        Function(lambda self, x: (lambda y: self.norm(y) + y)(self.conv(x)), conv=conv, norm=norm), 1, 3, 3
    )
    assert all(step.merged is None for step in twice)
    returned = steps_of(
        Function(lambda self, x: (lambda y: (y, self.norm(y)))(self.conv(x)), conv=conv, norm=norm), 1, 3, 3
    )
    assert all(step.merged is None for step in returned)


def test_a_gain_along_another_axis_is_not_folded() -> None:
    for forward in (
        lambda self, x: functional.linear(x, self.w) * self.g.reshape(3, 1),
        lambda self, x: functional.conv2d(x[:, None], self.w[:, None, None])[:, :, 0] * self.g,
    ):
        steps = steps_of(Function(forward, w=torch.randn(3, 3), g=torch.tensor([1.0, 5.0, 0.1])), 3, 3)
        assert all(step.merged is None for step in steps)


@given(st.integers(0, 2**20), st.booleans(), st.sampled_from((2, 3)))
@settings(max_examples=draws(8), phases=[Phase.reuse, Phase.generate])
def test_a_matrix_on_the_left_has_its_outputs_on_another_axis(seed: int, rows: bool, side: int) -> None:
    torch.manual_seed(seed)
    gain = torch.randn(side, 1) if rows else torch.randn(side)
    module = Function(lambda self, x: (self.w @ x) * self.g, w=torch.randn(side, side), g=gain)
    truth = reference.norm(matrix_of(in_double(module), (1, side, side)))
    assert truth <= product_of_bounds(steps_of(module, side, side)) * (1 + 1e-12)


def test_a_matrix_on_the_left_and_a_gain_that_hides_its_norm() -> None:
    module = Function(
        lambda self, x: (self.w @ x) * self.g, w=torch.diag(torch.tensor([1.0, 0.1])), g=torch.tensor([0.1, 1.0])
    )
    assert product_of_bounds(steps_of(module, 2, 2)) >= 1


@pytest.mark.parametrize(
    ("forward", "slope"),
    [
        (WrittenSwish().forward, pointwise.SILU),
        (lambda x: torch.sigmoid(1.702 * x) * x, pointwise.SILU),
        (lambda x: x * torch.sigmoid(x * -2.0), pointwise.SILU),
        (lambda x: x * torch.tanh(functional.softplus(x)), pointwise.MISH),
        (lambda x: x * functional.relu6(x + 3) / 6, pointwise.HARDSWISH),
        (lambda x: x * (functional.relu6(x + 3) / 6), pointwise.HARDSWISH),
        (lambda x: x * functional.hardtanh(x + 3, 0, 6) * (1 / 6), pointwise.HARDSWISH),
        (lambda x: x * torch.clamp(x + 3, 0, 6) / 6, pointwise.HARDSWISH),
        (lambda x: x * functional.hardsigmoid(x), pointwise.HARDSWISH),
        (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), pointwise.GELU),
        (lambda x: x * 0.5 * (1.0 + torch.erf(x * math.sqrt(0.5))), pointwise.GELU),
        (lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))),
         pointwise.GELU_TANH),
        (lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + x * x * x * 0.044715))),
         pointwise.GELU_TANH),
        (lambda x: x - torch.tanh(x), 1.0),
    ],
)  # fmt: skip
def test_an_activation_that_was_written_out_is_recognised(forward: Any, slope: float) -> None:
    module = Function(lambda self, x: forward(x))
    found = written(steps_of(module, 4))
    # The constant is given to nine digits, rounded up.
    assert slope * (1 - 1e-8) <= found.slope <= slope * (1 + 1e-6)
    x = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    y = forward(x)
    steepest = float(((y[1:] - y[:-1]) / (x[1:] - x[:-1])).abs().max())
    assert steepest <= found.slope * (1 + 1e-9)


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x * torch.sigmoid(2 * x + x),
        lambda x: x * torch.sigmoid(x * x),
        lambda x: x * x,
        lambda x: x * torch.tanh(functional.softplus(x, beta=2)),
        lambda x: x * functional.relu6(x + 3),
        lambda x: x * torch.clamp(x + 3, 0, 7) / 6,
        lambda x: 0.6 * x * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: 0.5 * x * (2 + torch.erf(x / math.sqrt(2))),
        lambda x: x * torch.sigmoid(x.flip(1)),
        lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
        lambda x: (x + 1) * torch.sigmoid(x),
        lambda x: x - torch.tanh(x) * x,
        lambda x: torch.sub(x, torch.tanh(x), alpha=7),
    ],
)
def test_what_only_resembles_an_activation_is_not_taken_for_one(forward: Any) -> None:
    steps = steps_of(Function(lambda self, x: forward(x)), 4)
    product = steps[-1].effective
    x = torch.linspace(-30, 30, 4001, dtype=torch.float64).reshape(-1, 1).repeat(1, 4)
    if isinstance(product, Pointwise):
        y = forward(x)
        assert float(((y[1:] - y[:-1]) / (x[1:] - x[:-1])).abs().max()) <= product.slope
    else:
        assert not isinstance(product, Diagonal | Indexing) or isinstance(steps[-2].effective, Unbounded)


def test_uniform_gains_are_exact_multiples() -> None:
    weight = torch.randn(4, 3, 3, 3)
    one = Convolution(weight, (1, 1), (1, 1), 1, (1, 1), (5, 5), (5, 5))

    def times(gain: Tensor | float) -> Convolution:
        return Convolution(weight.double() * gain, (1, 1), (1, 1), 1, (1, 1), (5, 5), (5, 5))

    assert uniform_gain(one, times(0.25)) == 0.25
    assert uniform_gain(one, times(torch.tensor([0.5, 0.5, 0.5, 0.25]).reshape(-1, 1, 1, 1))) is None
