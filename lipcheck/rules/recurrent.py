"""Rules of recurrent layers: torch's own calls, whole sequences and single steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipcheck.capture import Result
from lipcheck.engines.enclose import enclose
from lipcheck.graph import Node, Value
from lipcheck.maps.recurrent import Cell, Recurrent
from lipcheck.operators import Dense, Operator, Unbounded
from lipcheck.rounding import UNIT
from lipcheck.rules.registry import rule

aten = torch.ops.aten

_KINDS = {aten.lstm.input: "lstm", aten.gru.input: "gru", aten.rnn_tanh.input: "tanh", aten.rnn_relu.input: "relu"}
_CELLS = {
    aten.lstm_cell.default: "lstm",
    aten.gru_cell.default: "gru",
    aten.rnn_tanh_cell.default: "tanh",
    aten.rnn_relu_cell.default: "relu",
}
_RESULTS = ("output", "state", "memory")


def norm_of(matrix: Tensor) -> float:
    """At least the spectral norm, proved, of a matrix whose entries were computed in float64."""
    if not matrix.numel() or not bool(matrix.any()):
        return 0.0
    return enclose([Dense(matrix, 8 * UNIT)])[0].upper


@rule(*(Result(op, index) for op, kind in _KINDS.items() for index in range(3 if kind == "lstm" else 2)))
def recurrent(node: Node) -> Operator:
    """Layers of cells, each in one or both directions, over a sequence."""
    assert isinstance(node.op, Result)
    given, kind = node.arguments, _KINDS[node.op.op]
    if given["train"] and given["dropout"]:
        return Unbounded("dropout that is switched on")
    weights = given["params"]
    if any(isinstance(weight, Value) for weight in weights):
        return Unbounded("its weights depend on the input")
    sequence = given["input"]
    directions = 2 if given["bidirectional"] else 1
    each = len(weights) // (given["num_layers"] * directions)
    cells = [
        _cell(kind, weights[place : place + each], has_biases=given["has_biases"])
        for place in range(0, len(weights), each)
    ]
    layers = tuple(tuple(cells[place : place + directions]) for place in range(0, len(cells), directions))
    steps = sequence.shape[1 if given["batch_first"] and len(sequence.shape) == 3 else 0]
    return _checked(Recurrent(layers, steps, _RESULTS[node.op.index], _constants(node), norm_of))


@rule(Result(aten.lstm_cell.default), Result(aten.lstm_cell.default, 1))
@rule(aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default)
def single_step(node: Node) -> Operator:
    """A sequence of one: its outputs are its last one."""
    given = node.arguments
    op: Any = node.op
    op, index = (op.op, op.index) if isinstance(op, Result) else (op, 0)
    weights = [given[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    if any(isinstance(weight, Value) for weight in weights):
        return Unbounded("its weights depend on the input")
    cell = _cell(_CELLS[op], [weight for weight in weights if weight is not None], has_biases=weights[2] is not None)
    return _checked(Recurrent(((cell,),), 1, _RESULTS[2 * index], _constants(node), norm_of))


def _cell(kind: str, weights: list[Tensor], *, has_biases: bool) -> Cell:
    """Torch's order: weights of the input and the state, their biases, the projection."""
    double = [weight.detach().double() for weight in weights]
    if not has_biases:
        double[2:2] = [double[0].new_zeros(len(double[0]))] * 2
    return Cell(kind, double[0], double[1], double[2], double[3], double[4] if len(double) > 4 else None)


def _constants(node: Node) -> tuple[Tensor | None, ...]:
    """The sequence and the first states, None where they are activations."""
    states = node.arguments["hx"]
    operands: list[Any] = [node.arguments["input"], *(states if isinstance(states, list | tuple) else [states])]
    return tuple(None if isinstance(operand, Value) else operand.detach() for operand in operands)


def _checked(operator: Recurrent) -> Operator:
    tensors = list(operator.constants)
    for layer in operator.cells:
        for cell in layer:
            tensors += [cell.of_input, cell.of_state, cell.input_bias, cell.state_bias, cell.projection]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor is not None):
        return Unbounded("its weights, as applied, are not finite")
    return operator
