"""torchvision: models by the name of their builder (`torchvision:resnet50`)."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lipcheck.errors import MissingExtraError, WeightsError
from lipcheck.sources.blueprint import Blueprint, Size
from lipcheck.sources.names import unknown
from lipcheck.sources.pixels import Pixels, stated_pixels
from lipcheck.sources.surroundings import quiet
from lipcheck.sources.wording import WAYS_OUT, reason

USUAL_SIDE = 224
LARGER_SIDES = {"inception_v3": 299}


def torchvision_model(name: str) -> Blueprint:
    """The model that torchvision registers as `name`; its published weights are the default ones.

    Errors: UnknownModelError with the nearest names, MissingExtraError.
    """
    torchvision = _import_torchvision()
    models = torchvision.models
    if name not in models.list_models():
        raise unknown(f"torchvision:{name}", name, {one: f"torchvision:{one}" for one in models.list_models()})
    builder = models.get_model_builder(name)
    # Detectors and segmenters fetch a pretrained backbone unless they are told not to.
    options: dict[str, Any] = {"weights": None}
    options |= {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}

    def build() -> nn.Module:
        with quiet():
            model: nn.Module = builder(**options)
        return model

    size = _input_size(name, torchvision)
    return Blueprint(
        "torchvision",
        build,
        lambda: _pretrained(name, torchvision),
        own_size=lambda _: size,
        pixels=lambda _: _pixels(name, torchvision),
        versions={"torchvision": torchvision.__version__},
    )


def _input_size(name: str, torchvision: Any) -> Size | None:
    """3 channels at the side that the default weights crop to; nothing for videos, whose length is open."""
    if torchvision.models.get_model_builder(name).__module__.startswith("torchvision.models.video"):
        return None
    weights = _default_weights(name, torchvision)
    crop = getattr(weights.transforms(), "crop_size", None) if weights else None
    side = LARGER_SIDES.get(name, USUAL_SIDE)
    if isinstance(crop, (list, tuple)) and crop:
        return (3, int(crop[0]), int(crop[-1]))
    return (3, int(crop), int(crop)) if isinstance(crop, int) else (3, side, side)


def _pixels(name: str, torchvision: Any) -> Pixels | None:
    """What the preset of the default weights does; nothing for detectors, whose networks do it themselves."""
    weights = _default_weights(name, torchvision)
    preset = weights.transforms() if weights else None
    crop, side = (getattr(preset, attribute, None) for attribute in ("crop_size", "resize_size"))
    zoom = side[0] / crop[0] if crop and side and len(side) == 1 else None
    of_videos = torchvision.models.get_model_builder(name).__module__.startswith("torchvision.models.video")
    return stated_pixels(
        getattr(preset, "mean", None),
        getattr(preset, "std", None),
        axis=-4 if of_videos else -3,
        zoom=zoom,
        interpolation=getattr(getattr(preset, "interpolation", None), "value", None),
    )


def _default_weights(name: str, torchvision: Any) -> Any:
    """The member of the model's enumeration of weights that is published as the default, None without any."""
    return getattr(torchvision.models.get_model_weights(name), "DEFAULT", None)


def _pretrained(name: str, torchvision: Any) -> tuple[nn.Module, str]:
    weights = _default_weights(name, torchvision)
    if weights is None:
        raise WeightsError(f"torchvision:{name}: there are no pretrained weights for it; {WAYS_OUT}")
    try:
        with quiet():
            _download(weights.url)
            model: nn.Module = torchvision.models.get_model(name, weights=weights, progress=False)
    except Exception as error:  # of urllib, of the hash check, of the loader
        raise WeightsError(
            f"torchvision:{name}: its pretrained weights could not be fetched ({reason(error)}); {WAYS_OUT}"
        ) from error
    return model, f"pretrained ({name} {weights.name})"


def _download(url: str) -> None:
    """The file lies in torch's own cache, its hash checked; torch.hub's loader would announce it on stderr."""
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        stamped = re.search(r"-([0-9a-f]{8,})\.", target.name)
        torch.hub.download_url_to_file(url, str(target), stamped[1] if stamped else None, progress=False)


def _import_torchvision() -> Any:
    try:
        with quiet():
            import torchvision
    except ImportError as error:
        raise MissingExtraError("torchvision is not installed; run: pip install 'lipcheck[torchvision]'") from error
    return torchvision
