"""Linear stretches merged and norms weighted, in whole audits: never below the truth, never above the plain product."""

from __future__ import annotations

import math
from collections.abc import Callable

import networks
import pytest
import reference
import torch
from networks import Residual, in_double, jacobian, matrix_of, normalised
from torch import Tensor, nn
from torch.nn import functional as F

import lipcheck
from lipcheck.report import Report
from lipcheck.tighten import FOLDED, MERGED, WEIGHTED

SLACK = 1 + 1e-9


def audited(module: nn.Module, shape: tuple[int, ...], domain: str | None = None) -> Report:
    return lipcheck.check(module.eval(), example=torch.randn(1, *shape), domain=domain, samples=1)


def steps_of(report: Report) -> dict[str, float]:
    """By how many powers of ten each step made the bound smaller."""
    return {step.name: step.log10_before - step.log10_after for step in report.network.tightening}


def uneven(module: nn.Module) -> nn.Module:
    """The same network with gains of many sizes from channel to channel, as training leaves them."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.copy_(torch.randn_like(part.weight).mul(2).exp())
    return module


class Linear1x1(nn.Module):
    """Without an activation: projections, expansions, a residual sum, a difference and branches of the same input."""

    def __init__(self, dense: bool) -> None:
        super().__init__()

        def layer(a: int, b: int) -> nn.Module:
            return nn.Linear(a, b) if dense else nn.Conv2d(a, b, 1)

        self.down, self.up, self.side, self.last = layer(3, 2), layer(2, 4), layer(3, 4), layer(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.down(x)) - self.side(x)
        found: Tensor = x + self.last(y)
        return found


class Downsampling(nn.Module):
    """A residual block whose branches meet with kernels of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1, bias=False), normalised(4), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, bias=False), normalised(4))
        self.side = nn.Sequential(nn.Conv2d(2, 4, 1, 2, bias=False), normalised(4))
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.outer(self.inner(x)) + self.side(x)))
        return found


def inverted(channels: int, wide: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """An inverted residual block, its last map linear."""
    return nn.Sequential(
        *(nn.Conv2d(channels, wide, 1, bias=False), normalised(wide), activation()),
        *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), normalised(wide), activation()),
        *(nn.Conv2d(wide, channels, 1, bias=False), normalised(channels)),
    )


def mobile(activation: Callable[[], nn.Module] = nn.ReLU6) -> nn.Module:
    return uneven(
        nn.Sequential(
            *(nn.Conv2d(2, 3, 3, padding=1, bias=False), normalised(3), activation()),
            inverted(3, 6, activation),
            *(Residual(inverted(3, 6, activation)) for _ in range(2)),
            *(nn.Conv2d(3, 5, 1), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
        )
    )


def nearly_linear() -> nn.Module:
    """Without much of an activation, and so with Jacobians that come close to a bound."""
    return mobile(lambda: nn.LeakyReLU(0.95))


class Attending(nn.Module):
    """A block of a transformer: a stream to which attention and a perceptron add."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(6, eps=0.1), nn.LayerNorm(6, eps=0.1)
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.inner, self.outer = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).reshape(1, 4, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 4, 6)
        x = x + self.out(y)
        found: Tensor = x + self.outer(F.gelu(self.inner(self.second(x))))
        return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobile": (mobile, (2, 4, 4)),
    "nearly linear": (nearly_linear, (2, 4, 4)),
    "downsampling": (lambda: uneven(Downsampling()), (2, 4, 4)),
    "attending": (Attending, (4, 6)),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NETWORKS)
def test_no_jacobian_is_above_the_tightened_bound(name: str, seed: int) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(seed)
    module = build()
    report = audited(module, shape, "box:-2,2")
    twin = in_double(module)
    for _ in range(10):
        x = torch.rand(1, *shape, dtype=torch.float64) * 4 - 2
        assert reference.norm(jacobian(twin, x)) <= 10**report.network.log10_upper * SLACK
    names = [step.name for step in report.network.tightening]
    assert names == [one for one in (FOLDED, MERGED, WEIGHTED) if one in names]
    before = report.network.log10_product
    for step in report.network.tightening:
        assert step.log10_before <= before
        assert step.log10_after <= step.log10_before
        before = step.log10_after
    assert report.network.log10_upper == before


def test_each_step_gains_where_it_has_something_to_gain() -> None:
    torch.manual_seed(3)
    gained = steps_of(audited(mobile(), (2, 4, 4)))
    assert set(gained) == {FOLDED, MERGED, WEIGHTED}
    assert gained[MERGED] > 0.05
    assert gained[WEIGHTED] > 0.5


def test_jacobians_come_close_where_the_network_is_nearly_linear() -> None:
    shares = []
    for seed in range(4):
        torch.manual_seed(seed)
        module = nearly_linear()
        matrix = jacobian(in_double(module), torch.randn(1, 2, 4, 4, dtype=torch.float64))
        shares.append(reference.norm(matrix) / 10 ** audited(module, (2, 4, 4)).network.log10_upper)
    assert max(shares) > 0.05


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_linear_network_of_channels_has_its_own_norm(dense: bool, seed: int) -> None:
    torch.manual_seed(seed)
    module = Linear1x1(dense)
    shape = (2, 3) if dense else (3, 2, 2)
    report = audited(module, shape)
    truth = reference.norm(matrix_of(in_double(module), (1, *shape)))
    upper = 10**report.network.log10_upper
    assert truth <= upper * SLACK
    assert upper <= truth * 1.002
    assert report.network.log10_product > report.network.log10_upper + 0.05


@pytest.mark.parametrize("seed", range(3))
def test_a_kernel_behind_a_strided_convolution_is_merged_exactly(seed: int) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1, bias=False), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1, 2))
    truth = reference.norm(matrix_of(in_double(module), (1, 2, 5, 6)))
    upper = 10 ** audited(module, (2, 5, 6)).network.log10_upper
    assert truth <= upper * SLACK
    assert upper <= truth * 1.3  # the embedding's slack on so few pixels


WIDE = {"w": torch.tensor([[[1.0, 0.0, 0.0]]]), "i": torch.ones(1, 1, 1)}
FLAT = {"w": torch.tensor([[[[1.0, 0.0, 0.0]]]]), "i": torch.ones(1, 1, 1, 1)}
BEYOND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1-D": (
        lambda: networks.Function(
            lambda self, x: (
                F.conv1d(F.pad(F.conv1d(x, self.w, padding=1), (0, 1)), self.i) - F.conv1d(F.pad(x, (1, 2)), self.w)
            ),
            **WIDE,
        ),
        (1, 4),
    ),
    "strided": (
        lambda: networks.Function(
            lambda self, x: (
                F.conv1d(F.pad(F.conv1d(x, self.w, padding=1), (0, 3)), self.i, stride=2)
                - F.conv1d(F.pad(x, (1, 4)), self.w, stride=2)
            ),
            **WIDE,
        ),
        (1, 6),
    ),
    "2-D": (
        lambda: networks.Function(
            lambda self, x: (
                F.conv2d(F.pad(F.conv2d(x, self.w, padding=(0, 1)), (0, 1)), self.i)
                - F.conv2d(F.pad(x, (1, 2)), self.w)
            ),
            **FLAT,
        ),
        (1, 3, 4),
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_a_kernel_of_one_tap_makes_beyond_its_input_is_zero(name: str) -> None:
    """Merged with what is in front, it would make something there, which a sum could take away again."""
    build, shape = BEYOND[name]
    module = build()
    truth = reference.norm(matrix_of(in_double(module), (1, *shape)))
    assert truth > 0.9
    assert truth <= 10 ** audited(module, shape).network.log10_upper * SLACK


CONSTANT = torch.ones(3)
MOVED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "x + c": (lambda x, c: x + c, 1),
    "x - c": (lambda x, c: x - c, 1),
    "c - x": (lambda x, c: c - x, -1),
    "2 - x": (lambda x, c: 2 - x, -1),
    "rsub": (torch.rsub, -1),
    "rsub, alpha -1": (lambda x, c: torch.rsub(x, c, alpha=-1), 1),
    "add(x, c, alpha -1)": (lambda x, c: torch.add(x, c, alpha=-1), 1),
    "add(c, x, alpha -1)": (lambda x, c: torch.add(c, x, alpha=-1), -1),
    "sub(c, x, alpha -1)": (lambda x, c: torch.sub(c, x, alpha=-1), 1),
    "-x": (lambda x, c: -x, -1),
    "x * -1": (lambda x, c: x * -1.0, -1),
    "x / -1": (lambda x, c: x / -1.0, -1),
    "addcmul": (lambda x, c: torch.addcmul(c, x, c, value=-1), -1),
    "lerp": (lambda x, c: torch.lerp(c, x, -1.0), -1),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_constant_beside_an_activation_leaves_its_sign(name: str) -> None:
    """Merged maps can cancel, so that a sign that is lost makes a sum of nothing."""
    moved, sign = MOVED[name]
    for other in (1.0, -1.0):
        module = networks.Function(
            lambda self, x, other=other: moved(self.a(x), self.c) + other * self.a(x), a=nn.Linear(3, 3), c=CONSTANT
        )
        report = audited(module, (3,))
        truth = reference.norm(module.a.weight.detach().double()) * abs(sign + other)
        assert truth <= 10**report.network.log10_upper * SLACK


@pytest.mark.parametrize(("gain", "times"), [(1e-200, 2), (2.0**-100, 11), (2.0**-60, 20)])
def test_gains_whose_product_leaves_float64_are_not_merged(gain: float, times: int) -> None:
    """They make up for one another in real arithmetic: the map is the identity."""

    def scaled(self: nn.Module, x: Tensor) -> Tensor:
        for _ in range(times):
            x = x * self.g
        x = F.linear(x, self.a)
        for _ in range(times):
            x = x * self.h
        return F.linear(x, self.a)

    given = {"dtype": torch.float64}
    parts = {"g": torch.full((4,), gain, **given), "h": torch.full((4,), 1 / gain, **given), "a": torch.eye(4, **given)}
    module = networks.Function(scaled, **parts)
    report = lipcheck.check(module, example=torch.randn(1, 4, dtype=torch.float64), samples=0)
    assert report.network.log10_upper >= -1e-9


def test_a_spatial_kernel_behind_a_padded_one_is_not_merged() -> None:
    torch.manual_seed(0)
    report = audited(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)), (2, 5, 5))
    assert MERGED not in steps_of(report)


def test_a_network_without_a_finite_bound_has_no_steps() -> None:
    report = audited(nn.Sequential(nn.Linear(3, 3), networks.Function(lambda self, x: x * x)), (3,))
    assert math.isinf(report.network.log10_upper)
    assert report.network.tightening == ()
