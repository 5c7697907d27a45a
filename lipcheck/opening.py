"""What an audit and a verification begin with: the model, its input, where inputs are, the device, the threads, the
display."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipcheck import sources
from lipcheck.domains import Domain, domain_of
from lipcheck.errors import InputSizeError, UsageError
from lipcheck.notation import WrittenDomain, read_domain
from lipcheck.progress import Display, Progress, Silent
from lipcheck.ranges import Range
from lipcheck.sources.inputs import check_input_file, read_input
from lipcheck.sources.pixels import timm_pixels
from lipcheck.sources.weights import refuse_nonfinite


def open_model(
    model: str | nn.Module,
    example: Tensor | None,
    weights: str,
    seed: int,
    input_size: tuple[int, ...] | None,
    *,
    partial: bool = False,
    ema: bool = False,
) -> sources.LoadedModel:
    """A name or a module in hand, with one input of the right shape.

    `partial` lets weights be missing from a checkpoint, `ema` takes its averages.

    Errors: SourceError, UsageError.
    """
    if isinstance(model, nn.Module):
        model = unwrapped(model)
        if weights != "pretrained" or partial or ema:
            raise UsageError("weights are chosen for a model that is named; a module in hand is audited as it is")
        refuse_nonfinite(model)
        return sources.LoadedModel(
            model,
            _example(model, example, input_size, seed),
            type(model).__name__,
            "module",
            "as given",
            pixels=timm_pixels(model),
        )
    if not isinstance(model, str):
        raise UsageError(f"model is a {type(model).__name__}; give a name or a torch.nn.Module")
    if example is not None:
        input_size = tuple(example.shape[1:])
    return sources.load(model, weights=weights, seed=seed, input_size=input_size, partial=partial, ema=ema)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what torch.compile, DataParallel and DistributedDataParallel make of it."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _example(module: nn.Module, example: Tensor | None, input_size: tuple[int, ...] | None, seed: int) -> Tensor:
    """The given input, or a random one of the size that is known."""
    if example is not None:
        if not isinstance(example, Tensor) or not example.is_floating_point() or example.dim() < 2:
            raise InputSizeError(
                "example must be a floating-point tensor with a batch axis, such as torch.randn(1, 3, 224, 224)"
            )
        if example.shape[0] != 1:
            raise InputSizeError(f"example has a batch of {example.shape[0]}; give one input, such as example[:1]")
        return example.detach()
    known = getattr(module, "pretrained_cfg", None)
    size = input_size or (known.get("input_size") if isinstance(known, dict) else None)
    size = size or getattr(module, "input_size", None)
    if not size:
        raise InputSizeError(
            f"{type(module).__name__} does not say its input size; give example=torch.randn(1, 3, 224, 224) or the like"
        )
    parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *size, generator=generator).to(device=parameter.device, dtype=parameter.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """The inputs of one network that a domain allows: their range, what to call it, and how to draw from it."""

    domain: Domain
    range: Range
    described: str
    dtype: torch.dtype

    def draw(self, generator: torch.Generator, count: int) -> list[Tensor]:
        """At most so many inputs of the domain, each with its batch axis."""
        return self.domain.sample(self.range, generator, count, self.dtype)


def wanted_domain(domain: Any) -> WrittenDomain | Domain | None:
    """The domain as far as it can be read before the model is there.

    Errors: UsageError, SourceError for a file that is not there.
    """
    if isinstance(domain, str):
        written = read_domain(domain)
        if written.file:
            check_input_file(Path(written.file).expanduser())
        return written
    if domain is None or isinstance(domain, Domain):
        return domain
    kind = type(domain).__name__
    raise UsageError(f'domain is a {kind}; give "box:0,1", "ball:0.5@cat.png", a lipcheck.Box or a lipcheck.Ball')


def open_region(wanted: WrittenDomain | Domain, loaded: sources.LoadedModel) -> Region:
    """The domain for this network: pixels normalised as its config says, a ball's centre read from its file.

    Errors: SourceError, UsageError where they do not fit together.
    """
    pixels, shape = loaded.pixels, tuple(loaded.example.shape)
    if isinstance(wanted, WrittenDomain):
        file = Path(wanted.file).expanduser()
        wanted = domain_of(wanted, read_input(file, shape[1:], pixels) if wanted.file else None)
    mean, std, axis = (pixels.mean, pixels.std, pixels.axis) if pixels is not None else ((), (), -3)
    within = wanted.range(shape, mean, std, axis)
    return Region(wanted, within, wanted.described(mean, std), loaded.example.dtype)


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device by its name, the CPU without one.

    Errors: UsageError where it is not there, or has no float64 that a proof can rest on.
    """
    try:
        found = torch.device(device or "cpu")
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device {device!r} is not known to torch; give cpu or cuda") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device} is not available here; give --device cpu")
    if found.type not in ("cpu", "cuda"):
        raise UsageError(f"device {device} has no float64 arithmetic that lipcheck trusts; give cpu or cuda")
    return found


@contextlib.contextmanager
def displayed(progress: bool | Progress) -> Iterator[Progress]:
    """The progress that was asked for, closed afterwards."""
    if progress is True:
        with Display() as display:
            yield display
    else:
        yield progress or Silent()


@contextlib.contextmanager
def with_threads(count: int | None) -> Iterator[None]:
    """So many CPU threads of torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, each part back in its own mode afterwards; the random state untouched."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, training in modes:
            part.training = training
