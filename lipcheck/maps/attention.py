"""Attention: rows of values averaged with the softmax of products of queries and keys; and rotary embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.operators import Nonlinear
from lipcheck.ranges import Range, log_norm, log_row_norm

_SLOP = rounding.EVALUATION
_LOG_HALF = rounding.log_up(0.5)


def as_it_stands(tensor: Tensor) -> Tensor:
    """The arrangement of an operand whose last two axes are positions and features already."""
    return tensor


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where an operand's rows come from: each is an affine image of one row of an activation, one matrix for each head.

    Shapes: `carry` takes the activation to the arranged operand, `matrix` is (outputs, inputs), `heads` holds the
        outputs of each head. The heads' matrices are multiplied by a number of magnitude at most `factor`.
    """

    place: int  # of the activation among the attention's inputs
    carry: Callable[[Tensor], Tensor]
    matrix: Tensor
    heads: Tensor
    factor: float

    def rows(self, x: Range) -> tuple[Tensor, float] | None:
        """The arranged image of the centre, and ln of how far a row may be from its own; None where nothing is known.

        The largest eigenvalue of a Gram matrix, by a backward stable algorithm, is the square of a matrix' norm.
        """
        if x.center is None or min(x.rows, x.radius) == math.inf or not self.matrix.numel():
            return None
        matrices = self.matrix.double()[self.heads]
        largest = float(torch.linalg.eigvalsh(matrices @ matrices.mT).amax().clamp_min(0))
        norm = rounding.log_multiply_up(rounding.log_up(math.sqrt(largest) * (1 + _SLOP)), rounding.log_up(self.factor))
        center = self.carry(x.center)
        # The image of the centre is off by a part of the terms that it is a sum of.
        slop = rounding.log_sum_up(rounding.log_multiply_up(norm, log_row_norm(x.center)), log_row_norm(center))
        moved = rounding.log_multiply_up(norm, min(x.rows, x.radius))
        return center, rounding.log_sum_up(moved, rounding.log_multiply_up(slop, rounding.log_up(_SLOP)))


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """The rows of one operand of an attention, as they stand in an activation or in a constant.

    Shapes: `arrange` takes a tensor of the activation's shape to (..., positions, features); one softmax reads the
        positions of one place in front of them. It moves elements and copies none. With `whole`, each arranged row is
        a part of one row of the activation. `fixed` is a constant operand, arranged.
    """

    arrange: Callable[[Tensor], Tensor] = as_it_stands
    whole: bool = True
    fixed: Tensor | None = None
    origin: Origin | None = None

    @property
    def constant(self) -> Range | None:
        """The range of a constant operand."""
        if self.fixed is None:
            return None
        fixed = self.fixed.double()
        return Range(fixed, fixed, fixed, -math.inf, -math.inf)

    def reach(self, x: Range, known: Sequence[Range]) -> float:
        """ln of at least every row's norm. `known` are the ranges of all that the attention reads."""
        found = math.inf
        if not x.is_unknown:
            found = min(log_row_norm(self.arrange(x.magnitude())), x.log_norm())
        for center, apart in self._centers(x, known):
            found = min(found, rounding.log_sum_up(log_row_norm(center), apart))
        return found

    def ball(self, x: Range, known: Sequence[Range]) -> tuple[Tensor | None, float]:
        """A point for each softmax, 0 if none is given, and ln of a radius: this ball holds all the rows that it reads.

        Shapes: the points are (..., features).
        """
        points: list[tuple[Tensor | None, float]] = [(None, self.reach(x, known))]
        if not x.is_unknown:
            low, high = self.arrange(x.low).amin(-2), self.arrange(x.high).amax(-2)
            middle = (low + high) / 2
            points.append((middle, log_row_norm(torch.maximum(high - middle, middle - low))))
        for center, apart in self._centers(x, known):
            middle = center.mean(-2)
            away = log_row_norm(center - middle.unsqueeze(-2))
            points.append((middle, rounding.log_sum_up(away, apart)))
        return min(points, key=lambda one: one[1])

    def _centers(self, x: Range, known: Sequence[Range]) -> Iterator[tuple[Tensor, float]]:
        """Arranged rows, and ln of how far the operand's may be from them."""
        if x.center is not None:
            yield self.arrange(x.center), self._apart(x)
        if self.origin is not None and (rows := self.origin.rows(known[self.origin.place])) is not None:
            yield rows

    def _apart(self, x: Range) -> float:
        """How far a row may be from the centre's."""
        return min(x.rows, x.radius) if self.whole else x.radius


@dataclass(frozen=True, slots=True, eq=False)
class Attention(Nonlinear):
    """o_r = sum_j w_rj v_rj with w_r = softmax_j(a_rj q_r . k_rj + sum of biases_rj), r over all rows of all heads.

    The weights w may be multiplied by constants, mixed over the heads by a matrix and moved by a constant before they
    meet the values, and so may the logits before the softmax. The inputs are those of the queries, keys and values
    that are not constant, in this order, then the biases that depend on the network's input, then the origins of the
    operands: these the output depends on through the others only, they tell where the rows can be.

    Proof. Let A = diag(w_r) - w_r w_r' for one softmax, with shares w_r. For functions f, g of the keys f' A g is their
    covariance under w_r, unchanged if a constant is added to either; A <= diag(w_r) <= p I, p the largest share, and
    A <= I / 2, since by Gershgorin its rows sum to 2 w (1 - w) <= 1/2 in magnitude. With R_q, R_k, R_v the radii of
    balls that hold the rows, for k and v around any common points, and v' A v <= R_v^2, k' A k <= R_k^2 in every
    direction, by Cauchy-Schwarz
        |do_r| <= |a| R_k R_v |dq_r|,
        |do_r| <= R_v sqrt(min(p, 1/2)) |db_r|,
        |do_r|^2 <= R_v^2 q_r' (dk' A dk) q_r <= min(p, 1/2) a^2 R_v^2 |q_r|^2 sum_j |dk_rj|^2,
        |do_r|^2 <= sum_j w_rj |dv_rj|^2 (Jensen).
    Summed over r, a row counts as often as it is read: the root of its readers is a factor. The keys' sum has the
    readers of a key times R_q^2, or the readers of a query times |q|_F^2; the values' at most p times their readers.
    Behind the softmax, weights whose magnitudes sum to at most t in a row have norm at most t times that root.
    A matrix W over the heads maps the norms of the heads' parts by |W|: the norm of that is a factor. Where the
    factors a differ within a row, a key and its factor make another key, of norm at most |a| |k|, and no common point
    is left but 0; so for the values. p <= 1 / (1 + the other keys' exp of differences of logits), each of which is at
    least -2 |a| R_q R_k less the spread of the biases.
    Source: Kim et al., The Lipschitz constant of self-attention, ICML 2021, and Castin et al., How smooth is
        attention?, ICML 2024, have |a| R^2 and sqrt(n) |a| R^2 for queries and keys that are one activation.
    """

    query: Operand
    key: Operand
    values: Operand
    readers: tuple[int, int, int]  # the most softmaxes that read one row of the queries, of the keys, of the values
    seen: tuple[int, int]  # the least and the largest number of keys that a softmax sees
    scale: float  # at least |a|, with the norm of the mixing of the logits
    assemble: Callable[[Tensor], Tensor]  # (..., features), a row for all positions of a head, to the output's shape
    swing: float | None = None  # at least |a| with the mixing's largest row sum; the scale where there is none
    uneven: float = 0.0  # the most that constant biases of the keys that one softmax sees differ; inf if unknown
    biases: tuple[tuple[float, float], ...] = ()  # for each activation: its factor in a logit, the root of its copies
    centred: tuple[bool, bool] = (True, True)  # whether keys and values may be seen from any common point
    after: float = 1.0  # at least the norm of what the weights go through behind the softmax
    outer: float = 1.0  # at least the sum of the factors of one weight behind the softmax
    constant: tuple[float, float] = (0.0, 0.0)  # the norm of what is added to the weights, and its largest row sum
    convex: bool = True  # whether the weights that meet the values are non-negative and sum to one
    empty: bool = False  # whether a softmax may see no key: its output is 0
    rows: bool = True  # whether the output's rows along its last axis are o_r
    compute: Callable[[Sequence[Tensor]], Tensor] | None = None  # the map in float64, where it is several calls

    def _ranges(self, ranges: Sequence[Range]) -> tuple[Range, Range, Range, Sequence[Range]]:
        """Those of the queries, the keys and the values, constant or not, and of the biases."""
        given = iter(ranges)
        query, key, values = (one.constant or next(given) for one in (self.query, self.key, self.values))
        return query, key, values, list(given)[: len(self.biases)]

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        query, key, values, biases = self._ranges(ranges)
        asked = self.query.reach(query, ranges)
        keys = self.key.ball(key, ranges)[1] if self.centred[0] else self.key.reach(key, ranges)
        share = self._share(asked, keys, biases)
        scale, after, readers = rounding.log_up(self.scale), rounding.log_up(self.after), self.readers
        of_query, of_key, of_value = (rounding.log_up(rounding.sqrt_up(count)) for count in readers)
        if self.seen[1] <= 1:
            scale = -math.inf  # the share of a single key is one, whatever its logit
        away = self.values.ball(values, ranges)[1] if self.centred[1] else self.values.reach(values, ranges)
        times = rounding.log_multiply_up
        to_query = times(scale, after, keys, away, of_query)
        halved = min(share, _LOG_HALF) / 2
        to_key = times(scale, after, away, halved, min(times(asked, of_key), times(query.log_norm(), of_query)))
        constant = rounding.log_up(self.constant[0])
        to_values = rounding.log_sum_up(times(rounding.log_up(self.outer), of_value, share / 2), constant)
        to_values = min(to_values, times(rounding.log_up(self._total), of_value))
        found = [
            slope
            for operand, slope in ((self.query, to_query), (self.key, to_key), (self.values, to_values))
            if operand.fixed is None
        ]
        for factor, copies in self.biases:
            moved = times(rounding.log_up(factor), rounding.log_up(copies), after, away, of_query, halved)
            found.append(moved if self.seen[1] > 1 else -math.inf)
        return (*found, *(-math.inf,) * (len(ranges) - len(found)))

    @property
    def _total(self) -> float:
        """At least the sum of the magnitudes of the weights in a row that meets the values."""
        return rounding.add_up(self.outer, self.constant[1])

    def _share(self, asked: float, keys: float, biases: Sequence[Range]) -> float:
        """ln of at least the largest weight that a softmax gives a key."""
        swing = rounding.log_up(self.scale if self.swing is None else self.swing)
        parts = [rounding.log_multiply_up(swing, asked, keys)]
        parts += [
            rounding.log_multiply_up(rounding.log_up(factor), bias.log_magnitude())
            for (factor, _), bias in zip(self.biases, biases, strict=True)
        ]
        apart = rounding.log_sum_up(*parts)
        if not apart < 5 or not self.uneven < 200 or self.seen[0] <= 1:
            return 0.0
        difference = (2 * math.exp(apart) + self.uneven) * (1 + _SLOP)
        return -math.log1p((self.seen[0] - 1) * math.exp(-difference) * (1 - _SLOP)) * (1 - _SLOP)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        """Every output row is an average of the values' rows: it stays in their box and in any ball around them."""
        _, _, values, _ = self._ranges(ranges)
        low, high = self.values.arrange(values.low), self.values.arrange(values.high)
        if low.numel() == 0:
            return Range.unknown(shape)
        if not self.convex:
            return self._scaled_image(values, ranges, shape)
        low, high = low.amin(-2), high.amax(-2)
        if self.empty:
            low, high = low.clamp_max(0), high.clamp_min(0)
        found = Range.box(self.assemble(low), self.assemble(high))
        center, rows = self.values.ball(values, ranges) if not self.empty else (None, self.values.reach(values, ranges))
        center = torch.zeros_like(low) if center is None else center
        return self._with_ball(found, self.assemble(center), rows, center.shape[-1])

    def _scaled_image(self, values: Range, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        """The magnitudes of the weights that meet the values have a bounded sum."""
        total = self._total
        largest = self.values.arrange(values.magnitude()).amax(-2) * total
        box = self.assemble(largest.nan_to_num(math.inf))
        rows = rounding.log_multiply_up(rounding.log_up(total), self.values.reach(values, ranges))
        zero = torch.zeros(shape, dtype=torch.float64)
        return self._with_ball(Range.box(-box, box), zero, rows, largest.shape[-1])

    def _with_ball(self, found: Range, center: Tensor, rows: float, features: int) -> Range:
        if rows == math.inf:
            return found
        count = center.numel() // features
        radius = rounding.log_multiply_up(rows, rounding.log_up(rounding.sqrt_up(count)))
        return found.with_ball(center, radius, rows if self.rows else radius)

    def value(self, points: Sequence[Tensor]) -> Tensor | None:
        return self.compute(points) if self.compute is not None else None

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        query, key, values, _ = self._ranges(ranges)
        if all(min(one.radius, one.rows) < math.inf for one in (query, key, values)) or math.inf not in self.slopes(
            ranges
        ):
            return ""
        return "attention: its queries, keys or values have no bounded range; give --domain"


@dataclass(frozen=True, slots=True, eq=False)
class Pairs(Nonlinear):
    """y_i = a_i x_f(i) + b_i x_s(i), where the inputs stand in pairs, each {f(i), s(i)} one of them or in one of them.

    Rotary embeddings turn each pair by an angle. Linear, a direct sum over the pairs: the square of the norm is the
    largest eigenvalue of the pairs' Gram matrices [[sum a^2, sum a b], [., sum b^2]]. Kept here for its ranges.
    Shapes: all four have the output's; `first` and `second` are flat indices. With `rows`, each row of the output
        along the last axis reads one row of the input.
    """

    a: Tensor
    first: Tensor
    b: Tensor
    second: Tensor
    rows: bool
    norm: float = field(init=False)  # ln of at least the norm

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", self._log_norm())

    def same(self, other: Pairs) -> bool:
        """Whether both are one map."""
        mine, theirs = ((one.a, one.first, one.b, one.second) for one in (self, other))
        alike = self.rows == other.rows and self.a.shape == other.a.shape
        return alike and all(map(torch.equal, mine, theirs))

    @staticmethod
    def partners(first: Tensor, b: Tensor, second: Tensor, count: int) -> Tensor | None:
        """For each of `count` inputs the other of its pair, itself where it has none; None where they are no pairs."""
        both = (b != 0) & (first != second)
        p, r = first[both], second[both]
        partner = torch.arange(count)
        partner[p] = r
        partner[r] = p
        return partner if torch.equal(partner[p], r) and torch.equal(partner[r], p) else None

    def _log_norm(self) -> float:
        count = int(max(self.first.max(), self.second.max())) + 1 if self.first.numel() else 0
        partner = self.partners(self.first, self.b, self.second, count)
        assert partner is not None, "the inputs are not in pairs"
        a, b, first, second = (part.flatten() for part in (self.a, self.b, self.first, self.second))
        alone = first == second
        a, b = torch.where(alone, a + b, a), torch.where(alone, 0.0, b)
        # Each entry's part of the Gram matrix of its pair, whose lower index stands for it.
        lower = torch.minimum(first, partner[first])
        swapped = first != lower
        x, y = torch.where(swapped, b, a), torch.where(swapped, a, b)
        zeros = torch.zeros(count, dtype=torch.float64)
        xx, yy, xy = (zeros.index_add(0, lower, part) for part in (x * x, y * y, x * y))
        largest = (xx + yy) / 2 + torch.hypot((xx - yy) / 2, xy)
        return rounding.log_up(math.sqrt(float(largest.max()) if count else 0.0) * (1 + _SLOP))

    def _apply(self, x: Tensor) -> Tensor:
        x = x.flatten()
        return self.a * x[self.first] + self.b * x[self.second]

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        return (self.norm,)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        (x,) = ranges
        found = Range.unknown(shape)
        if x.bounded:
            middle = (x.low + x.high) / 2
            half = torch.maximum(x.high - middle, middle - x.low) * (1 + _SLOP) + middle.abs() * _SLOP
            width = self.a.abs() * half.flatten()[self.first] + self.b.abs() * half.flatten()[self.second]
            found = Range.box(self._apply(middle) - width, self._apply(middle) + width)
        if x.center is None:
            return found
        norm, slop = self.norm, rounding.log_up(_SLOP)
        radius = rounding.log_sum_up(x.radius, rounding.log_multiply_up(slop, log_norm(x.center)))
        rows = rounding.log_sum_up(x.rows, rounding.log_multiply_up(slop, log_row_norm(x.center)))
        radius, rows = (rounding.log_multiply_up(norm, reach) for reach in (radius, rows))
        return found.with_ball(self._apply(x.center), radius, min(rows, radius) if self.rows else radius)
