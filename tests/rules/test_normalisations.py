"""Normalisations, norms and softmax against what their derivatives and values show, on ranges and anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from draws import draws
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rules.ascent import Function, assert_holds, ball, box, boxed_ball, largest_jacobian, ranges_of
from rules.test_products import assert_bounded_on, captured, constant_on
from torch import Tensor, nn
from torch.nn import functional

from lipcheck.graph import Node, Value
from lipcheck.maps import normalisations
from lipcheck.maps.normalisations import (
    Average,
    Groups,
    LongNorm,
    Moment,
    Response,
    Softmax,
    Standardisation,
    least_spread,
)
from lipcheck.operators import Diagonal, Operator, Unbounded
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES, operator_of

aten = torch.ops.aten
X = (1, 4, 2, 3)
WIDTHS = ((0.0, 0.0), (0.02, 0.0), (0.5, 2.0), (4.0, 0.0))
EPS = 1e-3


def rows(eps: float = EPS, **more: object) -> Standardisation:
    groups = Groups.along((2, 5), (-1,))
    return Standardisation("norm", groups, (2, 5), "root", 1 / 5, eps, **more)  # type: ignore[arg-type]


GAIN, SHIFT = torch.tensor([2.0, -0.5, 0.1, 1.0, -3.0]), torch.tensor([1.0, -2.0, 0.0, 5.0, 0.3])
CHANNEL = torch.tensor([2.0, -0.5, 0.1, 1.0]).reshape(4, 1, 1)


def by(groups: Groups, shape: Sequence[int], kind: str, share: float, eps: float, **more: object) -> Standardisation:
    return Standardisation("norm", groups, tuple(shape), kind, share, eps, **more)  # type: ignore[arg-type]


def unit(x: Tensor, eps: float) -> Tensor:
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + eps)


def simple(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.var(-1, keepdim=True) + EPS)


LAST = Groups.along((2, 5), (-1,))
FIRST = Groups.along(X, (1,))
UNCENTRED = {"centred": False, "about_mean": False}
MAPS: dict[str, tuple[Standardisation, Function]] = {
    "layer": (
        rows(gain=GAIN, shift=SHIFT),
        lambda x: functional.layer_norm(x, (5,), GAIN.double(), SHIFT.double(), EPS),
    ),
    "rms": (rows(gain=GAIN, **UNCENTRED), lambda x: functional.rms_norm(x, (5,), GAIN.double(), EPS)),
    "unit, at least": (by(LAST, (2, 5), "largest", 1.0, 0.3, **UNCENTRED), lambda x: functional.normalize(x, eps=0.3)),
    "unit, sum": (by(LAST, (2, 5), "sum", 1.0, 0.3, **UNCENTRED), lambda x: unit(x, 0.3)),
    "deviation": (
        by(LAST, (2, 5), "sum", 1 / 4, 0.3),
        lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.3),
    ),
    "mean left in": (by(LAST, (2, 5), "root", 1 / 4, EPS, centred=False), simple),
    "mean left in, sum": (
        by(LAST, (2, 5), "sum", 1 / 4, 0.3, centred=False),
        lambda x: x / (x.std(-1, keepdim=True) + 0.3),
    ),
    "mean off, norm about zero": (
        by(LAST, (2, 5), "root", 1 / 5, EPS, about_mean=False),
        lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS),
    ),
    "channels first": (
        by(FIRST, X, "root", 1 / 4, EPS, gain=CHANNEL, shift=CHANNEL * 3),
        lambda x: functional.layer_norm(x.movedim(1, -1), (4,), None, None, EPS).movedim(-1, 1) * CHANNEL + CHANNEL * 3,
    ),
    "group": (
        by(Groups((1, 2, 12), (2,)), X, "root", 1 / 12, EPS, gain=CHANNEL, shift=CHANNEL),
        lambda x: functional.group_norm(x, 2, CHANNEL.flatten().double(), CHANNEL.flatten().double(), EPS),
    ),
    "instance": (by(Groups((1, 4, 6), (2,)), X, "root", 1 / 6, EPS), lambda x: functional.instance_norm(x, eps=EPS)),
    "rows in a group": (
        by(Groups((1, 2, 2), (2,)), (1, 4), "root", 1 / 2, EPS),
        lambda x: functional.group_norm(x, 2, eps=EPS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("width", "shift"), WIDTHS)
def test_norms_on_ranges(name: str, width: float, shift: float) -> None:
    mapping, function = MAPS[name]
    for one in ranges_of(1, mapping.shape, width, shift):
        (share,) = assert_holds(mapping, function, [one])
        if width == 0 and "left in" not in name and not name.startswith("rows in"):
            # At a point: J has norm |gain| / s but for what the norm itself takes off.
            assert share > 0.2
        value = mapping.value([one.center if one.center is not None else one.low])
        expected = function(one.center if one.center is not None else one.low)
        assert value is not None
        assert torch.allclose(value, expected, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in MAPS if "left in" not in name])
def test_norms_anywhere(name: str) -> None:
    mapping, function = MAPS[name]
    (share,) = assert_holds(mapping, function, [box(torch.full(mapping.shape, -1e-5), torch.full(mapping.shape, 1e-5))])
    wide = [box(torch.full(mapping.shape, -50.0), torch.full(mapping.shape, 50.0))]
    assert_holds(mapping, function, wide)
    assert share > 0.3 or name == "rows in a group"
    # The constant of the whole space is that of the neighbourhood of zero, and any shape stands for unknown.
    anywhere = mapping.slopes([Range.unknown(())])[0]
    assert anywhere == mapping.slopes([Range.unknown(mapping.shape)])[0]
    assert anywhere >= mapping.slopes(wide)[0] - 1e-6
    image = mapping.image([Range.unknown(mapping.shape)], mapping.shape)
    assert image.bounded
    assert image.radius < math.inf


def test_a_norm_that_leaves_the_mean_in_needs_a_range() -> None:
    mapping, _ = MAPS["mean left in"]
    assert mapping.slopes([Range.unknown((2, 5))]) == (math.inf,)
    assert "--domain" in mapping.unbounded_because([Range.unknown((2, 5))])
    assert mapping.unbounded_because([ball(torch.zeros(2, 5), 1.0)]) == ""


def test_without_eps_a_norm_needs_a_range_away_from_zero() -> None:
    mapping = rows(0.0)
    constant = box(torch.zeros(2, 5), torch.ones(2, 5))
    assert mapping.slopes([constant]) == (math.inf,)
    assert "eps" in mapping.unbounded_because([constant])
    apart = boxed_ball(GAIN.expand(2, 5) - 0.1, GAIN.expand(2, 5) + 0.1)
    assert mapping.unbounded_because([apart]) == ""
    assert_holds(mapping, lambda x: functional.layer_norm(x, (5,), eps=0.0), [apart])


@settings(
    max_examples=draws(60), phases=[Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
)
@given(
    seed=st.integers(0, 2**32 - 1),
    d=st.integers(1, 7),
    width=st.sampled_from([0.0, 1e-9, 0.3, 3.0, 1e5]),
    shift=st.sampled_from([0.0, 1e6, -1e9]),
)
def test_the_least_variance_of_a_box(seed: int, d: int, width: float, shift: float) -> None:
    noise = torch.Generator().manual_seed(seed)
    center = torch.randn(3, d, generator=noise, dtype=torch.float64) + shift
    half = width * torch.rand(3, d, generator=noise, dtype=torch.float64)
    low, high = center - half, center + half
    found = least_spread(low, high)
    # The exact minimum, by trying every end as the number that x is compared with, and the means in between.
    ends = torch.cat([low, high], 1).sort(1).values
    least = torch.full((3,), math.inf, dtype=torch.float64)
    for group in range(3):
        for t in [*ends[group], *torch.linspace(float(ends[group, 0]), float(ends[group, -1]), 400)]:
            nearest = torch.full((d,), float(t), dtype=torch.float64).clamp(low[group], high[group])
            least[group] = min(float(least[group]), float((nearest - nearest.mean()).norm()))
    assert bool((found <= least + 1e-12 * abs(shift)).all())
    scale = float(half.max()) + 1
    assert bool((found >= least * 0.9 - 0.02 * scale).all())


def test_the_least_variance_with_open_ends() -> None:
    low, high = torch.tensor([[-math.inf, 0.0, 5.0]]), torch.tensor([[0.0, 1.0, math.inf]])
    found = float(least_spread(low.double(), high.double()))
    assert 0 < found <= float((torch.tensor([0.0, 1.0, 5.0]) - 2).norm())
    assert float(least_spread(low.double(), torch.full((1, 3), math.inf, dtype=torch.float64))) == 0


MOMENTS: dict[str, tuple[Moment | LongNorm | Average, Function]] = {
    "norm": (Moment(LAST, 1.0, centred=False, squared=False), lambda x: torch.linalg.vector_norm(x, dim=-1)),
    "std": (Moment(LAST, 1 / 4, centred=True, squared=False), lambda x: x.std(-1)),
    "var": (Moment(LAST, 1 / 4, centred=True, squared=True), lambda x: x.var(-1)),
    "biased var": (Moment(LAST, 1 / 5, centred=True, squared=True), lambda x: x.var(-1, correction=0)),
    "sum of absolute values": (LongNorm(LAST, 1.0), lambda x: torch.linalg.vector_norm(x, 1, dim=-1)),
    "largest": (LongNorm(LAST, math.inf), lambda x: torch.linalg.vector_norm(x, math.inf, dim=-1)),
    "three": (LongNorm(LAST, 3.0), lambda x: torch.linalg.vector_norm(x, 3, dim=-1)),
    "one and a half": (LongNorm(LAST, 1.5), lambda x: torch.linalg.vector_norm(x, 1.5, dim=-1)),
    "mean": (Average(LAST), lambda x: x.mean(-1)),
}  # fmt: skip


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize(("width", "shift"), WIDTHS)
def test_norms_and_variances(name: str, width: float, shift: float) -> None:
    mapping, function = MOMENTS[name]
    best = 0.0
    for one in ranges_of(2, (2, 5), width, shift):
        best = max(best, *assert_holds(mapping, function, [one]))
    assert best > 0.5


SOFTMAXES: dict[str, tuple[Softmax, Function]] = {
    "softmax": (Softmax(LAST, "softmax"), lambda x: x.softmax(-1)),
    "over channels": (Softmax(Groups.along((2, 5), (0,)), "softmax"), lambda x: x.softmax(0)),
    "log": (Softmax(LAST, "log"), lambda x: x.log_softmax(-1)),
    "sum": (Softmax(LAST, "sum"), lambda x: x.logsumexp(-1)),
    "sum of all": (Softmax(Groups.along((2, 5), None), "sum"), lambda x: x.logsumexp((0, 1), keepdim=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize(("width", "shift"), [*WIDTHS, (60.0, 0.0), (0.5, 1e4)])
def test_softmax(name: str, width: float, shift: float) -> None:
    mapping, function = SOFTMAXES[name]
    for one in ranges_of(3, (2, 5), width, shift):
        (share,) = assert_holds(mapping, function, [one])
        if width == 0:
            assert share > 0.5


@pytest.mark.parametrize("kind", ["softmax", "log", "sum"])
def test_softmax_with_entries_that_are_masked_or_unknown(kind: str) -> None:
    mapping = Softmax(LAST, kind)  # type: ignore[arg-type]
    functions: dict[str, Function] = {
        "softmax": lambda x: x.softmax(-1), "log": lambda x: x.log_softmax(-1), "sum": lambda x: x.logsumexp(-1)
    }  # fmt: skip
    low = torch.randn(2, 5, dtype=torch.float64)
    for place, (first, last) in enumerate(
        [(-math.inf, -math.inf), (-math.inf, math.inf), (-math.inf, 0.0), (0.0, math.inf)]
    ):
        one_low, one_high = low.clone(), low + 0.3
        one_low[:, place], one_high[:, place] = first, last
        one = box(one_low, one_high)
        (slope,) = mapping.slopes([one])
        image = mapping.image([one], (2, 5) if kind != "sum" else (2,))
        for far in (-1e3, -1.0, 0.0, 2.0, 1e3):
            x = (one_low + 0.1).nan_to_num(0.0, 0.0, 0.0)
            x[:, place] = -1e300 if last == -math.inf else min(max(far, first), last)
            value = functions[kind](x)
            assert bool((value >= image.low - 1e-9).all())
            assert bool((value <= image.high + 1e-9).all())
            matrix = torch.func.jacrev(lambda z: functions[kind](z).flatten())(x).flatten(1)
            assert float(torch.linalg.matrix_norm(matrix, 2)) <= math.exp(slope) * (1 + 1e-9)
    assert mapping.slopes([Range.unknown(())])[0] <= math.log(5**0.5) + 1e-6


def test_a_softmax_anywhere_is_bounded() -> None:
    mapping = Softmax(LAST, "softmax")
    assert mapping.slopes([Range.unknown(())])[0] == pytest.approx(math.log(0.5), abs=1e-6)
    image = mapping.image([Range.unknown((2, 5))], (2, 5))
    assert (image.smallest, image.largest) == (0.0, 1.0)
    assert math.exp(image.rows) == pytest.approx(1)
    assert math.exp(image.radius) == pytest.approx(2**0.5)


def respond(x: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    return x * (norms / (norms.mean(-1, keepdim=True) + EPS))


@pytest.mark.parametrize(("width", "shift"), [*WIDTHS, (100.0, 0.0)])
def test_global_response(width: float, shift: float) -> None:
    shape = (1, 2, 2, 3)
    inner = Groups.along(shape, (1, 2))
    mapping = Response(shape, inner, Groups.along((1, 1, 1, 3), (-1,)), EPS)
    for one in ranges_of(4, shape, width, shift):
        (share,) = assert_holds(mapping, respond, [one])
        if width == 0:
            assert share > 0.4
    assert math.exp(mapping.slopes([Range.unknown(())])[0]) <= (2 * 3 + 3**1.5) * (1 + 1e-6)
    # One channel alone is loud: the constant of the whole space is not far off.
    loud = torch.zeros(shape, dtype=torch.float64)
    loud[..., 0] = 100.0
    assert_holds(mapping, respond, [boxed_ball(loud - 1e-3, loud + 1e-3)])


# Rules


def rule_of(op: object, shape: Sequence[int], **arguments: object) -> Operator:
    name = "input" if "input" in {p.name for p in op._schema.arguments} else "self"  # type: ignore[attr-defined]
    given = {p.name: p.default_value for p in op._schema.arguments}  # type: ignore[attr-defined]
    node = Node("y", op, "", {**given, name: Value("x", tuple(shape)), **arguments}, tuple(shape))  # type: ignore[arg-type]
    return operator_of(node, DEFAULT_RULES)


def test_what_has_no_variance_and_what_has_no_eps() -> None:
    assert isinstance(rule_of(aten.var.correction, (1, 5), dim=[0]), Unbounded)
    assert isinstance(rule_of(aten.linalg_vector_norm.default, (1, 5), ord=0.5), Unbounded)
    without = rule_of(aten.rms_norm.default, (1, 5), normalized_shape=[5])
    assert isinstance(without, Standardisation)
    assert without.eps == torch.finfo(torch.float32).eps
    running = rule_of(
        aten.instance_norm.default, X, running_var=torch.tensor([1.0, 4.0, 9.0, 16.0]), running_mean=torch.zeros(4),
        use_input_stats=False, momentum=0.1, eps=0.0, cudnn_enabled=False,
    )  # fmt: skip
    assert isinstance(running, Diagonal)
    assert running.gain.flatten().tolist() == [1, 1 / 2, 1 / 3, 1 / 4]
    weight = Value("w", (5,))
    assert isinstance(rule_of(aten.layer_norm.default, (1, 5), normalized_shape=[5], weight=weight), Unbounded)
    assert isinstance(rule_of(aten.layer_norm.default, (1, 5), normalized_shape=[5], weight=GAIN / 0), Unbounded)


# Written out


def root(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    return x.pow(2).mean(dim, keepdim=True)


def layer_2d(x: Tensor) -> Tensor:
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    return (x - u) / torch.sqrt(s + EPS)


def with_var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    return (x - mean) * torch.rsqrt(variance + EPS)


def llama(x: Tensor) -> Tensor:
    y = x.to(torch.float32 if x.dtype != torch.float64 else torch.float64)
    return GAIN.to(x.dtype)[:3] * (y * torch.rsqrt(root(y, -1) + EPS)).to(x.dtype)


WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], type]] = {
    "llama": (llama, Standardisation),
    "rms over channels": (lambda x: x * torch.rsqrt(root(x, 1) + EPS), Standardisation),
    "power": (lambda x: torch.pow(root(x, -1) + EPS, -0.5) * x, Standardisation),
    "root of a product": (lambda x: x / torch.sqrt((x * x).mean((1, 2), keepdim=True) + EPS), Standardisation),
    "clamped sum": (lambda x: x / (x.square().sum(1, keepdim=True)).clamp(min=EPS).sqrt(), Standardisation),
    "layer norm over channels": (layer_2d, Standardisation),
    "variance and mean": (with_var_mean, Standardisation),
    "normalize": (lambda x: functional.normalize(x, dim=-1, eps=0.1), Standardisation),
    "normalize channels": (lambda x: functional.normalize(x, dim=1), Standardisation),
    "norm and eps": (lambda x: x / (x.norm(dim=-1, keepdim=True) + 0.1), Standardisation),
    "reciprocal": (lambda x: x * (1 / (EPS + root(x, -1)).sqrt()), Standardisation),
    "deviation": (lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 0.1), Standardisation),
    "mean left in": (lambda x: x * torch.rsqrt(x.var(-1, keepdim=True) + EPS), Standardisation),
    "response": (respond, Response),
}  # fmt: skip


class Written(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("width", [0.0, 0.1, 2.0])
def test_norms_written_out(name: str, width: float) -> None:
    function, kind = WRITTEN[name]
    shape = (1, 4, 2, 3)
    _, steps = captured(Written(function), shape)
    found = [step for step in steps if isinstance(step.operator, kind)]
    assert len(found) == 1, [step.node.op_name for step in steps]
    torch.manual_seed(6)
    center = torch.randn(shape, dtype=torch.float64)
    assert_bounded_on(Written(function), boxed_ball(center - width, center + width))
    if name != "mean left in":
        # Without a domain too, and behind another norm whose ball is about something else.
        log = constant_on(Written(function), Range.unknown(shape))
        tiny = box(torch.full(shape, -1e-6), torch.full(shape, 1e-6))
        assert math.log(largest_jacobian(Written(function), [tiny], 0, 0)) <= log
        layer = nn.LayerNorm(3)
        nn.init.normal_(layer.bias)
        assert_bounded_on(nn.Sequential(layer, Written(function)), boxed_ball(center - width, center + width))


ALIKE: dict[str, Callable[[Tensor], Tensor]] = {
    "another axis": lambda x: (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(2, keepdim=True) + EPS),
    "another activation": lambda x: x.relu() * torch.rsqrt(root(x, -1) + EPS),
    "not kept": lambda x: x * torch.rsqrt(x.square().mean(1) + EPS)[:, None],
    "cubes": lambda x: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + EPS),
    "the mean of another": lambda x: (x - x.abs().mean(1, keepdim=True)) / torch.sqrt(root(x, 1) + EPS),
    "eps below zero": lambda x: x / (x.norm(dim=-1, keepdim=True) - EPS),
    "norms of two": lambda x: x * (x.norm(dim=1, keepdim=True) / (x.norm(dim=2, keepdim=True).mean(-1, True) + EPS)),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_what_only_resembles_a_norm_is_no_norm(name: str) -> None:
    _, steps = captured(Written(ALIKE[name]), (1, 4, 2, 3))
    assert not any(isinstance(step.operator, Standardisation | Response) for step in steps)


def test_the_constants_refuse_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping, function = MAPS["layer"]
    one = next(iter(ranges_of(1, (2, 5), 0.5, 2.0)))
    monkeypatch.setattr(normalisations, "least_spread", lambda low, high: torch.full((2,), 2.5, dtype=torch.float64))
    with pytest.raises(AssertionError):
        assert_holds(mapping, function, [one])


def test_tensors_without_entries() -> None:
    empty = Groups.along((0, 5), (-1,))
    assert Standardisation("norm", empty, (0, 5), "root", 1 / 5, EPS).slopes([Range.unknown((0, 5))]) == (-math.inf,)
    assert Softmax(empty, "softmax").slopes([Range.unknown((0, 5))]) == (-math.inf,)
    assert Moment(empty, 1.0, centred=False, squared=True).slopes([Range.unknown((0, 5))]) == (-math.inf,)


def test_modules_with_norms_on_a_domain() -> None:
    torch.manual_seed(8)
    for module in (
        nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 1), nn.InstanceNorm2d(3, affine=True), nn.Softmax(1)),
        nn.Sequential(nn.LayerNorm((2, 3)), nn.Flatten(2), nn.Linear(6, 4), nn.LogSoftmax(-1)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.RMSNorm(3, eps=EPS), nn.Conv2d(4, 2, 1)),
    ):
        center = torch.randn(1, 4, 2, 3, dtype=torch.float64)
        for width in (0.0, 0.1, 1.0):
            assert_bounded_on(module, boxed_ball(center - width, center + width))
        assert math.isfinite(constant_on(module, Range.unknown(center.shape)))
