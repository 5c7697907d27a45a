"""Hypothesis strategies for operators: every shape of convolution, filled with weights that are hard in some way."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcheck.operators import Convolution, output_length

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SCALES = (1.0, 1.0, 1e30, 1e-30)


def _gaussian(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=noise, dtype=torch.float64)


def _signs(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    """Entries -1, 0 and 1: exact arithmetic, ties, whole channels of zeros."""
    return torch.randint(-1, 2, shape, generator=noise).double()


def _nothing(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def _box(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    """A low-pass filter: the symbol's peak stands at frequency zero."""
    return torch.ones(shape, dtype=torch.float64)


def _high_pass(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    """The box with alternating signs: the peak stands at frequency pi."""
    signs = torch.ones(shape, dtype=torch.float64)
    for axis in range(2, len(shape)):
        signs = signs * (-1.0) ** torch.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - axis - 1))
    return signs


def _rank_one(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    left, right = _gaussian(shape[:1], noise), _gaussian(shape[1:], noise)
    return left.reshape(-1, *(1,) * (len(shape) - 1)) * right


def _loud_output(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    """One output channel 1e8 times the others."""
    weight = _gaussian(shape, noise)
    weight[1:] *= 1e-8
    return weight


def _loud_input(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    weight = _gaussian(shape, noise)
    weight[:, 1:] *= 1e-8
    return weight


def _graded(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    """Entries over twelve orders of magnitude: ill-conditioned."""
    return _gaussian(shape, noise) * 10.0 ** torch.randint(-12, 1, shape, generator=noise)


def _single_tap(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    """A shift with orthogonal channels where they fit: the symbol is flat."""
    weight = torch.zeros(shape, dtype=torch.float64)
    tap = tuple(int(torch.randint(k, (), generator=noise)) for k in shape[2:])
    place: tuple[Any, ...] = (..., *tap)
    weight[place] = torch.eye(*shape[:2], dtype=torch.float64)
    return weight


def _ends(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    """Only the first and the last tap: as many equal peaks as the symbol's degree."""
    weight = torch.zeros(shape, dtype=torch.float64)
    for end in (0, -1):
        place: tuple[Any, ...] = (..., *(end,) * (len(shape) - 2))
        weight[place] += 1
    return weight


CONTENTS = (
    *(_gaussian, _gaussian, _signs, _nothing, _box, _high_pass, _rank_one),
    *(_loud_output, _loud_input, _graded, _single_tap, _ends),
)


@st.composite
def weights(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """A weight of this shape in one of the dtypes that networks are stored in, finite."""
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    weight = draw(st.sampled_from(CONTENTS))(shape, noise)
    dtype = draw(st.sampled_from(DTYPES))
    scale = draw(st.sampled_from(SCALES)) if dtype != torch.float16 else draw(st.sampled_from((1.0, 2.0**10, 1e-4)))
    return (weight * scale).to(dtype)


@st.composite
def matrices(draw: st.DrawFn, side: int = 24) -> Tensor:
    """A matrix with at most `side` rows and columns."""
    shape = (draw(st.integers(1, side)), draw(st.integers(1, side)))
    return draw(weights(shape))


@st.composite
def axes_of(draw: st.DrawFn, longest: int, size: int, padding: str) -> tuple[int, int, int, int, int, int]:
    """Kernel, stride, dilation, left padding, input and output length of one axis.

    Zero padding is what the torch modules offer; `same` pads the right side more where it must; `free` is anything
    that the definition allows: negative and lopsided padding, inputs shorter than the kernel, outputs that only see
    padding.
    """
    k, s, d = draw(st.integers(1, longest)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n, outputs = draw(st.integers(1, size)), draw(st.integers(1, size))
    reach = d * (k - 1) + 1
    if padding == "circular":
        return k, s, d, draw(st.integers(0, reach - 1)), s * outputs, outputs
    if padding == "same":
        return k, 1, d, (reach - 1) // 2, n, n
    if padding == "free":
        return k, s, d, draw(st.integers(-3, reach + 1)), n, outputs
    p = max(draw(st.integers(0, min(3, reach - 1))), math.ceil((reach - n) / 2))
    return k, s, d, p, n, output_length(n, k, s, d, 2 * p)


@st.composite
def convolutions(draw: st.DrawFn, *, paddings: tuple[str, ...] = ("zeros", "same", "free", "circular")) -> Convolution:
    """Convolutions of 1, 2 and 3 axes, small enough to be written out; depthwise where each group has one channel."""
    axes = draw(st.sampled_from((1, 1, 2, 2, 3)))
    longest, size, channels = {1: (5, 12, 4), 2: (5, 5, 3), 3: (3, 3, 2)}[axes]
    padding = draw(st.sampled_from(paddings))
    per_axis = [draw(axes_of(longest, size, padding)) for _ in range(axes)]
    kernel, stride, dilation, offset, input_size, output_size = zip(*per_axis, strict=True)
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    outputs, inputs = draw(st.integers(1, channels)), draw(st.integers(1, channels))
    return Convolution(
        weight=draw(weights((groups * outputs, inputs, *kernel))),
        stride=stride,
        dilation=dilation,
        groups=groups,
        offset=offset,
        input_size=input_size,
        output_size=output_size,
        circular=padding == "circular",
        transposed=draw(st.booleans()),
    )


@st.composite
def convolution_modules(draw: st.DrawFn, channels: int, size: tuple[int, ...]) -> nn.Module:
    """A torch convolution or transposed convolution that fits this input, with random weights and a bias or none."""
    module = draw(_convolution_modules(channels, size))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=noise)
    return module


@st.composite
def _convolution_modules(draw: st.DrawFn, channels: int, size: tuple[int, ...]) -> nn.Module:
    axes = len(size)
    ordinary: Any
    adjoint: Any
    ordinary, adjoint = ((nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d),
                         (nn.Conv3d, nn.ConvTranspose3d))[axes - 1]  # fmt: skip
    kernel = tuple(draw(st.integers(1, 4)) for _ in size)
    dilation = tuple(draw(st.integers(1, 2)) for _ in size)
    stride = tuple(draw(st.integers(1, 3)) for _ in size)
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    outputs = groups * draw(st.integers(1, 2))
    bias = draw(st.booleans())
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    kind = draw(st.sampled_from(("zeros", "same", "circular", "transposed")))
    if kind == "transposed":
        # Not so much padding that nothing is left of the output.
        padding = tuple(draw(st.integers(0, min(2, (r - 1) // 2))) for r in reach)
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        return adjoint(channels, outputs, kernel, stride, padding, extra, groups, bias, dilation)
    if kind == "same":
        return ordinary(channels, outputs, kernel, 1, "same", dilation, groups, bias)
    if kind == "circular":
        # As many outputs as strided inputs, and a wrap of once at most: padding that is the convolution's own.
        kernel = tuple(k - 1 + k % 2 for k in kernel)
        wrap = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        if all(n % s == 0 and p <= n for n, s, p in zip(size, stride, wrap, strict=True)):
            return ordinary(
                channels, outputs, kernel, stride, wrap, dilation, groups, bias, padding_mode="circular"
            )  # fmt: skip
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(max(draw(st.integers(0, 2)), math.ceil((r - n) / 2)) for r, n in zip(reach, size, strict=True))
    return ordinary(channels, outputs, kernel, stride, padding, dilation, groups, bias)
