"""A checkpoint file of unknown origin → named tensors: safetensors, or torch's formats without their pickled code.

The file is an adversary's until it has been read. What is refused here: pickled objects, compressed or overlapping
archive entries, tensors larger than the bytes behind them, headers and name lists beyond any real network's.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcheck.errors import WeightsError
from lipcheck.sources.surroundings import quiet
from lipcheck.sources.wording import plain, reason

MOST_TENSORS = 100_000
LONGEST_HEADER = 32 * 2**20  # bytes of a safetensors header
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "state_dict_ema", "model_ema", "network", "net")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, of torch.compile
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Named dense CPU tensors, and what was taken off to get at them.

    `ordered` is true when they stand in their model's own order; a safetensors file sorts its names.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    ordered: bool
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """The file's tensors under their names, wrappers and parallel-training prefixes taken off.

    Each tensor is backed by at least as many bytes as it has; together they are no larger than the file.
    Errors: WeightsError with the file's name and the reason.
    """
    size, start = _beginning(path)
    if _is_safetensors(path, start):
        return Checkpoint(path, _read_safetensors(path, start), ordered=False)
    tensors, notes = _unwrapped(path, _read_archive(path, start, size))
    _refuse_unsound_tensors(path, tensors, size)
    return Checkpoint(path, tensors, ordered=True, notes=notes)


def read_tensor(path: Path) -> Tensor:
    """The one tensor that the file holds, by itself or under a name; as careful as `read_checkpoint`.

    Errors: WeightsError with the file's name and the reason.
    """
    size, start = _beginning(path)
    if _is_safetensors(path, start):
        held: Any = _read_safetensors(path, start)
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


def _beginning(path: Path) -> tuple[int, bytes]:
    """The file's size and its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
        size = path.stat().st_size
    except OSError as error:
        raise WeightsError(f"{_shown(path)}: {error.strerror}; give a safetensors or .pth file") from error
    if start.startswith(LFS_POINTER):
        raise WeightsError(f"{_shown(path)}: only a git-lfs pointer to a checkpoint; fetch the file with git lfs pull")
    return size, start


def _is_safetensors(path: Path, start: bytes) -> bool:
    return path.suffix == ".safetensors" or start[8:9] == b"{"


def _read_archive(path: Path, start: bytes, size: int) -> Any:
    """What a file of torch.save holds, once its archive is known to be sound."""
    if start.startswith(ZIP):
        _refuse_unsound_archive(path, size)
    elif not start.startswith(PICKLE):
        raise WeightsError(f"{_shown(path)}: no checkpoint, neither safetensors nor a file of torch.save")
    return _read_torch(path, in_place=start.startswith(ZIP))


def check_safetensors(path: Path) -> None:
    """Nothing, when the file's header is sound; WeightsError with the file's name and the reason otherwise."""
    try:
        with path.open("rb") as file:
            _safetensors_names(path, file.read(32))
    except OSError as error:
        raise WeightsError(f"{_shown(path)}: {error.strerror}") from error


def _read_safetensors(path: Path, start: bytes) -> dict[str, Tensor]:
    from safetensors import safe_open

    names = _safetensors_names(path, start)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


def _safetensors_names(path: Path, start: bytes) -> list[str]:
    """The names. The parser itself rejects overlaps, holes, duplicates and offsets over the file."""
    from safetensors import SafetensorError, safe_open

    if int.from_bytes(start[:8], "little") > LONGEST_HEADER:
        raise WeightsError(f"{_shown(path)}: no sound safetensors file (its header claims over {LONGEST_HEADER} bytes)")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise WeightsError(f"{_shown(path)}: no sound safetensors file ({reason(error)})") from error
    _refuse_count(path, len(names), "tensors")
    return names


def _refuse_unsound_archive(path: Path, size: int) -> None:
    """Entries must be stored as they are and, together, fit into the file: then nothing can unfold."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise WeightsError(f"{_shown(path)}: a damaged torch archive ({reason(error)})") from error
    _refuse_count(path, len(entries), "archive entries")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise WeightsError(
                f"{_shown(path)}: archive entry {plain(entry.filename)} is compressed; torch.save stores its entries, "
                "so save the checkpoint again"
            )
    if (unfolded := sum(entry.file_size for entry in entries)) > size:
        raise WeightsError(f"{_shown(path)}: archive entries of {unfolded} bytes in a file of {size} bytes; refused")


def _read_torch(path: Path, *, in_place: bool) -> Any:
    """What the file holds. Only tensors and plain containers can be rebuilt; storages are views of the file's bytes."""
    try:
        with quiet():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=in_place)
    except Exception as error:  # the restricted unpickler lets any error of a damaged stream through
        raise WeightsError(f"{_shown(path)}: {_why_unreadable(error)}") from error


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"its pickle asks for {plain(found[1])}, and only tensors are read; save model.state_dict() "
            "or convert it to safetensors"
        )
    if "TorchScript" in text:
        return "a TorchScript archive, not a checkpoint; save model.state_dict()"
    return f"no readable checkpoint of torch.save ({type(error).__name__}: {reason(error)})"


def _unwrapped(path: Path, loaded: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    notes = []
    for _ in range(3):  # a wrapper in a wrapper occurs, four deep does not
        if not isinstance(loaded, Mapping):
            break
        wrapper = next((key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if wrapper is None:
            break
        loaded = loaded[wrapper]
        notes.append(f"weights read from the checkpoint's entry {wrapper!r}")
    tensors = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, Mapping) else {}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise WeightsError(f"{_shown(path)}: holds no named tensors; save model.state_dict()")
    _refuse_count(path, len(tensors), "tensors")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            notes.append(f"prefix {prefix!r} taken off the checkpoint's names")
    return tensors, tuple(notes)


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


def _refuse_count(path: Path, count: int, what: str) -> None:
    if count > MOST_TENSORS:
        raise WeightsError(f"{_shown(path)}: {count} {what}; at most {MOST_TENSORS} are read")


def _shown(path: Path) -> str:
    return plain(path)
