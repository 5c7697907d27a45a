"""What every callback of lipcheck does, whatever the framework: audit a module in training, name the figures, penalise.

Loading it loads neither lipcheck nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipcheck_monitor.figures import Monitor, metrics
    from lipcheck_monitor.gradients import add_gradient

_HOMES = {
    "Monitor": "lipcheck_monitor.figures",
    "add_gradient": "lipcheck_monitor.gradients",
    "metrics": "lipcheck_monitor.figures",
}

__all__ = ["Monitor", "add_gradient", "metrics"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lipcheck_monitor' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
