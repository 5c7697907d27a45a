"""What a path stands for, before anything is loaded: a network with its weights, or weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lipcheck.errors import UsageError, WeightsError
from lipcheck.sources.names import timm_names
from lipcheck.sources.shards import INDEX, INDEX_SUFFIX
from lipcheck.sources.vetting import ONNX_SUFFIX, TORCH_SUFFIXES, WEIGHT_SUFFIXES, stored_as
from lipcheck.sources.wording import plain

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
LOCAL = "local-dir:"
WORDS = ("pretrained", "random")  # of weights that are no file
NONE = "none"  # as an architecture: the weights alone, whatever lies beside them


@dataclass(frozen=True, slots=True)
class Target:
    """A network and which weights it has, or the path of weights that are audited by themselves."""

    model: str
    weights: str
    alone: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and folders of a stranger that this will read."""
        if self.alone is not None:
            return (self.alone,)
        named = [Path(self.weights).expanduser()] if self.weights not in WORDS else []
        named += [] if self.folder is None else [self.folder]
        return tuple(path for path in named if path.exists())

    @property
    def folder(self) -> Path | None:
        """The folder whose config describes the network, None where none does."""
        return Path(self.model).expanduser() if self.alone is None and _is_folder(self.model) else None

    @property
    def pickled(self) -> bool:
        """Whether one of the files is in a format of torch.save, or in one that a parser in C++ takes whole."""
        return any(stored_as(_held(path)) in (*TORCH_SUFFIXES, ONNX_SUFFIX) for path in self.files)


def target(model: str, weights: str = "pretrained", arch: str | None = None) -> Target:
    """What `model` means: with `arch`, the weights of that network; without a config beside it, weights alone.

    Errors: UsageError for a combination that means nothing; WeightsError where there are no such weights.
    """
    if weights not in WORDS:
        existing(weights)
    if model.startswith(LOCAL):
        model = f"./{model.removeprefix(LOCAL)}" if "/" not in model else model.removeprefix(LOCAL)
    path = Path(model).expanduser()
    if not _of_weights(path, model, named=arch is None):
        if arch is not None:
            what = "there is no such file or folder" if not path.exists() else "it holds no weights"
            raise WeightsError(f"{plain(model)}: --arch names the network of a checkpoint, and {what}")
        return Target(model, weights)
    if weights != "pretrained":
        if path.is_dir():
            return Target(model, weights)
        raise UsageError(f"{plain(model)} is a checkpoint, so there are no other weights; leave out --weights")
    if path.suffix == ONNX_SUFFIX:
        if arch not in (None, NONE):
            raise UsageError("an ONNX file brings its own graph; leave out --arch")
        return Target(model, weights, alone=path)
    if arch == NONE:
        return Target(model, weights, alone=path)
    if arch is not None:
        return Target(arch, model)
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        return Target(model, weights, alone=path)
    if path.is_dir() or path.name in (*WEIGHT_FILES, INDEX):
        return Target(model if path.is_dir() else _written(folder), weights)
    return Target(_written(folder), model)


def _written(folder: Path) -> str:
    """A folder as it cannot be taken for a model's name."""
    return str(folder) if folder.is_absolute() else f"./{folder}"


def existing(weights: str) -> Path:
    """The file or folder of weights that an option names.

    Errors: WeightsError where it is not there, or holds none.
    """
    path = Path(weights).expanduser()
    if not path.is_file() and not (path.is_dir() and any((path / name).is_file() for name in (INDEX, *WEIGHT_FILES))):
        what = "a folder without weights" if path.is_dir() else "no such file"
        raise WeightsError(f"--weights {plain(weights)}: {what}; expected pretrained, random or a checkpoint file")
    return path


def _of_weights(path: Path, model: str, *, named: bool) -> bool:
    """Whether the path is there and holds weights, in a file of its own or in a folder.

    `named` says that it may be the name of a network as well.
    """
    if not model:
        return False
    try:
        if path.is_dir():
            held = any((path / name).is_file() for name in (INDEX, *WEIGHT_FILES))
            return held and (not named or _is_folder(model))
        suffixed = stored_as(path) in (*WEIGHT_SUFFIXES, ONNX_SUFFIX) or path.name.endswith(INDEX_SUFFIX)
        return path.exists() and suffixed
    except (OSError, ValueError):
        return False


def _is_folder(model: str) -> bool:
    """Whether a folder is meant: there is one, and the name is no network's."""
    if not Path(model).expanduser().is_dir():
        return False
    return _is_path(model) or model.partition(".")[0] not in ("demo", *timm_names())


def _is_path(model: str) -> bool:
    return "/" in model or "\\" in model or model.startswith((".", "~"))


def _held(path: Path) -> Path:
    """The file of a folder that holds its weights."""
    if not path.is_dir():
        return path
    return next((path / name for name in (INDEX, *WEIGHT_FILES) if (path / name).is_file()), path)
