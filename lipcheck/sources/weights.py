"""Weights into a network: the checkpoint fits it whole or is refused, and every number in it is finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lipcheck.errors import WeightsError
from lipcheck.sources.checkpoint import Checkpoint
from lipcheck.sources.surroundings import quiet
from lipcheck.sources.wording import GROUPS, grouped, plain, some

COUNTER = "num_batches_tracked"  # of batch norms; plays no part in evaluation, and old checkpoints lack it


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

    Where the names do not fit, they may have a prefix in common that the module does not know. A checkpoint in the
    order of its model that shares no name with the module is matched by position, when the two sequences of shapes and
    of last names are equal from first to last (the counters of batch norms aside).
    Errors: WeightsError naming what is missing, unexpected or of another shape.
    """
    wanted = tensors_of(module)
    for tried, given in _namings(checkpoint, wanted):
        _refuse_kinds(checkpoint, given, wanted)
        if _fits(module, given):
            return (*checkpoint.notes, *tried, *_precision_notes(given, wanted))
    given = checkpoint.tensors
    if checkpoint.ordered and (matched := _by_position(given, wanted)) and _fits(module, matched):
        return (*checkpoint.notes, "weights matched by position", *_precision_notes(matched, wanted))
    raise misfit(checkpoint, wanted)


def fill_partly(module: nn.Module, checkpoint: Checkpoint) -> tuple[tuple[str, ...], frozenset[str]]:
    """The module holds those of the checkpoint's weights that fit; notes for a reader, and the names of the others.

    Errors: WeightsError where none fits.
    """
    wanted = tensors_of(module)
    tried, given = max(
        _namings(checkpoint, wanted), key=lambda naming: sum(_same(naming[1], name, t) for name, t in wanted.items())
    )
    fitting = {name: given[name] for name, tensor in wanted.items() if _same(given, name, tensor)}
    _refuse_kinds(checkpoint, fitting, wanted)
    if not fitting or not _fits(module, {**wanted, **fitting}):
        raise misfit(checkpoint, wanted)
    unused = [name for name in given if name not in fitting and not name.endswith(COUNTER)]
    notes = [f"{len(unused)} tensors of the checkpoint have no place in the model: {grouped(unused)}"] if unused else []
    missing = frozenset(name for name in wanted if name not in fitting and not name.endswith(COUNTER))
    return (*checkpoint.notes, *tried, *notes, *_precision_notes(fitting, wanted)), missing


def _same(given: Mapping[str, Tensor], name: str, tensor: Tensor) -> bool:
    return name in given and given[name].shape == tensor.shape


def _namings(
    checkpoint: Checkpoint, wanted: Mapping[str, Tensor]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Tensor]]]:
    """The checkpoint's tensors under their own names, and without a first word that all have and the model does not."""
    yield (), checkpoint.tensors
    first = {name.partition(".")[0] for name in checkpoint.tensors}
    prefix = f"{next(iter(first))}."
    if len(first) == 1 and not any(name.startswith(prefix) for name in wanted):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.tensors.items()}
        yield (f"prefix {plain(prefix)!r} taken off the checkpoint's names",), tensors


def misfit(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> WeightsError:
    """The error with the names of the missing, unexpected and reshaped tensors, ten modules each, and the counts."""
    given = checkpoint.tensors
    missing = [name for name in wanted if name not in given and not name.endswith(COUNTER)]
    unexpected = [name for name in given if name not in wanted and not name.endswith(COUNTER)]
    reshaped = [
        f"{plain(name)} {tuple(given[name].shape)} where the model has {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    parts = [
        f"{len(names)} {what}: {listing(names)}"
        for what, names, listing in (
            ("missing", missing, grouped),
            ("unexpected", unexpected, grouped),
            ("of another shape", reshaped, partial(some, named=GROUPS)),
        )
        if names
    ]
    facts = "; ".join(parts) or "the model's own loader rejects them"
    fits = any(_same(given, name, tensor) for name, tensor in wanted.items())
    way_out = ", or audit what fits with --partial" if fits else ""
    return WeightsError(
        f"{plain(checkpoint.path)}: weights do not fit the model ({facts}); give its own checkpoint{way_out}"
    )


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
