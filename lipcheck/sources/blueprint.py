"""Blueprint: a network that has a name and can be built, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from lipcheck.sources.pixels import Pixels

Size = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """How to make one network, with or without the weights that it is published with.

    `build` gives it with weights drawn from torch's default generator. `pretrained` gives it with the weights
    it is published with and what the report's heading calls them; WeightsError when they cannot be had.
    `random` builds for `--weights random` where that needs more care than `build`, None where it does not.
    `own_size` reads the input size, without the batch axis, that the built network or its source states.
    `usual_size` is the size to assume, and to say so, where nothing states one. `pixels` says how the built network's
    input is made of an image, where that is known.
    """

    source: str  # timm, torchvision, transformers, factory, demo
    build: Callable[[], nn.Module]
    pretrained: Callable[[], tuple[nn.Module, str]]
    random: Callable[[], nn.Module] | None = None
    own_size: Callable[[nn.Module], Size | None] = lambda _: None
    usual_size: Size | None = None
    pixels: Callable[[nn.Module], Pixels | None] = lambda _: None
    keyword: str = ""
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
