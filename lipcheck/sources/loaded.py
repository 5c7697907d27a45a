"""LoadedModel: a network in evaluation mode, one example input, and where both came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lipcheck.sources.pixels import Pixels


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network and the input at which it is audited.

    `example` is the positional input of the captured forward, one float tensor with a batch axis of 1.
    `keyword` names the forward's keyword argument that takes `example`, "" for the first positional one.
    `pixels` says how the model's config makes the input of an image; None where no config says so.
    """

    module: nn.Module
    example: Tensor
    name: str  # as the user wrote it
    source: str  # timm, torchvision, transformers, factory, demo, module
    weights: str  # for the heading: "pretrained (resnet50.a1_in1k)", "random (seed 0)", a path
    keyword: str = ""
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] | None = None  # library -> version, for the libraries that built the model
    pixels: Pixels | None = None
    missing: frozenset[str] = frozenset()  # names of its state that hold no weights of the checkpoint, but random ones
