"""Which names there are, and which of them a mistyped one was meant to be."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from lipcheck.errors import UnknownModelError
from lipcheck.sources.wording import plain

NEAREST = 3
SIMILARITY = 0.6  # of difflib's ratio, below which a suggestion is noise
_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)


def unknown(name: str, wanted: str, known: Mapping[str, str] | Iterable[str]) -> UnknownModelError:
    """The error for `name`; `known` maps what `wanted` is compared with to what the user should write."""
    written = dict(known) if isinstance(known, Mapping) else {one: one for one in known}
    near = difflib.get_close_matches(wanted, written, n=NEAREST, cutoff=SIMILARITY)
    if near:
        return UnknownModelError(f"no model {plain(name)}; the nearest names are {', '.join(written[n] for n in near)}")
    return UnknownModelError(
        f"no model {plain(name)}, and no name is near it; give a timm name (resnet50), torchvision:NAME, hf:ORG/NAME, "
        "a folder with a config.json, package.module:function or demo"
    )


def every_name() -> dict[str, str]:
    """All names that can be written without a path: what is compared -> what the user writes."""
    written: dict[str, str] = {}
    try:
        from torchvision.models import list_models
    except ImportError:
        pass
    else:
        written.update({name: f"torchvision:{name}" for name in list_models()})
    try:
        import timm
    except ImportError:
        pass
    else:
        written.update({name: name for name in timm.list_models()})
    return written | {"demo": "demo"}


def timm_names() -> list[str]:
    """The architectures that timm registers, read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(next(iter(spec.submodule_search_locations))) / "models"
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in sorted(folder.glob("*.py")))
    return sorted({name for text in texts for name in _REGISTERED.findall(text)})
