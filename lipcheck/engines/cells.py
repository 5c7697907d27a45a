"""One proof for a block of neighbouring frequencies of a grid, in place of one for each.

Let mu' be the largest norm on the grid, taken at the point g, and v a unit vector with ||F(g) v|| = mu'. Some axes are
fine: m_a points for a degree D_a. Hold the others at g's; then f(w) = ||F(w) v||^2 is a trigonometric polynomial of
degree D_a along each fine axis, and by Ehlich and Zeller 0 <= f <= M with M = (mu' / cos A)^2, A = sum of
pi D_a / (2 m_a): the cell theorem of `branch` with the grid's points as centres, none of which is above mu'. With
theta = arccos(2 f / M - 1), theta(g) = 2 A, and by Bernstein and Szego theta changes by at most D_a per unit of w_a. So
at a point c within pi t_a / m_a of g along each fine axis, theta(c) <= 2 A + 2 B, B = sum of pi D_a t_a / (2 m_a), and
where A + B < pi / 2

    ||F(c)||^2 >= f(c) >= mu'^2 cos^2(A + B) / cos^2(A).

Hence, if ||F(c)|| <= mu cos(A + B) / cos(A) is proved at the centre c of each of some blocks of the grid's points, and
||F|| <= mu at every point in none of them, then mu' <= mu: mu' > mu would contradict the proof where g lies.
What was proved stays proved when mu is raised. One of each pair of points +-w suffices, as ||F(-w)|| = ||F(w)||.
Sources: those of `branch`; maths, sections 3 and 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.symbol import Grid

# Points of a block along each fine axis, from the coarsest on, and the fewest frequencies that are worth the trouble.
SPANS = (8, 4, 2)
FEWEST = 64
# Blocks that are tried before a whole level is: one in so many, and no more than so many.
_ONE_IN, _TRIED = 8, 24
# An axis is fine with so many points per degree: the least with which a block of two loses less than a tenth.
_FINE = 12


def fine_axes(degrees: tuple[int, ...], grid: Grid) -> list[int]:
    """The axes along which blocks extend."""
    return [axis for axis, (d, m) in enumerate(zip(degrees, grid.points, strict=True)) if d and m >= _FINE * d]


def stride(count: int) -> int:
    """How far apart the blocks are that are tried first, of so many."""
    return max(min(_ONE_IN, count), count // _TRIED)


def block_share(degrees: tuple[int, ...], grid: Grid, axes: list[int], span: int) -> float:
    """At most cos(A + B) / cos(A) for blocks of `span` points along each of the axes; 0 where nothing is sure.

    The centre is span - 1 half steps of pi / m from the outermost points. `cell_share` is below the cosine that it
    stands for by less than 64 units.
    """
    points = tuple(grid.points[axis] for axis in axes)
    if sum(degrees[axis] * span / grid.points[axis] for axis in axes) >= 0.999:
        return 0.0
    both = rounding.cell_share(tuple(degrees[axis] * span for axis in axes), points)
    alone = rounding.cell_share(tuple(degrees[axis] for axis in axes), points) + 64 * rounding.UNIT
    return max(0.0, rounding.down(both / rounding.up(alone), 2))


def blocks(grid: Grid, axes: list[int], span: int, group: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks that hold these frequencies of groups: each one's group and centre, and each frequency's block.

    Shapes: group (n,) and index (n, axes), in half steps; the results (blocks,), (blocks, axes) and (n,).
    """
    corner = index.clone()
    for axis in axes:
        half = grid.half[axis]
        first = (index[:, axis] - half) // 2
        corner[:, axis] = 2 * (first - first % span) + half
    key = group.clone()
    for axis, m in enumerate(grid.points):
        key = key * (2 * m) + corner[:, axis]
    found, inside = torch.unique(key, return_inverse=True)
    some = torch.empty(len(found), dtype=torch.long)
    some[inside] = torch.arange(len(key))
    centre = corner[some]
    centre[:, axes] += span - 1
    return group[some], centre, inside
