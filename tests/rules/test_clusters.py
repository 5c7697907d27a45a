"""Scalar functions that were written out: what is certified about them holds at every point and between any two."""

from __future__ import annotations

import math
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from draws import draws
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from networks import Function
from rules.expressions import DIGITS, Undefined, built, mp, trees, value
from torch import Tensor, nn
from torch.nn import functional

from lipcheck.capture import capture
from lipcheck.graph import Graph
from lipcheck.maps import expressions as e
from lipcheck.maps.portraits import Portrait, portrait
from lipcheck.operators import Pointwise
from lipcheck.propagate import Propagation, propagate
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES, operator_of
from lipcheck.simplify import simplify
from lipcheck.steps import Step

# What evaluating with seventy digits may be off by.
FORGIVEN = mp.mpf(10) ** -40


def steps_of(module: nn.Module, *shape: int, decomposed: bool = False) -> tuple[Graph, list[Step]]:
    known = () if decomposed else DEFAULT_RULES
    graph, _ = capture(module.eval(), torch.rand(1, *shape) + 0.1, known=known)
    return graph, simplify(graph, [operator_of(node, DEFAULT_RULES) for node in graph.nodes])


def last(forward: Any, *, decomposed: bool = False) -> Any:
    return steps_of(Function(lambda self, x: forward(x)), 4, decomposed=decomposed)[1][-1]


def ranged(forward: Any, low: float, high: float) -> Propagation:
    graph, steps = steps_of(Function(lambda self, x: forward(x)), 4)
    return propagate(graph, steps, lambda operator: 1.0, Range.between(low, high, (1, 4)))


def interval(low: float, high: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)


def attack(found: Portrait, tree: Any, low: float, high: float, inner: list[float]) -> None:
    """Values and quotients at sampled points against the image and the slopes on the interval, and everywhere."""
    least, largest = (float(end) for end in found.image(*interval(low, high)))
    slope = float(found.slope(*interval(low, high)))
    steepest = found.steepest(*interval(low, high))
    assert not any(map(math.isnan, (least, largest, slope)))
    special = [place for place in (0.0, 1.0, -1.0, 0.5, 3.0, -3.0, 0.3, -0.3) if low <= place <= high]
    points = sorted({low, high, *special, *(low + (high - low) * share for share in inner)})
    for single in (False, True):
        before = None
        for point in points:
            x = mp.mpf(point)
            try:
                y = value(tree, x, single)
                # A point so near that the quotient is the derivative, unless a jump is between.
                near = x + mp.mpf(10) ** -20 * max(1, abs(x)) if point < high else None
                beside = None if near is None else abs(value(tree, near, single) - y) / (near - x)
            except Undefined:
                before = None
                continue
            assert least <= y <= largest
            quotients = [] if beside is None else [beside]
            if before is not None:
                quotients.append(abs(y - before[1]) / (x - before[0]))
            for quotient in quotients:
                for claimed in (slope, steepest, found.supremum):
                    assert quotient <= claimed * (1 + mp.mpf(10) ** -12) + FORGIVEN
            before = x, y


@settings(max_examples=draws(60), phases=[Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck))
@given(trees, st.floats(-6, 6), st.sampled_from((0.01, 1.0, 4.0, 40.0)), st.lists(st.floats(0, 1), max_size=20))
def test_no_point_of_a_drawn_function_lies_beyond_its_portrait(
    tree: Any, low: float, width: float, inner: list[float]
) -> None:
    expression = built(tree)
    with mp.workdps(DIGITS):
        attack(portrait(expression), tree, low, low + width, inner)


def test_the_attack_sees_a_portrait_that_is_too_flat() -> None:
    tree = ("mul", "x", ("sigmoid", "x"))
    found = portrait(e.mul("x", ("sigmoid", e.mul(0.99, "x"))))
    with mp.workdps(DIGITS), pytest.raises(AssertionError):
        attack(found, tree, 0.5, 5.0, [i / 50 for i in range(50)])


X = e.X
SUPREMA: list[tuple[str, Any, float]] = [
    ("relu squared has none", e.power(e.relu(X), 2.0), math.inf),
    ("tanhshrink", e.subtract(X, ("tanh", X)), 1.0),
    ("softsign", e.divide(X, e.add(e.absolute(X), 1.0)), 1.0),
    ("gaussian", ("exp", e.negative(e.power(X, 2.0))), math.sqrt(2 / math.e)),
    ("inverse root", e.divide(X, e.power(e.add(e.power(X, 2.0), 1.0), 0.5)), 1.0),
    ("logarithm of 1 + exp", e.logarithm(e.add(1.0, ("exp", X))), 1.0),
    ("sigmoid by exp", e.divide(1.0, e.add(1.0, ("exp", e.negative(X)))), 0.25),
    ("snake", e.add(X, e.power(("sin", X), 2.0)), 2.0),
    ("logarithm", e.logarithm(X), math.inf),
    ("x log", e.mul(X, e.logarithm(e.add(e.absolute(X), 1.0))), math.inf),
    ("x exp", e.mul(X, ("exp", X)), math.inf),
    ("sine of a square", ("sin", e.power(X, 2.0)), math.inf),
    ("hardshrink", e.where(e.compare("gt", e.absolute(X), 0.5), X, 0.0), math.inf),
    ("truth value", e.where(e.compare("gt", X, 0.0), 1.0, 0.0), math.inf),
    ("|x| by a root", e.power(e.power(X, 2.0), 0.5), math.inf),
    ("a pole", e.divide(1.0, X), math.inf),
    ("a step that misses by an ulp", e.where(e.compare("gt", X, 1.0), e.mul(1 + 2.0**-40, X), X), math.inf),
]


@pytest.mark.parametrize(("name", "expression", "supremum"), SUPREMA, ids=[name for name, _, _ in SUPREMA])
def test_the_supremum_on_the_whole_line_is_certified_where_there_is_one(
    name: str, expression: Any, supremum: float
) -> None:
    found = portrait(expression).supremum
    assert supremum <= found <= supremum * (1 + 1e-6)


def test_what_is_chosen_by_a_condition_is_continuous_where_that_is_proved() -> None:
    elu = e.where(e.compare("gt", X, 0.0), X, e.add(("exp", X), -1.0))
    assert portrait(elu).supremum == pytest.approx(1.0, abs=1e-12)
    off = e.where(e.compare("gt", X, 0.0), X, e.add(("exp", X), -1.0 + 2**-30))
    assert portrait(off).supremum == math.inf
    # Away from the jump it is smooth.
    assert portrait(off).steepest(*interval(0.1, 3.0)) == pytest.approx(1.0, abs=1e-12)
    # 0.3 is one number in float64 and another in float32: in both the branches meet.
    meeting = e.where(e.compare("le", X, 0.3), e.mul(2.0, X), e.add(X, 0.3))
    assert portrait(meeting).supremum == pytest.approx(2.0, abs=1e-6)


def test_ends_at_infinity_and_beyond_the_cells() -> None:
    silu = portrait(e.silu(X))
    low, high = (float(end) for end in silu.image(*interval(-math.inf, math.inf)))
    assert low == pytest.approx(-0.27846454276, abs=1e-9)
    assert high == math.inf
    assert silu.steepest(*interval(-math.inf, math.inf)) == silu.supremum
    assert silu.steepest(*interval(1e95, 1e99)) == pytest.approx(1.0, abs=1e-9)
    square = portrait(e.power(X, 2.0))
    assert square.steepest(*interval(-1e80, 2.0)) == pytest.approx(2e80, rel=1e-9)
    assert square.steepest(*interval(1.0, 1e99)) == math.inf
    assert square.bounds == (0.0, math.inf)


def test_large_ranges_are_read_as_a_whole_and_element_by_element_alike() -> None:
    found = portrait(e.gelu(X))
    noise = torch.Generator().manual_seed(0)
    low = torch.randn(3, 70_000, generator=noise, dtype=torch.float64)
    high = low + torch.rand(3, 70_000, generator=noise, dtype=torch.float64) * 0.1
    for shift in (0.0, 4.0, -4.0):
        each = found.slope(low + shift, high + shift)
        assert float(each.max()) == pytest.approx(found.steepest(low + shift, high + shift), rel=1e-12)
    assert found.steepest(*(torch.zeros(0, 3, dtype=torch.float64),) * 2) == 0.0


def _written_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


CLUSTERS: list[tuple[str, Any, float]] = [
    ("quick gelu", lambda x: x * torch.sigmoid(1.702 * x), 1.0998394),
    ("new gelu", _written_gelu, 1.1289931),
    ("x tanh softplus", lambda x: x * functional.softplus(x).tanh(), 1.0884982),
    ("x hardsigmoid", lambda x: x * functional.hardsigmoid(x), 1.5),
    ("relu6 gate", lambda x: x * functional.relu6(x + 3) / 6, 1.5),
    ("scaled silu", lambda x: functional.silu(x) * 1.7881, 1.7881 * 1.0998394),
    ("star relu", lambda x: 0.8944 * torch.relu(x) ** 2 - 0.4472, math.inf),
    ("logsigmoid", lambda x: torch.log(torch.sigmoid(x)), 1.0),
    ("softplus", lambda x: torch.log(1 + torch.exp(x)), 1.0),
    ("softplus of log1p", lambda x: torch.log1p(torch.exp(x)), 1.0),
    ("sigmoid", lambda x: 1 / (1 + torch.exp(-x)), 0.25),
    ("swish by exp", lambda x: x / (1 + torch.exp(-x)), 1.0998394),
    ("root", lambda x: torch.sqrt(x * x + 1), 1.001),
    ("bump", lambda x: torch.exp(-x.square()), 0.8577639),
    ("mask", lambda x: (x > 0) * x, 1.0),
    ("mask in floats", lambda x: (x > 0).float() * x, 1.0),
    ("relu by where", lambda x: torch.where(x > 0, x, torch.zeros_like(x)), 1.0),
    ("relu by filling", lambda x: x.masked_fill(x < 0, 0.0), 1.0),
    ("elu by where", lambda x: torch.where(x > 0, x, torch.exp(x) - 1), 1.0),
    ("larger of two multiples", lambda x: torch.maximum(x, 0.1 * x), 1.0),
    ("soft threshold", lambda x: torch.sign(x) * torch.relu(x.abs() - 0.25), math.inf),
    ("tanhshrink", functional.tanhshrink, 1.0),
    ("softsign", functional.softsign, 1.0),
]


@pytest.mark.parametrize(("name", "forward", "slope"), CLUSTERS, ids=[name for name, _, _ in CLUSTERS])
@pytest.mark.parametrize("decomposed", [False, True])
def test_a_cluster_is_one_function(name: str, forward: Any, slope: float, decomposed: bool) -> None:
    graph, steps = steps_of(Function(lambda self, x: forward(x)), 4, decomposed=decomposed)
    known = propagate(graph, steps, lambda operator: 1.8, Range.unknown((1, 4)))
    product = _composed(graph, steps, known)
    assert product <= slope * (1 + 1e-6)
    x = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    y = forward(x)
    steepest = float(((y[1:] - y[:-1]) / (x[1:] - x[:-1])).abs().max())
    assert steepest <= product * (1 + 1e-9)
    box = propagate(graph, steps, lambda operator: 1.8, Range.between(-2.5, 1.25, (1, 4)))
    inside = (x >= -2.5) & (x <= 1.25)
    assert box.output is not None
    # torch evaluates in float64 what it can; its hardsigmoid and its like have constants of float32.
    assert box.output.smallest <= float(y[inside].min()) + 1e-7
    assert float(y[inside].max()) <= box.output.largest + 1e-7
    assert box.output.largest <= float(y[inside].max()) + 1e-3
    assert box.output.smallest >= float(y[inside].min()) - 1e-3


def _composed(graph: Graph, steps: list[Step], known: Propagation) -> float:
    """The product of the slopes on the way to the output, a chain here."""
    by_name = {step.node.name: step for step in steps}
    log, name = 0.0, graph.output
    while name != graph.input.name:
        step = by_name[name]
        assert len(step.inputs) == 1
        slopes = known.slopes.get(name)
        log += slopes[0] if slopes else 0.0 if not hasattr(step.operator, "gain") else _log_gain(step)
        name = step.inputs[0]
    return math.exp(log) if log < 700 else math.inf


def _log_gain(step: Step) -> float:
    return math.log(float(step.operator.gain.abs().max()))  # type: ignore[attr-defined]


def test_softshrink_taken_apart_by_the_exporter_is_put_together() -> None:
    for width in (0.5, 0.3):
        graph, steps = steps_of(nn.Softshrink(width), 4, decomposed=True)
        assert len(steps) > 3
        operator = steps[-1].operator
        assert isinstance(operator, Pointwise)
        assert operator.slope == pytest.approx(1.0, abs=1e-9)
        assert steps[-1].inputs == (graph.input.name,)
        assert operator.slopes([Range.between(-width * 0.9, width * 0.9, (1, 4))])[0] < math.log(1e-9)


@pytest.mark.parametrize(
    "forward",
    [
        functional.hardshrink,
        lambda x: torch.where(x > 0, x, x + 1),
        lambda x: (x > 0.5) * x,
        lambda x: x.masked_fill(x < 0.1, 0.0),
        lambda x: x * torch.sign(x + 1),
        lambda x: torch.where(x.abs() > 0.5, x - torch.sign(x) * 0.25, x * 0),
    ],
)
def test_a_jump_has_no_slope_unless_the_range_avoids_it(forward: Any) -> None:
    operator = last(forward, decomposed=True).operator
    assert isinstance(operator, Pointwise)
    assert operator.slope == math.inf
    assert "no largest slope on the whole line" in operator.unbounded_because([Range.unknown((1, 4))])
    assert operator.slopes([Range.between(2.0, 3.0, (1, 4))])[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x * torch.sigmoid(x.flip(1)),
        lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
        lambda x: x * torch.sigmoid(x.sum(1)),
        lambda x: x + torch.arange(4.0) * x,
        lambda x: torch.where(x.flip(1) > 0, x, -x),
        lambda x: torch.where(x.long() > 0, x, -x),
    ],
)
def test_what_depends_on_more_than_its_own_element_is_no_scalar_function(forward: Any) -> None:
    assert not isinstance(last(forward).operator, Pointwise)


def test_values_that_others_read_stay() -> None:
    def forward(self: Function, x: Tensor) -> Tensor:
        y = self.conv(x)
        gate = torch.sigmoid(y)
        return torch.cat([y * gate, gate, y], 1)

    _, steps = steps_of(Function(forward, conv=nn.Conv1d(2, 2, 1)), 2, 5)
    by_op = {step.node.op_name: step for step in steps}
    assert by_op["aten.mul.Tensor"].inputs == (steps[0].node.name,)
    assert by_op["aten.sigmoid.default"].inputs == (steps[0].node.name,)
    assert len(by_op["aten.cat.default"].inputs) == 3


def test_a_scaling_in_front_of_a_cluster_stays_with_its_layer() -> None:
    def forward(self: Function, x: Tensor) -> Tensor:
        y = self.linear(x) * 0.5
        return y * torch.sigmoid(y)

    _, steps = steps_of(Function(forward, linear=nn.Linear(3, 3)), 3)
    assert steps[0].merged is not None
    assert steps[-1].inputs == (steps[1].node.name,)


def test_a_layer_that_a_cluster_reads_past_its_scaling_is_left_as_it_is() -> None:
    def forward(self: Function, x: Tensor) -> Tensor:
        y = self.linear(x)
        z = y * 0.5
        return z * torch.sigmoid(y)

    _, steps = steps_of(Function(forward, linear=nn.Linear(3, 3)), 3)
    assert steps[-1].inputs == (steps[0].node.name,)
    assert steps[0].merged is None


def test_a_ball_around_a_centre_follows_the_function() -> None:
    graph, steps = steps_of(Function(lambda self, x: (x + 1) * torch.sigmoid(x * x)), 4)
    x = torch.randn(1, 4, dtype=torch.float64)
    domain = Range.unknown((1, 4)).with_ball(x, math.log(0.01), math.log(0.01))
    found = propagate(graph, steps, lambda operator: 1.0, domain).output
    assert found is not None
    assert found.center is not None
    torch.testing.assert_close(found.center, (x + 1) * torch.sigmoid(x * x), rtol=1e-9, atol=0)
    # Where rounding may have eaten the value there is no ball, only a box.
    graph, steps = steps_of(Function(lambda self, x: torch.sigmoid((x + 1e17) - x - 1e17) * x), 4)
    found = propagate(graph, steps, lambda operator: 1.0, domain).output
    assert found is not None
    assert found.center is None
    assert mpmath.isfinite(found.smallest)
