"""Gram iteration at every frequency of a grid: at each of them an upper bound, whatever the number of iterations.

With G_0 = F(w) and G_{i+1} = (G_i / n_i)(G_i / n_i)*, n_i = ||G_i||_F,

    ||F|| = n_0 sqrt(n_1 sqrt(... sqrt(||G_t||))) <= n_0 sqrt(n_1 sqrt(... sqrt(||G_t||_F))) ,

above the norm by at most the factor rank^(1 / 2^(t+1)). Taking the roots one by one keeps every number near one, where
the papers keep logarithms. `gram` uses the circular grid of as many points as inputs, as published: a bound for
circular padding, and for zero padding only where that grid embeds the operator. `gram-embedding` uses an embedding:
always a bound.
Source: Delattre, Barthelemy, Araujo, Allauzen, Efficient bound of Lipschitz constant for convolutional layers by Gram
iteration, ICML 2023; the embedding is `lipcheck.symbol.embedding_points`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lipcheck import rounding
from lipcheck.engines.literature import errors
from lipcheck.engines.literature.frequencies import Samples, circular_grid, embedding_grid, embeds
from lipcheck.engines.literature.subject import (
    MEMORY,
    Claim,
    Subject,
    normalised,
    nothing,
    power_of,
    rescaled,
    symbol_of,
)
from lipcheck.engines.search import top_eigenpairs
from lipcheck.engines.settings import Settings
from lipcheck.errors import UsageError
from lipcheck.operators import Convolution, Dense, InfiniteConvolution

ITERATIONS = 7
_SEARCH_STEPS = 10
GridName = Literal["published", "embedding"]


def spectral_norm(
    operator: Subject,
    *,
    iterations: int = ITERATIONS,
    grid: GridName = "published",
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The largest Gram bound over the grid and the groups. Gradients flow to the weight.

    Errors: UsageError for a convolution without an input size.
    """
    exponent = power_of(operator)
    if exponent is None:
        return nothing(operator, dtype)
    samples = _samples(normalised(operator, exponent, dtype), grid)
    _, place = samples.peak(lambda matrices: gram_norms(matrices, iterations), memory)
    return rescaled(gram_norms(samples.one(place), iterations)[0], exponent)


def group_norms(
    operator: Subject,
    *,
    iterations: int = ITERATIONS,
    grid: GridName = "published",
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float64,
    places: Tensor | None = None,
) -> Tensor:
    """The Gram bound of each group at one frequency, with the explicit gradient. Gradients flow to the weight.

    The frequency is the one of `peaks`, or that of `places` where they are given: never above `spectral_norm`'s maximum
    over the grid, and below it by what that search overlooks.

    Units: the weights should be near one, with no group of zeros. Shapes: places as `peaks` gives them; (groups,).
    Errors: UsageError for a convolution without an input size.
    """
    samples = _samples(normalised(operator, 0, dtype), grid)
    where = samples.peaks(_searched_norms, memory) if places is None else places
    return explicit_gram_norms(samples.each(where), iterations)


def peaks(
    operator: Subject, *, grid: GridName = "published", memory: int = MEMORY, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Where on the grid a short Lanczos search sees each group's largest norm: a fraction of iterating everywhere.

    Units: the weights should be near one. Shapes: (groups, axes), in half steps of the grid.
    Errors: UsageError for a convolution without an input size.
    """
    return _samples(normalised(operator, 0, dtype), grid).peaks(_searched_norms, memory)


def _searched_norms(matrices: Tensor) -> Tensor:
    """Estimates of the spectral norms. Shapes: (n, r, c) to (n,)."""
    return top_eigenpairs(matrices @ matrices.mH, steps=_SEARCH_STEPS, orthogonal=False)[0].clamp_min(0).sqrt()


class _ExplicitGram(torch.autograd.Function):
    """`gram_norms` with its gradient in closed form: nothing of the iterations is kept but one product.

    After t iterations the bound is the Schatten norm f of exponent p = 2^(t+1), with the gradient
    f^(1-p) (F F*)^(2^t - 1) F. The power is the product of the iterates, each a square of the one before; its scale
    follows from <gradient, F> = f.
    Source: Delattre et al., ICML 2023, the gradient of the iterate.
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, iterations: int) -> Tensor:
        current, scales = matrices, []
        product = None
        for _ in range(iterations):
            scale = torch.linalg.vector_norm(current, dim=(1, 2)).clamp_min(_least(current))
            half = _without_dust(_divided(current, scale))
            current = _without_dust(half @ half.mH)
            scales.append(scale)
            if ctx.needs_input_grad[0]:
                product = current if product is None else product @ current
                product = _divided(product, torch.linalg.vector_norm(product, dim=(1, 2)).clamp_min(_least(current)))
                product = _without_dust(product)
        bound: Tensor = torch.linalg.vector_norm(current, dim=(1, 2))
        for scale in reversed(scales):
            bound = scale * bound.sqrt()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(matrices if product is None else product @ matrices, matrices, bound)
        return bound

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        direction, matrices, bound = ctx.saved_tensors
        paired = (direction.conj() * matrices).sum((1, 2)).real
        factor = gradient * bound / paired.clamp_min(torch.finfo(bound.dtype).tiny)
        return direction * factor[:, None, None], None


def explicit_gram_norms(matrices: Tensor, iterations: int) -> Tensor:
    """`gram_norms` without slack; gradients flow to the matrices, once, through one matrix more than they have.

    Shapes: (n, r, c) with r <= c for speed; result (n,).
    """
    found: Tensor = _ExplicitGram.apply(matrices, iterations)
    return found


def gram_norms(matrices: Tensor, iterations: int, slack: float = 0.0) -> Tensor:
    """Gram bounds of a batch of matrices; `slack` is what each step's rounding may hide, relative to n^2.

    Shapes: (n, r, c) with r <= c for speed; result (n,).
    """
    current, scales = matrices, []
    for _ in range(iterations):
        scale = torch.linalg.vector_norm(current, dim=(1, 2)).clamp_min(errors.TINY if slack else _least(current))
        half = _divided(current, scale)
        current = half @ half.mH
        scales.append(scale)
    bound: Tensor = torch.linalg.vector_norm(current, dim=(1, 2))
    for scale in reversed(scales):
        bound = scale * (bound + slack).sqrt()
    return bound


def _without_dust(matrices: Tensor) -> Tensor:
    """Matrices of norm one without the entries whose squares would be subnormal: these cost ten times as much.

    Far below rounding; what is left of small singular values sinks there, and imaginary parts where F is real.
    """
    parts = torch.view_as_real(matrices) if matrices.is_complex() else matrices
    kept = functional.hardshrink(parts, math.sqrt(torch.finfo(parts.dtype).tiny))
    return torch.view_as_complex(kept) if matrices.is_complex() else kept


def _least(matrices: Tensor) -> float:
    return math.sqrt(math.sqrt(torch.finfo(matrices.dtype).tiny))


def _divided(matrices: Tensor, scale: Tensor) -> Tensor:
    """The matrices over real scales, one rounding for each real number."""
    if matrices.is_complex():
        return torch.view_as_complex(torch.view_as_real(matrices) / scale[:, None, None, None])
    return matrices / scale[:, None, None]


def upper(operator: Subject, settings: Settings, *, grid: GridName = "published") -> float:
    """The Gram bound of the operator of |W| near one, rounded outwards; an upper bound where `claim` says so.

    Each step hides at most `errors.gram_step_error`, which goes under its root; the last Frobenius norm and the roots
    are good to `errors.norm_factor`; F itself was off by at most `errors.symbol_error` times ||B||.
    """
    exponent = power_of(operator)
    if exponent is None:
        return 0.0
    samples = _samples(normalised(operator, exponent, torch.float64), grid)
    _, taps, rows, columns = samples.symbol.coefficients.shape
    slack = errors.gram_step_error(columns)
    found, _ = samples.peak(lambda matrices: gram_norms(matrices, ITERATIONS, slack), settings.memory)
    blur = errors.symbol_error(taps) * float(errors.magnitudes(samples.symbol).max())
    total = (found * errors.norm_factor(rows * columns) + blur + rounding.UNDERFLOW) * (1 + 16 * rounding.UNIT)
    return rounding.scale_up(total, exponent)


def _samples(operator: Subject, grid: GridName) -> Samples:
    if isinstance(operator, InfiniteConvolution):
        raise UsageError("gram needs the convolution's input size; gram-kernel does without")
    chosen = circular_grid(operator) if grid == "published" else embedding_grid(operator)
    return Samples(symbol_of(operator).wide, chosen)


def applies(operator: Subject) -> bool:
    """Wherever the input has a size."""
    return isinstance(operator, Dense | Convolution)


def claim(operator: Subject) -> Claim:
    """Of the published grid."""
    return "upper" if embeds(operator) else "estimate"


def claim_embedded(operator: Subject) -> Claim:
    """Of the embedding grid."""
    return "upper"
