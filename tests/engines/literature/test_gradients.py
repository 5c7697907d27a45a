"""Every method is differentiable, whatever the stride, the groups, the dilation or the direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from lipcheck.engines.literature import METHODS
from lipcheck.operators import Convolution, Dense, InfiniteConvolution


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


PLAIN = Convolution(noise(3, 2, 3), (1,), (1,), 1, (1,), (6,), (6,))
LAYERS = {
    "plain": PLAIN,
    "strided": replace(PLAIN, weight=noise(3, 2, 4), stride=(2,), offset=(1,), output_size=(3,)),
    "grouped": replace(PLAIN, weight=noise(4, 2, 3), groups=2),
    "dilated": replace(PLAIN, dilation=(2,), offset=(2,)),
    "transposed": replace(PLAIN, weight=noise(3, 2, 4), stride=(2,), output_size=(3,), transposed=True),
    "circular": replace(PLAIN, circular=True),
    "two axes": Convolution(noise(2, 2, 2, 3), (2, 1), (1, 2), 1, (1, 2), (4, 4), (2, 4)),
}
# Those that find vectors by iteration are exact once these have converged.
CONVERGED: dict[str, dict[str, Any]] = {
    "power": {"steps": 500},
    "tensor-norm": {"accuracy": 1e-15, "sweeps": 3000},
    "gram-kernel": {"iterations": 2},
}


def by_weight(name: str, layer: Convolution | InfiniteConvolution) -> Callable[[Tensor], Tensor]:
    return lambda weight: METHODS[name].run(replace(layer, weight=weight), **CONVERGED.get(name, {}))


def right(value: Callable[[Tensor], Tensor], weight: Tensor, *, fast: bool = False) -> bool:
    """Whether the gradient is that of finite differences; `fast` compares one projection of it."""
    return gradcheck(value, (weight.clone().requires_grad_(),), eps=1e-5, atol=1e-6, fast_mode=fast)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", LAYERS)
def test_convolutions(name: str, kind: str) -> None:
    layer = LAYERS[kind]
    assert right(by_weight(name, layer), layer.weight, fast=kind != "two axes" or name in ("power", "tensor-norm"))


@pytest.mark.parametrize("name", METHODS)
def test_matrices(name: str) -> None:
    def value(matrix: Tensor) -> Tensor:
        return METHODS[name].run(Dense(matrix), **CONVERGED.get(name, {}))

    assert right(value, noise(4, 3), fast=name == "power")


ENDLESS = InfiniteConvolution(noise(3, 2, 4), (2,), (1,), 1)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.applies(ENDLESS)])
def test_convolutions_without_a_size(name: str) -> None:
    assert right(by_weight(name, ENDLESS), ENDLESS.weight)


@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_reaches_a_weight_in_single_precision(name: str) -> None:
    weight = noise(3, 2, 3).float().requires_grad_()
    METHODS[name].run(replace(PLAIN, weight=weight), dtype=torch.float32).backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert bool(weight.grad.isfinite().all())
    assert bool(weight.grad.any())
