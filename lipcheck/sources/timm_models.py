"""timm: models by their registered name, with or without a tag for the weights (`resnet50`, `resnet50.a1_in1k`)."""

from __future__ import annotations

from typing import Any

from torch import nn

from lipcheck.errors import MissingExtraError, UnknownModelError, WeightsError
from lipcheck.sources.blueprint import Blueprint, Size
from lipcheck.sources.names import every_name, unknown
from lipcheck.sources.pixels import timm_pixels
from lipcheck.sources.surroundings import hub_within_reach, quiet
from lipcheck.sources.wording import WAYS_OUT, plain, reason


def timm_model(name: str, *, written: str) -> Blueprint:
    """The registered model `name`, which the user wrote as `written`.

    Errors: UnknownModelError with the nearest names.
    """
    timm = import_timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        bare = written == name
        raise unknown(written, architecture, every_name() if bare else timm.list_models())
    if tag and name not in (tagged := timm.list_pretrained(f"{architecture}.*")):
        if not tagged:
            raise UnknownModelError(f"no weights {plain(tag)} of {architecture}: timm has none; write {architecture}")
        raise unknown(written, name, tagged)

    def build() -> nn.Module:
        with quiet():
            model: nn.Module = timm.create_model(name, pretrained=False)
        return model

    return Blueprint(
        "timm",
        build,
        lambda: _pretrained(name, written=written),
        own_size=input_size,
        pixels=timm_pixels,
        versions={"timm": timm.__version__},
    )


def is_registered(name: str) -> bool:
    """Whether timm knows this architecture, and these weights of it where a tag names some."""
    timm = import_timm()
    architecture, _, tag = name.partition(".")
    return bool(timm.is_model(architecture)) and (not tag or name in timm.list_pretrained(f"{architecture}.*"))


def input_size(model: nn.Module) -> Size | None:
    """Channels, height and width that the model's weights were made for, as timm has recorded them."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    return tuple(size) if size else None


def import_timm() -> Any:
    try:
        with quiet():
            import timm
    except ImportError as error:
        raise MissingExtraError("timm is not installed; run: pip install timm") from error
    return timm


def _pretrained(name: str, *, written: str) -> tuple[nn.Module, str]:
    timm = import_timm()
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise WeightsError(f"{written}: timm has no pretrained weights for it; {WAYS_OUT}")
    answers = False
    try:
        with quiet(), hub_within_reach() as answers:
            model: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # of any of the clients, parsers and loaders that stand between here and the hub
        why = reason(error) if answers else "the model hub does not answer, and its cache has no copy"
        raise WeightsError(f"{written}: its pretrained weights could not be fetched ({why}); {WAYS_OUT}") from error
    loaded: Any = model.pretrained_cfg
    label = ".".join(part for part in (loaded.get("architecture"), loaded.get("tag")) if part)
    return model, f"pretrained ({plain(label)})"
