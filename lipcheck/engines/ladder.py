"""Small inputs: which convolutions climb from the embedding to a finite method, at a cost known beforehand.

The shifted circular embedding leaves a few per cent on inputs of a few pixels. One finite axis halves that, all axes
finite leave nothing; their price in multiplications follows from the shapes alone. Source: maths, section 2.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import finite, semifinite
from lipcheck.engines.settings import Settings
from lipcheck.errors import CertificateError
from lipcheck.operators import Convolution, Operator

# A slack of at most so many tolerances is within the tolerance after one finite axis, which leaves about half of it.
_HALVED = 1.6


RUNGS = {"finite": finite.spectral_norm, "semifinite": semifinite.spectral_norm}


@dataclass(frozen=True, slots=True)
class Climb:
    """One operator's way up: which of a sequence, by which method, and for how many estimated seconds."""

    place: int
    method: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is climbed, in this order, and what is left because it exceeds the time or the memory."""

    climbs: tuple[Climb, ...]
    left: tuple[Climb, ...]

    @property
    def seconds(self) -> float:
        """The estimate for all climbs together."""
        return sum(climb.seconds for climb in self.climbs)


def plan(operators: Sequence[Operator], bounds: Sequence[Bound], settings: Settings) -> Plan:
    """The climbs that fit the time budget, those first that gain most per second.

    One finite axis is tried first where half the slack is well within the tolerance, and where the finite operator does
    not fit. `settings.time_budget` is for all together.
    """
    wanted = [place for place, bound in enumerate(bounds) if _climbs(operators[place], bound, settings)]
    rungs = {place: _rungs(place, operators[place], bounds[place], settings) for place in wanted}
    order = sorted(wanted, key=lambda place: rungs[place][0].seconds / math.log1p(min(bounds[place].slack, 1.0)))
    remaining, climbs, left = settings.time_budget, list[Climb](), list[Climb]()
    for place in order:
        fitting = [rung for rung in rungs[place] if rung.seconds <= remaining and math.isfinite(rung.seconds)]
        if fitting:
            climbs.append(fitting[0])
            remaining -= fitting[0].seconds
        else:
            left.append(rungs[place][0])
    return Plan(tuple(climbs), tuple(left))


def climb(
    operators: Sequence[Operator],
    bounds: Sequence[Bound],
    chosen: Plan,
    settings: Settings,
    advance: Callable[[float], None] = lambda seconds: None,
) -> list[Bound]:
    """The bounds with the climbed ones in their places; the better of both ends is kept."""
    found = list(bounds)
    for step in chosen.climbs:
        operator = operators[step.place]
        assert isinstance(operator, Convolution)
        # Where no proof succeeds, the bound that is known stays.
        with contextlib.suppress(CertificateError):
            found[step.place] = tightest(found[step.place], RUNGS[step.method](operator, settings))
        advance(step.seconds)
    return found


def tightest(first: Bound, second: Bound) -> Bound:
    """The tighter upper end with its method and proof, over the higher lower end."""
    best = second if second.upper < first.upper else first
    lower = min(max(first.lower, second.lower), best.upper)
    return Bound(lower, best.upper, best.method, best.kind, best.proof)


def _climbs(operator: Operator, bound: Bound, settings: Settings) -> bool:
    if not isinstance(operator, Convolution) or operator.circular or bound.kind != "certified":
        return False
    return bound.slack > settings.tolerance and bound.method.startswith(("embedding", "symbol", "semifinite"))


def _rungs(place: int, operator: Operator, bound: Bound, settings: Settings) -> list[Climb]:
    """The ways up, the one to take first; what does not fit into memory takes forever. Never empty."""
    assert isinstance(operator, Convolution)
    rate = multiplications_per_second(settings.device)
    highest = Climb(place, "finite", finite.cost(operator) / rate)
    if finite.memory(operator) > settings.memory:
        highest = Climb(place, "finite", math.inf)
    between = Climb(place, "semifinite", semifinite.cost(operator) / rate)
    if operator.axes == 1 or bound.method.startswith("semifinite"):
        return [highest]
    return [between, highest] if bound.slack <= _HALVED * settings.tolerance else [highest, between]


@functools.cache
def multiplications_per_second(device: torch.device) -> float:
    """What the device does in a large product of float64 matrices, measured once: the unit of the cost estimates."""
    side = 1536
    one = torch.randn(side, side, dtype=torch.float64, device=device)
    best = math.inf
    for _ in range(3):
        begun = time.perf_counter()
        float((one @ one)[0, 0])
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def lasting(seconds: float) -> str:
    """An estimate of a time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(1, round(rounding.up(seconds)))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
