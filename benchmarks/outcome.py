"""What a run of the benchmark found, as a table and as JSON."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.command import CommandRun
from benchmarks.layers import Layer
from benchmarks.measure import Reading, Result, Slack, lower_slack, upper_slack
from benchmarks.methods import GRAM_ITERATIONS, POWER_STEPS
from benchmarks.truth import ACCURACY
from lipcheck.checking import version

SCHEMA_VERSION = 1
_TIMES = ("seconds", "a layer")
_HEADINGS = (*_TIMES, "upper/\nmedian", "true\nworst", "lower/\nmedian", "true\nworst", "below\ntrue")
_NOTES = {
    "lipcheck": "both ends of every layer in one call, at a tolerance of {tolerance:g}",
    "gram": f"{GRAM_ITERATIONS} iterations in complex64 on half the n-point grid, n the input size; the stride is "
    "dropped, as in the published code",
    "gram-folded": "the same on n/s points with the used phases of a stride s folded into channels",
    "fft": "all singular values on that folded grid: exact for circular padding",
    "power": f"{POWER_STEPS} steps in float32 on the layer itself: an estimate from below",
}


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One run: the layers, every method's result on them, and the true norms (empty where they were not sought)."""

    model: str
    weights: str
    seed: int
    threads: int
    tolerance: float
    every: bool
    layers: Sequence[Layer]
    results: Sequence[Result]
    truths: Sequence[float]
    command: CommandRun | None

    @property
    def sound(self) -> bool:
        """Whether no enclosure of lipcheck misses the truth."""
        own = self.results[0]
        slacks = upper_slack(own, self.truths), lower_slack(own, self.truths)
        return not any(slack is not None and slack.wrong for slack in slacks)

    def speedup(self, name: str, *, wide: bool = False) -> float | None:
        """How many times faster lipcheck is than the method; None where one of them was not run."""
        own, other = self.results[0], {result.name: result for result in self.results}.get(name)
        if other is None:
            return None
        mine, theirs = (own.wide_seconds, other.wide_seconds) if wide else (own.seconds, other.seconds)
        return theirs / mine if theirs and mine else None


def show(outcome: Outcome, console: Console) -> None:
    """The table, the sentences under it and what was run."""
    layers = len(outcome.layers)
    console.print(
        f"{outcome.model}, weights {outcome.weights}, seed {outcome.seed}: {layers} convolutions", highlight=False
    )
    console.print(_table(outcome))
    for line in _sentences(outcome):
        console.print(line, highlight=False, soft_wrap=False)


def _table(outcome: Outcome) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in outcome.results:
        upper, lower = upper_slack(result, outcome.truths), lower_slack(result, outcome.truths)
        table.add_row(
            result.label,
            f"{result.seconds:.1f}",
            f"{result.seconds / result.layers:.2f}",
            *_ratios(upper, up=True),
            *_ratios(lower, up=False),
            f"{upper.wrong}/{upper.of}" if upper else "–",
        )
    return table


def _ratios(slack: Slack | None, *, up: bool) -> tuple[str, str]:
    """Upper ratios rounded up and lower ones down, so that no number looks better than it is."""
    return ("–", "–") if slack is None else (_rounded(slack.median, up=up), _rounded(slack.worst, up=up))


def _rounded(ratio: float, *, up: bool) -> str:
    if math.isinf(ratio):
        return "inf"
    # What is 1 but for the truth's own error stays 1.
    scaled = ratio * 1e4
    return f"{(math.ceil(scaled - 1e-4) if up else math.floor(scaled + 1e-4)) / 1e4:.4f}"


def _sentences(outcome: Outcome) -> list[str]:
    lines = [""]
    gram, folded = outcome.speedup("gram"), outcome.speedup("gram-folded")
    if gram:
        lines.append(f"lipcheck is {gram:.1f} times faster than the Gram grid")
        lines += _beside("on the layers with kernels beyond 1 × 1 alone", outcome.speedup("gram", wide=True))
    if folded:
        lines += _beside("than the Gram grid with strides folded", folded)
        lines += _beside("and than that on the larger kernels alone", outcome.speedup("gram-folded", wide=True))
    if outcome.command:
        run = outcome.command
        lines.append(f"{run.typed}: {run.seconds:.1f} s, peak {run.peak / 1e9:.2f} GB")
    lines.append("")
    for result in outcome.results:
        lines.append(f"{result.label}: {_NOTES[result.name].format(tolerance=outcome.tolerance)}")
    if not outcome.every and any(len(result.readings) < result.layers for result in outcome.results):
        lines.append("All but lipcheck: one of each shape, times its count; --all runs every layer")
    if outcome.truths:
        lines.append(f"true: dense SVD or long Lanczos in float64, to {ACCURACY:.0e}; slack over the layers measured")
        wrong = lower_slack(outcome.results[0], outcome.truths)
        lines.append(f"lipcheck's lower ends above the truth: {wrong.wrong if wrong else 0}")
    parts = ", ".join(f"{name} {value}" for name, value in versions().items())
    lines.append(f"{parts}; {outcome.threads} threads")
    return lines


def _beside(what: str, ratio: float | None) -> list[str]:
    return [f"  {what}: {ratio:.1f} times"] if ratio else []


def versions() -> dict[str, str]:
    return {"lipcheck": version(), "torch": torch.__version__, "python": platform.python_version()}


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """Everything, in plain values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": outcome.model,
        "weights": outcome.weights,
        "seed": outcome.seed,
        "threads": outcome.threads,
        "tolerance": outcome.tolerance,
        "every_layer": outcome.every,
        "versions": versions(),
        "machine": platform.machine(),
        "methods": [_method(result, outcome) for result in outcome.results],
        "layers": [_layer(place, layer, outcome) for place, layer in enumerate(outcome.layers)],
        "command": asdict(outcome.command) if outcome.command else None,
        "speedup": {
            result.name: {"all": outcome.speedup(result.name), "wide": outcome.speedup(result.name, wide=True)}
            for result in outcome.results[1:]
        },
    }


def _method(result: Result, outcome: Outcome) -> dict[str, Any]:
    upper, lower = upper_slack(result, outcome.truths), lower_slack(result, outcome.truths)
    return {
        "name": result.name,
        "claim": result.claim,
        "note": _NOTES[result.name].format(tolerance=outcome.tolerance),
        "seconds": result.seconds,
        "wide_seconds": result.wide_seconds,
        "layers": result.layers,
        "measured": len(result.readings),
        "upper": asdict(upper) if upper else None,
        "lower": asdict(lower) if lower else None,
    }


def _layer(place: int, layer: Layer, outcome: Outcome) -> dict[str, Any]:
    readings: dict[str, Reading] = {
        result.name: result.readings[place] for result in outcome.results if place in result.readings
    }
    return {
        "layer": layer.name,
        **layer.described(),
        "true": outcome.truths[place] if outcome.truths else None,
        "readings": {name: asdict(reading) for name, reading in readings.items()},
    }
