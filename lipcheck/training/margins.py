"""What a bound on the network certifies of its predictions: radii within which the largest logit stays the largest.

The difference of two logits is <e_i - e_j, f(x)>, so with a Lipschitz constant L of f it moves by at most sqrt(2) L r
within the distance r. Source: Tsuzuku, Sato, Sugiyama, Lipschitz-margin training, NeurIPS 2018.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.errors import UsageError
from lipcheck.opening import in_evaluation
from lipcheck.report import Report
from lipcheck.text import clean

NetworkBound = float | Bound | Report


def certified_radius(logits: Tensor, network_bound: NetworkBound) -> Tensor:
    """Closer to its input than this, each prediction stays what it is: margin / (sqrt(2) L), rounded down.

    The logits count as exact. `network_bound` is an upper bound L of the network's Lipschitz constant in Euclidean
    norms: a number, a certified `Bound`, or the `Report` of an audit. Where the report is for a domain, the radius
    holds only for an input and a changed input that both lie in that domain.

    Shapes: logits (..., classes) to (...), float64. Units: of the input. A tie of the two largest logits gives zero.
    Errors: UsageError for a bound that certifies nothing.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() < 1 or logits.shape[-1] < 2:
        raise UsageError("logits must be a floating-point tensor with at least two classes along its last axis")
    if not bool(torch.isfinite(logits).all()):
        raise UsageError("logits has entries that are not finite")
    steepest = rounding.multiply_up(rounding.sqrt_up(2.0), _upper(network_bound))
    top = logits.detach().double().topk(2, dim=-1).values
    margins = (top[..., 0] - top[..., 1]).flatten().tolist()
    radii = [_quotient_down(margin, steepest) for margin in margins]
    found = torch.tensor(radii, dtype=torch.float64, device=logits.device)
    return found.reshape(logits.shape[:-1])


def _quotient_down(margin: float, steepest: float) -> float:
    """At most margin / steepest, the margin being off by half a unit itself; a constant network has no end.

    A tie is no prediction, whatever the network.
    """
    if margin == 0:
        return 0.0
    if not steepest:
        return math.inf
    return rounding.down(min(rounding.down(margin) / steepest, sys.float_info.max))


def certified_accuracy(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], network_bound: NetworkBound, radius: float
) -> float:
    """The share of inputs classified as labelled, and certified to be so wherever they are moved by at most `radius`.

    The model is run in evaluation mode and left as it was found. What `certified_radius` says of domains holds here.
    `loader` gives batches of inputs and their labels.
    Shapes: labels are the numbers of the classes, (batch,) for logits (batch, classes).
    Errors: UsageError for a radius or a bound that means nothing, labels of another shape, or a loader without inputs.
    """
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 <= radius < math.inf:
        raise UsageError(f"radius is {radius!r}; give a distance of at least 0")
    _upper(network_bound)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {clean(type(model).__name__)}; give a torch.nn.Module")
    if not isinstance(loader, Iterable):
        raise UsageError(f"loader is a {clean(type(loader).__name__)}; give batches of inputs and labels")
    place = next(model.parameters(), torch.zeros(()))
    certified, total = 0, 0
    with in_evaluation(model), torch.no_grad():
        for batch in loader:
            inputs, labels = _labelled(batch)
            logits = model(inputs.to(place.device))
            if not isinstance(logits, Tensor):
                raise UsageError(
                    f"the model returns a {clean(type(logits).__name__)}; give one that returns its logits"
                )
            if labels.shape != logits.shape[:-1]:
                meant, given = (" x ".join(map(str, some)) for some in (logits.shape[:-1], labels.shape))
                raise UsageError(f"labels have the shape {given or '()'}, the logits are of {meant or '()'} inputs")
            right = logits.argmax(-1) == labels.to(logits.device)
            safe = certified_radius(logits, network_bound) > radius if radius else torch.ones_like(right)
            certified += int((right & safe).sum())
            total += labels.numel()
    if not total:
        raise UsageError("the loader gave no inputs")
    return certified / total


def _labelled(batch: object) -> tuple[Tensor, Tensor]:
    """Inputs and the numbers of their classes.

    Errors: UsageError for anything else.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(one, Tensor) for one in batch):
        raise UsageError(f"the loader gives a {clean(type(batch).__name__)}; give pairs of tensors, (inputs, labels)")
    inputs, labels = batch
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UsageError(f"labels are {labels.dtype}; give the numbers of the classes as whole numbers")
    return inputs, labels


def _upper(network_bound: NetworkBound) -> float:
    """L as a number.

    Errors: UsageError where it is infinite or only an estimate.
    """
    if isinstance(network_bound, Report):
        network = network_bound.network
        if not network.log10_upper < math.inf:
            raise UsageError(f"the network has no finite bound: {network.reason or 'none is claimed'}")
        if network_bound.kind != "certified":
            raise UsageError(
                f"a layer's bound is of the kind {network_bound.kind}, and so is the network's: not certified"
            )
        # 10^x is good to a few units, and to as many times x where its exponent is rounded.
        power = 10.0**network.log10_upper if network.log10_upper < 308 else math.inf
        upper = power * (1 + 2.0**-40) if power else rounding.up(0.0)
    elif isinstance(network_bound, Bound):
        if network_bound.kind != "certified":
            raise UsageError(f"the bound is by {network_bound.method}, of the kind {network_bound.kind}: not certified")
        upper = network_bound.upper
    elif isinstance(network_bound, bool) or not isinstance(network_bound, int | float):
        raise UsageError(f"network_bound is a {type(network_bound).__name__}; give a number, a Bound or a Report")
    else:
        upper = float(network_bound)
    if not 0 <= upper < math.inf:
        raise UsageError(f"the network's bound is {upper}, which certifies nothing; give a finite one")
    return upper
