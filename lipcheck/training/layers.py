"""The linear maps of a model that is being trained: whose weight, and what it is applied to.

model -> capture -> Graph -> steps -> WeightedMap, once; the weights are read anew whenever a bound is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lipcheck.capture import capture
from lipcheck.engines.literature.subject import Subject
from lipcheck.errors import UsageError
from lipcheck.norms import most_copies
from lipcheck.opening import in_evaluation, unwrapped
from lipcheck.operators import Convolution, Dense, InfiniteConvolution, Padded, scaled_outputs
from lipcheck.plugins import gather
from lipcheck.rules import operator_of
from lipcheck.simplify import simplify
from lipcheck.steps import Step
from lipcheck.text import clean

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, slots=True, eq=False)
class WeightedMap:
    """One linear map of a network, and the modules whose parameters it is made of.

    `operator` says how the weight is applied; the weight in it is the one that was met. `norms` are the batch norms
    folded into it, in their order. `copies` is how often padding repeats an input at most.
    """

    name: str  # dotted module path
    module: nn.Module
    operator: Subject
    norms: tuple[nn.Module, ...] = ()
    copies: int = 1

    @property
    def weight(self) -> Tensor:
        """What the network applies in evaluation, batch norms by their running statistics. Gradients flow to all."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        for norm in self.norms:
            assert not isinstance(self.operator, InfiniteConvolution), "batch norms are seen in a graph, sizes too"
            weight = scaled_outputs(self.operator, weight, batch_norm_gain(norm).to(weight.dtype))
        return weight


def batch_norm_gain(norm: nn.Module) -> Tensor:
    """gamma / sqrt(var + eps) with the running variance. Shapes: (channels,)."""
    assert isinstance(norm.running_var, Tensor), "a batch norm without statistics is folded into nothing"
    gain: Tensor = (norm.running_var.detach() + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
    return gain * norm.weight if isinstance(norm.weight, Tensor) else gain


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The maps found in a model, and the linear layers left out, each with the reason."""

    maps: tuple[WeightedMap, ...]
    left_out: dict[str, str]


def read_maps(model: nn.Module, sample_input: Tensor | None, layers: Sequence[str] | None = None) -> Reading:
    """The convolutions and linear layers of a model whose weights can be trained.

    With a sample input the graph says at which sizes they are applied and which batch norms follow; without one each
    weight stands by itself, on inputs of every size. `layers` are names or patterns, all of them without.
    Errors: UsageError where there is nothing to read; CaptureError, InputSizeError where the graph cannot be had.
    """
    model = network_in(model)
    found = _by_module(model) if sample_input is None else _by_graph(model, sample_input)
    chosen = _chosen(found, layers)
    if not chosen.maps:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(chosen.left_out.items())[:3])
        raise UsageError(
            f"{clean(type(model).__name__)} has no linear layer whose weight can be read{why and ': ' + why}"
        )
    return chosen


def network_in(model: object) -> nn.Module:
    """The network, without what wraps it for compilation or for several processes.

    Errors: UsageError for what is no module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {clean(type(model).__name__)}; give a torch.nn.Module")
    return unwrapped(model)


def unseen_weights(model: nn.Module) -> dict[str, str]:
    """Parameters that may be a linear map's weight outside of convolutions and Linear, by name, each with the reason.

    Tables of embeddings are none, nor what has a leading axis of one, as tokens and positions do that are added.
    """
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, (*WEIGHTED, nn.Embedding, nn.EmbeddingBag, ParametrizationList)):
            continue
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.dim() > 1 and parameter.shape[0] > 1:
                found[name] = f"{clean(type(module).__name__)} applies it in its own way"
    return found


def _chosen(found: Reading, layers: Sequence[str] | None) -> Reading:
    if layers is None:
        return found
    patterns = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, Iterable) else [layers]
    if wrong := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise UsageError(f"layers has {clean(repr(wrong[0]))}; give names or patterns, such as ['features.*']")
    names = [one.name for one in found.maps] + list(found.left_out)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"no linear layer is called {pattern!r}; there are {', '.join(sorted(names)[:8])}")
    wanted = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    left_out = {name: reason for name, reason in found.left_out.items() if name in wanted}
    return Reading(tuple(one for one in found.maps if one.name in wanted), left_out)


def unreadable(module: nn.Module | None) -> str:
    """Why the weight of a module cannot be read as its attribute; "" where it can."""
    if module is None or not isinstance(module, WEIGHTED):
        return "its weight is no plain attribute of a convolution or Linear of torch.nn"
    kind = next(one for one in WEIGHTED if isinstance(module, one))
    parts = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
    own = [part for part in parts if getattr(type(module), part) is not getattr(kind, part) or part in vars(module)]
    if own:
        return f"it computes its {own[0]} in its own way"
    if module._forward_pre_hooks and module._parameters.get("weight") is None:
        return (
            "a hook makes its weight anew before each forward; bake it in (prune.remove, remove_weight_norm), or use "
            "torch.nn.utils.parametrizations to go on training it"
        )
    return ""


def _by_module(model: nn.Module) -> Reading:
    maps, left_out = list[WeightedMap](), dict[str, str]()
    for name, module in model.named_modules():
        if not isinstance(module, WEIGHTED):
            continue
        reason = unreadable(module)
        if reason:
            left_out[name] = reason
        else:
            copies = 1 if isinstance(module, nn.Linear) else most_copies(module)
            maps.append(WeightedMap(name, module, _of_every_size(module), copies=copies))
    unseen = {name: f"{reason}; give sample_input" for name, reason in unseen_weights(model).items()}
    return Reading(tuple(maps), left_out | unseen)


def _of_every_size(module: nn.Module) -> Subject:
    assert isinstance(module, WEIGHTED)
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        return Dense(weight)
    return InfiniteConvolution(weight, module.stride, module.dilation, module.groups, isinstance(module, TRANSPOSED))


def _by_graph(model: nn.Module, sample_input: Tensor) -> Reading:
    maps, left_out = dict[object, WeightedMap](), dict[str, str]()
    modules = dict(model.named_modules())
    for step in read_steps(model, sample_input):
        if not isinstance(step.operator, Dense | Convolution | Padded):
            continue
        name = step.node.layer
        one = _as_map(step, modules)
        if isinstance(one, str):
            left_out[name] = one
        else:
            maps.setdefault(_placement(one), one)
    return Reading(tuple(maps.values()), left_out)


def read_steps(model: nn.Module, sample_input: Tensor) -> list[Step]:
    """The steps of the graph in evaluation mode, scalings merged; the model is left as it was found.

    Errors: UsageError, CaptureError, InputSizeError.
    """
    if not isinstance(sample_input, Tensor) or sample_input.dim() < 1 or not len(sample_input):
        raise UsageError("sample_input must be a tensor with a batch axis, such as torch.randn(1, 3, 32, 32)")
    book = gather(None, plugins=True)
    place = next(model.parameters(), sample_input)
    with in_evaluation(model), torch.no_grad():
        graph, _ = capture(model, sample_input[:1].detach().to(place.device), known=book.table)
        return simplify(graph, [operator_of(node, book.table) for node in graph.nodes])


def _as_map(step: Step, modules: dict[str, nn.Module]) -> WeightedMap | str:
    """The map of a step, or why its weight cannot be followed through training."""
    module = modules.get(step.node.layer)
    reason = unreadable(module)
    operator = step.operator
    copies = operator.copies if isinstance(operator, Padded) else 1
    inner = operator.convolution if isinstance(operator, Padded) else operator
    if reason or module is None:
        return reason
    assert isinstance(inner, Dense | Convolution)
    held = inner.matrix if isinstance(inner, Dense) else inner.weight
    if held.shape != module.weight.shape:
        return "it is applied with another weight than its own"
    folded = tuple(
        modules[name] for name in takewhile(lambda name: _folds(modules.get(name)), step.merged_with)
    )  # fmt: skip
    return WeightedMap(step.node.layer, module, inner, folded, copies)


def _folds(module: nn.Module | None) -> bool:
    return isinstance(module, BATCH_NORMS) and module.running_var is not None


def _placement(one: WeightedMap) -> object:
    """Equal for two calls of one layer that are the same map."""
    operator = one.operator
    sizes = (operator.input_size, operator.output_size, operator.offset) if isinstance(operator, Convolution) else ()
    return (id(one.module), tuple(map(id, one.norms)), sizes, one.copies)
