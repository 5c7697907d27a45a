"""How large a network may be before it is built: counted on the meta device, where a tensor costs no memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from lipcheck.errors import SourceError
from lipcheck.sources.memory import MOST_MODULES, allowed_bytes, oversized
from lipcheck.sources.surroundings import quiet
from lipcheck.sources.wording import plain, reason


class _TooLarge(Exception):
    """Ends a construction that went over its budget."""


def refuse_oversized(name: str, build: Callable[[], nn.Module]) -> None:
    """Nothing, when the network that `build` makes fits the memory budget; it is built on the meta device only.

    Errors: SourceError when it has more bytes of tensors than the budget, or more modules than any real network,
            as soon as the count passes; also when it cannot be built.
    """
    allowed = allowed_bytes()
    counted = {"bytes": 0, "modules": 0}
    excess = ""

    def count_tensor(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal excess
        counted["bytes"] += 0 if tensor is None else tensor.numel() * tensor.element_size()
        if counted["bytes"] > allowed:
            excess = oversized(allowed)
            raise _TooLarge

    def count_module(_module: nn.Module, _name: str, _child: nn.Module | None) -> None:
        nonlocal excess
        counted["modules"] += 1
        if counted["modules"] > MOST_MODULES:
            excess = f"has over {MOST_MODULES} modules"
            raise _TooLarge

    hooks = [
        registration.register_module_parameter_registration_hook(count_tensor),
        registration.register_module_buffer_registration_hook(count_tensor),
        registration.register_module_module_registration_hook(count_module),
    ]
    failure: Exception | None = None
    try:
        with quiet(), torch.device("meta"):
            build()
    except Exception as error:  # a stranger's config reaches every constructor there is
        failure = error
    finally:
        for hook in hooks:
            hook.remove()
    if excess:
        raise SourceError(f"{plain(name)}: the config describes a network that {excess}; it was not built")
    if failure is not None:
        raise SourceError(
            f"{plain(name)}: no network can be built from this config ({type(failure).__name__}: {reason(failure)})"
        ) from failure
