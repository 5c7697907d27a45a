"""lipcheck: certified bounds on how strongly a neural network can amplify a change of its input.

Public names are loaded when they are first used, so that importing lipcheck, or asking its help, loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipcheck.bound import Bound
    from lipcheck.checking import check
    from lipcheck.errors import LipcheckError
    from lipcheck.norms import spectral_norm
    from lipcheck.report import LayerReport, NetworkReport, Report
    from lipcheck.verification import Verification
    from lipcheck.verifying import verify

_HOMES = {
    "Bound": "lipcheck.bound",
    "LayerReport": "lipcheck.report",
    "LipcheckError": "lipcheck.errors",
    "NetworkReport": "lipcheck.report",
    "Report": "lipcheck.report",
    "check": "lipcheck.checking",
    "Verification": "lipcheck.verification",
    "spectral_norm": "lipcheck.norms",
    "verify": "lipcheck.verifying",
}

__all__ = [
    "Bound",
    "LayerReport",
    "LipcheckError",
    "NetworkReport",
    "Report",
    "Verification",
    "check",
    "spectral_norm",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lipcheck' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
