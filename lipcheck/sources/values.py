"""NaN and infinite numbers in a small checkpoint, found in its bytes before torch is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from lipcheck.errors import WeightsError
from lipcheck.sources.archive import Placed, read_entry
from lipcheck.sources.wording import plain

# Larger files are looked at when they are read, once.
SMALL = 1 << 26
# Bytes of a number, and the bits of its exponent: all of them are set in what is not finite.
EXPONENTS = {
    **{"F64": (8, 0x7FF << 52), "F32": (4, 0xFF << 23), "F16": (2, 0x1F << 10), "BF16": (2, 0xFF << 7)},
    **{"F8_E5M2": (1, 0x1F << 2), "F8_E4M3": (1, 0x7F)},  # of the last only NaN, with all bits set
}


def refuse_nonfinite(path: Path, names: Iterable[str]) -> None:
    """Nothing, when the file is large or these tensors of it are finite. Its header has been found sound.

    Errors: WeightsError naming the tensor and how many of its elements are not finite.
    """
    if path.stat().st_size > SMALL:
        return
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name in names:
        entry = header[name]
        begin, end = entry["data_offsets"]
        _refuse(path, name, entry["dtype"], content[8 + length + begin : 8 + length + end])


def refuse_nonfinite_placed(path: Path, tensors: Mapping[str, Placed], folder: str) -> None:
    """As `refuse_nonfinite`, for tensors of an archive of torch.save whose storages lie in this folder of it.

    Errors: WeightsError.
    """
    if path.stat().st_size > SMALL:
        return
    left, storages = 2 * SMALL, dict[str, bytes]()
    for name, tensor in tensors.items():
        size = EXPONENTS[tensor.format][0] * math.prod(tensor.shape)
        left -= size
        if left < 0:  # many views of the same bytes
            return
        if tensor.file not in storages:
            storages[tensor.file] = read_entry(path, f"{folder}{tensor.file}")
        _refuse(path, name, tensor.format, storages[tensor.file][tensor.begin : tensor.begin + size])


def _refuse(path: Path, name: str, kind: str, data: bytes) -> None:
    import numpy

    size, exponent = EXPONENTS[kind]
    bits = numpy.frombuffer(data, dtype=f"<u{size}", count=len(data) // size)
    broken = int(numpy.count_nonzero((bits & exponent) == exponent))
    if broken:
        raise nonfinite(path, name, broken, len(bits))


def nonfinite(path: Path, name: str, broken: int, count: int) -> WeightsError:
    """The error for a tensor of which so many of its elements are not finite."""
    return WeightsError(
        f"{plain(path)}: NaN or infinite weights in {plain(name)} ({broken} of {count} elements); "
        "no bound exists; repair the checkpoint"
    )
