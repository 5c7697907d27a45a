"""From a name or a path, and a choice of weights, to a LoadedModel."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lipcheck.errors import InputSizeError, SourceError, UnknownModelError, UsageError, WeightsError
from lipcheck.sources.blueprint import Blueprint, Size
from lipcheck.sources.checkpoint import Checkpoint, read_checkpoint
from lipcheck.sources.loaded import LoadedModel
from lipcheck.sources.shards import INDEX_SUFFIX
from lipcheck.sources.streams import open_stream
from lipcheck.sources.surroundings import seeded
from lipcheck.sources.targets import existing
from lipcheck.sources.vetting import WEIGHT_SUFFIXES, stored_as
from lipcheck.sources.weights import fill, fill_partly, refuse_nonfinite
from lipcheck.sources.wording import plain, times

FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
HUB_PREFIXES = ("hf-hub:", "hf_hub:", "hf:")
MOST_ELEMENTS = 2**28  # of one example: a gibibyte of float32
MOST_AXES = 5
PRETRAINED, RANDOM = "pretrained", "random"


@dataclass(frozen=True, slots=True)
class _Weighted:
    """A network with its weights, what the heading calls them, and what a reader must know of them."""

    module: nn.Module
    label: str
    notes: tuple[str, ...] = ()
    missing: frozenset[str] = frozenset()


def load(
    name: str,
    *,
    weights: str = PRETRAINED,
    seed: int = 0,
    input_size: tuple[int, ...] | None = None,
    partial: bool = False,
    ema: bool = False,
) -> LoadedModel:
    """The named network in evaluation mode on the CPU, its weights finite, with one example input.

    Names:  a timm name, `timm:NAME`, `torchvision:NAME`, `hf:ORG/NAME`, a folder with a config.json,
            `package.module:function`, or `demo`.
    Weights: "pretrained" for those it is published with, "random" for a fresh draw from `seed`, or the path of a
            checkpoint. Where the published ones cannot be had, the error says so; nothing stands in for them.
            With `partial` a checkpoint may lack some, which `missing` names; with `ema` its averages are taken.
    Input:  `input_size` without the batch axis where given, or else what the model states. The example is drawn
            from the normal distribution by a generator of its own; torch's generators are left as they were.
    Errors: SourceError or one of its kinds, in one line; UsageError for an impossible seed.
    """
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed {seed}: expected an integer from 0 to 2**63 - 1")
    if input_size is not None:
        _refuse_impossible(name, input_size)
    chosen = _Chosen(None if weights in (PRETRAINED, RANDOM) else existing(weights), partial, ema)
    if (partial or ema) and chosen.path is None:
        # A folder's own weights, read as a checkpoint.
        if weights == RANDOM or not Path(name).expanduser().is_dir():
            raise UsageError(f"{'--partial' if partial else '--ema'} is for a checkpoint; give --weights FILE as well")
        chosen = replace(chosen, path=Path(name).expanduser())
    blueprint = _blueprint(name)
    with seeded(seed):
        weighted = _weighted(blueprint, weights, chosen, seed)
    module = weighted.module.eval()
    _refuse_nonfinite(name, module)
    size, notes = _input_size(name, blueprint, module, input_size)
    return LoadedModel(
        module=module,
        example=_example(module, size, seed),
        name=name,
        source=blueprint.source,
        weights=weighted.label,
        keyword=blueprint.keyword,
        notes=(*blueprint.notes, *weighted.notes, *notes),
        versions=dict(blueprint.versions),
        pixels=blueprint.pixels(module),
        missing=weighted.missing,
    )


def _blueprint(name: str) -> Blueprint:
    """The network that the name stands for. Each source is imported only when it is asked for."""
    if not name:
        raise UnknownModelError("empty model name; expected one such as resnet50, a folder or demo")
    if name == "demo":
        from lipcheck.sources.demo import demo

        return demo()
    if name.startswith(HUB_PREFIXES):
        return _of_hub(name, name.partition(":")[2])
    if name.startswith("torchvision:"):
        from lipcheck.sources.torchvision_models import torchvision_model

        return torchvision_model(name.removeprefix("torchvision:"))
    if name.startswith("timm:"):
        from lipcheck.sources.timm_models import timm_model

        return timm_model(name.removeprefix("timm:"), written=name)
    if FACTORY.fullmatch(name):
        from lipcheck.sources.factory import factory

        return factory(name)
    return _of_path_or_timm(name)


def _of_hub(name: str, repository: str) -> Blueprint:
    from lipcheck.sources.timm_models import is_registered, timm_model

    # timm publishes its own models here, and knows how to build them when the hub does not answer.
    if repository.startswith("timm/") and is_registered(repository.removeprefix("timm/")):
        return timm_model(repository.removeprefix("timm/"), written=name)
    from lipcheck.sources.folder import hub_folder

    return hub_folder(repository, written=name)


def _of_path_or_timm(name: str) -> Blueprint:
    """A name with a separator or a weight file's suffix is a path; any other is timm's, or else a folder's."""
    path = Path(name).expanduser()
    looks_like_a_path = "/" in name or "\\" in name or name.startswith((".", "~")) or stored_as(path) in WEIGHT_SUFFIXES
    from lipcheck.sources.timm_models import is_registered, timm_model

    if path.is_dir() and (looks_like_a_path or not is_registered(name)):
        from lipcheck.sources.folder import local_folder

        return local_folder(path.resolve(), written=plain(name))
    if path.suffix == ".py" and path.is_file():
        called = ".".join(path.with_suffix("").parts)
        raise SourceError(
            f"{plain(name)}: a Python file; write {plain(called)}:FUNCTION for the function that builds the network"
        )
    if path.is_file():
        raise SourceError(
            f"{plain(name)}: a file alone does not say which network it is for; "
            f"give MODEL --weights {plain(name)}, or the folder with its config.json"
        )
    if looks_like_a_path:
        hint = f"; for the model hub write hf:{plain(name)}" if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) else ""
        raise UnknownModelError(f"{plain(name)}: no such file or folder{hint}")
    return timm_model(name, written=name)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A checkpoint and how it is read."""

    path: Path | None
    partial: bool
    ema: bool


def _weighted(blueprint: Blueprint, weights: str, chosen: _Chosen, seed: int) -> _Weighted:
    if chosen.path is not None:
        read = _read(chosen.path, ema=chosen.ema)
        module = blueprint.build()
        shown = plain(chosen.path) if weights == PRETRAINED else plain(weights)
        if chosen.partial:
            return _Weighted(module, shown, *fill_partly(module, read))
        return _Weighted(module, shown, fill(module, read))
    if weights == RANDOM:
        return _Weighted((blueprint.random or blueprint.build)(), f"random (seed {seed})")
    return _Weighted(*blueprint.pretrained())


def _read(path: Path, *, ema: bool) -> Checkpoint:
    """All tensors of a file, of the files that an index names, or of a folder with one of them."""
    if path.is_file() and not path.name.endswith(INDEX_SUFFIX):
        return read_checkpoint(path, ema=ema)
    stream = open_stream(path, ema=ema)
    tensors = {name: stream.read(name) for name in stream.entries}
    return Checkpoint(path, tensors, ordered=False, notes=stream.notes)


def _refuse_nonfinite(name: str, module: nn.Module) -> None:
    try:
        refuse_nonfinite(module)
    except WeightsError as error:
        raise WeightsError(f"{plain(name)}: {error}") from error


def _input_size(
    name: str, blueprint: Blueprint, module: nn.Module, given: tuple[int, ...] | None
) -> tuple[Size, tuple[str, ...]]:
    """The size without the batch axis, and a note when nobody stated it."""
    if given is not None:
        return tuple(given), ()
    stated = blueprint.own_size(module)
    if stated is not None:
        _refuse_impossible(name, stated)
        return stated, ()
    if blueprint.usual_size is not None:
        return blueprint.usual_size, (f"input {times(blueprint.usual_size)} assumed: the model states no size",)
    raise InputSizeError(f"{plain(name)}: the model does not state its input size; give --input 3x224x224 or the like")


def _refuse_impossible(name: str, size: Sequence[int]) -> None:
    shown = times(size)
    if not 1 <= len(size) <= MOST_AXES:
        raise InputSizeError(f"{plain(name)}: input size {shown} has {len(size)} axes; expected like --input 3x224x224")
    if any(side <= 0 for side in size):
        raise InputSizeError(f"{plain(name)}: input size {shown} has an empty axis; expected like --input 3x224x224")
    if math.prod(size) > MOST_ELEMENTS:
        raise InputSizeError(
            f"{plain(name)}: input size {shown} has over {MOST_ELEMENTS} elements; give a smaller --input"
        )


def _example(module: nn.Module, size: Size, seed: int) -> Tensor:
    """A draw from the normal distribution, in the precision of the network's first real parameter."""
    real = [p.dtype for p in module.parameters() if p.is_floating_point()]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, *size), generator=generator).to(real[0] if real else torch.float32)
