"""Every model that the installed libraries can build by name, and how to build one without weights.

Names are `timm:NAME`, `torchvision:NAME` and `transformers:NAME`; a bare name is timm's, as elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lipcheck.errors import MissingExtraError, SourceError, UnknownModelError
from lipcheck.sources.blueprint import Blueprint, Size
from lipcheck.sources.surroundings import quiet, seeded
from lipcheck.sources.wording import plain, reason

LIBRARIES = ("timm", "torchvision", "transformers")
NEAREST = 3
# Videos have no stated length: that of a clip of the published weights.
CLIP = (3, 16, 112, 112)
LARGE_CLIP = (3, 16, 224, 224)
LARGE_CLIPS = ("mvit", "s3d", "swin3d")
# Optical flow is of two images: they stand side by side in the input, at the least size that the networks take.
TWO_IMAGES = ("raft",)
TWO_IMAGES_SIZE = (6, 128, 128)


@dataclass(frozen=True, slots=True)
class Bare:
    """A network without weights and an input without values, both on the meta device where that can be had."""

    module: nn.Module
    example: Tensor
    keyword: str = ""


class SideBySide(nn.Module):
    """A network of two images as one of both, along the channels; of a list of estimates, the last."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        found = self.inner(*x.chunk(2, 1))
        return found[-1] if isinstance(found, list) else found


def matching(patterns: Sequence[str]) -> list[str]:
    """The names that match one of the patterns, in the order of the libraries; all of them without a pattern.

    A pattern is a glob such as `resnet*`, `torchvision:*` or `transformers/bert`. A library that is not installed is
    left out, unless a pattern names it.
    Errors: UnknownModelError for a pattern that nothing matches, MissingExtraError.
    """
    wanted = [_split(pattern) for pattern in patterns] or [("*", "*")]
    names: dict[str, list[str]] = {}
    for library in LIBRARIES:
        named = any(library == one for one, _ in wanted)
        if named or any(fnmatchcase(library, one) for one, _ in wanted):
            names[library] = _listed(library, needed=named)
    chosen: dict[str, None] = {}
    for library, glob in wanted:
        here = {one: known for one, known in names.items() if fnmatchcase(one, library)}
        found = [f"{one}:{name}" for one, known in here.items() for name in known if fnmatchcase(name, glob)]
        if not found:
            raise _unknown(library, glob, here or {one: _listed(one, needed=False) for one in LIBRARIES})
        chosen.update(dict.fromkeys(found))
    order = {f"{library}:{name}": i for library, known in names.items() for i, name in enumerate(known)}
    return sorted(chosen, key=lambda name: (LIBRARIES.index(name.partition(":")[0]), order[name]))


def bare(name: str) -> Bare:
    """The named network, built on the meta device, or with random weights where it cannot be built so.

    Errors: SourceError.
    """
    library, _, short = name.partition(":")
    blueprint = _blueprint(library, short)
    try:
        with quiet(), torch.device("meta"):
            module = blueprint.build().eval()
        device = "meta"
    except Exception:  # of a constructor that looks at values
        try:
            with quiet(), seeded(0):
                module = blueprint.build().eval()
        except Exception as error:
            raise SourceError(f"cannot be built ({type(error).__name__}: {reason(error)})") from error
        device = "cpu"
    if library == "torchvision" and short.startswith(TWO_IMAGES):
        return Bare(SideBySide(module).eval(), torch.empty((1, *TWO_IMAGES_SIZE), device=device))
    size = blueprint.own_size(module) or blueprint.usual_size or _clip(short)
    return Bare(module, torch.empty((1, *size), device=device), blueprint.keyword)


def versions() -> dict[str, str]:
    """The libraries that are installed, with their versions."""
    found = {"torch": str(torch.__version__)}
    for library in LIBRARIES:
        try:
            found[library] = str(_imported(library).__version__)
        except MissingExtraError:
            continue
    return found


def _imported(library: str) -> Any:
    from lipcheck.sources import timm_models, torchvision_models, transformers_models

    importers: dict[str, Callable[[], Any]] = {
        "timm": timm_models.import_timm,
        "torchvision": torchvision_models._import_torchvision,
        "transformers": transformers_models._import_transformers,
    }
    return importers[library]()


def _split(pattern: str) -> tuple[str, str]:
    """The library and the glob of names: `timm:resnet*` and `timm/resnet*` are the same, and so is `resnet*`."""
    for sign in (":", "/"):
        library, found, glob = pattern.partition(sign)
        if found:
            return library, glob or "*"
    return "timm", pattern


def _listed(library: str, *, needed: bool) -> list[str]:
    """The library's names; none where it is not installed and need not be."""
    try:
        module = _imported(library)
    except MissingExtraError:
        if needed:
            raise
        return []
    if library == "transformers":
        from lipcheck.sources.tiny_transformers import TINY

        return list(TINY)
    found: list[str] = (module if library == "timm" else module.models).list_models()
    return found


def _blueprint(library: str, short: str) -> Blueprint:
    if library == "timm":
        from lipcheck.sources.timm_models import timm_model

        return timm_model(short, written=f"timm:{short}")
    if library == "torchvision":
        from lipcheck.sources.torchvision_models import torchvision_model

        return torchvision_model(short)
    from lipcheck.sources.tiny_transformers import tiny

    return tiny(short)


def _clip(short: str) -> Size:
    return LARGE_CLIP if short.startswith(LARGE_CLIPS) else CLIP


def _unknown(library: str, glob: str, known: dict[str, list[str]]) -> UnknownModelError:
    """The error for a pattern that matches nothing, with the nearest names."""
    written = {name: f"{one}:{name}" for one, names in known.items() for name in names}
    bare_glob = glob.strip("*?[]")
    near = get_close_matches(bare_glob, written, n=NEAREST, cutoff=0.6) if bare_glob else []
    shown = plain(f"{library}:{glob}")
    if library not in LIBRARIES and not any(letter in library for letter in "*?["):
        close = get_close_matches(library, LIBRARIES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the libraries are {', '.join(LIBRARIES)}"
        return UnknownModelError(f"no library {plain(library)} of models; {hint}")
    advice = f"the nearest names are {', '.join(written[name] for name in near)}" if near else "write it like 'resnet*'"
    return UnknownModelError(f"no model matches {shown}; {advice}")
