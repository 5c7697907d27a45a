"""What a folder's config claims, held against its files and the memory here before any library is loaded.

A config that is no attack passes; whether it describes a network at all is found out when that is built.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lipcheck.errors import SourceError, WeightsError
from lipcheck.sources.config import read_json
from lipcheck.sources.memory import MOST_MODULES, allowed_bytes, oversized
from lipcheck.sources.vetting import WEIGHT_SUFFIXES
from lipcheck.sources.wording import WAYS_OUT, plain

# What configs call the width of the activations, the rows of the embedding table, and the number of blocks.
WIDTHS = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim")
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "depth")
# Architectures whose blocks share their weights, or are narrower inside.
SHARED = ("albert", "mobilebert")
OF_A_LABEL = 100  # numbers in whose place the name of a label stands at least
LARGEST_SIDE = 1 << 14
BYTES = 2  # of a number, at least: what is stored in fewer is refused as quantised


def vet_config(folder: Path, weights: str) -> None:
    """Nothing, or what is known to be wrong with a folder's config, or with weights that should lie beside it.

    Errors: SourceError for a config that is none, or that describes a network larger than what there is memory for;
        WeightsError where `weights` are those beside it, and there are none.
    """
    config = read_json(folder / "config.json", written=plain(folder))
    if weights == "pretrained" and not any(file.name.endswith(_STORED) for file in folder.iterdir()):
        raise WeightsError(f"{plain(folder)}: no model.safetensors beside the config.json; {WAYS_OUT}")
    allowed = allowed_bytes()
    try:
        parts = list(_parts(config))
    except RecursionError as error:
        raise SourceError(f"{plain(folder)}: config.json is nested too deeply to describe a network") from error
    numbers, depth, side = (max(map(of, parts)) for of in (_numbers, _depth, _side))
    excess = ""
    if BYTES * numbers > allowed:
        excess = oversized(allowed)
    elif depth > MOST_MODULES:
        excess = f"has over {MOST_MODULES} modules"
    elif side > LARGEST_SIDE:
        excess = f"takes images of over {LARGEST_SIDE} pixels a side"
    if excess:
        raise SourceError(f"{plain(folder)}: the config describes a network that {excess}; it was not built")
    _refuse_unknown_class(folder, config)


_STORED = (*WEIGHT_SUFFIXES, ".index.json")


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and those within it: of towers, of backbones."""
    yield config
    for inner in config.values():
        if isinstance(inner, Mapping):
            yield from _parts(inner)


def _numbers(config: Mapping[str, Any]) -> int:
    """How many numbers a network of this description has at least.

    They are those of its table, of one matrix in each block, and of what has a row for each position or label.
    """
    width = _size(config, WIDTHS) or 1
    narrow = min(width, _size(config, ("embedding_size",)) or width)
    depth = 1 if config.get("model_type") in SHARED else _size(config, DEPTHS) or 1
    labels = _size(config, ("num_labels", "num_classes")) * OF_A_LABEL
    own = narrow * _size(config, ("vocab_size",)) + width * width * depth + labels
    own += _size(config, ("max_position_embeddings", "n_positions"))
    stages = _sizes(config.get("hidden_sizes"))
    return max(own, sum(wide * next_one for wide, next_one in pairwise(stages)))


def _depth(config: Mapping[str, Any]) -> int:
    return max([_size(config, DEPTHS), *_sizes(config.get("depths")), *_sizes(config.get("layers"))])


def _side(config: Mapping[str, Any]) -> int:
    return max([_size(config, ("image_size", "img_size")), *_sizes(config.get("image_size"))])


def _refuse_unknown_class(folder: Path, config: Mapping[str, Any]) -> None:
    """Nothing, unless transformers' own files define no class of the name that the config gives."""
    named = config.get("architectures")
    if not isinstance(config.get("model_type"), str) or not isinstance(named, list) or not named:
        return
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return
    models = Path(next(iter(spec.submodule_search_locations))) / "models"
    name = named[0] if isinstance(named[0], str) and named[0].isidentifier() else ""
    likely = models / re.sub(r"\W", "_", config["model_type"])
    for place in (likely, models) if name else ():
        sought = f"class {name}(".encode()
        if any(sought in file.read_bytes() for file in place.rglob("modeling_*.py") if file.parent.name != "auto"):
            return
    raise SourceError(
        f"{plain(folder)}: transformers has no model class {plain(named[0])}; code from the folder is never run, "
        "so use a Python factory package.module:function"
    )


def _size(config: Mapping[str, Any], names: Sequence[str]) -> int:
    """The number under the first of these names that has one, 0 without."""
    return next((found for name in names if (found := config.get(name)) and _counts(found)), 0)


def _sizes(value: Any) -> list[int]:
    return [one for one in value if _counts(one)] if isinstance(value, list) else []


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
