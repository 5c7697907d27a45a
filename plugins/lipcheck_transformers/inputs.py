"""The network that is audited of a model of transformers, and one input of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_TOKENS = 16


class FromEmbeddings(nn.Module):
    """A language model from behind its embedding table: what it computes from `inputs_embeds`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: Tensor) -> Any:
        return self.model(inputs_embeds=inputs_embeds)


def audited(model: nn.Module, example: Tensor | None) -> tuple[nn.Module, Tensor | None, str]:
    """The network to audit, an input of it, and the words that it puts in front of the layers' names.

    A model of tokens is audited from behind its embedding table, at 16 tokens unless `example` says otherwise; one of
    images at the size in its config.
    """
    own = next((one for one in model.parameters() if one.is_floating_point()), torch.zeros(()))
    place: dict[str, Any] = {"device": own.device, "dtype": own.dtype}
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(1, *size, generator=generator).to(**place)

    if getattr(model, "main_input_name", "") == "input_ids":
        if example is None:
            width: int = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
            example = drawn(_TOKENS, width)
        return FromEmbeddings(model), example[:1].to(**place), "model."
    if example is None:
        size = _image(getattr(model, "config", None))
        example = drawn(*size) if size else None
    return model, None if example is None else example[:1].to(**place), ""


def _image(config: Any) -> tuple[int, ...]:
    """Channels and sides of the images that a config describes; nothing where it describes none."""
    side = getattr(config, "image_size", None)
    sides = (side, side) if isinstance(side, int) else tuple(side) if isinstance(side, Sequence) else ()
    return (int(getattr(config, "num_channels", 3)), *sides) if len(sides) == 2 else ()
