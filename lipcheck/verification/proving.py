"""Each proof, shown again: ||F(w)|| <= mu at every frequency, or ||A|| <= mu of the matrices it speaks of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from lipcheck.operators import (
    BatchedDense,
    Convolution,
    Dense,
    Diagonal,
    Indexing,
    InfiniteConvolution,
    Operator,
    Padded,
)
from lipcheck.proof import (
    CellsProof,
    CopiesProof,
    DiagonalProof,
    FiniteProof,
    GridProof,
    GroupsProof,
    LatticesProof,
    MatrixProof,
    ProductProof,
    Proof,
    SemifiniteProof,
    ZeroProof,
)
from lipcheck.verification.arithmetic import UNIT, Array, Refuted, down, gamma, numbers, up
from lipcheck.verification.finite import collisions, finite_below, finite_matrix, nonzero_entries, semifinite_above
from lipcheck.verification.geometry import (
    Axis,
    Grid,
    Symbols,
    axes_of,
    embeds,
    frequencies,
    needed_points,
    reduced,
    scaled_weight,
    symbols_of,
    undilated,
)
from lipcheck.verification.matrices import first_above, matrix_below
from lipcheck.verification.stated import (
    cell_share,
    implied,
    parts_of,
    share_of,
    size_bound,
    symbols_for,
    times,
    unscaled,
)
from lipcheck.verification.verdict import Limits

# A mu that misses the stated bound by no more than this is lowered and proved at the lower value.
_LEEWAY = 1e-6
# More frequencies or coarsest cells, and finer ones, are not looked at.
_MOST, _FINEST, _MOST_LATTICES = 1 << 26, 40, 1 << 16


class Arithmetic(Protocol):
    """How matrices are compared with mu: in float64, or in balls."""

    name: str

    def first_above(self, symbols: Symbols, grid: Grid, mu: float) -> tuple[int, int] | None:
        """The first group and row of the grid at which ||F(w)|| <= mu is not shown."""

    def matrix_below(self, matrix: Array, mu: float, error: float = 0.0) -> bool:
        """Whether ||M|| <= mu is shown for all M within `error` of the given one."""


class _Float64:
    name = "float64"
    first_above = staticmethod(first_above)
    matrix_below = staticmethod(matrix_below)


class Checker:
    """Checks one bound. `arithmetic` is the least exact one that was used."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.arithmetic = "exact"

    def check(self, operator: Operator, proof: Proof, upper: float) -> None:
        """Nothing, when the proof proves norm <= upper.

        Errors: Refuted.
        """
        proof = unscaled(proof)
        if isinstance(operator, BatchedDense):
            operator = operator.grouped
        if isinstance(proof, LatticesProof):
            self._lattices(operator, proof, upper)
            return
        lowered, factor = proof, 1.0
        for _ in range(16):
            bound = implied(operator, lowered)
            if bound <= upper:
                break
            step = upper / bound * (1 - 4 * UNIT)
            lowered, factor = times(lowered, step), factor * step
        else:
            factor = 0.0
        if factor < 1 - _LEEWAY:
            raise Refuted(f"the proof gives {implied(operator, proof):.9g}, the certificate states {upper:.9g}")
        self.prove(operator, lowered)

    def prove(self, operator: Operator, proof: Proof) -> None:
        """Nothing, when every norm that the proof states is shown.

        Errors: Refuted.
        """
        if isinstance(proof, DiagonalProof):
            return
        if isinstance(proof, CopiesProof):
            if not isinstance(operator, Indexing) or operator.copies != proof.copies:
                met = operator.copies if isinstance(operator, Indexing) else "none"
                raise Refuted(f"copies is {proof.copies} in the certificate, {met} in the model")
            return
        if isinstance(proof, ProductProof):
            for part, one in zip(parts_of(operator, proof), proof.parts, strict=True):
                self.prove(part, one)
            return
        if isinstance(proof, ZeroProof) or getattr(proof, "mu", None) == 0:
            self._zero(operator)
        elif isinstance(proof, LatticesProof):
            self._lattices(operator, proof, implied(operator, proof))
        elif isinstance(operator, Dense) and isinstance(proof, MatrixProof):
            matrix = _numbers(operator.matrix.detach().cpu())
            self._require_memory(24 * min(matrix.shape) ** 2)
            if not self._arithmetic(min(matrix.shape)).matrix_below(matrix, proof.mu):
                raise Refuted(f"mu {proof.mu:.9g} is not proved")
        elif isinstance(operator, Convolution | InfiniteConvolution | Padded):
            self._convolution(operator, proof)
        else:
            raise Refuted(f"a {type(proof).__name__} proves nothing of a {type(operator).__name__}")

    @staticmethod
    def _zero(operator: Operator) -> None:
        if isinstance(operator, Dense):
            values = numbers(operator.matrix)
        elif isinstance(operator, Convolution | InfiniteConvolution | Padded):
            inner = operator.convolution if isinstance(operator, Padded) else operator
            axes = axes_of(operator)
            if any(axis.inputs is not None and len(axis.places) == 0 for axis in axes):
                return
            values = numbers(inner.weight)
            if np.isfinite(values).all() and not nonzero_entries(values, axes):
                return
        elif isinstance(operator, Diagonal):
            values = numbers(operator.gain)
        else:
            raise Refuted(f"a zero proves nothing of a {type(operator).__name__}")
        if np.any(values != 0):
            raise Refuted("the weights are not all zero")

    def _arithmetic(self, side: int) -> Arithmetic:
        if side <= self.limits.ball_side:
            from lipcheck.verification.balls import Balls

            self.arithmetic = "balls" if self.arithmetic == "exact" else self.arithmetic
            balls: Arithmetic = Balls()
            return balls
        self.arithmetic = "float64"
        return _Float64()

    def _group_matrix(
        self, weight: Array, exponent: int, axes: list[Axis], mu: float, error: float, where: str
    ) -> None:
        """One group's finite operator, its weights scaled by 2^-exponent, is below mu."""
        matrix = finite_matrix(weight, axes)
        scaled = down(math.ldexp(mu, -exponent), 2)
        if not self._arithmetic(min(matrix.shape)).matrix_below(matrix, scaled, up(math.ldexp(error, -exponent), 2)):
            raise Refuted(f"mu {mu:.9g} is not proved{where}")

    def _lattices(self, operator: Operator, proof: LatticesProof, upper: float) -> None:
        """Every undilated convolution that the operator is the sum of is bounded by one of the parts."""
        if not isinstance(operator, Convolution) or operator.circular:
            raise Refuted(f"sublattices prove nothing of this {type(operator).__name__}")
        if math.prod(operator.dilation) > _MOST_LATTICES:
            raise Refuted(f"a dilation of {operator.dilation} is not checked")
        for number, one in enumerate(undilated(operator)):
            reasons = []
            for part in proof.parts:
                try:
                    self.check(one, part, upper)
                    break
                except Refuted as reason:
                    reasons.append(str(reason))
            else:
                why = reasons[min(number, len(reasons) - 1)] if reasons else "no proof is given"
                raise Refuted(f"{why} (sublattice {number})")

    def _require_memory(self, needed: int, reason: str = "not checked: it takes {} GB; give more memory") -> None:
        if needed > self.limits.memory:
            raise Refuted(reason.format(f"{needed / 1e9:.2g}"))

    def _convolution(self, operator: Convolution | InfiniteConvolution | Padded, proof: Proof) -> None:
        axes = axes_of(operator)
        if any(axis.inputs is not None and len(axis.places) == 0 for axis in axes):
            return  # nothing is ever read: the zero map
        if isinstance(proof, MatrixProof):
            self._formed(operator, axes, proof)
        elif isinstance(proof, FiniteProof) and not isinstance(operator, InfiniteConvolution):
            self._finite(operator, axes, proof)
        elif isinstance(operator, Padded):
            raise Refuted(f"a {type(proof).__name__} proves nothing of a padding that copies")
        elif isinstance(proof, GridProof):
            self._grid(operator, axes, proof)
        elif isinstance(proof, CellsProof):
            self._cells(operator, axes, proof)
        elif isinstance(proof, GroupsProof) and isinstance(operator, Convolution):
            self._groups(operator, axes, proof)
        elif isinstance(proof, SemifiniteProof) and isinstance(operator, Convolution):
            self._semifinite(operator, axes, proof)
        else:
            raise Refuted(f"a {type(proof).__name__} proves nothing of a {type(operator).__name__}")

    def _formed(
        self, operator: Convolution | InfiniteConvolution | Padded, axes: list[Axis], proof: MatrixProof
    ) -> None:
        """A constant symbol is one matrix a group, and bounds the finite operator; else that operator is formed."""
        too_large = "not checked: it takes {} GB; give more memory"
        if not isinstance(operator, Padded):
            symbols = symbols_for(operator, axes)
            if len(symbols.exponents) == 1:
                grid = Grid((1,) * len(axes), (0,) * len(axes), np.zeros((1, len(axes)), dtype=np.int64))
                if self._arithmetic(symbols.coefficients.shape[2]).first_above(symbols, grid, proof.mu) is None:
                    return
                too_large = f"mu {proof.mu:.9g} is not proved"
        if isinstance(operator, InfiniteConvolution):
            raise Refuted(f"mu {proof.mu:.9g} is not proved by one matrix")
        inner = operator.convolution if isinstance(operator, Padded) else operator
        weight, exponent = scaled_weight(inner)
        entries = math.prod(weight.shape[1:3]) * math.prod((a.outputs or 0) * (a.inputs or 0) for a in axes)
        self._require_memory(40 * entries, too_large)
        error = gamma(math.prod(weight.shape[3:])) * size_bound(operator) if collisions(axes) else 0.0
        for number, group in enumerate(weight):
            where = f" for group {number}" if len(weight) > 1 else ""
            self._group_matrix(group, exponent, axes, proof.mu, error, where)

    def _grid(self, operator: Convolution | InfiniteConvolution, axes: list[Axis], proof: GridProof) -> None:
        symbols = symbols_for(operator, axes)
        self._require_grid(operator, axes, symbols, proof)
        self._frequencies(symbols, Grid(proof.points, proof.half, frequencies(proof.points, proof.half)), proof.mu)

    def _frequencies(self, symbols: Symbols, grid: Grid, mu: float) -> None:
        above = self._arithmetic(symbols.coefficients.shape[2]).first_above(symbols, grid, mu)
        if above is not None:
            group = f" of group {above[0]}" if len(symbols.size) > 1 else ""
            place = tuple(grid.index[above[1]].tolist())
            raise Refuted(f"mu {mu:.9g} is not proved at frequency {place} of {grid.spread}{group}")

    def _require_grid(
        self, operator: Convolution | InfiniteConvolution, axes: list[Axis], symbols: Symbols, proof: GridProof
    ) -> None:
        """The grid's largest norm, corrected where the proof says so, bounds the operator.

        Errors: Refuted naming the first axis on which it does not.
        """
        if not len(axes) == len(proof.points) == len(proof.half) == len(proof.corrected):
            raise Refuted(f"the grid has {len(proof.points)} axes, the operator {len(axes)}")
        degrees = symbols.exponents.max(0) - symbols.exponents.min(0)
        each = zip(axes, degrees.tolist(), proof.points, proof.half, proof.corrected, strict=True)
        if min(proof.points) < 1 or math.prod(proof.points) > _MOST or not set(proof.half) <= {0, 1}:
            raise Refuted(f"a grid of {'×'.join(map(str, proof.points))} points, half {proof.half}, is not checked")
        for number, (axis, degree, points, half, corrected) in enumerate(each):
            if degree == 0:
                continue  # the symbol does not depend on this frequency
            spread = f"the grid of {'×'.join(map(str, proof.points))} points"
            if axis.circular:
                exact = axis.inputs == axis.stride * points and axis.outputs == points and half == 0 and not corrected
                if not exact:
                    raise Refuted(f"{spread} is not the circular one on axis {number}: needs {axis.outputs}, half 0")
            elif corrected:
                if points <= degree:
                    raise Refuted(f"{spread} does not resolve degree {degree} on axis {number}")
            elif axis.inputs is None:
                raise Refuted(f"{spread} is not corrected on axis {number}, which has no end")
            elif not embeds(axis, points):
                padding = -int(axis.starts[0])
                raise Refuted(
                    f"{spread} does not embed axis {number}, an input of {axis.inputs} with padding {padding}: "
                    f"needs {needed_points(axis)}"
                )

    def _cells(self, operator: Convolution | InfiniteConvolution, axes: list[Axis], proof: CellsProof) -> None:
        """Every cell's centre below mu times its share, and the cells a covering."""
        if any(axis.circular for axis in axes):
            raise Refuted("cells prove nothing of circular padding")
        # The supremum over all frequencies is that of the reduced symbol, whether the input has an end or not.
        symbols = reduced(symbols_of(operator, axes))
        degrees = tuple(int(d) for d in symbols.exponents.max(0) - symbols.exponents.min(0))
        if len(proof.points) != len(degrees):
            raise Refuted(f"the cells have {len(proof.points)} axes, the operator {len(degrees)}")
        if proof.degrees != degrees:
            raise Refuted(f"degrees is {proof.degrees} in the certificate, {degrees} in the model")
        by_level = self._cells_by_level(proof, [d > 0 for d in degrees])
        missing = uncovered(by_level, proof.points, [d > 0 for d in degrees])
        if missing is not None:
            raise Refuted(f"no cell covers {missing[1:]} of level {missing[0]}")
        for level, cells in sorted(by_level.items()):
            points = tuple(n << level if d else n for n, d in zip(proof.points, degrees, strict=True))
            mu = proof.mu * cell_share(degrees, points) * (1 - 4 * UNIT)
            grid = Grid(points, (1,) * len(points), np.array(sorted(cells), dtype=np.int64))
            above = self._arithmetic(symbols.coefficients.shape[2]).first_above(symbols, grid, mu)
            if above is not None:
                place = tuple(grid.index[above[1]].tolist())
                raise Refuted(f"mu {proof.mu:.9g} is not proved on cell {place} of {grid.spread}")

    @staticmethod
    def _cells_by_level(proof: CellsProof, halved: list[bool]) -> dict[int, set[tuple[int, ...]]]:
        if min(proof.points) < 1 or math.prod(proof.points) > _MOST:
            raise Refuted(f"{'×'.join(map(str, proof.points))} cells are not checked")
        found: dict[int, set[tuple[int, ...]]] = {}
        for level, *cell in proof.cells:
            points = [n << level if h else n for n, h in zip(proof.points, halved, strict=True)] if level >= 0 else []
            if not 0 <= level <= _FINEST or len(cell) != len(points) or max(points) > 1 << 50:
                raise Refuted(f"cell {cell} of level {level} does not exist")
            if not all(0 <= c < n for c, n in zip(cell, points, strict=True)):
                raise Refuted(f"cell {cell} of level {level} does not exist")
            found.setdefault(level, set()).add(tuple(cell))
        return found

    def _groups(self, operator: Convolution, axes: list[Axis], proof: GroupsProof) -> None:
        """Each group below mu on one of its grids, or else as a matrix."""
        if len(proof.points) != len(axes):
            raise Refuted(f"the grid has {len(proof.points)} axes, the operator {len(axes)}")
        if min(proof.points) < 1 or math.prod(proof.points) > _MOST:
            raise Refuted(f"a grid of {'×'.join(map(str, proof.points))} points is not checked")
        symbols = symbols_of(operator, axes)
        corrected = tuple(
            not axis.circular and axis.degree > 0 and not embeds(axis, points)
            for axis, points in zip(axes, proof.points, strict=True)
        )
        halves = [(0,) if axis.circular or m == 1 else (0, 1) for axis, m in zip(axes, proof.points, strict=True)]
        left = list(range(len(symbols.size)))
        degrees = [axis.degree if c else 0 for axis, c in zip(axes, corrected, strict=True)]
        share = share_of(degrees, proof.points)
        reasons: list[str] = []
        for half in itertools.product(*halves):
            try:
                self._require_grid(operator, axes, symbols, GridProof(proof.mu, proof.points, half, corrected))
            except Refuted as refuted:
                reasons.append(str(refuted))
                continue
            grid = Grid(proof.points, half, frequencies(proof.points, half))
            left = self._groups_above(symbols, left, grid, proof.mu * share * (1 - 4 * UNIT))
        weight, exponent = scaled_weight(operator)
        for group in left:
            entries = math.prod(weight.shape[1:3]) * math.prod((a.outputs or 0) * (a.inputs or 0) for a in axes)
            if 40 * entries > min(self.limits.memory, 1 << 31):
                reason = reasons[0] if reasons else f"on any grid of {'×'.join(map(str, proof.points))}"
                raise Refuted(f"mu {proof.mu:.9g} is not proved for group {group}: {reason}")
            error = gamma(math.prod(weight.shape[3:])) * symbols.largest() if collisions(axes) else 0.0
            self._group_matrix(weight[group], exponent, axes, proof.mu, error, f" for group {group}")

    def _groups_above(self, symbols: Symbols, groups: list[int], grid: Grid, mu: float) -> list[int]:
        """The groups that are not shown to be below mu on this grid."""
        arithmetic = self._arithmetic(symbols.coefficients.shape[2])

        def shown(some: list[int]) -> bool:
            part = replace(symbols, coefficients=symbols.coefficients[some], size=symbols.size[some])
            return arithmetic.first_above(part, grid, mu) is None

        return [] if not groups or shown(groups) else [group for group in groups if not shown([group])]

    def _semifinite(self, operator: Convolution, axes: list[Axis], proof: SemifiniteProof) -> None:
        embedded = [a for a in range(len(axes)) if a not in proof.finite]
        if (
            not embedded
            # Named twice, an axis would stand twice in the weights' shape.
            or len(set(proof.finite)) != len(proof.finite)
            or not set(proof.finite) <= set(range(len(axes)))
            or not len(embedded) == len(proof.points) == len(proof.half)
        ):
            raise Refuted(f"finite axes {proof.finite} and a grid of {len(proof.points)} do not make {len(axes)} axes")
        symbols = symbols_of(operator, axes)
        part = replace(symbols, exponents=symbols.exponents[:, embedded])
        straight = (False,) * len(embedded)
        grid_proof = GridProof(proof.mu, proof.points, proof.half, straight)
        self._require_grid(operator, [axes[a] for a in embedded], part, grid_proof)
        grid = Grid(proof.points, proof.half, frequencies(proof.points, proof.half))
        weight, exponent = scaled_weight(operator)
        self.arithmetic = "float64"
        mu = down(math.ldexp(proof.mu, -exponent), 2)
        for group, size in zip(weight, symbols.size.tolist(), strict=True):
            row = semifinite_above(group, axes, sorted(proof.finite), grid, mu, size, self.limits.memory)
            if row is not None:
                place = tuple(grid.index[row].tolist())
                raise Refuted(f"mu {proof.mu:.9g} is not proved at frequency {place} of {grid.spread}")

    def _finite(self, operator: Convolution | Padded, axes: list[Axis], proof: FiniteProof) -> None:
        if not 0 <= proof.axis < len(axes):
            raise Refuted(f"axis is {proof.axis} in the certificate, the operator has {len(axes)}")
        inner = operator.convolution if isinstance(operator, Padded) else operator
        weight, exponent = scaled_weight(inner)
        self.arithmetic = "float64"
        mu, size = down(math.ldexp(proof.mu, -exponent), 2), up(math.ldexp(size_bound(operator), -exponent), 2)
        for number, group in enumerate(weight):
            if not finite_below(group, axes, proof.axis, mu, size, self.limits.memory):
                where = f" for group {number}" if len(weight) > 1 else ""
                raise Refuted(f"mu {proof.mu:.9g} is not proved of the finite operator{where}")


def uncovered(
    by_level: dict[int, set[tuple[int, ...]]], points: Sequence[int], halved: Sequence[bool]
) -> tuple[int, ...] | None:
    """The level and index of a cell that nothing covers, None when the cells and their mirror images cover the torus.

    A cell of level l + 1 is one of the children of its parent at level l, which is covered when all its children are.
    """
    covered: set[tuple[int, ...]] = set()
    sides = list(itertools.product(*((0, 1) if h else (0,) for h in halved)))
    for level in range(max(by_level, default=0), 0, -1):
        covered |= by_level.get(level, set())
        parents = {tuple(c >> 1 if h else c for c, h in zip(cell, halved, strict=True)) for cell in covered}
        for parent in parents:
            for side in sides:
                child = tuple(2 * c + s if h else c for c, s, h in zip(parent, side, halved, strict=True))
                if child not in covered:
                    return (level, *child)
        covered = parents
    covered |= by_level.get(0, set())
    for cell in itertools.product(*map(range, points)):
        mirror = tuple(n - 1 - c for n, c in zip(points, cell, strict=True))
        if cell not in covered and mirror not in covered:
            return (0, *cell)
    return None


def _numbers(matrix: Any) -> Array:
    """A torch matrix as numpy, in its own precision where numpy has it."""
    numbers: Array = (matrix if str(matrix.dtype) in ("torch.float32", "torch.float64") else matrix.double()).numpy()
    return numbers
