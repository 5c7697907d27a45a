"""Products and ratios of activations, elementwise and of matrices: their constants on ranges, and where they lie.

None of them is Lipschitz on the whole space: |x y - x'y'| <= sup|y| |x - x'| + sup|x| |y - y'| needs both ranges.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.operators import Nonlinear
from lipcheck.ranges import Range, log_norm

_SLOP = rounding.EVALUATION
_MOST = sys.float_info.max
BOUNDED_RANGE = "needs a bounded range; give --domain box:LOW,HIGH or ball:RADIUS"
AWAY_FROM_ZERO = "needs a range without zero; a smaller --domain box:LOW,HIGH or ball:RADIUS may leave one"
# Matrices whose smaller side is at most this have their norm taken from the eigenvalues of a Gram matrix,
_GRAM_SIDE = 256
# unless forming it takes more multiplications than this; boxes of larger products than this are not multiplied out.
_MUCH = 4e9


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """One of the things that are multiplied: an activation of this shape, or a constant."""

    shape: tuple[int, ...]
    constant: Tensor | None = None

    @staticmethod
    def fixed(constant: Tensor) -> Operand:
        return Operand(tuple(constant.shape), constant.detach().double())


def _given(operands: Sequence[Operand], ranges: Sequence[Range]) -> list[Range]:
    """The range of each operand, constants included: the activations come in order."""
    following: Iterator[Range] = iter(ranges)
    found = []
    for operand in operands:
        constant = operand.constant
        if constant is not None:
            found.append(Range(constant, constant, constant, -math.inf, -math.inf))
        else:
            one = next(following)
            found.append(Range.unknown(operand.shape) if one.is_unknown else one)
    return found


def _joined(
    addend: Operand | None, first: Operand, second: Operand, ranges: Sequence[Range]
) -> tuple[Range | None, Range, Range]:
    """The ranges of what is added and of both factors."""
    added = [addend] if addend else []
    found = _given([*added, first, second], ranges)
    return found[0] if added else None, found[-2], found[-1]


def has_end(one: Range) -> bool:
    """Whether every entry is bounded."""
    return not one.is_unknown and one.log_norm() < math.inf


def log_of(value: float) -> float:
    """ln of at least a non-negative number that was computed in float64; inf for what is none."""
    return math.inf if math.isnan(value) else rounding.log_up(value * (1 + 2 * _SLOP) + rounding.UNDERFLOW)


def _log_root(count: float) -> float:
    """ln of at least a root."""
    return rounding.log_up(rounding.sqrt_up(count))


def copied_axes(own: Sequence[int], whole: Sequence[int]) -> tuple[int, ...]:
    """The axes of `whole` along which a tensor of shape `own` is repeated when it is broadcast."""
    padded = (1,) * (len(whole) - len(own)) + tuple(own)
    return tuple(axis for axis, (n, m) in enumerate(zip(padded, whole, strict=True)) if n == 1 and m > 1)


def _aligned(values: Tensor, rank: int) -> Tensor:
    """With axes of one in front, as broadcasting adds them."""
    return values.reshape((1,) * (rank - values.dim()) + tuple(values.shape))


def _fibres(values: Tensor, axes: tuple[int, ...], rank: int) -> Tensor:
    """The Euclidean norm along these axes, which stay with length one."""
    values = _aligned(values, rank).abs()
    if not axes:
        return values
    top = _largest(values)
    if top == 0 or not math.isfinite(top):
        return values.sum(axes, keepdim=True) * top
    norms: Tensor = torch.linalg.vector_norm(values / top, dim=axes, keepdim=True)
    return norms * top


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def log_fibre_norm(one: Range, axes: tuple[int, ...], rank: int) -> float:
    """ln of at least the norm of x along these axes of the broadcast shape, wherever on the others.

    From the box; from the ball, since a fibre is a part of x; from the rows that a fibre lies in.
    """
    if one.is_unknown:
        return math.inf
    boxed = log_of(_largest(_fibres(one.magnitude(), axes, rank)))
    if one.center is None:
        return boxed
    if not axes:
        return min(boxed, one.log_magnitude(), one.log_row_norm())
    lengths = (1,) * (rank - len(one.shape)) + one.shape
    rows = math.prod(lengths[axis] for axis in axes if axis != rank - 1)
    return min(boxed, one.log_norm(), rounding.log_multiply_up(one.log_row_norm(), _log_root(rows)))


@dataclass(frozen=True, slots=True, eq=False)
class WeightedMean(Nonlinear):
    """y_i = sum_j a_ij v_j / (sum_j a_ij + eps), a_ij = q_i . k_j, q and k without negative entries: linear attention.

    With s_i the divisor, dy_i = sum_j (da_ij (v_j - y_i) + a_ij dv_j) / s_i. The weights a_ij / s_i of a row sum to at
    most one, of a column to at most the number of rows, so their matrix has at most the root of that as its norm. y_i
    lies in the hull of the v_j and zero, so |v_j - y_i| <= 2 max |v_j| = D, and the matrix of these n differences has
    norm at most sqrt(n) D: ||dy|| <= sqrt(n) D / min s (||K|| ||dq|| + ||Q|| ||dk||) for the other two.
    Shapes: q (..., m, d), k (..., n, d), v (..., n, e).
    """

    eps: float

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        q, k, v = ranges
        if not _weighs(q, k):
            return (math.inf,) * 3
        least = float((q.low * k.low.sum(-2, keepdim=True)).sum(-1).min()) * (1 - _SLOP) + self.eps
        apart = rounding.log_multiply_up(_log_root(k.shape[-2]), v.log_row_norm(), log_of(2 / least))
        return (
            rounding.log_multiply_up(_log_spectral(k), apart),
            rounding.log_multiply_up(_log_spectral(q), apart),
            _log_root(q.shape[-2]),
        )

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        q, k, v = ranges
        if not _weighs(q, k) or v.is_unknown:
            return Range.unknown(shape)
        low, high = v.low.amin(-2, keepdim=True).clamp_max(0), v.high.amax(-2, keepdim=True).clamp_min(0)
        rows = v.log_row_norm()
        radius = rounding.log_multiply_up(rows, _log_root(math.prod(shape[:-1])))
        center = torch.zeros((), dtype=torch.float64).expand(shape)
        return Range.box(low.expand(shape), high.expand(shape)).with_ball(center, radius, rows)

    def value(self, points: Sequence[Tensor]) -> Tensor | None:
        q, k, v = points
        weights = q @ k.mT
        return weights @ v / (weights.sum(-1, keepdim=True) + self.eps)

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        return "" if all(map(has_end, ranges)) else f"the product of two activations {BOUNDED_RANGE}"


def _weighs(q: Range, k: Range) -> bool:
    return not (q.is_unknown or k.is_unknown) and q.smallest >= 0 and k.smallest >= 0


def _log_spectral(one: Range) -> float:
    """ln of at least the spectral norm of every matrix in the last two axes."""
    boxed = float(log_spectral_norms(one.magnitude().reshape(-1, *one.shape[-2:])).max())
    return min(boxed, one.log_norm(), rounding.log_multiply_up(one.log_row_norm(), _log_root(one.shape[-2])))


def _ordered(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Ends that may have overflowed: no number is above the largest one for having an infinite lower end."""
    return low.clamp_max(_MOST), high.clamp_min(-_MOST)


def interval_product(first: Range, second: Range) -> tuple[Tensor, Tensor]:
    """The ends of x y, elementwise, not yet widened; what is unbounded times zero is zero."""
    corners = [
        (a * b).nan_to_num(0.0, math.inf, -math.inf) for a in (first.low, first.high) for b in (second.low, second.high)
    ]
    low = torch.minimum(torch.minimum(corners[0], corners[1]), torch.minimum(corners[2], corners[3]))
    high = torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3]))
    return _ordered(low, high)


def reciprocal(one: Range) -> Range:
    """The box of 1 / x; unknown where x may be zero."""
    apart = (one.low > 0) | (one.high < 0)
    box = Range.box(1 / one.high, 1 / one.low)
    low = torch.where(apart, box.low, -math.inf)
    return Range(low, torch.where(apart, box.high, math.inf))


@dataclass(frozen=True, slots=True, eq=False)
class Product(Nonlinear):
    """a + c x y or a + c x / y, elementwise with broadcasting; some of a, x and y may be constant, or no a there.

    The partial Jacobians are diagonal but for the copies: a change of one entry of x reaches every entry that it is
    copied to, times the y that stands there, so their norm is the largest, over the entries of x, of the norm of the y
    that multiply its copies. For x / y, with q = 1 / y, d = q dx - x q^2 dy.
    Shapes: `shape` is the result's. `same` says that x and y are one activation: a square.
    """

    first: Operand
    second: Operand
    shape: tuple[int, ...]
    addend: Operand | None = None
    factor: float = 1.0
    dividing: bool = False
    same: bool = False

    def _known(self, ranges: Sequence[Range]) -> tuple[Range | None, Range, Range]:
        """The ranges of a, x and the y that multiplies x."""
        addend, first, second = _joined(self.addend, self.first, self.second, ranges)
        return addend, first, reciprocal(second) if self.dividing else second

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        _, x, y = self._known(ranges)
        rank, factor = len(self.shape), rounding.log_up(abs(self.factor))
        by_first, by_second = copied_axes(self.first.shape, self.shape), copied_axes(self.second.shape, self.shape)
        logs = []
        if self.addend and self.addend.constant is None:
            logs.append(_log_root(math.prod(self.shape[axis] for axis in copied_axes(self.addend.shape, self.shape))))
        if self.first.constant is None:
            logs.append(rounding.log_multiply_up(factor, log_fibre_norm(y, by_first, rank)))
        if self.second.constant is None:
            moved = log_fibre_norm(x, by_second, rank)
            if self.dividing:
                moved = min(rounding.log_multiply_up(moved, *(y.log_magnitude(),) * 2), self._by_divisor(x, y))
            logs.append(rounding.log_multiply_up(factor, moved))
        return tuple(logs)

    def _by_divisor(self, x: Range, q: Range) -> float:
        """ln of at least the largest q_i^2 ||x||, over the entries i of the divisor and the x that each divides."""
        if x.is_unknown or q.is_unknown:
            return math.inf
        rank = len(self.shape)
        fibres = _fibres(x.magnitude(), copied_axes(self.second.shape, self.shape), rank)
        return log_of(_largest(fibres * _aligned(q.magnitude(), rank) ** 2))

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        addend, x, y = self._known(ranges)
        if x.is_unknown and y.is_unknown:
            return Range.unknown(shape)
        low, high = (end.expand(shape) for end in interval_product(x, y))
        if self.same and not self.dividing:
            low = low.clamp_min(0)
            if x.bounded:
                low = torch.maximum(low, torch.maximum(x.low, -x.high).clamp_min(0) ** 2 * (1 - _SLOP))
        low, high = (low * self.factor, high * self.factor) if self.factor >= 0 else (
            high * self.factor, low * self.factor)  # fmt: skip
        if addend is not None:
            slop = (torch.maximum(low.abs(), high.abs()) + addend.magnitude()) * _SLOP
            low, high = low + addend.low - slop, high + addend.high + slop
            return Range.box(low, high)
        ball, rows = self._reach(x, y, shape)
        scaled = rounding.log_up(abs(self.factor))
        radius = rounding.log_multiply_up(scaled, ball)
        center = torch.zeros((), dtype=torch.float64).expand(shape)
        return Range.box(low, high).with_ball(center, radius, min(radius, rounding.log_multiply_up(scaled, rows)))

    def _reach(self, x: Range, y: Range, shape: tuple[int, ...]) -> tuple[float, float]:
        """ln of at least ||x y||, of the whole and of a row: what is not broadcast times the largest of the other."""
        balls, rows = [math.inf], [math.inf]
        for one, other, operand in ((x, y, self.first), (y, x, self.second)):
            if copied_axes(operand.shape, shape) or one.is_unknown or other.is_unknown or not shape:
                continue
            by = other.log_magnitude()
            balls.append(rounding.log_multiply_up(one.log_norm(), by))
            if len(one.shape) == len(shape) and one.shape[-1] == shape[-1]:
                rows.append(rounding.log_multiply_up(one.log_row_norm(), by))
        return min(balls), min(rows)

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        _, first, second = _joined(self.addend, self.first, self.second, ranges)
        if self.dividing:
            if has_end(second) and not reciprocal(second).bounded:
                return f"division by an activation {AWAY_FROM_ZERO}"
            return "" if has_end(first) and has_end(second) else f"division by an activation {BOUNDED_RANGE}"
        return "" if has_end(first) and has_end(second) else f"the product of two activations {BOUNDED_RANGE}"


@dataclass(frozen=True, slots=True, eq=False)
class Interpolation(Nonlinear):
    """x + w (y - x) with three activations: d = (1 - w) dx + w dy + (y - x) dw.

    Shapes: `shapes` are those of x, y and w, which broadcast to `shape`.
    """

    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    shape: tuple[int, ...]

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        x, y, w = ranges
        if w.is_unknown:
            return (math.inf,) * 3
        rank = len(self.shape)
        kept = Range.box(1 - w.high, 1 - w.low)
        apart = math.inf
        if not (x.is_unknown or y.is_unknown):
            apart = log_fibre_norm(
                Range.box(y.low - x.high, y.high - x.low), copied_axes(self.shapes[2], self.shape), rank
            )
        return (
            log_fibre_norm(kept, copied_axes(self.shapes[0], self.shape), rank),
            log_fibre_norm(w, copied_axes(self.shapes[1], self.shape), rank),
            apart,
        )

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        x, y, w = ranges
        if w.is_unknown or x.is_unknown or y.is_unknown:
            return Range.unknown(shape)
        kept = interval_product(Range.box(1 - w.high, 1 - w.low), x)
        taken = interval_product(w, y)
        slop = sum(end.abs() for end in (*kept, *taken)) * _SLOP
        return Range.box((kept[0] + taken[0] - slop).expand(shape), (kept[1] + taken[1] + slop).expand(shape))

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        return "" if all(map(has_end, ranges)) else f"interpolation between activations {BOUNDED_RANGE}"


@dataclass(frozen=True, slots=True, eq=False)
class GatedHalf(Nonlinear):
    """a sigmoid(b) for the two halves (a, b) of x along an axis: torch's glu.

    An entry of the result has the gradient (s, a s') in its own two inputs, and no other reads these: the Jacobian's
    norm is the largest sqrt(s^2 + (a s')^2).
    """

    dim: int

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        (x,) = ranges
        if x.is_unknown:
            return (math.inf,)
        (low, below), (high, above) = x.low.chunk(2, self.dim), x.high.chunk(2, self.dim)
        linear = torch.maximum(low.abs(), high.abs())
        # The logistic function is steepest next to 0.
        nearest = torch.zeros_like(below).clamp(below, above)
        steep = torch.sigmoid(nearest) * torch.sigmoid(-nearest)
        return (log_of(_largest(torch.hypot(torch.sigmoid(above), (linear * steep).nan_to_num(math.inf, math.inf)))),)

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        (x,) = ranges
        if x.is_unknown:
            return Range.unknown(shape)
        (low, below), (high, above) = x.low.chunk(2, self.dim), x.high.chunk(2, self.dim)
        gate = Range.box(torch.sigmoid(below), torch.sigmoid(above))
        return Range.box(*interval_product(Range(low, high), gate))

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        return "" if has_end(ranges[0]) else f"the product of two activations {BOUNDED_RANGE}"


@dataclass(frozen=True, slots=True)
class Contraction:
    """What an einsum of two operands does with its letters: sizes by letter, letters by operand and of the result.

    A letter in both operands and in the result counts a batch of matrix products, one in both and not in the result is
    summed, the others number rows (of the first) and columns (of the second).
    """

    first: str
    second: str
    result: str
    sizes: tuple[tuple[str, int], ...]

    def size(self, letters: str) -> int:
        known = dict(self.sizes)
        return math.prod(known[letter] for letter in letters)

    @property
    def batch(self) -> str:
        return "".join(c for c in self.result if c in self.first and c in self.second)

    @property
    def summed(self) -> str:
        return "".join(c for c in self.first if c in self.second and c not in self.result)

    @property
    def rows(self) -> str:
        return "".join(c for c in self.result if c not in self.second)

    @property
    def columns(self) -> str:
        return "".join(c for c in self.result if c not in self.first)

    def matrices(self, values: Tensor, own: str, rows: str, columns: str) -> Tensor:
        """An operand with axes `own` as a batch of matrices. Shapes: (batch, rows, columns)."""
        known = dict(self.sizes)
        values = values.reshape([known[letter] for letter in own])
        moved = values.permute([own.index(letter) for letter in self.batch + rows + columns])
        return moved.reshape(self.size(self.batch), self.size(rows), self.size(columns))

    def left(self, values: Tensor) -> Tensor:
        """The first operand as matrices (batch, rows, summed)."""
        return self.matrices(values, self.first, self.rows, self.summed)

    def right(self, values: Tensor) -> Tensor:
        """The second as matrices (batch, summed, columns)."""
        return self.matrices(values, self.second, self.summed, self.columns)

    def back(self, matrices: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The products (batch, rows, columns) as the result."""
        known, letters = dict(self.sizes), self.batch + self.rows + self.columns
        values = matrices.reshape([known[letter] for letter in letters])
        return values.permute([letters.index(letter) for letter in self.result]).reshape(shape)


def log_spectral_norms(matrices: Tensor) -> Tensor:
    """ln of at least the spectral norm of each M with |M| <= these, elementwise; inf where that is infinite.

    The least of Frobenius' norm, of the root of the largest row sum times the largest column sum, and, of small
    matrices, of the root of the largest eigenvalue of a Gram matrix. Of |M| where M is only known by its entries'
    magnitudes: ||M|| <= || |M| ||.
    Shapes: (batch, rows, columns) to (batch,).
    """
    if matrices.numel() == 0:
        return torch.full((len(matrices),), -math.inf, dtype=torch.float64)
    top = matrices.abs().amax((1, 2))
    scale = torch.where((top > 0) & torch.isfinite(top), top, 1.0)
    scaled = matrices / scale[:, None, None]
    size = scaled.abs()
    squared = torch.minimum(size.square().sum((1, 2)), size.sum(1).amax(1) * size.sum(2).amax(1))
    rows, columns = matrices.shape[1:]
    side = min(rows, columns)
    if side <= _GRAM_SIDE and float(matrices.numel()) * side <= _MUCH and bool(torch.isfinite(top).all()):
        gram = scaled @ scaled.mT if rows <= columns else scaled.mT @ scaled
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)
        squared = torch.minimum(squared, torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0) + trace * _SLOP)
    logs = squared.log() / 2 + scale.log()
    logs = logs + _SLOP * (1 + logs.abs())
    logs = torch.where(top == 0, -math.inf, logs)
    return torch.where(torch.isfinite(top), logs, math.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Bilinear(Nonlinear):
    """a + c A B for matrices that are activations, a batch of them: matmul, bmm, baddbmm, an einsum of two operands.

    d(A B) = dA B + A dB, and ||dA B||_F <= ||B||_2 ||dA||_F, ||A dB||_F <= ||A||_2 ||dB||_F, the largest over the
    batch. What is broadcast over the batch counts as more rows or columns of the other: no copies are made.
    """

    first: Operand
    second: Operand
    form: Contraction
    addend: Operand | None = None
    factor: float = 1.0
    addend_factor: float = 1.0

    def _known(self, ranges: Sequence[Range]) -> tuple[Range | None, Range, Range]:
        return _joined(self.addend, self.first, self.second, ranges)

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        _, first, second = self._known(ranges)
        logs = []
        if self.addend and self.addend.constant is None:
            copies = self.form.size(self.form.result) / max(1, math.prod(self.addend.shape))
            logs.append(rounding.log_multiply_up(rounding.log_up(abs(self.addend_factor)), _log_root(copies)))
        factor = rounding.log_up(abs(self.factor))
        if self.first.constant is None:
            logs.append(rounding.log_multiply_up(factor, self._spectral(second, of_second=True)))
        if self.second.constant is None:
            logs.append(rounding.log_multiply_up(factor, self._spectral(first, of_second=False)))
        return tuple(logs)

    def _spectral(self, one: Range, *, of_second: bool) -> float:
        """ln of at least the largest spectral norm of an operand's matrices: from its box, or its ball."""
        if one.is_unknown:
            return math.inf
        view = self.form.right if of_second else self.form.left
        if 0 in one.shape:
            return -math.inf
        boxed = float(log_spectral_norms(view(one.magnitude())).max())
        if one.center is None:
            return boxed
        letters = self.form.second if of_second else self.form.first
        away = one.radius
        if _ends_with(letters, one, self.form) and letters[-1] not in self.form.batch:
            # A matrix is made of so many whole rows.
            rows = self.form.size(letters) // (self.form.size(self.form.batch) * self.form.size(letters[-1]))
            away = row_deviation(one, rows)
        middle = float(log_spectral_norms(view(one.center)).max()) if away < math.inf else math.inf
        return min(boxed, one.log_norm(), rounding.log_sum_up(middle, away))

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        addend, first, second = self._known(ranges)
        if first.is_unknown or second.is_unknown:
            return Range.unknown(shape)
        low, high = (self.form.back(end, shape) for end in self._box(first, second))
        low, high = (low * self.factor, high * self.factor) if self.factor >= 0 else (
            high * self.factor, low * self.factor)  # fmt: skip
        if addend is not None:
            added = interval_product(addend, Range.between(self.addend_factor, self.addend_factor, ()))
            slop = (torch.maximum(low.abs(), high.abs()) + torch.maximum(added[0].abs(), added[1].abs())) * _SLOP
            return Range.box(low + added[0] - slop, high + added[1] + slop)
        spectral = self._spectral(first, of_second=False), self._spectral(second, of_second=True)
        factor = rounding.log_up(abs(self.factor))
        radius = min(
            rounding.log_multiply_up(factor, first.log_norm(), spectral[1]),
            rounding.log_multiply_up(factor, spectral[0], second.log_norm()),
        )
        rows = radius
        form = self.form
        if (
            form.columns[-1:] == form.result[-1:]
            and form.summed == form.first[-1:]
            and _ends_with(form.first, first, form)
        ):
            # A row of the result is a row of the first operand times a matrix.
            rows = min(rows, rounding.log_multiply_up(factor, first.log_row_norm(), spectral[1]))
        return Range.box(low, high).with_ball(torch.zeros((), dtype=torch.float64).expand(shape), radius, rows)

    def _box(self, first: Range, second: Range) -> tuple[Tensor, Tensor]:
        """The ends of A B by interval arithmetic, widened by what computing them may be off by.

        Where one operand has no negative entry, x in [a, b] and y in [c, d] give a c+ - b c- <= x y <= b d+ - a d-.
        Otherwise middles and halves: |x y - m n| <= |m| s + r (|n| + s).
        Source: Rump, Fast and parallel interval arithmetic, BIT 39 (1999).
        """
        a, b = self.form.left(first.low), self.form.left(first.high)
        c, d = self.form.right(second.low), self.form.right(second.high)
        unknown = torch.full((a.shape[0], a.shape[1], c.shape[2]), math.inf, dtype=torch.float64)
        if float(a.numel()) * c.shape[2] > _MUCH:
            return -unknown, unknown
        if first.smallest >= 0:
            return _apart(a, c.clamp_min(0), b, (-c).clamp_min(0)), -_apart(a, (-d).clamp_min(0), b, d.clamp_min(0))
        if second.smallest >= 0:
            return _apart(a.clamp_min(0), c, (-a).clamp_min(0), d), -_apart((-b).clamp_min(0), c, b.clamp_min(0), d)
        if not (first.bounded and second.bounded):
            return -unknown, unknown
        m, n = (a + b) / 2, (c + d) / 2
        r, s = torch.maximum(b - m, m - a), torch.maximum(d - n, n - c)
        size = torch.maximum(a.abs(), b.abs()) @ torch.maximum(c.abs(), d.abs()) * (2 * _SLOP)
        middle, half = m @ n, m.abs() @ s + r @ (n.abs() + s) + size
        return _ordered(middle - half, middle + half)

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        return "" if all(map(has_end, ranges)) else f"the product of two activations {BOUNDED_RANGE}"


def _apart(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """At most A B - C D for matrices without negative entries, each product computed to a part of itself."""
    return _sums(a, b).clamp_max(_MOST) * (1 - _SLOP) - _sums(c, d) * (1 + _SLOP)


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """A B without negative entries, where what is infinite times zero is zero."""
    finite = bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())
    if finite:
        return a @ b
    reached = torch.isinf(a).double() @ (b > 0).double() + (a > 0).double() @ torch.isinf(b).double()
    return torch.where(reached > 0, math.inf, a.nan_to_num(0.0, 0.0) @ b.nan_to_num(0.0, 0.0))


def _ends_with(letters: str, one: Range, form: Contraction) -> bool:
    """Whether the last letter is that of the last axis: broadcast axes of length one have none."""
    return bool(letters and one.shape) and form.size(letters[-1]) == one.shape[-1]


def row_deviation(one: Range, rows: float) -> float:
    """ln of the largest distance of so many whole rows from their centre, or of the whole; inf without a ball."""
    if one.center is None:
        return math.inf
    return min(one.radius, rounding.log_multiply_up(one.rows, _log_root(rows)))


def finite_center(one: Range) -> Tensor | None:
    """The centre of a ball that means something."""
    if one.center is None or (not math.isfinite(log_norm(one.center)) and bool(one.center.any())):
        return None
    return one.center
