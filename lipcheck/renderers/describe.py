"""A layer's operator, names and shares in words, for every renderer alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from lipcheck import numbers
from lipcheck.errors import UsageError
from lipcheck.report import LayerReport, Report
from lipcheck.text import clean, shape

_PLAIN_BELOW = 6  # powers of ten under which the plain number stands beside the power
SORTS = ("network", "name", "lower", "upper", "slack", "merged", "share")


def operator(layer: LayerReport) -> str:
    """The operator in a few words: conv 7×7/2 3→64, dwconv 3×3 96, convT 4×4/2 64→32, linear 2048→1000."""
    parts = [_kind(layer)]
    if layer.kernel:
        parts.append(_axes(layer.kernel) + ("" if _ones(layer.stride) else f"/{_step(layer.stride)}"))
    if layer.channels is not None:
        inputs, outputs = layer.channels
        parts.append(str(inputs) if inputs == outputs and not _mixes(layer) else f"{inputs}→{outputs}")
    if not _ones(layer.dilation):
        parts.append(f"d{_step(layer.dilation)}")
    if layer.groups > 1 and not _depthwise(layer):
        parts.append(f"g{layer.groups}")
    if layer.padding_mode not in ("", "zeros"):
        parts.append(clean(layer.padding_mode))
    return " ".join(parts)


def input_size(layer: LayerReport) -> str:
    """Channels and spatial size at the layer's input: 3×224×224."""
    channels = () if layer.channels is None else layer.channels[:1]
    return shape((*channels, *layer.input_size))


def path(layer: LayerReport) -> str:
    """The layer's dotted path and which part of it the row is about, safe to print; (model) for the model itself."""
    whole = clean(layer.layer) or "(model)"
    return f"{whole} {clean(layer.part)}" if layer.part else whole


def row_name(layer: LayerReport) -> str:
    """The path with how often the layer is called, where that is more than once: encoder.attention ×12."""
    return path(layer) + (f" ×{layer.calls}" if layer.calls > 1 else "")


def lower(layer: LayerReport) -> str:
    """The lower end; a dash where no norm is known to be attained, though some may be."""
    return numbers.down(layer.bound.lower) if layer.bound.lower or not layer.bound.upper else "–"


def slack(layer: LayerReport) -> str:
    """How far apart the ends are, in per cent; a dash where no lower end is known."""
    if layer.bound.lower == 0 and 0 < layer.bound.upper < math.inf:
        return "–"
    found = layer.bound.slack
    return "∞" if math.isinf(found) else f"{numbers.percent_up(found)}%"


def power(log10: float) -> str:
    """An upper bound as a power of ten, rounded up.

    >>> power(18.7301), power(-math.inf)
    ('10^18.74', '0')
    """
    if math.isinf(log10):
        return "∞" if log10 > 0 else "0"
    return f"10^{numbers.power_up(log10)}"


def power_and_plain(log10: float) -> str:
    """The same, with the plain number beside it while people can read that.

    >>> power_and_plain(2.5)
    '10^2.50 (316.23)'
    """
    plain = f" ({numbers.plain_up(log10)})" if -300 < log10 < _PLAIN_BELOW else ""
    return power(log10) + plain


def model_facts(report: Report) -> list[str]:
    """Where the model is from, its weights, how many parameters, its input and its output."""
    model = report.model
    facts = [model.source, model.weights, f"{model.parameters:,} parameters".replace(",", " ")]
    facts += [f"input {shape(model.input_shape)}"] if model.input_shape else []
    return facts + ([f"output {model.output}"] if model.output else [])


def settings(report: Report) -> list[str]:
    """With what the report was made, and how near its graph is to the model."""
    run = report.run
    facts = [f"tolerance {run.tolerance:g}", f"seed {run.seed}", f"{run.device}, {run.threads} thread{s(run.threads)}"]
    if report.model.input_shape:
        facts.append(f"captured graph within {run.capture_difference:.1g} of the model")
    return facts


def versions(report: Report) -> list[str]:
    """The libraries: torch 2.9.0."""
    return [f"{library} {version}" for library, version in report.run.versions.items()]


def stages(report: Report) -> list[str]:
    """What took how long: capturing the graph 3.1 s."""
    return [f"{stage} {seconds:.1f} s" for stage, seconds in report.run.seconds.items()]


def s(count: int) -> str:
    """The ending of a plural."""
    return "" if count == 1 else "s"


def scope(report: Report) -> str:
    """For which inputs the network's bounds hold."""
    return "on the domain" if report.network.domain else "for all inputs"


def chosen(
    report: Report, *, sort: str = "network", top: int | None = None, layers: str | None = None
) -> tuple[LayerReport, ...]:
    """The layers that match the glob, in the order asked for, at most `top` of them.

    Orders by a number put the largest first, and layers without that number last.
    Errors: UsageError for an order that does not exist, or a `top` below one.
    """
    check_choice(sort, top)
    matching = [layer for layer in report.layers if layers is None or fnmatchcase(layer.layer, layers)]
    return tuple(_ordered(matching, sort)[:top])


def check_choice(sort: str, top: int | None) -> None:
    """Refuses what `chosen` would refuse, before there is a report."""
    if sort not in SORTS:
        raise UsageError(f"no order called {clean(sort)!r}; choose one of {', '.join(SORTS)}")
    if top is not None and top < 1:
        raise UsageError(f"the number of layers to show is {top}; give 1 or more")


def heaviest(report: Report, count: int) -> list[LayerReport]:
    """The layers that hold most of the network's log-bound, largest share first."""
    holding = [layer for layer in report.layers if layer.share is not None and layer.share > 0]
    return _ordered(holding, "share")[:count]


def claim(report: Report) -> str:
    """What the network's upper bound may be called: it is worth what the weakest layer bound in it is worth."""
    return {"estimate": "estimated", "probabilistic": "probable", "certified": "certified"}[report.kind] + " upper"


def _ordered(layers: Sequence[LayerReport], sort: str) -> list[LayerReport]:
    if sort == "network":
        return list(layers)
    if sort == "name":
        return sorted(layers, key=lambda layer: layer.layer)
    return sorted(layers, key=lambda layer: -_quantity(layer, sort))


def _quantity(layer: LayerReport, name: str) -> float:
    if name == "merged":
        return -1.0 if layer.merged is None else layer.merged.upper
    if name == "share":
        return -float("inf") if layer.share is None else layer.share
    value: float = getattr(layer.bound, name)
    return value


def _kind(layer: LayerReport) -> str:
    if layer.kind.startswith("conv_transpose"):
        return "dwconvT" if _depthwise(layer) else "convT"
    if layer.kind.startswith("conv"):
        return "dwconv" if _depthwise(layer) else "conv"
    return clean(layer.kind.replace("_", " "))


def _mixes(layer: LayerReport) -> bool:
    """Whether outputs read inputs of other channels, so that both counts say something."""
    return (layer.kind.startswith("conv") or layer.kind == "linear") and not _depthwise(layer)


def _depthwise(layer: LayerReport) -> bool:
    return layer.groups > 1 and layer.channels is not None and layer.groups == min(layer.channels)


def _axes(sizes: Sequence[int]) -> str:
    """One number for one axis, 3×3 for two."""
    return shape(tuple(sizes))


def _step(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else shape(tuple(sizes))


def _ones(sizes: Sequence[int]) -> bool:
    return all(size == 1 for size in sizes)
