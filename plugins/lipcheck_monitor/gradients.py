"""A penalty's gradient beside that of the loss, once for each optimizer step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lipcheck import training


def add_gradient(
    penalty: training.LipschitzPenalty, weight: float, parameters: Iterable[nn.Parameter], *, scale: float = 1.0
) -> Tensor:
    """Adds the gradient of weight * penalty() to that of each parameter; the penalty's value, detached.

    It is what a loss with weight * penalty() in it would have added: called once before an optimizer step, whatever
    number of batches was accumulated for it. Under data parallelism every process adds the same, after the gradients
    of the loss were averaged.

    Units: gradients are `scale` times their true value, as under a gradient scaler that has not been undone yet.
    """
    chosen = list({id(one): one for one in parameters if one.requires_grad}.values())
    with torch.enable_grad():
        value = penalty()
        # Not backward(): the hooks of data parallelism on the parameters are for the loss alone.
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(value * (weight * scale), chosen, allow_unused=True)
    with torch.no_grad():
        for one, gradient in zip(chosen, gradients, strict=True):
            if gradient is None:
                continue
            if one.grad is None:
                one.grad = gradient.to(one.dtype)
            else:
                one.grad.add_(gradient)
    return value.detach()
