"""What moves, selects, resamples or samples numbers: constants and ranges on a domain, counted copies, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from draws import draws
from hypothesis import HealthCheck, Phase, given, settings
from rules.examples import EXAMPLES, Call, Example
from torch import Tensor, nn
from torch.nn import functional

from lipcheck.capture import _ASSERTIONS, _READ_FOR_SHAPE, capture
from lipcheck.compose import Factor, compose
from lipcheck.domains import Ball, Box
from lipcheck.engines.enclose import enclose
from lipcheck.errors import UsageError
from lipcheck.graph import Graph, Node
from lipcheck.operators import Linear, Operator, Separable, Unbounded
from lipcheck.propagate import propagate
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES, operator_of
from lipcheck.rules.registry import REASONS
from lipcheck.simplify import simplify
from lipcheck.testing import assert_rule_sound

aten = torch.ops.aten
OWN = ("structural", "pooling", "resampling", "special", "recurrent")
RULED = sorted((op for op, rule in DEFAULT_RULES.items() if rule.__module__.rpartition(".")[2] in OWN), key=str)


class Alone(nn.Module):
    """A call whose input has no batch axis, with one."""

    def __init__(self, example: Example) -> None:
        super().__init__()
        self.call = Call(example)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x.squeeze(0))


@pytest.mark.parametrize("op", RULED, ids=str)
def test_no_point_of_a_domain_shows_more_than_the_constant_or_leaves_the_range(op: Any) -> None:
    """Boxes and balls: what picks elements is monotone, what mixes signs is not taken for one that does not."""
    for form in EXAMPLES[op]:

        @settings(max_examples=draws(2), phases=[Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck))
        @given(form)
        def holds(example: Example) -> None:
            if not example.bounded:
                return
            call, middle = Call(example), torch.rand(example.shape)
            if example.shape[0] != 1:
                call, middle = Alone(example), middle[None]
            for domain in (Box(-1.5, 2.0), Ball(0.7, middle)):
                assert_rule_sound(call, (middle,), domain=domain, trials=6)

        holds()


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(x)
        return result


def read(function: Any, *shape: int) -> Graph:
    return capture(Function(function).eval(), torch.rand(shape), known=DEFAULT_RULES)[0]


def last(function: Any, *shape: int) -> Operator:
    """What the last node applies."""
    return operator_of(read(function, *shape).nodes[-1], DEFAULT_RULES)


def log_constant(function: Any, *shape: int) -> float:
    """The whole function's constant, without a domain."""
    graph = read(function, *shape)
    operators = [operator_of(node, DEFAULT_RULES) for node in graph.nodes]
    norms = [enclose([one])[0].upper if isinstance(one, Linear) else math.inf for one in operators]
    factors = [
        Factor(node.name, tuple(value.name for value in node.inputs), one, norm)
        for node, one, norm in zip(graph.nodes, operators, norms, strict=True)
    ]
    return compose(graph.input.name, factors, graph.output).output


@pytest.mark.parametrize(
    ("function", "shape", "copies"),
    [
        (lambda x: x.unfold(1, 3, 1), (1, 9), 3),
        (lambda x: x.unfold(1, 3, 2), (1, 9), 2),
        (lambda x: x.unfold(1, 3, 4), (1, 9), 1),
        (lambda x: functional.unfold(x, 3, padding=1), (1, 2, 5, 5), 9),
        (lambda x: functional.unfold(x, 3, dilation=2), (1, 2, 5, 5), 1),
        (lambda x: functional.unfold(x, 2, stride=2), (1, 2, 4, 4), 1),
        (lambda x: x[:, [0, 2, 0, 0]], (1, 3), 3),
        (lambda x: x[:, torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 1])], (1, 3, 2), 1),
        (lambda x: x.gather(1, torch.tensor([[0, 0, 2, 2, 2]])), (1, 3), 3),
        (lambda x: x.repeat_interleave(3, 1), (1, 3), 3),
        (lambda x: torch.zeros(1, 4, 3).copy_(x[:, None]), (1, 3), 4),
        (lambda x: x.rot90(1, [1, 2]), (1, 2, 3), 1),
    ],
)
def test_copies_are_counted(function: Any, shape: tuple[int, ...], copies: int) -> None:
    assert log_constant(function, *shape) == pytest.approx(math.log(copies) / 2, abs=1e-12)


def test_sums_of_patches_count_their_overlaps() -> None:
    for function, shape, overlaps in (
        (lambda x: functional.fold(x, 5, 3), (1, 9, 9), 9),
        (lambda x: functional.fold(x, 4, 2, stride=2), (1, 4, 4), 1),
    ):
        found = last(function, *shape)
        assert isinstance(found, Separable)
        assert found.matrices[0].shape == (1, overlaps)


def test_what_is_written_over_costs_nothing() -> None:
    def overwritten(x: Tensor) -> Tensor:
        y = x * 1000
        y[:, :] = x
        return y

    def masked(x: Tensor) -> Tensor:
        y = x * 3
        y[:, torch.tensor([True, False, True, False])] = 0.5
        return y

    def filled(x: Tensor) -> Tensor:
        y = x * 3
        y[:, 1:].fill_(0.25)
        return y

    assert log_constant(overwritten, 1, 4) == 0
    assert log_constant(masked, 1, 4) == pytest.approx(math.log(3))
    assert log_constant(filled, 1, 4) == pytest.approx(math.log(3))


def test_a_constant_in_the_shape_of_an_activation_stays_constant() -> None:
    assert log_constant(lambda x: x + torch.ones(4).type_as(x * 1000).view_as(x * 1000).expand_as(x * 1000), 1, 4) == 0


def test_side_by_side_is_the_root_of_the_squares() -> None:
    def written(x: Tensor) -> Tensor:
        y = x * 3
        y[:, :2] = x[:, 2:] * 4
        return y

    assert log_constant(written, 1, 4) == pytest.approx(math.log(5))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.gather(1, x.argmax(1, keepdim=True)), "its index depends on the input"),
        (lambda x: x[:, x.argmax(1)], "its indices depends on the input"),
        (lambda x: torch.topk(x, 2, sorted=False)[0], "no particular order"),
        (lambda x: torch.topk(x, 2)[1].float(), "these jump"),
        (lambda x: (x > 0).float(), "a comparison"),
        (lambda x: torch.as_strided(x, (2, 2), (1, 1)), "reads memory by address"),
        (lambda x: torch.histc(x, 4), "a count jumps"),
        (lambda x: torch.floor_divide(x, 2.0), "rounds a quotient down"),
    ],
)
def test_what_jumps_is_refused_with_its_reason(function: Any, reason: str) -> None:
    graph = read(function, 1, 4)
    found = [operator_of(node, DEFAULT_RULES) for node in graph.nodes]
    assert any(isinstance(one, Unbounded) and reason in one.reason for one in found), found
    assert log_constant(function, 1, 4) == math.inf


def test_an_operation_of_a_library_is_refused_by_its_name() -> None:
    def experts(x: Tensor) -> Tensor:
        raise NotImplementedError

    experts.__name__ = "transformers.grouped_mm_fallback.default"
    value = read(lambda x: x * 2, 1, 4).input
    found = operator_of(Node("experts", experts, "", {"input": value}, (1, 4)), DEFAULT_RULES)
    assert isinstance(found, Unbounded)
    assert "jumps from one expert's to the other's" in found.reason


def ranged(function: Any, domain: Range) -> Range:
    graph = read(function, *domain.shape)
    operators = [operator_of(node, DEFAULT_RULES) for node in graph.nodes]
    found = propagate(graph, simplify(graph, operators), lambda one: enclose([one])[0].upper, domain).output
    assert found is not None
    return found


def test_what_stands_twice_is_as_far_again() -> None:
    center = torch.zeros(1, 6, dtype=torch.float64)
    one = Range.unknown((1, 6)).with_ball(center, math.log(0.5), math.log(0.5))
    for dim, rows in ((1, 2.0), (0, 2.0)):
        found = ranged(lambda x, dim=dim: torch.cat([x, x], dim), one)
        assert math.exp(found.radius) >= 0.5 * math.sqrt(2)
        assert math.exp(found.rows) >= (0.5 * math.sqrt(rows) if dim == 1 else 0.5)


def test_a_view_of_what_lies_otherwise_in_memory() -> None:
    """The range's ends are expanded numbers and permuted tensors, whose layout is not the activation's."""
    domain = Range.box(torch.zeros(1, 4, 3, 3, dtype=torch.float64), torch.ones(1, 4, 3, 3, dtype=torch.float64))
    weight = torch.rand(4, 4, 1, 1)

    def function(x: Tensor) -> Tensor:
        y = functional.conv2d(x, weight).contiguous(memory_format=torch.channels_last)
        return y.permute(0, 2, 3, 1).view(1, 9, 4).sigmoid().view(1, 36)

    assert ranged(function, domain).largest <= 1.0 + 1e-8


SAMPLING = [
    (mode, padding, aligned)
    for mode in ("bilinear", "nearest")
    for padding in ("zeros", "border", "reflection")
    for aligned in (False, True)
]


@pytest.mark.parametrize(("mode", "padding", "aligned"), SAMPLING)
def test_samples_at_places_that_depend_on_the_input(mode: str, padding: str, aligned: bool) -> None:
    """Of a given image, and of one that moves as well: both constants, and the samples' range."""
    torch.manual_seed(0)
    for size, places in (((2, 3), (1, 2)), ((1, 2, 2), (1, 1, 1))):
        image, grid = torch.randn(1, 2, *size), torch.randn(1, *places, len(size))

        def sampled(x: Tensor, g: Tensor) -> Tensor:
            return functional.grid_sample(x, g, mode=mode, padding_mode=padding, align_corners=aligned)

        if mode == "nearest":
            with pytest.raises(UsageError, match="nearest pixel changes at once"):
                assert_rule_sound(sampled, (image, grid), activations=(0, 1), domain=(-1.0, 2.0))
            assert_rule_sound(sampled, (image, grid), activations=(0,), domain=(-1.0, 2.0), trials=10)
            continue
        for domain in ((-1.0, 2.0), (0.5, 1.0)):
            assert_rule_sound(sampled, (image, grid), activations=(0, 1), domain=[domain, (-1.2, 1.2)], trials=10)
        assert_rule_sound(sampled, (image, grid), activations=(1,), domain=(-1.2, 1.2), trials=10)
        with pytest.raises(UsageError, match="needs a bounded range of the image"):
            assert_rule_sound(sampled, (image, grid), activations=(0, 1))


def test_the_constants_of_samples_are_attained() -> None:
    """All places one pixel: the root of their number. One place between two far pixels: their difference, in units."""
    attack = assert_rule_sound(
        lambda x: functional.grid_sample(x, torch.zeros(1, 2, 3, 2), align_corners=True),
        (torch.rand(1, 1, 3, 3),),
        trials=20,
    )
    assert attack.claimed == pytest.approx(math.sqrt(6), rel=1e-5)
    image = torch.tensor([[[[0.0, 1.0]]]])
    attack = assert_rule_sound(
        lambda g: functional.grid_sample(image, g, align_corners=True, padding_mode="border"),
        (torch.rand(1, 1, 1, 2),),
        domain=(-1.0, 1.0),
        trials=20,
    )
    assert attack.claimed == pytest.approx(0.5)
    assert attack.found == pytest.approx(0.5, rel=1e-3)


def test_a_large_constant_grid_has_the_schur_bound() -> None:
    grid = torch.rand(2, 3, 5, 2) * 2 - 1
    images = torch.rand(1, 2, 1, 4, 4)
    attack = assert_rule_sound(lambda x: functional.grid_sample(x[0], grid, align_corners=False), (images,), trials=20)
    assert attack.claimed <= 4 * attack.found


# Every operation of the survey, as it is captured (shared/data/graph-survey.json).
SURVEYED = """
_assert_tensor_metadata.default _native_batch_norm_legit_no_training.default _to_copy.default _unsafe_view.default
adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default adaptive_max_pool2d.default
add.Tensor addcmul.default addmm.default alias.default amax.default avg_pool1d.default avg_pool2d.default
avg_pool3d.default bmm.default cat.default clamp.Tensor clamp_min.default clone.default col2im.default conv1d.default
conv2d.default conv2d.padding conv3d.default conv_transpose2d.input copy.default cumsum.default detach.default
div.Tensor einsum.default empty_like.default eq.Scalar exp.default expand.default fill.Scalar floor_divide.default
gather.default gelu.default getitem grid_sampler.default group_norm.default hardsigmoid.default hardswish.default
hardtanh.default histc.default im2col.default index.Tensor index_put.default instance_norm.default layer_norm.default
leaky_relu.default linalg_vector_norm.default linear.default lstm.input masked_fill.Scalar matmul.default max.dim
max_pool2d.default max_pool3d.default mean.dim mul.Tensor ne.Scalar neg.default new_zeros.default pad.default
permute.default pow.Tensor_Scalar relu.default repeat_interleave.self_int rms_norm.default roll.default rsqrt.default
rsub.Scalar scaled_dot_product_attention.default select.int sigmoid.default silu.default slice.Tensor
slice_scatter.default softmax.int softplus.default sort.default split.Tensor split_with_sizes.default square.default
squeeze.dim stack.default sub.Tensor sum.dim_IntList tanh.default topk.default
transformers.grouped_mm_fallback.default transpose.int type_as.default unbind.int unfold.default unsqueeze.default
upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_nearest2d.vec var.dim view.default
""".split()  # noqa: SIM905
# What makes no node of a graph.
NO_NODE = {*_ASSERTIONS, *(op for op, name in _READ_FOR_SHAPE.items() if name == "self")}


def test_every_operation_of_the_survey_has_a_rule_or_a_reason() -> None:
    """Some others return nothing or read a shape alone; of a library's, the reason goes by the name."""
    known = {str(op) for op in DEFAULT_RULES} | {str(op) for op in NO_NODE} | set(REASONS) | {"aten.getitem"}
    assert [name for name in SURVEYED if f"aten.{name}" not in known and name not in known] == []
