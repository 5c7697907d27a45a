"""A report as the metrics of a training log: certified figures, sampled ones and surrogates never share a name."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lipcheck import Bound, Report

NAMESPACE = "lipschitz"
SURROGATE = f"{NAMESPACE}/surrogate/penalty"


def metrics(report: Report, *, top: int = 5) -> dict[str, float]:
    """The network's bounds and the largest layers of a report under the names of a training log.

    `lipschitz/certified/network_log10_upper` is the power of ten of the network's certified bound, inf where there is
    none; `lipschitz/certified/layer/NAME` the certified upper end of what the network applies there, of the `top`
    largest. What is no certificate has its own kind in the place of `certified`; the largest Jacobian norm found is
    `lipschitz/sampled/network_lower`. Where no network is claimed, layers alone are named.
    """
    found: dict[str, float] = {}
    layers = [(layer.layer, layer.merged or layer.bound) for layer in report.layers if not layer.part]
    if report.network.claimed:
        found[f"{NAMESPACE}/{report.kind}/network_log10_upper"] = report.network.log10_upper
        if report.network.samples:
            found[f"{NAMESPACE}/sampled/network_lower"] = report.network.lower
    for name, bound in _largest(layers)[:top]:
        found[f"{NAMESPACE}/{bound.kind}/layer/{loggable(name)}"] = bound.upper
    return found


def loggable(name: str) -> str:
    """A layer's path with what loggers refuse in a metric's name replaced.

    >>> loggable("layer1.0.conv2"), loggable(""), loggable("a[0]:b")
    ('layer1.0.conv2', 'model', 'a_0__b')
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "model"


def _largest(layers: list[tuple[str, Bound]]) -> list[tuple[str, Bound]]:
    """The layers by their upper ends, each once."""
    found: dict[str, Bound] = {}
    for name, bound in layers:
        if name not in found or bound.upper > found[name].upper:
            found[name] = bound
    return sorted(found.items(), key=lambda layer: -layer[1].upper)


@dataclass(frozen=True)
class Monitor:
    """When a module in training is audited, what is told of it, and when its training is to end.

    Units: an audit every `every` optimizer steps; `budget` is a power of ten that the network's upper bound may reach.
        `check` are further options of `lipcheck.check`, such as {"domain": "box:0,1"}.
    Errors: ValueError for what means nothing.
    """

    every: int = 100
    top: int = 5
    budget: float | None = None
    check: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, least in (("every_n_steps", self.every, 1), ("top", self.top, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
        if self.budget is not None and (not isinstance(self.budget, int | float) or math.isnan(self.budget)):
            raise ValueError(f"max_log10_bound is {self.budget!r}; give a power of ten, such as 6.5")
        import lipcheck

        _refuse_unknown("check", self.check, lipcheck.check)

    def due(self, step: int) -> bool:
        """Whether the module is audited after so many steps."""
        return step > 0 and step % self.every == 0

    def audit(self, module: nn.Module, example: Tensor | None) -> Report:
        """The report on the module as it is now; it is left as it was found.

        Errors: those of `lipcheck.check`.
        """
        import lipcheck

        given = {"samples": 1, **self.check}
        if example is not None:
            given.setdefault("example", example)
        return lipcheck.check(module, **given)

    def metrics(self, report: Report) -> dict[str, float]:
        """What a log says of the report."""
        return metrics(report, top=self.top)

    def exceeded(self, report: Report) -> bool:
        """Whether the network's upper bound is above the budget; an infinite one, and none, are."""
        if self.budget is None:
            return False
        return not report.network.claimed or report.network.log10_upper > self.budget


def weight_of(value: Any) -> float:
    """The weight of a penalty.

    Errors: ValueError for what is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"penalty_weight is {value!r}; give a number of at least 0")
    return float(value)


def penalty_options(options: Mapping[str, Any] | None, weight: float) -> dict[str, Any]:
    """The options of a penalty.

    Errors: ValueError for options that `lipcheck.training.LipschitzPenalty` does not have, or of no penalty.
    """
    found = dict(options or {})
    if found and not weight:
        raise ValueError("there are options of a penalty, but its weight is 0; give a weight, such as 0.01")
    if found:
        import lipcheck

        _refuse_unknown("penalty", found, lipcheck.training.LipschitzPenalty)
    return found


def _refuse_unknown(kind: str, options: Mapping[str, Any], call: Callable[..., Any]) -> None:
    """Errors: ValueError for a name that the call does not take by keyword."""
    known = [one.name for one in inspect.signature(call).parameters.values() if one.kind is one.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            raise ValueError(f"{kind} has {name!r}; {f'did you mean {near[0]}' if near else f'it takes {known}'}")
