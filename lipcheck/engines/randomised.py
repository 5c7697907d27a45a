"""A bound that holds with a stated probability, for any linear map given by what it and its adjoint do.

Lanczos from a start drawn uniformly from the sphere misses the largest eigenvalue of A*A by more than a factor 1 - e
with a probability that is known beforehand, whatever A is. So the bound is no certificate: it rests on the draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines.settings import DEFAULT_SETTINGS, Settings
from lipcheck.operators import Convolution, LinearMap, Padded

Map = Callable[[Tensor], Tensor]

DELTA = 1e-9
# Lanczos in float64 with full reorthogonalisation computes its Ritz value with this relative error at most (Paige;
# Higham 2002, chapter 19: a modest multiple of steps * u). A margin, not a proof: the bound is labelled accordingly.
_ROUNDING = 1e-11


def spectral_norm(
    operator: Convolution | Padded | LinearMap,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    delta: float = DELTA,
    seed: int = 0,
) -> Bound:
    """[lower, upper] with ||A|| <= upper but for a probability of `delta`, over the draw of the random start.

    As many Lanczos steps are made as bring the upper end within the tolerance, or as `settings.memory` has room for.
    Errors: ValueError for a delta that is no probability.
    Source: Kuczyński and Woźniakowski 1992, theorem 4.2(a); maths, section 4.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; give a probability between 0 and 1")
    one = _sides(operator)
    size = min(math.prod(one.input_shape), math.prod(one.output_shape))
    # A basis of `steps` vectors is held in float64; a margin of the norm is half of one of the eigenvalue.
    room = max(2, settings.memory // (8 * size))
    steps = min(steps_for(size, 2 * settings.tolerance, delta), room, size)
    method = f"randomised, fails with probability {delta:.0e}"
    value = _ritz(one, size, steps, seed, settings.device)
    if value == 0.0:
        # A random start lies in the kernel of a map other than zero with probability zero.
        return Bound(0.0, 0.0, method, "probabilistic")
    share = missed(size, steps, delta)
    lower = rounding.down(math.sqrt(value * (1 - _ROUNDING)))
    upper = math.inf if share >= 1 else rounding.up(math.sqrt(value * (1 + _ROUNDING) / (1 - share)), 4)
    return Bound(lower, upper, method, "probabilistic")


def steps_for(size: int, share: float, delta: float) -> int:
    """The Lanczos steps after which no more than `share` of the largest eigenvalue is missed, but for `delta`."""
    return math.ceil((math.log(1.648 * math.sqrt(size) / delta) / math.sqrt(share) + 1) / 2)


def missed(size: int, steps: int, delta: float) -> float:
    """The share e of the largest eigenvalue that `steps` Lanczos steps miss at most, but for a probability of delta.

    Solves 1.648 sqrt(N) exp(-sqrt(e) (2 k - 1)) = delta for e, rounded up.
    Source: Kuczyński and Woźniakowski, SIAM J. Matrix Anal. Appl. 13 (1992), theorem 4.2.
    """
    root = math.log(1.648 * math.sqrt(size) / delta) / (2 * steps - 1)
    return rounding.up(max(root, 0.0) ** 2 * (1 + 1e-12))


@dataclass(frozen=True, slots=True)
class _Sides:
    """A map and its adjoint on tensors with a batch axis."""

    apply: Map
    apply_adjoint: Map
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def _sides(operator: Convolution | Padded | LinearMap) -> _Sides:
    if isinstance(operator, LinearMap):
        return _Sides(operator.apply, operator.apply_adjoint, operator.input_shape, operator.output_shape)
    inner = operator.convolution if isinstance(operator, Padded) else operator
    inputs, outputs = (inner.input_channels, *operator.input_size), (inner.weight.shape[0], *inner.output_size)
    return _Sides(operator.forward, operator.adjoint, inputs, outputs)


def _ritz(one: _Sides, size: int, steps: int, seed: int, device: torch.device) -> float:
    """The largest Ritz value of A*A (or AA*, the smaller) after so many steps, with full reorthogonalisation."""
    small_input = math.prod(one.input_shape) == size
    shape = one.input_shape if small_input else one.output_shape
    first, second = (one.apply, one.apply_adjoint) if small_input else (one.apply_adjoint, one.apply)
    start: Tensor = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    vector = (start / torch.linalg.vector_norm(start)).to(device)
    basis = torch.zeros(steps, size, dtype=torch.float64, device=device)
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(steps):
        basis[step] = vector
        image = second(first(vector.reshape(1, *shape))).reshape(-1).double()
        diagonal.append(float(vector @ image))
        for _ in range(2):
            image = image - basis[: step + 1].T @ (basis[: step + 1] @ image)
        length = float(torch.linalg.vector_norm(image))
        if step + 1 == steps or length <= 1e-13 * max(diagonal):
            break
        beside.append(length)
        vector = image / length
    triangle = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        edge = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
        triangle = triangle + torch.diag(edge, 1) + torch.diag(edge, -1)
    return max(0.0, float(torch.linalg.eigvalsh(triangle)[-1]))
