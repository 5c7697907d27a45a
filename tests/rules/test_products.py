"""Products, ratios and contractions of activations against what their derivatives and values show on ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import networks
import pytest
import reference
import test_propagate as walking
import torch
from rules.ascent import Function, assert_holds, ball, box, boxed_ball, draw, largest_jacobian, ranges_of
from torch import Tensor, nn

import lipcheck
from lipcheck.capture import capture
from lipcheck.compose import Factor, compose
from lipcheck.engines.enclose import enclose, spectral_norm
from lipcheck.graph import Graph, Node, Value
from lipcheck.maps import products
from lipcheck.maps.products import Bilinear, GatedHalf, Interpolation, Operand, Product, WeightedMean
from lipcheck.operators import BatchedDense, Dense, Linear, Nonlinear, Unbounded
from lipcheck.propagate import propagate
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES, operator_of
from lipcheck.rules.products import contraction, einsum_letters, matmul_letters
from lipcheck.simplify import simplify
from lipcheck.steps import Step

aten = torch.ops.aten
X = (1, 3, 4)
Shape = tuple[int, ...]
WIDTHS = ((0.0, 0.0), (0.02, 0.0), (0.5, 2.0), (4.0, 0.0))


def product(first: Shape, second: Shape, *, dividing: bool = False) -> Product:
    whole = tuple(torch.broadcast_shapes(first, second))
    return Product(Operand(first), Operand(second), whole, dividing=dividing)


def matmul(first: Shape, second: Shape) -> Bilinear:
    *letters, result = matmul_letters(first, second)
    form = contraction(letters, result, [first, second])
    assert form is not None
    return Bilinear(Operand(first), Operand(second), form)


def einsum(equation: str, first: Shape, second: Shape) -> Bilinear:
    found = einsum_letters(equation, [first, second])
    assert found is not None
    form = contraction(*found, [first, second])
    assert form is not None
    return Bilinear(Operand(first), Operand(second), form)


def attack(mapping: Nonlinear, function: Function, shapes: Sequence[Shape], width: float, shift: float) -> list[float]:
    """On ranges of each kind; the best shares of the slopes that were reached."""
    drawn = [list(ranges_of(place, shape, width, shift)) for place, shape in enumerate(shapes)]
    best = [0.0] * len(shapes)
    for ranges in zip(*drawn, strict=True):
        best = list(map(max, best, assert_holds(mapping, function, ranges)))
    return best


PAIRS = [(X, X), (X, (1, 3, 1)), (X, (4,)), ((3, 1), (1, 4)), (X, ()), ((1, 1, 4), (2, 3, 1))]


@pytest.mark.parametrize("shapes", PAIRS)
@pytest.mark.parametrize(("width", "shift"), WIDTHS)
def test_products_of_activations(shapes: tuple[Shape, Shape], width: float, shift: float) -> None:
    shares = attack(product(*shapes), torch.mul, shapes, width, shift)
    assert min(shares) > 0.5


@pytest.mark.parametrize("shapes", PAIRS)
@pytest.mark.parametrize(("width", "shift"), [(0.0, 6.0), (0.3, 6.0), (0.3, -9.0)])
def test_ratios_of_activations(shapes: tuple[Shape, Shape], width: float, shift: float) -> None:
    shares = attack(product(*shapes, dividing=True), torch.div, shapes, width, shift)
    assert min(shares) > 0.5


@pytest.mark.parametrize("shapes", PAIRS)
def test_small_divisors(shapes: tuple[Shape, Shape]) -> None:
    torch.manual_seed(0)
    low = torch.rand(shapes[1], dtype=torch.float64) * 0.2 + 0.1
    first = boxed_ball(-torch.ones(shapes[0]), torch.full(shapes[0], 3.0))
    shares = assert_holds(product(*shapes, dividing=True), torch.div, [first, boxed_ball(low, low + 0.05)])
    assert min(shares) > 0.3


def test_a_divisor_that_may_vanish_has_no_constant() -> None:
    mapping = product(X, X, dividing=True)
    some = ball(torch.ones(X), 0.1)
    around_zero = box(torch.full(X, -0.1), torch.full(X, 3.0))
    assert mapping.slopes([some, around_zero])[0] == math.inf
    assert "zero" in mapping.unbounded_because([some, around_zero])
    assert mapping.unbounded_because([some, some]) == ""
    assert "--domain" in product(X, X).unbounded_because([some, Range.unknown(X)])


@pytest.mark.parametrize(("width", "shift"), WIDTHS)
def test_sums_with_products(width: float, shift: float) -> None:
    mapping = Product(Operand((3, 1)), Operand((4,)), X, Operand(X), -1.7)
    attack(mapping, lambda a, x, y: a - 1.7 * x * y, (X, (3, 1), (4,)), width, shift)
    constant = torch.randn(X, dtype=torch.float64)
    fixed = Product(Operand(X), Operand((4,)), X, Operand.fixed(constant), 0.5)
    attack(fixed, lambda x, y: torch.addcmul(constant, x, y, value=0.5), (X, (4,)), width, shift)
    inverse = Product(Operand.fixed(constant), Operand((4,)), X, Operand((3, 1)), 0.5, dividing=True)
    attack(inverse, lambda a, y: torch.addcdiv(a, constant, y, value=0.5), ((3, 1), (4,)), width / 10, shift + 5)
    attack(Interpolation((X, (4,), (3, 1)), X), torch.lerp, (X, (4,), (3, 1)), width, shift)


def test_a_square_is_not_negative() -> None:
    mapping = Product(Operand(X), Operand(X), X, same=True)
    one = box(torch.full(X, -0.5), torch.full(X, 2.0))
    image = mapping.image([one, one], X)
    assert image.smallest >= 0
    assert image.largest <= 4 * (1 + 1e-6)
    apart = box(torch.full(X, -3.0), torch.full(X, -2.0))
    assert mapping.image([apart, apart], X).smallest >= 4 * (1 - 1e-6)


@pytest.mark.parametrize(("width", "shift"), [*WIDTHS, (1.0, -6.0)])
def test_gated_halves(width: float, shift: float) -> None:
    shares = attack(GatedHalf(2), lambda x: nn.functional.glu(x, 2), [X], width, shift)
    assert min(shares) > 0.4
    assert GatedHalf(-1).slopes([Range.unknown(())]) == (math.inf,)


MATRICES = [
    *(((2, 3, 4), (2, 4, 2)), ((3, 4), (2, 4, 2)), ((2, 3, 4), (4,)), ((1, 3, 4), (2, 4, 2)), ((4,), (2, 4, 3))),
    *(((4,), (4,)), ((2, 1, 2, 3), (3, 3, 2)), ((3, 2), (2, 3))),
]


@pytest.mark.parametrize("shapes", MATRICES)
@pytest.mark.parametrize(("width", "shift"), WIDTHS)
def test_matrix_products(shapes: tuple[Shape, Shape], width: float, shift: float) -> None:
    shares = attack(matmul(*shapes), torch.matmul, shapes, width, shift)
    assert min(shares) > 0.3


@pytest.mark.parametrize("width", [0.0, 0.1, 2.0])
def test_weighted_means(width: float) -> None:
    torch.manual_seed(0)
    shapes = ((2, 2, 3), (2, 4, 3), (2, 4, 2))
    lows = [torch.rand(shapes[0]), torch.rand(shapes[1]) * (width < 1), torch.randn(shapes[2])]
    ranges = [boxed_ball(low.double(), low + width) for low in lows]
    mapping = WeightedMean(0.05)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = mapping.value((q, k, v))
        assert found is not None
        return found

    shares = assert_holds(mapping, function, ranges)
    assert min(shares) > 5e-4
    below_zero = boxed_ball(lows[0] - 2, lows[0])
    assert mapping.slopes([below_zero, *ranges[1:]]) == (math.inf,) * 3
    assert not mapping.image([below_zero, *ranges[1:]], (2, 2, 2)).bounded


@pytest.mark.parametrize("positive", [0, 1])
def test_matrix_products_with_one_operand_not_negative(positive: int) -> None:
    shapes = ((2, 3, 4), (2, 4, 2))
    ranges = []
    for place, shape in enumerate(shapes):
        low = torch.rand(shape, dtype=torch.float64) - (0.0 if place == positive else 0.5)
        ranges.append(boxed_ball(low, low + torch.rand(shape, dtype=torch.float64)))
    assert_holds(matmul(*shapes), torch.matmul, ranges)
    image = matmul(*shapes).image(ranges, (2, 3, 2))
    corners = [torch.matmul(a, b) for a in (ranges[0].low, ranges[0].high) for b in (ranges[1].low, ranges[1].high)]
    assert bool((image.low <= torch.stack(corners).amin(0) + 1e-9).all())
    nonnegative = [Range(one.low.clamp_min(0), one.high.clamp_min(0) + math.inf) for one in ranges]
    assert matmul(*shapes).image(nonnegative, (2, 3, 2)).smallest >= 0


EINSUMS = [
    ("bhwc,hkc->bhwk", (1, 2, 2, 3), (2, 2, 3)),
    ("...ij,...kj->...ik", (2, 1, 2, 3), (3, 2, 3)),
    ("bcxd,bcyd->bcxy", (1, 2, 2, 3), (1, 2, 2, 3)),
    ("ab,bc", (2, 3), (3, 2)),
    ("i...,i...->...", (2, 2, 1), (2, 1, 3)),
    ("bk,bk->kb", (2, 3), (2, 3)),
]


@pytest.mark.parametrize(("equation", "first", "second"), EINSUMS)
def test_einsums_of_two_activations(equation: str, first: Shape, second: Shape) -> None:
    attack(einsum(equation, first, second), lambda x, y: torch.einsum(equation, x, y), (first, second), 0.5, 1.0)


def test_an_added_product_of_matrices() -> None:
    shapes = ((2, 3, 4), (2, 4, 2))
    form = matmul(*shapes).form
    mapping = Bilinear(Operand(shapes[0]), Operand(shapes[1]), form, Operand((1, 3, 1)), -0.7, 1.5)
    attack(
        mapping, lambda a, x, y: 1.5 * a - 0.7 * torch.matmul(x, y), ((1, 3, 1), *shapes), 0.5, 1.0
    )  # fmt: skip


@pytest.mark.parametrize(("equation", "first", "second"), EINSUMS)
@pytest.mark.parametrize("on_the_left", [False, True])
def test_einsums_with_a_constant_are_matrices(equation: str, first: Shape, second: Shape, on_the_left: bool) -> None:
    torch.manual_seed(1)
    constant, shape = (torch.randn(first), second) if on_the_left else (torch.randn(second), first)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return torch.einsum(equation, *((self.w, x) if on_the_left else (x, self.w)))

    module = networks.Function(forward, w=constant)
    matrix = networks.matrix_of(networks.in_double(module), shape)
    operator = only_operator(module, shape)
    assert isinstance(operator, BatchedDense)
    reference.assert_encloses(spectral_norm(operator), matrix)


CONSTANTS = [
    *(((2, 3, 4), (2, 4, 2)), ((3, 4), (2, 4, 2)), ((2, 3, 4), (4,)), ((1, 3, 4), (2, 4, 2)), ((4,), (2, 4, 3))),
    *(((4,), (4, 2)), ((2, 3, 4), (4, 2)), ((5, 1, 3, 4), (2, 4, 2))),
]


@pytest.mark.parametrize(("shape", "constant"), CONSTANTS)
@pytest.mark.parametrize("on_the_left", [False, True])
def test_products_with_constant_matrices(shape: Shape, constant: Shape, on_the_left: bool) -> None:
    torch.manual_seed(2)
    if on_the_left:
        shape, constant = constant, shape
    weight = torch.randn(constant)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return torch.matmul(self.w, x) if on_the_left else torch.matmul(x, self.w)

    module = networks.Function(forward, w=weight)
    matrix = networks.matrix_of(networks.in_double(module), shape)
    operator = only_operator(module, shape)
    assert isinstance(operator, BatchedDense | Dense)
    reference.assert_encloses(enclose([operator])[0], matrix)


def only_operator(module: nn.Module, shape: Shape) -> Linear:
    graph, _ = capture(module.eval(), torch.randn(shape), known=DEFAULT_RULES)
    operators = [operator_of(node, DEFAULT_RULES) for node in graph.nodes]
    (found,) = [one for one in operators if isinstance(one, BatchedDense | Dense)]
    return found


# Whole modules: the constant on a domain is above every Jacobian and difference there, and every value in its range.


def captured(module: nn.Module, shape: Shape) -> tuple[Graph, list[Step]]:
    graph, _ = capture(module.eval(), torch.rand(shape) + 0.1, known=DEFAULT_RULES)
    return graph, simplify(graph, [operator_of(node, DEFAULT_RULES) for node in graph.nodes])


def constant_on(module: nn.Module, domain: Range) -> float:
    """The log of the module's constant on a domain; every node's range is checked at points of it."""
    graph, steps = captured(module, domain.shape)
    uppers = {id(s.effective): walking.upper(s.effective) for s in steps if isinstance(s.effective, Linear)}
    known = propagate(graph, steps, walking.upper, domain)
    factors = [
        Factor(s.node.name, s.inputs, s.effective, uppers.get(id(s.effective), math.inf),
               known.slopes.get(s.node.name, ()))
        for s in steps
    ]  # fmt: skip
    plain = all(len(s.node.op._schema.returns) == 1 for s in steps if hasattr(s.node.op, "_schema"))
    converting = any(s.node.op in (aten.to.dtype, aten._to_copy.default) for s in steps)
    if not domain.is_unknown and plain and not converting:
        ranges, noise = walking.ranges_of(graph, steps, domain), torch.Generator().manual_seed(0)
        for kind in range(6):
            walking.assert_holds(graph, ranges, draw(domain, noise, kind))
    return compose(graph.input.name, factors, graph.output).output


def assert_bounded_on(module: nn.Module, domain: Range, *, finite: bool = True, seed: int = 0) -> float:
    """The share of the module's constant that its largest Jacobian on the domain reaches."""
    log = constant_on(module, domain)
    assert math.isfinite(log) == finite
    double = networks.in_double(module)
    found = largest_jacobian(double, [domain], 0, seed)
    assert math.log(found) <= log + 1e-7
    return found / math.exp(min(log, 700.0))


class Squeeze(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class ChannelAttention(nn.Module):
    """ECA: a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3)).view(1, 1, -1)).view(1, -1, 1, 1).sigmoid()
        return x * gate.expand_as(x)


class Selective(nn.Module):
    """Selective kernels: two branches, weighed by a softmax."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)
        self.weigh = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.first(x), self.second(x)], 1)
        weights = self.weigh(both.sum(1).mean((2, 3), keepdim=True)).view(1, 2, -1, 1, 1).softmax(1)
        return (both * weights).sum(1)


class Gated(nn.Module):
    def __init__(self, features: int, activation: nn.Module) -> None:
        super().__init__()
        self.gate, self.value, self.activation = nn.Linear(features, 5), nn.Linear(features, 5), activation
        self.out = nn.Linear(5, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.gate(x)) * self.value(x))


class LinearAttention(nn.Module):
    """EfficientViT's: relu(q) (relu(k)' [v, 1]), normalised by its last column."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.qkv, self.eps = nn.Conv2d(channels, 3 * channels, 1), eps

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).transpose(1, 2).chunk(3, -1)
        q, k, v = torch.relu(q), torch.relu(k), nn.functional.pad(v, (0, 1), value=1.0)
        out = q @ (k.transpose(-1, -2) @ v)
        return out[..., :-1] / (out[..., -1:] + self.eps)


class ScoreAttention(nn.Module):
    """MobileViTv2's: a context vector weighed by a softmax over positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.qkv, self.out = nn.Conv2d(channels, 1 + 2 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).split([1, self.channels, self.channels], 1)
        context = (key * query.softmax(-1)).sum(-1, keepdim=True)
        return self.out(torch.relu(value) * context.expand_as(value))


class Block(nn.Module):
    """A transformer's block with attention written out."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(features), nn.LayerNorm(features)
        self.qkv, self.project = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.mlp = nn.Sequential(nn.Linear(features, 8), nn.GELU(), nn.Linear(8, features))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).chunk(3, -1)
        weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        x = x + self.project(weights @ v)
        return x + self.mlp(self.second(x))


MODULES = {
    "squeeze": (lambda: Squeeze(4, nn.Sigmoid()), (1, 4, 2, 3)),
    "hard squeeze": (lambda: Squeeze(4, nn.Hardsigmoid()), (1, 4, 2, 3)),
    "eca": (ChannelAttention, (1, 4, 2, 3)),
    "selective": (lambda: Selective(3), (1, 3, 2, 2)),
    "glu": (nn.GLU, (1, 3, 6)),
    "swiglu": (lambda: Gated(4, nn.SiLU()), (1, 3, 4)),
    "geglu": (lambda: Gated(4, nn.GELU()), (1, 3, 4)),
    "linear attention": (lambda: LinearAttention(3, 0.5), (1, 3, 2, 2)),
    "score attention": (lambda: ScoreAttention(3), (1, 3, 2, 4)),
    "block": (lambda: Block(4), (1, 3, 4)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("width", "shift"), [(0.0, 0.0), (0.05, 0.0), (1.0, 0.5)])
def test_modules_on_a_domain(name: str, width: float, shift: float) -> None:
    make, shape = MODULES[name]
    torch.manual_seed(3)
    module = make()
    center = torch.randn(shape, dtype=torch.float64) + shift
    share = assert_bounded_on(module, boxed_ball(center - width, center + width))
    if width == 0:
        assert share > 0.01, "not even near"


def test_linear_attention_is_a_weighted_mean() -> None:
    _, steps = captured(LinearAttention(3, 0.5), (1, 3, 2, 2))
    assert sum(isinstance(step.operator, WeightedMean) for step in steps) == 1


def test_without_a_domain_a_gate_says_what_it_needs() -> None:
    module = Squeeze(4, nn.Sigmoid())
    assert constant_on(module, Range.unknown((1, 4, 2, 3))) == math.inf
    # Behind a norm it has a constant: a range starts there.
    behind = nn.Sequential(nn.GroupNorm(1, 4), module)
    assert math.isfinite(constant_on(behind, Range.unknown((1, 4, 2, 3))))


def test_nothing_is_multiplied_out_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_MUCH", 1.0)
    attack(matmul((2, 3, 4), (2, 4, 2)), torch.matmul, ((2, 3, 4), (2, 4, 2)), 0.5, 1.0)


AFFINE = {
    "addmm": (lambda self, x: torch.addmm(self.a, x, self.b, alpha=-0.5), (3,), (4, 3)),
    "addmm of two": (lambda self, x: torch.addmm(x[:, :3], x, self.a, beta=2.0), (4, 3)),
    "addmm on the left": (lambda self, x: torch.addmm(self.a, self.b, x[:, :3], alpha=3.0, beta=-1.0), (3,), (3, 2)),
    "baddbmm": (lambda self, x: torch.baddbmm(self.a, x[None], self.b, alpha=0.3), (1, 2, 2), (1, 4, 2)),
    "lerp": (lambda self, x: torch.lerp(x, x * 2, 0.3)),
    "lerp by a tensor": (lambda self, x: torch.lerp(x[:1], self.a, self.b), (2, 4), (2, 1)),
    "addcmul": (lambda self, x: torch.addcmul(x, self.a, x, value=-2.0), (2, 1)),
    "addcmul broadcast": (lambda self, x: torch.addcmul(self.a, self.b, x[:1], value=2.0), (2, 4), (1,)),
    "addcdiv": (lambda self, x: torch.addcdiv(x[:1], x, self.a, value=2.0), (2, 4)),
    "cumsum": (lambda self, x: x.cumsum(-1) + x.cumsum(0)),
    "masked": (lambda self, x: x[:1].masked_fill(self.a > 0, 3.0), (2, 4)),
    "vectors": (lambda self, x: torch.dot(x[0], self.a) + torch.mv(x, self.a), (4,)),
    "einsum of one": (lambda self, x: torch.einsum("ij->j", x) + torch.einsum("ij->", x)),
    "broadcast scaling": (lambda self, x: x[:, :1] * self.a, (1, 3)),
    "constant over activation": (lambda self, x: self.a / (x + 7.0) + 3.0 / (x[:1] + 8.0), (2, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", AFFINE)
def test_forms_of_products_with_constants(name: str) -> None:
    torch.manual_seed(4)
    function, *shapes = AFFINE[name] if isinstance(AFFINE[name], tuple) else (AFFINE[name],)
    parts = dict(zip("ab", map(torch.randn, shapes), strict=False))
    module = networks.Function(function, **parts)
    center = torch.randn(2, 4, dtype=torch.float64)
    assert_bounded_on(module, boxed_ball(center - 0.5, center + 0.5))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_constants_that_are_no_numbers_give_no_constant(value: float) -> None:
    x, bad = Value("x", (2, 2)), torch.tensor([[1.0, value], [2.0, 3.0]])
    for op, arguments in (
        (aten.mul.Tensor, {"self": x, "other": bad}),
        (aten.div.Tensor, {"self": bad, "other": x}),
        (aten.mm.default, {"self": x, "mat2": bad}),
        (aten.matmul.default, {"self": bad[0], "other": x}),
        (aten.addcmul.default, {"self": x, "tensor1": bad, "tensor2": x, "value": 1}),
        (aten.einsum.default, {"equation": "ij,jk->ik", "tensors": [x, bad]}),
    ):
        assert isinstance(operator_of(Node("y", op, "", arguments, (2, 2)), DEFAULT_RULES), Unbounded)
    dividing = Node("y", aten.div.Tensor, "", {"self": x, "other": torch.zeros(2)}, (2, 2))
    assert isinstance(operator_of(dividing, DEFAULT_RULES), Unbounded)


class Heads(nn.Module):
    """A matrix for each head, and one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.whole = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(1, 5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bhnk,hkj->bhnj", x, self.each) @ self.whole


def test_a_batch_of_matrices_has_a_row_and_a_certificate(tmp_path: Path) -> None:
    torch.manual_seed(9)
    module, example = Heads(), torch.randn(1, 3, 2, 4)
    report = lipcheck.check(module, example=example, samples=0, certificate=tmp_path / "heads.safetensors")
    rows = [(row.kind, row.groups, row.channels) for row in report.layers]
    assert rows == [("einsum", 3, (12, 15)), ("matmul", 1, (5, 2))]
    assert lipcheck.verify(tmp_path / "heads.safetensors", module, example=example).ok
    with torch.no_grad():
        module.each[0, 0, 0] += 1
    assert not lipcheck.verify(tmp_path / "heads.safetensors", module, example=example).ok
