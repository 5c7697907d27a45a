"""Maps of equal shapes bounded in one call: their weights are the groups of one grouped convolution.

A layer with several groups becomes as many groups of the stack, of which the largest norm is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcheck.engines.literature.subject import Subject, with_weight
from lipcheck.operators import BatchedDense, Convolution, Dense, InfiniteConvolution
from lipcheck.training.layers import WeightedMap


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Maps that differ in their weights alone. `places` are their positions among all maps."""

    places: tuple[int, ...]
    example: Subject

    @property
    def groups(self) -> int:
        """Of each map."""
        return 1 if isinstance(self.example, Dense) else self.example.groups

    def operator(self, weights: Tensor) -> Convolution | InfiniteConvolution:
        """All of them, or those with a weight here, as one convolution. Shapes: weights (maps, *weight)."""
        if isinstance(self.example, Dense):
            return BatchedDense(weights).grouped
        joined = weights.flatten(0, 1)
        return replace(self.example, weight=joined, groups=len(weights) * self.example.groups)

    def each(self, weights: Tensor) -> list[Subject]:
        """Each of them by itself."""
        return [with_weight(self.example, weight) for weight in weights]

    def by_map(self, norms: Tensor) -> Tensor:
        """The largest of each map's groups. Shapes: (maps * groups,) to (maps,)."""
        return norms.reshape(-1, self.groups).amax(1)


def stacks(maps: Sequence[WeightedMap]) -> list[Stack]:
    """All maps, those that are the same but for their weights together."""
    places: dict[object, list[int]] = {}
    for place, one in enumerate(maps):
        places.setdefault(_kind(one.operator), []).append(place)
    return [Stack(tuple(some), maps[some[0]].operator) for some in places.values()]


def _kind(operator: Subject) -> object:
    if isinstance(operator, Dense):
        return (Dense, operator.matrix.shape, operator.matrix.dtype, operator.matrix.device)
    weight = operator.weight
    common = (type(operator), weight.shape, weight.dtype, weight.device, operator.stride, operator.dilation)
    if isinstance(operator, InfiniteConvolution):
        return (*common, operator.groups)
    return (*common, operator.groups, operator.offset, operator.input_size, operator.output_size, operator.circular)


def tangents(weights: Tensor, norms: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of each map's norm by its weight: of a norm, <gradient, weight> is its value.

    Each weight is taken near one by a power of two, which changes no gradient; one of zeros has a gradient of zeros.
    Shapes: weights (maps, *weight); `norms` takes them to (maps,); so is the result shaped as the weights.
    """
    largest = weights.detach().flatten(1).abs().amax(1)
    some = torch.nonzero(largest > 0).flatten()
    found = torch.zeros_like(weights)
    if len(some):
        spread = (-1, *(1,) * (weights.dim() - 1))
        exponent = torch.frexp(largest[some].cpu().double()).exponent.to(weights.device)
        with torch.enable_grad():
            scaled = torch.ldexp(weights.detach()[some], -exponent.reshape(spread)).requires_grad_()
            (gradient,) = torch.autograd.grad(norms(scaled).sum(), scaled)
        found[some] = gradient
    return found
