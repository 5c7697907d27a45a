"""Weights into a network: the checkpoint fits it whole or is refused, and every number in it is finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lipcheck.errors import WeightsError
from lipcheck.sources.checkpoint import Checkpoint
from lipcheck.sources.surroundings import quiet
from lipcheck.sources.wording import plain, some

COUNTER = "num_batches_tracked"  # of batch norms; plays no part in evaluation, and old checkpoints lack it
WAYS_OUT = "use --weights random, or --weights FILE with a checkpoint"


def refuse_nonfinite(module: nn.Module) -> None:
    """Nothing, when every floating-point parameter and persistent buffer is finite.

    Errors: WeightsError naming at most three tensors and how many of their elements are NaN or infinite;
            also when a tensor has no values yet (a lazy module, the meta device).
    """
    broken = []
    for name, tensor in _weights_of(module):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)) or tensor.is_meta:
            raise WeightsError(f"{plain(name)}: this tensor has no values yet; give the model its weights first")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        finite = torch.isfinite(tensor.detach())
        if not bool(finite.all()):
            broken.append(f"{plain(name)} ({int((~finite).sum())} of {tensor.numel()} elements)")
    if broken:
        raise WeightsError(f"NaN or infinite weights in {some(broken)}; no bound exists; repair the checkpoint")


def fill(module: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The module holds the checkpoint's weights, all of them, and what a reader must know of how they got there.

    A checkpoint in the order of its model that shares no name with the module is matched by position, when the
    two sequences of shapes and of last names are equal from first to last (the counters of batch norms aside).
    Errors: WeightsError naming what is missing, unexpected or of another shape.
    """
    notes = list(checkpoint.notes)
    given, wanted = checkpoint.tensors, tensors_of(module)
    _refuse_kinds(checkpoint, given, wanted)
    if _fits(module, given):
        return (*notes, *_precision_notes(given, wanted))
    if checkpoint.ordered and (matched := _by_position(given, wanted)) and _fits(module, matched):
        return (*notes, "weights matched by position", *_precision_notes(matched, wanted))
    raise misfit(checkpoint, wanted)


def misfit(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> WeightsError:
    """The error with at most three names each of the missing, unexpected and reshaped tensors, and the counts."""
    given = checkpoint.tensors
    missing = [name for name in wanted if name not in given and not name.endswith(COUNTER)]
    unexpected = [name for name in given if name not in wanted and not name.endswith(COUNTER)]
    reshaped = [
        f"{plain(name)} {tuple(given[name].shape)} where the model has {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    parts = [
        f"{len(names)} {what}: {some(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    facts = "; ".join(parts) or "the model's own loader rejects them"
    return WeightsError(f"{plain(checkpoint.path)}: weights do not fit the model ({facts}); give its own checkpoint")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's state under its names, without what is no tensor."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers. Other buffers are constants of the code, where a mask may hold -inf."""
    yield from module.named_parameters()
    for path, child in module.named_modules():
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer


def _fits(module: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the module's own loader takes the tensors, every name and every shape; then it holds them."""
    counters = {n: t for n, t in tensors_of(module).items() if n.endswith(COUNTER) and n not in tensors}
    try:
        with quiet():
            module.load_state_dict({**tensors, **counters}, strict=True)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        # the module's own hooks meet a stranger's names; the caller says what differs
        return False
    return True


def _by_position(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given tensors under the wanted names, or nothing unless only their names differ."""
    names = [name for name in wanted if not name.endswith(COUNTER)]
    old_names = [name for name in given if not name.endswith(COUNTER)]
    if set(old_names) & set(names) or len(old_names) != len(names):
        return {}
    pairs = list(zip(old_names, names, strict=True))
    same = all(given[old].shape == wanted[new].shape and _last(old) == _last(new) for old, new in pairs)
    return {new: given[old] for old, new in pairs} if same else {}


def _last(name: str) -> str:
    """weight, bias, running_mean: what tells tensors of equal shapes in one layer apart."""
    return name.rpartition(".")[2]


def _refuse_kinds(checkpoint: Checkpoint, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Integers standing for real weights are quantised; copied as they are they would be another network."""
    for name, tensor in wanted.items():
        if name in given and tensor.is_floating_point() != given[name].is_floating_point():
            raise WeightsError(
                f"{plain(checkpoint.path)}: tensor {plain(name)} is {given[name].dtype} where the model has "
                f"{tensor.dtype}; give a checkpoint with {tensor.dtype} weights"
            )


def _precision_notes(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[str, ...]:
    rounded = sorted(
        f"weights rounded from {str(given[n].dtype).removeprefix('torch.')} to {str(t.dtype).removeprefix('torch.')}"
        for n, t in wanted.items()
        if n in given and t.is_floating_point() and given[n].dtype != t.dtype and given[n].itemsize >= t.itemsize
    )
    return tuple(dict.fromkeys(rounded))
