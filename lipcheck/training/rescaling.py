"""Spectral rescaling: layers whose certified norm is at most a given number, by scaling their weights in place.

A factor is sought for the weights as they are stored: scaled, rounded to their own format, and bounded again, a little
smaller each time until the certified upper bound of what is stored is not above the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines.enclose import enclose
from lipcheck.errors import CertificateError, UsageError
from lipcheck.norms import spectral_norm
from lipcheck.operators import Convolution, Dense, Padded
from lipcheck.steps import Step
from lipcheck.text import clean
from lipcheck.training.layers import BATCH_NORMS, WEIGHTED, network_in, read_steps, unreadable, unseen_weights

# By how much more than needed weights are scaled at first, and how often, each time by four times more.
_HEADROOM, TRIALS = 2.0**-20, 12
_CLEAR = 2.0**-30


def rescale_(model: nn.Module, max_norm: float = 1.0, *, inputs: Tensor | None = None) -> dict[str, Bound]:
    """Scales down, in place, every convolution and linear layer whose certified norm is above `max_norm`.

    Afterwards the certified upper bound of what the network applies at each of these layers is at most `max_norm`: of
    the layer's map, with the batch norms and scalings that follow it folded in. Where a batch norm was folded, its
    gamma is what is scaled, so that its statistics stay those of its input; everywhere else it is the layer's weight.
    Biases stay. Layers at or below `max_norm` keep their weights, bit by bit.

    `inputs` is one sample of the network's input, from which the graph is read. Without it the bounds are those for
    inputs of every size, and the network must have no batch norm and no weights outside of convolutions and Linear,
    tables of embeddings aside. Norms that stand alone are not touched.

    Shapes: the result has a bound for every layer by its dotted name, the largest where a layer is called twice; layers
        that share their weight go by the name of one of them where the graph is read.
    Errors: UsageError for a layer above `max_norm` whose weight cannot be scaled; CertificateError where no scaled
        weights could be certified; CaptureError where the graph cannot be had. After an error the weights are those
        that were given.
    """
    if isinstance(max_norm, bool) or not isinstance(max_norm, int | float) or not 0 < max_norm < math.inf:
        raise UsageError(f"max_norm is {max_norm!r}; give a positive number, such as 1.0")
    model = network_in(model)
    read = _read_weights(model) if inputs is None else _read_network(model, inputs)
    originals: dict[nn.Parameter, Tensor] = {}
    try:
        return _scaled_down(read, float(max_norm), originals)
    except BaseException:
        with torch.no_grad():
            for parameter, original in originals.items():
                parameter.copy_(original)
        raise


def _scaled_down(
    read: Callable[[], list[_Applied]], max_norm: float, originals: dict[nn.Parameter, Tensor]
) -> dict[str, Bound]:
    """The bounds once all are at most `max_norm`; `originals` keeps what the scaled parameters were."""
    factors: dict[nn.Parameter, float] = {}
    found: dict[str, Bound] = {}
    for trial in range(TRIALS + 1):
        applied = read()
        above: dict[nn.Parameter, float] = {}
        refused = []
        found = {}
        for one in applied:
            if one.name not in found or found[one.name].upper < one.bound.upper:
                found[one.name] = one.bound
            # Another order of the same sums may move an audit's bound by some units: what was scaled keeps clear of it.
            if one.bound.upper <= max_norm * (1.0 if one.scaled not in originals else 1 - _CLEAR):
                continue
            if isinstance(one.scaled, str):
                refused.append(f"{one.name}: {one.scaled}")
            else:
                above[one.scaled] = max(one.bound.upper, above.get(one.scaled, 0.0))
        if refused:
            raise UsageError(f"some layers above {max_norm:g} cannot be rescaled: {'; '.join(refused)}")
        if not above:
            return found
        for parameter, upper in above.items():
            original = originals.setdefault(parameter, parameter.detach().clone())
            factors[parameter] = factors.get(parameter, 1.0) * shrink(upper, max_norm, trial)
            with torch.no_grad():
                parameter.copy_(original * factors[parameter])
                if not bool(parameter.any()):
                    kind = str(parameter.dtype).removeprefix("torch.")
                    raise UsageError(f"at a limit of {max_norm:g} weights in {kind} become zero; give a larger one")
    worst = max(found, key=lambda name: found[name].upper)
    raise CertificateError(f"{worst} stays at {found[worst].upper:.6g}, above {max_norm:g}, however it is scaled")


def shrink(upper: float, limit: float, trial: int) -> float:
    """A factor that takes a norm under the limit, with more headroom at each trial."""
    if not upper < math.inf:
        raise UsageError("a layer has no finite norm; its weights are not finite, or their squares overflow")
    return rounding.down(limit / upper) * (1 - _HEADROOM * 4.0**trial)


@dataclass(frozen=True, slots=True, eq=False)
class _Applied:
    """What the network applies at one call of a layer: its bound, and the parameter to scale or why there is none."""

    name: str
    bound: Bound
    scaled: nn.Parameter | str


def _read_network(model: nn.Module, inputs: Tensor) -> Callable[[], list[_Applied]]:
    modules = dict(model.named_modules())

    def read() -> list[_Applied]:
        steps = [s for s in read_steps(model, inputs) if isinstance(s.operator, Dense | Convolution | Padded)]
        bounds = enclose([step.effective for step in steps])
        return [
            _Applied(step.node.layer, bound, _scaled_parameter(step, modules))
            for step, bound in zip(steps, bounds, strict=True)
        ]

    return read


def _scaled_parameter(step: Step, modules: dict[str, nn.Module]) -> nn.Parameter | str:
    """The gamma of the last batch norm that was folded, else the weight; or why neither can be scaled."""
    for name in reversed(step.merged_with):
        norm = modules.get(name)
        if isinstance(norm, BATCH_NORMS) and isinstance(norm.weight, nn.Parameter):
            return norm.weight
    module = modules.get(step.node.layer)
    reason = unreadable(module)
    if reason or module is None:
        return reason
    weight = module._parameters.get("weight")
    return weight if weight is not None else "its weight is computed; remove the parametrization first"


def _read_weights(model: nn.Module) -> Callable[[], list[_Applied]]:
    if any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        raise UsageError("the network has batch norms; give inputs=torch.randn(1, ...) to see what they follow")
    chosen = [(name, module) for name, module in model.named_modules() if isinstance(module, WEIGHTED)]
    if not chosen:
        raise UsageError(f"{clean(type(model).__name__)} has no convolution and no Linear")
    for name, reason in unseen_weights(model).items():
        raise UsageError(f"{name}: {reason}; give inputs=torch.randn(1, ...) to see how")
    for name, module in chosen:
        if reason := unreadable(module):
            raise UsageError(f"{name} cannot be rescaled: {reason}")

    def read() -> list[_Applied]:
        found = []
        for name, module in chosen:
            weight = module._parameters.get("weight")
            scaled = weight if weight is not None else "its weight is computed; remove the parametrization first"
            found.append(_Applied(name, spectral_norm(module), scaled))
        return found

    return read
