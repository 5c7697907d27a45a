"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from benchmarks import growth, methods
from benchmarks import outcome as outcomes
from benchmarks.command import CommandRun, run_command
from benchmarks.floor import Floor, floor
from benchmarks.layers import Layer, convolutions, one_of_each_shape
from benchmarks.measure import Result, measure, measure_lipcheck, measure_tight
from benchmarks.networks import NETWORKS, Network, weights_of
from benchmarks.outcome import Outcome
from benchmarks.truth import ACCURACY, Truths, default_path
from lipcheck import options as texts
from lipcheck.engines.settings import Settings
from lipcheck.errors import LipcheckError, UsageError
from lipcheck.progress import Display, Progress

T = TypeVar("T")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description="lipcheck's bounds against the published methods, on the convolutions of networks."
    )
    own, default = Settings(), ", ".join(methods.by_default())
    layers = parser.add_argument_group("networks")
    layers.add_argument("--model", default="resnet50", help="any name that lipcheck knows (resnet50)")
    layers.add_argument("--weights", default="random", help="random (default), pretrained or a checkpoint")
    layers.add_argument("--input", type=_told(texts.input_size), metavar="SHAPE", help="of one input, like 3x224x224")
    layers.add_argument(
        "--models", type=_networks, metavar="A,B", help=f"instead: all, or of {', '.join(NETWORKS)}; with their weights"
    )
    layers.add_argument("--layers", type=_count, metavar="N", help="only the first N convolutions")
    layers.add_argument("--seed", type=int, default=0, help="of random weights (0)")
    layers.add_argument("--all", action="store_true", help="every layer, not one of each shape times its count")
    what = parser.add_argument_group("methods")
    what.add_argument(
        "--methods",
        type=_methods,
        metavar="A,B",
        help=f"beside lipcheck, of {', '.join(methods.names())} ({default}); none for none",
    )
    what.add_argument("--tight", action="store_true", help="a row for lipcheck --tight")
    what.add_argument("--time-budget", type=_told(texts.seconds), metavar="TIME", help="of --tight, estimated: 10min")
    what.add_argument("--tolerance", type=float, default=own.tolerance, help="of lipcheck's search (0.001)")
    what.add_argument(
        "--limit", type=_told(texts.seconds), default=600.0, metavar="TIME", help="a method a network, in all (10min)"
    )
    what.add_argument("--threads", type=_count, default=torch.get_num_threads(), metavar="N", help="of the processor")
    what.add_argument(
        "--memory",
        type=_told(texts.memory),
        default=1 << 28,
        metavar="SIZE",
        help="of a block of frequencies, published methods (256MiB)",
    )
    what.add_argument("--no-floor", action="store_true", help="no Cholesky floor")
    truth = parser.add_argument_group("truth")
    truth.add_argument("--no-truth", action="store_true", help="seconds only: no true norms, hence no slack")
    truth.add_argument("--truth-accuracy", type=float, default=ACCURACY, metavar="R", help="of true norms (1e-7)")
    truth.add_argument("--truths", type=Path, metavar="FILE", help="where true norms are kept between runs")
    out = parser.add_argument_group("more")
    out.add_argument("--command", action="store_true", help="time the whole command as well")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    growth.add_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where an enclosure of lipcheck misses the truth; 2 for a network that cannot be had."""
    options = parser().parse_args(arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        if options.growth:
            return _growth(options)
        found = _tables(options)
    except (LipcheckError, RuntimeError, ArithmeticError, OSError) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(before)
    return 0 if all(outcome.sound for outcome in found) else 1


def _tables(options: argparse.Namespace) -> list[Outcome]:
    """A table for each network, shown as soon as it is done."""
    named = [(name, NETWORKS[name]) for name in options.models or ()]
    chosen = named or [(options.model, Network(options.model, options.weights))]
    # What is missing is told before anything is run.
    weights = [weights_of(network) for _, network in chosen]
    found = []
    for (name, network), own in zip(chosen, weights, strict=True):
        with Display() as display:
            found.append(run(name, network, own, options, display))
        if len(found) > 1:
            print()
        outcomes.show(found[-1], Console())
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps(outcomes.document(found), indent=2) + "\n")
    return found


def _growth(options: argparse.Namespace) -> int:
    with Display() as display:
        found = growth.run(options, display)
    for path in growth.write(found, options.growth):
        print(path)
    return 0


def run(name: str, network: Network, weights: str, options: argparse.Namespace, progress: Progress) -> Outcome:
    """The truth of the chosen layers, then every chosen method on them. `weights` is as lipcheck takes it."""
    shape = None if options.models else options.input
    command = _command(network.model, weights, shape, options, progress) if options.command else None
    progress.stage("loading the model", None)
    layers = convolutions(network.model, weights, options.seed, shape)[: options.layers]
    if not layers:
        raise LipcheckError(f"{network.model} has no convolutions")
    truths = {} if options.no_truth else _truths(name, network, options, layers, progress)
    return Outcome(
        model=name,
        weights=network.weights,
        seed=options.seed,
        threads=options.threads,
        tolerance=options.tolerance,
        every=options.all,
        layers=layers,
        results=_results(options, layers, progress),
        truths=truths,
        accuracy=options.truth_accuracy,
        floor=None if options.no_floor else _floor(layers, options, progress),
        command=command,
    )


def _results(options: argparse.Namespace, layers: Sequence[Layer], progress: Progress) -> list[Result]:
    settings = Settings(options.tolerance)
    default, bounds = measure_lipcheck(layers, settings, progress)
    results = [default]
    _tell(default)
    if options.tight:
        budget = Settings(options.tolerance, time_budget=options.time_budget or float("inf"))
        results.append(measure_tight(layers, default, bounds, budget, progress, every=options.all))
        _tell(results[-1])
    wanted = methods.by_default() if options.methods is None else options.methods
    for method in methods.chosen(wanted, settings, options.memory):
        results.append(measure(method, layers, progress, every=options.all, limit=options.limit))
        _tell(results[-1])
    return results


def _floor(layers: Sequence[Layer], options: argparse.Namespace, progress: Progress) -> Floor:
    progress.stage("Cholesky floor", None)
    return floor(layers, options.threads)


def _tell(result: Result) -> None:
    """A line on standard error where no progress is shown: the slow methods take minutes."""
    if not sys.stderr.isatty():
        print(f"{result.label}: {result.seconds:.1f} s", file=sys.stderr, flush=True)


def _command(
    model: str, weights: str, input_size: tuple[int, ...] | None, options: argparse.Namespace, progress: Progress
) -> CommandRun:
    progress.stage("the whole command", None)
    shape = ["--input", "x".join(map(str, input_size))] if input_size else []
    chosen = ["--weights", weights, "--seed", str(options.seed), "--threads", str(options.threads)]
    return run_command([model, *chosen, *shape, "--tolerance", str(options.tolerance)])


def _truths(
    name: str, network: Network, options: argparse.Namespace, layers: Sequence[Layer], progress: Progress
) -> dict[int, float]:
    """True norms by the place of the layer: of one of each shape, or of all."""
    path = options.truths or default_path(name, network.weights, options.seed)
    known = Truths(path, options.truth_accuracy)
    chosen = list(layers) if options.all else [layer for layer, _ in one_of_each_shape(layers)]
    places = {id(layer): place for place, layer in enumerate(layers)}
    progress.stage("true norms", len(chosen))
    values = {}
    for layer in chosen:
        values[places[id(layer)]] = known.of(layer)
        progress.advance(1)
    return values


def _told(read: Callable[[str], T]) -> Callable[[str], T]:
    """The reader of a text, its errors as argparse wants them."""

    def reader(text: str) -> T:
        try:
            return read(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return reader


def _count(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give 1 or more")
    return number


def _methods(text: str) -> list[str]:
    return [] if text == "none" else _of(text, methods.names())


def _networks(text: str) -> list[str]:
    return list(NETWORKS) if text == "all" else _of(text, list(NETWORKS))


def _of(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return names
