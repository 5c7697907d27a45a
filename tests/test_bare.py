"""Weights without an architecture: no use of a weight is above its bound, and what is not bounded is named."""

import math

import pytest
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import lipcheck
from lipcheck import bare
from lipcheck.cached import Kept
from lipcheck.engines import matrix as matrices
from lipcheck.engines.settings import DEFAULT_SETTINGS
from lipcheck.errors import UsageError, WeightsError
from lipcheck.operators import Dense

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
NOTHING = Kept(None, DEFAULT_SETTINGS)
SLACK = 1 + 1e-12  # of the reference's own rounding


def norm_of(call, shape):
    """The norm of a linear map, from its values on the unit vectors."""
    unit = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    columns = call(unit).flatten(1)
    return 0.0 if columns.numel() == 0 else torch.linalg.matrix_norm(columns, 2).item()


def audit(tmp_path, tensors, **options):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "w.safetensors")
    return lipcheck.check(str(tmp_path / "w.safetensors"), **options)


def rows(report):
    return {row.layer: row for row in report.layers}


@st.composite
def uses(draw):
    """A weight and one way in which a network may use it."""
    axes = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    outputs, inputs = groups * draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3 if axes < 3 else 2)) for _ in range(axes))
    stride, dilation, padding = (draw(st.integers(low, 3)) for low in (1, 1, 0))
    size = tuple(draw(st.integers(1, 6 if axes == 1 else 4)) for _ in range(axes))
    weight = torch.randn(
        outputs, inputs, *kernel, generator=torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    ).double()
    return weight, groups, stride, dilation, padding, size, draw(st.booleans())


def applied(weight, groups, stride, dilation, padding, size, transposed, gain=None):
    """The norm of this use of the weight, its outputs multiplied by a gain each; None where there is no output."""
    axes = len(size)
    scale = 1 if gain is None else gain.reshape(1, -1, *(1,) * axes)
    if transposed:
        shape = (weight.shape[0], *size)

        def call(x):
            made = TRANSPOSED[axes - 1](x, weight, None, stride, min(padding, 1), 0, groups, dilation)
            return made * scale
    else:
        shape = (weight.shape[1] * groups, *size)

        def call(x):
            return CONVOLUTIONS[axes - 1](x, weight, None, stride, padding, dilation, groups) * scale

    try:
        return norm_of(call, shape)
    except RuntimeError:  # an input smaller than the kernel
        return None


@settings(max_examples=draws(40))
@given(use=uses())
def test_no_use_of_a_kernel_is_above_its_bound(use):
    exact = applied(*use)
    if exact is not None:
        (question,) = [bare._question(use[0])]
        bound = bare._answer(question, bare.bounds_of(question.operators, DEFAULT_SETTINGS, NOTHING))
        assert exact <= bound.upper * SLACK
        assert bound.lower <= exact


@settings(max_examples=draws(25))
@given(use=uses(), seed=st.integers(0, 10**6))
def test_no_use_behind_a_batch_norm_is_above_its_bound(use, seed):
    weight, groups, *_, transposed = use
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    gain = torch.rand(channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    exact = applied(*use, gain=gain)
    own = bare._question(weight)
    question = bare._merged(weight, own, gain)
    bound = bare._answer(question, bare.bounds_of(question.operators, DEFAULT_SETTINGS, NOTHING))
    if exact is not None:
        assert exact <= bound.upper * SLACK


@pytest.mark.parametrize("shape", [(2, 2, 1), (2, 2, 3), (4, 2, 3)])
def test_a_kernel_whose_axes_agree_may_be_applied_either_way(shape):
    """One tap, in the first row and the last column: a norm behind it scales it by another number in each reading."""
    weight = torch.zeros(shape, dtype=torch.float64)
    weight[0, 1, 0] = 1
    gain = torch.tensor([1.0, 100.0, 1.0, 1.0][: shape[0]], dtype=torch.float64)
    question = bare._merged(weight, bare._question(weight), gain)
    bound = bare._answer(question, bare.bounds_of(question.operators, DEFAULT_SETTINGS, NOTHING))
    groups = shape[0] // shape[1]
    for transposed in (False, True):
        exact = applied(weight, groups, 1, 1, 0, (5,), transposed, gain)
        assert exact <= bound.upper * SLACK
    assert bound.upper >= 100


@pytest.mark.parametrize("cap", ["_MOST_TAPS", "_MOST_PRODUCTS", "_SHARE"])
@settings(max_examples=draws(10))
@given(use=uses(), scale=st.sampled_from([0, 30, -30]))
def test_bounds_without_a_symbol_hold_too(cap, use, scale):
    exact = applied(*use)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bare, cap, 0)
        weight = use[0] * 2.0**scale
        question = bare._question(weight)
        bound = bare._answer(question, bare.bounds_of(question.operators, DEFAULT_SETTINGS, NOTHING))
    assert exact is None or exact * 2.0**scale <= bound.upper * SLACK


def test_a_matrix_without_room_for_its_gram_matrix_is_still_enclosed():
    for seed in range(20):
        matrix = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed - 10)
        bound = bare.coarse(matrix)
        assert bound.lower <= torch.linalg.matrix_norm(matrix.double(), 2).item() <= bound.upper
    assert bare.coarse(torch.zeros(2, 3)).upper == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(90, 200), (200, 90), (1, 300), (130, 130)])
def test_matrices_by_columns_have_the_bounds_of_whole_ones(monkeypatch, dtype, shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = torch.linalg.matrix_norm(matrix.double(), 2).item()
    monkeypatch.setattr(matrices, "_LARGE", 10)
    monkeypatch.setattr(matrices, "_BLOCK", 2000)
    monkeypatch.setattr(matrices, "_ROWS", 32)
    operator = Dense(matrix)
    bound = matrices.bound_each([operator.matrix], [0.0], DEFAULT_SETTINGS)[0]
    assert bound.lower <= exact * SLACK
    assert exact <= bound.upper * SLACK
    assert bound.slack < 2e-3
    assert matrices.bound_each([torch.zeros(200, 90)], [0.0], DEFAULT_SETTINGS)[0].upper == 0


def test_what_stands_in_a_file_is_bounded_or_named(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "fc.weight": torch.randn(10, 20, generator=generator),
        "fc.bias": torch.randn(10, generator=generator),
        "conv.weight": torch.randn(6, 3, 3, 3, generator=generator),
        "embed_tokens.weight": torch.randn(30, 8, generator=generator),
        "pos_embed": torch.randn(1, 5, 8, generator=generator),
        "patch_embed.proj.weight": torch.randn(8, 3, 2, 2, generator=generator),
        "position_ids": torch.arange(8)[None],
        "moe.experts.up": torch.randn(2, 3, 4, generator=generator),
        "old.weight_g": torch.randn(4, 1, generator=generator),
        "old.weight_v": torch.randn(4, 3, generator=generator),
        "scale_of_all": torch.tensor(2.0),
        "nothing": torch.zeros(0, 3),
    }
    report = audit(tmp_path, tensors)
    assert [row.layer for row in report.layers] == ["conv", "fc", "patch_embed.proj"]
    named = [name for group in report.left_out for name in group.names]
    assert sorted([*named, "conv.weight", "fc.weight", "patch_embed.proj.weight"]) == sorted(tensors)
    assert not report.network.claimed
    assert report.network.log10_upper == math.inf
    exact = torch.linalg.matrix_norm(tensors["fc.weight"].double(), 2).item()
    assert rows(report)["fc"].bound.lower <= exact <= rows(report)["fc"].bound.upper
    assert rows(report)["conv"].bound.lower == 0
    assert lipcheck.Report.from_json(report.to_json()) == report
    for text in (str(report), report._repr_html_()):
        assert "claimed" in text
        assert "moe.experts.up" in text


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs)


class InFront(nn.Module):
    """Norms in front of their weights: the names are those of a norm behind."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, bias=False)


def trained(module):
    torch.manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, -2, 2)
            nn.init.uniform_(part.running_var, 0.1, 3)
    return dict(module.state_dict())


def test_batch_norms_are_folded_where_the_names_are_certain(tmp_path):
    module = nn.Sequential(Block(4, 4), Block(4, 6), nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)))
    report = audit(tmp_path, trained(module), bn_eps=1e-5)
    found = rows(report)
    pairs = {"0.conv1": "0.bn1", "0.conv2": "0.bn2", "1.conv1": "1.bn1", "1.conv2": "1.bn2", "2.0": "2.1"}
    assert {layer: row.merged_with for layer, row in found.items()} == pairs
    for layer, norm in pairs.items():
        convolution, behind = module.get_submodule(layer), module.get_submodule(norm)
        gain = behind.weight.double() / (behind.running_var.double() + behind.eps).sqrt()
        exact = applied(convolution.weight.detach().double(), 1, 1, 1, 0, (5, 5), False, gain.detach())
        assert exact <= found[layer].merged.upper


def test_batch_norms_in_front_of_their_weights_are_rows_of_their_own(tmp_path):
    module = nn.Sequential(InFront(4, 4), InFront(4, 6))
    report = audit(tmp_path, trained(module))
    assert not any(row.merged for row in report.layers)
    assert {row.layer for row in report.layers if row.kind == "batch_norm"} == {"0.bn1", "0.bn2", "1.bn1", "1.bn2"}
    # Nothing tells blocks of one width apart.
    module = nn.Sequential(InFront(4, 4), InFront(4, 4))
    assert not any(row.merged for row in audit(tmp_path, trained(module)).layers)


def test_a_batch_norm_behind_a_transposed_convolution_scales_its_own_outputs(tmp_path):
    module = nn.Sequential(nn.ConvTranspose2d(6, 4, 3), nn.BatchNorm2d(4))
    (row,) = audit(tmp_path, trained(module)).layers
    gain = (module[1].weight.double() / module[1].running_var.double().sqrt()).detach()
    exact = applied(module[0].weight.detach().double(), 1, 1, 1, 0, (5, 5), True, gain)
    assert row.merged_with == "1"
    assert exact <= row.merged.upper < exact * 1.5


def test_a_variance_of_zero_is_infinite_until_eps_is_known(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    module[1].running_var[2] = 0
    assert audit(tmp_path, module.state_dict()).layers[0].merged.upper == math.inf
    assert audit(tmp_path, module.state_dict(), bn_eps=1e-5).layers[0].merged.upper < math.inf
    nn.init.zeros_(module[1].weight)
    assert audit(tmp_path, module.state_dict()).layers[0].merged.upper < 1e-100
    nn.init.ones_(module[1].weight)
    module[1].running_var[2] = -1e-3
    assert audit(tmp_path, module.state_dict(), bn_eps=1e-5).layers[0].merged.upper == math.inf


@pytest.mark.parametrize(
    "name", ["w.qweight", "w.weight.absmax", "w.weight_scale_inv", "w.weight_packed", "w.SCB", "w.W_q", "w_blocks"]
)
def test_quantised_weights_are_named_and_refused(tmp_path, name):
    with pytest.raises(WeightsError, match="quantised") as caught:
        audit(tmp_path, {name: torch.ones(2, 2), "other.weight": torch.ones(2, 2)})
    assert name in str(caught.value)


def test_integers_as_weights_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"tensor fc\.weight is I8, a quantised weight"):
        audit(tmp_path, {"fc.weight": torch.ones(2, 2, dtype=torch.int8)})


@pytest.mark.parametrize("name", ["fc.weight", "fc.bias", "embed_tokens.weight", "bn.running_var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_nonfinite_entries_are_named_and_counted(tmp_path, name, dtype):
    tensors = {"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3), "embed_tokens.weight": torch.ones(3, 4)}
    tensors |= {"bn.running_var": torch.ones(3), "bn.running_mean": torch.ones(3)}
    tensors[name].view(-1)[:2] = math.nan
    with pytest.raises(WeightsError, match=rf"in {name} \(2 of {tensors[name].numel()} elements\)"):
        audit(tmp_path, {key: tensor.to(dtype) for key, tensor in tensors.items()})


def test_formats_are_taken_as_they_are(tmp_path):
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
        (row,) = audit(tmp_path, {"fc.weight": weight}).layers
        assert row.bound.lower <= torch.linalg.matrix_norm(weight.double(), 2).item() <= row.bound.upper


def test_options_that_ask_for_a_network_are_refused(tmp_path):
    for options in ({"domain": "box:0,1"}, {"tight": True}, {"certificate": tmp_path / "c"}, {"input_size": (3, 4)}):
        with pytest.raises(UsageError, match="is for a network"):
            audit(tmp_path, {"fc.weight": torch.ones(2, 2)}, **options)
