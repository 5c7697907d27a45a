"""What a penalty adds to a training step: seconds of plain steps, of steps that refresh it and of steps that do not.

The network is torchvision's resnet18 with a CIFAR stem on random images. The three kinds of step are timed in turn, so
that whatever else the machine does meets all of them. Printed are the medians, of refreshing steps the mean, with the
overhead of a training that refreshes every n steps: (refreshing + (n - 1) between) / (n plain) - 1. A multiple of five
rounds has its share of the refreshes that search the frequencies of Gram iteration anew.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipcheck.errors import UsageError
from lipcheck.training import LipschitzPenalty

METHODS = ("lipbound", "gram", "gram-embedding", "gram-kernel", "certified-surrogate")


def network() -> nn.Module:
    """A resnet18 for images of 32 x 32: a stem of stride one without pooling."""
    from torchvision.models import resnet18

    model = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model.train()


def stepper(
    model: nn.Module, images: Tensor, labels: Tensor, clock: Callable[[], float]
) -> Callable[[LipschitzPenalty | None], float]:
    """Steps of SGD with momentum, with a penalty or without; each gives its seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(penalty: LipschitzPenalty | None) -> float:
        began = clock()
        loss = nn.functional.cross_entropy(model(images), labels)
        if penalty is not None:
            loss = loss + 1e-4 * penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        return clock() - began

    return step


def compare(method: str, given: argparse.Namespace) -> tuple[float, float, float]:
    """Median seconds of a plain step, of one that refreshes the penalty, and of one in between."""
    torch.manual_seed(0)
    device = torch.device(given.device)
    model = network().to(device)
    images = torch.randn(given.batch, 3, given.size, given.size, device=device)
    labels = torch.randint(10, (given.batch,), device=device)
    # Every second call of this one refreshes: the two kinds of step in turn.
    penalty = LipschitzPenalty(model, method=method, refresh=2, sample_input=images[:1])
    step = stepper(model, images, labels, time.process_time if given.cpu_time else time.perf_counter)
    for kind in (None, penalty, penalty):  # from a cold start, not counted
        step(kind)
    rounds = [tuple(step(kind) for kind in (None, penalty, penalty)) for _ in range(given.rounds)]
    plain, refreshing, between = zip(*rounds, strict=True)
    # Not all refreshes are the same: some search anew.
    return statistics.median(plain), statistics.fmean(refreshing), statistics.median(between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", help=f"one of the penalties, again for more: {', '.join(METHODS)}")
    parser.add_argument("--refresh", type=int, default=10, help="steps from one refresh of the bounds to the next")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument("--rounds", type=int, default=5, help="of one step of each kind")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--cpu-time", action="store_true", help="count this process's time: on a busy machine")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"resnet18, {given.size}x{given.size}, batch {given.batch}, {given.device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    head = f"{'penalty':<20} {'plain step':>11} {'refreshing':>11} {'between':>9}"
    print(f"{head}   overhead, refreshed every {given.refresh}")
    for method in given.method or METHODS:
        try:
            plain, refreshing, between = compare(method, given)
        except UsageError as error:
            raise SystemExit(f"bench-training: {error}") from None
        overhead = (refreshing + (given.refresh - 1) * between) / (given.refresh * plain) - 1
        print(f"{method:<20} {plain:>9.3f} s {refreshing:>9.3f} s {between:>7.3f} s   {overhead:.1%}", flush=True)


if __name__ == "__main__":
    main()
