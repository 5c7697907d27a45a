"""Symbols of one row, as depthwise convolutions have: F(w) is a vector, its norm needs no factorisation.

So every group is bounded at every frequency, on every candidate grid, and keeps the best of its grids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.symbol import Grid, Symbol


@dataclass(frozen=True, slots=True, eq=False)
class GroupBounds:
    """||F|| <= upper for each group, and where each came closest: at a place of one of the candidate grids.

    Shapes: `upper` (groups,) float64; `chosen` and `place` (groups,) index `grids` and that grid's `indices`.
    """

    upper: Tensor
    grids: Sequence[Grid]
    chosen: Tensor
    place: Tensor

    @property
    def top(self) -> int:
        """The group whose bound is largest."""
        return int(self.upper.argmax())

    def grid(self, group: int) -> Grid:
        """The grid that bounds a group best."""
        return self.grids[int(self.chosen[group])]

    def angle(self, group: int) -> tuple[float, ...]:
        """The highest frequency of a group on that grid."""
        grid = self.grid(group)
        turns = grid.indices()[int(self.place[group])].tolist()
        return tuple(math.pi * t / m for t, m in zip(turns, grid.points, strict=True))


def bound_groups(symbol: Symbol, grids: Sequence[Grid], device: torch.device, memory: int) -> GroupBounds:
    """The bounds of all groups of a symbol with one row or one column.

    Shapes: coefficients (groups, exponents, 1, columns) of the wide symbol.
    """
    coefficients = symbol.wide.coefficients[:, :, 0]
    groups, taps, columns = coefficients.shape
    # Each group near one by itself: squares of what lies far below the largest group would vanish.
    largest = coefficients.abs().amax((1, 2)).double().cpu()
    exponents = torch.where(largest > 0, torch.frexp(largest).exponent, -1074).tolist()
    scaled = coefficients.double() * _powers([-(e // 2) for e in exponents], coefficients.device)
    scaled = (scaled * _powers([e // 2 - e for e in exponents], coefficients.device)).to(device)
    # |F| of what is summed, and the roundings of F, of the squares and of their sum.
    magnitude = scaled.abs().sum(1).square().sum(1).sqrt() * (1 + rounding.gamma(taps + columns + 8))
    error = magnitude * rounding.gram_error(taps + columns, taps)
    upper = torch.full((groups,), math.inf, dtype=torch.float64)
    chosen, places = torch.zeros(groups, dtype=torch.long), torch.zeros(groups, dtype=torch.long)
    for number, grid in enumerate(grids):
        squares, place = _largest_squares(scaled, symbol.exponents, grid, memory)
        norms = squares.sqrt() * (1 + rounding.gamma(columns + 8)) + error + rounding.UNDERFLOW
        found = (norms * (1 + 8 * rounding.UNIT) / grid.share * (1 + 4 * rounding.UNIT)).cpu()
        places = torch.where(found < upper, place.cpu(), places)
        chosen = torch.where(found < upper, number, chosen)
        upper = torch.minimum(upper, found)
    unscaled = [rounding.scale_up(bound, e) for bound, e in zip(upper.tolist(), exponents, strict=True)]
    return GroupBounds(torch.tensor(unscaled, dtype=torch.float64), grids, chosen, places)


def _powers(exponents: list[int], device: torch.device) -> Tensor:
    """2^e for each group. Shapes: (groups, 1, 1)."""
    return torch.tensor([2.0**e for e in exponents], dtype=torch.float64).reshape(-1, 1, 1).to(device)


def _largest_squares(scaled: Tensor, exponents: Tensor, grid: Grid, memory: int) -> tuple[Tensor, Tensor]:
    """The largest |F|^2 on the grid and its place in `grid.indices`, per group. Shapes: scaled (groups, taps, c)."""
    groups, taps, columns = scaled.shape
    flat = scaled.transpose(0, 1).reshape(taps, groups * columns)
    index = grid.indices()
    top = torch.full((groups,), -1.0, dtype=torch.float64, device=scaled.device)
    where = torch.zeros(groups, dtype=torch.long, device=scaled.device)
    step = max(1, min(memory, 64 << 20) // (64 * groups * columns))
    for start in range(0, len(index), step):
        cosine, sine = grid.phases(index[start : start + step], exponents)
        squares = (cosine.to(scaled) @ flat).square() + (sine.to(scaled) @ flat).square()
        values, places = squares.reshape(-1, groups, columns).sum(2).max(0)
        where = torch.where(values > top, places + start, where)
        top = torch.maximum(values, top)
    return top, where
