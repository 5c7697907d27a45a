"""A network of which some weights are missing: what is left of its report, the layers that are whole."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from lipcheck.report import LayerReport, NetworkReport, Report
from lipcheck.sources.wording import grouped


def held_part(report: Report, missing: Collection[str]) -> Report:
    """The rows of layers that no missing weight is part of; nothing is said of the network.

    `missing` are names of the network's state. A layer is a module's path: a weight is part of it that lies in the
    module or in one within it. What is applied by the model itself, outside of its modules, may use any weight.
    """
    layers = tuple(_without(layer, missing) for layer in report.layers if _whole(layer.layer, missing))
    tables = tuple(table for table in report.embeddings if _whole(table.layer, missing))
    count = f"{len(missing)} weight{'' if len(missing) == 1 else 's'} of the network"
    left = len(report.layers) - len(layers)
    notes = (
        f"partial: the checkpoint lacks {count}: {grouped(sorted(missing))}",
        f"partial: {left} layer{'' if left == 1 else 's'} of {len(report.layers)} left out, which they are part of",
    )
    return replace(
        report,
        model=replace(report.model, weights=f"partial: {report.model.weights}", notes=(*report.model.notes, *notes)),
        layers=layers,
        embeddings=tables,
        unsupported=(),
        network=NetworkReport(
            math.inf, math.inf, 0.0, reason=f"the checkpoint lacks {count}", domain=report.network.domain, claimed=False
        ),
    )


def _without(layer: LayerReport, missing: Collection[str]) -> LayerReport:
    """The row without what is about the network, and without what was folded in where that is not whole."""
    layer = replace(layer, share=None, slope=None)
    folded = [path for path in layer.merged_with.split(", ") if path]
    if folded and all(_whole(path, missing) for path in folded):
        return layer
    return replace(layer, merged=None, merged_with="")


def _whole(layer: str, missing: Collection[str]) -> bool:
    return layer != "" and not any(name.startswith(f"{layer}.") or name == layer for name in missing)
