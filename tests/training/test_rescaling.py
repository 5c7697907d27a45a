"""After rescaling, an audit finds no layer above the limit, in whatever format the weights are stored."""

from __future__ import annotations

import copy

import pytest
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import convolution_modules
from torch import Tensor, nn

import lipcheck
from lipcheck.errors import UsageError
from lipcheck.training import rescale_

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def audited(model: nn.Module, example: Tensor) -> dict[str, float]:
    """What an audit says of the convolutions and linear layers, folded as the network applies them."""
    report = lipcheck.check(model, example=example)
    return {row.layer: (row.merged or row.bound).upper for row in report.layers if row.channels}


def mixed(dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(4)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 6, 3, 2, padding=1, groups=2), nn.BatchNorm2d(6, affine=False), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(6, 4, 4, 2, padding=1)),
        *(nn.Flatten(), nn.Linear(4 * 36, 5)),
    )
    net(2 * torch.randn(16, 2, 6, 6))
    return net.to(dtype), torch.randn(1, 2, 6, 6).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_audit_finds_no_layer_above_the_limit(dtype):
    net, example = mixed(dtype)
    bounds = rescale_(net, 0.6, inputs=example)
    found = audited(net, example)
    assert set(found) == set(bounds)
    assert all(upper <= 0.6 for upper in found.values())
    assert all(bound.upper <= 0.6 and bound.kind == "certified" for bound in bounds.values())


@settings(max_examples=draws(12))
@given(st.data(), st.sampled_from(DTYPES), st.floats(0.01, 3.0))
def test_any_convolution_of_any_size_and_format(data, dtype, limit):
    size = data.draw(st.sampled_from([(7,), (5, 4)]))
    module = data.draw(convolution_modules(2, size)).to(dtype)
    model = nn.Sequential(module)
    bounds = rescale_(model, limit, inputs=torch.randn(1, 2, *size).to(dtype))
    assert bounds["0"].upper <= limit
    assert lipcheck.spectral_norm(module, input_size=size).upper <= limit
    assert bool(torch.isfinite(module.weight).all())


def test_only_layers_above_the_limit_are_changed():
    net, example = mixed(torch.float32)
    uppers = audited(net, example)
    limit = sorted(uppers.values())[2]
    low = {name for name, upper in uppers.items() if upper <= limit}
    before = copy.deepcopy(net.state_dict())
    rescale_(net, limit, inputs=example)
    changed = {name.rpartition(".")[0] for name, one in net.state_dict().items() if not torch.equal(one, before[name])}
    assert changed
    assert not changed & low
    again = copy.deepcopy(net.state_dict())
    rescale_(net, limit, inputs=example)
    assert all(torch.equal(one, again[name]) for name, one in net.state_dict().items())


def test_statistics_stay_those_of_their_input():
    """A folded batch norm is scaled by its gamma: the convolution in front keeps its weights."""
    net, example = mixed(torch.float32)
    before = copy.deepcopy(net.state_dict())
    rescale_(net, 0.1, inputs=example)
    assert torch.equal(net[0].weight, before["0.weight"])
    assert bool((net[1].weight.abs() < before["1.weight"].abs()).all())
    # Without a gamma the weight is what can be scaled.
    assert not torch.equal(net[3].weight, before["3.weight"])


def test_a_norm_is_used_up_and_not_undershot():
    net, example = mixed(torch.float32)
    rescale_(net, 0.25, inputs=example)
    assert all(upper > 0.25 * (1 - 1e-5) for upper in audited(net, example).values())


def test_without_an_input_the_bound_is_for_every_size():
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5))
    bounds = rescale_(net, 0.3)
    assert set(bounds) == {"0", "3"}
    assert lipcheck.spectral_norm(net[0]).upper <= 0.3
    assert lipcheck.spectral_norm(net[3]).upper <= 0.3


def test_a_layer_called_twice_and_weights_shared():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(torch.relu(self.first(x))))

    net = Twice()
    bounds = rescale_(net, 0.2, inputs=torch.randn(1, 4))
    assert [bound.upper <= 0.2 for bound in bounds.values()] == [True]  # a shared weight has one name in the graph
    assert net.second.weight is net.first.weight
    assert lipcheck.spectral_norm(net.first).upper <= 0.2


def test_what_cannot_be_scaled_is_refused_before_anything_changes():
    net = nn.Sequential(nn.Linear(3, 3), torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with torch.no_grad():
        net[0].weight.copy_(5 * torch.eye(3))
        net[1].parametrizations.weight.original0.fill_(5.0)
    for inputs in (None, torch.randn(1, 3)):
        with pytest.raises(UsageError, match="cannot be rescaled: 1: its weight is computed; remove"):
            rescale_(net, 1.0, inputs=inputs)
    assert torch.equal(net[0].weight, 5 * torch.eye(3))


@pytest.mark.parametrize(
    ("net", "limit", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), 0.0, "give a positive number"),
        (nn.Sequential(nn.Linear(2, 2)), "one", "give a positive number"),
        (nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)), 1.0, "has batch norms; give inputs"),
        (nn.ReLU(), 1.0, "no convolution and no Linear"),
    ],
)
def test_bad_arguments(net, limit, message):
    with pytest.raises(UsageError, match=message):
        rescale_(net, limit)


def test_weights_that_are_not_seen_are_refused_without_inputs():
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    before = copy.deepcopy(encoder.state_dict())
    with pytest.raises(UsageError, match=r"self_attn\.in_proj_weight.*inputs="):
        rescale_(encoder, 0.1)
    with pytest.raises(UsageError, match="in_proj_weight"):
        rescale_(nn.MultiheadAttention(4, 2), 0.1)
    assert all(torch.equal(before[name], now) for name, now in encoder.state_dict().items())


def test_tables_and_added_tokens_are_no_weights_of_linear_maps():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.token, self.head = nn.Embedding(5, 4), nn.Parameter(torch.ones(1, 3, 4)), nn.Linear(4, 2)

    assert rescale_(Net(), 0.5)["head"].upper <= 0.5


@pytest.mark.parametrize("last", [1.7e308, 1e-320])
def test_after_an_error_the_weights_are_those_that_were_given(last):
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        net[0].weight.mul_(10)
        net[2].weight.fill_(last)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UsageError):
        rescale_(net, 1.0 if last > 1 else 1e-323)
    assert all(torch.equal(before[name], now) for name, now in net.state_dict().items())


def test_a_limit_at_which_weights_vanish_is_refused():
    net = nn.Linear(3, 3)
    with pytest.raises(UsageError, match="at a limit of 1e-300 weights in float32 become zero"):
        rescale_(net, 1e-300)
    assert bool(net.weight.any())


def test_a_network_that_overflows_is_told_so():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        for one in net:
            one.weight.mul_(1e30)
    with pytest.raises(lipcheck.LipcheckError, match="too large for float32"):
        rescale_(net, 1.0, inputs=torch.randn(1, 8))
    assert rescale_(net, 1.0)["0"].upper <= 1.0


def test_what_is_no_module_is_told():
    with pytest.raises(UsageError, match="model is a int"):
        rescale_(5)
