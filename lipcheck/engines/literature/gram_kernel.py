"""Gram iteration on the kernel itself: an upper bound at every input size, zero padded or circular.

The Gram operator of a convolution without end is a convolution with the kernel's autocorrelation, Hermitian, and its
square the convolution of that kernel with itself. So with K_1 = K star K*, K_{i+1} = K_i * K_i (after scaling by n_i),
and since no Hermitian operator has a norm above its largest absolute row sum,

    ||A|| <= n_0 sqrt(n_1 sqrt(... sqrt(rho))),    rho = max_o sum_c sum_lag |K_t[o, c, lag]| .

A finite zero-padded convolution is a compression of that without end, hence the bound; the factor lost falls like
(channels * lags)^(1 / 2^(t+1)). A stride is folded first. K_t has 2^t D + 1 lags per axis: on as many frequencies its
symbol does not alias, so the convolutions are done there as products of matrices, and only the last kernel is formed.
Source: Delattre, Barthelemy, Allauzen, Spectral norm of convolutional layers with circular and zero paddings, 2024
(arXiv 2402.00240), on zero padding; the row sums are those of its spectral rescaling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.engines.literature import errors
from lipcheck.engines.literature.frequencies import Samples
from lipcheck.engines.literature.subject import (
    MEMORY,
    Claim,
    Subject,
    normalised,
    nothing,
    power_of,
    reduced,
    rescaled,
    symbol_of,
    weight_of,
)
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution, Dense, InfiniteConvolution
from lipcheck.symbol import Grid, Symbol

ITERATIONS = 5


def spectral_norm(
    operator: Subject, *, iterations: int = ITERATIONS, memory: int = MEMORY, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The row-sum bound after at most so many iterations, at least one. Gradients flow to the weight.

    Fewer are made where the last kernel would not fit into `memory`: every number of them gives a bound.
    """
    exponent = power_of(operator)
    if exponent is None:
        return nothing(operator, dtype)
    symbol = _ordered(symbol_of(normalised(operator, exponent, dtype)))
    kept = 1 if torch.is_grad_enabled() and weight_of(operator).requires_grad else 0
    steps = fitting_iterations(symbol, iterations, memory, kept=kept)
    sums, scales, _ = _iterated(symbol, steps, memory)
    largest = sums.amax(1)
    return rescaled(_unwound(largest, scales, int(_unwound(largest.detach(), scales).argmax()))[0], exponent)


def group_norms(
    operator: Subject, *, iterations: int = ITERATIONS, memory: int = MEMORY, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The row-sum bound of each group by itself, as `spectral_norm`. Gradients flow to the weight.

    Units: the weights should be near one, with no group of zeros. Shapes: (groups,).
    """
    symbol = _in_order(symbol_of(normalised(operator, 0, dtype)))
    steps = fitting_iterations(symbol, iterations, memory, kept=1)
    sums, scales, _ = _iterated(symbol, steps, memory)
    return _unwound(sums.amax(1), scales)


def fitting_iterations(symbol: Symbol, most: int, memory: int, *, kept: int = 0) -> int:
    """How many of at most `most` iterations fit; one in any case. `kept` copies a step stay for the gradient."""
    groups, _, rows, _ = symbol.coefficients.shape
    steps = most
    while steps > 1:
        points = _points(symbol, steps)
        stack = 16 * math.prod(points[:-1]) * (points[-1] // 2 + 1) * groups * rows * rows
        if stack * (4 + 2 * kept * steps) <= memory:
            break
        steps -= 1
    return steps


def _ordered(symbol: Symbol) -> Symbol:
    """The wide symbol on its own lattice, the axis of the highest degree last: half of that one's frequencies do.

    Groups without weights are left out: others hold a weight of 1/2 at least, which no norm is below.
    """
    small = _in_order(symbol)
    loud = errors.entry_sums(small).flatten(1).amax(1) > _least(small)
    return Symbol(small.coefficients[loud], small.exponents)


def _in_order(symbol: Symbol) -> Symbol:
    """The wide symbol on its own lattice, the axis of the highest degree last, with all groups."""
    small = reduced(symbol.wide)
    order = torch.tensor(small.degrees).argsort(stable=True)
    return Symbol(small.coefficients, small.exponents[:, order])


def _points(symbol: Symbol, iterations: int) -> tuple[int, ...]:
    return tuple(2**iterations * degree + 1 for degree in symbol.degrees)


def _iterated(symbol: Symbol, iterations: int, memory: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The row sums of |K_t|, the scales n_0 ... n_{t-1}, and the largest ||X_i||_F over the frequencies, i = 1 ... t.

    Shapes: sums (groups, rows), each of the others (groups,).
    """
    points = _points(symbol, iterations)
    axes = [torch.arange(m) for m in (*points[:-1], points[-1] // 2 + 1)]
    index = 2 * torch.cartesian_prod(*axes).reshape(-1, len(points))
    samples = Samples(symbol, Grid(points, (0,) * len(points)))
    sums = errors.entry_sums(symbol)
    # ||F(w)||_F is at most that of B, so H_0 = F / n_0 has norm at most one.
    scales = [torch.linalg.vector_norm(sums, dim=(1, 2)).clamp_min(_least(symbol)).to(symbol.coefficients.dtype)]
    groups, _, rows, columns = symbol.coefficients.shape
    step = max(1, memory // 8 // (48 * groups * rows * columns))
    current = torch.cat([_first(samples.at(part), scales[0]) for part in torch.split(index, step)])
    sizes = [torch.linalg.vector_norm(current.detach(), dim=(2, 3)).amax(0)]
    for _ in range(1, iterations):
        scales.append(sizes[-1].clamp_min(_least(symbol)))
        half = torch.view_as_complex(torch.view_as_real(current) / scales[-1][:, None, None, None])
        current = half @ half
        sizes.append(torch.linalg.vector_norm(current.detach(), dim=(2, 3)).amax(0))
    return _row_sums(current, points, memory), scales, sizes


def _least(symbol: Symbol) -> float:
    return errors.TINY if symbol.coefficients.dtype == torch.float64 else 1e-9


def _first(matrices: Tensor, scale: Tensor) -> Tensor:
    half = torch.view_as_complex(torch.view_as_real(matrices) / scale[:, None, None, None])
    return half @ half.mH


def _row_sums(stack: Tensor, points: tuple[int, ...], memory: int) -> Tensor:
    """sum over c and all lags of |K[o, c, lag]| of the kernel with these matrices as its symbol.

    The lags l and -l along the last axis have transposed matrices, so half of them are formed: what stands at the
    others is counted by columns. Shapes: stack (frequencies, groups, rows, rows) on half the grid; result (groups,
    rows).
    """
    groups, rows = stack.shape[1:3]
    sizes = (*points[:-1], points[-1] // 2 + 1)
    flat = stack.reshape(len(stack), -1)
    step = max(1, memory // 8 // (32 * math.prod(points)))
    centre, others = [], []
    for part in torch.split(flat, step, dim=1):
        kernel = _kernel(part.reshape(*sizes, -1), points).abs()
        kernel = kernel.reshape(kernel.shape[0], -1, kernel.shape[-1]).sum(1)
        centre.append(kernel[:, 0])
        others.append(kernel[:, 1:].sum(1))
    middle, rest = (torch.cat(parts).reshape(groups, rows, rows) for parts in (centre, others))
    return middle.sum(2) + rest.sum(2) + rest.sum(1)


def _kernel(spectrum: Tensor, points: tuple[int, ...]) -> Tensor:
    """The inverse transform, one axis at a time. Shapes: (*half grid, entries) to (entries, *lags), the last >= 0."""
    for m in points[:-1]:
        wave = _wave(m, m, spectrum)
        spectrum = torch.tensordot(spectrum, wave, dims=([0], [0]))
    m = points[-1]
    # Each frequency of the half but zero stands for itself and its mirror image; N is odd.
    wave = _wave(m, m // 2 + 1, spectrum)
    twice = torch.full((m // 2 + 1, 1), 2.0, dtype=wave.real.dtype, device=wave.device)
    twice[0] = 1.0
    cosine, sine = wave.real * twice, wave.imag * twice
    even = torch.tensordot(spectrum.real, cosine, dims=([0], [0]))
    odd = torch.tensordot(spectrum.imag, sine, dims=([0], [0]))
    kernel: Tensor = (even - odd) / math.prod(points)
    return kernel


def _wave(points: int, count: int, like: Tensor) -> Tensor:
    """exp(-2 pi i j l / points) for j, l below `count`. Shapes: (count, count)."""
    place = torch.arange(count)[:, None]
    cosine, sine = Grid((points,), (0,)).phases(2 * place, place)
    return torch.complex(cosine, -sine).to(like)


def _unwound(largest: Tensor, scales: list[Tensor], group: int | None = None) -> Tensor:
    """The nested roots, for all groups or for one."""
    chosen = slice(None) if group is None else slice(group, group + 1)
    bound = largest[chosen]
    for scale in reversed(scales):
        bound = scale[chosen].to(bound) * bound.sqrt()
    return bound


def upper(operator: Subject, settings: Settings) -> float:
    """The row-sum bound, rounded outwards.

    Let X_i be the exact matrices for the scales used, X^_i the computed ones, and d_i >= ||X^_i - X_i||_F at every
    frequency, d_0 that of F. One step gives d_{i+1} <= (2 ||H^_i||_2 + d) d + e with d = d_i / n_i plus the
    division's rounding, and e the product's, `gram_step_error`, as ||H^_i||_F is one at most. X^_{i+1} is H^_i
    squared but for e, and H^_i Hermitian but for 2 d, hence ||H^_i||_2^2 <= ||X^_{i+1}||_F + e + 2 d. A kernel on L
    lags with the Frobenius error d_t at all L frequencies has, by Parseval, row sums off by at most sqrt(rows L)
    d_t. The inverse transform's own error is relative to the mean of |X^|: at most L sqrt(rows) times it in a row
    sum. Otherwise K_t is exact: on 2^t D + 1 frequencies nothing aliases. The factors 1.01 cover the rounding of
    these error terms themselves.
    """
    exponent = power_of(operator)
    if exponent is None:
        return 0.0
    symbol = _ordered(symbol_of(normalised(operator, exponent, torch.float64)))
    iterations = fitting_iterations(symbol, ITERATIONS, settings.memory)
    sums, scales, sizes = _iterated(symbol, iterations, settings.memory)
    _, taps, rows, columns = symbol.coefficients.shape
    points = _points(symbol, iterations)
    lags = math.prod(points)
    step_error = errors.gram_step_error(max(rows, columns))
    whole = torch.linalg.vector_norm(errors.entry_sums(symbol), dim=(1, 2))
    error = errors.symbol_error(taps) * whole * 1.01 + rounding.UNDERFLOW
    for scale, largest in zip(scales, sizes, strict=True):
        moved = error / scale * 1.01 + 8 * rounding.UNIT
        steepest = (largest * 1.01 + step_error + 2 * moved).sqrt() * 1.01
        error = ((2 * steepest + moved) * moved + step_error) * 1.01
    transform = 4 * (rounding.gamma(2 * sum(points) + 64) + 8 * len(points) * rounding.PHASE_ERROR)
    blur = 1.01 * (math.sqrt(rows * lags) * error + transform * lags * math.sqrt(rows) * sizes[-1])
    summed = sums.amax(1) * (1 + rounding.gamma(rows * lags + 16)) + blur
    found = float(_unwound(summed, scales).max()) * (1 + 64 * rounding.UNIT) + rounding.UNDERFLOW
    return rounding.scale_up(found, exponent)


def applies(operator: Subject) -> bool:
    """Everywhere."""
    return isinstance(operator, Dense | Convolution | InfiniteConvolution)


def claim(operator: Subject) -> Claim:
    """A bound for every padding that is zero or circular, at every size."""
    return "upper"
