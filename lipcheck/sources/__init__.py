"""From a name or a path to a model in memory: timm, torchvision, transformers, a factory, a checkpoint.

The two names are loaded when they are first used: files are vetted before torch is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipcheck.sources.loaded import LoadedModel
    from lipcheck.sources.resolve import load

__all__ = ["LoadedModel", "load"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    homes = {"LoadedModel": "lipcheck.sources.loaded", "load": "lipcheck.sources.resolve"}
    if name not in homes:
        raise AttributeError(f"module 'lipcheck.sources' has no attribute {name!r}")
    value = getattr(import_module(homes[name]), name)
    globals()[name] = value
    return value
