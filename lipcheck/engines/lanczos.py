"""The lower bound: ||A x|| / ||x|| for a vector that Golub-Kahan bidiagonalisation found on the real operator.

The search runs in float32 at the true input size, padding and stride; the vector it ends with is evaluated in
float64 on the CPU, by code whose rounding is known, and the quotient is lowered by that rounding.
Source: Golub and Kahan 1965; Golub and Van Loan, Matrix Computations, section 10.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcheck import rounding
from lipcheck.engines.certified import Certified
from lipcheck.engines.gram import scaled_by_power
from lipcheck.operators import Convolution, Padded, weights_of
from lipcheck.symbol import Symbol

# What is left of a vector below this share of the norm is rounding of float32: the reachable space is exhausted.
_EXHAUSTED = 1e-4
# Where a step is costly: the share of the gap to the upper bound that it has to gain, up to so many accuracies; and how
# many multiplications make it so.
_SMALL_GAIN, _ROUGH = 0.05, 5
_COSTLY = 2**28
Map = Callable[[Tensor], Tensor]


def leading_vector(
    forward: Map, adjoint: Map, start: Tensor, *, steps: int, accuracy: float, upper: float = math.inf
) -> Tensor:
    """An input that the operator amplifies nearly as much as it can: never a claim until `attained` evaluates it.

    Stops once three steps raised the estimated norm by less than `accuracy`, relatively: a start close to one singular
    vector needs some steps before what it holds of another shows. Where `upper` is given, a step is costly: the search
    also stops once the last step gained little beside what is left below that bound of the norm.
    Shapes: `start` is an input; so is the result. Source: Golub-Kahan with full reorthogonalisation.
    """
    right = start / torch.linalg.vector_norm(start).clamp_min(1e-30)
    # Rows are written as they are needed: on large inputs a step takes less time than clearing them all.
    rights = start.new_empty(steps, start.numel())
    lefts: Tensor | None = None
    diagonal: list[float] = []
    above: list[float] = []
    estimates = [0.0]
    for step in range(steps):
        image = forward(right)
        if lefts is None:
            lefts = image.new_empty(steps, image.numel())
        image = _orthogonal(image, lefts[:step])
        alpha = float(torch.linalg.vector_norm(image))
        rights[step] = right.flatten() if math.isfinite(alpha) else 0
        if not _EXHAUSTED * max(estimates) < alpha < math.inf:
            break
        left = image / alpha
        lefts[step] = left.flatten()
        diagonal.append(alpha)
        estimates.append(float(np.linalg.norm(_bidiagonal(diagonal, above), 2)))
        if len(estimates) > 7 and estimates[-1] - estimates[-4] <= accuracy * estimates[-1]:
            break
        left_over = upper / estimates[-1] - 1
        gain = 1 - estimates[-2] / estimates[-1]
        if step > 1 and left_over < math.inf and gain <= min(_SMALL_GAIN * left_over, _ROUGH * accuracy):
            break
        back = _orthogonal(adjoint(left), rights[: step + 1])
        beta = float(torch.linalg.vector_norm(back))
        if not _EXHAUSTED * estimates[-1] < beta < math.inf:
            break
        above.append(beta)
        right = back / beta
    if not diagonal:
        return start
    # Where the left space was exhausted, one right vector more is known, whose image lies in it.
    known = min(len(above), len(diagonal)) + 1 if len(diagonal) < steps else len(diagonal)
    matrix = _bidiagonal(diagonal, above[: known - 1])
    weights = torch.from_numpy(np.linalg.svd(matrix)[2][0].copy())
    return (weights.to(rights) @ rights[:known]).reshape(start.shape)


def _bidiagonal(diagonal: list[float], above: list[float]) -> NDArray[np.float64]:
    """Shapes: with as many numbers above the diagonal as on it, there is one column more than rows."""
    rows, columns = len(diagonal), max(len(diagonal), len(above) + 1)
    matrix = np.zeros((rows, columns))
    matrix[range(rows), range(rows)] = diagonal
    matrix[range(len(above)), range(1, len(above) + 1)] = above
    return matrix


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """Classical Gram-Schmidt, twice, against all basis vectors. Shapes: basis (known, entries), orthonormal rows."""
    flat = vector.flatten()
    for _ in range(2):
        flat = flat - (basis @ flat) @ basis
    return flat.reshape(vector.shape)


def attained(forward: Map, x: Tensor, *, terms: int, magnitude: float) -> float:
    """At most the norm that `x` proves: ||A x|| / ||x|| less the rounding of its evaluation.

    Shapes: x is an input, taken as exact after conversion to float64; `terms` products make one output;
    `magnitude` bounds the norm of |A|, so the computed A x is off by at most forward_error(terms) magnitude ||x||.
    Source: Higham 2002, section 3.5.
    """
    x = x.detach().cpu().double()
    largest = float(x.abs().max())
    if largest == 0 or not math.isfinite(largest):
        return 0.0
    x = scaled_by_power(x, -math.frexp(largest)[1])
    length = float(torch.linalg.vector_norm(x))
    output = forward(x)
    image = float(torch.linalg.vector_norm(output))
    summing = rounding.gamma(2 * max(x.numel(), output.numel()) + 64)
    quotient = image * (1 - summing) / (length * (1 + summing))
    return max(0.0, quotient * (1 - 8 * rounding.UNIT) - rounding.forward_error(terms) * magnitude * (1 + 1e-6))


def attained_from(
    operator: Convolution | Padded,
    start: Tensor,
    *,
    magnitude: float,
    steps: int,
    accuracy: float,
    device: torch.device,
    upper: float = math.inf,
) -> float:
    """At most the norm that a search from A* start proves, in float32 first and then in float64.

    Powers of two take the weights near one, so that a search in float32 neither overflows nor loses them.
    A search whose steps are costly is content with less where little is left below `upper`, a bound of the norm.
    Shapes: `start` is an output with its batch axis. `magnitude` bounds the norm of |A|.
    """
    weight = weights_of(operator)
    exponent = math.frexp(float(weight.abs().max()))[1]
    scaled = _with_weight(operator, scaled_by_power(weight, -exponent))
    search = _with_weight(operator, weights_of(scaled).float().to(device))
    # From the range of the adjoint, where a singular vector lies.
    first = search.adjoint(start.to(device))
    costly = weight.numel() * start[0, 0].numel() >= _COSTLY
    within = rounding.scale_up(upper, -exponent) if costly else math.inf
    x = leading_vector(search.forward, search.adjoint, first, steps=steps, accuracy=accuracy, upper=within)
    bound = rounding.scale_up(magnitude, -exponent)
    return rounding.scale_down(attained(scaled.forward, x, terms=weight[0].numel(), magnitude=bound), exponent)


def _with_weight(operator: Convolution | Padded, weight: Tensor) -> Convolution | Padded:
    if isinstance(operator, Padded):
        return replace(operator, convolution=replace(operator.convolution, weight=weight))
    return replace(operator, weight=weight)


def start_vector(operator: Convolution, symbol: Symbol, found: Certified) -> Tensor | None:
    """The peak's wave under a sine window, as an output of the convolution; None where there is no peak.

    On an infinite input the wave is where the norm is taken on; the window is what a finite edge makes of it.
    Shapes: (1, outputs, *output_size), float32.
    """
    peak = found.peak
    if peak is None:
        return None
    wave = torch.ones(1, dtype=torch.complex128)
    for angle, n in zip(peak.angle, operator.output_size, strict=True):
        position = torch.arange(n, dtype=torch.float64)
        window = (
            torch.ones(n, dtype=torch.float64) if operator.circular else torch.sin(math.pi * (position + 1) / (n + 1))
        )
        factor = torch.polar(window, angle * position)
        wave = wave[..., None] * factor
    coefficients = symbol.coefficients[peak.group]
    vector = peak.vector.cpu().to(torch.complex128)
    if coefficients.shape[1] > coefficients.shape[2]:
        # The eigenvector is the conjugate of a right singular vector here; one step of F makes a left one of it.
        turns = symbol.exponents.double() @ torch.tensor(peak.angle, dtype=torch.float64)
        phases = torch.polar(torch.ones_like(turns), turns)
        coefficients = coefficients.double() / coefficients.abs().max()
        images = coefficients @ torch.stack([vector.conj().real, vector.conj().imag], dim=1).double()
        vector = (torch.complex(images[..., 0], images[..., 1]) * phases[:, None]).sum(0)
    outputs = operator.weight.shape[0] // operator.groups
    start = torch.zeros(operator.weight.shape[0], *operator.output_size)
    place = slice(peak.group * outputs, (peak.group + 1) * outputs)
    vector = vector / torch.linalg.vector_norm(vector).clamp_min(1e-30)
    spread = vector.reshape(-1, *(1,) * operator.axes) * wave.reshape(1, *operator.output_size)
    start[place] = spread.real.float()
    # A wave may be orthogonal to what is sought (another symmetry, a vanishing real part): a little of everything.
    noise: Tensor = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    scale = float(torch.linalg.vector_norm(start)) or 1.0
    mixed: Tensor = start + noise * (0.03 * scale / start.numel() ** 0.5)
    return mixed[None]
