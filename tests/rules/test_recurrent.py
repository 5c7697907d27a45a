"""Recurrent layers: no Jacobian and no pair shows more than their constants, globally and on a domain."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn

from lipcheck.capture import Result, capture
from lipcheck.domains import Box
from lipcheck.errors import UsageError
from lipcheck.graph import Node
from lipcheck.maps import recurrent as maps
from lipcheck.maps.recurrent import Recurrent, combined, nonnegative_norm
from lipcheck.operators import Operator, Unbounded
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES, operator_of
from lipcheck.rules.recurrent import norm_of
from lipcheck.testing import assert_rule_sound

aten = torch.ops.aten


class Read(nn.Module):
    """One result of a recurrent layer."""

    def __init__(self, layer: nn.Module, index: int = 0) -> None:
        super().__init__()
        self.layer, self.index = layer, index

    def forward(self, x: Tensor) -> Tensor:
        output, states = self.layer(x)
        results: list[Tensor] = [output, *(states if isinstance(states, tuple) else (states,))]
        return results[self.index]


def made(kind: Any, *sizes: int, scale: float, index: int = 0, seed: int = 0, **options: Any) -> Read:
    torch.manual_seed(seed)
    layer = kind(*sizes, batch_first=True, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale)
    return Read(layer, index).eval()


@functools.cache
def applied(module: nn.Module, *shape: int) -> Operator:
    graph, _ = capture(module.eval(), torch.rand(1, *shape), known=DEFAULT_RULES)
    (node,) = graph.nodes
    return operator_of(node, DEFAULT_RULES)


CASES: dict[str, tuple[Read, tuple[int, int]]] = {
    "lstm": (made(nn.LSTM, 2, 2, scale=2), (3, 2)),
    "lstm, weak": (made(nn.LSTM, 2, 3, scale=0.5), (3, 2)),
    "lstm, strong": (made(nn.LSTM, 1, 2, scale=8), (4, 1)),
    "lstm, last state": (made(nn.LSTM, 1, 2, scale=4, index=1, num_layers=2), (3, 1)),
    "lstm, memory": (made(nn.LSTM, 1, 2, scale=4, index=2, num_layers=2), (3, 1)),
    "lstm, both ways": (made(nn.LSTM, 1, 2, scale=3, bidirectional=True, num_layers=2, bias=False), (3, 1)),
    "lstm, projected": (made(nn.LSTM, 1, 3, scale=4, proj_size=1, bidirectional=True), (3, 1)),
    "gru": (made(nn.GRU, 2, 2, scale=2), (3, 2)),
    "gru, strong": (made(nn.GRU, 1, 2, scale=8), (4, 1)),
    "gru, last state": (made(nn.GRU, 1, 2, scale=3, index=1, num_layers=2, bidirectional=True), (3, 1)),
    "tanh": (made(nn.RNN, 2, 2, scale=3), (4, 2)),
    "relu": (made(nn.RNN, 2, 2, scale=2, nonlinearity="relu", num_layers=2), (3, 2)),
    "one step": (made(nn.LSTM, 2, 3, scale=3), (1, 2)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [None, 0.5])
def test_no_sequence_shows_more_than_the_constant(name: str, width: float | None) -> None:
    module, shape = CASES[name]
    x = torch.rand(1, *shape)
    if width is None:
        attack = assert_rule_sound(module, (x,), trials=5)
        double = networks.in_double(module)
        assert networks.largest_jacobian(double, (1, *shape)) <= attack.claimed * (1 + 1e-7)
    else:
        assert_rule_sound(module, (x,), domain=Box(-width, width / 2), trials=10)


def test_weak_layers_are_bounded_closely() -> None:
    for name, ratio in (("tanh", 3.0), ("relu", 6.0), ("lstm, weak", 8.0), ("one step", 5.0)):
        module, shape = CASES[name]
        attack = assert_rule_sound(module, (torch.rand(1, *shape),), trials=10)
        assert attack.claimed <= ratio * attack.found, name


# One gate moves, the others stand where they let most of it through: which, at what biases, the first memory or output,
# the result, and the largest ratio of the claim to the truth.
GATES: list[tuple[str, int, list[float], float, int, float]] = [
    ("lstm", 0, [0, 0, 20, 20], 0, 0, 1.3),
    ("lstm", 2, [20, 0, 0, 20], 0, 0, 1.01),
    ("lstm", 3, [20, 0, 20, 0], 0, 0, 1.35),
    ("lstm", 3, [20, 20, 20, 0], 4, 0, 1.01),
    ("lstm", 1, [-20, 0, 0, 20], 4, 0, 3.0),
    ("lstm", 1, [-20, 0, 0, 20], 4, 1, 1.01),
    ("lstm", 0, [0, 0, 20, 20], 0, 1, 1.01),
    ("lstm", 2, [20, 0, 0, 20], 0, 1, 1.01),
    ("gru", 0, [0, -20, 0, 2], 0, 0, 2.5),
    ("gru", 1, [0, 0, 20, 0], -1, 0, 1.01),
    ("gru", 2, [0, -20, 0, 0], 0, 0, 1.01),
]


def _set(layer: nn.Module, *parts: Any) -> nn.Module:
    with torch.no_grad():
        for parameter, part in zip(layer.parameters(), parts, strict=True):
            parameter.copy_(torch.as_tensor(part, dtype=torch.float32).reshape(parameter.shape))
    return layer


class Single(nn.Module):
    """One step: a result of it, as a function of the input and the states."""

    def __init__(self, cell: nn.Module, index: int = 0) -> None:
        super().__init__()
        self.cell, self.index = cell, index

    def forward(self, x: Tensor, state: Tensor, *memory: Tensor) -> Tensor:
        found = self.cell(x, (state, *memory) if memory else state)
        result: Tensor = found[self.index] if memory else found
        return result


@pytest.mark.parametrize(("kind", "gate", "biases", "first", "index", "ratio"), GATES)
def test_each_gate_by_itself(kind: str, gate: int, biases: list[float], first: float, index: int, ratio: float) -> None:
    """In the input, for a first state that is given, and in the state, for an input that is."""
    count = 4 if kind == "lstm" else 3
    weights = [3.0 if place == gate else 0.0 for place in range(count)]
    others = [0.0, 0.0, biases[3]] if kind == "gru" else [0.0] * 4
    cell = _set((nn.LSTMCell if kind == "lstm" else nn.GRUCell)(1, 1), weights, weights, biases[:count], others)
    zero, given = torch.zeros(1, 1), torch.full((1, 1), float(first))
    if kind == "gru":
        # The state that passes by the gates is a path of its own: only the input moves one gate alone.
        attack = assert_rule_sound(Single(cell), (zero, given), trials=20)
        assert attack.claimed <= ratio * attack.found
        assert_rule_sound(Single(cell), (zero, given), activations=(1,), domain=(-1.0, 1.0), trials=20)
        return
    for place in (0, 1):
        attack = assert_rule_sound(Single(cell, index), (zero, zero, given), activations=(place,), trials=20)
        assert attack.claimed <= ratio * attack.found
    assert_rule_sound(Single(cell, index), (zero, zero, given), activations=(0, 1, 2), domain=(-2.0, 4.0), trials=20)


def test_what_a_memory_keeps() -> None:
    """Gates open, nothing read: the memory stays, and is what is put out where it is small."""
    nothing, zero = torch.zeros(4), torch.zeros(1, 1)
    cell = _set(nn.LSTMCell(1, 1), nothing, nothing, [0, 20, 0, 20], nothing)
    for index in (0, 1):
        attack = assert_rule_sound(
            Single(cell, index), (zero, zero, zero), activations=(2,), domain=(-1.0, 1.0), trials=20
        )
        assert attack.claimed <= 1.01 * attack.found


def test_what_a_gated_state_passes_on() -> None:
    """One unit keeps its state, the other takes the first one's over: both at once, the root of two."""
    of_state = torch.zeros(6, 2)
    of_state[5, 0] = 1
    cell = _set(nn.GRUCell(1, 2), torch.zeros(6), of_state, [20, 20, 20, -20, 0, 0], torch.zeros(6))
    attack = assert_rule_sound(
        Single(cell), (torch.zeros(1, 1), torch.zeros(1, 2)), activations=(1,), domain=(-0.1, 0.1), trials=20
    )
    assert attack.found == pytest.approx(math.sqrt(2), rel=1e-3)
    assert attack.claimed <= 1.01 * attack.found


def test_a_projection_and_what_adds_up_over_time_are_exact() -> None:
    """Where the layer is linear about zero its Jacobian there is the table of norms itself."""
    projected = _set(
        nn.LSTM(1, 2, proj_size=1, batch_first=True),
        *([0, 0, 0, 0, 3, 4, 0, 0], torch.zeros(8), [20, 20, 20, 20, 0, 0, 20, 20], torch.zeros(8), [3, 4]),
    )
    adding = _set(
        nn.LSTM(1, 1, batch_first=True), [0, 0, 2, 0], torch.zeros(4), torch.tensor([20, 20, 0, 20]), torch.zeros(4)
    )
    plain = _set(nn.RNN(1, 1, nonlinearity="relu", batch_first=True, num_layers=2), *[0.9, 0.8, 0, 9] * 2)
    both = _set(nn.RNN(1, 1, nonlinearity="relu", batch_first=True, bidirectional=True), *[0.9, 0.8, 0, 9] * 2)
    for layer, steps, index, ratio in (
        (projected, 1, 0, 1.01),
        (adding, 4, 0, 1.05),
        (adding, 4, 1, 1.05),
        (adding, 4, 2, 1.05),
        (plain, 4, 0, 1.1),
        (both, 4, 0, 1.3),
    ):
        attack = assert_rule_sound(
            Read(layer, index).eval(), (torch.zeros(1, steps, 1),), domain=(-0.01, 0.01), trials=9
        )
        assert attack.claimed <= ratio * attack.found


class Stated(nn.Module):
    """A layer whose first states depend on the input as well."""

    def __init__(self, layer: nn.Module, units: int) -> None:
        super().__init__()
        self.layer, self.units = layer, units
        self.state, self.memory = nn.Linear(4, units), nn.Linear(4, units)

    def forward(self, x: Tensor) -> Tensor:
        first, memory = 2 * self.state(x)[:, None], 3 * self.memory(x)[:, None]
        states = (first, memory) if isinstance(self.layer, nn.LSTM) else first
        output: Tensor = self.layer(x.reshape(2, 1, 2), states)[0]
        return output


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_first_states_that_depend_on_the_input(kind: Any) -> None:
    torch.manual_seed(3)
    module = Stated(kind(2, 2), 2).eval()
    x = torch.rand(1, 4)
    assert_rule_sound(module, (x,), domain=Box(-1.0, 1.0), trials=10)
    assert_rule_sound(module, (x,), domain=Box(2.0, 2.5), trials=10)
    if kind is nn.RNN:
        assert_rule_sound(module, (x,), trials=10)
        return
    with pytest.raises(UsageError, match="first state needs a bounded range"):
        assert_rule_sound(module, (x,))


class Loop(nn.Module):
    """Cells called one after the other, as decoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.gated, self.plain = nn.LSTMCell(2, 2), nn.GRUCell(2, 2), nn.RNNCell(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        state, memory = self.cell(x)
        state, memory = self.cell(x * 2, (state, memory))
        gated = self.gated(state, torch.tanh(x))
        plain: Tensor = self.plain(gated, memory)
        return plain


def test_cells_in_a_loop() -> None:
    torch.manual_seed(0)
    module = Loop().eval()
    graph, _ = capture(module, torch.rand(1, 2), known=DEFAULT_RULES)
    assert Result(aten.lstm_cell.default, 1) in {node.op for node in graph.nodes}
    assert_rule_sound(module, (torch.rand(1, 2),), trials=10)
    assert_rule_sound(module, (torch.rand(1, 2),), domain=Box(-0.5, 1.0), trials=10)


def test_long_sequences_and_large_weights_stay_finite() -> None:
    strong, weak = (applied(made(nn.LSTM, 1, 2, scale=scale), 3, 1) for scale in (50, 0.2))
    assert isinstance(strong, Recurrent)
    assert isinstance(weak, Recurrent)
    (slope,) = replace(strong, steps=1500).slopes([Range.unknown((1, 1500, 1))])
    assert 1000 < slope < math.inf
    # The gates of a bounded sequence forget: the constant does not grow with its length.
    near = Range.between(-1.0, 1.0, (1, 1500, 1))
    for operator in (weak, replace(weak, steps=1500)):
        (slope,) = operator.slopes([near])
        assert slope < 0.5


def test_a_domain_never_makes_a_constant_larger() -> None:
    for name in CASES:
        module, shape = CASES[name]
        operator = applied(module, *shape)
        assert isinstance(operator, Recurrent)
        logs = [operator.slopes([Range.between(-w, w, (1, *shape))])[0] for w in (0.1, 1.0, 10.0, math.inf)]
        logs.append(operator.slopes([Range.unknown((1, *shape))])[0])
        assert all(before <= after + 1e-6 for before, after in itertools.pairwise(logs)), name


def test_a_batch_of_sequences_has_the_constant_of_one() -> None:
    module = made(nn.GRU, 2, 3, scale=1)
    graph, _ = capture(nn.Sequential(nn.Unflatten(1, (4, 3, 2)), nn.Flatten(0, 1), module), torch.rand(1, 24))
    (node,) = (node for node in graph.nodes if isinstance(node.op, Result))
    many, one = operator_of(node, DEFAULT_RULES), applied(module, 3, 2)
    assert isinstance(many, Recurrent)
    assert isinstance(one, Recurrent)
    assert many.slopes([Range.unknown((4, 3, 2))]) == one.slopes([Range.unknown((1, 3, 2))])


def test_weights_that_are_no_numbers_or_activations_are_refused() -> None:
    module = made(nn.GRU, 2, 2, scale=1)
    with torch.no_grad():
        module.layer.weight_hh_l0[0, 0] = math.inf  # type: ignore[index, union-attr]
    assert isinstance(applied_anyway(module), Unbounded)

    class Made(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = aten.rnn_tanh_cell.default(x[:, :2], torch.zeros(1, 1), x[:, :2], torch.ones(1, 1))
            return found

    graph, _ = capture(Made().eval(), torch.rand(1, 3), known=DEFAULT_RULES)
    found = operator_of(graph.nodes[-1], DEFAULT_RULES)
    assert isinstance(found, Unbounded)
    assert "weights depend on the input" in found.reason


def applied_anyway(module: Read) -> Operator:
    """The rule's answer where the module's own numbers would not survive a capture."""
    layer: Any = module.layer
    value = capture(made(nn.GRU, 2, 2, scale=1), torch.rand(1, 3, 2), known=DEFAULT_RULES)[0].nodes[0]
    weights = [parameter.detach() for parameter in layer._flat_weights]
    return operator_of(
        Node(value.name, value.op, "", dict(value.arguments) | {"params": weights}, value.shape), DEFAULT_RULES
    )


def test_the_norm_of_a_table_is_bounded_closely() -> None:
    noise = torch.Generator().manual_seed(0)
    for shape in ((1, 1), (3, 3), (20, 20), (5, 40)):
        for power in (1, 20):
            table = torch.rand(shape, generator=noise, dtype=torch.float64) ** power
            table = table.tril() if shape[0] == shape[1] else table
            truth = float(torch.linalg.matrix_norm(table, 2))
            assert truth <= nonnegative_norm(table) * (1 + 1e-12) <= truth * 1.05
    assert nonnegative_norm(torch.zeros(2, 2, dtype=torch.float64)) == 0


def test_groups_are_combined_soundly() -> None:
    noise = torch.Generator().manual_seed(1)
    for _ in range(40):
        groups = [torch.randn(4, 3, generator=noise, dtype=torch.float64) * 10 ** torch.randn(1) for _ in range(3)]
        bound = combined(groups, norm_of)
        norms = [float(torch.linalg.matrix_norm(group, 2)) for group in groups]
        assert bound <= sum(norms) * (1 + 1e-3)
        for _ in range(20):
            signs = [torch.randn(4, generator=noise).sign().double() for _ in groups]
            total = sum(sign[:, None] * group for sign, group in zip(signs, groups, strict=True))
            assert float(torch.linalg.matrix_norm(total, 2)) <= bound * (1 + 1e-12)  # type: ignore[arg-type]


def test_the_largest_slope_of_a_memory() -> None:
    y = torch.linspace(0, 5, 100001, dtype=torch.float64)
    assert float(((y + 1) / torch.cosh(y) ** 2).max()) <= maps._MEMORY_SLOPE
