"""What the tensors of a checkpoint are, by names and shapes alone: linear maps, convolutions, batch norms, others.

Nothing that is left out is left out in silence: it has its name and its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipcheck.errors import WeightsError
from lipcheck.sources.header import Entry
from lipcheck.sources.wording import plain, some

REAL = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
WHOLE = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
MEAN, VARIANCE, COUNTER = "running_mean", "running_var", "num_batches_tracked"

# What the parts of a quantised weight are called, and by whom: its numbers are not those that the network applies.
QUANTISED: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    (r"(^|\.)weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)$", "bitsandbytes, 4 bits"),
    (r"(^|\.)(SCB|weight_format)$", "bitsandbytes, 8 bits"),
    (r"(^|\.)weight_(packed|shape|zero_point|global_scale)$", "compressed-tensors"),
    (r"(^|\.)(weight|input|output)_scale(_inv|_2)?$|(^|\.)scale_(weight|input)$", "scaled numbers of 8 bits"),
    (r"(^|\.)(W_q|W_q_meta)$", "HQQ"),
    (r"_(blocks|scales)$", "MXFP4"),
    (r"(^|\.)_packed_params(\.|$)|(^|\.)(zero_point|scale)$", "torch's quantisation"),
)
# The parts of a weight that the network computes from them.
COMPUTED = re.compile(
    r"(^|\.)(weight_g|weight_v|weight_u|weight_orig|weight_mask)$|(^|\.)parametrizations\.[^.]+\.\d*\.?\w+$"
)
# Tables that are looked up: the last word of the module's name.
TABLE = re.compile(
    r"(^|_)(embed|embeds|embedding|embeddings|wte|wpe)$|^embed_(tokens|positions)$|^(shared|relative_attention_bias)$"
)
# Parameters that are added to activations, or are activations: the last word of a name that is no weight.
ADDED = re.compile(
    r"(^|_)(tokens?|embed|embeds|embedding|embeddings|latents?|query|queries|bias|biases|bias_table|anchors?|freqs?)$"
    r"|^(rel_pos|pos_|relative_pos|inv_freq|position)|(^|_)(cos|sin)(_cached)?$"
)


VECTORS, TABLES = "biases, gains and other vectors", "embedding tables"


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """The names of a batch norm's tensors; "" for a gain or an offset that it does not have."""

    layer: str
    channels: int
    variance: str
    gain: str
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that is bounded: a matrix, or a kernel; and the batch norm that surely stands behind it, if any."""

    name: str
    layer: str
    shape: tuple[int, ...]
    norm: BatchNorm | None = None


@dataclass(frozen=True, slots=True)
class Roles:
    """Every tensor of a checkpoint once: bounded, part of a batch norm, or left out for a reason."""

    weights: tuple[Weight, ...]
    standing: tuple[BatchNorm, ...]  # batch norms that no weight's name is surely paired with
    left_out: Mapping[str, tuple[str, ...]]  # reason -> names

    @property
    def beside(self) -> tuple[str, ...]:
        """The names of what is not bounded and has to be finite all the same."""
        return tuple(name for reason in (VECTORS, TABLES) for name in self.left_out.get(reason, ()))

    @property
    def read(self) -> tuple[str, ...]:
        """The names of all tensors whose numbers matter."""
        behind = [weight.norm for weight in self.weights if weight.norm is not None]
        gains = [name for norm in (*self.standing, *behind) for name in (norm.variance, norm.gain) if name]
        return (*(weight.name for weight in self.weights), *self.beside, *gains)


def roles(path: Path, entries: Mapping[str, Entry]) -> Roles:
    """What each tensor is taken for.

    Errors: WeightsError where weights are quantised, or in a format that says nothing of their values.
    """
    _refuse_quantised(path, entries)
    norms = _batch_norms(entries)
    inside = {name for norm in norms.values() for name in norm.others}
    left: dict[str, list[str]] = {}
    weights = []
    for name in sorted(entries, key=natural):
        if name in inside:
            continue
        reason = _left_out(entries[name])
        if reason:
            left.setdefault(reason, []).append(name)
        else:
            module = _module(name)
            layer = name if module in entries or (not module and len(entries) > 1) else module
            weights.append(Weight(name, layer, entries[name].shape))
    if not weights and not norms:
        what = f"no weights of a linear layer, only {_counted(left)}" if left else "no tensors"
        raise WeightsError(f"{plain(path)}: holds {what}; give a checkpoint of a network")
    return paired(weights, norms, {reason: tuple(names) for reason, names in left.items()})


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts layer2 before layer10."""
    parts = re.split(r"(\d{1,18})", name)
    return tuple((0, int(part), "") if place % 2 else (1, 0, part) for place, part in enumerate(parts))


def _counted(left: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{len(names)} {reason}" for reason, names in left.items())


def _refuse_quantised(path: Path, entries: Mapping[str, Entry]) -> None:
    for pattern, maker in QUANTISED:
        found = [name for name in entries if re.search(pattern, name)]
        if found:
            raise WeightsError(
                f"{plain(path)}: quantised weights ({maker}: {some(found)}), which are not those that the network "
                "multiplies by; give the original checkpoint"
            )
    for entry in entries.values():
        shown = f"tensor {plain(entry.name)} is {plain(entry.format)}"
        if entry.format not in (*REAL, *WHOLE):
            raise WeightsError(
                f"{plain(path)}: {shown}, whose numbers are not understood; give the original checkpoint"
            )
        if entry.format in WHOLE and entry.format != "BOOL" and len(entry.shape) > 1 and _last(entry.name) == "weight":
            raise WeightsError(f"{plain(path)}: {shown}, a quantised weight; give the original checkpoint")


def _left_out(entry: Entry) -> str:
    """Why the tensor is not bounded, "" where it is."""
    axes, last = len(entry.shape), _last(entry.name)
    if entry.format in WHOLE:
        return "integers"
    if 0 in entry.shape:
        return "empty"
    if axes == 0:
        return "single numbers"
    if COMPUTED.search(entry.name):
        return "parts that a weight is computed from, of which only the network's code says how"
    if axes == 1:
        return VECTORS
    if axes == 2 and (TABLE.search(_last(_module(entry.name))) or (last != "weight" and ADDED.search(last))):
        return TABLES
    if axes > 5:
        return "tensors of more than five axes"
    if axes > 2 and last != "weight" and ADDED.search(last):
        return "tokens, positions and other activations"
    if axes == 3 and "experts" in entry.name.split("."):
        return "stacks of matrices, one for each expert"
    return ""


def _batch_norms(entries: Mapping[str, Entry]) -> dict[str, BatchNorm]:
    """Batch norms by their module's name: a running mean and a running variance of one length, and what is beside."""
    found = {}
    for name, entry in entries.items():
        if _last(name) != VARIANCE or len(entry.shape) != 1 or 0 in entry.shape or entry.format not in REAL:
            continue
        layer = name.removesuffix(VARIANCE).removesuffix(".")
        beside = {part: f"{layer}.{part}" if layer else part for part in (MEAN, "weight", "bias", COUNTER)}
        held = {part: entries[own] for part, own in beside.items() if own in entries}
        vectors = [held[part] for part in (MEAN, "weight", "bias") if part in held]
        if MEAN not in held or any(one.shape != entry.shape or one.format not in REAL for one in vectors):
            continue
        names = (name, *(one.name for one in held.values()))
        gain = beside["weight"] if "weight" in held else ""
        found[layer] = BatchNorm(layer, entry.shape[0], name, gain, names)
    return found


# Which batch norm stands behind which weight


def paired(weights: Sequence[Weight], norms: Mapping[str, BatchNorm], left: Mapping[str, tuple[str, ...]]) -> Roles:
    """The roles with every batch norm behind the weight that its name pairs it with, where that is certain.

    Neighbours in a sequence (`0` and `1`) are in the order of their numbers, whose norm fits the weight's outputs.
    A scheme of names, such as `conv1` with `bn1`, may also stand for a norm in front of its weight. It is certain for
    the blocks of one kind (their paths differ in numbers only) when all pairs there fit and one cannot be the other way
    round, as `_evident` says: the code that wrote the names has one order for one kind of block.
    """
    pairs: list[tuple[Weight, BatchNorm]] = []
    for scheme, ordered in SCHEMES:
        kinds: dict[str, list[tuple[Weight, BatchNorm]]] = {}
        for weight in weights:
            for other in scheme(weight.layer):
                if other in norms:
                    kind = re.sub(r"\d+", "#", weight.layer.rpartition(".")[0])
                    kinds.setdefault(kind, []).append((weight, norms[other]))
        for found in kinds.values():
            if ordered:
                pairs += [(weight, norm) for weight, norm in found if readings(weight.shape, norm.channels)]
            elif all(norm.channels == weight.shape[0] for weight, norm in found) and _evident(found):
                pairs += found
    # What two weights or two norms claim is certain for none of them.
    distinct = list(dict.fromkeys((weight.layer, norm.layer) for weight, norm in pairs))
    weighing, norming = Counter(layer for layer, _ in distinct), Counter(norm for _, norm in distinct)
    chosen = {layer: norms[norm] for layer, norm in distinct if weighing[layer] == norming[norm] == 1}
    behind = {norm.layer for norm in chosen.values()}
    return Roles(
        tuple(Weight(w.name, w.layer, w.shape, chosen.get(w.layer)) for w in weights),
        tuple(norms[layer] for layer in sorted(norms, key=natural) if layer not in behind),
        left,
    )


def readings(shape: Sequence[int], channels: int) -> tuple[int, ...]:
    """How a norm of so many channels may scale a weight's outputs: 0 for its first axis, as of a matrix or a
    convolution, or else the number of groups of a transposed convolution, whose outputs are the second axis of each."""
    found = [0] if shape[0] == channels else []
    groups, rest = divmod(channels, shape[1])
    if len(shape) > 2 and rest == 0 and shape[0] % groups == 0 and (groups != channels or not found):
        found.append(groups)
    return tuple(found)


def _evident(pairs: Sequence[tuple[Weight, BatchNorm]]) -> bool:
    """Whether one norm at least cannot stand in front of its weight, in which it would have the weight's inputs.

    Then either no number of groups gives the weight so many inputs, or its namesake in another block of the kind would
    need another number of groups for as many channels.
    """
    inputs: dict[tuple[str, int], set[int]] = {}
    for weight, norm in pairs:
        if weight.shape[1] > 1 and norm.channels % weight.shape[1]:
            return True
        own = weight.layer.rpartition(".")[2]
        inputs.setdefault((own, norm.channels), set()).add(weight.shape[1])
    return any(len(widths) > 1 for widths in inputs.values())


def _renamed(pattern: str, template: str) -> Callable[[str], Iterable[str]]:
    def scheme(layer: str) -> Iterable[str]:
        parent, dot, own = layer.rpartition(".")
        found = re.fullmatch(pattern, own)
        return [parent + dot + found.expand(template)] if found else []

    return scheme


def _next(layer: str) -> Iterable[str]:
    """The following entry of a sequence."""
    parent, dot, own = layer.rpartition(".")
    return [f"{parent}{dot}{int(own) + 1}"] if own.isdecimal() and own.isascii() and len(own) < 10 else []


# Each with whether the names themselves are in the order of the code.
SCHEMES: tuple[tuple[Callable[[str], Iterable[str]], bool], ...] = (
    (_next, True),
    (_renamed(r"conv(\d*)", r"bn\1"), False),
    (_renamed(r"conv(\d*)", r"norm\1"), False),
    (_renamed(r"conv_(\d+)", r"bn_\1"), False),
    (_renamed(r"fc(\d*)", r"bn\1"), False),
    (_renamed(r"linear(\d*)", r"bn\1"), False),
)


def _module(name: str) -> str:
    return name.removesuffix("weight").removesuffix(".") if _last(name) == "weight" else name


def _last(name: str) -> str:
    return name.rpartition(".")[2]
