"""How an engine works: the tolerance of its search, where it runs, and what it may use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine works. `memory` is what one batch may hold at a time, in bytes.

    `tight` lets a convolution whose slack is above the tolerance climb the ladder of finite methods, each operator
    within `time_budget` estimated seconds. With `upper_only` no lower end is sought, and an upper end that would take
    long to narrow stays some per cent wider.
    """

    tolerance: float = 1e-3
    device: torch.device = _CPU
    memory: int = 1 << 30
    tight: bool = False
    time_budget: float = math.inf
    upper_only: bool = False


DEFAULT_SETTINGS = Settings()


def memory_for(*, tight: bool) -> int:
    """The bytes that are allowed where the user names none; a finite operator's factorisation holds its band."""
    return 8 << 30 if tight else 1 << 30
