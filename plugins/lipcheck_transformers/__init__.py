"""Bounds in the Trainer of transformers: `LipschitzCallback` logs and stops, `LipschitzTrainer` penalises as well.

Loading it loads no framework; the names do. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipcheck_transformers.callback import LipschitzCallback
    from lipcheck_transformers.trainer import LipschitzTrainer, PenalisedSteps

_HOMES = {"LipschitzCallback": "callback", "LipschitzTrainer": "trainer", "PenalisedSteps": "trainer"}

__all__ = ["LipschitzCallback", "LipschitzTrainer", "PenalisedSteps"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lipcheck_transformers' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"lipcheck_transformers.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "accelerate"):
            raise
        raise ImportError(
            f"lipcheck_transformers needs {error.name}; install it with: pip install 'lipcheck[trainer]'"
        ) from error
