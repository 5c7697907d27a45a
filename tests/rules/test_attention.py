"""Attention and rotary embeddings attacked: constants and images on ranges against what sampling and ascent find."""

from __future__ import annotations

import math
import operator as python_operator
from collections.abc import Callable, Sequence
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipcheck.capture import capture
from lipcheck.maps.attention import Attention, Pairs
from lipcheck.patterns.rotations import evaluated
from lipcheck.ranges import Range, log_row_norm
from lipcheck.rules import DEFAULT_RULES, operator_of
from lipcheck.simplify import simplify
from lipcheck.steps import Step

KNOWN = {*DEFAULT_RULES, torch.ops.aten._assert_tensor_metadata.default}
HEADS, QUERIES, KEYS, WIDTH, FEATURES = 2, 3, 4, 2, 3
POSITIONS, EVEN = 5, 6
STARTS, ASCENT = 32, 20


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


class Parts(nn.Module):
    """A function of several activations, which are parts of one input."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...], **constants: Tensor) -> None:
        super().__init__()
        self.function, self.shapes = function, shapes
        for name, constant in constants.items():
            self.register_buffer(name, constant)

    @property
    def size(self) -> int:
        return sum(map(math.prod, self.shapes))

    def forward(self, x: Tensor) -> Tensor:
        parts, start = [], 0
        for shape in self.shapes:
            parts.append(x[:, start : start + math.prod(shape)].reshape(shape))
            start += math.prod(shape)
        result: Tensor = self.function(self, *parts)
        return result


def steps_of(module: Parts) -> list[Step]:
    graph, _ = capture(module.eval(), noise(1, module.size), known=KNOWN)
    return simplify(graph, [operator_of(node, DEFAULT_RULES) for node in graph.nodes])


Ranged = tuple[Range, Callable[[Tensor], Tensor]]


def box(shape: tuple[int, ...], seed: int, width: float, middle: float = 1.0) -> Ranged:
    """A random box, and the point in it that a tensor of numbers of any size stands for."""
    centre = noise(*shape, seed=seed, scale=middle).double()
    half = noise(*shape, seed=seed + 1, scale=width).double().abs()
    return Range.box(centre - half, centre + half), lambda z: centre + half * torch.sin(z)


def huddle(shape: tuple[int, ...], seed: int, width: float, middle: float) -> Ranged:
    """Boxes around rows that are all the same."""
    same = noise(shape[-1], seed=seed, scale=middle).double().expand(shape)
    half = noise(*shape, seed=seed + 1, scale=width).double().abs()
    return Range.box(same - half, same + half), lambda z: same + half * torch.sin(z)


def rows(shape: tuple[int, ...], seed: int, radius: float, middle: float = 1.0) -> Ranged:
    """A ball for each row by itself."""
    centre = noise(*shape, seed=seed, scale=middle).double()
    count = math.prod(shape[:-1])

    def point(z: Tensor) -> Tensor:
        return centre + radius * z / torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min(1)

    whole = math.log(radius) + math.log(count) / 2
    return Range.unknown(shape).with_ball(centre, whole, math.log(radius)).tightened(), point


def ball(shape: tuple[int, ...], seed: int, radius: float, middle: float = 1.0) -> Ranged:
    centre = noise(*shape, seed=seed, scale=middle).double()

    def point(z: Tensor) -> Tensor:
        return centre + radius * z / torch.linalg.vector_norm(z).clamp_min(1)

    return Range.unknown(shape).with_ball(centre, math.log(radius), math.inf).tightened(), point


def climbed(gain: Callable[..., Tensor], *shapes: tuple[int, ...], seed: int = 0) -> float:
    """The largest value of a function of tensors of numbers: many starts at once, then ascent."""
    generator = torch.Generator().manual_seed(seed)
    free = [torch.randn(STARTS, *shape, generator=generator, dtype=torch.float64).mul_(2) for shape in shapes]
    optimiser = torch.optim.Adam([part.requires_grad_() for part in free], lr=0.2)
    batched = torch.func.vmap(gain)
    best = 0.0
    for _ in range(ASCENT):
        optimiser.zero_grad()
        gains = batched(*free)
        best = max(best, float(gains.detach().max()))
        (-gains.clamp_min(1e-12).log().sum()).backward()
        optimiser.step()
    return best


def stretched(function: Callable[..., Tensor], points: Sequence[Tensor], which: int, way: Tensor) -> Tensor:
    """|J v| / |v| in one input."""

    def one(point: Tensor) -> Tensor:
        return function(*points[:which], point, *points[which + 1 :])

    _, moved = torch.func.jvp(one, (points[which],), (way / torch.linalg.vector_norm(way),))
    return torch.linalg.vector_norm(moved)


def steepest(function: Callable[..., Tensor], places: Sequence[Ranged], which: int) -> float:
    """The largest |J v| / |v| found in one input, at points of the ranges."""

    def gain(way: Tensor, *numbers: Tensor) -> Tensor:
        points = [place(z) for (_, place), z in zip(places, numbers, strict=True)]
        return stretched(function, points, which, way)

    shapes = [one.shape for one, _ in places]
    return climbed(gain, shapes[which], *shapes)


def inside(function: Callable[..., Tensor], operator: Any, places: Sequence[Ranged]) -> None:
    """The image holds what the function returns at points of the ranges: box, ball and rows."""
    generator = torch.Generator().manual_seed(5)
    ranges = [one for one, _ in places]
    example = function(*(place(torch.zeros(one.shape).double()) for one, place in places))
    image = operator.image(ranges, tuple(example.shape))
    assert image.shape == tuple(example.shape)
    for start in range(60):
        scale = (0.3, 2.0, 50.0)[start % 3]
        drawn = [torch.randn(one.shape, generator=generator).double() * scale for one in ranges]
        value = function(*(place(z) for (_, place), z in zip(places, drawn, strict=True)))
        assert bool(((value >= image.low - 1e-9) & (value <= image.high + 1e-9)).all())
        if image.center is not None:
            away = value - image.center
            assert math.log(float(away.norm()) + 1e-300) <= image.radius + 1e-9
            assert log_row_norm(away) <= image.rows + 1e-9


def attacked(operator: Any, function: Callable[..., Tensor], places: Sequence[Ranged]) -> None:
    slopes = operator.slopes([one for one, _ in places])
    assert len(slopes) == len(places)
    for which, slope in enumerate(slopes):
        assert slope < math.inf
        assert steepest(function, places, which) <= math.exp(slope) * (1 + 1e-9) + 1e-12, which
    inside(function, operator, places)


QUERY, KEY, VALUE = (1, HEADS, QUERIES, WIDTH), (1, HEADS, KEYS, WIDTH), (1, HEADS, KEYS, FEATURES)
MASK = torch.tensor([[True, False, True, True], [True, True, False, True], [False, False, True, False]])
SEEN = torch.where(MASK, 0.0, -math.inf)
CONSTANTS = {
    "bias": noise(HEADS, QUERIES, KEYS, seed=1),
    "query": noise(*QUERY, seed=2),
    "key": noise(*KEY, seed=3),
    "value": noise(*VALUE, seed=4),
}


def dot_product(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, **options)


SDPA: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "plain": (lambda m, q, k, v: dot_product(q, k, v), (QUERY, KEY, VALUE)),
    "scale": (lambda m, q, k, v: dot_product(q, k, v, scale=-2.0), (QUERY, KEY, VALUE)),
    "mask": (lambda m, q, k, v: dot_product(q, k, v, attn_mask=MASK), (QUERY, KEY, VALUE)),
    "unseen": (lambda m, q, k, v: dot_product(q, k, v, attn_mask=SEEN), (QUERY, KEY, VALUE)),
    "padding": (lambda m, q, k, v: dot_product(q, k, v, attn_mask=MASK[:1]), (QUERY, KEY, VALUE)),
    "bias": (lambda m, q, k, v: dot_product(q, k, v, attn_mask=m.bias), (QUERY, KEY, VALUE)),
    "causal": (lambda m, q, k, v: dot_product(q, k, v, is_causal=True), (KEY, KEY, VALUE)),
    "wide": (lambda m, q, k, v: dot_product(q, k, v, is_causal=True), (QUERY, KEY, VALUE)),
    "shared": (lambda m, q, k, v: dot_product(q, k, v), (QUERY, (1, 1, KEYS, WIDTH), (1, 1, KEYS, FEATURES))),
    "asked by all": (lambda m, q, k, v: dot_product(q, k, v), ((1, 1, QUERIES, WIDTH), KEY, VALUE)),
    "grouped": (lambda m, q, k, v: dot_product(q, k, v, enable_gqa=True), ((1, 4, QUERIES, WIDTH), KEY, VALUE)),
    "flat": (lambda m, q, k, v: dot_product(q, k, v), ((QUERIES, WIDTH), (KEYS, WIDTH), (KEYS, FEATURES))),
    "one key": (lambda m, q, k, v: dot_product(q, k, v), (QUERY, (1, HEADS, 1, WIDTH), (1, HEADS, 1, FEATURES))),
    "moving bias": (
        lambda m, q, k, v, b: dot_product(q, k, v, attn_mask=b),
        (QUERY, KEY, VALUE, (1, 1, QUERIES, KEYS)),
    ),
    "constant keys": (lambda m, q, v: dot_product(q, m.key, v), (QUERY, VALUE)),
    "constant queries": (lambda m, k, v: dot_product(m.query, k, v), (KEY, VALUE)),
    "constant values": (lambda m, q, k: dot_product(q, k, m.value), (QUERY, KEY)),
}


def kinds(shapes: Sequence[tuple[int, ...]]) -> dict[str, list[Ranged]]:
    """Ranges of several kinds for these inputs."""
    return {
        "boxes": [box(shape, 7 * i, 1.0) for i, shape in enumerate(shapes)],
        "far boxes": [box(shape, 7 * i, 0.5, 6.0) for i, shape in enumerate(shapes)],
        "huddled": [huddle(shape, 7 * i, 0.1, 3.0 if i else 0.0) for i, shape in enumerate(shapes)],
        "narrow boxes": [box(shape, 7 * i, 0.05, 0.4) for i, shape in enumerate(shapes)],
        "wide boxes": [box(shape, 7 * i, 4.0, 0.0) for i, shape in enumerate(shapes)],
        "rows": [rows(shape, 7 * i, 0.8) for i, shape in enumerate(shapes)],
        "narrow rows": [rows(shape, 7 * i, 0.1, 0.3) for i, shape in enumerate(shapes)],
        "balls": [ball(shape, 7 * i, 1.5, 0.0) for i, shape in enumerate(shapes)],
    }


def real(module: Parts) -> Callable[..., Tensor]:
    twin = networks.in_double(module)
    return lambda *parts: twin.function(twin, *parts)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("name", SDPA)
def test_no_point_of_the_ranges_shows_more_than_the_slopes_of_attention(name: str) -> None:
    function, shapes = SDPA[name]
    module = Parts(function, *shapes, **CONSTANTS)
    step = steps_of(module)[-1]
    assert isinstance(step.operator, Attention)
    tried = kinds(shapes)
    for kind in tried if name == "plain" else ("wide boxes", "narrow rows"):
        attacked(step.operator, real(module), tried[kind])


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1)


def tables(m: Parts, q: Tensor) -> Tensor:
    """A bias that is a product with the queries, made in place of the logits' own memory as mvit does."""
    return torch.einsum("bhqc,kc->bhqk", q, m.table)


def written(m: Parts, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = scores(q * 0.7, k).view(1, HEADS, QUERIES, 2, 2)
    return (logits + m.bias.view(HEADS, QUERIES, 2, 2)).view(1, HEADS, QUERIES, KEYS).softmax(-1) @ v


def talking(m: Parts, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = functional.linear(scores(q, k).permute(0, 2, 3, 1), m.heads, m.of_head).permute(0, 3, 1, 2)
    weights = functional.linear(logits.softmax(-1).permute(0, 2, 3, 1), m.heads_after, m.of_head)
    return weights.permute(0, 3, 1, 2) @ v


def convolved(m: Parts, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = functional.conv2d(scores(q, k) + m.bias, m.heads[:, :, None, None], m.of_head)
    return functional.conv2d(logits.softmax(-1), m.heads_after[:, :, None, None]) @ v


def gated(m: Parts, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Part of the weights is of the positions; the sum, one as it is, divides (convit)."""
    gate = torch.sigmoid(m.of_head).view(1, -1, 1, 1)
    weights = (1 - gate) * scores(q, k).softmax(-1) + gate * m.bias.softmax(-1)
    return (weights / weights.sum(-1).unsqueeze(-1)) @ v


def with_sink(m: Parts, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.cat([scores(q, k), m.of_head.view(1, HEADS, 1, 1).expand(1, HEADS, QUERIES, 1)], -1)
    logits = logits - logits.max(-1, keepdim=True).values
    return logits.softmax(-1)[..., :-1] @ v


def replaced(m: Parts, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Some logits are a number whatever the input: the others' keys are not seen from any point but 0."""
    return scores(q, k).masked_fill(~MASK, 0.5).softmax(-1) @ v


WRITTEN: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "scaled queries, bias": (written, (QUERY, KEY, VALUE)),
    "scaled logits": (lambda m, q, k, v: (scores(q, k) / 1.7).softmax(-1) @ v, (QUERY, KEY, VALUE)),
    "scale of each head": (
        lambda m, q, k, v: (scores(q, k) * m.of_head.view(-1, 1, 1)).softmax(-1) @ v,
        (QUERY, KEY, VALUE),
    ),
    "scale of each key": (lambda m, q, k, v: (scores(q, k) * m.bias).softmax(-1) @ v, (QUERY, KEY, VALUE)),
    "unseen": (lambda m, q, k, v: scores(q, k).masked_fill(~MASK, -math.inf).softmax(-1) @ v, (QUERY, KEY, VALUE)),
    "where": (lambda m, q, k, v: torch.where(m.mask, scores(q, k), m.low).softmax(-1) @ v, (QUERY, KEY, VALUE)),
    "replaced": (replaced, (QUERY, KEY, VALUE)),
    "soft cap": (lambda m, q, k, v: (2 * torch.tanh(scores(q, k) / 2)).softmax(-1) @ v, (QUERY, KEY, VALUE)),
    "mirrored": (lambda m, q, k, v: v.mT @ scores(q, k).softmax(-1).mT, (QUERY, KEY, VALUE)),
    "keys first": (lambda m, q, k, v: scores(k, q).softmax(-2).mT @ v, (QUERY, KEY, VALUE)),
    "channels": (
        lambda m, q, k, v: (q.mT @ k).softmax(-1) @ v.mT,
        (QUERY, (1, HEADS, QUERIES, KEYS), (1, HEADS, 5, KEYS)),
    ),
    "einsum": (
        lambda m, q, k, v: torch.einsum("bqkh,bhkd->bqhd", torch.einsum("bhqd,bhkd->bqkh", q, k).softmax(2), v),
        (QUERY, KEY, VALUE),
    ),
    "dots": (
        lambda m, q, k, v: torch.einsum("...ij,...jd->...id", torch.einsum("...id,...jd->...ij", q, k).softmax(-1), v),
        (QUERY, KEY, VALUE),
    ),
    "bmm": (lambda m, q, k, v: torch.bmm(torch.bmm(q, k.mT).softmax(-1), v), (QUERY[1:], KEY[1:], VALUE[1:])),
    "baddbmm": (
        lambda m, q, k, v: torch.bmm(torch.baddbmm(m.bias, q, k.mT, beta=2, alpha=0.5).softmax(-1), v),
        (QUERY[1:], KEY[1:], VALUE[1:]),
    ),
    "shared": (lambda m, q, k, v: scores(q, k).softmax(-1) @ v, (QUERY, (1, 1, KEYS, WIDTH), (1, 1, KEYS, FEATURES))),
    "one head for all values": (
        lambda m, q, k, v: scores(q, k).softmax(-1) @ v,
        ((1, 1, QUERIES, WIDTH), (1, 1, KEYS, WIDTH), VALUE),
    ),
    "copied queries": (lambda m, q, k, v: scores(q.expand(QUERY), k).softmax(-1) @ v, ((1, 1, *QUERY[2:]), KEY, VALUE)),
    "table": (lambda m, q, k, v: (scores(q, k) + tables(m, q)).softmax(-1) @ v, (QUERY, KEY, VALUE)),
    "moving bias": (
        lambda m, q, k, v, b: ((scores(q, k) - 2 * b) * 0.5).softmax(-1) @ v,
        (QUERY, KEY, VALUE, (1, 1, QUERIES, 1)),
    ),
    "talking heads": (talking, (QUERY, KEY, VALUE)),
    "convolved heads": (convolved, (QUERY, KEY, VALUE)),
    "gated": (gated, (QUERY, KEY, VALUE)),
    "sink": (with_sink, (QUERY, KEY, VALUE)),
    "part of the keys": (lambda m, q, k, v: scores(q, k).softmax(-1)[..., 1:] @ v[:, :, 1:], (QUERY, KEY, VALUE)),
    "all but the last key": (
        lambda m, q, k, v: scores(q, k).softmax(-1)[..., :-1] @ v[:, :, :-1],
        (QUERY, KEY, VALUE),
    ),
    "weighed keys": (lambda m, q, k, v: (scores(q, k).softmax(-1) * m.bias) @ v, (QUERY, KEY, VALUE)),
    "largest of a column taken off": (
        lambda m, q, k, v: (scores(q, k) - scores(q, k).amax(-2, keepdim=True)).softmax(-1) @ v,
        (QUERY, KEY, VALUE),
    ),
    "constant queries": (lambda m, k, v: scores(m.query, k).softmax(-1) @ v, (KEY, VALUE)),
    "constant keys": (lambda m, q, v: (scores(q, m.key) / 2 + m.bias).softmax(-1) @ v, (QUERY, VALUE)),
    "in half": (
        lambda m, q, k, v: functional.dropout(scores(q, k).softmax(-1, torch.float32), 0.1, False).to(v.dtype) @ v,
        (QUERY, KEY, VALUE),
    ),
}  # fmt: skip


def by_columns(m: Parts, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).softmax(-1)
    return (weights / weights.sum(-2).unsqueeze(-1)) @ v


# What looks alike and is none: a softmax over queries, over several axes' parts, over heads, or weights of other keys.
OTHERS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "over queries": (lambda m, q, k, v: scores(q, k).softmax(-2) @ v, (QUERY, KEY, VALUE)),
    "divided by the sums of columns": (by_columns, ((1, HEADS, KEYS, WIDTH), KEY, VALUE)),
    "turned round": (lambda m, q, k, v: scores(q, k).softmax(-1).mT @ v, ((1, HEADS, KEYS, WIDTH), KEY, VALUE)),
    "over heads": (lambda m, q, k, v: scores(q, k).softmax(1) @ v, (QUERY, KEY, VALUE)),
    "over parts": (
        lambda m, q, k, v: scores(q, k).view(1, HEADS, QUERIES, 2, 2).softmax(-1).view(1, HEADS, QUERIES, KEYS) @ v,
        (QUERY, KEY, VALUE),
    ),
    "mixed keys": (
        lambda m, q, k, v: functional.linear(scores(q, k), m.bias[0].T @ m.bias[0]).softmax(-1) @ v,
        (QUERY, KEY, VALUE),
    ),
}


def constants() -> dict[str, Tensor]:
    return CONSTANTS | {
        "table": noise(KEYS, WIDTH, seed=5),
        "heads": noise(HEADS, HEADS, seed=6),
        "heads_after": noise(HEADS, HEADS, seed=7),
        "of_head": noise(HEADS, seed=8),
        "mask": MASK,
        "low": torch.tensor(-math.inf),
    }


def values_of(module: Parts, x: Tensor) -> tuple[Step, dict[str, Tensor]]:
    """The last step of the module, and every value of its graph at x in float64."""
    graph, _ = capture(module.eval(), x.float(), known=KNOWN)
    steps = simplify(graph, [operator_of(node, DEFAULT_RULES) for node in graph.nodes])
    known: dict[str, Any] = {graph.input.name: x}
    for node in graph.nodes:
        if node.op is python_operator.getitem or hasattr(node.op, "_schema"):
            known[node.name] = evaluated(node, known)
    return next(step for step in steps if step.node.name == graph.output), known


@pytest.mark.parametrize("name", WRITTEN)
def test_attention_that_is_written_out_is_recognised_and_holds(name: str) -> None:
    function, shapes = WRITTEN[name]
    module = Parts(function, *shapes, **constants())
    x = noise(1, module.size).double()
    step, known = values_of(module, x)
    operator = step.operator
    assert isinstance(operator, Attention)
    found = operator.value([known[name] for name in step.inputs])
    assert found is not None
    torch.testing.assert_close(found, known[step.node.name])
    torch.testing.assert_close(found, networks.in_double(module)(x))

    def compute(*points: Tensor) -> Tensor:
        result = operator.value(points)
        assert result is not None
        return result

    tried = kinds([tuple(known[name].shape) for name in step.inputs])
    # Far from zero in every other case, around one point in the others: the operator is the one that fused calls have.
    for kind in ("wide boxes", "far boxes" if list(WRITTEN).index(name) % 2 else "huddled"):
        attacked(operator, compute, tried[kind])


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_attention_is_left(name: str) -> None:
    function, shapes = OTHERS[name]
    module = Parts(function, *shapes, **constants())
    step, _ = values_of(module, noise(1, module.size).double())
    assert not isinstance(step.operator, Attention)


def self_attention(m: Parts, x: Tensor) -> Tensor:
    """Heads of very different size, queries scaled, as in vit and swin."""
    packed = functional.linear(x, m.matrix, m.offset).reshape(1, POSITIONS, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    q, k, v = packed.unbind(0)
    return dot_product(q * 0.3, k, v) if m.fused else scores(q * 0.3, k).softmax(-1) @ v


def cross_attention(m: Parts, x: Tensor, y: Tensor) -> Tensor:
    def heads(part: Tensor, first: int) -> Tensor:
        rows = part @ m.matrix[first : first + HEADS * WIDTH].T
        return rows.view(1, -1, HEADS, WIDTH).transpose(1, 2)

    return dot_product(heads(torch.tanh(x), 0), heads(y, 4), functional.linear(y, m.matrix[8:10])[:, None])


OF_ROWS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], bool]] = {
    "fused": (self_attention, ((1, 5, EVEN),), True),
    "written out": (self_attention, ((1, 5, EVEN),), False),
    "crossed": (cross_attention, ((1, 4, EVEN), (1, 5, EVEN)), True),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_what_a_linear_layer_makes_of_rows_bounds_the_slopes(name: str) -> None:
    """The rows of queries, keys and values, head by head, are as large as the head's matrix makes them."""
    function, shapes, fused = OF_ROWS[name]
    size = torch.tensor([3.0, 0.1, 0.2, 2.0] * 3).repeat_interleave(1)
    module = Parts(function, *shapes, matrix=noise(12, EVEN) * size[:, None], offset=noise(12, seed=1, scale=0.1))
    module.fused = fused  # type: ignore[assignment]
    step, known = values_of(module, noise(1, module.size).double())
    operator = step.operator
    assert isinstance(operator, Attention)
    origins = step.inputs[3:]
    assert len(set(origins)) == len(shapes)
    places = [rows(tuple(known[name].shape), 3 * i, 0.6, 0.2) for i, name in enumerate(origins)]
    operands = (operator.query, operator.key, operator.values)

    def carried(*sources: Tensor) -> list[Tensor]:
        """The operands, as they are read, from their origins."""
        return [operand.origin.carry(sources[operand.origin.place - 3]) for operand in operands if operand.origin]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(operator.scale * (q @ k.mT), -1) @ v

    shapes = tuple(tuple(part.shape) for part in carried(*(known[name] for name in origins)))
    unknown = [Range.unknown(shape) for shape in shapes]
    slopes = operator.slopes([*unknown, *(one for one, _ in places)])
    assert all(slope == -math.inf for slope in slopes[3:])
    for which, slope in enumerate(slopes[:3]):

        def gain(way: Tensor, *numbers: Tensor, which: int = which) -> Tensor:
            points = carried(*(place(z) for (_, place), z in zip(places, numbers, strict=True)))
            return stretched(attend, points, which, way)

        found = climbed(gain, shapes[which], *(one.shape for one, _ in places))
        assert found <= math.exp(slope) * (1 + 1e-6)
        assert math.exp(slope) <= 8 * found, "not even near the truth"


ROTATED = (1, HEADS, POSITIONS, EVEN)


def angles(turns: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of each position and pair, in single precision."""
    angle = torch.outer(torch.arange(turns).float(), 100.0 ** (-torch.arange(width // 2) / width))
    return angle.cos(), angle.sin()


def by_halves(m: Parts, x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * torch.cat([m.cos, m.cos], -1) + torch.cat([-second, first], -1) * torch.cat([m.sin, m.sin], -1)


def by_neighbours(m: Parts, x: Tensor) -> Tensor:
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return x * m.cos.repeat_interleave(2, -1) + turned * m.sin.repeat_interleave(2, -1)


def apart(m: Parts, x: Tensor) -> Tensor:
    first, second = x[..., : EVEN // 2], x[..., EVEN // 2 :]
    return torch.cat([first * m.cos - second * m.sin, second * m.cos + first * m.sin], -1)


def partly(m: Parts, x: Tensor) -> Tensor:
    """The first positions and the last features stay as they are."""
    rest, moving, still = x[:, :, :1], x[:, :, 1:, :4], x[:, :, 1:, 4:]
    first, second = moving[..., :2], moving[..., 2:]
    cos, sin = (torch.cat([part[1:, :2], part[1:, :2]], -1) for part in (m.cos, m.sin))
    turned = moving.float() * cos + torch.cat((-second, first), -1) * sin
    return torch.cat([rest, torch.cat([turned.to(x.dtype), still], -1)], 2)


ROTATIONS: dict[str, tuple[Callable[..., Tensor], float]] = {
    "halves": (by_halves, 1.0),
    "neighbours": (by_neighbours, 1.0),
    "apart": (apart, 1.0),
    "partly": (partly, 1.0),
    "scaled": (lambda m, x: by_halves(m, x) / -0.25, 4.0),
    "halves the other way": (lambda m, x: torch.cat(x.split(2, -1)[::-1], -1), 1.0),
    "twice": (lambda m, x: torch.cat([x, x[..., :1]], -1), math.sqrt(2)),
    "no angle": (lambda m, x: x * m.one + torch.cat([x[..., 3:], x[..., :3]], -1) * m.other, math.nan),
    "sum of halves": (lambda m, x: x[..., :3] * 3 - x[..., 3:] * 4, 5.0),
}


def test_a_view_is_one_of_any_layout() -> None:
    (node,) = capture(networks.Function(lambda self, x: x.view(1, 12)), torch.randn(1, 3, 4))[0].nodes
    numbered = torch.arange(12.0).reshape(1, 4, 3).transpose(1, 2)
    assert torch.equal(evaluated(node, {node.inputs[0].name: numbered}), numbered.reshape(1, 12))


def test_layers_with_the_same_rotation_share_it() -> None:
    """Each is as large as an activation, and a network has many."""
    cos, sin = angles(POSITIONS, EVEN)

    def layers(m: Parts, x: Tensor) -> Tensor:
        first = by_halves(m, x).relu()
        return by_halves(m, by_halves(m, first).relu() * 2).relu() + by_neighbours(m, first)

    found = [
        step.operator for step in steps_of(Parts(layers, ROTATED, cos=cos, sin=sin)) if isinstance(step.operator, Pairs)
    ]
    different = list({id(operator): operator for operator in found}.values())
    assert len(found) == 8  # the turned halves and the rotation, four times
    assert len(different) == 4
    assert not any(one.same(other) for one in different for other in different if one is not other)


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotary_embeddings_have_the_norm_of_their_matrix(name: str) -> None:
    function, norm = ROTATIONS[name]
    cos, sin = angles(POSITIONS, EVEN)
    constants = {"cos": cos, "sin": sin, "one": noise(POSITIONS, EVEN, seed=1), "other": noise(POSITIONS, EVEN, seed=2)}
    module = Parts(function, ROTATED, **constants)
    steps = {step.node.name: step for step in steps_of(module)}
    last = next(step for step in reversed(steps.values()) if isinstance(step.operator, Pairs))
    operator = last.operator
    matrix = networks.matrix_of(networks.in_double(module), (1, module.size))
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    factor = 4.0 if name == "scaled" else 1.0
    (slope,) = operator.slopes([Range.unknown(ROTATED)])
    assert truth <= factor * math.exp(slope) * (1 + 1e-12) <= truth * (1 + 1e-8)
    assert math.isnan(norm) or truth == pytest.approx(norm, rel=1e-6)
    shape = {"sum of halves": (1, HEADS, POSITIONS, 3), "twice": (1, HEADS, POSITIONS, EVEN + 1)}.get(name, ROTATED)

    def apply(x: Tensor) -> Tensor:
        return (matrix / factor @ x.flatten()).reshape(shape) * (-1 if name == "scaled" else 1)

    for places in kinds([ROTATED]).values():
        inside(apply, operator, places)


def test_a_rotation_across_rows_keeps_no_rows() -> None:
    operator = steps_of(Parts(lambda m, x: 2 * torch.cat([x[:, 1:], x[:, :1]], 1) + x, ROTATED))[-1].operator
    assert isinstance(operator, Pairs)
    assert not operator.rows


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x + torch.cat([x[..., 1:], x[..., :1]], -1),  # a chain of three
        lambda m, x: torch.cat([x.relu(), x], -1),
        lambda m, x: x * x + torch.cat([x[..., 3:], x[..., :3]], -1),
    ],
)
def test_what_does_not_read_in_pairs_is_left(function: Callable[..., Tensor]) -> None:
    assert not isinstance(steps_of(Parts(function, ROTATED))[-1].operator, Pairs)
