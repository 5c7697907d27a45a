"""The norms that the certified engine encloses, followed through training by power iteration: estimates from below.

||A v|| at the v kept from before, improved by a few steps v <- A* A v / ||A* A v|| whenever it is asked for. Its
gradient is that of the norm once v is the top singular vector (Danskin 1967), whatever moved the weights in between.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipcheck.operators import Convolution, InfiniteConvolution

# Steps from a random start, and from the vector that was kept.
COLD, WARM = 60, 8
# Points per axis, for each unit of the symbol's degree, of the circular convolution that stands for one without end:
# its norm is at least cos(pi / 32) of the supremum per axis.
_POINTS = 16


class TopVectors:
    """The vectors that were kept, one for each map of a stack, by the stack's number."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}

    def norms(self, number: int, operator: Convolution | InfiniteConvolution, maps: int) -> Tensor:
        """||A v|| of each map of a stack, after some steps. Gradients flow to the weight.

        Shapes: the maps' groups stand one map after the other; result (maps,).
        """
        self._kept[number], norms = top_vectors(operator, self._kept.get(number), maps=maps, steps=WARM)
        return norms


def top_vectors(
    operator: Convolution | InfiniteConvolution, start: Tensor | None, *, maps: int = 1, steps: int
) -> tuple[Tensor, Tensor]:
    """The vectors after so many steps, more without a start, and ||A v|| of each map. Gradients flow to the weight.

    Shapes: the maps' groups stand one map after the other; norms (maps,).
    """
    finite = _finite(operator)
    shape = (1, finite.input_channels, *finite.input_size)
    with torch.no_grad():
        fresh = start is None or start.shape != shape
        vector = _start(shape, finite.weight) if start is None or fresh else start.to(finite.weight)
        for _ in range(COLD if fresh else steps):
            vector = _unit(finite.adjoint(finite.forward(_unit(vector, maps))), maps)
        # Of a map of zeros, or of one that took the vector to zero, nothing would ever come back.
        lost = ~(torch.linalg.vector_norm(vector.reshape(maps, -1), dim=1) > 0.5)
        if bool(lost.any()):
            anew = _unit(_start(shape, finite.weight), maps).reshape(maps, -1)
            vector = torch.where(lost[:, None], anew, vector.reshape(maps, -1)).reshape(shape)
    norms: Tensor = torch.linalg.vector_norm(finite.forward(vector).reshape(maps, -1), dim=1)
    return vector, norms


def _finite(operator: Convolution | InfiniteConvolution) -> Convolution:
    """The operator, or a long circular one in place of a convolution without end."""
    if isinstance(operator, Convolution):
        return operator
    kernel = operator.weight.shape[2:]
    outputs = tuple(
        max(1, _POINTS * (d * (k - 1) // s)) if d * (k - 1) // s else 1
        for k, s, d in zip(kernel, operator.stride, operator.dilation, strict=True)
    )
    inputs = tuple(n * s for n, s in zip(outputs, operator.stride, strict=True))
    none = (0,) * len(outputs)
    return Convolution(
        operator.weight, operator.stride, operator.dilation, operator.groups, none, inputs, outputs, circular=True
    )


def _start(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)


def _unit(vector: Tensor, maps: int) -> Tensor:
    """Each map's part scaled to norm one."""
    parts = vector.reshape(maps, -1)
    length = torch.linalg.vector_norm(parts, dim=1, keepdim=True).clamp_min(torch.finfo(vector.dtype).tiny)
    scaled: Tensor = (parts / length).reshape(vector.shape)
    return scaled
