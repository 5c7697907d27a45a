"""Ranges through a graph: every value that sampled inputs of the domain lead to lies in the range of its node."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from draws import draws
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcheck import propagate as propagation
from lipcheck.capture import capture
from lipcheck.engines.enclose import enclose
from lipcheck.graph import Graph
from lipcheck.operators import Linear
from lipcheck.propagate import Ranges, evaluate, image_of, propagate
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES, operator_of
from lipcheck.simplify import simplify
from lipcheck.steps import Step

SHAPE = (1, 3, 6, 6)


def box(low: Tensor, high: Tensor) -> Range:
    middle = (low + high) / 2
    away = torch.maximum(high - middle, middle - low)
    norm = float(torch.linalg.vector_norm(away))
    return Range(low, high).with_ball(middle, math.log(norm) + 1e-12 if norm else -math.inf)


class Residual(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) - 0.5 * x


class Mixed(nn.Module):
    """Constants on both sides, negations, concatenations, broadcasts, splits, transposes, copies."""

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = x.split(1, dim=1)
        turned = torch.cat([1.0 - first, -second, third * 3 - 2], dim=1).permute(0, 2, 3, 1)
        means = turned.mean(-1, keepdim=True)
        wide = (turned - means).flatten(1, 2).transpose(1, 2)
        return wide.reshape(1, 3, 6, 6) + x.amax(1, keepdim=True).expand(1, 3, 6, 6)


MODULES: list[Callable[[], nn.Module]] = [
    lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)),
    lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(3), nn.ReLU()),
    lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular", groups=3), nn.Hardtanh()),
    lambda: nn.Sequential(nn.ConvTranspose2d(3, 2, 3, stride=2), nn.AvgPool2d(3, 2, 1), nn.LeakyReLU(0.3)),
    lambda: nn.Sequential(Residual(nn.Conv2d(3, 3, 1), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    lambda: nn.Sequential(Mixed(), nn.Flatten(2), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2)),
    lambda: nn.Sequential(Mixed(), nn.Sigmoid(), nn.Conv2d(3, 2, 3), nn.Sigmoid()),
]  # fmt: skip


def captured(module: nn.Module) -> tuple[Graph, list[Step]]:
    graph, _ = capture(module.eval(), torch.rand(SHAPE), known=DEFAULT_RULES)
    return graph, simplify(graph, [operator_of(node, DEFAULT_RULES) for node in graph.nodes])


def upper(operator: Linear) -> float:
    return enclose([operator])[0].upper


def ranges_of(graph: Graph, steps: list[Step], domain: Range) -> dict[str, Ranges]:
    """The ranges of all nodes, recorded as they are made."""
    found: dict[str, Ranges] = {}

    def recorded(step: Step, *rest: Any) -> Ranges:
        found[step.node.name] = image_of(step, *rest)
        return found[step.node.name]

    propagate(graph, steps, upper, domain, recorded)
    return found


def assert_inside(value: Tensor, one: Range, name: str) -> None:
    assert one.shape == tuple(value.shape), name
    assert bool((value >= one.low).all()), name
    assert bool((value <= one.high).all()), name
    if one.center is not None:
        away = value - one.center
        assert float(torch.linalg.vector_norm(away)) <= math.exp(min(one.radius, 700.0)), name
        assert float(torch.linalg.vector_norm(away, dim=-1).max()) <= math.exp(min(one.rows, 700.0)), name


def assert_holds(graph: Graph, ranges: dict[str, Ranges], x: Tensor) -> None:
    values = {graph.input.name: x}
    for node in graph.nodes:
        values[node.name] = evaluate(node, values)
        one = ranges[node.name]
        if isinstance(one, tuple):
            for value, part in zip(values[node.name], one, strict=True):
                assert_inside(value, part, node.name)
        else:
            assert_inside(values[node.name], one, node.name)


@pytest.mark.parametrize("make", MODULES)
@settings(
    max_examples=draws(12), phases=[Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([0.0, 1e-6, 0.5, 3.0]),
    shift=st.sampled_from([0.0, 1.0, -4.0]),
)
def test_every_value_of_the_domain_lies_in_the_range_of_its_node(
    make: Callable[[], nn.Module], seed: int, width: float, shift: float
) -> None:
    torch.manual_seed(seed)
    graph, steps = captured(make())
    low = torch.randn(SHAPE, dtype=torch.float64) + shift
    high = low + width * torch.rand(SHAPE, dtype=torch.float64)
    ranges = ranges_of(graph, steps, box(low, high))
    # Corners, faces and the inside.
    for share in (torch.rand(SHAPE), torch.rand(SHAPE).round(), torch.zeros(SHAPE), torch.ones(SHAPE)):
        assert_holds(graph, ranges, torch.minimum(low + (high - low) * share.double(), high))


@pytest.mark.parametrize("make", MODULES)
@settings(
    max_examples=draws(8), phases=[Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
)
@given(seed=st.integers(0, 2**32 - 1), radius=st.sampled_from([1e-9, 0.3, 5.0, 1e6]))
def test_the_same_for_balls(make: Callable[[], nn.Module], seed: int, radius: float) -> None:
    torch.manual_seed(seed)
    graph, steps = captured(make())
    center = torch.randn(SHAPE, dtype=torch.float64)
    ranges = ranges_of(graph, steps, Range.unknown(SHAPE).with_ball(center, math.log(radius)))
    for _ in range(4):
        direction = torch.randn(SHAPE, dtype=torch.float64) * (torch.rand(SHAPE) < torch.rand(1))
        norm = float(torch.linalg.vector_norm(direction)) or 1.0
        inside = 1 - 1e-12 - 1e-14 / radius  # the sum is rounded
        assert_holds(graph, ranges, center + direction / norm * radius * inside)


def test_a_point_stays_a_point() -> None:
    torch.manual_seed(0)
    graph, steps = captured(MODULES[0]())
    x = torch.randn(SHAPE, dtype=torch.float64)
    found = propagate(graph, steps, upper, box(x, x)).output
    assert found is not None
    assert float((found.high - found.low).max()) < 1e-6


def test_without_a_domain_a_range_starts_behind_what_is_bounded() -> None:
    torch.manual_seed(0)
    graph, steps = captured(MODULES[6]())
    found = propagate(graph, steps, upper, Range.unknown(SHAPE)).output
    assert found is not None
    assert found.bounded
    assert found.smallest >= -1e-6
    assert found.largest <= 1 + 1e-6


class Counting:
    """How many ranges are worked out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        whole = propagation.image_of

        def counted(*given: object) -> Ranges:
            self.count += 1
            return whole(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(propagation, "image_of", counted)


@pytest.mark.parametrize("make", MODULES)
def test_only_the_ranges_that_constants_depend_on_are_followed(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    graph, steps = captured(make())
    low = torch.randn(SHAPE, dtype=torch.float64)
    counting = Counting(monkeypatch)
    found = [propagate(graph, steps, upper, box(low, low + 1), whole=whole).slopes for whole in (True, False)]
    assert {name: slopes for name, slopes in found[0].items() if "relu" not in name} == {
        name: slopes for name, slopes in found[1].items() if "relu" not in name
    }
    assert counting.count <= 2 * len(steps)


def test_no_range_is_followed_where_every_slope_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, steps = captured(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.ReLU()))
    counting = Counting(monkeypatch)
    found = propagate(graph, steps, upper, Range.unknown(SHAPE), whole=False)
    assert counting.count == 0
    assert all(slopes == (0.0,) for slopes in found.slopes.values())
