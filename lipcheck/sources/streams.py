"""A checkpoint's tensors, read one at a time: of the whole file, memory holds its names and the tensor at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcheck.errors import WeightsError
from lipcheck.sources.checkpoint import read_checkpoint, without_prefixes
from lipcheck.sources.header import Entry, entries
from lipcheck.sources.shards import INDEX, INDEX_SUFFIX, sharded_entries
from lipcheck.sources.targets import WEIGHT_FILES
from lipcheck.sources.vetting import beginning, is_safetensors
from lipcheck.sources.wording import plain, reason

# A file is mapped again once so many bytes of it were read: pages that were touched count as memory until then.
REMAPPED = 1 << 27
FORMATS = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}


@dataclass(frozen=True, slots=True)
class Stream:
    """A checkpoint's tensors by name. `read` gives one of them, dense and on the CPU, in the format of the file."""

    path: Path
    source: str  # safetensors, torch
    entries: Mapping[str, Entry]
    read: Callable[[str], Tensor]
    notes: tuple[str, ...] = ()


def open_stream(path: Path, *, ema: bool = False) -> Stream:
    """The tensors of a file, of the files that an index names, or of a folder with one of them.

    Errors: WeightsError with the file's name and the reason; SourceError for an index that is no JSON.
    """
    if path.is_dir():
        path = _within(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _safetensors(path, sharded_entries(path), ema=ema)
    _, start = beginning(path)
    if is_safetensors(path, start):
        return _safetensors(path, {name: (path, entry) for name, entry in entries(path).items()}, ema=ema)
    checkpoint = read_checkpoint(path, ema=ema)
    described = {
        name: Entry(name, FORMATS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")), tuple(tensor.shape))
        for name, tensor in checkpoint.tensors.items()
    }
    return Stream(path, "torch", described, checkpoint.tensors.__getitem__, checkpoint.notes)


def _within(folder: Path) -> Path:
    for name in (INDEX, *WEIGHT_FILES):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{plain(folder)}: holds none of {', '.join((WEIGHT_FILES[0], INDEX, *WEIGHT_FILES[1:]))}")


def _safetensors(path: Path, held: Mapping[str, tuple[Path, Entry]], *, ema: bool) -> Stream:
    names, notes = without_prefixes(path, list(held), ema=ema)
    files = len({file for file, _ in held.values()})
    if files > 1 or path.name.endswith(INDEX_SUFFIX):
        notes = (*notes, f"read from {files} file{'' if files == 1 else 's'} of {path.name}")
    places = {new: (held[old][0], old) for old, new in names.items()}
    described = {new: Entry(new, held[old][1].format, held[old][1].shape) for old, new in names.items()}
    return Stream(path, "safetensors", described, _Reader(places).read, notes)


class _Reader:
    """Reads from one mapped file at a time."""

    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        self.places = places
        self.file: Path | None = None
        self.handle: Any = None
        self.bytes = 0

    def read(self, name: str) -> Tensor:
        from safetensors import SafetensorError, safe_open

        file, own = self.places[name]
        try:
            if file != self.file or self.bytes > REMAPPED:
                self.handle = None
                self.handle, self.file, self.bytes = safe_open(file, framework="pt"), file, 0
            tensor: Tensor = self.handle.get_tensor(own)
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise WeightsError(f"{plain(file)}: tensor {plain(own)} cannot be read ({reason(error)})") from error
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor
