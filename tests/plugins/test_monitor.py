"""What the callbacks share: names that keep claims apart, and a penalty's gradient beside a loss's."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import example_report
import lipcheck_monitor
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lipcheck_monitor import add_gradient, metrics
from lipcheck_monitor.figures import Monitor, loggable, penalty_options, weight_of
from public_names import imported_and_used
from torch import nn

import lipcheck
from lipcheck.training import LipschitzPenalty

PLUGINS = Path(lipcheck_monitor.__file__).parents[1]
PACKAGES = ("lipcheck_monitor", "lipcheck_lightning", "lipcheck_transformers")
SOURCES = sorted(path for package in PACKAGES for path in (PLUGINS / package).glob("*.py"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 4))


def test_a_report_has_the_network_and_its_largest_layers():
    report = example_report.resnet()
    found = metrics(report, top=2)
    layers = {name: value for name, value in found.items() if "/layer/" in name}
    assert found["lipschitz/certified/network_log10_upper"] == report.network.log10_upper
    assert len(layers) == 2
    uppers = sorted(((layer.merged or layer.bound).upper for layer in report.layers), reverse=True)
    assert list(layers.values()) == uppers[:2]
    assert not [name for name in metrics(report, top=0) if "/layer/" in name]


@pytest.mark.parametrize("kind", ["estimate", "probabilistic"])
def test_what_is_no_certificate_is_never_called_one(kind):
    report = example_report.resnet()
    rows = [replace(row, bound=replace(row.bound, kind=kind), merged=None) for row in report.layers]
    weakest = metrics(replace(report, layers=(*report.layers[1:], rows[0])), top=99)
    assert f"lipschitz/{kind}/network_log10_upper" in weakest
    assert not [name for name in weakest if name.startswith("lipschitz/certified/network")]
    assert not [name for name in metrics(replace(report, layers=tuple(rows)), top=99) if "/certified/" in name]


def test_no_network_is_named_where_none_is_claimed():
    report = example_report.resnet()
    silent = replace(report, network=replace(report.network, claimed=False, log10_upper=math.inf))
    assert not [name for name in metrics(silent) if "network" in name]
    assert Monitor(budget=1e9).exceeded(silent)
    assert not Monitor().exceeded(silent)


@given(st.text(max_size=30))
def test_every_layer_has_a_name_that_loggers_take(name):
    assert set(loggable(name)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    assert loggable(name)


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"every": 0}, "every_n_steps is 0"),
        ({"every": True}, "every_n_steps is True"),
        ({"top": -1}, "top is -1"),
        ({"budget": math.nan}, "max_log10_bound is nan"),
        ({"budget": "6"}, "max_log10_bound is '6'"),
    ],
)
def test_options_that_mean_nothing_are_refused(given_options, message):
    with pytest.raises(ValueError, match=message):
        Monitor(**given_options)


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan, "1", True, None])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match="penalty_weight is"):
        weight_of(weight)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("before", [True, False])
def test_the_gradient_is_that_of_the_penalty_in_the_loss(scale, before):
    """Also under autocast, which is left for the penalty, and for parameters without a gradient so far."""
    one, other = network(), network()
    x = torch.randn(2, 1, 8, 8)
    penalty = LipschitzPenalty(other)
    loss = other(x).square().mean() if before else torch.zeros(())
    (scale * (loss + 0.3 * penalty())).backward()
    if before:
        (scale * one(x).square().mean()).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = add_gradient(LipschitzPenalty(one), 0.3, [*one.parameters(), *one.parameters()], scale=scale)
    assert value.requires_grad is False
    torch.testing.assert_close(value, penalty().detach())
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(torch.zeros_like(mine) if mine.grad is None else mine.grad, expected)


def test_frozen_parameters_stay_without_a_gradient():
    module = network()
    module[0].weight.requires_grad_(False)
    add_gradient(LipschitzPenalty(module), 1.0, module.parameters())
    assert module[0].weight.grad is None
    assert module[3].weight.grad is not None


def test_importing_lipcheck_or_a_plugin_loads_no_framework():
    code = f"import sys, lipcheck, {', '.join(PACKAGES)}; print(sorted(set(sys.modules) & {FRAMEWORKS}))"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


FRAMEWORKS = {"torch", "lightning", "pytorch_lightning", "transformers", "accelerate", "tensorboard", "mlflow", "wandb"}


@pytest.mark.parametrize(
    ("absent", "name", "message"),
    [
        (("lightning", "pytorch_lightning"), "lipcheck_lightning.LipschitzMonitor", "'lipcheck[lightning]'"),
        (("transformers",), "lipcheck_transformers.LipschitzCallback", "'lipcheck[trainer]'"),
    ],
)
def test_a_framework_that_is_absent_is_told_with_its_extra(absent, name, message):
    code = f"""
import sys
for absent in {absent}:
    sys.modules[absent] = None
import {name.partition(".")[0]}
try:
    {name}
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert message in result.stdout
    assert result.stdout.count("\n") == 1


def test_the_plugins_use_public_names_alone():
    assert len(SOURCES) >= 8
    for path in SOURCES:
        modules, used = imported_and_used(path)
        assert not {name for name in modules if name.startswith("lipcheck.")}
        assert used <= set(lipcheck.__all__)


def test_options_that_nothing_takes_are_told_at_once():
    with pytest.raises(ValueError, match="check has 'domian'; did you mean domain"):
        Monitor(check={"domian": "x"})
    with pytest.raises(ValueError, match="penalty has 'metod'; did you mean method"):
        penalty_options({"metod": "lipbound"}, 0.1)
    with pytest.raises(ValueError, match="its weight is 0"):
        penalty_options({"method": "lipbound"}, 0.0)
    assert penalty_options(None, 0.0) == {}
