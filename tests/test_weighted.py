"""Constants in weighted norms, for scales drawn from ten orders of magnitude, against the Jacobian written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import reference
import torch
from networks import Beside, Centred, Function, Halves, Residual, Scaled, in_double, jacobian, normalised
from torch import Tensor, nn
from torch.nn import functional

from lipcheck.capture import capture
from lipcheck.compose import compose
from lipcheck.engines.enclose import enclose
from lipcheck.merging import SPLITTING, Chain, Link, chain_of, merged
from lipcheck.operators import Diagonal, Linear
from lipcheck.propagate import propagate
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES, operator_of
from lipcheck.simplify import simplify
from lipcheck.weighted import Scale, Scales, factors, weighed

ORDERS = 5.0
SLACK = 1 + 1e-9


def chain_and_slopes(
    module: nn.Module, shape: tuple[int, ...], *, merge: bool
) -> tuple[Chain, dict[str, tuple[float, ...]]]:
    """The module's chain, and its nonlinear constants while the input is in [-1, 1]."""
    graph, _ = capture(module.eval(), torch.randn(1, *shape), known=DEFAULT_RULES)
    steps = simplify(graph, [operator_of(node, DEFAULT_RULES) for node in graph.nodes])
    low = torch.full((1, *shape), -1.0, dtype=torch.float64)
    domain = Range.box(low, -low).with_ball(torch.zeros_like(low), math.log(math.prod(shape)) / 2 + 1e-9)

    def upper(operator: Linear) -> float:
        return enclose([operator])[0].upper

    known = propagate(graph, steps, upper, domain)
    chain = chain_of(graph, steps)
    return (merged(chain, lambda operator: True) if merge else chain), dict(known.slopes)


def drawn(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    """A scale that is one number, varies along one axis or is different for every element."""
    kind = int(torch.randint(0, 3, (), generator=noise))
    axis = int(torch.randint(0, max(1, len(shape)), (), generator=noise))
    own = [n if kind == 2 or (kind == 1 and a == axis) else 1 for a, n in enumerate(shape)]
    return torch.exp(ORDERS * math.log(10) * (2 * torch.rand(own, generator=noise, dtype=torch.float64) - 1))


def scales_of(chain: Chain, seed: int) -> Scales:
    """Scales drawn for every value by itself."""
    noise = torch.Generator().manual_seed(seed)
    found: dict[str, Scale] = {name: drawn(shape, noise) for name, shape in chain.shapes.items()}
    balance = {}
    for link in chain.links:
        if link.base in SPLITTING:
            found[link.name] = tuple(drawn(shape, noise) for shape in parts_of(link))
        if link.widths:
            balance[link.name] = tuple(
                math.exp(ORDERS * (2 * float(torch.rand((), generator=noise)) - 1)) for _ in link.inputs
            )
    return Scales(found, balance)


def parts_of(link: Link) -> list[tuple[int, ...]]:
    given = [
        torch.zeros(argument.shape) if hasattr(argument, "shape") else argument
        for argument in link.node.arguments.values()
    ]
    return [tuple(part.shape) for part in link.node.op(*given)]


def bound(chain: Chain, scales: Scales, slopes: dict[str, tuple[float, ...]]) -> float:
    """What is claimed of ||D_out J D_in^-1||."""

    def norm(link: Link) -> float:
        one = weighed(link, scales) if link.map is not None else None
        if link.map is not None and one is None:
            return math.inf
        operator = link.operator if one is None else one.operator
        blur = 0.0 if one is None else one.blur()
        return enclose([operator])[0].upper + blur

    found = factors(chain, scales, norm, slopes)[:-1]
    return compose(chain.source, found, chain.output).output


def attack(module: nn.Module, shape: tuple[int, ...], *, merge: bool = False, seeds: int = 12) -> list[float]:
    """The shares of what is claimed that Jacobians on [-1, 1] reach, none above 1."""
    torch.manual_seed(1)
    chain, slopes = chain_and_slopes(module, shape, merge=merge)
    twin = in_double(module)
    points = [torch.rand(1, *shape, dtype=torch.float64) * 2 - 1 for _ in range(3)]
    matrices = [jacobian(twin, x) for x in points]
    width = math.prod(chain.shapes[chain.output])
    shares = []
    for seed in range(seeds):
        scales = scales_of(chain, seed)
        claimed = bound(chain, scales, slopes)
        outer, inner = scales.of[chain.output], scales.of[chain.source]
        assert isinstance(outer, Tensor)
        assert isinstance(inner, Tensor)
        rows = outer.expand(chain.shapes[chain.output]).reshape(width, 1)
        columns = inner.expand(chain.shapes[chain.source]).reshape(1, -1)
        for matrix in matrices:
            truth = reference.norm(rows * matrix / columns)
            if truth == 0:
                continue
            assert math.log(truth) <= claimed + math.log(SLACK), f"{math.log(truth) - claimed:.3g} above the claim"
            shares.append(math.exp(math.log(truth) - claimed))
    return shares


def gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def attention(x: Tensor) -> Tensor:
    q, k, v = x.reshape(1, 3, 3, 2, 2).unbind(2)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 2, 6)


SMALL = (4, 3, 3)
# Maps for which the bound is attained by some scales: their elements are told apart.
MAPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (nn.ReLU, SMALL),
    "gelu": (nn.GELU, SMALL),
    "prelu": (lambda: nn.PReLU(4), SMALL),
    "batch norm": (lambda: normalised(4), SMALL),
    "layer scale": (lambda: Scaled(4), SMALL),
    "conv": (lambda: nn.Conv2d(4, 3, 3, padding=1), SMALL),
    "conv, strided": (lambda: nn.Conv2d(4, 3, 2, 2), (4, 4, 4)),
    "conv, groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), SMALL),
    "conv, depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), SMALL),
    "conv, transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), SMALL),
    "conv, reflect": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), SMALL),
    "conv, circular": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), SMALL),
    "conv 1-D": (lambda: nn.Conv1d(4, 3, 3, padding=1), (4, 5)),
    "zero padding": (lambda: nn.ZeroPad2d((1, 0, 2, 1)), SMALL),
    "reflect padding": (lambda: nn.ReflectionPad2d(1), SMALL),
    "linear": (lambda: nn.Linear(5, 4), (3, 5)),
    "matrix on the left": (lambda: Function(lambda self, x: self.w @ x, w=torch.randn(4, 3)), (3, 5)),
    "max pool": (lambda: nn.MaxPool2d(2, 1), SMALL),
    "avg pool": (lambda: nn.AvgPool2d(2, 1), SMALL),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d(1), SMALL),
    "mean, flat": (lambda: Function(lambda self, x: x.mean((2, 3))), SMALL),
    "mean of channels": (lambda: Function(lambda self, x: x.mean(1)), SMALL),
    "sum": (lambda: Function(lambda self, x: x.sum(-1, keepdim=True)), SMALL),
    "maximum of an axis": (lambda: Function(lambda self, x: x.amax(1)), SMALL),
    "flatten": (nn.Flatten, SMALL),
    "permute": (lambda: Function(lambda self, x: x.permute(0, 2, 3, 1)), SMALL),
    "transposed square": (lambda: Function(lambda self, x: x.transpose(2, 3)), SMALL),
    "roll": (lambda: Function(lambda self, x: x.roll(1, 2)), SMALL),
    "flip": (lambda: Function(lambda self, x: x.flip(1)), SMALL),
    "slices": (lambda: Function(lambda self, x: x[:, 1:3, ::2]), SMALL),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), SMALL),
    "halves": (Halves, SMALL),
    "chunks": (lambda: Function(lambda self, x: x.chunk(2, 1)[1]), SMALL),
    "stack": (lambda: Function(lambda self, x: torch.stack([x, torch.relu(x)], 2)), (4, 3)),
    "beside": (lambda: Beside(nn.ReLU()), SMALL),
    "beside itself and zeros": (
        lambda: Function(lambda self, x: torch.cat([x, x.relu(), self.z], 1), z=torch.ones(1, 1, 3, 3)),
        SMALL,
    ),
    "expand": (lambda: Function(lambda self, x: x.expand(-1, 4, 3, 3)), (4, 1, 1)),
    "nearest": (lambda: nn.Upsample(scale_factor=2), (3, 2, 2)),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (3, 2, 2)),
    "residual": (lambda: Residual(nn.ReLU()), SMALL),
    "difference": (lambda: Function(lambda self, x: x - 2 * x.relu()), SMALL),
    "shifted": (lambda: Function(lambda self, x: x + self.c, c=torch.randn(4, 1, 1)), SMALL),
    "centred": (Centred, SMALL),
    "gate": (lambda: Function(lambda self, x: gate(x)), SMALL),
    "square": (lambda: Function(lambda self, x: x * x), SMALL),
    "ratio": (lambda: Function(lambda self, x: x / (2 + x.mean(1, keepdim=True))), SMALL),
    "larger of two": (lambda: Function(lambda self, x: torch.maximum(x, x.flip(1))), SMALL),
    "softmax": (lambda: nn.Softmax(1), SMALL),
    "log-sum-exp": (lambda: Function(lambda self, x: x.logsumexp(1)), SMALL),
    "layer norm": (lambda: _shaken(nn.LayerNorm(5, eps=0.1)), (3, 5)),
    "group norm": (lambda: _shaken(nn.GroupNorm(2, 4, eps=0.1)), SMALL),
    "instance norm": (lambda: _shaken(nn.InstanceNorm2d(4, eps=0.1, affine=True)), SMALL),
    "rms norm": (lambda: _shaken(nn.RMSNorm(5, eps=0.1)), (3, 5)),
    "gated half": (lambda: nn.GLU(1), SMALL),
    "attention": (lambda: Function(lambda self, x: attention(x)), (3, 12)),
    "sorted": (lambda: Function(lambda self, x: x.sort(1)[0]), SMALL),
}


def _shaken(norm: nn.Module) -> nn.Module:
    """A normalisation with gains of different sizes."""
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            if "weight" in name:
                parameter.copy_(torch.randn(parameter.shape).exp())
    return norm


@pytest.mark.parametrize("name", MAPS)
def test_no_scaled_jacobian_exceeds_what_is_claimed_of_one_map(name: str) -> None:
    build, shape = MAPS[name]
    torch.manual_seed(len(name))
    attack(build(), shape, seeds=25)


@pytest.mark.parametrize(
    ("name", "share"),
    [("relu", 0.99), ("batch norm", 0.99), ("permute", 0.99), ("linear", 0.9), ("conv, depthwise", 0.5)],
)
def test_scales_that_a_map_keeps_apart_cost_nothing(name: str, share: float) -> None:
    build, shape = MAPS[name]
    torch.manual_seed(len(name))
    assert max(attack(build(), shape, seeds=25)) > share


class Shuffled(nn.Module):
    """Channels mixed, gated, pooled, joined: one of everything that shares scales."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), normalised(4), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), normalised(4), nn.SiLU())
        self.inner = nn.Sequential(nn.Conv2d(4, 2, 1), normalised(2))
        self.outer = nn.Conv2d(2, 4, 1)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        low = self.inner(self.depthwise(x))
        x = torch.relu(self.outer(low)) + gate(x)
        x = torch.cat([functional.max_pool2d(x, 2), functional.avg_pool2d(x, 2)], 1)
        found: Tensor = self.last(x.mean((2, 3)))
        return found


class Stream(nn.Module):
    """Blocks that read and add to a stream, with narrow waists and without a norm between: all of it merges."""

    def __init__(self, dense: bool) -> None:
        super().__init__()

        def layer(a: int, b: int) -> nn.Module:
            return nn.Linear(a, b) if dense else nn.Conv2d(a, b, 1)

        self.stem = layer(3, 2)
        self.wide = nn.ModuleList([layer(2, 4) for _ in range(3)])
        self.back = nn.ModuleList([layer(4, 2) for _ in range(3)])
        self.head = layer(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for n, (wide, back) in enumerate(zip(self.wide, self.back, strict=True)):
            branch = back(torch.tanh(wide(x)))
            x = x - branch if n == 1 else x + branch
        found: Tensor = self.head(x)
        return found


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_no_scaled_jacobian_exceeds_what_is_claimed_of_a_network(seed: int, merge: bool) -> None:
    for build, shape in (
        (Shuffled, (2, 4, 4)),
        (lambda: Stream(dense=False), (3, 2, 2)),
        (lambda: Stream(dense=True), (2, 3)),
    ):
        torch.manual_seed(seed)
        attack(build(), shape, merge=merge, seeds=15)


def test_unknown_scales_of_an_unknown_operation_are_one_block() -> None:
    """What is not on a list is bounded by its largest and least scale."""
    chain, slopes = chain_and_slopes(Function(lambda self, x: x.sort(1)[0]), (4,), merge=False)
    scales = Scales({name: torch.tensor([[1.0, 10.0, 100.0, 1.0]]) for name in chain.shapes}, {})
    assert bound(chain, scales, slopes) >= math.log(100)


def test_scales_that_leave_the_range_of_float64_claim_nothing() -> None:
    chain, slopes = chain_and_slopes(nn.Linear(2, 2), (2,), merge=False)
    scales = Scales(
        {
            name: torch.full((1, 1), 1e-200 if name == chain.source else 1e200, dtype=torch.float64)
            for name in chain.shapes
        },
        {},
    )
    assert bound(chain, scales, slopes) == math.inf


def test_links_without_weights_keep_their_operator() -> None:
    chain, _ = chain_and_slopes(nn.Sequential(normalised(4), nn.ReLU()), SMALL, merge=False)
    assert [isinstance(link.operator, Diagonal) for link in chain.links] == [True, False]
