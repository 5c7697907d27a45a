"""What training wraps around a network's weights: the entries of a checkpoint that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "params", "weights")
EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema")
_DEEPEST = 3  # a wrapper in a wrapper occurs, four deep does not


def unwrapped(loaded: Any, kind: type, *, ema: bool) -> tuple[Any, tuple[str, ...], bool]:
    """What lies in the wrappers, what a reader must know of them, and whether one of them holds averages.

    `kind` is the type of the tensors. With `ema` the averages are preferred.
    """
    notes: list[str] = []
    averaged = False
    for _ in range(_DEEPEST):
        wrapper = _wrapper(loaded, ema=ema and not averaged)
        if wrapper is None:
            break
        beside = [key for key in EMA_WRAPPERS if key != wrapper and holds(loaded.get(key), kind)]
        averaged = averaged or wrapper in EMA_WRAPPERS
        loaded = loaded[wrapper]
        notes.append(f"weights read from the checkpoint's entry {wrapper!r}")
        if beside and not ema:
            notes.append(f"averaged weights (EMA) lie beside them, under {beside[0]!r}; --ema reads those")
    return loaded, tuple(notes), averaged


def holds(entry: Any, kind: type) -> bool:
    """Whether there are tensors in the entry, or in entries of it."""
    return isinstance(entry, Mapping) and any(isinstance(value, kind | Mapping) for value in entry.values())


def _wrapper(loaded: Any, *, ema: bool) -> str | None:
    """The entry that holds the weights; the averaged ones with `ema`, or where there are no others."""
    if not isinstance(loaded, Mapping):
        return None
    order = (*EMA_WRAPPERS, *WRAPPERS) if ema else (*WRAPPERS, *EMA_WRAPPERS)
    return next((key for key in order if isinstance(loaded.get(key), Mapping)), None)
