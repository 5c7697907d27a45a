"""Where the groups of a stack have their largest Gram bounds, kept from one refresh of a penalty to the next.

The search over the grid is what a refresh costs; the frequency at which a layer's norm is taken on moves seldom while
it is trained. So it is sought anew at every fifth refresh, and in between the bound is that at the frequency known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipcheck.engines.literature import gram
from lipcheck.operators import Convolution, InfiniteConvolution

SEARCHED_EVERY = 5


class KeptPeaks:
    """The frequencies of each stack, by its number, and how often they were used."""

    def __init__(self, grid: gram.GridName) -> None:
        self._grid: gram.GridName = grid
        self._kept: dict[int, tuple[int, Tensor]] = {}

    def norms(self, number: int, operator: Convolution | InfiniteConvolution, dtype: torch.dtype) -> Tensor:
        """The Gram bound of each group at its frequency. Gradients flow to the weight. Shapes: (groups,)."""
        uses, places = self._kept.get(number, (0, None))
        # Maps of zeros are left out of a stack, and come back.
        if places is None or uses == SEARCHED_EVERY or len(places) != operator.groups:
            uses, places = 0, gram.peaks(operator, grid=self._grid, dtype=dtype)
        self._kept[number] = uses + 1, places
        return gram.group_norms(operator, grid=self._grid, dtype=dtype, places=places)
