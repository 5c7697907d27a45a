"""The network's lower bound: the largest Jacobian norm met at sampled inputs.

A Jacobian's norm at any one input is at most the Lipschitz constant. Power iteration in the model's own precision
finds a direction; the norm it attains is then evaluated in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lipcheck.capture import choose_output

Function = Callable[[Tensor], Tensor]
# So many inputs, drawn with a generator; each is one input with its batch axis.
Draw = Callable[[torch.Generator, int], Iterable[Tensor]]
# What evaluating a Jacobian-vector product may be off by, relatively: generous for float64, not a proof.
_FIRST, _LATER = 2, 1  # steps of power iteration at the first sampled input, and at the others
_MARGIN = {torch.float64: 1e-8, torch.float32: 1e-5}
_STEP = 1e-5


def sampled_norm(
    module: nn.Module,
    example: Tensor,
    *,
    keyword: str = "",
    samples: int = 2,
    seed: int = 0,
    draw: Draw | None = None,
) -> float:
    """The largest ||J(x) v|| / ||v|| found, lowered by a margin for rounding; 0.0 for no samples.

    The inputs are what `draw` gives, standard normal of the example's shape without it, seeded. The direction found at
    one input starts the search at the next; the best pair is then evaluated in float64. The module is not changed.
    Shapes: example with its batch axis of one. Source: maths, section 6, the last line.
    """
    # Fused attention has no second derivative; its plain form is the same function.
    with torch.inference_mode(False), sdpa_kernel(SDPBackend.MATH):
        return _sampled_norm(module, example, keyword, samples, seed, draw or _normal(example))


def _normal(example: Tensor) -> Draw:
    """Standard normal inputs of the example's shape and precision."""
    return lambda generator, count: (torch.randn(example.shape, generator=generator) for _ in range(count))


def _sampled_norm(module: nn.Module, example: Tensor, keyword: str, samples: int, seed: int, draw: Draw) -> float:
    generator = torch.Generator().manual_seed(seed)
    function = _function(module, keyword, None)
    direction: Tensor | None = None
    best: tuple[float, Tensor, Tensor] | None = None
    for point in draw(generator, samples):
        x = point.to(example)
        start = torch.randn(example.shape, generator=generator).to(example) if direction is None else direction
        norm, direction = _power_iteration(function, x, start, _FIRST if best is None else _LATER)
        if direction is not None and (best is None or norm > best[0]):
            best = (norm, x, direction)
    return 0.0 if best is None else _attained(module, keyword, best[1], best[2])


def _function(module: nn.Module, keyword: str, precision: torch.dtype | None) -> Function:
    """The module as a function of its input alone, its weights detached and in this precision."""
    state = {
        name: _plain(tensor).to(precision if tensor.is_floating_point() else None)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }

    def call(x: Tensor) -> Tensor:
        args, kwargs = ((), {keyword: x}) if keyword else ((x,), {})
        return choose_output(torch.func.functional_call(module, state, args, kwargs))[2]

    return call


def _plain(tensor: Tensor) -> Tensor:
    """The tensor without its history; a copy where it was made in inference mode, which autograd refuses."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def _power_iteration(function: Function, x: Tensor, v: Tensor, steps: int) -> tuple[float, Tensor | None]:
    """A direction that J(x) amplifies much and by how much; None where J is zero or cannot be differentiated.

    One forward pass serves all steps: J* u is a derivative of it, and J v the derivative of u -> J* u.
    """
    x = x.detach().requires_grad_()
    norm = 0.0
    try:
        with torch.enable_grad():
            y = function(x)
            dummy = torch.zeros_like(y, requires_grad=True)
            (pulled,) = torch.autograd.grad(y, x, dummy, create_graph=True)
        for _ in range(steps):
            v = v / torch.linalg.vector_norm(v)
            (image,) = torch.autograd.grad(pulled, dummy, v, retain_graph=True)
            (back,) = torch.autograd.grad(y, x, image, retain_graph=True)
            norm = float(torch.linalg.vector_norm(back.double())) ** 0.5
            if not 0 < norm < float("inf"):
                return 0.0, None
            v = back
    except (RuntimeError, NotImplementedError):
        return 0.0, None
    return norm, v.detach()


def _attained(module: nn.Module, keyword: str, x: Tensor, direction: Tensor) -> float:
    """||J v|| / ||v|| in float64, in the model's precision where it cannot be run in float64."""
    for precision in (torch.float64, x.dtype):
        v = direction.to(precision)
        v = v / torch.linalg.vector_norm(v)
        function = _function(module, keyword, precision)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                result = torch.func.jvp(function, (x.to(precision),), (v,))
                here, image = result[0], result[1]
                # What the derivative says and the function does not do (detach, say) is no bound.
                step = _STEP * torch.linalg.vector_norm(x.to(precision))
                moved = (function(x.to(precision) + step * v) - here) / step
        except (RuntimeError, NotImplementedError):
            continue
        norm = min(float(torch.linalg.vector_norm(found.double())) for found in (image, moved))
        norm = norm / float(torch.linalg.vector_norm(v.double()))
        return norm * (1 - _MARGIN.get(x.dtype, 0.05)) if 0 < norm < float("inf") else 0.0
    return 0.0
