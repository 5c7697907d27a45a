"""lipcheck: certified bounds on how strongly a neural network can amplify a change of its input.

Public names are loaded when they are first used, so that importing lipcheck, or asking its help, loads no torch.
PYTEST_DONT_REWRITE: the distribution has a plugin for pytest, which would rewrite the asserts of this package too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipcheck import operators, testing, training
    from lipcheck.bound import Bound
    from lipcheck.checking import check
    from lipcheck.diff import Difference, compare
    from lipcheck.domains import Ball, Box
    from lipcheck.errors import LipcheckError
    from lipcheck.graph import Node
    from lipcheck.norms import spectral_norm
    from lipcheck.plugins import rule
    from lipcheck.policy import Finding, Judgement, LayerBudget, Policy, Waiver, judge
    from lipcheck.policy_file import read_policy
    from lipcheck.ranges import Range
    from lipcheck.report import LayerReport, NetworkReport, Report
    from lipcheck.verification import Verification
    from lipcheck.verifying import verify

_HOMES = {
    "Ball": "lipcheck.domains",
    "Bound": "lipcheck.bound",
    "Box": "lipcheck.domains",
    "Difference": "lipcheck.diff",
    "Finding": "lipcheck.policy",
    "Judgement": "lipcheck.policy",
    "LayerBudget": "lipcheck.policy",
    "LayerReport": "lipcheck.report",
    "LipcheckError": "lipcheck.errors",
    "NetworkReport": "lipcheck.report",
    "Node": "lipcheck.graph",
    "Policy": "lipcheck.policy",
    "Range": "lipcheck.ranges",
    "Report": "lipcheck.report",
    "Waiver": "lipcheck.policy",
    "check": "lipcheck.checking",
    "compare": "lipcheck.diff",
    "judge": "lipcheck.policy",
    "read_policy": "lipcheck.policy_file",
    "rule": "lipcheck.plugins",
    "Verification": "lipcheck.verification",
    "spectral_norm": "lipcheck.norms",
    "verify": "lipcheck.verifying",
}

# Public as modules: what rules return, what attacks them, and what trains with the bounds.
_MODULES = ("operators", "testing", "training")

__all__ = [
    "Ball",
    "Bound",
    "Box",
    "Difference",
    "Finding",
    "Judgement",
    "LayerBudget",
    "LayerReport",
    "LipcheckError",
    "NetworkReport",
    "Node",
    "Policy",
    "Range",
    "Report",
    "Verification",
    "Waiver",
    "check",
    "compare",
    "judge",
    "operators",
    "read_policy",
    "rule",
    "spectral_norm",
    "testing",
    "training",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"lipcheck.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'lipcheck' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
