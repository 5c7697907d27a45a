"""The checkpoints in a training run's folder, as trainers write them, in the order of training."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lipcheck.errors import UsageError
from lipcheck.sources.shards import INDEX, INDEX_SUFFIX
from lipcheck.sources.targets import WEIGHT_FILES
from lipcheck.sources.vetting import stored_as
from lipcheck.sources.wording import plain

DEEPEST = 6  # folders below the run's own
MOST_ENTRIES = 100_000  # files and folders that are looked at
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
_LARGEST_BIN = "pytorch_model.bin"  # what else ends in .bin is a trainer's own state
# What trainers keep beside the weights, files that are half written, and the shards that an index names.
_OTHER = re.compile(
    r"(optimizer|optim|scheduler|lr_scheduler|scaler|rng_state|random_states|sampler|training_args|(recovery_)?tmp)"
    r"([._-].*|\d*)|.*-\d{5}-of-\d{5}\..*"
)
_FOLDER = re.compile(r"(checkpoint|step|epoch|global_step)[-_]?\d+", re.IGNORECASE)
_NAMED = (re.compile(r"step[-_=]?(\d+)", re.IGNORECASE), re.compile(r"epoch[-_=]?(\d+)", re.IGNORECASE))
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

Stamp = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint of a run: a file, or a folder with a network's weights.

    `step` holds the numbers in its name that tell when in training it was written, none where there are none. `stamp`
    changes when it is written anew, and is the same for two names of the same files.
    """

    path: Path
    name: str  # from the run's folder on
    step: tuple[int, ...]
    stamp: Stamp
    written: float  # seconds since 1970


def checkpoints(run: Path) -> list[Saved]:
    """The run's checkpoints in the order of training, each once.

    Those with a number in their name are in the order of the numbers, folder by folder; one without stands behind the
    last of them that was not written later.
    Errors: UsageError where the folder cannot be read.
    """
    try:
        found = list(_within(run, run, DEEPEST, [MOST_ENTRIES]))
    except OSError as error:
        raise UsageError(f"{plain(run)}: {error.strerror}; name the folder of a training run") from error
    numbered = sorted((one for one in found if one.step), key=lambda one: (_natural(one.path.parent), one.step))
    order = list({one.stamp: one for one in reversed(numbered)}.values())[::-1]
    known = {one.stamp for one in order}
    for one in sorted((one for one in found if not one.step), key=lambda one: (one.written, one.name)):
        if one.stamp not in known:
            earlier = [place for place, other in enumerate(order) if other.written <= one.written]
            order.insert(max(earlier, default=-1) + 1, one)
            known.add(one.stamp)
    return order


def stamp_of(path: Path) -> Stamp | None:
    """What tells whether a file, or the weights and the config of a folder, were written anew; None once it is gone."""
    try:
        facts = [file.stat() for file in _files(path)]
    except OSError:
        return None
    return tuple((fact.st_dev, fact.st_ino, fact.st_size, fact.st_mtime_ns) for fact in facts) or None


def training_step(name: str) -> tuple[int, ...]:
    """When in training a checkpoint of this name was written: its step, else its epoch, else all its whole numbers.

    >>> training_step("epoch=3-step=1200.ckpt"), training_step("checkpoint-500"), training_step("model_best.pth.tar")
    ((1200,), (500,), ())
    >>> training_step("recovery-3-200.pth.tar"), training_step("epoch_7_acc_0.913.pt")
    ((3, 200), (7,))
    """
    path = Path(name)
    stem = path.name.removesuffix(".tar").removesuffix(stored_as(path))
    for pattern in _NAMED:
        if match := pattern.search(stem):
            return (int(match[1]),)
    return tuple(int(number) for number in _NUMBER.findall(stem) if "." not in number)


def _within(folder: Path, run: Path, deeper: int, left: list[int]) -> Iterator[Saved]:
    """The checkpoints in a folder and below it; a folder that is one itself is taken whole."""
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    whole = folder != run and _is_checkpoint(folder)
    if whole:
        yield from _saved(folder, run)
    for entry in entries:
        left[0] -= 1
        if left[0] < 0:
            raise UsageError(f"{plain(run)}: over {MOST_ENTRIES} files; name the folder of one training run")
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if deeper:
                yield from _within(Path(entry.path), run, deeper - 1, left)
        elif not whole and _is_weights(entry.name):
            yield from _saved(Path(entry.path), run)


def _saved(path: Path, run: Path) -> Iterator[Saved]:
    stamp = stamp_of(path)
    if stamp is not None:
        written = max(fact[3] for fact in stamp) / 1e9
        yield Saved(path, str(path.relative_to(run)), training_step(path.name), stamp, written)


def _is_weights(name: str) -> bool:
    if _OTHER.fullmatch(name):
        return False
    return stored_as(Path(name)) in _SUFFIXES or name == _LARGEST_BIN or name.endswith(INDEX_SUFFIX)


def _is_checkpoint(folder: Path) -> bool:
    """Whether the folder's files are one checkpoint: it has a config, or the name of one, and the files of one."""
    named = _FOLDER.fullmatch(folder.name) is not None or (folder / "config.json").is_file()
    return named and any((folder / name).is_file() for name in (INDEX, *WEIGHT_FILES))


def _files(path: Path) -> list[Path]:
    """What is read of a checkpoint."""
    if path.is_dir():
        named = [path / name for name in ("config.json", INDEX, *WEIGHT_FILES)]
        shards = path.glob("*-of-*.safetensors")
        return [file for file in (*named, *sorted(shards)) if file.is_file()]
    if path.name.endswith(INDEX_SUFFIX):
        return [path, *sorted(path.parent.glob("*-of-*.safetensors"))]
    return [path]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Words in the order of the alphabet, numbers in their own: every second part is one."""
    parts = re.split(r"([0-9]+)", str(path))
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)]
