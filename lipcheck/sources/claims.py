"""What a folder's config claims, held against its files and the memory here before any library is loaded.

A config that is no attack passes; whether it describes a network at all is found out when that is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        numbers, depth = _numbers(config), _deepest(config)
    except RecursionError as error:
        raise SourceError(f"{plain(folder)}: config.json is nested too deeply to describe a network") from error
    excess = ""
    if BYTES * numbers > allowed:
        excess = oversized(allowed)
    elif depth > MOST_MODULES:
        excess = f"has over {MOST_MODULES} modules"
    if excess:
        raise SourceError(f"{plain(folder)}: the config describes a network that {excess}; it was not built")


_STORED = (*WEIGHT_SUFFIXES, ".index.json")


def _numbers(config: Mapping[str, Any]) -> int:
    """How many weights a network of this description has at least: those of its table and of a matrix in each block."""
    width = _size(config, WIDTHS)
    narrow = min(width, _size(config, ("embedding_size",)) or width)
    depth = 0 if config.get("model_type") in SHARED else _size(config, DEPTHS)
    own = narrow * _size(config, ("vocab_size",)) + width * width * depth
    stages = _sizes(config.get("hidden_sizes"))
    own = max(own, sum(wide * next_one for wide, next_one in pairwise(stages)))
    return max([own, *(_numbers(inner) for inner in config.values() if isinstance(inner, Mapping))])


def _deepest(config: Mapping[str, Any]) -> int:
    depths = [_size(config, DEPTHS), *_sizes(config.get("depths"))]
    return max([*depths, *(_deepest(inner) for inner in config.values() if isinstance(inner, Mapping))])


def _size(config: Mapping[str, Any], names: Sequence[str]) -> int:
    """The number under the first of these names that has one, 0 without."""
    return next((found for name in names if (found := config.get(name)) and _counts(found)), 0)


def _sizes(value: Any) -> list[int]:
    return [one for one in value if _counts(one)] if isinstance(value, list) else []


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
