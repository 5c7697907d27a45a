"""Ranges with the same ends for all elements: never narrower than an audit's; equal blocks are asked once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from networks import Function
from torch import Tensor, nn
from torch.nn import functional

from lipcheck.capture import capture
from lipcheck.engines.enclose import enclose
from lipcheck.flat import _above, flat_image, remembering
from lipcheck.graph import signature
from lipcheck.operators import Linear, Nonlinear
from lipcheck.propagate import Image, Propagation, Ranges, image_of, propagate
from lipcheck.ranges import Range, distinct
from lipcheck.rules import DEFAULT_RULES, operator_of
from lipcheck.simplify import simplify
from lipcheck.steps import Step

SHAPE = (1, 3, 6, 6)


class Block(nn.Module):
    """Attention and a gated layer, each behind a normalisation, added to what they read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.RMSNorm(width, eps=1e-6)])
        self.attention, self.gated = nn.Linear(width, 3 * width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attention(self.norms[0](x)).chunk(3, -1)
        x = x + functional.scaled_dot_product_attention(q, k, v)
        a, b = self.gated(self.norms[1](x)).chunk(2, -1)
        return x - a * functional.silu(b)


class Gate(nn.Module):
    """Squeeze and excite, with an activation that is scaled by an activation's maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.inner(x.mean((2, 3), keepdim=True)))
        return functional.pad(x * gate, (1, 0), value=2.5) + functional.pad(x.amax(1, keepdim=True), (0, 1)) * gate


NETWORKS: list[Any] = [
    lambda: nn.Sequential(nn.Flatten(2), Block(36), Block(36), Block(36)),
    lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2, 2, 1)),
    lambda: nn.Sequential(nn.GroupNorm(3, 3), Gate(), nn.Softmax(1), nn.Flatten(), nn.LogSoftmax(1)),
    lambda: Function(
        lambda self, x: torch.stack([(x + 1).tril(), -x], 1).split([1, 1], 1)[1].squeeze(1).roll(1, -1) - 2 * x
    ),
    lambda: Function(lambda self, x: 1 / (torch.sigmoid(x) + 0.5) + torch.exp(torch.tanh(x)) - x.square()),
    lambda: Function(lambda self, x: torch.bmm(x.flatten(2) - 0.25, x.flatten(2).mT) @ torch.sigmoid(x.flatten(2))),
    lambda: Function(lambda self, x: functional.normalize(x, dim=1) * x.std((2, 3), keepdim=True)),
    lambda: nn.Sequential(Gate(), nn.InstanceNorm2d(3, affine=True), nn.Upsample(scale_factor=2, mode="bicubic")),
]


def followed(module: nn.Module, domain: Range, image: Image) -> tuple[dict[str, Ranges], Propagation, list[Step]]:
    """The ranges of all nodes, and the constants, when ranges are followed so."""
    graph, _ = capture(module.eval(), torch.randn(SHAPE), known=DEFAULT_RULES)
    steps = simplify(graph, [operator_of(node, DEFAULT_RULES) for node in graph.nodes], merge=False)
    walked = remembering(graph, steps) if image is flat_image else steps
    found: dict[str, Ranges] = {}

    def upper(operator: Linear) -> float:
        return enclose([operator])[0].upper

    def recorded(step: Step, *rest: Any) -> Ranges:
        found[step.node.name] = image(step, *rest)
        return found[step.node.name]

    return found, propagate(graph, walked, upper, domain, recorded), steps


@pytest.mark.parametrize("domain", [Range.between(0.0, 1.0, SHAPE), Range.unknown(SHAPE)], ids=["box", "everywhere"])
@pytest.mark.parametrize("make", NETWORKS, ids=[str(i) for i in range(len(NETWORKS))])
def test_flat_ranges_contain_the_audits_own_and_their_constants_are_no_smaller(make: Any, domain: Range) -> None:
    torch.manual_seed(0)
    module = make()
    own, known, _ = followed(module, domain, image_of)
    wide, wider, _ = followed(module, domain, flat_image)
    for name, found in own.items():
        narrow, flat = ([one] if isinstance(one, Range) else list(one) for one in (found, wide[name]))
        for one, other in zip(narrow, flat, strict=True):
            assert one.shape == other.shape, name
            assert distinct(other.low).numel() == distinct(other.high).numel() == 1
            assert other.smallest <= one.smallest, name
            assert other.largest >= one.largest, name
    assert set(known.slopes) == set(wider.slopes)
    for name, slopes in known.slopes.items():
        assert all(a <= b + 1e-9 for a, b in zip(slopes, wider.slopes[name], strict=True)), name


def test_equal_blocks_are_asked_once() -> None:
    torch.manual_seed(0)
    asked: list[str] = []

    class Counting(Nonlinear):
        def slopes(self, ranges: Any) -> tuple[float, ...]:
            asked.append("slopes")
            return (0.0,)

        def image(self, ranges: Any, shape: tuple[int, ...]) -> Range:
            asked.append("image")
            return Range.between(-1.0, 1.0, shape)

    module = nn.Sequential(nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid())
    graph, _ = capture(module, torch.randn(SHAPE), known=DEFAULT_RULES)
    steps = [Step(node, Counting(), inputs=(node.inputs[0].name,)) for node in graph.nodes]
    propagate(graph, remembering(graph, steps), lambda operator: 1.0, Range.between(0.0, 1.0, SHAPE), flat_image)
    assert asked == ["slopes", "image"] * 2  # of the network's input, and of what lies between -1 and 1


def test_clusters_with_other_constants_have_other_signatures() -> None:
    def signed(forward: Any, **buffers: Tensor) -> Any:
        graph, _ = capture(Function(forward, **buffers), torch.randn(SHAPE), known=DEFAULT_RULES)
        nodes = {node.name: node for node in graph.nodes}
        graphs.append(graph)
        return signature(graph.nodes[-1], (graph.input.name,), nodes)

    graphs: list[Any] = []
    p, q = torch.full((6,), 2.0), torch.full((6,), 3.0)
    varied = torch.arange(6.0)
    assert signed(lambda self, x: x.sin() * 2 + x) == signed(lambda self, x: x.sin() * 2 + x)
    assert signed(lambda self, x: x.sin() * 2 + x) != signed(lambda self, x: x.sin() * 3 + x)
    assert signed(lambda self, x: x.sin() * 2 + x) != signed(lambda self, x: x.sin() * 2 + x.sin())
    assert signed(lambda self, x: x.sum(2)) != signed(lambda self, x: x.sum(3))
    assert signed(lambda self, x: x * self.p, p=p) != signed(lambda self, x: x * self.p, p=q)
    assert signed(lambda self, x: x * self.p, p=p) != signed(lambda self, x: x * self.p, p=varied)


@pytest.mark.parametrize("value", [0.0, 1.0, 3.0, 16.0, 1e-5, 255.0, 1e150, math.inf, 1e-100])
def test_ends_are_moved_outwards(value: float) -> None:
    assert value <= _above(value) <= max(16 * value, value)
    assert -value <= _above(-value) <= 0
