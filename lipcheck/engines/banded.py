"""Whether a banded symmetric matrix is below mu^2, proved by one Cholesky factorisation that never holds the square.

The matrix arrives in block rows and only a sliding window of it exists. Nothing about the triangular solves or the
factorisation of a panel is trusted: each panel's residual is computed, so any device and any library will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck import rounding

# Columns eliminated at once, and columns of the trailing matrix that are updated at once.
_PANEL = 512
_TILE = 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """A symmetric matrix of `blocks` x `blocks` square blocks of order `block`, zero outside a band.

    Blocks (t, t') with |t - t'| > reach are zero, and so are entries more than `width` off the diagonal.
    """

    blocks: int
    block: int
    reach: int
    width: int

    @property
    def order(self) -> int:
        return self.blocks * self.block

    @property
    def step(self) -> int:
        """How many blocks are eliminated before the window moves on."""
        return min(self.blocks, max(1, _PANEL // self.block))

    @property
    def window(self) -> int:
        """The order of the largest part of the matrix that exists at a time."""
        return min(self.blocks, self.step + self.reach) * self.block

    def panels(self, columns: int, active: int) -> Iterator[tuple[int, int, int]]:
        """First column, end column and end row of each panel among the first `columns` of `active` rows."""
        for start in range(0, columns, _PANEL):
            end = min(columns, start + _PANEL)
            yield start, end, min(active, end + self.width)

    @property
    def flops(self) -> float:
        """Floating-point operations of the factorisation."""
        total = 0.0
        for first in range(0, self.blocks, self.step):
            columns = min(self.step, self.blocks - first) * self.block
            active = min(self.blocks - first, self.step + self.reach) * self.block
            for start, end, last in self.panels(columns, active):
                wide, below = float(end - start), float(last - end)
                total += wide**3 / 3 + below * wide**2 + 2 * (below + wide) * wide**2
                total += below * (below + min(below, _TILE)) * wide
        return total

    @property
    def memory(self) -> int:
        """Bytes of the window, a block row and the largest panel with its residual."""
        panel = min(_PANEL, self.order)
        rows = 2 * self.block * (min(self.reach, self.blocks - 1) + 1) * self.block
        return 8 * (self.window**2 + rows + 4 * panel * min(self.window, self.width + 2 * panel) + 4 * panel**2)


def below(row: Callable[[int], Tensor], layout: Layout, mu: float, blur: float, device: torch.device) -> bool:
    """Whether it is proved that H <= mu^2, H being within `blur` of the matrix whose lower block rows are given.

    M = (mu^2 - s) I - H^ is factored, H^ the given matrix and s = blur + reserve. Where `factorisation_residual`
    comes out as at most the reserve, M >= -reserve, so H <= H^ + blur <= mu^2. False proves nothing.

    Shapes: row(t) is (block, (r + 1) block) with r = min(reach, t): the blocks (t, t - r) ... (t, t), of the last of
    which only the lower triangle is read. Units: mu^2 and the matrix near one, so that underflow stays below
    rounding.UNDERFLOW. Source: Rump 2006; Higham 2002, chapter 10.
    """
    budget = mu * mu * (1 - 8 * rounding.UNIT)
    reserve = 2 * _error(layout, 16 * rounding.UNIT * budget * layout.order**0.5, layout.order * budget, budget)
    # The diagonal's own rounding is at most a unit of it.
    diagonal = budget * (1 - 8 * rounding.UNIT) - (reserve + blur) * (1 + 1e-6)
    if not diagonal > 0:
        return False
    residual = factorisation_residual(row, layout, diagonal, device)
    return residual <= reserve


def factorisation_residual(
    row: Callable[[int], Tensor], layout: Layout, diagonal: float, device: torch.device
) -> float:
    """At least ||M - L L*||_2 for M = diagonal I - H^ and some real L, so that M >= -it; inf where there is no L.

    Right-looking: for each panel of columns, L_p is computed by whatever means, then the trailing matrix S becomes
    S - L_p L_p^T, by products whose sums may take any order. Let rho be the exact residual of the panels' columns when
    their turn came and delta the rounding of the updates; then M - L L^T = rho - delta, entry by entry. rho is
    computed, with its own rounding; delta is a priori: `rounding.factorisation_error`.
    """
    b = layout.block
    window = torch.empty(layout.window, layout.window, dtype=torch.float64, device=device)
    squares = torch.zeros((), dtype=torch.float64, device=device)
    trace = torch.zeros((), dtype=torch.float64, device=device)
    loaded = 0
    for first in range(0, layout.blocks, layout.step):
        if first:
            _slide(window, layout.step * b, (loaded - first) * b)
        for t in range(loaded, min(layout.blocks, first + layout.step + layout.reach)):
            _load(window, row(t), (t - first) * b, diagonal)
            loaded = t + 1
        columns = min(layout.step, layout.blocks - first) * b
        for start, end, last in layout.panels(columns, (loaded - first) * b):
            panel = window[start:last, start:end]
            factor = _panel_factor(panel, end - start)
            if factor is None:
                return math.inf
            residual = torch.addmm(panel, factor, factor[: end - start].T, alpha=-1)
            residual[: end - start].tril_()
            squares += residual.square_().sum()
            trace += factor.square().sum()
            _update(window[end:last, end:last], factor[end - start :])
    certain = 1 + rounding.gamma(layout.order * (layout.width + 2 * _PANEL) + 64)
    # Each entry below the diagonal stands above it too.
    known = math.sqrt(2 * float(squares)) * certain
    return _error(layout, known, float(trace) * certain, diagonal)


def _error(layout: Layout, residual: float, trace: float, diagonal: float) -> float:
    panel = min(_PANEL, layout.order)
    return rounding.factorisation_error(
        residual, trace, diagonal, order=layout.order, band=layout.width + panel, panel=panel
    )


def _slide(window: Tensor, by: int, kept: int) -> None:
    """The last `kept` rows and columns of the active part move to the front, in strips that do not overlap."""
    for low in range(0, kept, by):
        high = min(kept, low + by)
        window[low:high, :high] = window[low + by : high + by, by : high + by].clone()


def _load(window: Tensor, row: Tensor, start: int, diagonal: float) -> None:
    """A block row of diagonal I - H^ at rows start ... of the window."""
    end = start + row.shape[0]
    window[start:end, : end - row.shape[1]] = 0
    torch.neg(row, out=window[start:end, end - row.shape[1] : end])
    window[start:end, start:end].diagonal().add_(diagonal)


def _panel_factor(panel: Tensor, columns: int) -> Tensor | None:
    """The columns of the Cholesky factor, None where they do not exist."""
    top, info = torch.linalg.cholesky_ex(panel[:columns])
    if int(info) != 0:
        return None
    rest = torch.linalg.solve_triangular(top.T, panel[columns:], upper=True, left=False)
    return torch.cat([top.tril_(), rest])


def _update(trailing: Tensor, factor: Tensor) -> None:
    """The lower triangle of trailing - factor factor^T, in place; what stands above it is never read."""
    for start in range(0, len(factor), _TILE):
        tile = factor[start : start + _TILE]
        trailing[start:, start : start + _TILE].addmm_(factor[start:], tile.T, alpha=-1)
