"""lipcheck.spectral_norm against dense SVDs of what torch's own modules compute, and its one-line errors."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import reference
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import lipcheck
from lipcheck import spectral_norm
from lipcheck.bound import Bound
from lipcheck.errors import LipcheckError, UsageError, WeightsError
from lipcheck.methods import METHODS
from lipcheck.operators import Diagonal, LinearMap
from lipcheck.proof import CopiesProof, ProductProof

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MODES = ("zeros", "circular", "reflect", "replicate")

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 with noise for parameters, a bias included."""
    module = module.double()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = noise(*parameter.shape, seed=seed + number)
    return module


def dense(module: nn.Module, channels: int, size: tuple[int, ...]) -> Tensor:
    return reference.jacobian_of(module, (channels, *size))


def assert_exact(bound: Bound, matrix: Tensor, ratio: float = 1 + 1e-5) -> None:
    reference.assert_encloses(bound, matrix)
    assert bound.kind == "certified"
    assert bound.upper <= bound.lower * ratio


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, int, tuple[int, ...]]:
    """Any convolution that torch.nn can describe, its input channels and an input size that it takes."""
    axes = draw(st.sampled_from((1, 1, 2, 2, 3)))
    longest, largest = {1: (5, 12), 2: (4, 6), 3: (3, 3)}[axes]
    groups = draw(st.sampled_from((1, 1, 2)))
    inputs, outputs = (groups * draw(st.integers(1, 2)) for _ in range(2))
    kernel = tuple(draw(st.integers(1, longest)) for _ in range(axes))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    size = tuple(draw(st.integers(1, largest)) for _ in range(axes))
    span = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    seed = draw(st.integers(0, 2**31))
    if draw(st.booleans()) and axes < 3:
        padding = tuple(draw(st.integers(0, min(2, x // 2))) for x in span)
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        module = TRANSPOSED[axes - 1](inputs, outputs, kernel, stride, padding, extra, groups, True, dilation)
        return filled(module, seed), inputs, size
    mode = draw(st.sampled_from(MODES))
    if draw(st.booleans()):
        if mode != "zeros":
            size = tuple(max(n, x) + 1 for n, x in zip(size, span, strict=True))
        same = CONVOLUTIONS[axes - 1](inputs, outputs, kernel, 1, "same", dilation, groups, True, mode)
        return filled(same, seed), inputs, size
    padding = tuple(draw(st.integers(0, 3)) for _ in range(axes))
    size = tuple(max(n, x + 1 - 2 * p, p + 1) for n, x, p in zip(size, span, padding, strict=True))
    module = CONVOLUTIONS[axes - 1](inputs, outputs, kernel, stride, padding, dilation, groups, True, mode)
    return filled(module, seed), inputs, size


# Modules and weights against the dense matrix


@settings(max_examples=draws(150))
@given(layers())
def test_a_module_has_the_norm_of_the_matrix_it_applies(layer: tuple[nn.Module, int, tuple[int, ...]]) -> None:
    module, channels, size = layer
    assert_exact(spectral_norm(module, input_size=size), dense(module, channels, size))


@settings(max_examples=draws(50))
@given(layers())
def test_a_weight_with_the_modules_arguments_has_the_same_bound(
    layer: tuple[nn.Module, int, tuple[int, ...]],
) -> None:
    module, _, size = layer
    names = ("stride", "padding", "padding_mode", "dilation", "groups", "output_padding", "transposed")
    given = {name: getattr(module, name) for name in names}
    assert spectral_norm(module.weight, input_size=size, **given) == spectral_norm(module, input_size=size)


@settings(max_examples=draws(50))
@given(layers())
def test_the_bound_of_every_size_is_above_that_of_any_size(layer: tuple[nn.Module, int, tuple[int, ...]]) -> None:
    module, channels, size = layer
    if module.padding_mode == "circular" and max(module.stride) > 1:
        return
    if module.padding_mode == "circular" and isinstance(module.padding, tuple):
        span = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(2 * p > x for p, x in zip(module.padding, span, strict=True)):
            return
    bound = spectral_norm(module, tolerance=1e-2)
    matrix = dense(module, channels, size)
    assert reference.norm(matrix) <= bound.upper * reference.slack(matrix)


def test_the_lower_end_of_every_size_is_approached_by_large_inputs() -> None:
    weight = noise(2, 2, 3)
    for mode in MODES:
        bound = spectral_norm(weight, padding=1, padding_mode=mode)
        large = spectral_norm(weight, padding=1, padding_mode=mode, input_size=300)
        assert large.upper >= bound.lower * (1 - 1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (4, 1), (4, 2), ((2, 3), (3, 1))])
def test_same_padding_with_even_kernels(mode: str, kernel: Any, dilation: Any) -> None:
    module = filled(nn.Conv2d(2, 3, kernel, padding="same", dilation=dilation, padding_mode=mode))
    for size in ((7, 7), (8, 9)):
        assert_exact(spectral_norm(module, input_size=size), dense(module, 2, size))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pairs", [((1, 0), (0, 2)), ((2, 1), (1, 1)), ((0, 0), (3, 0))])
@pytest.mark.parametrize("stride", [1, 2])
def test_lopsided_padding(mode: str, pairs: tuple[tuple[int, int], ...], stride: int) -> None:
    weight, size = noise(2, 3, 3, 3), (5, 6)

    class Lopsided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            (top, bottom), (left, right) = pairs
            padded = functional.pad(x, (left, right, top, bottom), "constant" if mode == "zeros" else mode)
            return functional.conv2d(padded, weight, stride=stride)

    bound = spectral_norm(weight, input_size=size, padding=pairs, padding_mode=mode, stride=stride)
    assert_exact(bound, dense(Lopsided(), 3, size))


def test_lopsided_padding_of_a_transposed_convolution_crops_its_output() -> None:
    weight = noise(2, 3, 4)

    class Cropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv_transpose1d(x, weight, stride=2)[:, :, 1:-2]

    bound = spectral_norm(weight, input_size=5, padding=((1, 2),), stride=2, transposed=True)
    assert_exact(bound, dense(Cropped(), 2, (5,)))


@pytest.mark.parametrize(("groups", "channels"), [(4, 4), (4, 8), (2, 4)])
@pytest.mark.parametrize("module", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_and_depthwise(module: Any, groups: int, channels: int) -> None:
    layer = filled(module(4, channels, 3, padding=1, stride=2, groups=groups))
    assert_exact(spectral_norm(layer, input_size=(5, 4)), dense(layer, 4, (5, 4)))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_inputs_smaller_than_the_kernel_and_single_pixels(size: int) -> None:
    layer = filled(nn.Conv2d(2, 2, 5, padding=2))
    assert_exact(spectral_norm(layer, input_size=size), dense(layer, 2, (size, size)))
    whole = filled(nn.Conv2d(2, 3, size))
    assert_exact(spectral_norm(whole, input_size=size), dense(whole, 2, (size, size)))


@pytest.mark.parametrize("size", [6, 7, 9, 20])
def test_large_inputs_take_the_embedding_and_agree_with_it(size: int) -> None:
    layer = filled(nn.Conv2d(3, 4, 3, padding=1))
    infinite, finite = spectral_norm(layer), spectral_norm(layer, input_size=size)
    assert finite.lower <= infinite.upper
    assert finite.upper <= infinite.upper * (1 + 1e-3)


def test_the_high_pass_kernel_is_no_smaller_than_an_odd_circular_grid_says() -> None:
    """A circular grid of an odd number of points has none at pi, where this kernel peaks: it bounds nothing here."""
    weight = torch.tensor([1.0, -1.0, 1.0]).reshape(1, 1, 3)
    circular = spectral_norm(weight, input_size=7, padding=1, padding_mode="circular")
    zeros = spectral_norm(weight, input_size=7, padding=1)
    assert circular.upper < zeros.lower
    truth = 1 + 2 * math.cos(math.pi / 8)
    assert zeros.lower <= truth * (1 + 1e-15)
    assert truth <= zeros.upper * (1 + 1e-15)


def test_reflect_padding_amplifies_the_box_above_its_symbol() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect", bias=False).double()
    layer.weight.data.fill_(1.0)
    found = {size: spectral_norm(layer, input_size=size) for size in (6, 7, 8)}
    for size, bound in found.items():
        assert_exact(bound, dense(layer, 1, (size, size)))
    assert found[7].upper == pytest.approx(9.60, abs=0.02)
    assert spectral_norm(layer).lower <= 9 <= spectral_norm(layer, padding_mode="zeros").upper


# Without an input size


def test_copies_of_every_size_count_each_side() -> None:
    weight = torch.ones(1, 1, 3)
    for mode, copies in (("reflect", 3), ("replicate", 3)):
        bound = spectral_norm(weight, padding=1, padding_mode=mode)
        assert bound.method.endswith(f"√{copies} copies")
        assert isinstance(bound.proof, ProductProof)
        assert bound.proof.parts[1] == CopiesProof(copies)
    # Three inputs reflected by one: the middle one stands thrice; one input replicated by three.
    for mode, size, padding in (("reflect", 3, 1), ("replicate", 1, 3)):
        shape = spectral_norm(torch.ones(1, 1, 1), padding=padding, padding_mode=mode, input_size=size)
        every = spectral_norm(torch.ones(1, 1, 1), padding=padding, padding_mode=mode)
        assert shape.upper == pytest.approx(every.upper, rel=1e-5)


def test_circular_padding_wider_than_the_kernel_copies_outputs() -> None:
    weight = torch.ones(1, 1, 1)
    assert spectral_norm(weight, padding=2, padding_mode="circular", input_size=4).lower >= 1.41
    with pytest.raises(UsageError, match="wider than the kernel, needs input_size"):
        spectral_norm(weight, padding=2, padding_mode="circular")


def test_a_strided_circular_convolution_can_exceed_its_symbol() -> None:
    """Where the stride does not divide the input, the last window and the first lie closer than a stride."""
    weight = torch.ones(1, 1, 3)
    odd = spectral_norm(weight, padding=1, padding_mode="circular", stride=2, input_size=5)
    assert odd.lower > spectral_norm(weight, stride=2).upper
    with pytest.raises(UsageError, match="circular padding with a stride"):
        spectral_norm(weight, padding=1, padding_mode="circular", stride=2)


# Matrices, formats, operators


@pytest.mark.parametrize("as_array", [False, True])
def test_a_matrix_has_its_largest_singular_value(as_array: bool) -> None:
    matrix = noise(5, 7)
    assert_exact(spectral_norm(matrix.numpy() if as_array else matrix), matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_formats_are_exact(dtype: torch.dtype) -> None:
    weight = noise(3, 2, 3).to(dtype)
    assert spectral_norm(weight, input_size=5) == spectral_norm(weight.double(), input_size=5)
    assert spectral_norm(weight) == spectral_norm(weight.double())


def test_arrays_of_either_byte_order_that_cannot_be_written() -> None:
    matrix = noise(3, 4).numpy()
    swapped = matrix.astype(">f8")
    swapped.setflags(write=False)
    assert spectral_norm(swapped) == spectral_norm(matrix)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales(scale: float) -> None:
    layer = filled(nn.Conv1d(2, 3, 3, padding=1, bias=False))
    layer.weight.data *= scale
    assert_exact(spectral_norm(layer, input_size=6), dense(layer, 2, (6,)))
    every = spectral_norm(layer)
    assert 0 < every.lower <= every.upper <= every.lower * 1.01


def test_zero_weights() -> None:
    assert spectral_norm(torch.zeros(2, 2, 3), input_size=4).upper == 0
    assert spectral_norm(torch.zeros(2, 2, 3)).upper == 0


def test_operators_are_taken_as_they_are() -> None:
    assert spectral_norm(Diagonal(torch.tensor([1.0, -3.0]))).upper == 3
    matrix = noise(4, 3)
    bound = spectral_norm(LinearMap(lambda x: x @ matrix.T.to(x), lambda y: y @ matrix.to(y), (3,), (4,)))
    assert bound.kind == "probabilistic"
    assert bound.lower <= reference.norm(matrix) * (1 + 1e-12) <= bound.upper * (1 + 2e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_by_its_name(method: str) -> None:
    layer = filled(nn.Conv2d(2, 2, 3, padding=1))
    truth = reference.norm(dense(layer, 2, (5, 5)))
    bound = spectral_norm(layer, input_size=5, method=method)
    assert bound.upper >= truth or bound.kind == "estimate"
    assert 0 <= bound.lower <= truth * (1 + 1e-9)


def test_random_starts_bound_matrices_too() -> None:
    matrix = noise(9, 6)
    bound = spectral_norm(matrix, method="randomised")
    assert bound.kind == "probabilistic"
    assert bound.lower <= reference.norm(matrix) * (1 + 1e-9) <= bound.upper * (1 + 2e-9)


def test_tight_narrows_the_slack_of_small_inputs() -> None:
    layer = filled(nn.Conv2d(24, 24, 3, padding=1))
    plain, tight = (spectral_norm(layer, input_size=12, tight=tight) for tight in (False, True))
    assert tight.upper <= plain.upper
    assert tight.slack <= 1e-3


# Modules as they are found


def test_linear_and_its_bias() -> None:
    layer = filled(nn.Linear(4, 3))
    assert_exact(spectral_norm(layer), layer.weight.detach())


def test_weights_behind_parametrizations() -> None:
    scaled = parametrizations.weight_norm(filled(nn.Conv1d(2, 3, 3, padding=1)))
    assert_exact(spectral_norm(scaled, input_size=5), dense(scaled, 2, (5,)))
    orthogonal = parametrizations.orthogonal(nn.Linear(4, 4).double())
    assert spectral_norm(orthogonal).upper == pytest.approx(1.0, abs=1e-5)


def test_spectral_normalisation_is_read_in_evaluation_and_left_alone() -> None:
    layer = parametrizations.spectral_norm(filled(nn.Conv2d(2, 3, 3, padding=1)))
    layer.train()
    before = copy.deepcopy(layer.state_dict())
    modes = [part.training for part in layer.modules()]
    bound = spectral_norm(layer, input_size=4)
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    assert [part.training for part in layer.modules()] == modes
    assert_exact(bound, dense(layer.eval(), 2, (4, 4)))


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_older_hooks_apply_to_the_parameters_as_they_are_now(wrap: Any) -> None:
    """The attribute `weight` is what the last call left; the parameters may have been loaded since."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = wrap(filled(nn.Conv1d(2, 2, 3, padding=1)))
    for parameter in layer.parameters():
        parameter.data *= 3
    layer.eval()
    bound = spectral_norm(layer, input_size=4)
    assert_exact(bound, dense(layer, 2, (4,)))


def test_pruned_weights() -> None:
    layer = filled(nn.Conv1d(2, 2, 3, padding=1))
    prune.l1_unstructured(layer, "weight", amount=0.5)
    layer.weight_orig.data *= 2
    assert_exact(spectral_norm(layer, input_size=4), dense(layer, 2, (4,)))


def test_a_module_is_left_as_it_was_found() -> None:
    layer = filled(nn.Conv1d(2, 2, 3)).train()
    weight, version = layer.weight.clone(), layer.weight._version
    spectral_norm(layer, input_size=5)
    assert layer.training
    assert torch.equal(layer.weight, weight)
    assert layer.weight._version == version
    assert layer.weight.grad is None


def test_lazy_modules_once_they_know_their_shape() -> None:
    layer = nn.LazyConv1d(2, 3)
    with pytest.raises(UsageError, match="LazyConv1d is uninitialised: call it on an input first"):
        spectral_norm(layer)
    layer(torch.zeros(1, 4, 5))
    assert spectral_norm(layer, input_size=5).upper > 0


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight / self.weight.norm())


class TwoWays(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, 2 * weight, bias)


# Errors

WEIGHT = torch.ones(4, 2, 3, 3)


@pytest.mark.parametrize(
    ("weight", "arguments", "message"),
    [
        (WEIGHT, {"stride": -1}, "stride is -1; give one whole number or 2, one per axis, of at least 1"),
        (WEIGHT, {"stride": 0}, "stride is 0"),
        (WEIGHT, {"stride": True}, "stride is True"),
        (WEIGHT, {"stride": (1, 2, 3)}, r"stride is \(1, 2, 3\)"),
        (WEIGHT, {"dilation": 1.5}, "dilation is 1.5"),
        (WEIGHT, {"padding": -1}, r"padding is -1; .*of at least 0, or a \(left, right\) pair for each"),
        (WEIGHT, {"padding": "full"}, "padding is 'full'; give same, valid or numbers"),
        (WEIGHT, {"padding": "same", "stride": 2}, "padding 'same' has no meaning with stride 2×2"),
        (WEIGHT, {"padding": "same", "transposed": True}, "padding is 'same'; give numbers"),
        (WEIGHT, {"padding_mode": "reflection"}, "no padding_mode 'reflection'; did you mean reflect"),
        (WEIGHT, {"padding_mode": "x"}, "choose from zeros, circular, reflect, replicate"),
        (WEIGHT, {"padding_mode": "reflect", "transposed": True}, "only zeros"),
        (WEIGHT, {"padding": 4, "padding_mode": "reflect", "input_size": 4}, "too wide for 4 inputs: at most 3"),
        (WEIGHT, {"padding": 5, "padding_mode": "circular", "input_size": 4}, "too wide for 4 inputs: at most 4"),
        (WEIGHT, {"groups": 3}, "groups is 3, which does not divide the 4 outputs"),
        (WEIGHT, {"groups": 0}, "groups is 0"),
        (WEIGHT, {"transposed": 1}, "transposed is 1; give True or False"),
        (WEIGHT, {"output_padding": 1}, "output_padding is for transposed convolutions"),
        (WEIGHT, {"output_padding": 1, "transposed": True}, "must be below the stride"),
        (WEIGHT, {"input_size": 2}, "an input of 2×2 with padding 0×0 is smaller than the kernel 3×3 .* no output"),
        (WEIGHT, {"input_size": 1, "padding": 2, "transposed": True}, "leaves nothing of the output"),
        (WEIGHT, {"input_size": 0}, "input_size is 0"),
        (WEIGHT, {"input_size": (4, 4, 4)}, "input_size is .*one whole number or 2, one per axis"),
        (WEIGHT, {"input_size": "4x4"}, "input_size is '4x4'"),
        (WEIGHT, {"method": "certifed"}, "no method called 'certifed'; did you mean certified?"),
        (WEIGHT, {"method": "finite"}, "finite says nothing of this convolution without an input size; it needs"),
        (WEIGHT, {"tolerance": 0}, "tolerance is 0; give a positive number"),
        (WEIGHT, {"tolerance": math.nan}, "tolerance is nan"),
        (WEIGHT, {"memory": 0}, "memory is 0"),
        (WEIGHT, {"time_budget": -1}, "time_budget is -1"),
        (WEIGHT, {"device": "tpu"}, "device 'tpu' is not known to torch"),
        (WEIGHT, {"device": "meta"}, "no float64 arithmetic that lipcheck trusts"),
        (torch.ones(3), {}, "the weight has 1 axes"),
        (torch.ones(1, 1, 1, 1, 1, 1), {}, "the weight has 6 axes"),
        (torch.ones(2, 2), {"stride": 2}, "a matrix takes no stride"),
        (torch.ones(2, 2), {"input_size": 2}, "a matrix takes no input_size"),
        ([[1.0]], {}, "list is no weight; give a tensor"),
        (nn.Linear(2, 2), {"input_size": 3}, "a matrix takes no input_size"),
        (nn.Conv1d(2, 2, 3), {"stride": 2}, "Conv1d brings its own stride; leave it out"),
        (nn.Sequential(nn.Conv1d(1, 1, 1)), {}, "Sequential is no convolution or Linear; .*lipcheck.check"),
        (Standardised(1, 1, 1), {}, "Standardised computes its forward in its own way"),
        (TwoWays(1, 1, 1), {}, "TwoWays computes its _conv_forward in its own way"),
        (Diagonal(torch.ones(1)), {"groups": 2}, "a Diagonal takes no groups"),
    ],
)
def test_arguments_that_mean_nothing(weight: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        spectral_norm(weight, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([[1.0, math.nan]]), "the weight has entries that are not finite"),
        (torch.full((1, 1, 3), math.inf), "not finite"),
        (torch.ones(2, 2, dtype=torch.int64), "the weight is int64; convert it to its real values first"),
        (np.ones((2, 2), dtype=np.int8), "the weight is int8"),
        (torch.ones(2, 2, dtype=torch.complex64), "the weight is complex; only real weights"),
        (torch.ones(2, 0, 3), "the weight is empty: 2×0×3"),
        (torch.ones(2, 2, device="meta"), "on the meta device"),
        (torch.eye(2).to_sparse(), "sparse or quantised"),
        (np.array([["a"]]), "numpy array of"),
        (np.ones((1, 1), dtype=np.longdouble), "wider than float64"),
    ],
)
def test_weights_without_a_norm(weight: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        spectral_norm(weight)
    assert "\n" not in str(caught.value)


def test_a_hook_that_may_change_the_weight_is_refused() -> None:
    layer = nn.Conv1d(1, 1, 1)
    layer.register_forward_pre_hook(lambda module, arguments: None)
    with pytest.raises(UsageError, match="has a hook that runs before it"):
        spectral_norm(layer)


def test_a_forward_of_the_instance_is_refused() -> None:
    layer = nn.Conv1d(1, 1, 1)
    layer.forward = lambda x: 2 * x  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="computes its forward in its own way"):
        spectral_norm(layer)


def test_sizes_may_be_one_for_all_axes_or_one_each_in_any_sequence() -> None:
    weight = noise(2, 2, 3, 3)
    expected = spectral_norm(weight, input_size=5)
    for size in ((5, 5), [5, 5], torch.Size([5, 5]), np.int64(5), (5,)):
        assert spectral_norm(weight, input_size=size) == expected


def test_the_function_is_public() -> None:
    assert "spectral_norm" in lipcheck.__all__
    assert issubclass(UsageError, LipcheckError)
