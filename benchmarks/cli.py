"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import outcome as outcomes
from benchmarks.command import CommandRun, run_command
from benchmarks.layers import Layer, convolutions
from benchmarks.measure import Result, measure, measure_lipcheck, published
from benchmarks.outcome import Outcome
from benchmarks.truth import Truths, default_path
from lipcheck import options as texts
from lipcheck.engines.enclose import Settings
from lipcheck.errors import LipcheckError
from lipcheck.progress import Display, Progress

_NAMES = [method.name for method in published(memory=1, seed=0)]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description="lipcheck's bounds against the published methods, on the convolutions of a network."
    )
    parser.add_argument("--model", default="resnet50", help="any name that lipcheck knows (resnet50)")
    parser.add_argument("--weights", default="random", help="random (default), pretrained or a checkpoint")
    parser.add_argument("--input", type=texts.input_size, metavar="SHAPE", help="of one input, like 3x224x224")
    parser.add_argument("--layers", type=_count, metavar="N", help="only the first N convolutions")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and random starts (0)")
    parser.add_argument("--threads", type=_count, default=torch.get_num_threads(), metavar="N", help="of the processor")
    parser.add_argument("--tolerance", type=float, default=Settings().tolerance, help="of lipcheck's search (0.001)")
    parser.add_argument(
        "--memory", type=texts.memory, default=1 << 28, metavar="SIZE", help="of a block of frequencies (256MiB)"
    )
    parser.add_argument(
        "--methods", type=_methods, default=_NAMES, metavar="A,B", help=f"of {', '.join(_NAMES)} (all); lipcheck always"
    )
    parser.add_argument("--all", action="store_true", help="every layer, not one of each shape times its count")
    parser.add_argument("--no-truth", action="store_true", help="seconds only: no true norms, hence no slack")
    parser.add_argument("--truths", type=Path, metavar="FILE", help="where true norms are kept between runs")
    parser.add_argument("--command", action="store_true", help="time the whole command as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where an enclosure of lipcheck misses the truth; 2 for a network that cannot be had."""
    options = parser().parse_args(arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with Display() as display:
            found = run(options, display)
        outcomes.show(found, Console())
        if options.json:
            options.json.write_text(json.dumps(outcomes.to_dict(found), indent=2) + "\n")
    except (LipcheckError, RuntimeError, OSError) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(before)
    return 0 if found.sound else 1


def run(options: argparse.Namespace, progress: Progress) -> Outcome:
    """Every chosen method on the chosen layers, then the truth."""
    command = _command(options, progress) if options.command else None
    progress.stage("loading the model", None)
    layers = convolutions(options.model, options.weights, options.seed, options.input)[: options.layers]
    if not layers:
        raise LipcheckError(f"{options.model} has no convolutions")
    results = [measure_lipcheck(layers, Settings(options.tolerance), progress)]
    _tell(results[-1])
    for method in published(options.memory, options.seed):
        if method.name in options.methods:
            results.append(measure(method, layers, results, progress, every=options.all))
            _tell(results[-1])
    return Outcome(
        model=options.model,
        weights=options.weights,
        seed=options.seed,
        threads=options.threads,
        tolerance=options.tolerance,
        every=options.all,
        layers=layers,
        results=results,
        truths=[] if options.no_truth else _truths(options, layers, progress),
        command=command,
    )


def _tell(result: Result) -> None:
    """A line on standard error where no progress is shown: the slow methods take minutes."""
    if not sys.stderr.isatty():
        print(f"{result.label}: {result.seconds:.1f} s", file=sys.stderr, flush=True)


def _command(options: argparse.Namespace, progress: Progress) -> CommandRun:
    progress.stage("the whole command", None)
    shape = ["--input", "x".join(map(str, options.input))] if options.input else []
    chosen = ["--weights", options.weights, "--seed", str(options.seed), "--threads", str(options.threads)]
    return run_command([options.model, *chosen, *shape, "--tolerance", str(options.tolerance)])


def _truths(options: argparse.Namespace, layers: Sequence[Layer], progress: Progress) -> list[float]:
    known = Truths(options.truths or default_path(options.model, options.weights, options.seed))
    progress.stage("true norms", len(layers))
    values = []
    for layer in layers:
        values.append(known.of(layer))
        progress.advance(1)
    return values


def _count(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give 1 or more")
    return number


def _methods(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in _NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_NAMES)}")
    return names
