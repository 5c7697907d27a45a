"""The attack on rules: it refutes every wrong one here, comes close to every sharp one, and stays within the domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lipcheck
from lipcheck.attack import Claim, Refuted, Search
from lipcheck.domains import Ball, Box
from lipcheck.errors import UsageError
from lipcheck.operators import Dense, Diagonal, Indexing, Nonlinear, Normalisation, Operator, Pointwise, Sum
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES
from lipcheck.testing import Attack, UnsoundRule, assert_rule_sound

aten = torch.ops.aten
X = torch.linspace(-1, 1, 5).reshape(1, 5)


def weakened(op: Any, change: Callable[[Any], Operator]) -> dict[Any, Any]:
    """The built-in rule of an operation with its answer changed."""
    return {op: lambda node: change(DEFAULT_RULES[op](node))}


SHARP = [
    (torch.relu, (X,)),
    (functional.gelu, (X,)),
    (functional.silu, (X,)),
    (functional.hardswish, (X,)),
    (torch.sigmoid, (X,)),
    (functional.softmax, (X, -1)),
    (nn.Linear(5, 3), (X,)),
    (nn.Conv1d(2, 3, 3, padding=1), (torch.zeros(1, 2, 6),)),
    (aten.mean.dim, (X, [1])),
    (nn.LayerNorm(5), (X,)),
    (lambda x: functional.relu(x) + 2 * x, (X,)),
]


@pytest.mark.parametrize(("op", "args"), SHARP, ids=[str(getattr(op, "__name__", op)) for op, _ in SHARP])
def test_sharp_rules_stand_and_the_attack_comes_close(op: Any, args: tuple[Any, ...]) -> None:
    found = assert_rule_sound(op, args, trials=40)
    assert 0.9 * found.claimed <= found.found <= found.claimed


WRONG = [
    (aten.gelu.default, (X,), lambda right: replace(right, slope=1.128), {}),
    (aten.silu.default, (X,), lambda right: replace(right, slope=1.09, curve=None), {}),
    (aten.sigmoid.default, (X,), lambda right: Pointwise("sigmoid", 0.249), {}),
    (aten._softmax.default, (X, -1, False), lambda right: Normalisation("softmax", 0.49, ""), {}),
    (aten.linear.default, (X, torch.eye(3, 5)), lambda right: Dense(0.99 * right.matrix), {}),
    (aten.max_pool2d.default, (torch.zeros(1, 1, 5, 5), [3, 3], [2, 2]), lambda right: Indexing(1), {}),
    (aten.expand.default, (torch.zeros(1, 1, 3), [1, 4, 3]), lambda right: Indexing(3), {}),
    (aten.add.Tensor, (X, X), lambda right: Sum((1.0, 0.9)), {"activations": (0, 1)}),
    (aten.mul.Tensor, (X, torch.full((1, 5), -3.0)), lambda right: Diagonal(torch.tensor(2.9)), {}),
]


@pytest.mark.parametrize(("op", "args", "change", "options"), WRONG, ids=[str(case[0]) for case in WRONG])
def test_rules_that_are_slightly_wrong_are_refuted(op: Any, args: Any, change: Any, options: Any) -> None:
    assert_rule_sound(op, args, trials=20, **options)
    with pytest.raises(UnsoundRule, match="is said to be") as caught:
        assert_rule_sound(op, args, rules=weakened(op, change), trials=40, **options)
    refuted = caught.value
    assert refuted.found > refuted.claimed
    # The two inputs are the evidence, whatever found them.
    given = list(args)
    places = options.get("activations", (0,))
    results = []
    for point in (refuted.first, refuted.second):
        for place, part in zip(places, point, strict=True):
            given[place] = part
        constants = [part.double() if isinstance(part, Tensor) else part for part in given]
        results.append(op(*constants))
    apart = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(refuted.first, refuted.second, strict=True)))
    assert float(torch.dist(*results)) > refuted.claimed * apart


@torch.library.custom_op("lipcheck_testing::product", mutates_args=())
def product(x: Tensor, y: Tensor) -> Tensor:
    return x * y


@product.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x)


@dataclass(frozen=True, slots=True, eq=False)
class Product(Nonlinear):
    """x y, elementwise, with three places for mistakes."""

    first: float = 1.0
    second: float = 1.0
    width: float = 1.0

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        x, y = ranges
        return y.log_magnitude() + math.log(self.first), x.log_magnitude() + math.log(self.second)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        largest = ranges[0].magnitude() * ranges[1].magnitude() * self.width
        return Range.box(-largest, largest)


BOXES = [(-1.0, 2.0), (0.0, 3.0)]


def test_each_activation_has_a_constant_of_its_own_and_the_output_a_range() -> None:
    options: Any = {"activations": (0, 1), "domain": BOXES, "trials": 25}
    sound = assert_rule_sound(product, (X, X.clone()), rules={product: lambda node: Product()}, **options)
    assert sound.claimed == pytest.approx(5.0, rel=1e-6)
    # Each of these is hidden in the sum of the two constants.
    for mistake, said in (
        ({"first": 0.98}, "its constant in argument 0"),
        ({"second": 0.98}, "its constant in argument 1"),
        ({"width": 0.98}, "lies outside the range"),
    ):
        wrong = {product: lambda node, mistake=mistake: Product(**mistake)}
        with pytest.raises(UnsoundRule, match=said):
            assert_rule_sound(product, (X, X.clone()), rules=wrong, **options)


def test_an_operation_without_derivative_is_attacked_by_differences() -> None:
    # Steep only where all entries are near one: sampling alone does not meet it.
    @torch.library.custom_op("lipcheck_testing::hidden", mutates_args=())
    def hidden(x: Tensor) -> Tensor:
        return x + torch.exp(-(x - 1).square().sum() / 2) * (x - 1)

    hidden.register_fake(torch.empty_like)
    rules = {hidden: lambda node: Pointwise("hidden", 1.9)}
    with pytest.raises(UnsoundRule):
        assert_rule_sound(hidden, (torch.zeros(1, 3),), rules=rules, domain=(-3.0, 3.0), trials=60)


def test_a_kernel_of_single_precision_is_attacked_in_it() -> None:
    @torch.library.custom_op("lipcheck_testing::single", mutates_args=())
    def single(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise NotImplementedError("float32 only")
        return 2 * x

    single.register_fake(torch.empty_like)
    found = assert_rule_sound(single, (X,), rules={single: lambda node: Pointwise("twice", 2.0)})
    assert 1.999 <= found.found <= 2
    with pytest.raises(UnsoundRule):
        assert_rule_sound(single, (X,), rules={single: lambda node: Pointwise("twice", 1.99)})


def test_all_points_lie_in_the_domain() -> None:
    met: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        met.append(x.detach().double())
        return x.square().sum(-1)

    center = torch.tensor([[1.0, -2.0, 0.5]])
    for domain in (Box(-0.5, 1.0), Ball(0.25, center), Ball(3.0)):
        within = domain.range((1, 3))
        met.clear()
        search = Search(watched, torch.zeros(1, 3, dtype=torch.float64), within, None, 1e-12, 40, 0)
        search.attack(Claim("its constant", math.inf, 0, 3))
        assert len(met) > 400
        for point in met:
            assert bool(((within.low <= point) & (point <= within.high)).all())
            if isinstance(domain, Ball):
                middle = center.double() if domain.center is not None else torch.zeros(1, 3, dtype=torch.float64)
                assert float(torch.linalg.vector_norm(point - middle)) <= domain.radius * (1 + 1e-9)


def test_the_constant_on_a_domain_is_reached() -> None:
    # |2 x| on a box away from its own corner, and in a ball.
    for domain, truth in (((0.5, 2.0), 4.0), (Ball(0.5, torch.full((1, 4), 3.0)), 7.0)):
        found = []
        search = Search(
            torch.square, torch.zeros(1, 4, dtype=torch.float64),
            (Box(*domain) if isinstance(domain, tuple) else domain).range((1, 4)), None, 1e-12, 60, 0,
        )  # fmt: skip
        found.append(search.attack(Claim("its constant", truth, 0, 4)))
        assert found[0] >= 0.98 * truth
        with pytest.raises(Refuted):
            search.attack(Claim("its constant", 0.97 * truth, 0, 4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"args": (3.0,)}, "activations is None; name places"),
        ({"args": (X,), "activations": (1,)}, "name places of floating-point tensors"),
        ({"args": (X[0],)}, "has the shape .* an activation has a batch axis of one"),
        ({"args": (X,), "domain": 3}, "domain holds a int"),
        ({"args": (X,), "domain": [(0.0, 1.0), (0.0, 1.0)]}, "2 parts for 1 activations"),
        ({"args": (X,), "op": 3}, "op is a int"),
        ({"args": (X,), "op": torch.exp}, "no finite constant to attack: .* give a domain="),
        ({"args": (X,), "op": torch.fft.fft}, "no finite constant|no floating-point output"),
    ],
)
def test_what_cannot_be_attacked_is_said(options: dict[str, Any], said: str) -> None:
    options = {"op": torch.relu, **options}
    op, args = options.pop("op"), options.pop("args")
    with pytest.raises(lipcheck.LipcheckError, match=said):
        assert_rule_sound(op, args, **options)


def test_an_operation_that_the_exporter_takes_apart_is_named() -> None:
    with pytest.raises(UsageError, match="is not in the captured graph, which has"):
        assert_rule_sound(aten.relu_.default, (X,))


def test_the_result_compares() -> None:
    assert Attack(1.0, 0.5) == Attack(1.0, 0.5)
