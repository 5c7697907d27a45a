"""What is known of one operator's norm: an enclosure, how it was found, and what kind of claim it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from lipcheck.proof import Proof

Kind = Literal["certified", "probabilistic", "estimate"]


@dataclass(frozen=True, slots=True)
class Bound:
    """The operator norm lies in [lower, upper].

    Units:  output norm per input norm, Euclidean; `upper` may be inf, neither end is ever nan.
    `lower` is a norm attained by a vector that was evaluated, lowered by its rounding error.
    `upper` is what `kind` says: "certified" is a theorem plus a rounding argument, "probabilistic" holds with the
    probability that `method` states, an "estimate" may lie on either side of the norm.
    `proof` is what a certificate needs to check `upper` again; it is no part of a report's document.
    """

    lower: float
    upper: float
    method: str
    kind: Kind = "certified"
    proof: Proof | None = field(default=None, compare=False, repr=False, metadata={"document": False})

    def __post_init__(self) -> None:
        assert 0 <= self.lower <= self.upper, f"not an enclosure: [{self.lower}, {self.upper}]"

    @property
    def slack(self) -> float:
        """Relative width upper / lower - 1: zero when both ends agree, inf when only one is known."""
        if self.upper == self.lower:
            return 0.0
        return self.upper / self.lower - 1 if self.lower > 0 else math.inf
