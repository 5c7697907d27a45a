"""How a model's input is made of an image: its config's resizing, mean and std, read as a stranger's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import nn

USUAL_ZOOM = 1.0
SCALE = 255.0


@dataclass(frozen=True, slots=True)
class Pixels:
    """The network's input is (x - mean) / std, per channel, of pixels x in [0, 1].

    `zoom` is the shorter side of a resized image over that of the square cut out of its middle; None where images are
    squeezed to the input's size. `axis` is that of the channels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    axis: int = -3
    zoom: float | None = USUAL_ZOOM
    interpolation: str = "bilinear"


def stated_pixels(
    mean: Any, std: Any, *, axis: int = -3, zoom: Any = USUAL_ZOOM, interpolation: Any = "bilinear"
) -> Pixels | None:
    """What a config's values say; None where mean and std are no numbers."""
    means, stds = _numbers(mean), _numbers(std)
    if not means or not stds:
        return None
    zoomed = None if zoom is None else float(zoom) if _number(zoom) and 1 <= zoom < 10 else USUAL_ZOOM
    return Pixels(means, stds, axis, zoomed, interpolation if isinstance(interpolation, str) else "bilinear")


def timm_pixels(model: nn.Module) -> Pixels | None:
    """What timm has recorded of the model's weights."""
    config: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if config is not None and not isinstance(config, Mapping) and hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return None
    share = config.get("crop_pct")
    zoom = 1 / share if _number(share) and share > 0 else USUAL_ZOOM
    return stated_pixels(
        config.get("mean"),
        config.get("std"),
        zoom=None if config.get("crop_mode") == "squash" else zoom,
        interpolation=config.get("interpolation"),
    )


def transformers_pixels(images: Mapping[str, Any]) -> Pixels | None:
    """What a preprocessor_config.json says: pixels of 0 ... 255 times a factor, less mean, over std."""
    normalises = images.get("do_normalize", "image_mean" in images)
    if not {"size", "image_mean"} & set(images):
        return None
    mean, std = (images.get("image_mean"), images.get("image_std")) if normalises else ((0.0,), (1.0,))
    means, stds = _numbers(mean), _numbers(std)
    factor = images.get("rescale_factor", 1 / SCALE) if images.get("do_rescale", True) else 1.0
    if not means or not stds or not _number(factor) or not factor > 0:
        return None
    # (255 f x - mean) / std = (x - mean / (255 f)) / (std / (255 f)); 255 f is 1 nearly always.
    scale = 1.0 if math.isclose(SCALE * factor, 1, rel_tol=1e-3) else SCALE * factor
    size, crop = _side(images.get("size")), _side(images.get("crop_size"))
    cropped = images.get("do_center_crop", False) and size and crop
    return stated_pixels(
        [value / scale for value in means],
        [value / scale for value in stds],
        zoom=size / crop if cropped and size and crop else _squeezed(images.get("size")),
    )


def _squeezed(size: Any) -> float | None:
    """Without a crop, an image is resized by its shorter side only where the config says so."""
    return USUAL_ZOOM if isinstance(size, Mapping) and "shortest_edge" in size else None


def _side(value: Any) -> float | None:
    if isinstance(value, Mapping):
        value = value.get("shortest_edge", value.get("height"))
    return float(value) if _number(value) and value > 0 else None


def _numbers(value: Any) -> tuple[float, ...]:
    """The numbers of a list, or of one number; none where there is anything else."""
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(float(one) for one in values) if all(map(_number, values)) else ()


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
