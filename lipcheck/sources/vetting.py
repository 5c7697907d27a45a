"""Files of unknown origin, refused before torch is loaded where their headers already say that they are unsound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lipcheck.errors import WeightsError
from lipcheck.sources.archive import ZIP, Other, Placed, placed_tensors, refuse_unsound
from lipcheck.sources.header import Entry, entries
from lipcheck.sources.roles import roles
from lipcheck.sources.shards import INDEX, INDEX_SUFFIX, sharded_entries
from lipcheck.sources.values import SMALL, refuse_nonfinite, refuse_nonfinite_placed
from lipcheck.sources.wording import plain
from lipcheck.sources.wrappers import unwrapped

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
ONNX_SUFFIX = ".onnx"
LFS_POINTER = b"version https://git-lfs"


def stored_as(path: Path) -> str:
    """The suffix that tells how the file's weights are stored; the .pth.tar of trainers is a file of torch.save.

    >>> stored_as(Path("last.pth.tar")), stored_as(Path("model.safetensors")), stored_as(Path("data.tar"))
    ('.pth', '.safetensors', '.tar')
    """
    inner = path.with_suffix("").suffix
    return inner if path.suffix == ".tar" and inner in TORCH_SUFFIXES else path.suffix


def vet(path: Path) -> None:
    """Nothing, or what is known to be wrong with the checkpoint without reading its tensors.

    Errors: WeightsError with the file's name and the reason; SourceError for an index that is no JSON.
    """
    if path.is_dir():
        if (path / INDEX).is_file():
            sharded_entries(path / INDEX)
        elif (path / "model.safetensors").is_file():
            vet(path / "model.safetensors")
        return
    if path.name.endswith(INDEX_SUFFIX):
        sharded_entries(path)
        return
    size, start = beginning(path)
    if path.suffix == ONNX_SUFFIX:
        return
    if is_safetensors(path, start):
        entries(path)
    else:
        refuse_unsound(path, start, size)


def vet_alone(path: Path, *, ema: bool = False) -> None:
    """As `vet`, for weights that are audited by themselves: quantised ones, and NaN in small files, too.

    With `ema`, other tensors of the file are audited than those that are looked at here.
    Errors: WeightsError.
    """
    vet(path)
    if ema:
        return
    if path.is_dir():
        path = next((path / name for name in (INDEX, "model.safetensors") if (path / name).is_file()), path)
    if path.name.endswith(INDEX_SUFFIX):
        held = sharded_entries(path)
        read = set(roles(path, {name: entry for name, (_, entry) in held.items()}).read)
        files = {file for file, _ in held.values()}
        if sum(file.stat().st_size for file in files) <= SMALL:
            for file in sorted(files):
                refuse_nonfinite(file, [name for name, (its, _) in held.items() if its == file and name in read])
    elif path.is_file() and path.suffix != ONNX_SUFFIX and is_safetensors(path, beginning(path)[1]):
        refuse_nonfinite(path, roles(path, entries(path)).read)
    elif path.is_file() and path.suffix != ONNX_SUFFIX and path.stat().st_size <= SMALL:
        _vet_archive(path)


def _vet_archive(path: Path) -> None:
    size, start = beginning(path)
    if not start.startswith(ZIP):
        return
    built, folder = placed_tensors(path, size)
    held, _, _ = unwrapped(built, Placed, ema=False)
    if not isinstance(held, Mapping) or any(isinstance(value, Other) for value in held.values()):
        return  # a tensor that is only understood by torch is among them
    tensors = {k: v for k, v in held.items() if isinstance(k, str) and isinstance(v, Placed)}
    if tensors:
        described = {name: Entry(name, tensor.format, tensor.shape) for name, tensor in tensors.items()}
        read = roles(path, described).read
        refuse_nonfinite_placed(path, {name: tensors[name] for name in read}, folder)


def beginning(path: Path) -> tuple[int, bytes]:
    """The file's size and its first bytes.

    Errors: WeightsError where it cannot be read, or is only a pointer to a checkpoint.
    """
    try:
        if not path.is_file() and path.exists():
            raise WeightsError(f"{plain(path)}: no regular file; give a safetensors or .pth file")
        with path.open("rb") as file:
            start = file.read(32)
        size = path.stat().st_size
    except OSError as error:
        raise WeightsError(f"{plain(path)}: {error.strerror}; give a safetensors or .pth file") from error
    if start.startswith(LFS_POINTER):
        raise WeightsError(f"{plain(path)}: only a git-lfs pointer to a checkpoint; fetch the file with git lfs pull")
    return size, start


def is_safetensors(path: Path, start: bytes) -> bool:
    """Whether the file's suffix or its content says so."""
    return path.suffix == ".safetensors" or start[8:9] == b"{"
