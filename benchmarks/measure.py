"""Runs the methods over the layers of a network with a clock, and sets their numbers beside the truth."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from benchmarks.layers import Layer, one_of_each_shape
from benchmarks.methods import exact_fft, gram_grid, power_iteration
from benchmarks.spectrum import unstrided
from benchmarks.truth import ACCURACY
from lipcheck.engines.enclose import Settings, enclose
from lipcheck.operators import Convolution
from lipcheck.progress import Progress

Claim = Literal["both", "upper", "exact", "estimate"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one method says of one layer, and the seconds it took; None where it was not timed alone."""

    lower: float | None
    upper: float | None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """A published method: what its number claims to be, and how it is had."""

    name: str
    label: str
    claim: Claim
    run: Callable[[Convolution], float]
    # A method that does the same work where the layer has no stride, whose reading is then taken over.
    unless_strided: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One method on the network. `seconds` is for all layers, `wide_seconds` for those whose kernel exceeds 1 x 1."""

    name: str
    label: str
    claim: Claim
    layers: int
    seconds: float
    wide_seconds: float
    readings: dict[int, Reading] = field(repr=False)  # by the place of the layer


@dataclass(frozen=True, slots=True)
class Slack:
    """Numbers over truths. `worst` is the largest upper ratio or the smallest lower one."""

    median: float
    worst: float
    wrong: int
    of: int


def published(memory: int, seed: int) -> list[Method]:
    """The methods that lipcheck is compared with."""
    return [
        Method("gram", "Gram grid", "upper", lambda one: gram_grid(unstrided(one), memory)),
        Method("gram-folded", "Gram grid, folded", "upper", lambda one: gram_grid(one, memory), "gram"),
        Method("fft", "exact SVD by FFT", "exact", lambda one: exact_fft(one, memory)),
        Method("power", "power iteration", "estimate", lambda one: power_iteration(one, seed)),
    ]


def measure_lipcheck(layers: Sequence[Layer], settings: Settings, progress: Progress) -> Result:
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
    readings = {place: Reading(bound.lower, bound.upper) for place, bound in enumerate(bounds)}
    return Result("lipcheck", "lipcheck", "both", len(layers), seconds, wide_seconds, readings)


def measure(
    method: Method, layers: Sequence[Layer], known: Sequence[Result], progress: Progress, *, every: bool = False
) -> Result:
    """The method on every layer, or on one of each shape with its seconds times their count."""
    taken = {result.name: result.readings for result in known}.get(method.unless_strided, {})
    chosen = [(layer, 1) for layer in layers] if every else one_of_each_shape(layers)
    method.run(_small())
    progress.stage(method.label, len(chosen))
    places = {id(layer): place for place, layer in enumerate(layers)}
    readings: dict[int, Reading] = {}
    seconds = wide_seconds = 0.0
    for layer, count in chosen:
        place = places[id(layer)]
        strided = any(s > 1 for s in layer.operator.stride)
        reading = taken.get(place) if not strided else None
        if reading is None:
            begun = time.perf_counter()
            value = method.run(layer.operator)
            spent = time.perf_counter() - begun
            lower, upper = (value, None) if method.claim == "estimate" else (None, value)
            reading = Reading(lower, upper, spent)
        readings[place] = reading
        seconds += count * (reading.seconds or 0.0)
        wide_seconds += 0.0 if layer.pointwise else count * (reading.seconds or 0.0)
        progress.advance(1)
    return Result(method.name, method.label, method.claim, len(layers), seconds, wide_seconds, readings)


def _small() -> Convolution:
    """Something cheap to warm up with: libraries start their threads and read their tables on first use."""
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    return Convolution(weight, (1, 1), (1, 1), 1, (1, 1), (32, 32), (32, 32))


def upper_slack(result: Result, truths: Sequence[float]) -> Slack | None:
    """How far the upper numbers are above the truth; wrong are those below it."""
    ratios = _ratios({place: reading.upper for place, reading in result.readings.items()}, truths)
    if not ratios:
        return None
    wrong = sum(ratio < 1 - ACCURACY for ratio in ratios)
    return Slack(statistics.median(ratios), max(ratios), wrong, len(ratios))


def lower_slack(result: Result, truths: Sequence[float]) -> Slack | None:
    """How far the lower numbers are below the truth; wrong are those above it."""
    ratios = _ratios({place: reading.lower for place, reading in result.readings.items()}, truths)
    if not ratios:
        return None
    wrong = sum(ratio > 1 + ACCURACY for ratio in ratios)
    return Slack(statistics.median(ratios), min(ratios), wrong, len(ratios))


def _ratios(values: dict[int, float | None], truths: Sequence[float]) -> list[float]:
    if not truths:
        return []
    pairs = [(value, truths[place]) for place, value in values.items() if value is not None]
    return [value / true if true else (1.0 if value == 0 else math.inf) for value, true in pairs]
