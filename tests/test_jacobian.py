"""The network's lower bound: attained, reproducible, and never above what the network does."""

from __future__ import annotations

import pytest
import reference
import torch
from networks import Function, in_double, matrix_of
from torch import Tensor, nn
from torch.nn import functional

from lipcheck.jacobian import sampled_norm


def test_an_affine_network_shows_nearly_its_norm_and_never_more() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4)).eval()
    truth = reference.norm(matrix_of(in_double(module), (1, 2, 5, 5)))
    found = sampled_norm(module, torch.randn(1, 2, 5, 5), samples=3)
    assert 0.9 * truth <= found <= truth


def test_no_samples_find_nothing() -> None:
    assert sampled_norm(nn.Linear(3, 3), torch.randn(1, 3), samples=0) == 0.0


def test_equal_seeds_give_equal_bounds() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).eval()
    first, second, other = (sampled_norm(module, torch.randn(1, 6), seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_the_inputs_may_be_given() -> None:
    module = Function(lambda self, x: x**3)
    found = sampled_norm(module, torch.zeros(1, 3), samples=2, draw=lambda generator, count: [torch.ones(1, 3)] * count)
    assert found == pytest.approx(3, rel=1e-3)
    assert sampled_norm(module, torch.zeros(1, 3), draw=lambda generator, count: []) == 0.0


def test_a_constant_network_shows_zero() -> None:
    assert sampled_norm(Function(lambda self, x: x * 0), torch.randn(1, 3)) == 0.0


def test_what_cannot_be_differentiated_shows_zero() -> None:
    assert sampled_norm(Function(lambda self, x: x.floor()), torch.randn(1, 3)) == 0.0
    assert sampled_norm(Function(lambda self, x: torch.tensor(x.detach().numpy())), torch.randn(1, 3)) == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_precision_stays_below_the_truth(dtype: torch.dtype) -> None:
    module = nn.Linear(8, 8).to(dtype)
    truth = reference.norm(module.weight.detach().double())
    assert 0.5 * truth <= sampled_norm(module, torch.randn(1, 8, dtype=dtype), samples=4) <= truth


def test_arithmetic_in_single_precision_inside_the_network_is_allowed_for() -> None:
    weight = torch.randn(6, 6)
    truth = reference.norm(weight.double())
    module = Function(lambda self, x: functional.linear(x.float(), self.weight.float()), weight=weight)
    assert sampled_norm(module, torch.randn(1, 6), samples=6) <= truth


@pytest.mark.parametrize(
    ("forward", "truth"),
    [
        (lambda self, x: 10 * x - 9 * x.detach(), 1.0),
        (lambda self, x: functional.hardsigmoid(x), 1 / 6),
    ],
    ids=["detached", "hardsigmoid"],
)
def test_a_derivative_that_is_not_the_functions_own_is_no_lower_bound(forward: object, truth: float) -> None:
    assert sampled_norm(Function(forward), torch.randn(1, 4), samples=3) <= truth


def test_the_parameters_get_no_gradients() -> None:
    module = nn.Linear(3, 3)
    sampled_norm(module, torch.randn(1, 3))
    assert module.weight.grad is None
    assert module.weight.requires_grad


def test_a_keyword_names_the_input() -> None:
    class Keyword(nn.Module):
        def forward(self, pixels: Tensor) -> dict[str, Tensor]:
            return {"aside": pixels * 100, "logits": pixels * 2}

    assert sampled_norm(Keyword(), torch.randn(1, 3), keyword="pixels") == pytest.approx(2, rel=1e-3)
