"""Finite operators: written out, block by block along one axis, or finite along some axes and embedded along others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lipcheck.verification.arithmetic import PHASE, TINY, UNIT, Array, Refuted, gamma
from lipcheck.verification.geometry import Axis, Grid, grid_waves, tap_of
from lipcheck.verification.matrices import norms_below


def finite_matrix(weight: Array, axes: list[Axis]) -> Array:
    """The matrix of one group on finite axes, its rows the outputs at every position. Shapes: weight (o, c, *kernel).

    Where several taps fall on one entry (wrapped or copied inputs) they are added in float64.
    """
    outputs, inputs = weight.shape[:2]
    heights, widths = [axis.outputs or 0 for axis in axes], [axis.inputs or 0 for axis in axes]
    matrix = np.zeros((*heights, *widths, outputs, inputs), dtype=weight.dtype)
    for tap in itertools.product(*(axis.taps for axis in axes)):
        where = [axis.places[axis.places[:, 2] == k] for axis, k in zip(axes, tap, strict=True)]
        if not all(len(places) for places in where):
            continue
        rows, columns = (np.ix_(*(places[:, side] for places in where)) for side in (0, 1))
        matrix[rows + columns] += tap_of(weight, tap)
    order = (*range(len(axes)), 2 * len(axes), *range(len(axes), 2 * len(axes)), 2 * len(axes) + 1)
    formed: Array = matrix.transpose(order).reshape(outputs * math.prod(heights), inputs * math.prod(widths))
    return formed


def collisions(axes: list[Axis]) -> bool:
    """Whether several taps may fall on one entry of the finite matrix, whose sums are then rounded."""
    return any(len(np.unique(axis.places[:, :2], axis=0)) < len(axis.places) for axis in axes)


def finite_below(weight: Array, axes: Sequence[Axis], along: int, mu: float, size: float, memory: int) -> bool:
    """Whether ||A|| <= mu is shown for the finite operator A of one group, block by block along one axis.

    A has blocks A_ij = sum over the taps k at (i, j) of M_k, M_k the matrix of the other axes; its Gram matrix, of the
    smaller side, is banded. Cholesky's recurrence gives the blocks of L row by row; as in `below`, L is not trusted.
    Shapes: weight (outputs, inputs, *kernel); `size` is at least the norm of |A|.
    Errors: Refuted where it takes more than `memory` bytes.
    """
    axis, others = axes[along], [a for n, a in enumerate(axes) if n != along]
    blocks = {k: finite_matrix(weight.take(k, along + 2), others) for k in axis.taps}
    sites, places = axis.outputs or 0, axis.places
    rows, columns = blocks[axis.taps[0]].shape
    if columns * (axis.inputs or 0) < rows * sites:
        blocks = {k: block.T for k, block in blocks.items()}
        sites, places, rows, columns = axis.inputs or 0, places[:, [1, 0, 2]], columns, rows
    meetings = _meetings(places)
    band = max((i - j for i, j in meetings), default=0)
    held = 8 * (rows * rows * (len(axis.taps) * (len(axis.taps) + 1) // 2 + (band + 1) * (band + 2) // 2 + 4))
    if held > memory:
        raise Refuted(f"not checked: it takes {held / 1e9:.1f} GB; give more memory")
    products = {
        (k, m): blocks[k] @ blocks[m].T for k, m in itertools.combinations_with_replacement(axis.taps, 2)
    }  # fmt: skip
    inner, terms = (band + 1) * rows + band + 12, len(axis.taps) ** 2
    rounding = gamma(inner)
    collided = gamma(math.prod(weight.shape[2:])) * size if collisions(others) else 0.0
    left = (mu - collided) * (1 - 8 * UNIT)
    error = gamma(columns + terms + 8) * size * size * (1 + 1e-6) + TINY
    target = left * left * (1 - 16 * UNIT)
    spare = (target * (2 * rows * sites * rounding + 32 * UNIT) + error * (1 + 1e-3)) * (1 + 1e-6)
    if not (left > 0 and target > spare):
        return False
    factor: dict[tuple[int, int], Array] = {}
    remainder = squares = 0.0
    for i in range(sites):
        for j in range(max(0, i - band), i + 1):
            block = np.zeros((rows, rows))
            for (k, m), count in meetings.get((i, j), {}).items():
                block -= count * (products[k, m] if (k, m) in products else products[m, k].T)
            if i == j:
                block[range(rows), range(rows)] += target - spare
            known = range(max(0, i - band), j)
            block -= sum((factor[i, n] @ factor[j, n].T for n in known), np.zeros((rows, rows)))
            try:
                factor[i, j] = (
                    np.linalg.cholesky(block) if i == j else np.linalg.solve(factor[j, j], block.T).T
                )  # fmt: skip
            except np.linalg.LinAlgError:
                return False
            block -= factor[i, j] @ factor[j, j].T
            remainder += float((block**2).sum()) * (1 if i == j else 2)
            squares += float((factor[i, j] ** 2).sum())
        factor = {place: kept for place, kept in factor.items() if place[0] > i - band}
    summing = 1 + gamma(4.0 * rows * rows * (band + 1) * sites + 64)
    total = (math.sqrt(remainder) * (1 + 8 * UNIT) + rounding * squares + 4 * UNIT * target) * summing + TINY
    return bool(total + error <= spare * (1 - 8 * UNIT))


def _meetings(places: Array) -> dict[tuple[int, int], dict[tuple[int, int], int]]:
    """For sites i >= j of one side and taps (k, m): how many sites of the other side k at i and m at j share."""
    at: dict[int, list[tuple[int, int]]] = {}
    for i, other, k in places.tolist():
        at.setdefault(other, []).append((i, k))
    found: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
    for shared in at.values():
        for (i, k), (j, m) in itertools.product(shared, shared):
            if i >= j:
                counts = found.setdefault((i, j), {})
                counts[k, m] = counts.get((k, m), 0) + 1
    return found


def semifinite_above(
    weight: Array, axes: Sequence[Axis], finite: Sequence[int], grid: Grid, mu: float, size: float, memory: int
) -> int | None:
    """The first row of the grid at which ||F(w)|| <= mu is not shown for one group, the axes of `finite` kept finite.

    Shapes: weight (outputs, inputs, *kernel); the grid is one of the other axes; `size` is at least the norm of the
    operator of |W|. Errors: Refuted where it takes more than `memory` bytes.
    """
    embedded = [a for a in range(len(axes)) if a not in finite]
    kept = [axes[a] for a in finite]
    lattices = [axes[a].lattice for a in embedded]
    phases = sorted({tuple(p for _, p in split) for split in itertools.product(*lattices)})
    numbers = list(itertools.product(*(range(len(axes[a].taps)) for a in embedded)))
    exponents = np.array([[lattice[n][0] for lattice, n in zip(lattices, number, strict=True)] for number in numbers])
    outputs, inputs = weight.shape[:2]
    rows = outputs * math.prod(axis.outputs or 0 for axis in kept)
    columns = inputs * len(phases) * math.prod(axis.inputs or 0 for axis in kept)
    held = 16 * (3 * rows * columns + 4 * min(rows, columns) ** 2)
    if held > memory:
        raise Refuted(f"not checked: it takes {held / 1e9:.1f} GB; give more memory")
    share = 1.5 * (gamma(2 * len(numbers) + math.prod(weight.shape[2:]) + 4) + PHASE) * (1 + 1e-6)
    for row in range(len(grid.index)):
        wave = grid_waves(grid.index[row : row + 1], grid.half, grid.points, exponents)[0]
        mixed = np.zeros((outputs, len(phases), inputs, *(weight.shape[a + 2] for a in finite)), dtype=np.complex128)
        for n, number in enumerate(numbers):
            phase = tuple(lattice[m][1] for lattice, m in zip(lattices, number, strict=True))
            part: list[Any] = [slice(None)] * weight.ndim
            for a, m in zip(embedded, number, strict=True):
                part[a + 2] = axes[a].taps[m]
            block = mixed[:, phases.index(phase)]
            assert block.shape == weight[tuple(part)].shape, "each finite axis stands once"
            block += wave[n] * weight[tuple(part)]
        matrix = finite_matrix(mixed.reshape(outputs, -1, *mixed.shape[3:]), kept)
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        bound, sizes = np.array([mu * (1 - 4 * UNIT)]), np.array([size * (1 + 1e-9)])
        if not norms_below(matrix[None], bound, sizes, sizes * share).all():
            return row
    return None


def nonzero_entries(weight: Array, axes: Sequence[Axis]) -> bool:
    """Whether some entry of the operator is not exactly zero: taps that fall on one entry may cancel.

    Shapes: weight (outputs, inputs, *kernel), finite.
    """
    together: list[list[tuple[int, ...]]] = []
    for axis in axes:
        at: dict[tuple[int, int], list[int]] = {}
        for i, j, k in axis.places.tolist():
            at.setdefault((i, j), []).append(k)
        together.append(sorted(set(map(tuple, at.values()))) if axis.inputs is not None else [(k,) for k in axis.taps])
    for sets in itertools.product(*together):
        summed = weight
        for place, taps in enumerate(sets, start=2):
            summed = summed.take(list(taps), place)
        summed = summed.reshape(-1, math.prod(map(len, sets)))
        if any(sum(map(Fraction, row)) != 0 for row in summed[summed.any(1)].tolist()):
            return True
    return False
