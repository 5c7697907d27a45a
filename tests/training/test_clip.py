"""The pairs of CLIP climb towards the Lipschitz constant and never past it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

import lipcheck
from lipcheck.errors import UsageError
from lipcheck.training import CheapLipschitz


def net() -> nn.Module:
    torch.manual_seed(9)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)).double()
    model(torch.randn(32, 1, 5, 5, dtype=torch.float64))
    return model


def images(count: int = 8) -> torch.Tensor:
    return torch.rand(count, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_quotient_rises_and_stays_below_the_certified_bound():
    model = net()
    upper = 10 ** lipcheck.check(model, example=images(1)).network.log10_upper
    clip = CheapLipschitz(model, images())
    first = clip.estimate()
    for _ in range(60):
        clip()
    assert first < clip.estimate() <= upper


def test_it_reaches_the_norm_of_a_linear_map():
    torch.manual_seed(1)
    model = nn.Linear(6, 4, bias=False).double()
    clip = CheapLipschitz(model, torch.randn(4, 6, dtype=torch.float64), rate=0.1)
    for _ in range(200):
        clip()
    bound = lipcheck.spectral_norm(model)
    assert bound.upper * 0.98 <= clip.estimate() <= bound.upper * (1 + 1e-12)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_gradients_agree_with_finite_differences(reduction):
    model = net().eval()
    clip = CheapLipschitz(model, images(), reduction=reduction, steps=0)
    weight = model[0].weight.detach().clone().requires_grad_()

    def value(kernel):
        model[0]._parameters["weight"] = kernel
        return clip()

    assert gradcheck(value, (weight,), eps=1e-6, atol=1e-6)


def test_neither_the_mode_nor_the_statistics_of_the_network_are_touched():
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    CheapLipschitz(model, images())().backward()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert bool(model[0].weight.grad.any())


def test_pairs_stay_in_the_box_and_apart():
    clip = CheapLipschitz(net(), images(), box=(0.0, 1.0), rate=5.0, spread=0.1)
    for _ in range(20):
        clip()
    first, second = clip.pairs
    assert min(first.min(), second.min()) >= 0
    assert max(first.max(), second.max()) <= 1
    assert bool((first - second).flatten(1).norm(dim=1).gt(0).all())


def test_the_weight_follows_the_accuracy():
    clip = CheapLipschitz(net(), images(), weight=0.15, target_accuracy=0.9, step=0.1)
    assert clip.adapt(0.95) == pytest.approx(0.25)
    assert clip.adapt(0.85) == pytest.approx(0.15)
    assert clip.adapt(0.1) == pytest.approx(0.05)
    assert clip.adapt(0.1) == 0
    with pytest.raises(UsageError, match="give target_accuracy"):
        CheapLipschitz(net(), images()).adapt(0.5)


def test_it_says_that_it_estimates():
    assert "estimate" in repr(CheapLipschitz(net(), images()))
    assert "no bound" in repr(CheapLipschitz(net(), images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "sum"}, "choose from max, mean"),
        ({"weight": -1.0}, "weight is -1.0"),
        ({"spread": 0.0}, "positive distance"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(UsageError, match=message):
        CheapLipschitz(net(), images(), **options)
    with pytest.raises(UsageError, match="floating-point tensor of inputs"):
        CheapLipschitz(net(), torch.ones(3, 4, dtype=torch.long))


@pytest.mark.parametrize("seed", range(5))
def test_no_pair_leaves_the_box(seed):
    inputs = 2 * torch.rand(16, 3, generator=torch.Generator().manual_seed(seed)) - 0.5
    clip = CheapLipschitz(nn.Linear(3, 2), inputs, spread=0.5, box=(0.0, 1.0), seed=seed)
    for _ in range(5):
        for end in clip.pairs:
            assert float(end.min()) >= 0
            assert float(end.max()) <= 1
        assert float((clip.pairs[0] - clip.pairs[1]).norm(dim=1).min()) > 0
        clip()


def test_a_spread_that_the_format_does_not_resolve_is_refused():
    with pytest.raises(UsageError, match="do not resolve a spread"):
        CheapLipschitz(nn.Linear(1, 1), 1000 * torch.ones(2, 1), spread=1e-6)


@pytest.mark.parametrize(
    "given",
    [
        {"box": "ab"},
        {"box": (1.0, 0.0)},
        {"box": (0.0,)},
        {"steps": 1.5},
        {"steps": -1},
        {"weight": "a"},
        {"weight": -1.0},
        {"target_accuracy": 80},
        {"spread": 0.0},
        {"reduction": ["max"]},
    ],
)
def test_arguments_that_mean_nothing_are_told(given):
    with pytest.raises(UsageError, match=next(iter(given))):
        CheapLipschitz(nn.Linear(2, 2), torch.ones(2, 2), **given)


def test_what_is_no_accuracy_moves_no_weight():
    clip = CheapLipschitz(nn.Linear(2, 2), torch.ones(2, 2), target_accuracy=0.5)
    for accuracy in (float("nan"), 80, "a"):
        with pytest.raises(UsageError, match="accuracy is"):
            clip.adapt(accuracy)
    assert clip.weight == 1.0
    with pytest.raises(UsageError, match="batch axis"):
        clip.restart([1])
