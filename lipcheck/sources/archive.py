"""A file of torch.save, looked at before torch is there: what its archive and its pickle claim, against its bytes.

The pickle is followed with placeholders for everything that it names, so nothing in it can run. This is no gate: torch
reads the file afterwards with `weights_only=True` whatever is found here. It only says no sooner, and with fewer bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lipcheck.errors import WeightsError
from lipcheck.sources.header import refuse_count
from lipcheck.sources.wording import plain, reason

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
LONGEST_PICKLE = 32 * 2**20  # bytes, without the tensors' own
MOST_PICKLED = 25_000  # tensors: a pickle is followed step by step, which takes longer than to read a header
MOST_STEPS = 60 * MOST_PICKLED  # reads of the pickle; a tensor takes some forty
# What torch's restricted unpickler may build, and the options of a training script, which are a plain record; all else
# is refused. Source: torch/_weights_only_unpickler.py.
_ALLOWED = re.compile(
    r"argparse\.Namespace|collections\.(OrderedDict|Counter)|_codecs\.encode|(builtins|__builtin__)\.(bytearray|set|complex)"
    r"|(copy_reg|copyreg)\._reconstructor|torch\.(\w+Storage|\w*Tensor|Size|device|\w*\d\w*|half|float|double|bool|int)"
    r"|torch\.(short|long|cfloat|cdouble|per_\w+|\w+_format|strided)|torch\._utils\._rebuild_\w+"
    r"|torch\.(cuda|sparse|cuda\.sparse|storage)\.(\w+Storage|\w*Tensor)|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout"
)
# What a safetensors header calls the formats of storages.
_FORMATS = {
    **{"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"},
    **{"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8"},
    **{"ByteStorage": "U8", "BoolStorage": "BOOL"},
}
_SIZES = {
    **{"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8},
    **{"IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1},
    **{"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1},
}


def refuse_unsound(path: Path, start: bytes, size: int) -> None:
    """Nothing, unless the archive or its pickle is known to be refused later.

    Errors: WeightsError with the file's name and the reason.
    """
    if start.startswith(ZIP):
        _refuse_unsound_pickle(path, refuse_unsound_archive(path, size))
    elif start.startswith(PICKLE):
        _refuse_unsound_stream(path, size)
    else:
        raise no_checkpoint(path)


def refuse_unsound_archive(path: Path, size: int) -> dict[str, int]:
    """The sizes of the archive's entries, stored as they are and, together, no larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    refuse_count(path, len(entries), "archive entries")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise WeightsError(
                f"{plain(path)}: archive entry {plain(entry.filename)} is compressed; torch.save stores its entries, "
                "so save the checkpoint again"
            )
    if (unfolded := sum(entry.file_size for entry in entries)) > size:
        raise WeightsError(f"{plain(path)}: archive entries of {unfolded} bytes in a file of {size} bytes; refused")
    return {entry.filename: entry.file_size for entry in entries}


def no_checkpoint(path: Path) -> WeightsError:
    """The error for a file that begins as no checkpoint does."""
    return WeightsError(f"{plain(path)}: no checkpoint, neither safetensors nor a file of torch.save")


def asks_for(name: str) -> str:
    """What is wrong with a pickle that names what is no part of a tensor."""
    return (
        f"its pickle asks for {plain(name)}, and only tensors are read; save model.state_dict() "
        "or convert it to safetensors"
    )


def placed_tensors(path: Path, size: int) -> tuple[Any, str]:
    """What the archive's pickle builds, with `Placed` for its tensors, and the folder of its storages.

    Nothing for one that cannot be followed, or whose numbers have their bytes the other way round.
    Errors: WeightsError for what is refused.
    """
    entries = refuse_unsound_archive(path, size)
    built = _refuse_unsound_pickle(path, entries)
    root = (_pickle_of(entries) or "").removesuffix("data.pkl")
    order = f"{root}byteorder"
    little = order not in entries or (entries[order] < 100 and read_entry(path, order) == b"little")
    return (built, f"{root}data/") if little else (None, "")


def read_entry(path: Path, name: str) -> bytes:
    """The bytes of an archive's entry, which is known to be small.

    Errors: WeightsError where the archive is damaged there.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{plain(path)}: a torch archive that is cut off or damaged ({reason(error)}); get the file again"
    )


def _pickle_of(entries: Mapping[str, int]) -> str | None:
    return next((name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1), None)


def _refuse_unsound_pickle(path: Path, entries: dict[str, int]) -> Any:
    name = _pickle_of(entries)
    if name is None:
        return None
    if entries[name] > LONGEST_PICKLE:
        raise WeightsError(f"{plain(path)}: a pickle of {entries[name]} bytes; at most {LONGEST_PICKLE} are read")
    root = name.removesuffix("data.pkl")
    reader = _Reader(path, io.BytesIO(read_entry(path, name)), lambda key: entries.get(f"{root}data/{key}", 0))
    return reader.built if reader.follow() else None


def _refuse_unsound_stream(path: Path, size: int) -> None:
    """The format before archives: pickles one behind the other, then the bytes of the storages."""
    with path.open("rb") as file:
        reader = _Reader(path, file, lambda _: size)
        for _ in range(4):  # a magic number, a version, the machine, the checkpoint
            if not reader.follow():
                return
    if reader.held > size:
        raise WeightsError(f"{plain(path)}: storages of {reader.held} bytes in a file of {size} bytes; refused")


@dataclass(frozen=True, slots=True)
class _Storage:
    """Stands for the bytes that a tensor is a view of."""

    bytes: int
    itemsize: int
    key: str
    kind: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Stands for a tensor: the archive's entry that holds it, where it begins there, its format and its shape.

    Units: `begin` is in bytes. Its numbers lie one behind the other, in whatever order.
    """

    file: str
    begin: int
    format: str
    shape: tuple[int, ...]


class Other:
    """Stands for whatever else a pickle names."""

    def __init__(self, *_: Any) -> None:
        pass


class _Refusal(Exception):
    """What is wrong with the pickle."""


class _Reader(pickle._Unpickler):  # in Python: its memo is as long as its entries
    """Follows a pickle. Every name in it stands for a placeholder or for an ordered dictionary."""

    def __init__(self, path: Path, file: Any, size_of: Callable[[str], int]) -> None:
        self.path, self.file, self.size_of = path, file, size_of
        self.held, self.tensors, self.steps, self.begun = 0, 0, 0, file.tell()
        self.storages: dict[str, _Storage] = {}
        self.built: Any = None
        super().__init__(self, encoding="utf-8", errors="replace")

    def follow(self) -> bool:
        """Whether the next pickle could be followed to its end; where not, torch will say why.

        Errors: WeightsError for what it would refuse.
        """
        try:
            self.built = self.load()
        except WeightsError:
            raise
        except _Refusal as error:
            raise WeightsError(f"{plain(self.path)}: {error}") from error
        except Exception:  # whatever a damaged stream leads to
            return False
        return True

    # What the unpickler reads from, counted

    def read(self, count: int) -> bytes:
        self._counted()
        if count > LONGEST_PICKLE:
            raise _Refusal(f"its pickle holds a piece of {count} bytes; at most {LONGEST_PICKLE} are read")
        data: bytes = self.file.read(count)
        return data

    def readline(self) -> bytes:
        self._counted()
        line: bytes = self.file.readline(LONGEST_PICKLE)
        return line

    def _counted(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise _Refusal(f"its pickle takes over {MOST_STEPS} steps; refused")

    # What it builds

    def find_class(self, module: str, name: str) -> Any:
        """A placeholder for what has this name."""
        if not _ALLOWED.fullmatch(f"{module}.{name}"):
            raise _Refusal(asks_for(f"{module}.{name}"))
        if name == "bytearray":
            return _bytes
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module.startswith("torch") and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return self._tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        return name if name in _SIZES else Other

    def persistent_load(self, identity: Any) -> _Storage:
        """The storage that a persistent identity names, no larger than what the file holds of it."""
        kind, name, key, _, count, *_ = identity
        if kind != "storage":
            raise ValueError("no storage")
        itemsize = _SIZES.get(name, 1) if isinstance(name, str) else 1
        if not isinstance(count, int) or count < 0:
            raise _Refusal(f"a storage of {plain(count)} elements; refused")
        if count * itemsize > self.size_of(str(key)):
            raise _Refusal(f"a storage of {count * itemsize} bytes over {self.size_of(str(key))} in the file; refused")
        if str(key) not in self.storages:
            self.storages[str(key)] = _Storage(count * itemsize, itemsize, str(key), str(name))
            self.held += count * itemsize
        return self.storages[str(key)]

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any = (), *_: Any) -> Other | Placed:
        self.tensors += 1
        if self.tensors > MOST_PICKLED:
            raise _Refusal(f"over {MOST_PICKLED} tensors; at most so many are read")
        if isinstance(storage, _Storage) and isinstance(shape, tuple) and all(isinstance(n, int) for n in shape):
            elements = math.prod(shape)
            if elements * storage.itemsize > storage.bytes:
                raise _Refusal(
                    f"a tensor claims {elements} elements over {storage.bytes} bytes of storage; "
                    "refused (an expanded tensor must be saved with .contiguous())"
                )
            _refuse_outside(storage, offset, shape, stride)
            if storage.kind in _FORMATS and isinstance(offset, int) and offset >= 0 and _dense(shape, stride):
                return Placed(storage.key, offset * storage.itemsize, _FORMATS[storage.kind], shape)
        return Other()


def _refuse_outside(storage: _Storage, offset: Any, shape: tuple[int, ...], stride: Any) -> None:
    """Nothing, unless the tensor reaches beyond its storage, or in front of it."""
    steps = stride if isinstance(stride, tuple) else ()
    places = (offset, *shape, *steps)
    if not all(isinstance(place, int) for place in places) or len(steps) not in (0, len(shape)) or min(places) < 0:
        raise _Refusal(f"a tensor of shape {plain(shape)} at {plain(offset)} with steps {plain(stride)}; refused")
    last = offset + sum(step * (side - 1) for step, side in zip(steps, shape, strict=False))
    if 0 not in shape and (last + 1) * storage.itemsize > storage.bytes:
        raise _Refusal(f"a tensor that reaches beyond its storage of {storage.bytes} bytes; refused")


def _bytes(*given: Any) -> Other:
    """Stands for bytes, which are not made."""
    if given and isinstance(given[0], int) and given[0] > LONGEST_PICKLE:
        raise _Refusal(f"its pickle makes {given[0]} bytes of nothing; refused")
    return Other()


def _dense(shape: tuple[int, ...], stride: Any) -> bool:
    """Whether the tensor's numbers lie one behind the other, in whatever order of its axes."""
    if not isinstance(stride, tuple) or len(stride) != len(shape) or not all(isinstance(n, int) for n in stride):
        return False
    expected = 1
    for step, side in sorted((step, side) for step, side in zip(stride, shape, strict=True) if side != 1):
        if step != expected:
            return False
        expected *= side
    return True


def _never(*_: Any) -> NoReturn:
    raise ValueError("no extension is read")


# Codes that a process may have registered for other names.
for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4):
    _Reader.dispatch = {**_Reader.dispatch, _code[0]: _never}
