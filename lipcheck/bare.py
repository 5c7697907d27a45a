"""Weights without an architecture: each layer's norm bounded for whatever the network may do with the weight.

A matrix is one. A kernel is a convolution of unknown stride, dilation, zero padding, input size and groups, transposed
or not. Its norm is at most the supremum of the symbol with stride 1, dilation 1 and one group:

- Zero padding on a finite input makes the operator a compression of the one on an infinite input; a stride keeps some
  of its rows; a dilation d puts the symbol's value at d w in place of that at w. None of these raises the supremum.
- With g groups the operator is block diagonal, its blocks the convolutions with W_1 ... W_g, the weight's rows in
  order.
  The weight read as one group has the symbol F = [F_1; ...; F_g], and ||F(w)|| >= ||F_j(w)|| for every j, since
  F*F = sum of F_j*F_j >= F_j*F_j.
- A transposed convolution, in as many groups, is the adjoint of the convolution with the same weight: the same norm.

So the supremum is an upper end for all of them. It is no lower end for any: a stride or a small input may take nearly
everything away. What pads with other values than zeros is not covered, nor is what computes its weight from the stored
one; the report says so. Source: maths, section 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.cached import ENCLOSED, Kept
from lipcheck.engines.enclose import enclose
from lipcheck.engines.gram import magnitude_of, scaled_by_power
from lipcheck.engines.settings import Settings
from lipcheck.errors import WeightsError
from lipcheck.operators import Dense, InfiniteConvolution, Linear, multiplies_safely, scaled_rows
from lipcheck.progress import Clock
from lipcheck.report import LayerReport, LeftOut, ModelSummary, NetworkReport, Report, RunSummary
from lipcheck.sources.header import Entry
from lipcheck.sources.memory import available_memory
from lipcheck.sources.roles import REAL, BatchNorm, Roles, readings, roles
from lipcheck.sources.streams import Stream
from lipcheck.sources.values import nonfinite
from lipcheck.sources.wording import plain

# Operators that are bounded side by side hold no more numbers than this.
_TOGETHER = 1 << 22
# A kernel with more taps, or whose autocorrelations take more multiplications, has a bound without its symbol.
_MOST_TAPS, _MOST_PRODUCTS = 1024, 2e13
# Copies of a Gram matrix that a proof holds, and the share of the free memory that they may take.
_COPIES, _SHARE = 4, 0.6
# Rounding of |gamma| / sqrt(var + eps): sum, root and quotient.
GAIN_ERROR = 8 * rounding.UNIT

NOT_CLAIMED = "the weights alone do not say how the layers are connected"
WAY_OUT = "--arch NAME, or a config.json beside them, does"


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """A norm that is at most `factor` times the largest of the operators'; that of one operator where it is `exact`.

    `known` stands in place of the operators where there is nothing to compute.
    """

    operators: tuple[Linear, ...] = ()
    factor: float = 1.0
    exact: bool = False
    known: Bound | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One row to be: the weight, its own norm, and that with the batch norm behind it."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    own: _Question
    merged: _Question | None = None
    merged_with: str = ""

    @property
    def operators(self) -> tuple[Linear, ...]:
        return (*self.own.operators, *(self.merged.operators if self.merged else ()))


def audit_stream(stream: Stream, name: str, settings: Settings, epsilon: float, clock: Clock, kept: Kept) -> Report:
    """Every weight of the stream bounded by itself, one after the other; no bound on a network.

    `epsilon` is the least that any batch norm of the network adds to its variance. `kept` are earlier audits' bounds.
    Errors: WeightsError for quantised weights and for entries that are not finite.
    """
    found = roles(stream.path, stream.entries)
    clock.stage("bounding the layers", sum(_cost(weight.shape) for weight in found.weights) or 1.0)
    rows = tuple(_rows(stream, found, settings, epsilon, clock, kept))
    clock.stop()
    return Report(
        model=_summary(stream, name, found, epsilon),
        layers=rows,
        network=NetworkReport(math.inf, math.inf, 0.0, reason=f"{NOT_CLAIMED}; {WAY_OUT}", claimed=False),
        unsupported=(),
        left_out=tuple(LeftOut(reason, names) for reason, names in found.left_out.items()),
        run=RunSummary(
            device=str(settings.device),
            threads=torch.get_num_threads(),
            tolerance=settings.tolerance,
            seed=0,
            seconds=clock.seconds,
            versions={"torch": torch.__version__},
            notes=kept.notes,
        ),
    )


def bounds_of(operators: Sequence[Linear], settings: Settings, kept: Kept) -> list[Bound]:
    """The enclosures of some operators, known or computed: the one place where a bare audit has norms."""
    found = kept.find(operators, ENCLOSED)
    missing = [operator for operator, bound in zip(operators, found, strict=True) if bound is None]
    computed = enclose(missing, settings)
    kept.keep(missing, computed, ENCLOSED)
    kept.let_go()
    rest = iter(computed)
    return [next(rest) if bound is None else bound for bound in found]


def _summary(stream: Stream, name: str, found: Roles, epsilon: float) -> ModelSummary:
    kernels = any(len(weight.shape) > 2 for weight in found.weights)
    notes = [*stream.notes, "each weight as it is stored, by itself: nothing is said of the network"]
    if kernels:
        notes.append(
            "kernels: upper ends for every stride, dilation, number of groups, input size and zero padding, "
            "transposed or not; not for padding with other values"
        )
    if found.standing or any(weight.norm for weight in found.weights):
        hint = "" if epsilon else " (give --bn-eps where more is known: torch's own default is 1e-5)"
        notes.append(f"batch norms: paired by their names, for every eps of at least {epsilon:g}{hint}")
    return ModelSummary(
        name=name,
        source=stream.source,
        weights="weights without an architecture",
        parameters=sum(math.prod(entry.shape) for entry in stream.entries.values() if _counts(entry)),
        input_shape=(),
        notes=tuple(notes),
    )


def _counts(entry: Entry) -> bool:
    return entry.format in REAL and not entry.name.endswith(("running_mean", "running_var"))


# One layer after the other


def _rows(
    stream: Stream, found: Roles, settings: Settings, epsilon: float, clock: Clock, kept: Kept
) -> Iterator[LayerReport]:
    """The rows in order. As many small layers as fit are bounded together; a large one by itself."""
    waiting: list[_Job] = []
    held = 0
    for job in _jobs(stream, found, epsilon):
        held += sum(_entries(operator) for operator in job.operators)
        waiting.append(job)
        del job  # the next tensor is read when this one need not be there
        if held > _TOGETHER:
            yield from _bounded(waiting, settings, clock, kept)
            held = 0
    yield from _bounded(waiting, settings, clock, kept)


def _bounded(jobs: list[_Job], settings: Settings, clock: Clock, kept: Kept) -> list[LayerReport]:
    """The rows of the jobs, which are done then."""
    operators = [operator for job in jobs for operator in job.operators]
    bounds = iter(bounds_of(operators, settings, kept) if operators else [])
    rows = []
    for job in jobs:
        own = _answer(job.own, [next(bounds) for _ in job.own.operators])
        merged = _answer(job.merged, [next(bounds) for _ in job.merged.operators]) if job.merged else None
        rows.append(
            LayerReport(
                layer=job.layer,
                op="",
                kind=job.kind,
                bound=own,
                merged=merged,
                merged_with=job.merged_with,
                kernel=job.shape[2:],
                channels=_channels(job.shape),
                padding_mode="zeros" if len(job.shape) > 2 else "",
            )
        )
        clock.advance(_cost(job.shape))
    jobs.clear()
    return rows


def _answer(question: _Question, bounds: Sequence[Bound]) -> Bound:
    """What holds whichever of the operators it is about."""
    largest = max([question.known] if question.known else bounds, key=lambda bound: bound.upper)
    if question.exact:
        return largest
    method = f"{largest.method} × {question.factor:.4g}" if question.factor != 1 else largest.method
    return Bound(0.0, rounding.multiply_up(largest.upper, question.factor), method, largest.kind)


def _jobs(stream: Stream, found: Roles, epsilon: float) -> Iterator[_Job]:
    for name in found.beside:
        _finite(stream, name)
    for weight in found.weights:
        tensor = _finite(stream, weight.name)
        own = _question(tensor)
        kind = "linear" if tensor.dim() == 2 else f"conv{tensor.dim() - 2}d"
        merged = None if weight.norm is None else _merged(tensor, own, _gain(stream, weight.norm, epsilon))
        del tensor
        job = _Job(weight.layer, kind, weight.shape, own, merged, weight.norm.layer if weight.norm else "")
        del own, merged
        yield job
        del job
    for norm in found.standing:
        gain = _gain(stream, norm, epsilon)
        yield _Job(norm.layer, "batch_norm", (norm.channels,), _Question(known=Bound(0.0, largest(gain), "diagonal")))


def _finite(stream: Stream, name: str) -> Tensor:
    """The tensor of this name.

    Errors: WeightsError where an entry is NaN or infinite.
    """
    tensor = stream.read(name)
    if tuple(tensor.shape) != stream.entries[name].shape:
        raise WeightsError(f"{plain(stream.path)}: tensor {plain(name)} has changed while it was read; try again")
    broken = 0
    for part in torch.split(tensor.detach().flatten(), _TOGETHER):
        part = part.float() if part.element_size() == 1 and part.is_floating_point() else part
        broken += part.numel() - int(torch.isfinite(part).sum())
    if broken:
        raise nonfinite(stream.path, name, broken, tensor.numel())
    return tensor.detach()


def _question(tensor: Tensor) -> _Question:
    """The norm of a matrix, or what bounds every convolution with the kernel."""
    if tensor.dim() == 2:
        return _matrix(tensor, exact=True)
    outputs, inputs, *kernel = tensor.shape
    taps, side = math.prod(kernel), min(outputs, inputs)
    if taps == 1:
        return _matrix(tensor.flatten(1))
    products = taps**2 / 2 * side * outputs * inputs
    if taps > _MOST_TAPS or products > _MOST_PRODUCTS or 2 * _gram_bytes(side) > _SHARE * available_memory():
        # F(w) is the kernel, all taps of an input side by side, times a matrix with sqrt(taps) orthonormal columns.
        return replace(_matrix(tensor.flatten(1)), factor=rounding.sqrt_up(taps))
    ones = (1,) * len(kernel)
    return _Question((InfiniteConvolution(tensor, ones, ones, 1),))


def _matrix(matrix: Tensor, *, exact: bool = False) -> _Question:
    """The norm of a matrix; a coarser bound where its Gram matrix does not fit into the memory."""
    if _gram_bytes(min(matrix.shape)) <= _SHARE * available_memory():
        return _Question((Dense(matrix),), exact=exact)
    return _Question(known=coarse(matrix), exact=exact)


def _gram_bytes(side: int) -> int:
    return _COPIES * 8 * side**2


def coarse(matrix: Tensor) -> Bound:
    """At most the Frobenius norm and sqrt(||M||_1 ||M||_inf), at least the longest row."""
    largest = float(matrix.abs().max())
    if largest == 0:
        return Bound(0.0, 0.0, "Frobenius norm")
    exponent = math.frexp(largest)[1]
    squares, row, longest = 0.0, 0.0, 0.0
    columns = torch.zeros(matrix.shape[1], dtype=torch.float64)
    for part in torch.split(matrix, max(1, _TOGETHER // matrix.shape[1])):
        moduli = scaled_by_power(part, -exponent).abs()
        columns += moduli.sum(0)
        row = max(row, float(moduli.sum(1).max()))
        each = moduli.square_().sum(1)
        longest, squares = max(longest, float(each.max())), squares + float(each.sum())
    upper = magnitude_of(row, float(columns.max()), squares, matrix.numel())
    lower = longest**0.5 * (1 - 2 * rounding.gamma(matrix.shape[1] + 8))
    return Bound(rounding.scale_down(lower, exponent), rounding.scale_up(upper, exponent), "Frobenius norm")


# Batch norms


def _gain(stream: Stream, norm: BatchNorm, epsilon: float) -> Tensor:
    """|gamma| / sqrt(var + eps) for the least eps that there is: no smaller for any other. Infinite where that is 0/0.

    Shapes: (channels,), in float64.
    """
    variance = _finite(stream, norm.variance).double() + epsilon
    gamma = _finite(stream, norm.gain).double().abs() if norm.gain else torch.ones_like(variance)
    # A sum near zero has lost what the variance was: no root of it is a bound.
    sound = variance >= 2.0**-1000
    gain = torch.where(sound, gamma / variance.clamp_min(2.0**-1000).sqrt(), math.inf)
    return torch.where((gamma == 0) & (variance >= 0), 0.0, gain)


def largest(gain: Tensor) -> float:
    """At least the largest of a batch norm's gains."""
    return rounding.up(float(gain.max()) * (1 + GAIN_ERROR), 2)


def _merged(tensor: Tensor, own: _Question, gain: Tensor) -> _Question:
    """The norm with the outputs multiplied by their gains, whichever axis of the kernel holds them."""
    if math.isinf(float(gain.max())):
        return _Question(known=Bound(0.0, math.inf, "a running variance of 0: give --bn-eps, the least eps"))
    flat = Dense(tensor.flatten(1))
    if own.known is not None or own.factor != 1 or not multiplies_safely(flat, gain):
        factor = rounding.multiply_up(own.factor, largest(gain))
        return replace(own, factor=factor, exact=False)
    operators: list[Linear] = []
    for groups in readings(tuple(tensor.shape), len(gain)):
        if groups == 0:
            scaled = scaled_rows(flat, gain, GAIN_ERROR)
            assert isinstance(scaled, Dense)
            matrix = scaled.matrix
        else:
            wide = tensor.double().reshape(groups, tensor.shape[0] // groups, tensor.shape[1], -1)
            matrix = (wide * gain.reshape(groups, 1, -1, 1)).reshape(tensor.shape[0], -1)
        error = GAIN_ERROR + 2.0**-52
        if isinstance(own.operators[0], Dense):
            operators.append(Dense(matrix, error))
        else:
            ones = (1,) * (tensor.dim() - 2)
            operators.append(InfiniteConvolution(matrix.reshape(tensor.shape), ones, ones, 1, uncertainty=error))
    return _Question(tuple(operators))


# Sizes


def _entries(operator: Linear) -> int:
    if isinstance(operator, Dense):
        return operator.matrix.numel()
    return operator.weight.numel() if isinstance(operator, InfiniteConvolution) else 0


def _channels(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs, as a matrix and a convolution have them. A grouped one has more inputs."""
    return (shape[0], shape[0]) if len(shape) == 1 else (shape[1], shape[0])


def _cost(shape: tuple[int, ...]) -> float:
    """Multiplications, for showing progress."""
    if len(shape) < 2:
        return 1e4
    taps = math.prod(shape[2:])
    side = min(shape[0], shape[1])
    return float(math.prod(shape)) * side * (1 if taps == 1 else 10 + taps) + 1e6
