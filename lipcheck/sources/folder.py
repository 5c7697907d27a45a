"""A HuggingFace folder: config.json says whether timm or transformers builds the network; its weights lie beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lipcheck.errors import SourceError, WeightsError
from lipcheck.sources import hub
from lipcheck.sources.blueprint import Blueprint
from lipcheck.sources.budget import refuse_oversized
from lipcheck.sources.checkpoint import read_checkpoint
from lipcheck.sources.config import read_json
from lipcheck.sources.names import unknown
from lipcheck.sources.pixels import timm_pixels
from lipcheck.sources.surroundings import quiet
from lipcheck.sources.targets import WEIGHT_FILES
from lipcheck.sources.timm_models import import_timm, input_size
from lipcheck.sources.transformers_models import transformers_model
from lipcheck.sources.weights import fill
from lipcheck.sources.wording import WAYS_OUT, plain


def local_folder(folder: Path, *, written: str) -> Blueprint:
    """The network that the folder's config.json describes, checked against the memory budget."""
    return _from_folder(folder, written=written, prepare=lambda: None)


def hub_folder(repository: str, *, written: str) -> Blueprint:
    """The network of a hub repository; its config is fetched now, its weights when they are asked for."""
    folder = hub.fetch_config(repository, written=written)
    return _from_folder(folder, written=written, prepare=lambda: hub.fetch_weights(repository, written=written))


def _from_folder(folder: Path, *, written: str, prepare: Callable[[], None]) -> Blueprint:
    config = read_json(folder / "config.json", written=written)
    if isinstance(config.get("architecture"), str):
        return _timm_folder(folder, config, written=written, prepare=prepare)
    if isinstance(config.get("model_type"), str):
        images = folder / "preprocessor_config.json"
        stated = read_json(images, written=written) if images.is_file() else {}
        return transformers_model(folder, config, stated, written=written, prepare=prepare)
    raise SourceError(
        f'{written}: config.json has neither "architecture" (timm) nor "model_type" (transformers); '
        "use a Python factory package.module:function"
    )


def _timm_folder(folder: Path, config: Mapping[str, Any], *, written: str, prepare: Callable[[], None]) -> Blueprint:
    timm = import_timm()
    architecture = config["architecture"]
    if not timm.is_model(architecture):
        raise unknown(f"{architecture} (the architecture in {written})", architecture, timm.list_models())

    def build() -> nn.Module:
        with quiet():
            model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=False)
        return model

    def pretrained() -> tuple[nn.Module, str]:
        prepare()
        path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
        if path is None:
            raise WeightsError(f"{written}: no {WEIGHT_FILES[0]} beside the config.json; {WAYS_OUT}")
        model = build()
        fill(model, read_checkpoint(path))
        return model, f"pretrained ({plain(path.name)} of {plain(written)})"

    refuse_oversized(written, build)
    return Blueprint(
        "timm", build, pretrained, own_size=input_size, pixels=timm_pixels, versions={"timm": timm.__version__}
    )
