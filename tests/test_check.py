"""The whole path on drawn networks: nothing that any input shows is above the bound, and modules are left alone."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from typing import Any

import pytest
import reference
import torch
from draws import draws
from hypothesis import HealthCheck, Phase, given, settings
from networks import (
    Function,
    Scaled,
    StandardisedConv,
    Twice,
    convolutional_networks,
    in_double,
    largest_jacobian,
    largest_quotient,
    normalised,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import lipcheck
from lipcheck.errors import InputSizeError, UsageError
from lipcheck.operators import Dense, Operator
from lipcheck.report import LayerReport, Report
from lipcheck.rules import DEFAULT_RULES


def audit(module: nn.Module, *shape: int, **options: Any) -> Report:
    return lipcheck.check(module, example=torch.randn(1, *shape), **{"samples": 1, **options})


def upper(report: Report) -> float:
    return 10**report.network.log10_upper


# An audit takes half a second: shrinking a failure would take minutes.
@settings(max_examples=draws(35), phases=[Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck))
@given(convolutional_networks())
def test_no_input_shows_more_than_the_bound_of_the_network(drawn: tuple[nn.Module, tuple[int, ...]]) -> None:
    module, shape = drawn
    report = lipcheck.check(module, example=torch.randn(shape), samples=2)
    double = in_double(module)
    assert math.isfinite(report.network.log10_upper), report.unsupported
    # torch's own derivatives have constants in single precision: the sixth of hardsigmoid.
    assert largest_jacobian(double, shape) <= upper(report) * (1 + 1e-7)
    assert largest_quotient(double, shape) <= upper(report)
    assert report.network.lower <= upper(report)
    assert report.network.log10_upper <= report.network.log10_product
    assert all(0 <= layer.bound.lower <= layer.bound.upper < math.inf for layer in report.layers)


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_a_parametrized_layer_is_bounded_as_applied(wrap: Any) -> None:
    layer = wrap(nn.Linear(6, 4))
    with torch.no_grad():
        for parameter in layer.parametrizations.weight.parameters():
            parameter.mul_(1.7)
    layer.eval()
    report = audit(nn.Sequential(layer, nn.ReLU()), 6)
    truth = reference.norm(layer.weight.detach().double())
    (row,) = report.layers
    assert row.layer == "0"
    assert row.bound.lower <= truth * (1 + 1e-12)
    assert truth <= row.bound.upper * (1 + 1e-12)
    assert row.bound.upper <= truth * 1.0011
    assert report.network.lower <= upper(report)


def test_weights_computed_in_single_precision_leave_the_lower_bound_below_the_upper() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        report = audit(parametrizations.weight_norm(nn.Linear(7, 1)), 7, samples=4)
        assert report.network.lower <= upper(report)


def test_weights_standardised_by_timm_are_bounded_as_applied() -> None:
    from timm.layers import ScaledStdConv2d, StdConv2d

    for layer in (
        StdConv2d(3, 4, 3, padding=1),
        ScaledStdConv2d(3, 4, 3, padding=1),
        StandardisedConv(3, 4, 3, padding=1),
    ):
        layer.eval()
        report = audit(nn.Sequential(layer), 3, 6, 6)
        units = torch.eye(3 * 36).reshape(-1, 3, 6, 6)
        with torch.no_grad():
            matrix = (layer(units) - layer(torch.zeros(1, 3, 6, 6))).flatten(1).double()
        truth = reference.norm(matrix)
        (row,) = report.layers
        assert row.layer == "0"
        # The reference runs in single precision, like the layer.
        assert row.bound.lower <= truth * (1 + 1e-5)
        assert truth <= row.bound.upper * (1 + 1e-5)


def test_a_shared_module_counts_each_time_and_is_listed_once() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    report = audit(Twice(conv), 2, 5, 5)
    (row,) = report.layers
    assert (row.layer, row.calls, row.kind) == ("shared", 2, "conv2d")
    assert report.network.log10_product == pytest.approx(2 * math.log10(row.bound.upper))
    assert report.network.log10_upper <= report.network.log10_product
    assert row.share == pytest.approx(1)


def test_a_shared_parametrized_module_is_listed_once() -> None:
    report = audit(Twice(parametrizations.weight_norm(nn.Conv2d(2, 2, 3, padding=1))), 2, 5, 5)
    assert [(row.layer, row.calls) for row in report.layers] == [("shared", 2)]


def test_a_shared_module_at_two_sizes_has_two_rows() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    report = audit(Function(lambda self, x: self.conv(self.conv(x)[..., :4]), conv=conv), 1, 5, 5)
    assert [(row.layer, row.calls, row.input_size) for row in report.layers] == [
        ("conv", 1, (5, 5)),
        ("conv", 1, (5, 4)),
    ]


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


def test_what_has_no_bound_is_grouped_by_operation_with_its_layers() -> None:
    module = nn.Sequential(SqueezeExcite(), nn.Conv2d(2, 2, 1), SqueezeExcite(), Function(lambda self, x: tripled(x)))
    report = audit(module, 2, 4, 4)
    assert report.network.log10_upper == math.inf
    assert report.network.log10_product == math.inf
    product, custom = report.unsupported
    assert (product.op, product.layers) == ("aten.mul.Tensor", ("0", "2"))
    assert "product of two activations" in product.reason
    assert (custom.op, custom.layers) == ("lipcheck_tests.tripled.default", ("3",))
    assert "no rule" in custom.reason
    assert report.network.reason.startswith("3 operations without a finite bound, the first aten.mul.Tensor in 0")
    # The layers have their rows all the same, without a share in what is infinite.
    assert [row.layer for row in report.layers if row.kind == "conv2d"] == ["0.gate", "1", "2.gate"]
    assert all(math.isfinite(row.bound.upper) and row.share is None for row in report.layers)


def test_what_the_output_does_not_depend_on_is_not_held_against_it() -> None:
    report = audit(Function(lambda self, x: (x.relu(), x.exp())), 4)
    assert report.network.log10_upper == pytest.approx(0, abs=1e-12)
    assert report.unsupported == ()
    assert report.network.reason == ""


@torch.library.custom_op("lipcheck_tests::tripled", mutates_args=())
def tripled(x: Tensor) -> Tensor:
    return x * 3


@tripled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_custom_operation_is_unbounded_until_a_rule_is_given() -> None:
    module = Function(lambda self, x: tripled(x))
    report = audit(module, 3, samples=0)
    assert report.network.log10_upper == math.inf
    assert [group.op for group in report.unsupported] == ["lipcheck_tests.tripled.default"]

    def triple(node: Any) -> Operator:
        return Dense(3 * torch.eye(1))

    rules = {**DEFAULT_RULES, torch.ops.lipcheck_tests.tripled.default: triple}
    assert 3 <= upper(audit(module, 3, samples=0, rules=rules)) <= 3.001


@pytest.mark.parametrize(
    ("forward", "truth"),
    [
        (lambda self, x: functional.linear(x, torch.eye(4), 100 * x[0]), 101.0),
        (lambda self, x: functional.layer_norm(x, (4,), None, 1e6 * x[0]), 1e6),
        (lambda self, x: functional.batch_norm(x, -5 * x[0], torch.ones(4)), 5.9),
        (lambda self, x: functional.conv1d(x[:, None], torch.ones(4, 1, 1), 50 * x[0]), 100.0),
        (lambda self, x: x.max(1)[1].float(), math.inf),
        (lambda self, x: x.long().float(), math.inf),
        (lambda self, x: x.bool().float(), math.inf),
        (lambda self, x: x.view(torch.int32).float(), math.inf),
        (lambda self, x: functional.max_pool1d(x, 2, return_indices=True)[1].float(), math.inf),
        (lambda self, x: torch.native_layer_norm(x, (4,), torch.full((4,), 1e-9), None, 1e-5)[2], 1.0),
        (lambda self, x: torch.ops.aten.elu(x, 1.0, 1.0, -1.0), math.inf),
        (lambda self, x: functional.softplus(x, threshold=1), math.inf),
        (lambda self, x: functional.threshold(x, 0.5, 0.0), math.inf),
        (lambda self, x: functional.hardshrink(x), math.inf),
        (lambda self, x: x / (1 + x.abs()), 1.0),
        (lambda self, x: x.std(1), 0.5),
    ],
    ids=["bias", "shift", "mean", "conv bias", "index", "whole", "truth value", "bits", "places", "statistic", "elu",
         "softplus", "threshold", "hardshrink", "softsign", "deviation"],
)  # fmt: skip
def test_what_is_steep_somewhere_is_never_said_to_be_flat(forward: Any, truth: float) -> None:
    report = audit(Function(forward), 4, samples=0)
    assert upper(report) >= truth if math.isfinite(report.network.log10_upper) else True


def test_an_unbatched_convolution_is_no_crash() -> None:
    report = audit(Function(lambda self, x: self.conv(x[0]), conv=nn.Conv2d(3, 2, 3)), 3, 5, 5)
    assert upper(report) >= report.network.lower if math.isfinite(report.network.log10_upper) else True


def test_constant_and_empty_networks_have_the_constants_zero_and_one() -> None:
    assert audit(Function(lambda self, x: self.w * 1, w=torch.ones(3)), 4).network.log10_upper == -math.inf
    assert audit(Function(lambda self, x: x * 0), 4).network.log10_upper == -math.inf
    assert audit(nn.Identity(), 4).network.log10_upper == pytest.approx(0, abs=1e-12)


def test_every_lower_bound_of_a_network_is_below_its_upper_bound_where_both_are_tight() -> None:
    for seed, layer in enumerate((nn.Linear(5, 1), nn.Hardsigmoid(), nn.Conv1d(2, 2, 1), Scaled(2), nn.AvgPool2d(2))):
        torch.manual_seed(seed)
        shape = {nn.Linear: (5,), nn.Hardsigmoid: (5,), nn.Conv1d: (2, 5)}.get(type(layer), (2, 4, 4))
        report = audit(layer, *shape, samples=4)
        assert report.network.lower <= upper(report)


def test_shares_add_up_to_the_whole() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), normalised(4), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    report = audit(module, 1, 6, 6)
    shares = [row.share for row in report.layers if row.share is not None]
    (folded,) = (step.log10_after for step in report.network.tightening if step.name == "scalings folded")
    activations = math.log10(1.0998393) / folded
    assert sum(shares) + activations == pytest.approx(1, abs=1e-3)


def test_rows_say_what_the_layer_is() -> None:
    module = nn.Sequential(nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0), groups=2), normalised(6),
                           nn.ConvTranspose2d(6, 2, 2, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3))  # fmt: skip
    rows: tuple[LayerReport, ...] = audit(module, 4, 8, 4).layers
    assert [row.kind for row in rows] == ["conv2d", "conv_transpose2d", "max_pool", "linear"]
    conv, transposed, pool, linear = rows
    assert (conv.kernel, conv.stride, conv.groups, conv.channels) == ((3, 1), (2, 1), 2, (4, 6))
    assert (conv.input_size, conv.output_size, conv.merged_with) == ((8, 4), (4, 4), "1")
    assert conv.merged is not None
    assert (transposed.channels, transposed.input_size, transposed.output_size) == ((6, 2), (4, 4), (8, 8))
    assert (pool.kernel, pool.stride, pool.output_size) == ((2, 2), (2, 2), (4, 4))
    assert (linear.channels, linear.op) == ((32, 3), "aten.linear.default")


def test_one_and_two_threads_agree_and_equal_runs_are_equal() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), normalised(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    x = torch.randn(1, 2, 8, 8)
    one, again, two = (lipcheck.check(module, example=x, threads=threads) for threads in (1, 1, 2))
    assert [row.bound for row in one.layers] == [row.bound for row in again.layers]
    assert one.network == again.network
    for first, second in zip(one.layers, two.layers, strict=True):
        assert first.bound.upper == pytest.approx(second.bound.upper, rel=1e-3)


@pytest.mark.parametrize(
    "options", [{"tolerance": 0}, {"tolerance": math.nan}, {"samples": -1}, {"threads": 0}, {"memory": 0}]
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        audit(nn.Linear(2, 2), 2, **options)


@pytest.mark.parametrize("example", [torch.zeros(2, 3), torch.zeros(1, 3, dtype=torch.long), torch.zeros(3), "3"])
def test_an_example_that_is_no_single_input_is_refused(example: Any) -> None:
    with pytest.raises(InputSizeError):
        lipcheck.check(nn.Linear(3, 3), example=example)


def test_a_module_that_does_not_say_its_input_size_is_told_how() -> None:
    with pytest.raises(InputSizeError, match="give example="):
        lipcheck.check(nn.Linear(3, 3))


def test_no_warning_of_the_libraries_reaches_the_user() -> None:
    code = "import torch, lipcheck; lipcheck.check(torch.nn.Linear(3, 3), example=torch.randn(1, 3))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr == ""


def test_a_copy_of_a_module_has_the_same_report() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    x = torch.randn(1, 3)
    first, second = (lipcheck.check(m, example=x) for m in (module, copy.deepcopy(module)))
    assert (first.layers, first.network) == (second.layers, second.network)


class Attention(nn.Module):
    """Self-attention with packed projections, as timm writes it; written out, or in one call."""

    def __init__(self, heads: int = 2, *, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


@pytest.mark.parametrize("fused", [True, False])
def test_packed_projections_have_rows_for_their_parts(fused: bool) -> None:
    module = Attention(fused=fused)
    rows = audit(module, 5, 8, samples=0).layers
    assert [(row.layer, row.part) for row in rows] == [
        *(("qkv", ""), ("qkv", "q"), ("qkv", "k"), ("qkv", "v"), ("proj", ""))
    ]
    weight = module.qkv.weight.detach().double()
    for row, part in zip(rows, (weight, weight[:8], weight[8:16], weight[16:]), strict=False):
        truth = reference.norm(part)
        assert row.bound.lower <= truth * (1 + 1e-12)
        assert truth <= row.bound.upper * (1 + 1e-12)
        assert row.bound.upper <= truth * 1.0011
        assert row.channels == (8, part.shape[0])
    assert all(row.share is None for row in rows if row.part)


def test_heads_have_rows_on_request() -> None:
    module = Attention(heads=4)
    rows = {row.part: row for row in audit(module, 5, 8, samples=0, heads=True).layers}
    assert [part for part in rows if part.startswith("k")] == ["k", *(f"k head {head}" for head in range(4))]
    weight = module.qkv.weight.detach().double()
    truth = reference.norm(weight[8 + 2 * 3 : 8 + 2 * 4])
    assert rows["k head 3"].bound.lower <= truth * (1 + 1e-12) <= rows["k head 3"].bound.upper * (1 + 1e-11)


def test_the_network_is_the_same_with_and_without_rows_for_its_parts() -> None:
    module = Attention()
    with_heads, without = (audit(module, 5, 8, samples=0, heads=heads) for heads in (True, False))
    assert with_heads.network == without.network


class Apart(nn.Module):
    """An attention of torch whose queries, keys and values differ, so that its packed weight is applied in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x + 1, 2 * x, need_weights=False)[0]
        return result


def test_pieces_of_a_packed_projection_are_told_apart() -> None:
    module = Apart()
    rows = [row for row in audit(module, 5, 8, samples=0).layers if row.kind == "linear"]
    assert [(row.layer, row.part) for row in rows[:3]] == [("attention", part) for part in "qkv"]
    for row, piece in zip(rows[:3], module.attention.in_proj_weight.detach().double().chunk(3), strict=True):
        assert row.bound.lower <= reference.norm(piece) * (1 + 1e-12) <= row.bound.upper * (1 + 1e-11)


class WrittenNorm(nn.Module):
    """A root mean square norm as language models write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-2, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-4))


@pytest.mark.parametrize(
    ("norm", "shape", "kind", "gain", "channels"),
    [
        (lambda: nn.LayerNorm(6, eps=1e-4), (5, 6), "layer_norm", 2.0, 6),
        (lambda: nn.LayerNorm(6, eps=1e-4, elementwise_affine=False), (5, 6), "layer_norm", 1.0, 6),
        (lambda: nn.GroupNorm(3, 6, eps=1e-4), (6, 4, 4), "group_norm", 2.0, 6),
        (lambda: nn.InstanceNorm2d(6, eps=1e-4, affine=True), (6, 4, 4), "instance_norm", 2.0, 6),
        (lambda: nn.RMSNorm(6, eps=1e-4), (5, 6), "rms_norm", 2.0, 6),
        (WrittenNorm, (5, 6), "rms_norm", 2.0, 6),
    ],
    ids=["layer", "layer without gain", "group", "instance", "rms", "written out"],
)
def test_a_normalisation_has_its_gain_and_its_slopes(
    norm: Any, shape: tuple[int, ...], kind: str, gain: float, channels: int
) -> None:
    module = nn.Sequential(norm())
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(torch.linspace(-2, 1, parameter.numel()))
    (row,) = audit(module, *shape, samples=0).layers
    assert (row.layer, row.kind, row.channels) == ("0", kind, (channels, channels))
    assert row.bound.lower <= gain <= row.bound.upper <= gain * (1 + 1e-6)
    assert row.slope is not None
    assert row.slope_everywhere is not None
    assert gain / 1e-2 <= row.slope_everywhere.upper <= gain / 1e-2 * 1.001
    assert row.slope.upper == row.slope_everywhere.upper
    assert row.share == pytest.approx(1)
    # Far from zero the deviation is large: here at least that of numbers 1 apart.
    low = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape) * 4
    (row,) = audit(module, *shape, samples=0, domain=lipcheck.Box(low, low + 1)).layers
    assert row.slope is not None
    assert row.slope_everywhere is not None
    assert row.slope.upper < gain < row.slope_everywhere.upper
    assert row.bound.upper <= gain * (1 + 1e-6)


def test_a_shared_normalisation_is_listed_once() -> None:
    report = audit(Twice(nn.LayerNorm(6)), 5, 6, samples=0)
    assert [(row.layer, row.calls) for row in report.layers] == [("shared", 2)]
    assert report.network.elsewhere.keys() <= {"relu"}


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.places(torch.arange(5)))


def test_tables_stand_beside_the_network() -> None:
    module = Embedded()
    report = audit(module, 5, 6, samples=0)
    assert [row.layer for row in report.layers] == ["head"]
    assert [(table.layer, table.entries, table.width) for table in report.embeddings] == [
        *(("words", 11, 6), ("places", 5, 6))
    ]
    for table, part in zip(report.embeddings, (module.words, module.places), strict=True):
        weight = part.weight.detach().double()
        longest = float(torch.linalg.vector_norm(weight, dim=1).max())
        assert table.bound.lower <= reference.norm(weight) * (1 + 1e-12) <= table.bound.upper * (1 + 1e-11)
        assert table.largest_row.lower <= longest <= table.largest_row.upper <= longest * (1 + 1e-9)
    assert report.network.log10_upper == pytest.approx(math.log10(report.layers[0].bound.upper))
    assert "embedding tables" in str(report)
