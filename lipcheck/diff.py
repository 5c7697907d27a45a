"""Two reports compared: which layers came, went or changed shape, and by how much the norms of the others moved.

What is compared is the enclosure of what the network applies: with a batch norm folded in, where one stands behind the
layer in both reports. A norm has surely risen only where the new enclosure lies above the old one: then
new.lower / old.upper - 1 is the least that it rose by. Enclosures that overlap say nothing either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from lipcheck.bound import Bound
from lipcheck.report import LayerReport, ModelSummary, NetworkReport, Report

State = Literal["raised", "reshaped", "added", "removed", "lowered", "within slack", "unchanged"]
# The order of what matters.
STATES: tuple[State, ...] = ("raised", "reshaped", "added", "removed", "lowered", "within slack", "unchanged")


@dataclass(frozen=True, slots=True)
class LayerChange:
    """One layer in two reports; None where a report does not have it.

    Units:  `ratio` is new.upper / old.upper, `percent` and `log10` say the same as a change; all three are about upper
        ends, so that they may move without the norm. `least_rise` is by what part the norm has surely risen.
    """

    layer: str  # dotted module path
    part: str
    state: State
    before: LayerReport | None = None
    after: LayerReport | None = None

    @property
    def bounds(self) -> tuple[Bound | None, Bound | None]:
        """The enclosures that are compared."""
        if self.before is None or self.after is None:
            return (
                None if self.before is None else applied(self.before),
                None if self.after is None else applied(self.after),
            )
        return comparable(self.before, self.after)

    @property
    def ratio(self) -> float:
        """new.upper / old.upper; nan where there is no such number."""
        old, new = self.bounds
        if old is None or new is None or (math.isinf(old.upper) and math.isinf(new.upper)):
            return math.nan
        if old.upper == 0:
            return math.inf if new.upper > 0 else 1.0
        return new.upper / old.upper

    @property
    def percent(self) -> float:
        """The change of the upper end in per cent."""
        return 100 * (self.ratio - 1)

    @property
    def log10(self) -> float:
        """The change of the upper end in powers of ten."""
        ratio = self.ratio
        return math.log10(ratio) if ratio > 0 else (-math.inf if ratio == 0 else math.nan)

    @property
    def least_rise(self) -> float:
        """By what part of itself the norm has surely risen: 0.05 for 5 per cent; 0 where nothing is sure."""
        old, new = self.bounds
        if old is None or new is None or not _above(new, old):
            return 0.0
        return new.lower / old.upper - 1 if old.upper > 0 else math.inf

    @property
    def largest_rise(self) -> float:
        """By what part of itself the norm has risen at most; inf where that is not known."""
        old, new = self.bounds
        if old is None or new is None:
            return math.inf
        if new.upper == 0:
            return 0.0
        return max(0.0, new.upper / old.lower - 1) if old.lower > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Difference:
    """Two reports compared, the layers in the order of what matters."""

    before: ModelSummary
    after: ModelSummary
    layers: tuple[LayerChange, ...]
    network_before: NetworkReport
    network_after: NetworkReport

    @property
    def log10(self) -> float:
        """By how many powers of ten the network's upper bound moved; nan where one of the two is not finite."""
        old, new = self.network_before.log10_upper, self.network_after.log10_upper
        return new - old if math.isfinite(old) and math.isfinite(new) else math.nan

    @property
    def counts(self) -> dict[State, int]:
        """How many layers are in each state, those in none left out."""
        found = {state: sum(change.state == state for change in self.layers) for state in STATES}
        return {state: count for state, count in found.items() if count}


def compare(before: Report, after: Report) -> Difference:
    """The later report against the earlier one. Layers are matched by their names, and by their order within one."""
    old, new = _keyed(before.layers), _keyed(after.layers)
    changes = [_change(old.get(key), new.get(key)) for key in dict.fromkeys([*new, *old])]
    return Difference(before.model, after.model, tuple(sorted(changes, key=_matters)), before.network, after.network)


def finder(difference: Difference | None) -> Callable[[LayerReport], LayerChange | None]:
    """A function from a layer of the later report to its change, None where there is none."""
    by_name: dict[tuple[str, str], list[LayerChange]] = {}
    for change in difference.layers if difference else ():
        by_name.setdefault((change.layer, change.part), []).append(change)

    def find(layer: LayerReport) -> LayerChange | None:
        # Calls of one layer may have a row each, with the same name.
        named = by_name.get((layer.layer, layer.part), [])
        same = (change for change in named if change.after is layer)
        return next(same, None) or next((change for change in named if change.after == layer), None)

    return find


def applied(layer: LayerReport) -> Bound:
    """The enclosure of what the network applies: with what was folded in."""
    return layer.merged or layer.bound


def comparable(before: LayerReport, after: LayerReport) -> tuple[Bound, Bound]:
    """Enclosures of the same thing in both: with what was folded in where both have it."""
    if before.merged is not None and after.merged is not None:
        return before.merged, after.merged
    return before.bound, after.bound


def _keyed(layers: Iterable[LayerReport]) -> dict[tuple[str, str, int], LayerReport]:
    found: dict[tuple[str, str, int], LayerReport] = {}
    counts: dict[tuple[str, str], int] = {}
    for layer in layers:
        name = (layer.layer, layer.part)
        counts[name] = counts.get(name, 0) + 1
        found[layer.layer, layer.part, counts[name]] = layer
    return found


def _change(before: LayerReport | None, after: LayerReport | None) -> LayerChange:
    known = after or before
    assert known is not None, "a layer of neither report"
    return LayerChange(known.layer, known.part, _state(before, after), before, after)


def _state(before: LayerReport | None, after: LayerReport | None) -> State:
    if before is None:
        return "added"
    if after is None:
        return "removed"
    if _shape(before) != _shape(after):
        return "reshaped"
    old, new = comparable(before, after)
    if (old.lower, old.upper) == (new.lower, new.upper):
        return "unchanged"
    if _above(new, old):
        return "raised"
    return "lowered" if _above(old, new) else "within slack"


def _above(one: Bound, other: Bound) -> bool:
    """Whether the norm in `one` is surely larger than that in `other`."""
    return one.lower > other.upper and other.kind == "certified"


def _shape(layer: LayerReport) -> tuple[object, ...]:
    geometry = (layer.kernel, layer.stride, layer.dilation, layer.groups, layer.channels)
    return (layer.kind, *geometry, layer.padding_mode, layer.input_size, layer.calls)


def _matters(change: LayerChange) -> tuple[int, float]:
    """What surely rose most first; within the other states the largest movement of the upper end."""
    moved = change.log10
    size = change.least_rise if change.state == "raised" else (0.0 if math.isnan(moved) else abs(moved))
    return STATES.index(change.state), -size
