"""How the cost grows: seconds for one convolution against its channels and against its input size, per method."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import methods
from benchmarks.floor import count
from benchmarks.methods import Method
from benchmarks.outcome import versions
from lipcheck.engines.enclose import enclose
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution
from lipcheck.progress import Progress

CHANNELS = (32, 64, 128, 256, 512, 1024)
SIZES = (7, 14, 28, 56, 112, 224)
# What stays while the other varies.
_SIZE, _CHANNELS = 14, 64
METHODS = (
    "gram-published",
    "gram-embedding",
    "gram-kernel",
    "lipbound",
    "fantastic4",
    "tensor-norm",
    "sedghi",
    "power",
)
FLOOR, FLOOR_ALL = "Cholesky floor", "Cholesky floor, all frequencies"
# Shorter runs are repeated, and the best of them counts.
_SHORT, _REPEATS = 0.5, 3


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds at each value of what varies; shorter than the others where a point took more than the limit."""

    label: str
    values: tuple[int, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: all curves against channels or against the input size."""

    name: str
    axis: str
    fixed: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class Growth:
    """Both plots, and what they were made with."""

    panels: tuple[Panel, ...]
    threads: int
    limit: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that belong to the plots."""
    group = parser.add_argument_group("plots, instead of tables")
    group.add_argument("--growth", metavar="PREFIX", help="write PREFIX-channels.png, PREFIX-size.png and PREFIX.json")
    group.add_argument("--channels", type=_numbers, default=CHANNELS, metavar="A,B", help="of the first (32,...,1024)")
    group.add_argument("--sizes", type=_numbers, default=SIZES, metavar="A,B", help="of the second (7,...,224)")
    group.add_argument(
        "--point-limit", type=float, default=20.0, metavar="S", help="no curve goes on after a point of so long (20)"
    )


def run(options: argparse.Namespace, progress: Progress) -> Growth:
    """Both plots for the chosen methods, lipcheck and the floor."""
    settings = Settings(options.tolerance)
    wanted = METHODS if options.methods is None else options.methods
    every = [_own(settings), *methods.chosen(wanted, settings, options.memory)]
    panels = (
        _panel(
            "channels", "channels", f"3 × 3 kernel, input {_SIZE} × {_SIZE}", options.channels, every, options, progress
        ),
        _panel("size", "input size", f"3 × 3 kernel, {_CHANNELS} channels", options.sizes, every, options, progress),
    )
    return Growth(panels, options.threads, options.point_limit)


def _own(settings: Settings) -> Method:
    def own(operator: Convolution) -> tuple[float, str]:
        bound = enclose([operator], settings)[0]
        return bound.upper, bound.kind

    return Method("lipcheck", "lipcheck", own)


def _panel(
    name: str,
    axis: str,
    fixed: str,
    values: Sequence[int],
    every: Sequence[Method],
    options: argparse.Namespace,
    progress: Progress,
) -> Panel:
    operators = [layer(n, _SIZE) if name == "channels" else layer(_CHANNELS, n) for n in values]
    progress.stage(f"growth with {axis}", (len(every) + 1) * len(values))
    curves = [_curve(method, values, operators, options.point_limit, progress) for method in every]
    return Panel(name, axis, fixed, (*curves, *_floors(values, operators, options.threads, progress)))


def layer(channels: int, size: int) -> Convolution:
    """A 3 x 3 convolution of stride 1 that keeps the size, with random weights of a network's usual scale."""
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(channels, channels, 3, 3, generator=generator) / (3 * channels**0.5)
    return Convolution(weight, (1, 1), (1, 1), 1, (1, 1), (size, size), (size, size))


def _curve(
    method: Method, values: Sequence[int], operators: Sequence[Convolution], limit: float, progress: Progress
) -> Curve:
    seconds: list[float] = []
    method.run(layer(4, 8))
    for operator in operators:
        progress.advance(1)
        if seconds and seconds[-1] > limit:
            continue
        seconds.append(_timed(method, operator))
        if not sys.stderr.isatty():
            print(f"{method.label}, {values[len(seconds) - 1]}: {seconds[-1]:.3f} s", file=sys.stderr, flush=True)
    return Curve(method.label, tuple(values[: len(seconds)]), tuple(seconds))


def _timed(method: Method, operator: Convolution) -> float:
    best = math.inf
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        method.run(operator)
        best = min(best, time.perf_counter() - begun)
        if best > _SHORT:
            break
    return best


def _floors(
    values: Sequence[int], operators: Sequence[Convolution], threads: int, progress: Progress
) -> tuple[Curve, Curve]:
    found = []
    for operator in operators:
        found.append(count(operator).seconds(threads))
        progress.advance(1)
    everything, needed = zip(*found, strict=True)
    return Curve(FLOOR_ALL, tuple(values), everything), Curve(FLOOR, tuple(values), needed)


def write(growth: Growth, prefix: str) -> list[Path]:
    """The plots and their numbers; the paths of what was written.

    Errors: MissingExtraError without matplotlib.
    """
    from benchmarks.plot import draw

    numbers = Path(f"{prefix}.json")
    numbers.parent.mkdir(parents=True, exist_ok=True)
    numbers.write_text(json.dumps(_document(growth), indent=2) + "\n")
    pictures = [draw(panel, Path(f"{prefix}-{panel.name}.png"), growth.threads) for panel in growth.panels]
    return [*pictures, numbers]


def _document(growth: Growth) -> dict[str, Any]:
    return {
        "versions": versions(),
        "threads": growth.threads,
        "point_limit": growth.limit,
        "plots": [
            {
                "against": panel.axis,
                "fixed": panel.fixed,
                "seconds": {
                    curve.label: dict(zip(map(str, curve.values), curve.seconds, strict=True)) for curve in panel.curves
                },
            }
            for panel in growth.panels
        ],
    }


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of sizes; write it like 32,64,128")
    return tuple(map(int, parts))
