"""The convolutions of a network as it applies them, and which of them have the same shape."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lipcheck import sources
from lipcheck.capture import capture
from lipcheck.operators import Convolution
from lipcheck.rules import DEFAULT_RULES, operator_of


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One call of a convolution, at its real input size, stride and padding."""

    name: str
    operator: Convolution

    @property
    def shape(self) -> tuple[Hashable, ...]:
        """Equal for layers that cost the same: everything but the weights' values."""
        one = self.operator
        sizes = (one.input_size, one.output_size, one.stride, one.dilation, one.offset)
        return (tuple(one.weight.shape), one.groups, *sizes, one.circular)

    @property
    def identity(self) -> str:
        """A hash of the weights and the geometry: equal for equal maps."""
        weight = self.operator.weight.detach().cpu().contiguous()
        digest = hashlib.sha256(repr((self.shape, str(weight.dtype))).encode())
        digest.update(weight.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is 1 x 1, so that its symbol is the same matrix at every frequency."""
        return all(k == 1 for k in self.operator.kernel)

    def described(self) -> dict[str, Any]:
        """The geometry in plain values."""
        one = self.operator
        return {
            "weight": list(one.weight.shape),
            "groups": one.groups,
            "stride": list(one.stride),
            "dilation": list(one.dilation),
            "padding": list(one.offset),
            "input_size": list(one.input_size),
            "output_size": list(one.output_size),
        }


def convolutions(model: str, weights: str, seed: int, input_size: tuple[int, ...] | None) -> list[Layer]:
    """Every convolution of the named network, in the order of its graph.

    Errors: LipcheckError where the network cannot be had.
    """
    loaded = sources.load(model, weights=weights, seed=seed, input_size=input_size)
    graph, _ = capture(loaded.module, loaded.example, keyword=loaded.keyword, known=DEFAULT_RULES)
    layers = []
    for node in graph.nodes:
        operator = operator_of(node, DEFAULT_RULES)
        if isinstance(operator, Convolution):
            layers.append(Layer(node.layer, operator))
    return layers


def one_of_each_shape(layers: Sequence[Layer]) -> list[tuple[Layer, int]]:
    """The first layer of every shape, and how many layers have that shape."""
    groups: dict[Hashable, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.shape, []).append(layer)
    return [(group[0], len(group)) for group in groups.values()]
