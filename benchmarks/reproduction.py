"""Does training with the bounds help? Fashion-MNIST, small networks, five ways to train them, several seeds.

Each training is scored by its accuracy on clean test images, under a gradient attack within two Euclidean radii, and
certified within one, by the network's bound as `lipcheck.check` gives it and the largest Jacobian norm it sampled. What
was trained is kept in a JSON file after each training, and an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lipcheck
from benchmarks.fashion import DATA, NETWORKS, attacked, logits, read_split
from lipcheck.training import CheapLipschitz, LipschitzPenalty, certified_radius, rescale_

RADII = (0.5, 1.0)  # of the attacks, Euclidean, pixels in [0, 1]
CERTIFIED = 0.01
BATCH, RATE = 128, 3e-3
WEIGHTS = {  # of each penalty beside the cross entropy, by network
    "convolutional": {"lipbound": 0.02, "gram": 0.02, "clip": 0.06},
    "residual": {"lipbound": 0.02, "gram": 0.02, "clip": 0.06},
    "normalised": {"lipbound": 0.03, "gram": 0.03, "clip": 0.01},
}
MAX_NORM = {"convolutional": 2.5, "residual": 2.5, "normalised": 4.0}
RESCALED_EVERY, RESCALED_AFTER = 50, 1 / 3  # steps, and the share of all steps that are taken before the first time
REFRESH = 10  # steps
PAIRS = 32
METHODS = ("plain", "lipbound", "gram", "clip", "rescaled")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One training and its scores; accuracies are shares, `seconds` are CPU seconds of an epoch."""

    network: str
    method: str
    seed: int
    epochs: int
    clean: float
    attacked: tuple[float, ...]
    certified: float
    log10_upper: float
    lower: float
    seconds: float


def regulariser(
    method: str, model: nn.Module, images: Tensor, network: str, scale: float, steps: int
) -> tuple[Callable[[], Tensor] | None, Callable[[int], None]]:
    """What is added to the loss of each step, and what is done after it."""
    weight = scale * WEIGHTS[network].get(method, 0.0)
    if method in ("lipbound", "gram"):
        name = "gram-embedding" if method == "gram" else method
        penalty = LipschitzPenalty(model, method=name, refresh=REFRESH, sample_input=images[:1])
        return lambda: weight * penalty(), lambda step: None
    if method == "clip":
        clip = CheapLipschitz(model, images[:PAIRS], box=(0.0, 1.0), spread=1.0, rate=0.2)

        def fresh_pairs(step: int) -> None:
            if step % 200 == 0:
                clip.restart(images[torch.randint(len(images), (PAIRS,))])

        return lambda: weight * clip(), fresh_pairs
    if method == "rescaled":

        def rescale(step: int) -> None:
            if step > RESCALED_AFTER * steps and (step % RESCALED_EVERY == 0 or step == steps):
                rescale_(model, MAX_NORM[network] * scale, inputs=images[:1])

        return None, rescale
    return None, lambda step: None


def freeze_statistics(model: nn.Module) -> None:
    """Batch norms go on with the statistics they have: new ones would undo each rescaling of what is before them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def train(
    method: str, network: str, images: Tensor, labels: Tensor, *, epochs: int, seed: int, scale: float
) -> tuple[nn.Module, float]:
    """The trained network and the CPU seconds of an epoch: Adam on a one-cycle schedule."""
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps, pct_start=0.2)
    penalty, afterwards = regulariser(method, model, images, network, scale, steps)
    began = time.process_time()
    order = torch.cat([torch.randperm(len(images))[: steps // epochs * BATCH] for _ in range(epochs)])
    for step, chosen in enumerate(order.split(BATCH), start=1):
        model.train()
        if method == "rescaled" and step > RESCALED_AFTER * steps:
            freeze_statistics(model)
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        if penalty is not None:
            loss = loss + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        afterwards(step)
    return model.eval(), (time.process_time() - began) / epochs


def score(model: nn.Module, images: Tensor, labels: Tensor, attacks: int) -> dict[str, Any]:
    """The scores on test images, on the first so many of them under attack."""
    report = lipcheck.check(model, example=images[:1], samples=8, cache=False)
    found = logits(model, images)
    right = found.argmax(1) == labels
    safe = certified_radius(found, report) > CERTIFIED
    return {
        "clean": float(right.double().mean()),
        "attacked": tuple(attacked(model, images[:attacks], labels[:attacks], radius) for radius in RADII),
        "certified": float((right & safe).double().mean()),
        "log10_upper": report.network.log10_upper,
        "lower": report.network.lower,
    }


@functools.cache
def data(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The images to train on and those to test on, read once a process."""
    return read_split(folder, "train"), read_split(folder, "t10k")


def one(method: str, network: str, seed: int, given: argparse.Namespace) -> Outcome:
    """One training and its scores, in one thread."""
    torch.set_num_threads(1)
    (images, labels), test = data(given.data)
    if given.images:
        images, labels = images[: given.images], labels[: given.images]
    model, seconds = train(method, network, images, labels, epochs=given.epochs, seed=seed, scale=given.scale)
    return Outcome(network, method, seed, given.epochs, seconds=seconds, **score(model, *test, given.attacks))


def run(given: argparse.Namespace) -> list[Outcome]:
    """All trainings, those in the file left as they are."""
    known = [Outcome(**one) for one in json.loads(given.json.read_text())] if given.json.exists() else []
    done = {(one.method, one.network, one.seed, one.epochs): one for one in known}
    wanted = [(m, n, s, given.epochs) for s in range(given.seeds) for n in given.networks for m in given.methods]
    missing = [key for key in wanted if key not in done]
    with ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn")) as pool:
        for running in as_completed([pool.submit(one, *key[:3], given) for key in missing]):
            outcome = running.result()
            done[outcome.method, outcome.network, outcome.seed, outcome.epochs] = outcome
            keep(list(done.values()), given.json)
            print(" ".join(f"{name}={value}" for name, value in asdict(outcome).items()), flush=True)
    return [done[key] for key in wanted]


def keep(outcomes: list[Outcome], target: Path) -> None:
    """The outcomes as JSON, the file whole or not at all."""
    temporary = target.with_name(target.name + ".partial")
    temporary.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    os.replace(temporary, target)


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table for each network: means over the seeds ± their standard deviation."""
    radii = " | ".join(f"PGD ℓ2 {radius:g}" for radius in RADII)
    head = f"| training | clean | {radii} | certified {CERTIFIED:g} | log10 bound | sampled | CPU s / epoch |"
    lines = []
    for network in dict.fromkeys(one.network for one in outcomes):
        lines += [f"### {network}", "", head, "|---" * (6 + len(RADII)) + "|"]
        for method in METHODS:
            some = [one for one in outcomes if (one.network, one.method) == (network, method)]
            if not some:
                continue
            columns = [
                *([one.clean for one in some], *([one.attacked[i] for one in some] for i in range(len(RADII)))),
                [one.certified for one in some],
            ]
            cells = [spread([100 * value for value in column], 1, " %") for column in columns]
            cells.append(spread([one.log10_upper for one in some], 2))
            cells.append(spread([one.lower for one in some], 1))
            cells.append(spread([one.seconds for one in some], 1))
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def spread(values: list[float], digits: int, unit: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "") + unit


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("build/training.json"), help="what was trained so far")
    parser.add_argument("--markdown", type=Path, help="a file for the table; printed in any case")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["convolutional", "residual"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--images", type=int, default=0, help="train on the first so many, on all without")
    parser.add_argument("--attacks", type=int, default=1000, help="test images that are attacked, the first ones")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the penalties' weights, for tuning")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, each in one thread")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the IDX files")
    return parser


def main() -> None:
    given = parser().parse_args()
    given.json.parent.mkdir(parents=True, exist_ok=True)
    text = table(run(given))
    print(text)
    if given.markdown is not None:
        given.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
