"""The network's lower bound: the largest Jacobian norm met at sampled inputs.

A Jacobian's norm at any one input is at most the Lipschitz constant. Power iteration in the model's own precision
finds a direction; the norm it attains is then evaluated in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipcheck.capture import choose_output

Function = Callable[[Tensor], Tensor]
# What evaluating a Jacobian-vector product may be off by, relatively: generous for float64, not a proof.
_MARGIN = {torch.float64: 1e-8, torch.float32: 1e-3}


def sampled_norm(
    module: nn.Module,
    example: Tensor,
    *,
    keyword: str = "",
    samples: int = 2,
    steps: int = 6,
    seed: int = 0,
    advance: Callable[[float], None] = lambda work: None,
) -> float:
    """The largest ||J(x) v|| / ||v|| found, lowered by a margin for rounding; 0.0 for no samples.

    The inputs are standard normal of the example's shape, seeded. The module is not changed.
    Shapes: example with its batch axis of one. Source: maths, section 6, the last line.
    """
    generator = torch.Generator().manual_seed(seed)
    best = 0.0
    for _ in range(samples):
        x = torch.randn(example.shape, generator=generator).to(example)
        direction = _power_iteration(_function(module, keyword), x, steps, generator)
        if direction is not None:
            best = max(best, _attained(module, keyword, x, direction))
        advance(1.0)
    return best


def _function(module: nn.Module, keyword: str, state: dict[str, Tensor] | None = None) -> Function:
    def call(x: Tensor) -> Tensor:
        args, kwargs = ((), {keyword: x}) if keyword else ((x,), {})
        outputs = module(*args, **kwargs) if state is None else torch.func.functional_call(module, state, args, kwargs)
        return choose_output(outputs)[2]

    return call


def _products(function: Function, x: Tensor) -> tuple[Function, Function]:
    """v to J v and u to J* u at x, from one forward pass: J v is the derivative of u -> J* u."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = function(x)
        dummy = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, x, dummy, create_graph=True)

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, dummy, v, retain_graph=True)[0]

    def adjoint(u: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, u, retain_graph=True)[0]

    return forward, adjoint


def _power_iteration(function: Function, x: Tensor, steps: int, generator: torch.Generator) -> Tensor | None:
    """A direction that J(x) amplifies much, None where the Jacobian is zero or cannot be differentiated."""
    v = torch.randn(x.shape, generator=generator).to(x)
    try:
        forward, adjoint = _products(function, x)
        for _ in range(steps):
            v = adjoint(forward(v / torch.linalg.vector_norm(v)))
            length = float(torch.linalg.vector_norm(v))
            if not 0 < length < float("inf"):
                return None
    except (RuntimeError, NotImplementedError):
        return None
    return v


def _attained(module: nn.Module, keyword: str, x: Tensor, direction: Tensor) -> float:
    """||J v|| / ||v|| in float64, in the model's precision where it cannot be run in float64."""
    for precision in (torch.float64, x.dtype):
        state = {
            name: tensor.detach().to(precision) if tensor.is_floating_point() else tensor
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        v = direction.to(precision)
        try:
            forward, _ = _products(_function(module, keyword, state), x.to(precision))
            norm = float(torch.linalg.vector_norm(forward(v).double()) / torch.linalg.vector_norm(v.double()))
        except (RuntimeError, NotImplementedError):
            continue
        return norm * (1 - _MARGIN.get(precision, 0.05)) if 0 < norm < float("inf") else 0.0
    return 0.0
