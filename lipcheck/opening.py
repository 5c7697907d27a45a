"""What an audit and a verification begin with: the model and its input, the device, the threads, the display."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lipcheck import sources
from lipcheck.errors import InputSizeError, UsageError
from lipcheck.progress import Display, Progress, Silent
from lipcheck.sources.weights import refuse_nonfinite


def open_model(
    model: str | nn.Module, example: Tensor | None, weights: str, seed: int, input_size: tuple[int, ...] | None
) -> sources.LoadedModel:
    """A name or a module in hand, with one input of the right shape.

    Errors: SourceError, UsageError.
    """
    if isinstance(model, nn.Module):
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        if weights != "pretrained":
            raise UsageError("weights are chosen for a model that is named; a module in hand is audited as it is")
        refuse_nonfinite(model)
        return sources.LoadedModel(
            model, _example(model, example, input_size, seed), type(model).__name__, "module", "as given"
        )
    if not isinstance(model, str):
        raise UsageError(f"model is a {type(model).__name__}; give a name or a torch.nn.Module")
    if example is not None:
        input_size = tuple(example.shape[1:])
    return sources.load(model, weights=weights, seed=seed, input_size=input_size)


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
