"""The header of a safetensors file, read as a stranger's: its size and its entries are capped before it is parsed.

No tensor is read and no torch is loaded: a hostile file is refused at once.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipcheck.errors import WeightsError
from lipcheck.sources.wording import plain, reason

MOST_TENSORS = 100_000
LONGEST_HEADER = 32 * 2**20  # bytes
# A tensor's entry has ten quotation marks and, with five axes, seven commas; twice that leaves room for metadata.
QUOTES, COMMAS = 20, 14
MOST_AXES = 16
_ANEW = "; write it anew with safetensors"
LONGEST_NAME = 1000  # characters


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that a safetensors file holds. Shapes and formats are as the header says: F32, BF16, F8_E4M3."""

    name: str
    format: str
    shape: tuple[int, ...]


def entries(path: Path) -> dict[str, Entry]:
    """The file's tensors by name, in the header's order; the library has found the header sound.

    Errors: WeightsError with the file's name and the reason.
    """
    from safetensors import SafetensorError, safe_open

    _refuse_oversized(path)
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            refuse_names(path, names)
            return {name: _entry(name, file.get_slice(name)) for name in names}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        lost = "; get it again, if it was cut off on its way" if "not fully covered" in str(error) else _ANEW
        raise WeightsError(f"{plain(path)}: no sound safetensors file ({reason(error)}){lost}") from error


def metadata(path: Path) -> Mapping[str, str]:
    """What the file says of itself beside its tensors, in its own words."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{plain(path)}: no sound safetensors file ({reason(error)})") from error


def refuse_count(path: Path, count: int, what: str) -> None:
    """Nothing, unless a file has more parts than any real network's.

    Errors: WeightsError.
    """
    if count > MOST_TENSORS:
        raise WeightsError(f"{plain(path)}: {count} {what}; at most {MOST_TENSORS} are read")


def refuse_names(path: Path, names: Sequence[str]) -> None:
    """Nothing, unless there are more names than any real network's, or longer ones.

    Errors: WeightsError.
    """
    refuse_count(path, len(names), "tensors")
    longest = max(names, key=len, default="")
    if len(longest) > LONGEST_NAME:
        raise WeightsError(
            f"{plain(path)}: a tensor's name of {len(longest)} characters; at most {LONGEST_NAME} are read"
        )


def _entry(name: str, part: Any) -> Entry:
    shape = tuple(part.get_shape())
    if len(shape) > MOST_AXES:
        raise ValueError(f"tensor {plain(name)} has {len(shape)} axes")
    return Entry(name, str(part.get_dtype()), shape)


def _refuse_oversized(path: Path) -> None:
    """The parser holds some hundred bytes for every entry: what is parsed has no more of them than a real network's."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(9)
            if len(start) < 9:
                raise WeightsError(f"{plain(path)}: no sound safetensors file (it has {size} bytes)")
            (length,) = struct.unpack("<Q", start[:8])
            if length > LONGEST_HEADER and start[8:] != b"{":
                raise WeightsError(f"{plain(path)}: no safetensors file, whatever its name (it has no header)")
            if length > LONGEST_HEADER:
                raise WeightsError(
                    f"{plain(path)}: no sound safetensors file (its header claims over {LONGEST_HEADER} bytes)"
                )
            if length > size - 8:
                raise WeightsError(
                    f"{plain(path)}: no sound safetensors file (a header of {length} bytes in a file of {size}); "
                    "get it again, if it was cut off on its way"
                )
            text = start[8:] + file.read(max(0, length - 1))
    except OSError as error:
        raise WeightsError(f"{plain(path)}: {error.strerror}; give a safetensors or .pth file") from error
    refuse_count(path, text.count(b"{") - 2, "tensors")
    if text.count(b'"') > QUOTES * MOST_TENSORS or text.count(b",") > COMMAS * MOST_TENSORS:
        raise WeightsError(f"{plain(path)}: a header with more entries than {MOST_TENSORS} tensors have; refused")
