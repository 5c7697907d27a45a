"""Sharded checkpoints: model.safetensors.index.json → the files beside it, each tensor in the one that is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipcheck.errors import WeightsError
from lipcheck.sources.config import read_json
from lipcheck.sources.header import Entry, entries, refuse_count
from lipcheck.sources.wording import plain, some

INDEX = "model.safetensors.index.json"
INDEX_SUFFIX = ".safetensors.index.json"
LONGEST_NAME = 255  # of a file


def shard_files(index: Path) -> dict[str, tuple[str, ...]]:
    """The names of the files that the index maps tensors to, each a safetensors file of the index's own folder, with
    the tensors that it is said to hold.

    Errors: WeightsError where a name leads elsewhere, or names no file.
    """
    shards = read_json(index, written=plain(index.parent)).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"{plain(index)}: maps no weights to files")
    refuse_count(index, len(shards), "tensors")
    found: dict[str, list[str]] = {}
    for tensor, shard in shards.items():
        found.setdefault(str(shard), []).append(tensor)
    for shard in sorted(found):
        refuse_outside(index, shard)
    return {shard: tuple(found[shard]) for shard in sorted(found)}


def refuse_outside(index: Path, shard: str) -> None:
    """Nothing, when the shard is a plain file name whose real path lies in the folder.

    Errors: WeightsError.
    """
    folder = index.parent.resolve()
    inside_folder = folder / shard
    try:
        inside = Path(shard).name == shard and len(shard) <= LONGEST_NAME and inside_folder.resolve().parent == folder
    except (OSError, ValueError, RuntimeError):  # a null byte, a name too long, a ring of links
        inside = False
    if not inside or not shard.endswith(".safetensors"):
        raise WeightsError(
            f"{plain(index.parent)}: {index.name} points to {plain(shard)}, no safetensors file of the folder; refused"
        )
    if not inside_folder.is_file():
        raise WeightsError(f"{plain(index.parent)}: {index.name} names {plain(shard)}, which is not there; fetch it")


def sharded_entries(index: Path) -> dict[str, tuple[Path, Entry]]:
    """Every tensor by name, with its file. The files hold what the index says and nothing else.

    Errors: WeightsError.
    """
    found: dict[str, tuple[Path, Entry]] = {}
    for shard, names in shard_files(index).items():
        path = index.parent / shard
        held = entries(path)
        _refuse_other(path, index, "is without", [name for name in names if name not in held])
        _refuse_other(path, index, "also holds", [name for name in held if name not in set(names)])
        found |= {name: (path, held[name]) for name in names}
    return found


def _refuse_other(path: Path, index: Path, how: str, names: Sequence[str]) -> None:
    if names:
        raise WeightsError(f"{plain(path)}: {how} {some(names)}, which is not what {index.name} says; fetch both again")
