"""What the shell may complete: names of models and paths, found without importing any library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lipcheck.methods import METHODS
from lipcheck.sources.names import timm_names

_PREFIXES = ("timm:", "torchvision:", "hf:", "hf-hub:")


def model_names(incomplete: str) -> list[str]:
    """Models and paths that begin with `incomplete`."""
    if "/" in incomplete or incomplete.startswith("."):
        return list(paths(incomplete))
    prefix = "timm:" if incomplete.startswith("timm:") else ""
    names = ["demo", *_PREFIXES, *(prefix + name for name in timm_names())]
    return [name for name in names if name.startswith(incomplete)]


def zoo_names(incomplete: str) -> list[str]:
    """Names that `lipcheck coverage` takes, as far as they can be had without importing a library."""
    prefix = "timm:" if incomplete.startswith("timm:") else ""
    names = ["timm:", "torchvision:", "transformers:", *(prefix + name for name in timm_names())]
    return [name for name in names if name.startswith(incomplete)]


def methods(incomplete: str) -> list[str]:
    """Names of methods, the last of a comma-separated list being the incomplete one."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in METHODS if name.startswith(last)]


def weights(incomplete: str) -> list[str]:
    """The two words, and checkpoint files."""
    return [word for word in ("pretrained", "random", *paths(incomplete)) if word.startswith(incomplete)]


def domains(incomplete: str) -> list[str]:
    """The kinds of domains, and files behind a ball's @."""
    before, at, start = incomplete.partition("@")
    if at and before.startswith("ball:"):
        return [f"{before}@{path}" for path in paths(start)]
    return [kind for kind in ("box:0,1", "ball:") if kind.startswith(incomplete)]


def paths(incomplete: str) -> Iterator[str]:
    """Files and folders that begin with `incomplete`, folders with a slash behind them."""
    folder, _, start = incomplete.rpartition("/")
    base = Path(f"{folder}/" if "/" in incomplete else ".")
    if not base.is_dir():
        return
    for entry in sorted(base.iterdir()):
        if entry.name.startswith(start) and (start.startswith(".") or not entry.name.startswith(".")):
            shown = f"{folder}/{entry.name}" if "/" in incomplete else entry.name
            yield shown + ("/" if entry.is_dir() else "")
