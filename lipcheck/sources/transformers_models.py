"""transformers: the class that a folder's config.json names, built from the folder alone; no code in it is run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lipcheck.errors import MissingExtraError, SourceError, WeightsError
from lipcheck.sources.blueprint import Blueprint, Size
from lipcheck.sources.budget import refuse_oversized
from lipcheck.sources.checkpoint import check_safetensors
from lipcheck.sources.pixels import transformers_pixels
from lipcheck.sources.shards import INDEX, sharded_entries
from lipcheck.sources.surroundings import quiet
from lipcheck.sources.wording import WAYS_OUT, grouped, plain, reason

WEIGHTS = "model.safetensors"
USUAL_SIDE = 224
USUAL_TOKENS = 16
DISCRETE_INPUTS = ("input_ids", "decoder_input_ids")
EMBEDDED = "inputs_embeds"  # what stands in their place: the vectors that the embedding table gives for tokens
MISFITS = {"missing": "missing_keys", "unexpected": "unexpected_keys", "of another shape": "mismatched_keys"}
# These may name a kernel on the hub, which transformers would fetch and run.
CODE_KEYS = ("attn_implementation", "experts_implementation", "auto_map", "custom_pipelines")


def transformers_model(
    folder: Path,
    config: Mapping[str, Any],
    images: Mapping[str, Any],
    *,
    written: str,
    prepare: Callable[[], None],
) -> Blueprint:
    """The network of the folder; `images` is its preprocessor_config.json, empty without one.

    `prepare` makes the weights lie in the folder. A network of tokens is taken from behind its embedding table.
    Errors: SourceError when transformers has no such class, when the network is over the memory budget, or when it
    takes no input of real numbers.
    """
    transformers = _import_transformers()
    network = _class_of(config, transformers, written=written)
    settings = _settings(network, config, written=written)
    of_tokens = network.main_input_name in DISCRETE_INPUTS
    if of_tokens and (
        getattr(settings, "is_encoder_decoder", False) or EMBEDDED not in inspect.signature(network.forward).parameters
    ):
        raise SourceError(
            f"{written}: {network.__name__} takes {network.main_input_name}, integers, and cannot be run on embedded "
            "tokens alone; use a Python factory package.module:function that returns the part to audit"
        )
    if hasattr(settings, "use_cache"):
        settings.use_cache = False  # what a decoder keeps for its next token is no output

    def build() -> nn.Module:
        with quiet():
            model: nn.Module = network(copy.deepcopy(settings))
        return model

    refuse_oversized(written, build)
    size = _stated_size(settings, images)
    of_images = network.main_input_name == "pixel_values"
    return Blueprint(
        "transformers",
        build,
        lambda: _pretrained(network, settings, folder, written=written, prepare=prepare),
        own_size=_embedded_size if of_tokens else lambda _: size,
        usual_size=(_channels(settings), USUAL_SIDE, USUAL_SIDE) if of_images else None,
        pixels=lambda _: transformers_pixels(images) if of_images else None,
        keyword=EMBEDDED if of_tokens else network.main_input_name,
        notes=(_TOKENS_NOTE,) if of_tokens else (),
        versions={"transformers": transformers.__version__},
    )


_TOKENS_NOTE = (
    f"the input is {EMBEDDED}: the embedding table's vectors for {USUAL_TOKENS} tokens, unless --input says otherwise"
)


def _embedded_size(network: Any) -> Size | None:
    """A few tokens' vectors, as wide as the embedding table's rows."""
    table = network.get_input_embeddings()
    weight = getattr(table, "weight", None)
    return None if weight is None or weight.dim() != 2 else (USUAL_TOKENS, weight.shape[1])


def _import_transformers() -> Any:
    try:
        with quiet():
            import transformers
    except ImportError as error:
        raise MissingExtraError("transformers is not installed; run: pip install 'lipcheck[transformers]'") from error
    return transformers


def _class_of(config: Mapping[str, Any], transformers: Any, *, written: str) -> Any:
    """The one class that config.json names, when it is transformers' own and for this type of model."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if name is None:
        raise SourceError(f'{written}: config.json names no class under "architectures"; add it')
    with quiet():
        found = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise SourceError(
            f"{written}: transformers {transformers.__version__} has no model class {plain(name)}; code from the "
            "folder is never run, so use a Python factory package.module:function"
        )
    network: Any = found
    kind = getattr(network.config_class, "model_type", None)
    if kind != config["model_type"]:
        raise SourceError(f"{written}: {name} is for model_type {kind}, config.json says {plain(config['model_type'])}")
    return network


def _settings(network: Any, config: Mapping[str, Any], *, written: str) -> Any:
    if "quantization_config" in config:
        raise SourceError(f"{written}: quantised weights cannot be audited; give the folder of the original weights")
    try:
        with quiet():
            return network.config_class.from_dict(_without_code(config))
    except Exception as error:  # a stranger's values reach every check there is
        raise SourceError(f"{written}: config.json is not valid ({type(error).__name__}: {reason(error)})") from error


def _without_code(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_code(v) for k, v in value.items() if str(k).removeprefix("_") not in CODE_KEYS}
    return [_without_code(v) for v in value] if isinstance(value, list) else value


def _pretrained(
    network: Any, settings: Any, folder: Path, *, written: str, prepare: Callable[[], None]
) -> tuple[nn.Module, str]:
    prepare()
    _refuse_unsound_files(folder, written=written)
    try:
        with quiet():
            model, found = network.from_pretrained(
                folder,
                config=copy.deepcopy(settings),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype="auto",
                ignore_mismatched_sizes=True,  # reported below, with its names
            )
    except Exception as error:  # of the many loaders and hooks behind this one call
        raise WeightsError(f"{written}: its weights could not be loaded ({reason(error)}); {WAYS_OUT}") from error
    # transformers would go on with random values where the file has none.
    parts = [
        f"{len(names)} {what}: {grouped(names)}" for what, key in MISFITS.items() if (names := _names(found.get(key)))
    ]
    if parts:
        raise WeightsError(f"{written}: weights do not fit {network.__name__} ({'; '.join(parts)}); {WAYS_OUT}")
    return model, f"pretrained ({WEIGHTS} of {plain(written)})"


def _names(keys: Any) -> list[str]:
    """The mismatched come as (name, shape in the file, shape in the model), the others as names."""
    return sorted(
        key if isinstance(key, str) else f"{key[0]} {tuple(key[1])}, not {tuple(key[2])}" for key in keys or ()
    )


def _refuse_unsound_files(folder: Path, *, written: str) -> None:
    """The weights are sound safetensors files in the folder itself; an index may name no file elsewhere."""
    if (folder / WEIGHTS).is_file():
        check_safetensors(folder / WEIGHTS)
        return
    if not (folder / INDEX).is_file():
        raise WeightsError(f"{written}: no {WEIGHTS} beside the config.json; {WAYS_OUT}")
    sharded_entries(folder / INDEX)


def _stated_size(settings: Any, images: Mapping[str, Any]) -> Size | None:
    """Channels, height, width of the config, or else of the folder's image preprocessing."""
    side = _sides(getattr(settings, "image_size", None))
    if side is None:
        cropped = images.get("crop_size") if images.get("do_center_crop", "crop_size" in images) else None
        side = _sides(cropped) or _sides(images.get("size"))
    return None if side is None else (_channels(settings), *side)


def _sides(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Mapping):
        return _sides([value.get("height"), value.get("width")]) or _sides(value.get("shortest_edge"))
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value[0], value[1]
    return None


def _channels(settings: Any) -> int:
    stated = getattr(settings, "num_channels", None)
    return stated if isinstance(stated, int) and stated > 0 else 3
