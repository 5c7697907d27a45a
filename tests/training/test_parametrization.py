"""A constrained layer: an estimate with gradients while it is trained, certified whenever it is evaluated."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

import lipcheck
from lipcheck.errors import UsageError
from lipcheck.training import spectral
from lipcheck.training.surrogate import top_vectors

LAYERS = {
    "conv2d": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "strided": lambda: nn.Conv1d(2, 3, 4, stride=2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "dilated": lambda: nn.Conv1d(2, 3, 3, dilation=2, padding="same"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, groups=2, output_padding=1),
    "circular": lambda: nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular"),
    "linear": lambda: nn.Linear(5, 7),
}


def layer(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(6)
    module = LAYERS[kind]()
    with torch.no_grad():
        module.weight.mul_(10)
    return spectral(module.to(dtype), 0.7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_certified_in_evaluation(kind, dtype):
    bound = lipcheck.spectral_norm(layer(kind, dtype))
    assert bound.kind == "certified"
    assert bound.upper <= 0.7
    assert bound.upper > 0.7 * (1 - 2 * torch.finfo(dtype).eps - 1e-3)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_estimate_in_training_comes_near(kind):
    module = layer(kind, torch.float64).train()
    for _ in range(100):
        weight = module.weight
    plain = copy.deepcopy(module)
    torch.nn.utils.parametrize.remove_parametrizations(plain, "weight", leave_parametrized=False)
    with torch.no_grad():
        plain.weight.copy_(weight)
    assert lipcheck.spectral_norm(plain).upper == pytest.approx(0.7, rel=0.02)


@pytest.mark.parametrize("kind", ["strided", "grouped", "transposed", "linear"])
def test_gradients_agree_with_finite_differences_in_training(kind, monkeypatch):
    """With the vector of the power iteration held: near the peak of a symbol it goes on moving for long."""
    module = layer(kind, torch.float64).train()
    for _ in range(20):
        _ = module.weight

    def held(operator, start, *, steps):
        return top_vectors(operator, start, steps=0)

    monkeypatch.setattr("lipcheck.training.parametrization.top_vectors", held)
    parametrization = module.parametrizations.weight[0]
    original = module.parametrizations.weight.original.detach().clone().requires_grad_()
    assert gradcheck(lambda w: functional_call(parametrization, {}, (w,)), (original,), fast_mode=True, atol=1e-5)


def test_a_small_weight_is_left_alone():
    module = nn.Linear(3, 3)
    with torch.no_grad():
        module.weight.copy_(0.1 * torch.eye(3))
    spectral(module, 1.0)
    for training in (True, False):
        assert torch.equal(module.train(training).weight, 0.1 * torch.eye(3))


def test_the_certified_scale_follows_the_weight_however_it_changes():
    module = layer("linear").eval()
    assert lipcheck.spectral_norm(module).upper <= 0.7
    held = module.parametrizations.weight.original
    with torch.no_grad():
        held.mul_(3)
    assert torch.linalg.matrix_norm(module.weight.detach().double(), ord=2) <= 0.7
    held.data = 5 * torch.ones(7, 5)  # no version counter sees this
    assert torch.linalg.matrix_norm(module.weight.detach().double(), ord=2) <= 0.7
    other = layer("linear")
    with torch.no_grad():
        other.parametrizations.weight.original.normal_()
    module.load_state_dict(other.state_dict())
    assert torch.linalg.matrix_norm(module.weight.detach().double(), ord=2) <= 0.7


def test_an_audit_captures_it():
    torch.manual_seed(7)
    net = nn.Sequential(spectral(nn.Conv2d(2, 4, 3, padding=1)), nn.ReLU(), nn.Flatten(), spectral(nn.Linear(64, 3)))
    with torch.no_grad():
        net[0].parametrizations.weight.original.mul_(9)
        net[3].parametrizations.weight.original.mul_(9)
    report = lipcheck.check(net, example=torch.randn(1, 2, 4, 4))
    assert all(row.bound.upper <= 1 + 1e-3 for row in report.layers)
    assert report.network.log10_upper <= 1e-3


def test_it_trains_and_adds_no_state():
    net = nn.Sequential(spectral(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    assert set(net.state_dict()) == {"0.bias", "0.parametrizations.weight.original", "2.weight", "2.bias"}
    net(torch.randn(3, 4)).sum().backward()
    assert bool(net[0].parametrizations.weight.original.grad.any())


@pytest.mark.parametrize(
    ("module", "norm", "message"),
    [
        (nn.Linear(2, 2), -1.0, "give a positive number"),
        (nn.ReLU(), 1.0, "no plain attribute of a convolution or Linear"),
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), 1.0, "copies inputs; give zeros or circular"),
        (nn.Conv1d(2, 2, 3, 2, padding=1, padding_mode="circular"), 1.0, "needs input_size"),
    ],
)
def test_bad_arguments(module, norm, message):
    with pytest.raises(UsageError, match=message):
        spectral(module, norm)


def true_norm(weight: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().double(), 2))


@pytest.mark.parametrize("before", [0.0, 1e-30, 1e-25, 1e18, 1e25, math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_recovers_from_any_weight(before, dtype):
    """A vector that was lost to a zero, an overflow or a NaN would let the constraint vanish without a word."""
    torch.manual_seed(0)
    layer = spectral(nn.Linear(8, 8, bias=False).to(dtype), 1.0).train()
    original = layer.parametrizations.weight.original
    normal = original.detach().clone()
    with torch.no_grad():
        original.copy_(normal * before if before else torch.zeros_like(normal))
    for _ in range(3):
        if 0 < before < math.inf:
            assert true_norm(layer.weight) < 1.5
        layer(torch.ones(1, 8, dtype=dtype))
    with torch.no_grad():
        original.copy_(10 * normal)
    for _ in range(50):
        weight = layer.weight
    assert true_norm(weight) == pytest.approx(1.0, rel=0.02)


def test_a_large_half_weight_is_constrained_in_training():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1, bias=False).half()
    with torch.no_grad():
        layer.weight.mul_(2000)
    layer = spectral(layer, 1.0).train()
    for _ in range(50):
        weight = layer.weight
    assert lipcheck.spectral_norm(weight.float(), padding=1).upper == pytest.approx(1.0, rel=0.02)
