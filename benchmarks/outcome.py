"""What the benchmark found on a network: a table, sentences under it, and JSON."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.command import CommandRun
from benchmarks.floor import Floor
from benchmarks.layers import Layer
from benchmarks.measure import Reading, Result, Slack, lower_slack, upper_slack
from benchmarks.methods import CIRCULAR, GRAM_ITERATIONS
from lipcheck.checking import version
from lipcheck.methods import METHODS

SCHEMA_VERSION = 2
_HEADINGS = ("seconds", "× lip-\ncheck", "upper/\nmedian", "true\nworst", "below\ntrue", "n/a")
_NOTES = {
    "lipcheck": "both ends of every layer in one call, at a tolerance of {tolerance:g}",
    "tight": "the same, then a finite method where the slack is above the tolerance; both times added",
    "gram-published": f"{GRAM_ITERATIONS} iterations in complex64 on half the n-point grid, n the input size; the "
    "stride is dropped, as in the published code",
    "gram-folded": "the same on n/s points with the used phases of a stride s folded into channels",
    "fft": "all singular values on that folded grid, in complex64",
}
_TARGETS = {"median": 1e-3, "worst": 3e-2, "tight": 1e-3, "gram": 30.0, "rivals": 0.1}


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One network: its layers, every method's result, and true norms by place (none where they were not sought).

    `results` begins with lipcheck's own.
    """

    model: str
    weights: str
    seed: int
    threads: int
    tolerance: float
    every: bool
    layers: Sequence[Layer]
    results: Sequence[Result]
    truths: Mapping[int, float]
    accuracy: float
    floor: Floor | None = None
    command: CommandRun | None = None

    @property
    def sound(self) -> bool:
        """Whether no enclosure of lipcheck misses the truth."""
        return not any(
            slack is not None and slack.wrong
            for result in self.results
            if result.name in ("lipcheck", "tight")
            for slack in (self.upper(result), self.lower(result))
        )

    def upper(self, result: Result) -> Slack | None:
        return upper_slack(result, self.truths, self.accuracy)

    def lower(self, result: Result) -> Slack | None:
        return lower_slack(result, self.truths, self.accuracy)

    def result(self, name: str) -> Result | None:
        return {result.name: result for result in self.results}.get(name)

    def speedup(self, name: str, *, wide: bool = False) -> float | None:
        """How many times faster lipcheck is than the method; None where one of them was not run on all layers."""
        own, other = self.results[0], self.result(name)
        if other is None or other.skipped or not other.readings:
            return None
        mine, theirs = (own.wide_seconds, other.wide_seconds) if wide else (own.seconds, other.seconds)
        return theirs / mine if theirs and mine else None


@dataclass(frozen=True, slots=True)
class Target:
    """What lipcheck sets out to reach, in words with the number found, and whether it does."""

    text: str
    met: bool


def targets(outcome: Outcome) -> list[Target]:
    """What can be judged by what was run."""
    own, tight = outcome.upper(outcome.results[0]), outcome.result("tight")
    found = []
    if own:
        found.append(Target(f"bounds below the truth: {own.wrong} (0)", own.wrong == 0))
        found.append(_slack_target("median slack", own.median, _TARGETS["median"]))
        found.append(_slack_target("worst slack", own.worst, _TARGETS["worst"]))
    climbed = outcome.upper(tight) if tight else None
    if climbed:
        found.append(_slack_target("worst slack with --tight", climbed.worst, _TARGETS["tight"]))
    gram = outcome.speedup("gram-published")
    if gram:
        found.append(Target(f"times faster than the published Gram grid: {gram:.1f} (30)", gram >= _TARGETS["gram"]))
    if own:
        faster = [result.label for result in _rivals(outcome) if result.seconds < outcome.results[0].seconds]
        names = ", ".join(faster) or "none"
        found.append(Target(f"faster than lipcheck with a worst slack under 10%: {names} (none)", not faster))
    return found


def _slack_target(what: str, ratio: float, limit: float) -> Target:
    # The ratio is off by the truth's accuracy, far below a hundredth of a per cent.
    return Target(f"{what}: {100 * (ratio - 1):.2f}% ({100 * limit:g}%)", ratio - 1 <= limit)


def _rivals(outcome: Outcome) -> list[Result]:
    """Methods that were run on all layers and whose numbers are all within 10% of the truth, bounds or not."""
    rivals = []
    for result in outcome.results:
        slack = outcome.upper(result)
        whole = not result.skipped and not result.missing
        if result.name not in ("lipcheck", "tight") and whole and slack and slack.worst - 1 < _TARGETS["rivals"]:
            ratios = [result.readings[place].upper / true for place, true in outcome.truths.items() if true]
            rivals += [result] if min(ratios, default=1.0) > 1 - _TARGETS["rivals"] else []
    return rivals


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
    table.add_column("kind", no_wrap=True)
    own = outcome.results[0].seconds
    for result in outcome.results:
        upper = outcome.upper(result)
        table.add_row(
            result.label,
            *_times(result.seconds, own, more=bool(result.skipped), any_=bool(result.readings)),
            *_ratios(upper, outcome.accuracy),
            f"{upper.wrong}/{upper.of}" if upper else "–",
            str(result.missing),
            kind(result),
        )
    if outcome.floor:
        for label, seconds in (
            ("Cholesky floor", outcome.floor.needed_seconds),
            ("Cholesky floor, all", outcome.floor.all_seconds),
        ):
            table.add_row(label, *_times(seconds, own), "–", "–", "–", "0", "–")
    return table


def kind(result: Result) -> str:
    """What the numbers claim to be; the share of the certified ones where they differ."""
    kinds = {reading.kind for reading in result.readings.values()}
    if len(kinds) > 1 and "certified" in kinds:
        return f"certified {result.certified}/{len(result.readings)}"
    return ", ".join(sorted(kinds)) or "–"


def _times(seconds: float, own: float, *, more: bool = False, any_: bool = True) -> tuple[str, str]:
    if not any_:
        return "–", "–"
    sign = ">" if more else ""
    return f"{sign}{_three(seconds)}", f"{sign}{_three(seconds / own)}"


def _three(value: float) -> str:
    """About three digits: 0.012, 1.23, 45.6, 1234."""
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.{1 if value < 1000 else 0}f}"


def _ratios(slack: Slack | None, accuracy: float) -> tuple[str, str]:
    """Rounded up, so that no number looks better than it is."""
    return ("–", "–") if slack is None else (_rounded(slack.median, accuracy), _rounded(slack.worst, accuracy))


def _rounded(ratio: float, accuracy: float, *, up: bool = True) -> str:
    if math.isinf(ratio):
        return "inf"
    # What is 1 but for the truth's own error stays 1.
    own = min(accuracy, 1e-5) * 1e4
    return f"{(math.ceil(ratio * 1e4 - own) if up else math.floor(ratio * 1e4 + own)) / 1e4:.4f}"


def _sentences(outcome: Outcome) -> list[str]:
    lines = [""]
    lines += [f"{'reached' if target.met else 'MISSED '}  {target.text}" for target in targets(outcome)]
    wide = outcome.speedup("gram-published", wide=True)
    if wide:
        lines.append(f"on kernels beyond 1 × 1 alone: {wide:.1f} times faster than the published Gram grid")
    lower = outcome.lower(outcome.results[0])
    if lower:
        ends = f"median {_rounded(lower.median, outcome.accuracy, up=False)}"
        ends += f", worst {_rounded(lower.worst, outcome.accuracy, up=False)}, {lower.wrong} above the truth"
        lines.append(f"lipcheck's lower/true: {ends}")
    if outcome.command:
        run = outcome.command
        lines.append(f"{run.typed}: {run.seconds:.1f} s, peak {run.peak / 1e9:.2f} GB")
    lines += ["", *(f"{result.label}: {note(result.name, outcome)}" for result in outcome.results)]
    return [*lines, *_remarks(outcome)]


def _remarks(outcome: Outcome) -> list[str]:
    lines = []
    if any(reading.kind == CIRCULAR for result in outcome.results for reading in result.readings.values()):
        lines.append("circular: a bound for circular padding only, its rounding not accounted for")
    if not outcome.every and any(len(result.readings) < result.layers for result in outcome.results):
        lines.append("All but lipcheck: one of each shape, times its count; --all runs every layer")
    stopped = [result.label for result in outcome.results if result.skipped]
    if stopped:
        lines.append(f"Stopped at the time limit, so that times are larger still: {', '.join(stopped)}")
    if outcome.floor:
        lines.append(
            "Cholesky floor: the factorisations alone, spread evenly over the threads, at the frequencies of half the "
            "embedding grid that cannot be excluded; all: at every one of them"
        )
    if outcome.truths:
        lines.append(f"true: dense SVD or long Lanczos in float64, to {outcome.accuracy:.0e}, one of each shape")
    parts = ", ".join(f"{name} {value}" for name, value in versions().items())
    return [*lines, f"{parts}; {outcome.threads} threads"]


def note(name: str, outcome: Outcome) -> str:
    """A line on what the method is."""
    return _NOTES[name].format(tolerance=outcome.tolerance) if name in _NOTES else METHODS[name]


def versions() -> dict[str, str]:
    return {"lipcheck": version(), "torch": torch.__version__, "python": platform.python_version()}


def document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything, in plain values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": versions(),
        "machine": platform.machine(),
        "networks": [to_dict(outcome) for outcome in outcomes],
    }


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """One network."""
    return {
        "model": outcome.model,
        "weights": outcome.weights,
        "seed": outcome.seed,
        "threads": outcome.threads,
        "tolerance": outcome.tolerance,
        "every_layer": outcome.every,
        "truth_accuracy": outcome.accuracy if outcome.truths else None,
        "targets": [asdict(target) for target in targets(outcome)],
        "methods": [_method(result, outcome) for result in outcome.results],
        "floor": _floor(outcome.floor) if outcome.floor else None,
        "layers": [_layer(place, layer, outcome) for place, layer in enumerate(outcome.layers)],
        "command": asdict(outcome.command) if outcome.command else None,
        "speedup": {
            result.name: {"all": outcome.speedup(result.name), "wide": outcome.speedup(result.name, wide=True)}
            for result in outcome.results[1:]
        },
    }


def _method(result: Result, outcome: Outcome) -> dict[str, Any]:
    upper, lower = outcome.upper(result), outcome.lower(result)
    return {
        "name": result.name,
        "kind": kind(result),
        "note": note(result.name, outcome),
        "seconds": result.seconds,
        "wide_seconds": result.wide_seconds,
        "layers": result.layers,
        "measured": len(result.readings),
        "not_applicable": result.missing,
        "skipped": result.skipped,
        "upper": asdict(upper) if upper else None,
        "lower": asdict(lower) if lower else None,
    }


def _floor(floor: Floor) -> dict[str, float]:
    return {"needed_seconds": floor.needed_seconds, "all_seconds": floor.all_seconds}


def _layer(place: int, layer: Layer, outcome: Outcome) -> dict[str, Any]:
    readings: dict[str, Reading] = {
        result.name: result.readings[place] for result in outcome.results if place in result.readings
    }
    count = outcome.floor.counts.get(place) if outcome.floor else None
    return {
        "layer": layer.name,
        **layer.described(),
        "true": outcome.truths.get(place),
        "factorisations": asdict(count) if count else None,
        "readings": {name: asdict(reading) for name, reading in readings.items()},
    }
