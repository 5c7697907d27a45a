"""Where a scalar function rises and falls, and its derivative does: certified once, by branch and bound on the line.

The line is cut into cells on each of which the function is proved monotone, or is enclosed: those are its places. On an
interval its extrema are then at the ends or in the places inside. The same for its derivative gives its slope.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.maps.intervals import Array, Interval
from lipcheck.maps.jets import Expression, Jet, jet
from lipcheck.maps.tails import FAR, tail

# A cell that is neither monotone nor flat is cut until it is this narrow, relative to where it lies; infinite
# enclosures are followed further.
_NARROW, _NARROWEST = 2.0**-22, 2.0**-44
_FLAT = 2.0**-40
_ROUNDS = 32
_CELLS = 512
_PLACES = 64
# From here on, what is known far out sharpens the cells.
_TAILS = (2.0**7, 2.0**10, 2.0**15, 2.0**25, 2.0**50, 2.0**100)
# So many elements are looked at together.
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Closed intervals of the line in ascending order, with enclosures of a function on each; monotone in between.

    Shapes: vectors of one length. The first place reaches to -inf, the last to inf.
    """

    before: Array
    after: Array
    least: Array
    largest: Array

    def inside(self, low: float, high: float) -> range:
        """The places that meet an open interval, or are met by it in its end where that is a place of its own."""
        first = int(np.searchsorted(self.after, low, side="right"))
        last = int(np.searchsorted(self.before, high, side="left"))
        return range(first, last)


@dataclass(frozen=True, slots=True, eq=False)
class Portrait:
    """A scalar function with certified extrema: what `Pointwise` needs, rounded outwards.

    Shapes: ranges are float64 tensors of one shape, as are images and slopes.
    """

    expression: Expression
    turns: Places
    bends: Places

    @property
    def supremum(self) -> float:
        """At least sup |f'| over the whole line."""
        return float(max(np.abs(self.bends.least).max(), np.abs(self.bends.largest).max()))

    @property
    def bounds(self) -> tuple[float, float]:
        return float(self.turns.least.min()), float(self.turns.largest.max())

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """At most the least and at least the largest value on [low, high]."""
        return self._extremes(self._value, self.turns, low, high)

    def slope(self, low: Tensor, high: Tensor) -> Tensor:
        """At least |f'| on [low, high]."""
        least, largest = self._extremes(self._slope, self.bends, low, high)
        return torch.maximum(least.abs(), largest.abs())

    def steepest(self, low: Tensor, high: Tensor) -> float:
        """At least the largest |f'| on all the intervals [low, high].

        Between places f' is monotone: of the ends that lie there the smallest and the largest count.
        """
        lows, highs = low.flatten().numpy(), high.flatten().numpy()
        if not lows.size:
            return 0.0
        ends = self._outermost(np.concatenate([lows, highs]))
        found = float(self._slope(ends).magnitude.max())
        size = np.maximum(np.abs(self.bends.least), np.abs(self.bends.largest))
        within = self.bends.inside(float(lows.min()), float(highs.max()))
        for place in sorted(within, key=lambda place: -float(size[place])):
            if size[place] <= found:
                break
            if bool(((lows < self.bends.after[place]) & (self.bends.before[place] < highs)).any()):
                return float(size[place])
        return found

    def at(self, points: Tensor) -> Tensor | None:
        found = self._value(points.numpy())
        middle = found.middle
        error = float(np.linalg.norm(found.width)) * (1 + 1e-9)
        accurate = error <= rounding.EVALUATION / 4 * float(np.linalg.norm(middle))
        return torch.from_numpy(np.array(middle)) if accurate else None

    def _outermost(self, points: Array) -> Array:
        """The smallest and the largest of the points between any two places."""
        edges = np.concatenate([self.bends.before, self.bends.after])
        edges.sort()
        gap = torch.from_numpy(np.searchsorted(edges, points))
        values = torch.from_numpy(np.ascontiguousarray(points))
        least = torch.full((len(edges) + 1,), math.inf, dtype=torch.float64)
        largest = torch.full((len(edges) + 1,), -math.inf, dtype=torch.float64)
        least = least.scatter_reduce(0, gap, values, "amin")
        largest = largest.scatter_reduce(0, gap, values, "amax")
        met = least <= largest
        return torch.cat([least[met], largest[met]]).numpy()

    def _value(self, points: Array) -> Interval:
        return jet(self.expression, _point(points), 0, points=True).value

    def _slope(self, points: Array) -> Interval:
        found = jet(self.expression, _point(points), 1, points=True).slope
        assert found is not None, "asked for by its order"
        return found

    @staticmethod
    def _extremes(
        function: Callable[[Array], Interval], places: Places, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Piece by piece, so that what is computed on the way stays small."""
        lows, highs = low.flatten().numpy(), high.flatten().numpy()
        least, largest = np.empty(lows.shape), np.empty(lows.shape)
        for start in range(0, lows.size, _PIECE):
            piece = slice(start, start + _PIECE)
            least[piece], largest[piece] = _extremes(function, places, lows[piece], highs[piece])
        return torch.from_numpy(least).reshape(low.shape), torch.from_numpy(largest).reshape(low.shape)


def _extremes(function: Callable[[Array], Interval], places: Places, lows: Array, highs: Array) -> tuple[Array, Array]:
    both = function(lows).hull(function(highs))
    least, largest = np.broadcast_to(both.lo, lows.shape), np.broadcast_to(both.hi, lows.shape)
    for place in places.inside(float(lows.min()), float(highs.max())):
        met = (lows < places.after[place]) & (places.before[place] < highs)
        least = np.where(met, np.minimum(least, places.least[place]), least)
        largest = np.where(met, np.maximum(largest, places.largest[place]), largest)
    return least, largest


def _point(points: Array) -> Interval:
    """Points, those beyond the last cells moved into them: the outermost places say what is there."""
    inside = np.clip(points, -FAR, FAR)
    return Interval(inside, inside)


@functools.lru_cache(maxsize=512)
def portrait(expression: Expression) -> Portrait:
    """The portrait of an expression, made once."""
    bends = _places(expression, 1)
    steepest = float(np.maximum(np.abs(bends.least), np.abs(bends.largest)).max())
    return Portrait(expression, _places(expression, 0, steepest if math.isfinite(steepest) else 0.0), bends)


def _line() -> Interval:
    """The line up to +-FAR: cut at zero and at the powers of two."""
    powers = 2.0 ** np.arange(-100, 301)
    points = np.concatenate([-powers[::-1], [0.0], powers])
    return Interval(points[:-1], points[1:])


def _target(found: Jet, order: int) -> tuple[Interval, Interval, Array]:
    """The function that is followed, its derivative, and where it may not be continuous."""
    assert found.slope is not None, "cells have both derivatives"
    assert found.curvature is not None, "cells have both derivatives"
    if order == 0:
        return found.value, found.slope, found.broken
    return found.slope, found.curvature, found.kinked


def _places(expression: Expression, order: int, steepest: float = 0.0) -> Places:
    """Where f (order 0) or f' (order 1) is not monotone; f may be off by a part of `steepest` times x."""
    kept: list[tuple[Array, Array, Array, Array, Array]] = []
    cells, reached = _line(), 0.0
    tails = [(start, tail(expression, start)[order]) for far in _TAILS for start in (far, -far)]
    for _ in range(_ROUNDS):
        value, slope, loose = _target(jet(expression, cells), order)
        rising, falling = (slope.lo >= 0) & ~loose, (slope.hi <= 0) & ~loose
        value = value.meet(_by_mean_value(expression, cells, order, slope, loose))
        for start, known in tails:
            value = value.meet(known).where(cells.lo >= start if start > 0 else cells.hi <= start, value)
        nearest = np.abs(value.nearest)
        # What f' is sure to reach somewhere is its scale.
        reached = max(reached, float(nearest[np.isfinite(nearest)].max(initial=0.0)))
        scale = reached if order else steepest * cells.magnitude
        flat = np.isfinite(value.width) & (value.width <= _FLAT * np.maximum(value.magnitude, scale) + 1e-300)
        done = rising | falling | flat | _minimal(cells, value)
        done |= _surplus(cells, done)
        kept.append((cells.lo[done], cells.hi[done], value.lo[done], value.hi[done],
                     np.where(rising, 1, np.where(falling, -1, 0))[done]))  # fmt: skip
        if done.all():
            break
        cells = _cut(Interval(cells.lo[~done], cells.hi[~done]))
    else:
        kept.append((cells.lo, cells.hi, np.full(cells.lo.shape, -np.inf), np.full(cells.lo.shape, np.inf),
                     np.zeros(cells.lo.shape)))  # fmt: skip
    low, high, least, largest, direction = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    ranked = np.argsort(low)
    sorted_cells = low[ranked], high[ranked], least[ranked], largest[ranked], direction[ranked]
    return _gathered(expression, order, *sorted_cells)


def _by_mean_value(expression: Expression, cells: Interval, order: int, slope: Interval, loose: Array) -> Interval:
    """g(m) + g'(X)(X - m): for narrow cells closer than the enclosure of g on X."""
    middle = cells.middle
    found = jet(expression, Interval(middle, middle), 1, points=True)
    value = found.value if order == 0 else found.slope
    assert value is not None, "asked for by its order"
    away = cells - Interval(middle, middle)
    everything = Interval(np.full(middle.shape, -np.inf), np.full(middle.shape, np.inf))
    # Between the centre and any point of the cell the derivative is the one on the cell.
    return everything.where(loose, value + slope * away)


def _minimal(cells: Interval, value: Interval) -> Array:
    """Cells that are not cut any more: narrow ones, and those beside zero."""
    beside = (cells.lo == 0) | (cells.hi == 0)
    bounded = np.isfinite(value.lo) & np.isfinite(value.hi)
    narrow = np.where(bounded, _NARROW, _NARROWEST) * cells.magnitude
    found: Array = beside | (cells.hi - cells.lo <= narrow)
    return found


def _surplus(cells: Interval, done: Array) -> Array:
    """The farthest of the cells that are left, where there are too many to go on with: oscillations without end."""
    found = np.zeros(done.shape, bool)
    left = np.flatnonzero(~done)
    if left.size > _CELLS:
        ranked = left[np.argsort(cells.magnitude[left])]
        found[ranked[_CELLS:]] = True
    return found


def _cut(cells: Interval) -> Interval:
    """Each cell in four."""
    middle = cells.middle
    left, right = Interval(cells.lo, middle).middle, Interval(middle, cells.hi).middle
    ends = [cells.lo, left, middle, right, cells.hi]
    return Interval(np.concatenate(ends[:-1]), np.concatenate(ends[1:]))


def _gathered(
    expression: Expression, order: int, low: Array, high: Array, least: Array, largest: Array, direction: Array
) -> Places:
    """Cells without direction, points where the direction changes or the function may jump, and the two tails."""
    joints = np.append(low, high[-1])
    found = jet(expression, Interval(joints, joints), 1, points=True)
    value, loose = (found.value, found.broken) if order == 0 else (found.slope, found.kinked)
    assert value is not None, "asked for by its order"
    before, after = np.append(0, direction), np.append(direction, 0)
    turning = loose | (before * after < 0) | ~np.isfinite(value.lo) | ~np.isfinite(value.hi)
    lone = direction == 0
    starts = np.concatenate([low[lone], joints[turning]])
    ends = np.concatenate([high[lone], joints[turning]])
    values = np.concatenate([least[lone], value.lo[turning]]), np.concatenate([largest[lone], value.hi[turning]])
    ranked = np.lexsort((ends, starts))
    places = Places(starts[ranked], ends[ranked], values[0][ranked], values[1][ranked])
    return _few(_with_tails(expression, order, _joined(places)))


def _joined(places: Places) -> Places:
    """Neighbours that touch as one place, where the one's values hold the other's or both are narrow."""
    found: list[list[float]] = []
    for before, after, least, largest in zip(
        *(column.tolist() for column in (places.before, places.after, places.least, places.largest)), strict=True
    ):
        last = found[-1] if found else None
        if last is not None and before <= last[1]:
            hull = min(least, last[2]), max(largest, last[3])
            narrow = max(after, last[1]) - last[0] <= 16 * _NARROW * max(abs(after), abs(last[0]))
            if narrow or hull in ((least, largest), (last[2], last[3])):
                found[-1] = [last[0], max(after, last[1]), *hull]
                continue
        found.append([before, after, least, largest])
    return Places(*(np.asarray(column, np.float64) for column in zip(*found, strict=True))) if found else places


def _with_tails(expression: Expression, order: int, places: Places) -> Places:
    """The half lines beyond the cells: what is known of the function far out, and its values there as intervals."""
    sides = []
    for side in (-1.0, 1.0):
        ends = sorted((side * FAR, side * math.inf))
        found = _target(jet(expression, Interval.of(np.asarray([ends[0]]), np.asarray([ends[1]]))), order)[0]
        known = tail(expression, side * FAR)[order]
        sides.append((max(float(found.lo[0]), float(known.lo)), min(float(found.hi[0]), float(known.hi))))
    columns = zip((-math.inf, -FAR, *sides[0]), (FAR, math.inf, *sides[1]), strict=True)
    joined = [
        np.concatenate([[first], column, [last]])
        for (first, last), column in zip(
            columns, (places.before, places.after, places.least, places.largest), strict=True
        )
    ]
    return Places(*joined)


def _few(places: Places) -> Places:
    """At most so many places: those farthest out become one on each side."""
    surplus = len(places.before) - _PLACES
    if surplus <= 0:
        return places
    size = np.minimum(np.abs(places.before), np.abs(places.after))
    limit = np.sort(size)[_PLACES - 2]
    left, right = places.before < -limit, places.after > limit
    # Every place that is not farther out than the limit is kept, and each side's others are one, if there are any.
    parts = []
    for chosen in (left & ~right, ~left & ~right, right & ~left):
        columns = [column[chosen] for column in (places.before, places.after, places.least, places.largest)]
        parts.append(columns)
    both = left & right
    if both.any():
        return Places(*(np.asarray([end]) for end in (-math.inf, math.inf, places.least.min(), places.largest.max())))
    outer = [
        [np.asarray([c[0].min()]), np.asarray([c[1].max()]), np.asarray([c[2].min()]), np.asarray([c[3].max()])]
        for c in (parts[0], parts[2])
    ]
    return Places(*(np.concatenate(column) for column in zip(outer[0], parts[1], outer[1], strict=True)))
