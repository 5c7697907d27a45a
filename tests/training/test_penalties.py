"""The penalty's value is the method's, its gradient that of finite differences, and between refreshes the tangent."""

from __future__ import annotations

import math

import pytest
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import convolution_modules
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

import lipcheck
from lipcheck.engines import literature
from lipcheck.engines.literature import gram
from lipcheck.engines.literature.gram import explicit_gram_norms, gram_norms
from lipcheck.errors import UsageError
from lipcheck.operators import Convolution, InfiniteConvolution
from lipcheck.training import LipschitzPenalty, rescale_
from lipcheck.training.batches import stacks
from lipcheck.training.layers import read_maps
from lipcheck.training.penalties import METHODS, REDUCTIONS, SURROGATE

LAYERS = {
    "strided": lambda: nn.Conv1d(2, 3, 4, stride=2, padding=1),
    "grouped": lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2),
    "dilated": lambda: nn.Conv1d(2, 3, 3, dilation=2, padding=2),
    "transposed": lambda: nn.ConvTranspose1d(4, 4, 4, stride=2, padding=1, groups=2),
    "two axes": lambda: nn.Conv2d(2, 2, (2, 3), stride=(2, 1), padding=(1, 1)),
    "reflected": lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"),
    "linear": lambda: nn.Linear(6, 3),
}


def sample(module: nn.Module) -> Tensor:
    sizes = (6, 4) if isinstance(module, nn.Conv2d) else (6,)
    channels = () if isinstance(module, nn.Linear) else (getattr(module, "in_channels", 1),)
    return torch.randn(1, *channels, *sizes, dtype=torch.float64)


def value_of(module: nn.Module, penalty: LipschitzPenalty, weight: Tensor) -> Tensor:
    """The penalty with another weight in the module's place."""

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self) -> Tensor:
            return penalty()

    return functional_call(Called(), {"module.weight": weight}, ())


# Two that iterate from scratch converge slowly; tests/engines/literature/test_gradients.py has them with more steps.
QUICK = [(method, kind) for method in METHODS if method not in ("tensor-norm", "power") for kind in LAYERS]


@pytest.mark.parametrize(("method", "kind"), [*QUICK, ("power", "strided")])
def test_the_gradient_is_that_of_finite_differences(method, kind, monkeypatch):
    monkeypatch.setattr("lipcheck.training.surrogate.WARM", 300)
    monkeypatch.setattr("lipcheck.training.surrogate.COLD", 600)
    torch.manual_seed(1)
    module = LAYERS[kind]().double()
    penalty = LipschitzPenalty(module, method=method, reduction="sum", sample_input=sample(module))
    weight = module.weight.detach().clone().requires_grad_()
    assert gradcheck(
        lambda w: value_of(module, penalty, w), (weight,), eps=1e-5, atol=1e-5 if "power" in method else 1e-6,
        fast_mode=True,
    )  # fmt: skip


def normalised_net() -> nn.Module:
    torch.manual_seed(2)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 4, 2, 2, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 64, 3)),
    ).double()
    net(3 * torch.randn(16, 2, 6, 6, dtype=torch.float64))
    return net.eval()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_reach_what_batch_norms_are_made_of(reduction):
    net = normalised_net()
    penalty = LipschitzPenalty(net, reduction=reduction, sample_input=torch.zeros(1, 2, 6, 6, dtype=torch.float64))
    norm = net[1]
    before = norm.weight.detach().clone()

    def value(gamma: Tensor) -> Tensor:
        norm._parameters["weight"] = gamma
        return penalty()

    assert gradcheck(value, (before.requires_grad_(),), eps=1e-6, atol=1e-6)


def test_batch_norms_are_folded_as_an_audit_folds_them():
    net = normalised_net()
    example = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    report = lipcheck.check(net, example=example)
    estimates = LipschitzPenalty(net, method=SURROGATE, sample_input=example)
    for _ in range(40):
        estimates()
    folded = {row.layer: row.merged or row.bound for row in report.layers if row.kind != "batch_norm"}
    assert set(folded) == set(estimates.norms())
    for layer, norm in estimates.norms().items():
        assert folded[layer].lower * (1 - 1e-3) <= norm <= folded[layer].upper * (1 + 1e-9)


@settings(max_examples=draws(25))
@given(st.data(), st.sampled_from(["lipbound", "gram-embedding", "gram-kernel"]))
def test_a_stack_gives_each_layer_its_own_number(data, method):
    channels = data.draw(st.integers(1, 3))
    size = data.draw(st.sampled_from([(5,), (4, 3)]))
    module = data.draw(convolution_modules(channels, size))
    twin = type(module)(module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
                        groups=module.groups, dilation=module.dilation, **_extra(module))  # fmt: skip
    net = nn.ModuleList([module, twin]).double()
    maps = [_at(size, one) for one in read_maps(net, None).maps]
    assert len(stacks(maps)) == 1
    for one in (maps, maps[:1]):
        penalty = LipschitzPenalty(net, method="lipbound")
        penalty.method, penalty._maps, penalty._stacks = method, tuple(one), stacks(one)
        penalty._tangents = penalty._new_tangents()
        for own, found in zip(one, penalty._norms().tolist(), strict=True):
            alone = float(literature.METHODS[method].run(own.operator))
            assert found <= alone * (1 + 1e-6)
            assert found >= alone * (0.9 if "gram-e" in method else 1 - 1e-6)


def _extra(module: nn.Module) -> dict[str, object]:
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        return {"output_padding": module.output_padding}
    return {"padding_mode": module.padding_mode}


def _at(size, one):
    """A map of every size as a convolution on one: literature's gram needs a size."""
    operator = one.operator
    assert isinstance(operator, InfiniteConvolution)
    zero = (0,) * len(size)
    finite = Convolution(operator.weight, operator.stride, operator.dilation, operator.groups, zero, size, size)
    return type(one)(one.name, one.module, finite)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.booleans())
def test_the_explicit_gradient_of_gram_iteration_is_that_of_autograd(seed, iterations, complex_valued):
    noise = torch.Generator().manual_seed(seed)
    dtype = torch.complex128 if complex_valued else torch.float64
    matrices = torch.randn(3, 2, 4, dtype=dtype, generator=noise)
    weights = torch.randn(3, dtype=torch.float64, generator=noise)
    found = []
    for norms in (gram_norms, explicit_gram_norms):
        leaf = matrices.clone().requires_grad_()
        value = norms(leaf, iterations)
        (value * weights).sum().backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)


def small_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(27, 2))


@pytest.mark.parametrize("method", ["lipbound", "gram-embedding", SURROGATE])
def test_between_refreshes_the_tangent_is_no_more_than_the_method(method):
    net = small_net().double()
    example = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    lazy = LipschitzPenalty(net, method=method, reduction="sum", refresh=4, sample_input=example)
    refreshed = [lazy().item()]
    for _ in range(3):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        now = LipschitzPenalty(net, method=method, reduction="sum", sample_input=example)().item()
        assert lazy().item() <= now * (1 + 1e-3)
        refreshed.append(now)
    assert lazy().item() == pytest.approx(refreshed[-1], rel=1e-2)


def test_a_penalty_lowers_the_certified_bounds():
    net = small_net()
    example = torch.zeros(1, 1, 5, 5)
    before = lipcheck.check(net, example=example).network.log10_upper
    penalty = LipschitzPenalty(net, refresh=3, sample_input=example)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert lipcheck.check(net, example=example).network.log10_upper < before - 0.3


def test_reductions():
    net = small_net()
    norms = torch.tensor(list(LipschitzPenalty(net).norms().values()))
    for reduction, expected in (("sum", norms.sum()), ("max", norms.max()), ("sum-log", norms.log().sum())):
        assert LipschitzPenalty(net, reduction=reduction)().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_layer_of_zeros_has_no_gradient_and_spoils_none():
    net = small_net()
    with torch.no_grad():
        net[2].weight.zero_()
    for method in ("lipbound", "gram-kernel", "fantastic4", SURROGATE):
        net.zero_grad()
        penalty = LipschitzPenalty(net, method=method, sample_input=torch.zeros(1, 1, 5, 5))
        penalty().backward()
        assert not bool(net[2].weight.grad.any())
        assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)
        assert bool(net[0].weight.grad.any())


def test_weights_in_half_precision_and_behind_parametrizations():
    net = small_net().bfloat16()
    torch.nn.utils.parametrizations.weight_norm(net[0])
    penalty = LipschitzPenalty(net, sample_input=torch.zeros(1, 1, 5, 5, dtype=torch.bfloat16))
    penalty().backward()
    gradients = [p.grad for name, p in net.named_parameters() if "bias" not in name]
    assert all(gradient is not None and math.isfinite(float(gradient.float().sum())) for gradient in gradients)


def test_autocast_changes_nothing():
    net = small_net()
    for method in ("lipbound", "gram-embedding", SURROGATE):
        penalty = LipschitzPenalty(net, method=method, sample_input=torch.zeros(1, 1, 5, 5))
        expected = LipschitzPenalty(net, method=method, sample_input=torch.zeros(1, 1, 5, 5))()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert penalty().item() == expected.item()
            assert penalty.norms()


def test_it_says_that_it_estimates():
    penalty = LipschitzPenalty(small_net(), method="gram-kernel")
    assert "estimates" in repr(penalty)
    assert "certified" not in repr(penalty).replace("nothing certified", "")


def test_the_model_is_left_as_it_was():
    net = normalised_net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    penalty = LipschitzPenalty(net, sample_input=torch.zeros(4, 2, 6, 6, dtype=torch.float64))
    penalty()
    assert net.training
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def test_what_cannot_be_read_is_named():
    net = nn.Sequential(Standardised(1, 2, 3), nn.Conv2d(2, 2, 3))
    for example in (None, torch.zeros(1, 1, 8, 8)):
        penalty = LipschitzPenalty(net, sample_input=example)
        assert list(penalty.norms()) == ["1"]
        assert "its own way" in penalty.left_out["0"]
    with pytest.raises(UsageError, match="no linear layer whose weight can be read: 0: it computes"):
        LipschitzPenalty(net[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "certified"}, "choose from lipbound, gram"),
        ({"method": "gram"}, "give sample_input"),
        ({"reduction": "product"}, "choose from sum-log, sum, max"),
        ({"refresh": 0}, "at least 1"),
        ({"layers": ["conv*"]}, "no linear layer is called 'conv\\*'; there are 0, 2, 4"),
        ({"sample_input": 3}, "sample_input must be a tensor"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(UsageError, match=message):
        LipschitzPenalty(small_net(), **options)


def test_layers_are_chosen_by_name_or_pattern():
    assert list(LipschitzPenalty(small_net(), layers=["[02]"]).norms()) == ["0", "2"]
    assert list(LipschitzPenalty(small_net(), layers="4").norms()) == ["4"]


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("method", ["lipbound", "gram-kernel", "fantastic4"])
def test_padding_that_copies_counts_at_every_size(mode, method):
    for seed in range(20):
        torch.manual_seed(seed)
        layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode, bias=False).double()
        value = float(LipschitzPenalty(layer, method=method, reduction="sum")().detach())
        assert value >= lipcheck.spectral_norm(layer, input_size=3).lower * (1 - 1e-6)


def test_a_projection_that_is_not_seen_is_left_out_by_name():
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    assert "give sample_input" in LipschitzPenalty(encoder).left_out["self_attn.in_proj_weight"]


@pytest.mark.parametrize("method", ["lipbound", "gram-kernel", SURROGATE])
def test_a_penalty_asked_for_in_inference_mode_trains_afterwards(method):
    layer = nn.Conv1d(2, 3, 3)
    penalty = LipschitzPenalty(layer, method=method, refresh=5)
    with torch.inference_mode():
        value = float(penalty())
        penalty.norms()
    again = penalty()
    again.backward()
    assert float(again.detach()) == pytest.approx(value)
    assert bool(layer.weight.grad.any())


def test_a_weight_of_another_shape_asks_for_a_new_penalty():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    penalty = LipschitzPenalty(net, refresh=5)
    penalty()
    net[2].weight = nn.Parameter(torch.randn(7, 4))
    with pytest.raises(UsageError, match="2 had a weight of 3 x 4 and has one of 7 x 4; make a new penalty"):
        penalty()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reduction": ["a"]}, "no reduction is called"),
        ({"method": ["a"]}, "no penalty is by"),
        ({"layers": 5}, "layers has 5"),
        ({"layers": ["0", 3]}, "layers has 3"),
    ],
)
def test_arguments_of_another_kind_are_told(given, words):
    with pytest.raises(UsageError, match=words):
        LipschitzPenalty(nn.Sequential(nn.Linear(2, 2)), **given)


def test_wrappers_are_looked_through():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 2)).eval()
    sample = torch.randn(1, 1, 5, 5)
    plain = LipschitzPenalty(net, sample_input=sample)
    for wrapped in (nn.DataParallel(net), torch.compile(nn.DataParallel(net))):
        penalty = LipschitzPenalty(wrapped, sample_input=sample)
        assert penalty.norms() == plain.norms()
        assert lipcheck.check(wrapped, example=sample, samples=0).network.log10_upper < math.inf


@pytest.mark.parametrize("method", ["gram", "gram-embedding"])
def test_frequencies_are_sought_at_every_fifth_refresh(method, monkeypatch):
    torch.manual_seed(0)
    layer = nn.Conv1d(3, 3, 3, padding=1, bias=False).double()
    penalty = LipschitzPenalty(layer, method=method, reduction="sum", sample_input=sample(layer))
    searched = []
    search = gram.peaks
    monkeypatch.setattr(gram, "peaks", lambda *given, **named: searched.append(1) or search(*given, **named))
    for call in range(11):
        value = float(penalty().detach())
        assert len(searched) == call // 5 + 1
        operator = read_maps(layer, sample(layer)).maps[0].operator
        there = float(literature.METHODS[method].run(operator).detach())
        assert value <= there * (1 + 1e-9)
        if call % 5 == 0:
            assert value == pytest.approx(there, rel=1e-6)
        with torch.no_grad():
            layer.weight.add_(0.3 * torch.randn_like(layer.weight))


@pytest.mark.parametrize("method", ["lipbound", "gram-embedding", "gram-kernel", "fantastic4", SURROGATE])
def test_a_map_of_zeros_among_others_of_its_shape_goes_and_comes_back(method):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv1d(2, 2, 3, padding=1, bias=False) for _ in range(3)))
    penalty = LipschitzPenalty(net, method=method, reduction="sum", sample_input=torch.randn(1, 2, 6))
    kept = net[1].weight.detach().clone()
    whole = float(penalty().detach())
    with torch.no_grad():
        net[1].weight.zero_()
    assert float(penalty().detach()) < whole
    with torch.no_grad():
        net[1].weight.copy_(kept)
    assert float(penalty().detach()) == pytest.approx(whole, rel=1e-2)


@pytest.fixture
def one_process(tmp_path):
    """A group of this process alone, as a launcher of distributed training makes it."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_a_distributed_network_is_penalised_and_rescaled(one_process):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    wrapped, sample = nn.parallel.DistributedDataParallel(net), torch.randn(4, 1, 5, 5)
    penalty = LipschitzPenalty(wrapped, sample_input=sample[:1])
    assert set(penalty.norms()) == {"0", "3"}
    (wrapped(sample).square().mean() + penalty()).backward()
    assert bool(net[0].weight.grad.any())
    assert all(bound.upper <= 0.5 for bound in rescale_(wrapped, 0.5, inputs=sample[:1]).values())
