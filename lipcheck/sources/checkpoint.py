"""A checkpoint file of unknown origin → named tensors: safetensors, or torch's formats without their pickled code.

The file is an adversary's until it has been read. What is refused here: pickled objects, compressed or overlapping
archive entries, tensors larger than the bytes behind them, headers and name lists beyond any real network's.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcheck.errors import WeightsError
from lipcheck.sources.archive import PICKLE, ZIP, asks_for, no_checkpoint, refuse_unsound_archive
from lipcheck.sources.header import entries, refuse_names
from lipcheck.sources.surroundings import quiet
from lipcheck.sources.vetting import beginning, is_safetensors
from lipcheck.sources.wording import plain, reason, some
from lipcheck.sources.wrappers import holds, unwrapped

EMA_PREFIXES = ("ema_model.", "model_ema.", "ema.")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, of torch.compile
AVERAGED = "n_averaged"  # the counter of torch's AveragedModel, beside its "module." names


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Named dense CPU tensors, and what was taken off to get at them.

    `ordered` is true when they stand in their model's own order; a safetensors file sorts its names.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    ordered: bool
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path, *, ema: bool = False) -> Checkpoint:
    """The file's tensors under their names, wrappers and parallel-training prefixes taken off.

    With `ema` they are the averages that training kept beside the weights. Each tensor is backed by at least as many
    bytes as it has; together they are no larger than the file. Those of an archive are read when they are used.
    Errors: WeightsError with the file's name and the reason.
    """
    size, start = beginning(path)
    if is_safetensors(path, start):
        names, notes = without_prefixes(path, list(entries(path)), ema=ema)
        held = _read_safetensors(path)
        return Checkpoint(path, {new: held[old] for old, new in names.items()}, ordered=False, notes=notes)
    tensors, notes = _unwrapped(path, _read_archive(path, start, size), ema=ema)
    _refuse_unsound_tensors(path, tensors, size)
    return Checkpoint(path, tensors, ordered=True, notes=notes)


def read_tensor(path: Path) -> Tensor:
    """The one tensor that the file holds, by itself or under a name; as careful as `read_checkpoint`.

    Errors: WeightsError with the file's name and the reason.
    """
    size, start = beginning(path)
    if is_safetensors(path, start):
        held: Any = _read_safetensors(path)
    else:
        held = _read_archive(path, start, size)
    tensors = {"": held} if isinstance(held, Tensor) else held
    if not isinstance(tensors, Mapping) or not all(isinstance(one, Tensor) for one in tensors.values()):
        raise WeightsError(f"{_shown(path)}: holds no tensor; save one with torch.save(tensor, file)")
    if len(tensors) != 1:
        raise WeightsError(f"{_shown(path)}: holds {len(tensors)} tensors, one is expected; save a single one")
    (tensor,) = tensors.values()
    _refuse_unsound_tensors(path, {"of it": tensor}, size)
    return tensor


def _read_archive(path: Path, start: bytes, size: int) -> Any:
    """What a file of torch.save holds, once its archive is known to be sound."""
    if start.startswith(ZIP):
        refuse_unsound_archive(path, size)
    elif not start.startswith(PICKLE):
        raise no_checkpoint(path)
    return _read_torch(path, in_place=start.startswith(ZIP))


def check_safetensors(path: Path) -> None:
    """Nothing, when the file's header is sound; WeightsError with the file's name and the reason otherwise."""
    entries(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    names = entries(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


def _read_torch(path: Path, *, in_place: bool) -> Any:
    """What the file holds. Only tensors and plain containers can be rebuilt; storages are views of the file's bytes."""
    try:
        # timm's trainer keeps its options beside the weights: a plain record, whose making runs nothing.
        with quiet(), torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=in_place)
    except Exception as error:  # the restricted unpickler lets any error of a damaged stream through
        raise WeightsError(f"{_shown(path)}: {_why_unreadable(error)}") from error


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return asks_for(found[1])
    if "TorchScript" in text:
        return "a TorchScript archive, not a checkpoint; save model.state_dict()"
    if "Weights only load failed" in text:
        return "its pickle is damaged, or holds more than tensors; save model.state_dict()"
    return f"no readable checkpoint of torch.save ({reason(error)}); get the file again"


def _unwrapped(path: Path, loaded: Any, *, ema: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    loaded, notes, averaged = unwrapped(loaded, Tensor, ema=ema)
    tensors = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, Mapping) else {}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise WeightsError(f"{_shown(path)}: holds no named tensors{_inside(loaded)}; save model.state_dict()")
    refuse_names(path, list(tensors))
    names, taken_off = without_prefixes(path, list(tensors), ema=ema and not averaged)
    return {new: tensors[old] for old, new in names.items()}, (*notes, *taken_off)


def _inside(loaded: Any) -> str:
    """Which entries hold tensors, where none of them has the name of a usual wrapper."""
    held = [key for key, value in loaded.items() if holds(value, Tensor)] if isinstance(loaded, Mapping) else []
    return f" (but entries {some(held)}, which hold some)" if held else ""


def without_prefixes(path: Path, names: Sequence[str], *, ema: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    """Old names -> names without the prefixes that training in parallel puts before all of them, and what was done.

    Errors: WeightsError where averaged weights are asked for and no names say that they are such.
    """
    kept = {name: name for name in names}
    notes = []
    if ema:
        prefix = next((one for one in EMA_PREFIXES if any(name.startswith(one) for name in names)), None)
        if prefix is None:
            raise WeightsError(f"{_shown(path)}: holds no averaged weights (EMA); leave out --ema")
        kept = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        notes.append(f"averaged weights (EMA): the names with prefix {prefix!r}, without it")
    for prefix in PREFIXES:
        if kept and all(new.startswith(prefix) or new == AVERAGED for new in kept.values()):
            kept = {old: new.removeprefix(prefix) for old, new in kept.items() if new != AVERAGED}
            notes.append(f"prefix {prefix!r} taken off the checkpoint's names")
    return kept, tuple(notes)


def _refuse_unsound_tensors(path: Path, tensors: Mapping[str, Tensor], size: int) -> None:
    storages: dict[int, int] = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise WeightsError(f"{_shown(path)}: tensor {plain(name)} is not a plain dense tensor; save it as one")
        held = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() > held:
            raise WeightsError(
                f"{_shown(path)}: tensor {plain(name)} claims {tensor.numel()} elements over {held} bytes of storage; "
                "refused (an expanded tensor must be saved with .contiguous())"
            )
        storages[tensor.untyped_storage().data_ptr()] = held
    if sum(storages.values()) > size:
        raise WeightsError(f"{_shown(path)}: tensors of {sum(storages.values())} bytes in a file of {size}; refused")


def _shown(path: Path) -> str:
    return plain(path)
