"""Normalisations by statistics of the input, norms, variances and softmax: their constants and where they lie.

Throughout, P = I - 11'/d takes the mean off a group of d numbers, a projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.maps.products import (
    AWAY_FROM_ZERO,
    BOUNDED_RANGE,
    finite_center,
    has_end,
    interval_product,
    log_of,
    row_deviation,
)
from lipcheck.operators import Nonlinear
from lipcheck.ranges import Range

_SLOP = rounding.EVALUATION
# An eps is rounded to single precision when the network runs, and no divisor moves by more than it does.
_EPS_ROUNDING = 2.0**-23
# Halvings of the interval that holds the mean of least variance.
_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Groups:
    """Which numbers of a tensor are taken together: seen as `view`, those that differ along `axes` only."""

    view: tuple[int, ...]
    axes: tuple[int, ...]

    @staticmethod
    def along(shape: Sequence[int], axes: Sequence[int] | None) -> Groups:
        """The groups of a reduction: all numbers where no axes are given."""
        rank = len(shape)
        chosen = range(rank) if not axes else (axis % rank for axis in axes)
        return Groups(tuple(shape), tuple(sorted(set(chosen)))) if rank else Groups((1,), (0,))

    @property
    def size(self) -> int:
        return math.prod(self.view[axis] for axis in self.axes)

    @property
    def count(self) -> int:
        return math.prod(n for axis, n in enumerate(self.view) if axis not in self.axes)

    @property
    def _order(self) -> list[int]:
        return [axis for axis in range(len(self.view)) if axis not in self.axes] + list(self.axes)

    def of(self, values: Tensor) -> Tensor:
        """The groups as rows. Shapes: (count, size)."""
        return values.reshape(self.view).permute(self._order).reshape(self.count, self.size)

    def back(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The tensor whose groups these are."""
        order = self._order
        moved = rows.reshape([self.view[axis] for axis in order])
        return moved.permute([order.index(axis) for axis in range(len(order))]).reshape(tuple(shape))

    def rows_of(self, shape: Sequence[int]) -> int | None:
        """How many whole rows along the last axis make a group; None where a group is no union of rows."""
        last = shape[-1] if len(shape) else 1
        whole = len(self.view) - 1 in self.axes and self.view[-1] % last == 0
        return self.size // last if whole and last else None


def least_distance(low: Tensor, high: Tensor, first: Tensor | float, last: Tensor | float) -> Tensor:
    """At most |x - t| for x in [low, high] and t in [first, last], elementwise."""
    return torch.maximum(low - last, first - high).clamp_min(0)


def _root_of_squares(distances: Tensor) -> Tensor:
    """The Euclidean norm of each row of non-negative numbers, inf where one is. Shapes: (groups, d) to (groups,)."""
    top = distances.amax(1, keepdim=True)
    scale = torch.where((top > 0) & torch.isfinite(top), top, 1.0)
    norms = torch.linalg.vector_norm(distances / scale, dim=1) * scale[:, 0]
    return torch.where(torch.isfinite(top[:, 0]), norms, math.inf)


def least_spread(low: Tensor, high: Tensor) -> Tensor:
    """At most ||P x|| for every x in the box, for each group: the least of phi(t)^(1/2) = ||x - t|| over x and t.

    phi(t) = sum of dist(t, [low_i, high_i])^2 is convex, so its minimum lies where its slope changes sign, which
    halving finds; from there it is bounded over the whole interval that is left, each distance by its least. If a slope
    had the wrong sign by rounding, the minimum could lie outside and be lower by that slope's error times the width.
    Shapes: (groups, d) each to (groups,).
    """
    # Everything between the largest lower and the smallest upper end has distance zero from all.
    first, last = high.amin(1, keepdim=True), low.amax(1, keepdim=True)
    apart = (first < last) & torch.isfinite(first) & torch.isfinite(last)
    if not bool(apart.any()):
        return torch.zeros(len(low), dtype=torch.float64)
    first, last = torch.where(apart, first, 0.0), torch.where(apart, last, 0.0)
    width = (last - first)[:, 0]
    for _ in range(_HALVINGS):
        middle = (first + last) / 2
        slope = ((middle - high).clamp_min(0) - (low - middle).clamp_min(0)).sum(1, keepdim=True)
        first, last = torch.where(slope < 0, middle, first), torch.where(slope < 0, last, middle)
    spread = _root_of_squares(least_distance(low, high, first, last)) * (1 - _SLOP)
    # Distances sum to at most root d times their norm: that share of it, over root phi, is what may be missing.
    missing = 4 * _SLOP * math.sqrt(low.shape[1]) * width
    return torch.where(apart[:, 0] & (spread > 0), spread - missing, 0.0).clamp_min(0)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True)


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """||P x|| or ||x|| of each group on a range: at least `least`, at most `most`. Shapes: (groups,)."""

    least: Tensor
    most: Tensor

    @staticmethod
    def of(x: Range, groups: Groups, shape: Sequence[int], *, centred: bool) -> Spread:
        """From the box, and from the ball: both norms are 1-Lipschitz.

        For the most, x is compared with the middle of its box, or with any number: P takes it off.
        """
        if x.is_unknown:
            none = torch.zeros(groups.count, dtype=torch.float64)
            return Spread(none, none + math.inf)
        low, high = groups.of(x.low), groups.of(x.high)
        if centred:
            least = least_spread(low, high)
            middle = ((low + high) / 2).mean(1, keepdim=True).nan_to_num(0.0, 0.0, 0.0)
        else:
            least = _root_of_squares(least_distance(low, high, 0.0, 0.0)) * (1 - _SLOP)
            middle = torch.zeros(len(low), 1, dtype=torch.float64)
        farthest = torch.maximum(high - middle, middle - low)
        most = _root_of_squares(farthest) * (1 + _SLOP)
        center = finite_center(x)
        away = _ball_of_group(x, groups, shape)
        if center is not None and away < 700:
            rows = groups.of(center)
            size = _root_of_squares(rows.abs())
            norm = _root_of_squares(_centred(rows).abs()) if centred else size
            reach = math.exp(away) * (1 + _SLOP)
            least = torch.maximum(least, norm - reach - 2 * _SLOP * size)
            most = torch.minimum(most, norm + reach + 2 * _SLOP * size)
        return Spread(least, torch.maximum(least, most))


def _ball_of_group(x: Range, groups: Groups, shape: Sequence[int]) -> float:
    """ln of the largest distance of a group from that of the centre."""
    rows = groups.rows_of(shape)
    return x.radius if rows is None else row_deviation(x, rows)


def _highest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Standardisation(Nonlinear):
    """gain v / s(||w||) + shift for each group x, v and w each x or P x: layer, group, instance, RMS norm, x / ||x||.

    With n = ||w||, s is sqrt(k n^2 + eps) ("root"), max(sqrt(k) n, eps) ("largest") or sqrt(k) n + eps ("sum"); k = 1/d
    makes the mean of squares, 1 the norm, 1/(d - 1) the unbiased variance. All three rise with n, by no more than
    s / n and sqrt(k).

    The map w -> w / s(||w||) has a Jacobian that is 1/s across w and (s - n s') / s^2, between 0 and 1/s, along it.
    With projections before and behind it and then the gains, the norm is at most max|gain| / s, in each group by
    itself; the groups have no input in common, so the whole is at most the largest over the groups, s taken at the
    least n of the range. With v = x = P x + m 1 and w = P x (a norm that leaves the mean in), m 1 / s adds
    sqrt(d) |m| s' / s^2 at most.

    But for the last, ||v|| / s <= n / s <= 1 / sqrt(k), so the result lies in a ball of radius max|gain| / sqrt(k)
    around the shift, and, as |v_j| <= sqrt(1 - 1/d) ||v|| for v of mean zero, each entry in a box.
    Source: maths, section 6; Xu et al., Understanding and improving layer normalization, NeurIPS 2019.
    Shapes: `shape` is the input's and the result's, `gain` and `shift` broadcast to it.
    """

    name: str
    groups: Groups
    shape: tuple[int, ...]
    kind: Literal["root", "largest", "sum"]
    share: float  # k
    eps: float
    centred: bool = True  # v = P x
    about_mean: bool = True  # w = P x
    gain: Tensor | None = None
    shift: Tensor | None = None

    @property
    def _bounded(self) -> bool:
        """Whether ||v|| <= ||w||."""
        return self.centred or not self.about_mean

    def _divisor(self, norm: Tensor) -> Tensor:
        scaled = norm * math.sqrt(self.share)
        if self.kind == "root":
            return torch.hypot(scaled, torch.tensor(math.sqrt(max(self.eps, 0.0)), dtype=torch.float64))
        return scaled.clamp_min(self.eps) if self.kind == "largest" else scaled + max(self.eps, 0.0)

    def _gains(self) -> Tensor:
        """The largest |gain| of each group."""
        if self.gain is None:
            return torch.ones(self.groups.count, dtype=torch.float64)
        gain = self.gain.double().abs()
        if gain.numel() == 1:
            return gain.reshape(1).expand(self.groups.count)
        return self.groups.of(gain.expand(self.shape)).amax(1)

    def _least_divisor(self, spread: Spread) -> Tensor:
        return self._divisor(spread.least) * (1 - _EPS_ROUNDING)

    def _by_group(self, spread: Spread, means: Tensor) -> Tensor:
        """The constants of the groups. Shapes: `means` holds the largest |m| of each, where it stays in."""
        gains, least = self._gains(), self._least_divisor(spread)
        slope = gains / least
        if self._bounded:
            return torch.where(gains == 0, 0.0, slope)
        k, floor = math.sqrt(self.share), 1 / least
        if self.kind == "root" and self.eps > 0:
            # s' = k n / s, so s'/s = sqrt(k) u / (u^2 + eps) with u = sqrt(k) n: largest at u = sqrt(eps).
            u = torch.maximum(spread.least * k, torch.tensor(math.sqrt(self.eps), dtype=torch.float64))
            floor = torch.minimum(floor, u / (u * u + self.eps) * (1 + 2 * _EPS_ROUNDING))
        return torch.where(gains == 0, 0.0, slope * (1 + math.sqrt(self.groups.size) * means * k * floor))

    def _means(self, x: Range) -> Tensor:
        """At least the |mean| of each group, where it matters."""
        if self._bounded:
            return torch.zeros(self.groups.count, dtype=torch.float64)
        if x.is_unknown:
            return torch.full((self.groups.count,), math.inf, dtype=torch.float64)
        low, high = self.groups.of(x.low).mean(1), self.groups.of(x.high).mean(1)
        size = self.groups.of(x.magnitude()).mean(1)
        return torch.minimum(size * (1 + _SLOP), torch.maximum(low.abs(), high.abs()) + size * _SLOP)

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        x = self._seen(ranges)
        if 0 in self.shape:
            return (-math.inf,)
        return (log_of(_highest(self._by_group(self._spread(x), self._means(x)))),)

    def _seen(self, ranges: Sequence[Range]) -> Range:
        (x,) = ranges
        return Range.unknown(self.shape) if x.is_unknown else x

    def _spread(self, x: Range) -> Spread:
        return Spread.of(x, self.groups, self.shape, centred=self.about_mean)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        x = self._seen(ranges)
        if 0 in self.shape:
            return Range.unknown(shape)
        spread = self._spread(x)
        least = self._least_divisor(spread)
        most = self._divisor(spread.most) * (1 + _EPS_ROUNDING)
        # n / s(n) rises with n, towards 1 / sqrt(k).
        share = (spread.most / self._divisor(spread.most)).nan_to_num(math.inf, math.inf) * (1 + _EPS_ROUNDING)
        share = share.clamp_max(1 / math.sqrt(self.share) * (1 + _SLOP))
        low, high = self._quotients(x, least[:, None], most[:, None])
        if self._bounded:
            d = self.groups.size
            entry = share[:, None] * (math.sqrt(1 - 1 / d) if self.centred else 1.0)
            low, high = torch.maximum(low, -entry), torch.minimum(high, entry)
        low, high = self.groups.back(low, self.shape), self.groups.back(high, self.shape)
        if self.gain is not None:
            gain = self.gain.double()
            low, high = interval_product(Range(low, high), Range(gain, gain))
        center = torch.zeros((), dtype=torch.float64) if self.shift is None else self.shift.double()
        slop = (torch.maximum(low.abs(), high.abs()) + center.abs()) * _SLOP
        found = Range.box(low + center - slop, high + center + slop)
        if not self._bounded:
            return found
        radii = self._gains() * share
        # All groups together are as far from the shift as the root of the sum of their squares; a row of a group no
        # farther than the group.
        total = log_of(float(_root_of_squares(radii[None])))
        rows = log_of(_highest(radii)) if self.groups.rows_of(self.shape) else math.inf
        return found.with_ball(center.expand(self.shape), total, min(rows, total))

    def _quotients(self, x: Range, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of v / s in each group."""
        low, high = self.groups.of(x.low), self.groups.of(x.high)
        if self.centred:
            d = self.groups.size
            # v_j = (1 - 1/d) x_j - the sum of the others over d.
            size = torch.maximum(low.abs(), high.abs())
            slop = (size + size.mean(1, keepdim=True)) * (2 * _SLOP)
            others_low, others_high = low.sum(1, keepdim=True) - low, high.sum(1, keepdim=True) - high
            low, high = (
                (low * (1 - 1 / d) - others_high / d - slop).nan_to_num(-math.inf, math.inf, -math.inf),
                (high * (1 - 1 / d) - others_low / d + slop).nan_to_num(math.inf, math.inf, -math.inf),
            )
        first = torch.where(low < 0, low / least, low / most)
        last = torch.where(high > 0, high / least, high / most)
        return first.nan_to_num(-math.inf, math.inf, -math.inf), last.nan_to_num(math.inf, math.inf, -math.inf)

    def value(self, points: Sequence[Tensor]) -> Tensor | None:
        rows = self.groups.of(points[0])
        centred = _centred(rows)
        norm = torch.linalg.vector_norm(centred if self.about_mean else rows, dim=1, keepdim=True)
        scaled = self.groups.back((centred if self.centred else rows) / self._divisor(norm), self.shape)
        scaled = scaled if self.gain is None else scaled * self.gain.double()
        return scaled if self.shift is None else scaled + self.shift.double()

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        x = self._seen(ranges)
        if 0 in self.shape or _highest(self._gains()) == 0:
            return ""
        if self.eps <= 0 and bool((self._spread(x).least <= 0).any()):
            return f"a normalisation without eps {AWAY_FROM_ZERO}"
        return "" if bool(torch.isfinite(self._means(x)).all()) else f"a norm that leaves the mean in {BOUNDED_RANGE}"


@dataclass(frozen=True, slots=True, eq=False)
class Moment(Nonlinear):
    """sqrt(k) n or k n^2 of each group, n = ||x|| or ||P x||: norms, standard deviations, variances.

    n is 1-Lipschitz in each group, and the gradient of n^2 is 2 n long at most; no two groups have an input in common.
    """

    groups: Groups
    share: float  # k
    centred: bool
    squared: bool

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        if self.groups.count * self.groups.size == 0:
            return (-math.inf,)
        if not self.squared:
            return (log_of(math.sqrt(self.share)),)
        most = _highest(self._spread(ranges).most)
        return (log_of(2 * self.share * most),)

    def _spread(self, ranges: Sequence[Range]) -> Spread:
        (x,) = ranges
        return Spread.of(x, self.groups, self.groups.view, centred=self.centred)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        if self.groups.count * self.groups.size == 0:
            return Range.unknown(shape)
        spread = self._spread(ranges)
        ends = [end * math.sqrt(self.share) for end in (spread.least, spread.most)]
        low, high = [end.square() if self.squared else end for end in ends]
        return Range.box(low.reshape(shape), high.reshape(shape))

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        return f"a variance {BOUNDED_RANGE}" if self.squared and not has_end(ranges[0]) else ""


@dataclass(frozen=True, slots=True, eq=False)
class Average(Nonlinear):
    """The mean of each group: linear, of norm d^(-1/2)."""

    groups: Groups

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        return (log_of(1 / math.sqrt(max(1, self.groups.size))),)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        (x,) = ranges
        if x.is_unknown or 0 in x.shape:
            return Range.unknown(shape)
        slop = self.groups.of(x.magnitude()).mean(1) * _SLOP
        low, high = (self.groups.of(end).mean(1) for end in (x.low, x.high))
        return Range.box((low - slop).reshape(shape), (high + slop).reshape(shape))


@dataclass(frozen=True, slots=True, eq=False)
class LongNorm(Nonlinear):
    """The p-norm of each group for p != 2: Lipschitz with 1 for p >= 2, d^(1/p - 1/2) for 1 <= p < 2.

    | ||x||_p - ||y||_p | <= ||x - y||_p, and Hölder's inequality compares that with the Euclidean norm.
    """

    groups: Groups
    order: float

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        power = max(0.0, 1 / self.order - 0.5)
        return (log_of(max(1, self.groups.size) ** power) if power else 0.0,)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        (x,) = ranges
        if x.is_unknown or 0 in x.shape:
            return Range.between(0.0, math.inf, shape)
        least = self.groups.of(least_distance(x.low, x.high, 0.0, 0.0))
        most = self.groups.of(x.magnitude())
        low, high = (torch.linalg.vector_norm(end, self.order, dim=1) for end in (least, most))
        return Range.box((low * (1 - _SLOP)).reshape(shape), (high * (1 + _SLOP)).reshape(shape))


@dataclass(frozen=True, slots=True, eq=False)
class Response(Nonlinear):
    """y_c = x_c n_c / (mean of n + eps), n_c = ||x_c|| over space: global response norm (ConvNeXt V2), C channels.

    With m = mean of n + eps and N_c = n_c / m, dy_c = N_c (I + u u') dx_c - x_c n_c dm / m^2, u = x_c / n_c. The first
    part is block diagonal with norm 2 max N; in the second |dm| <= |dx| / sqrt(C), and the vector (x_c n_c / m^2)_c has
    norm (sum of N_c^4)^(1/2). N_c <= C and sum of N_c <= C, so the sum of N^4 is at most C max N^3.
    Shapes: `outer` and `inner` group the input over space, and the norms over channels.
    """

    shape: tuple[int, ...]
    inner: Groups
    outer: Groups
    eps: float

    def _norms(self, x: Range) -> tuple[Tensor, Tensor]:
        """The ends of n. Shapes: (batch, C)."""
        spread = Spread.of(x, self.inner, self.shape, centred=False)
        return self.outer.of(spread.least), self.outer.of(spread.most)

    def _shares(self, x: Range) -> tuple[Tensor, Tensor]:
        """The ends of N, which rises with its own norm and falls with the others. Shapes: (batch, C)."""
        least, most = self._norms(x)
        channels = self.outer.size
        others_least = (least.sum(1, keepdim=True) * (1 - _SLOP) - least).clamp_min(0)
        others_most = (most.sum(1, keepdim=True) * (1 + _SLOP) - most).nan_to_num(math.inf, math.inf)
        high = most / ((most + others_least) / channels + self.eps)
        low = least / ((least + others_most) / channels + self.eps)
        high = high.nan_to_num(math.inf, math.inf).clamp_max(channels)
        return low.nan_to_num(0.0, 0.0) * (1 - _SLOP), high * (1 + _SLOP)

    def _seen(self, ranges: Sequence[Range]) -> Range:
        (x,) = ranges
        return Range.unknown(self.shape) if x.is_unknown else x

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        if 0 in self.shape:
            return (-math.inf,)
        _, shares = self._shares(self._seen(ranges))
        channels, top = self.outer.size, shares.amax(1)
        fourth = torch.minimum(shares.pow(4).sum(1), channels * top.pow(3))
        return (log_of(_highest(2 * top + (fourth / channels).sqrt())),)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        x = self._seen(ranges)
        if x.is_unknown or 0 in self.shape:
            return Range.unknown(shape)
        low, high = self._shares(x)
        reduced = tuple(1 if axis in self.inner.axes else n for axis, n in enumerate(self.shape))
        shares = Range(self.outer.back(low, reduced), self.outer.back(high, reduced))
        by = log_of(_highest(high))
        radius = rounding.log_multiply_up(x.log_norm(), by)
        rows = rounding.log_multiply_up(x.log_row_norm(), by)
        center = torch.zeros((), dtype=torch.float64).expand(shape)
        return Range.box(*interval_product(x, shares)).with_ball(center, radius, min(rows, radius))

    def value(self, points: Sequence[Tensor]) -> Tensor | None:
        (x,) = points
        norms: Tensor = torch.linalg.vector_norm(x, dim=self.inner.axes, keepdim=True)
        return x * (norms / (norms.mean(self.outer.axes, keepdim=True) + self.eps))


@dataclass(frozen=True, slots=True, eq=False)
class Softmax(Nonlinear):
    """p = exp(x) / sum of exp(x) along an axis, or its logarithm, or the logarithm of the sum.

    The Jacobian of softmax, diag(p) - pp', has norm at most the largest 2 p_i (1 - p_i) (Gershgorin), 1/2 anywhere, and
    at most the largest p_i. That of its logarithm, I - 1p', is a projection, of norm ||1p'|| = sqrt(d) ||p||; the
    gradient of log-sum-exp is p, and ||p||^2 <= max p.
    Source: Gao and Pavel, On the properties of the softmax function, 2017.
    """

    groups: Groups
    kind: Literal["softmax", "log", "sum"]

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        if self.groups.count * self.groups.size == 0:
            return (-math.inf,)
        low, high = self._shares(ranges)
        top = high.amax(1)
        if self.kind == "softmax":
            # p (1 - p) is largest next to 1/2.
            nearest = torch.full_like(low, 0.5).clamp(low, torch.maximum(low, high))
            circles = (2 * nearest * (1 - nearest)).amax(1)
            return (log_of(_highest(torch.minimum(circles, top))),)
        norm = torch.minimum(top.sqrt(), _root_of_squares(high)).clamp_max(1.0)
        return (log_of(_highest(norm) * (math.sqrt(self.groups.size) if self.kind == "log" else 1.0)),)

    def _shares(self, ranges: Sequence[Range]) -> tuple[Tensor, Tensor]:
        """The ends of p. Shapes: (groups, d)."""
        low, high = (end.exp() for end in self._logs(ranges))
        return low * (1 - _SLOP), (high * (1 + _SLOP)).clamp_max(1.0)

    def _logs(self, ranges: Sequence[Range]) -> tuple[Tensor, Tensor]:
        """The ends of log p = -log(1 + the sum over the others of exp(x_j - x_i)): the own one against the others.

        Shapes: (groups, d).
        """
        (x,) = ranges
        if x.is_unknown:
            none = torch.zeros(self.groups.count, self.groups.size, dtype=torch.float64)
            return none - math.inf, none
        low, high = self.groups.of(x.low), self.groups.of(x.high)
        return self._against(low, high, upper=True), self._against(high, low, upper=False)

    @staticmethod
    def _against(own: Tensor, others: Tensor, *, upper: bool) -> Tensor:
        """log of e^own_i / (e^own_i + the sum over j != i of e^others_j), too low with `upper`, too high without.

        The sum over the others is that over all less one, which is off by a part of the whole.
        """
        top = others.amax(1, keepdim=True)
        shift = torch.where(torch.isfinite(top), top, 0.0)
        powers = (others - shift).exp()
        total = powers.sum(1, keepdim=True)
        rest = total - powers + total * (_SLOP if upper else -_SLOP)
        # An infinite power leaves nothing known of the others.
        rest = rest.nan_to_num(math.inf if upper else 0.0, math.inf).clamp_min(0)
        found = -torch.logaddexp(rest.log() - (own - shift), torch.zeros((), dtype=torch.float64))
        slop = (found.abs() + 1) * _SLOP
        found = found - slop if upper else found + slop
        return found.nan_to_num(-math.inf if upper else 0.0, math.inf, -math.inf).clamp_max(0.0)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        (x,) = ranges
        if 0 in shape or self.groups.size == 0:
            return Range.unknown(shape)
        if self.kind == "sum":
            if x.is_unknown:
                return Range.unknown(shape)
            ends = [self.groups.of(end).logsumexp(1) for end in (x.low, x.high)]
            slop = [(end.abs() + math.log(self.groups.size) + 1) * _SLOP for end in ends]
            return Range.box((ends[0] - slop[0]).reshape(shape), (ends[1] + slop[1]).reshape(shape))
        if self.kind == "log":
            return Range.box(*(self.groups.back(end, shape) for end in self._logs(ranges)))
        low, high = self._shares(ranges)
        # ||p|| <= sum of p = 1.
        norms = _root_of_squares(high).clamp_max(1.0)
        radius = log_of(float(_root_of_squares(norms[None])))
        rows = log_of(_highest(norms)) if self.groups.rows_of(shape) == 1 else radius
        center = torch.zeros((), dtype=torch.float64).expand(shape)
        return Range(self.groups.back(low, shape), self.groups.back(high, shape), center, radius, rows)
