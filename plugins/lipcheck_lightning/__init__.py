"""The callback of lipcheck for Lightning: `LipschitzMonitor`, on lightning.pytorch or on pytorch_lightning.

Loading it loads no framework; the name does. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipcheck_lightning.callback import LipschitzMonitor

__all__ = ["LipschitzMonitor"]


def __getattr__(name: str) -> Any:
    if name != "LipschitzMonitor":
        raise AttributeError(f"module 'lipcheck_lightning' has no attribute {name!r}")
    from lipcheck_lightning.callback import LipschitzMonitor

    return LipschitzMonitor
