"""Operators to layers and network: every linear step enclosed once, listed under its layer, and composed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.cached import ENCLOSED, TIGHTENED, Kept
from lipcheck.compose import Composition, Factor, compose
from lipcheck.engines import ladder
from lipcheck.engines.enclose import cost, enclose
from lipcheck.engines.methods import applies, bound_by
from lipcheck.engines.settings import Settings
from lipcheck.errors import CertificateError
from lipcheck.graph import Graph
from lipcheck.operators import (
    Convolution,
    Dense,
    Indexing,
    Linear,
    Operator,
    Padded,
    Unbounded,
    Weighted,
    uncertainty_of,
)
from lipcheck.progress import Clock
from lipcheck.proof import ScaledProof, ZeroProof
from lipcheck.propagate import Propagation, propagate
from lipcheck.ranges import Range
from lipcheck.report import EmbeddingReport, LayerReport, UnsupportedOperation
from lipcheck.rows import Listing, embedding_rows, layer_rows, listing
from lipcheck.simplify import uniform_gain
from lipcheck.steps import Step
from lipcheck.tighten import Tightening, tighten

# The sampled Jacobians' work, as a guessed share of the bounds'.
_BESIDE = 0.4
# A slack that is worth a hint.
_LOOSE = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class LayerAudit:
    """What is known of the layers and, in natural logs, of the network."""

    layers: tuple[LayerReport, ...]
    embeddings: tuple[EmbeddingReport, ...]
    unsupported: tuple[UnsupportedOperation, ...]
    log_upper: float
    log_product: float
    tightening: tuple[tuple[str, float, float], ...]  # each step with the log of the bound before and after it
    reason: str
    elsewhere: Mapping[str, float]  # shares of what has no row, by operation
    notes: tuple[str, ...]  # what was tightened and what was left, for people
    unfinished: tuple[str, ...]  # those of them that tell what did not fit the time or the memory
    bound_of: Callable[[Operator], Bound]  # of every linear operator of the steps


def audit_layers(
    graph: Graph,
    steps: Sequence[Step],
    settings: Settings,
    clock: Clock,
    beside: Callable[[], None],
    methods: Sequence[str] = (),
    domain: Range | None = None,
    *,
    heads: bool = False,
    tables: Mapping[str, Tensor] | None = None,
    kept: Kept | None = None,
    tightened: bool = True,
) -> LayerAudit:
    """Bounds of all linear steps, by themselves and merged, and the two compositions of the network.

    `domain` is where the input can be, anywhere if None. `beside` is another task that shares the processor with the
    bounds. `methods` are compared on each layer with weights; behind a padding that copies, where the certified bound
    is loose, the randomised one always is.
    `heads` lists the projections of attention by head. `tables` are the module's embeddings, by path. `kept` are the
    bounds of earlier audits; what is computed joins them. `tightened` is whether the network's bound is worth its time.
    """
    bounds = _Bounds(settings, kept or Kept(None, settings))
    extra = listing(graph, steps, heads=heads, tables=tables or {})
    if bounds.kept.used:
        clock.stage("looking up the layers")
    work = bounds.plan(steps, extra)
    clock.stage("sampling the Jacobian" if bounds.complete else "bounding the layers", work * (1 + _BESIDE))
    bounds.run(clock.advance, [(work * _BESIDE, beside)])
    if settings.tight:
        bounds.tighten(clock)
    else:
        bounds.notes += _loosely(bounds.found.values())
    bounds.compare(steps, methods, clock)
    clock.stage("following the ranges")
    domain = Range.unknown(graph.input.shape) if domain is None else domain
    known = propagate(graph, steps, lambda operator: bounds.of(operator).upper, domain, whole=False)
    clock.stage("composing the network")
    whole = _composition(graph, steps, bounds, known, merged=True)
    plain = _composition(graph, steps, bounds, known, merged=False)
    unsupported = _unsupported(graph, steps, known)
    # What a network may cost is the same whether or not its layers were found.
    tightening = Tightening() if not tightened else tighten(
        graph, steps, known.slopes, bounds.of, settings, clock,
        product=plain.output, folded=whole.output, work=bounds.work, kept=bounds.kept,
    )  # fmt: skip
    return LayerAudit(
        layers=layer_rows(steps, bounds, lambda step: _share(step, whole), known, extra),
        embeddings=embedding_rows(bounds, extra),
        unsupported=unsupported,
        log_upper=min(whole.output, plain.output, *(after for _, _, after in tightening.steps)),
        log_product=plain.output,
        tightening=tightening.steps,
        reason=_reason(unsupported) if math.isinf(whole.output) and whole.output > 0 else "",
        elsewhere=_elsewhere(steps, whole, extra.inside(steps)),
        notes=(*bounds.notes, *tightening.notes, *bounds.kept.notes),
        unfinished=tuple(bounds.unfinished),
        bound_of=bounds.of,
    )


class _Bounds:
    """The enclosure of every distinct linear operator of a network, each computed once or known from before."""

    def __init__(self, settings: Settings, kept: Kept) -> None:
        self.settings = settings
        self.kept = kept
        self.found: dict[Any, Bound] = {}
        self.planned: dict[Any, Operator] = {}
        self.compared: dict[Any, dict[str, Bound]] = {}
        self.notes: list[str] = []
        self.unfinished: list[str] = []
        self.scaled: dict[Any, tuple[Any, float, float]] = {}

    def plan(self, steps: Sequence[Step], extra: Listing) -> float:
        """Collects the operators to bound and looks up what is known of them; the cost of the others."""
        for operator in extra.operators:
            self.planned.setdefault(_key(operator), operator)
        for step in steps:
            own = step.operator
            if isinstance(own, Linear):
                self.planned.setdefault(_key(own), own)
            merged = step.merged
            if isinstance(merged, Linear) and merged is not own:
                gain = uniform_gain(own, merged) if isinstance(own, Weighted) and isinstance(merged, Weighted) else None
                if gain is not None and isinstance(merged, Weighted):
                    self.scaled[_key(merged)] = (_key(own), abs(gain), uncertainty_of(merged))
                else:
                    self.planned.setdefault(_key(merged), merged)
        known = self.kept.find(list(self.planned.values()), ENCLOSED)
        self.found = {key: bound for key, bound in zip(self.planned, known, strict=True) if bound is not None}
        return sum(cost(operator) for key, operator in self.planned.items() if key not in self.found)

    @property
    def work(self) -> float:
        """The cost of all of them, known from before or not."""
        return sum(cost(operator) for operator in self.planned.values())

    @property
    def complete(self) -> bool:
        """Whether all bounds that take time were known from before."""
        missing = (operator for key, operator in self.planned.items() if key not in self.found)
        return self.kept.used and not any(self.kept.takes(operator) for operator in missing)

    def run(self, advance: Callable[[float], None], beside: Sequence[tuple[float, Callable[[], None]]]) -> None:
        """Bounds what is not known, and keeps each bound at once: an audit that is broken off was not for nothing."""
        keys = [key for key in self.planned if key not in self.found]

        def keep(operators: Sequence[Operator], bounds: Sequence[Bound]) -> None:
            self.kept.keep(operators, bounds, ENCLOSED)

        bounds = enclose([self.planned[key] for key in keys], self.settings, advance, beside, keep)
        self.found |= dict(zip(keys, bounds, strict=True))
        self._scale()

    def _scale(self) -> None:
        """The multiples of what was bounded."""
        for key, (own, gain, uncertainty) in self.scaled.items():
            self.found[key] = _times(self.found[own], gain, uncertainty)

    def tighten(self, clock: Clock) -> None:
        """The ladder of small inputs, as far as it fits the budget; what it will cost is told before."""
        known = self.kept.find(list(self.planned.values()), TIGHTENED)
        climbed = {key: bound for key, bound in zip(self.planned, known, strict=True) if bound is not None}
        self.found |= climbed
        keys = [key for key in self.planned if key not in climbed]
        operators = [self.planned[key] for key in keys]
        bounds = [self.found[key] for key in keys]
        chosen = ladder.plan(operators, bounds, self.settings)
        self.unfinished = _left(chosen)
        told = [*_climbing(chosen), *self.unfinished]
        self.notes += told
        clock.announce("; ".join(told) or "nothing to tighten")
        if chosen.climbs:
            clock.stage("tightening", chosen.seconds)
            bounds = ladder.climb(operators, bounds, chosen, self.settings, clock.advance)
            places = [climb.place for climb in chosen.climbs]
            self.kept.keep([operators[i] for i in places], [bounds[i] for i in places], TIGHTENED)
        self.found |= dict(zip(keys, bounds, strict=True))
        self._scale()

    def compare(self, steps: Sequence[Step], methods: Sequence[str], clock: Clock) -> None:
        """Each method on every layer with weights that it applies to."""
        layers = {_key(step.operator): step.operator for step in steps if isinstance(step.operator, Weighted)}
        for name in dict.fromkeys([*methods, "randomised"]):
            wanted = layers if name in methods else {k: v for k, v in layers.items() if _loose(v, self.found[k])}
            fitting = {key: operator for key, operator in wanted.items() if applies(name, operator)}
            if not fitting:
                continue
            clock.stage(f"method {name}", float(len(fitting)))
            for key, operator in fitting.items():
                # One layer without a number costs the report that number only.
                with contextlib.suppress(CertificateError):
                    self.compared.setdefault(key, {})[name] = self._by(name, operator, self.found[key].lower)
                clock.advance(1.0)

    def _by(self, name: str, operator: Operator, lower: float) -> Bound:
        """What the method says of the operator, now or before."""
        (known,) = self.kept.find([operator], f"method {name}", lower)
        if known is None:
            known = bound_by(name, operator, self.settings, lower=lower)
            self.kept.keep([operator], [known], f"method {name}", lower)
        return known

    def of(self, operator: Operator) -> Bound:
        """The enclosure of a linear operator that was planned."""
        return self.found[_key(operator)]

    def compared_with(self, operator: Operator) -> dict[str, Bound]:
        """What other methods say of it."""
        return dict(self.compared.get(_key(operator), {}))

    def key(self, operator: Operator) -> Hashable:
        """Equal for operators that are the same map."""
        found: Hashable = _key(operator)
        return found


def _loose(operator: Operator, bound: Bound) -> bool:
    """Whether a padding that copies inputs was paid for by the root of the copies."""
    return isinstance(operator, Padded) and "copies" in bound.method


def _loosely(bounds: Iterable[Bound]) -> list[str]:
    """A hint where the embedding is loose, as it is on inputs of a few pixels."""
    loose = sum(bound.slack > _LOOSE and bound.method.startswith("embedding") for bound in bounds)
    operators = f"{loose} operator{'' if loose == 1 else 's'}"
    return [f"{operators} with more than {_LOOSE:.0%} slack: --tight narrows them"] if loose else []


def _climbing(chosen: ladder.Plan) -> list[str]:
    """A plan for the report's reader: what is tightened."""
    if not chosen.climbs:
        return []
    return [f"tightening {_count(chosen.climbs)}, estimated at {ladder.lasting(chosen.seconds)}"]


def _left(chosen: ladder.Plan) -> list[str]:
    """What the plan leaves, and what it would have cost."""
    notes = []
    slow = [step for step in chosen.left if math.isfinite(step.seconds)]
    large = [step for step in chosen.left if not math.isfinite(step.seconds)]
    if slow:
        seconds = ladder.lasting(sum(step.seconds for step in slow))
        notes.append(f"{_count(slow)} left as before: tightening takes another {seconds}, over the time budget")
    if large:
        notes.append(f"{_count(large)} left as before: tightening takes more than the memory allowed")
    return notes


def _count(climbs: Sequence[ladder.Climb]) -> str:
    return f"{len(climbs)} operator{'' if len(climbs) == 1 else 's'}"


def _times(bound: Bound, gain: float, uncertainty: float) -> Bound:
    """The enclosure of a multiple of an operator, its entries uncertain by so much.

    All entries of the multiple have the same true factor, so their common error is one of the norm too.
    """
    if gain == 0:
        return Bound(0.0, 0.0, bound.method, bound.kind, ZeroProof())
    high = rounding.up(gain * (1 + 2 * uncertainty), 2)
    low = rounding.down(gain * (1 - 2 * uncertainty), 2)
    upper = rounding.multiply_up(bound.upper, high)
    proof = None if bound.proof is None else ScaledProof(gain, bound.proof)
    return Bound(rounding.multiply_down(bound.lower, low), upper, bound.method, bound.kind, proof)


def _key(operator: Operator) -> Any:
    """Equal for operators that are the same map: the same weights in the same place of memory, the same geometry."""
    if isinstance(operator, Padded):
        places = tuple(tuple(place.tolist()) for place in operator.places)
        return (operator.mode, operator.input_size, places, _key(operator.convolution))
    if isinstance(operator, Convolution):
        weight = operator.weight
        place = (weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.dtype)
        rest = (operator.stride, operator.dilation, operator.groups, operator.offset)
        return (*place, *rest, operator.input_size, operator.output_size, operator.circular)
    if isinstance(operator, Dense):
        matrix = operator.matrix
        return (matrix.data_ptr(), tuple(matrix.shape), matrix.stride(), matrix.dtype)
    if isinstance(operator, Indexing):
        return ("copies", operator.copies)
    return id(operator)


def _composition(
    graph: Graph, steps: Sequence[Step], bounds: _Bounds, known: Propagation, *, merged: bool
) -> Composition:
    """Constants through the graph, from the merged operators or from every node by itself."""
    factors = []
    for step in steps:
        operator = step.effective if merged else step.operator
        upper = bounds.of(operator).upper if isinstance(operator, Linear) else math.inf
        factors.append(Factor(step.node.name, step.inputs, operator, upper, known.slopes.get(step.node.name, ())))
    return compose(graph.input.name, factors, graph.output)


def _share(step: Step, whole: Composition) -> float | None:
    """What the step adds to the network's log, over it; None where that has no meaning."""
    if not math.isfinite(whole.output) or whole.output == 0:
        return None
    return whole.growth[step.node.name] / whole.output


def _elsewhere(steps: Sequence[Step], whole: Composition, told: Container[str]) -> dict[str, float]:
    """The shares of what has no row, such as activations, normalisations and sums, by operation; a layer's scalings
    count with the layer."""
    shares: dict[str, float] = {}
    for step in steps:
        share = _share(step, whole) if step.node.name not in told else None
        if share:
            name = getattr(step.operator, "name", "") or step.node.op_name.removeprefix("aten.").split(".")[0]
            shares[name] = shares.get(name, 0.0) + share
    return shares


def _unsupported(graph: Graph, steps: Sequence[Step], known: Propagation) -> tuple[UnsupportedOperation, ...]:
    """The nodes without a finite constant that the output depends on, grouped by operation and reason."""
    needed = {graph.output}
    for step in reversed(steps):
        if step.node.name in needed:
            needed.update(step.inputs)
    groups: dict[tuple[str, str], list[str]] = {}
    for step in steps:
        if step.node.name not in needed:
            continue
        operator = step.effective
        reason = operator.reason if isinstance(operator, Unbounded) else known.reasons.get(step.node.name, "")
        if not reason and math.inf in known.slopes.get(step.node.name, ()):
            reason = "its constant is infinite on the range of its input"
        if reason:
            groups.setdefault((step.node.op_name, reason), []).append(step.node.layer)
    return tuple(UnsupportedOperation(op, reason, tuple(layers)) for (op, reason), layers in groups.items())


def _reason(unsupported: Sequence[UnsupportedOperation]) -> str:
    if not unsupported:
        return "a layer's bound is infinite"
    count = sum(len(group.layers) for group in unsupported)
    first = unsupported[0]
    place = f" in {first.layers[0]}" if first.layers[0] else ""
    plural = "s" if count > 1 else ""
    return f"{count} operation{plural} without a finite bound, the first {first.op}{place}: {first.reason}"
