"""What checking came to, and how much it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """What checking one stated bound came to: proved when `problems` is empty.

    `role` is "own" for what the node applies by itself, "merged" together with the scalings behind it.
    `arithmetic` is "exact" where nothing was rounded, "float64" or "balls".
    """

    layer: str
    op: str
    role: str
    occurrence: int
    upper: float
    problems: tuple[str, ...] = ()
    arithmetic: str = "float64"

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class Verification:
    """What checking a certificate against a model came to, one verdict for each stated bound."""

    certificate: str
    model: str
    layers: tuple[Verdict, ...]
    problems: tuple[str, ...] = ()  # of the certificate as a whole

    @property
    def ok(self) -> bool:
        """Whether every bound is proved and none is missing."""
        return not self.problems and all(verdict.ok for verdict in self.layers)

    @property
    def failures(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.layers if not verdict.ok)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a check may take: `memory` in bytes, and `ball_side`, up to which matrices are checked in balls."""

    memory: int = 4 << 30
    ball_side: int = 0


DEFAULT_LIMITS = Limits()
