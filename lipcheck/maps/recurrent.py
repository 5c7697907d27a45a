"""Recurrent layers: LSTM, GRU and plain ones, unrolled over time, of several layers and both directions.

A cell is bounded by what one step does to the norms of its states. With h the output and c the memory of an LSTM,

    |dh_t| <= hx |dx_t| + hh |dh_{t-1}| + hc |dc_{t-1}|,    |dc_t| <= cx_t |dx_t| + ch_t |dh_{t-1}| + cc |dc_{t-1}|,

the other cells having no c. These two lines, unrolled, bound the norm of every block dh_t / dx_s of the Jacobian by a
number N[t, s] >= 0, and the norm of a block matrix is at most that of the matrix of its blocks' norms. Sequences of a
batch do not touch one another.

The coefficients of a step: with z_k the parts of the pre-activation z = W x + U h + b, one number per unit and gate,
dh = sum_k D_k dz_k with diagonal D_k. In groups of gates with scales a_k for which sum_k (D_k / a_k)^2 <= 1 in each
unit, dh is a product of a matrix of norm 1 with the rows a_k dz_k, one below the other; several groups, each of norm n,
are combined with weights (1 / n) so that the whole is at most the sum of the n, and mostly less (`combined`).

LSTM: c' = f c + i g, h' = o tanh(c') with i, f, o = sigmoid, g = tanh of their z.
- dc'/dz_i = g i (1 - i) and dc'/dz_g = i (1 - g^2): with scales sup i (1 - i) and sup i the sum of squares is convex in
  g^2 and at most 1 for g^2 = 0 and 1, so everywhere: one group.
- dc'/dz_f = c f (1 - f), dc'/dc = f.
- dh' = o (1 - t^2) dc' + t o (1 - o) dz_o, t = tanh(c'): convex in t^2, so z_o with the scale sup o (1 - o) joins the
  group of i and g, theirs times sup o. For z_f, |c| f = |c' - i g| <= |c'| + 1, so |c f (1 - f) (1 - t^2)| is at most
  sup (y + 1) sech(y)^2 < 1.2, however large c is.
- |h| < 1, and |c_t| <= sup f |c_{t-1}| + sup i |g|.

GRU: r, u = sigmoid, n = tanh(W_n x + b_n + r q), q = U_n h + b, h' = (1 - u) n + u h, so |h| <= max(1, |h_0|).
- dh'/dz_u = (h - n) u (1 - u); dh'/dz_r = (1 - u) (1 - n^2) q r (1 - r); dh'/d(W_n x) = (1 - u) (1 - n^2).
- u dh and (1 - u) (1 - n^2) r dq are one group: u^2 + (1 - u)^2 is convex in u.

Plain: h' = tanh or relu of z.

The suprema are over what the ranges of x and of the states leave to each unit's z: where nothing is known the gates lie
in (0, 1), their slopes below 1/4, and the bounds are global.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.operators import Nonlinear
from lipcheck.ranges import Range

_SLOP = rounding.EVALUATION
# sup (y + 1) / cosh(y)^2 = 1.1984 at y = 0.381.
_MEMORY_SLOPE = 1.2
# Where states are scaled down, and what entries that underflow are taken for.
_LARGE, _TINY = 1e100, 1e-290

Norm = Callable[[Tensor], float]  # at least the spectral norm of a matrix


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """The weights of one layer in one direction, in float64, gates stacked in torch's order: i f g o, or r u n.

    Shapes: of_input (gates * units, inputs), of_state (gates * units, states), the biases (gates * units,), zeros where
    there are none; projection (states, units) of an LSTM.
    """

    kind: str  # lstm, gru, tanh, relu
    of_input: Tensor
    of_state: Tensor
    input_bias: Tensor
    state_bias: Tensor
    projection: Tensor | None = None

    @property
    def states(self) -> int:
        return self.of_state.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one step does to the norms of changes, and how large the states are after any number of them.

    Shapes: to_memory and memory_of_state have one entry per step; output and memory one per state and unit.
    """

    to_output: float
    output_of_state: float
    output: Tensor
    output_of_memory: float = 0.0
    to_memory: Sequence[float] = ()
    memory_of_state: Sequence[float] = ()
    kept: float = 0.0
    memory: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Gains:
    """Logs of the constants from the inputs, the first output and the first memory."""

    input: float
    state: float
    memory: float


@dataclass(frozen=True, slots=True, eq=False)
class Recurrent(Nonlinear):
    """One result of a recurrent call: all outputs of the last layer, or the last output or memory of every layer.

    Shapes: `cells` has an entry per layer, each with one cell per direction. `constants` are the sequence, the first
        outputs and, of an LSTM, the first memories, None where they are activations: (..., inputs) and
        (layers * directions, ..., units). A single step is a sequence of one, its states of one layer.
    """

    cells: tuple[tuple[Cell, ...], ...]
    steps: int
    result: str  # output, state, memory
    constants: tuple[Tensor | None, ...]
    norm: Norm

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        layers, _ = self._walk(ranges, self.norm)
        names = ("input", "state", "memory")[: len(self.constants)]
        return tuple(
            self._slope(name, layers) for name, given in zip(names, self.constants, strict=True) if given is None
        )

    def _slope(self, name: str, layers: Sequence[Sequence[dict[str, Gains]]]) -> float:
        """The constant in one of the inputs: through the layers, and into each layer where it is a first state."""
        sequence = 0.0 if name == "input" else -math.inf
        ends = []
        for directions in layers:
            logs: dict[str, list[float]] = {"output": [], self.result: []}
            for gains in directions:
                for result in logs:
                    through = rounding.log_multiply_up(gains[result].input, sequence)
                    own = -math.inf if name == "input" else getattr(gains[result], name)
                    logs[result].append(rounding.log_sum_up(through, own))
            sequence = _root_of_squares(logs["output"])
            ends += logs[self.result]
        return sequence if self.result == "output" else _root_of_squares(ends)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        _, steps = self._walk(ranges, None)
        if self.result == "output":
            ends = torch.cat([step.output for step in steps[-1]])
        else:
            found = [step.output if self.result == "state" else step.memory for layer in steps for step in layer]
            known = torch.stack([end for end in found if end is not None])
            # The states of a single step have no axis of layers.
            ends = known[0] if len(known) == 1 else known.reshape(len(known), *(1,) * (len(shape) - 2), -1)
        ends = ends.expand(shape)
        return Range.box(-ends, ends)

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        kind = self.cells[0][0].kind
        first = self._first(ranges)[-1]
        if kind in ("lstm", "gru") and not bool(torch.isfinite(first).all()):
            return "its first state needs a bounded range; give --domain box:LOW,HIGH or ball:RADIUS"
        return ""

    def _first(self, ranges: Sequence[Range]) -> list[Tensor]:
        """The magnitudes of the first states. Shapes: (layers * directions, units) each."""
        following = iter(ranges)
        found = []
        for place, given in enumerate(self.constants):
            one = next(following) if given is None else Range(given.double(), given.double())
            if place == 0:
                continue
            count = sum(len(layer) for layer in self.cells)
            if one.is_unknown:
                found.append(torch.full((count, 1), math.inf, dtype=torch.float64))
            else:
                found.append(one.magnitude().reshape(count, -1, one.shape[-1]).amax(1))
        return found

    def _walk(
        self, ranges: Sequence[Range], norm: Norm | None
    ) -> tuple[list[list[dict[str, Gains]]], list[list[Step]]]:
        """The gains and the steps of every cell; without a norm the steps' sizes only."""
        first = self._first(ranges)
        low, high = _ends(ranges[0] if self.constants[0] is None else self.constants[0])
        layers, all_steps, place = [], [], 0
        for cells in self.cells:
            gains, steps = [], []
            for cell in cells:
                start = [states[place].expand(_size(cell, kind)) for kind, states in zip("hc", first, strict=False)]
                place += 1
                # Without a norm all are one: the sizes of the states do not depend on it.
                step = _STEPS[cell.kind](cell, low, high, start, self.steps, norm or (lambda matrix: 1.0))
                steps.append(step)
                if norm is not None:
                    gains.append(_unrolled(step, self.steps))
            layers.append(gains)
            all_steps.append(steps)
            high = torch.cat([step.output for step in steps])
            low = -high
        return layers, all_steps


def _size(cell: Cell, kind: str) -> int:
    """How many outputs or memories a cell has."""
    return cell.states if kind == "h" else cell.of_state.shape[0] // 4


def _root_of_squares(logs: Sequence[float]) -> float:
    return rounding.log_sum_up(*(rounding.log_multiply_up(log, log) for log in logs)) / 2 if len(logs) > 1 else logs[0]


def _ends(x: Range | Tensor) -> tuple[Tensor, Tensor]:
    """The ends of every feature, whenever. Shapes: (inputs,), or () where nothing is known."""
    if isinstance(x, Tensor):
        x = Range(x.double(), x.double())
    if x.is_unknown:
        return torch.tensor(-math.inf, dtype=torch.float64), torch.tensor(math.inf, dtype=torch.float64)
    features = x.shape[-1]
    return x.low.reshape(-1, features).amin(0), x.high.reshape(-1, features).amax(0)


def _affine(weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of W x, widened. Shapes: (rows,)."""
    low, high = (end.expand(weight.shape[1]) for end in (low, high))
    positive, negative = weight.clamp_min(0), weight.clamp_max(0)
    # Zero times infinity is zero.
    least = ((positive * low).nan_to_num(0.0, math.inf, -math.inf)).sum(1)
    least = least + ((negative * high).nan_to_num(0.0, math.inf, -math.inf)).sum(1)
    most = ((positive * high).nan_to_num(0.0, math.inf, -math.inf)).sum(1)
    most = most + ((negative * low).nan_to_num(0.0, math.inf, -math.inf)).sum(1)
    size = (weight.abs() * torch.maximum(low.abs(), high.abs())).nan_to_num(0.0, math.inf).sum(1) * _SLOP
    return (least - size).nan_to_num(-math.inf, math.inf, -math.inf), (most + size).nan_to_num(math.inf, math.inf)


@dataclass(frozen=True, slots=True, eq=False)
class _Gate:
    """What a sigmoid or a tanh can be on an interval of its argument: ends, and its largest slope. Shapes: (units,)."""

    low: Tensor
    high: Tensor
    slope: Tensor

    @property
    def magnitude(self) -> Tensor:
        return torch.maximum(self.low.abs(), self.high.abs())


def _sigmoid(low: Tensor, high: Tensor) -> _Gate:
    top = torch.sigmoid(torch.zeros_like(low).clamp(low, high))
    return _Gate(
        torch.sigmoid(low) * (1 - _SLOP), torch.sigmoid(high) * (1 + _SLOP), top * (1 - top) * (1 + _SLOP) + _TINY
    )


def _tanh(low: Tensor, high: Tensor) -> _Gate:
    near = torch.zeros_like(low).clamp(low, high)
    first, last = torch.tanh(low), torch.tanh(high)
    slope = torch.cosh(near) ** -2 * (1 + _SLOP) + _TINY
    return _Gate(first - first.abs() * _SLOP, last + last.abs() * _SLOP, slope)


def combined(groups: Sequence[Tensor], norm: Norm) -> float:
    """At least the norm of every sum of E_g B_g with ||E_g|| <= 1.

    It is [E_g / w_g] times the rows w_g B_g, with sum 1 / w_g^2 = 1: at most the norm of those rows, for any weights;
    w_g^2 = (sum n) / n_g with n_g near ||B_g|| makes that at most about the sum of the norms.
    """
    sizes = [_estimate(group) for group in groups]
    kept = [(group, size) for group, size in zip(groups, sizes, strict=True) if size > 0]
    if not kept:
        return 0.0
    total = math.fsum(size for _, size in kept)
    rows = torch.cat([group * math.sqrt(total / size) for group, size in kept])
    return norm(rows) * (1 + _SLOP)


def _estimate(matrix: Tensor) -> float:
    """About the norm, zero only for zeros."""
    if not bool(matrix.any()):
        return 0.0
    vector = torch.linspace(1, 2, matrix.shape[1], dtype=torch.float64)
    for _ in range(8):
        vector = matrix.T @ (matrix @ vector)
        size = float(torch.linalg.vector_norm(vector))
        if not 1e-100 < size < 1e100:
            return float(torch.linalg.vector_norm(matrix))
        vector = vector / size
    return float(torch.linalg.vector_norm(matrix @ vector))


def _lstm(cell: Cell, low: Tensor, high: Tensor, start: Sequence[Tensor], steps: int, norm: Norm) -> Step:
    first, memory = start
    units = cell.of_input.shape[0] // 4
    shrunk = norm(cell.projection) * (1 + _SLOP) if cell.projection is not None else 1.0
    # The first output may be larger than any that follows.
    reach = torch.ones(units, dtype=torch.float64) if cell.projection is None else cell.projection.abs().sum(1)
    z = _pre_activations(cell, low, high, torch.maximum(first, reach * (1 + _SLOP)))
    (i, f, o), g = (_sigmoid(*z[k]) for k in (0, 1, 3)), _tanh(*z[2])
    before = []
    for _ in range(steps):
        before.append(float(memory.max()))
        memory = (f.high * memory + i.high * g.magnitude) * (1 + _SLOP)
    # From step to step the same affine map with a positive slope: the sequence goes one way.
    largest = torch.maximum(memory, start[1])
    of_f = o.high * torch.minimum((largest * f.slope).nan_to_num(math.inf), torch.full_like(memory, _MEMORY_SLOPE))

    def output(weight: Tensor) -> float:
        w_i, w_f, w_g, w_o = weight.chunk(4)
        first_group = [_rows(o.high * i.slope, w_i), _rows(o.high * i.high, w_g), _rows(o.slope, w_o)]
        return shrunk * combined([torch.cat(first_group), _rows(of_f, w_f)], norm)

    def to_memory(weight: Tensor) -> list[float]:
        w_i, w_f, w_g, _ = weight.chunk(4)
        written = norm(torch.cat([_rows(i.slope, w_i), _rows(i.high, w_g)])) * (1 + _SLOP)
        forgotten = norm(_rows(f.slope, w_f)) * (1 + _SLOP)
        return [rounding.add_up(written, rounding.multiply_up(size, forgotten)) for size in before]

    bounded = o.high * torch.tanh(largest) * (1 + _SLOP)
    return Step(
        to_output=output(cell.of_input),
        output_of_state=output(cell.of_state),
        output=bounded if cell.projection is None else cell.projection.abs() @ bounded * (1 + _SLOP),
        output_of_memory=rounding.up(shrunk * float((o.high * f.high).max())),
        to_memory=to_memory(cell.of_input),
        memory_of_state=to_memory(cell.of_state),
        kept=float(f.high.max()),
        memory=largest,
    )


def _gru(cell: Cell, low: Tensor, high: Tensor, start: Sequence[Tensor], steps: int, norm: Norm) -> Step:
    size = start[0].clamp_min(1.0)
    w_r, w_u, w_n = cell.of_input.chunk(3)
    u_r, u_u, u_n = cell.of_state.chunk(3)
    z = _pre_activations(cell, low, high, size)
    r, u = _sigmoid(*z[0]), _sigmoid(*z[1])
    own = cell.state_bias.chunk(3)[2]
    q = ((u_n.abs() * size).nan_to_num(0.0, math.inf).sum(1) + own.abs()) * (1 + _SLOP)
    least, most = _affine(w_n, low, high)
    bias = cell.input_bias.chunk(3)[2]
    n = _tanh(
        least + bias - bias.abs() * _SLOP - r.high * q * (1 + _SLOP),
        most + bias + bias.abs() * _SLOP + r.high * q * (1 + _SLOP),
    )
    both = torch.maximum(u.low**2 + (1 - u.low) ** 2, u.high**2 + (1 - u.high) ** 2).sqrt() * (1 + 4 * _SLOP)
    new = (1 - u.low) * n.slope * (1 + _SLOP)
    of_u = (size + n.magnitude.clamp_max(1.0)) * u.slope * (1 + _SLOP)
    of_r = new * q * r.slope * (1 + _SLOP)
    mixed = torch.cat([torch.diag(both), _rows(both * n.slope * r.high * (1 + _SLOP), u_n)])
    known = bool(torch.isfinite(q).all())
    return Step(
        to_output=combined([_rows(new, w_n), _rows(of_u, w_u), _rows(of_r, w_r)], norm) if known else math.inf,
        output_of_state=combined([mixed, _rows(of_u, u_u), _rows(of_r, u_r)], norm) if known else math.inf,
        output=size,
    )


def _tanh_cell(cell: Cell, low: Tensor, high: Tensor, start: Sequence[Tensor], steps: int, norm: Norm) -> Step:
    ones = torch.ones(cell.states, dtype=torch.float64)
    ((least, most),) = _pre_activations(cell, low, high, start[0].clamp_min(1.0), gates=1)
    slope = _tanh(least, most).slope
    return Step(
        to_output=norm(_rows(slope, cell.of_input)) * (1 + _SLOP),
        output_of_state=norm(_rows(slope, cell.of_state)) * (1 + _SLOP),
        output=ones,
    )


def _relu_cell(cell: Cell, low: Tensor, high: Tensor, start: Sequence[Tensor], steps: int, norm: Norm) -> Step:
    unknown = torch.full((cell.states,), math.inf, dtype=torch.float64)
    return Step(norm(cell.of_input) * (1 + _SLOP), norm(cell.of_state) * (1 + _SLOP), unknown)


_STEPS: dict[str, Callable[[Cell, Tensor, Tensor, Sequence[Tensor], int, Norm], Step]] = {
    "lstm": _lstm,
    "gru": _gru,
    "tanh": _tanh_cell,
    "relu": _relu_cell,
}


def _rows(gain: Tensor, weight: Tensor) -> Tensor:
    return gain[:, None] * weight


def _pre_activations(
    cell: Cell, low: Tensor, high: Tensor, state: Tensor, gates: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """The ends of W x + U h + b for |h| <= state, gate by gate."""
    least, most = _affine(cell.of_input, low, high)
    reach = (cell.of_state.abs() * state).nan_to_num(0.0, math.inf).sum(1) * (1 + _SLOP)
    bias = cell.input_bias + cell.state_bias
    slop = (cell.input_bias.abs() + cell.state_bias.abs()) * _SLOP
    count = gates or (4 if cell.kind == "lstm" else 3)
    return list(zip((least + bias - slop - reach).chunk(count), (most + bias + slop + reach).chunk(count), strict=True))


def _unrolled(step: Step, steps: int) -> dict[str, Gains]:
    """The constants of all outputs, of the last one and of the last memory, from `Step` by Step.

    Two rows, outputs and memories, hold the changes that a unit change of each place brings about: columns 0 and 1 are
    the first state and memory, then come the inputs of every time. They are scaled down as they grow.
    """
    if not all(
        math.isfinite(one) for one in (step.to_output, step.output_of_state, *step.to_memory, *step.memory_of_state)
    ):
        unknown = Gains(math.inf, math.inf, math.inf)
        return {"output": unknown, "state": unknown, "memory": unknown}
    outputs, memories = (torch.zeros(steps + 2, dtype=torch.float64) for _ in range(2))
    outputs[0] = memories[1] = 1.0
    scale, rows, scales = 0.0, [], []
    for t in range(steps):
        to_memory = step.to_memory[t] if step.to_memory else 0.0
        of_state = step.memory_of_state[t] if step.memory_of_state else 0.0
        outputs, memories = (
            step.output_of_state * outputs + step.output_of_memory * memories + _TINY,
            of_state * outputs + step.kept * memories + _TINY,
        )
        outputs[t + 2], memories[t + 2] = (max(one * math.exp(-scale), _TINY) for one in (step.to_output, to_memory))
        outputs[t + 3 :] = 0.0
        memories[t + 3 :] = 0.0
        top = max(float(outputs.max()), float(memories.max()))
        if top > _LARGE:
            outputs, memories, scale = outputs / top, memories / top, scale + math.log(top)
        rows.append(outputs)
        scales.append(scale)
    shrinking = torch.tensor([math.exp(one - scale) for one in scales], dtype=torch.float64)
    table = torch.stack(rows) * shrinking[:, None] + _TINY

    def log(norm: float) -> float:
        # Every entry is a sum of products of positive numbers: relative errors of a few units a step.
        return rounding.log_multiply_up(rounding.log_up(norm * (1 + 4 * _SLOP)), scale + abs(scale) * _SLOP)

    return {
        "output": Gains(log(nonnegative_norm(table[:, 2:])), log(_length(table[:, 0])), log(_length(table[:, 1]))),
        "state": Gains(log(_length(outputs[2:])), log(float(outputs[0])), log(float(outputs[1]))),
        "memory": Gains(log(_length(memories[2:])), log(float(memories[0])), log(float(memories[1]))),
    }


def _length(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def nonnegative_norm(matrix: Tensor) -> float:
    """At least the norm of a matrix without negative entries, not yet widened.

    For a non-negative S = A'A and any positive v the spectral radius is at most max_i (S v)_i / v_i (Collatz and
    Wielandt): close where v is near the top eigenvector.
    """
    top = float(matrix.max()) if matrix.numel() else 0.0
    if top == 0.0:
        return 0.0
    scaled = matrix / top
    vector = torch.ones(matrix.shape[1], dtype=torch.float64)
    best = _length(scaled.flatten())
    for _ in range(40):
        image = scaled.T @ (scaled @ vector)
        best = min(best, math.sqrt(float((image / vector).max())))
        vector = (image / image.max()).clamp_min(1e-12)
    return best * top
