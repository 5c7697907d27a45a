"""Runs the methods over the layers of a network with a clock, and sets their numbers beside the truth."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from benchmarks.layers import Layer, one_of_each_shape
from benchmarks.methods import Kind, Method
from lipcheck.bound import Bound
from lipcheck.engines import ladder
from lipcheck.engines.enclose import enclose
from lipcheck.engines.settings import Settings
from lipcheck.errors import LipcheckError
from lipcheck.operators import Convolution, Operator
from lipcheck.progress import Progress

# What `lipcheck --tight` allows itself where it is told nothing.
TIGHT_MEMORY = 8 << 30


@dataclass(frozen=True, slots=True)
class Reading:
    """What one method says of one layer, and the seconds it took; None where it was not timed alone."""

    upper: float
    kind: Kind
    lower: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One method on the network. `seconds` is for all layers, `wide_seconds` for those whose kernel exceeds 1 x 1.

    `missing` layers are none that the method says anything of; `skipped` ones were not reached within the time limit.
    Neither is part of the seconds.
    """

    name: str
    label: str
    layers: int
    seconds: float
    wide_seconds: float
    readings: dict[int, Reading] = field(repr=False)  # by the place of the layer
    missing: int = 0
    skipped: int = 0

    @property
    def certified(self) -> int:
        """How many of the readings are bounds with a proof."""
        return sum(reading.kind == "certified" for reading in self.readings.values())


@dataclass(frozen=True, slots=True)
class Slack:
    """Numbers over truths. `worst` is the largest upper ratio or the smallest lower one."""

    median: float
    worst: float
    wrong: int
    of: int


def measure_lipcheck(layers: Sequence[Layer], settings: Settings, progress: Progress) -> tuple[Result, Sequence[Bound]]:
    """Both ends of every layer's enclosure in one call, and once more for the wide layers alone."""
    operators = [layer.operator for layer in layers]
    enclose([_small()], settings)
    progress.stage("lipcheck", None)
    begun = time.perf_counter()
    bounds = enclose(operators, settings)
    seconds = time.perf_counter() - begun
    wide = [layer.operator for layer in layers if not layer.pointwise]
    begun = time.perf_counter()
    enclose(wide, settings)
    wide_seconds = time.perf_counter() - begun
    readings = {place: Reading(bound.upper, bound.kind, bound.lower) for place, bound in enumerate(bounds)}
    return Result("lipcheck", "lipcheck", len(layers), seconds, wide_seconds, readings), bounds


def measure_tight(
    layers: Sequence[Layer],
    default: Result,
    bounds: Sequence[Bound],
    settings: Settings,
    progress: Progress,
    *,
    every: bool = False,
) -> Result:
    """The same with the climbs of `--tight`: each of them, or one of each shape and method times their count.

    The plan is that for all layers. Where only one of a shape is climbed, only that one has the climb's reading.
    """
    settings = replace(settings, tight=True, memory=TIGHT_MEMORY)
    operators: list[Operator] = [layer.operator for layer in layers]
    begun = time.perf_counter()
    chosen = ladder.plan(operators, bounds, settings)
    seconds, wide_seconds = default.seconds + time.perf_counter() - begun, default.wide_seconds
    groups: dict[object, list[ladder.Climb]] = {}
    # In the order of the layers, so that the first of a shape is the one whose truth is known.
    for climb in sorted(chosen.climbs, key=lambda climb: climb.place):
        key = climb.place if every else (layers[climb.place].shape, climb.method)
        groups.setdefault(key, []).append(climb)
    readings = dict(default.readings)
    progress.stage("lipcheck --tight", sum(group[0].seconds for group in groups.values()))
    for first, *others in groups.values():
        begun = time.perf_counter()
        found = ladder.climb(operators, bounds, ladder.Plan((first,), ()), settings)[first.place]
        spent = time.perf_counter() - begun
        readings[first.place] = Reading(found.upper, found.kind, found.lower, spent)
        seconds += spent * (1 + len(others))
        wide_seconds += 0.0 if layers[first.place].pointwise else spent * (1 + len(others))
        progress.advance(first.seconds)
    return Result("tight", "lipcheck --tight", len(layers), seconds, wide_seconds, readings)


def measure(
    method: Method, layers: Sequence[Layer], progress: Progress, *, every: bool = False, limit: float = math.inf
) -> Result:
    """The method on every layer, or on one of each shape with its seconds times their count.

    Once the runs have taken `limit` seconds, the layers that are left are skipped.
    """
    chosen = [(layer, 1) for layer in layers] if every else one_of_each_shape(layers)
    if method.applies(_small()):
        method.run(_small())
    progress.stage(method.label, len(chosen))
    places = {id(layer): place for place, layer in enumerate(layers)}
    readings: dict[int, Reading] = {}
    seconds = wide_seconds = total = 0.0
    missing = skipped = 0
    for layer, count in chosen:
        progress.advance(1)
        if total > limit:
            skipped += count
            continue
        reading = _reading(method, layer)
        if reading is None:
            missing += count
            continue
        readings[places[id(layer)]] = reading
        spent = reading.seconds or 0.0
        total += spent
        seconds += count * spent
        wide_seconds += 0.0 if layer.pointwise else count * spent
    return Result(method.name, method.label, len(layers), seconds, wide_seconds, readings, missing, skipped)


def _reading(method: Method, layer: Layer) -> Reading | None:
    """The method's number for a layer; None where it says nothing."""
    if not method.applies(layer.operator):
        return None
    begun = time.perf_counter()
    try:
        value, kind = method.run(layer.operator)
    except LipcheckError:
        return None
    return Reading(value, kind, seconds=time.perf_counter() - begun)


def _small() -> Convolution:
    """Something cheap to warm up with: libraries start their threads and read their tables on first use."""
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    return Convolution(weight, (1, 1), (1, 1), 1, (1, 1), (32, 32), (32, 32))


def upper_slack(result: Result, truths: Mapping[int, float], accuracy: float) -> Slack | None:
    """How far the upper numbers are above the truths, by place; wrong are those below by more than their accuracy."""
    ratios = _ratios({place: reading.upper for place, reading in result.readings.items()}, truths)
    if not ratios:
        return None
    wrong = sum(ratio < 1 - accuracy for ratio in ratios)
    return Slack(statistics.median(ratios), max(ratios), wrong, len(ratios))


def lower_slack(result: Result, truths: Mapping[int, float], accuracy: float) -> Slack | None:
    """How far the lower numbers are below the truths; wrong are those above by more than their accuracy."""
    ratios = _ratios({place: reading.lower for place, reading in result.readings.items()}, truths)
    if not ratios:
        return None
    wrong = sum(ratio > 1 + accuracy for ratio in ratios)
    return Slack(statistics.median(ratios), min(ratios), wrong, len(ratios))


def _ratios(values: Mapping[int, float | None], truths: Mapping[int, float]) -> list[float]:
    pairs = [(value, truths[place]) for place, value in values.items() if value is not None and place in truths]
    return [value / true if true else (1.0 if value == 0 else math.inf) for value, true in pairs]
