"""Networks that once had a bound below the truth, each with the truth written beside it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lipcheck


class Held(nn.Module):
    """A function of its own buffers and the input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def log10_upper(module: nn.Module, example: Tensor) -> float:
    return lipcheck.check(module, example=example, samples=0).network.log10_upper


def test_a_gain_behind_an_axis_that_was_added_in_front_stays_on_its_own_axis() -> None:
    matrix = torch.diag(torch.tensor([1.0, 10.0, 1.0]))
    gain = torch.tensor([[100.0], [1e-3], [1e-3]])
    module = Held(
        lambda own, x: functional.linear(x, own.matrix) * own.one * own.gain,
        matrix=matrix,
        one=torch.ones(1, 1, 1, 1),
        gain=gain,
    )
    assert log10_upper(module, torch.randn(1, 3, 3)) >= 3  # 10 from the matrix, 100 from the gain


def test_a_constant_written_in_place_leaves_its_equal_alone() -> None:
    def forward(own: nn.Module, x: Tensor) -> Tensor:
        kept, written = own.matrix * 2, own.matrix * 2
        written.mul_(0.01)
        return functional.linear(x, kept) + functional.linear(x, written)

    matrix = torch.eye(3)
    assert log10_upper(Held(forward, matrix=matrix), torch.randn(1, 3)) >= torch.tensor(2.02).log10().item() - 1e-6


def test_an_input_in_the_place_of_a_bias_has_no_gain_of_the_weight() -> None:
    constant = torch.randn(1, 100, 3)
    normalised = Held(lambda own, x: functional.layer_norm(own.c, (3,), None, x.reshape(3), 1.0), c=constant)
    assert log10_upper(normalised, torch.randn(1, 3)) >= 1  # a hundred copies
    mapped = Held(lambda own, x: functional.linear(own.c, own.m, x.reshape(3)), c=constant, m=torch.eye(3))
    assert log10_upper(mapped, torch.randn(1, 3)) >= 1


def test_products_that_underflow_are_not_folded() -> None:
    module = Held(
        lambda own, x: functional.linear(functional.linear(x, own.a) * own.g, own.b),
        a=torch.full((2, 2), 1e-200, dtype=torch.float64),
        g=torch.tensor([1e-200, 2e-200], dtype=torch.float64),
        b=1e300 * torch.eye(2, dtype=torch.float64),
    )
    assert log10_upper(module, torch.randn(1, 2, dtype=torch.float64)) >= -99.5  # 3.2e-100


def test_a_factor_is_rounded_to_the_precision_of_the_activations() -> None:
    assert 10 ** log10_upper(Held(lambda own, x: x * 0.1), torch.randn(1, 3)) >= float(torch.tensor(0.1).double())


def test_a_complex_factor_is_refused_without_a_traceback() -> None:
    assert log10_upper(Held(lambda own, x: (x * 1j).abs()), torch.randn(1, 3)) == float("inf")


@pytest.mark.parametrize("module", [nn.GRU(3, 3, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)])
def test_what_only_could_draw_random_numbers_is_captured(module: nn.Module) -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            found = self.inner(x) if isinstance(self.inner, nn.GRU) else self.inner(x, x, x)
            return found[0]

    width = 3 if isinstance(module, nn.GRU) else 4
    # Recurrent gates saturate, so a GRU has a constant for all inputs; attention of what nothing normalises has none.
    assert math.isinf(log10_upper(Alone(), torch.randn(1, 5, width))) == isinstance(module, nn.MultiheadAttention)


def test_the_function_check_survives_the_import_of_its_module() -> None:
    importlib.import_module("lipcheck.checking")
    assert callable(lipcheck.check)
