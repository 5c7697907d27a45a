"""The matrices of a convolution on a circular grid: the FFT of its kernel padded to the grid, block by block.

Half of the grid is enough for real weights, as in the published code's rfft2. The FFT goes axis by axis, so that a
block of frequencies of the last axis is all that is ever held.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lipcheck.operators import Convolution

# A transform of so many bytes is always made in one go.
_WHOLE = 1 << 26


def unstrided(operator: Convolution) -> Convolution:
    """The same kernel at every position. Its norm is no less: a stride only removes rows."""
    return replace(operator, stride=(1,) * operator.axes)


def grid_points(operator: Convolution) -> tuple[int, ...]:
    """Points per axis: the input size, in steps of the stride."""
    return tuple(-(-n // s) for n, s in zip(operator.input_size, operator.stride, strict=True))


def folded_kernel(operator: Convolution) -> Tensor:
    """The kernel of stride 1 on the grid that has the same symbol: each phase of the input is a channel of its own.

    Phases that no tap reads are left out. Taps past the end of the grid wrap.
    Shapes: (groups, outputs / groups, phases * inputs / groups, *at most the grid's points).
    """
    grid, axes = grid_points(operator), operator.axes
    weight = operator.weight.detach().reshape(operator.groups, -1, *operator.weight.shape[1:])
    taps = [[divmod(d * k, s) for k in range(size)] for d, s, size in _per_axis(operator)]
    phases = list(itertools.product(*(sorted({phase for _, phase in axis}) for axis in taps)))
    widths = [min(m, 1 + max(q for q, _ in axis)) for m, axis in zip(grid, taps, strict=True)]
    kernel = weight.new_zeros(*weight.shape[:2], len(phases), weight.shape[2], *widths)
    for place in itertools.product(*(range(size) for size in operator.kernel)):
        at = [taps[axis][place[axis]] for axis in range(axes)]
        phase = phases.index(tuple(a for _, a in at))
        target, source = kernel[:, :, phase], weight
        for (q, _), m, k in zip(reversed(at), reversed(grid), reversed(place), strict=True):
            target, source = target[..., q % m], source[..., k]
        target += source
    return kernel.flatten(2, 3)


def _per_axis(operator: Convolution) -> Iterator[tuple[int, int, int]]:
    return zip(operator.dilation, operator.stride, operator.kernel, strict=True)


def frequencies(operator: Convolution) -> int:
    """How many frequencies `spectrum` yields, each with one matrix a group."""
    *others, last = grid_points(operator)
    return math.prod(others) * (last // 2 + 1)


def spectrum(operator: Convolution, memory: int) -> Iterator[Tensor]:
    """The matrices at all frequencies of half the grid, tall ones, in the weights' precision.

    Shapes: blocks of (frequencies * groups, rows, columns), rows >= columns, about `memory` bytes each, or the least
        that a block can be.
    """
    kernel, grid = folded_kernel(operator), grid_points(operator)
    if kernel.shape[1] < kernel.shape[2]:
        kernel = kernel.transpose(1, 2)
    each = math.prod(kernel.shape[:3]) * 2 * kernel.element_size()
    step = max(1, memory // (each * math.prod(grid[:-1])))
    others = tuple(range(3, kernel.dim() - 1))
    for block in _along_last(kernel, grid[-1], step, memory):
        if others:
            block = torch.fft.fftn(block, s=grid[:-1], dim=others)
        matrices = block.flatten(3).permute(3, 0, 1, 2).flatten(0, 1)
        # The FFT of a block may be larger than what one product should take.
        yield from matrices.split(max(1, memory * kernel.shape[0] // each))


def _along_last(kernel: Tensor, points: int, step: int, memory: int) -> Iterator[Tensor]:
    """The transform along the last axis at half of its frequencies, so many at a time.

    Where the FFT of the whole would not fit into `memory`, each block is a product with its own waves.
    """
    count = points // 2 + 1
    if 2 * kernel.element_size() * kernel.numel() // kernel.shape[-1] * count <= max(memory, _WHOLE):
        yield from torch.fft.rfft(kernel, n=points, dim=-1).split(step, dim=-1)
        return
    place = torch.arange(kernel.shape[-1])
    for part in torch.arange(count).split(step):
        angle = -2 * math.pi / points * (torch.outer(place, part) % points).double()
        wave = torch.polar(torch.ones_like(angle), angle)
        yield torch.complex(kernel @ wave.real.to(kernel), kernel @ wave.imag.to(kernel))
