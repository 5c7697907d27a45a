"""The course of a training run's bounds: what the audits of its checkpoints say, one behind the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lipcheck import rounding
from lipcheck.diff import LayerChange, applied, compare
from lipcheck.report import NetworkReport, Report


@dataclass(frozen=True, slots=True)
class Point:
    """One checkpoint: its figures, or in `problem` why it has none.

    Units: `norms` are upper ends of what the network applies, by layer; `grown` are the layers that rose since the
        checkpoint before, by what part of themselves, most first.
    """

    name: str
    step: tuple[int, ...]
    network: NetworkReport | None = None
    certified: bool = True  # whether every layer's bound is
    norms: Mapping[str, float] = field(default_factory=dict)
    grown: tuple[tuple[str, float], ...] = ()
    problem: str = ""

    @property
    def claimed(self) -> bool:
        """Whether a bound on the network is claimed."""
        return self.network is not None and self.network.claimed

    @property
    def largest(self) -> tuple[str, float]:
        """The layer with the largest upper end, and that; an empty name and nan where there is none."""
        return max(self.norms.items(), key=lambda norm: norm[1], default=("", math.nan))


def point(name: str, step: tuple[int, ...], report: Report, before: Report | None) -> Point:
    """The figures of one audit; `before` is the one of the checkpoint before it."""
    rows = [layer for layer in report.layers if not layer.part]
    norms: dict[str, float] = {}
    for row in rows:
        norms[row.layer] = max(applied(row).upper, norms.get(row.layer, 0.0))
    return Point(
        name,
        step,
        report.network,
        report.kind == "certified",
        norms,
        () if before is None else tuple(grown(before, report)),
    )


def grown(before: Report, after: Report) -> list[tuple[str, float]]:
    """Layers that rose, by what part of themselves their upper ends did, most first.

    They have surely risen, their enclosures being apart; where no lower end is known, their upper ends have.
    """
    rises: dict[str, float] = {}
    for change in compare(before, after).layers:
        if not change.part and _rose(change) and change.ratio > 1:
            rises[change.layer] = max(change.ratio - 1, rises.get(change.layer, 0.0))
    return sorted(rises.items(), key=lambda rise: -rise[1])


def grown_since(first: Point, last: Point) -> list[tuple[str, float, float]]:
    """Layers whose upper end is larger in `last` than in `first`, with both, the largest ratio first."""
    pairs = [(name, old, last.norms[name]) for name, old in first.norms.items() if name in last.norms]
    risen = [pair for pair in pairs if pair[2] > pair[1]]
    return sorted(risen, key=lambda pair: -(pair[2] / pair[1] if pair[1] > 0 else math.inf))


def log10_uppers(points: Sequence[Point]) -> list[float]:
    """The network's upper bounds in powers of ten; where none is claimed, the largest layer's; nan for no audit."""
    claimed = any(one.claimed for one in points)
    return [_log10_upper(one, claimed) for one in points]


def _log10_upper(one: Point, claimed: bool) -> float:
    if claimed:
        return one.network.log10_upper if one.network is not None and one.claimed else math.nan
    largest = one.largest[1]
    if math.isnan(largest) or math.isinf(largest):
        return largest
    return rounding.up(math.log10(largest), 2) if largest > 0 else -math.inf


def _rose(change: LayerChange) -> bool:
    old, new = change.bounds
    return change.state == "raised" or (old is not None and new is not None and old.lower == new.lower == 0)
