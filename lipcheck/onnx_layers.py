"""The layers of an ONNX graph, each bounded by itself: exactly where its sizes are known, for every size where not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.bare import GAIN_ERROR, bounds_of, largest
from lipcheck.bound import Bound
from lipcheck.cached import Kept
from lipcheck.engines.settings import Settings
from lipcheck.operators import (
    Convolution,
    Dense,
    InfiniteConvolution,
    Linear,
    multiplies_safely,
    output_length,
    scaled_rows,
)
from lipcheck.progress import Clock
from lipcheck.report import LayerReport, LeftOut, ModelSummary, NetworkReport, Report, RunSummary
from lipcheck.sources.onnx_file import OnnxFile, OnnxLayer

# Layers that are bounded side by side.
_TOGETHER = 16
_REASON = "an ONNX graph is bounded layer by layer"


def audit_onnx(found: OnnxFile, name: str, settings: Settings, clock: Clock, kept: Kept) -> Report:
    """Every layer with constant weights bounded by itself; no bound on the network.

    `kept` are the bounds of earlier audits.
    """
    clock.stage("bounding the layers", float(len(found.layers) or 1))
    rows: list[LayerReport] = []
    for start in range(0, len(found.layers), _TOGETHER):
        rows += _rows(found.layers[start : start + _TOGETHER], settings, kept)
        clock.advance(float(_TOGETHER))
    rows += [_norm_row(layer, gain) for layer, gain in found.norms]
    clock.stop()
    notes = list(found.notes)
    if any(layer.weight.dim() > 2 and _sizes(layer) is None for layer in found.layers):
        notes.append("sizes that the graph does not fix: upper ends for every input size, no lower ends")
    return Report(
        model=ModelSummary(name, "onnx", "weights of the graph", found.parameters, (), notes=tuple(notes)),
        layers=tuple(rows),
        network=NetworkReport(math.inf, math.inf, 0.0, reason=_REASON, claimed=False),
        unsupported=(),
        left_out=tuple(LeftOut(reason, names) for reason, names in found.left_out.items()),
        run=RunSummary(
            device=str(settings.device),
            threads=torch.get_num_threads(),
            tolerance=settings.tolerance,
            seed=0,
            seconds=clock.seconds,
            versions={"torch": torch.__version__, "onnx": found.version},
            notes=kept.notes,
        ),
    )


def _rows(layers: Sequence[OnnxLayer], settings: Settings, kept: Kept) -> Iterator[LayerReport]:
    own = [operator_of(layer) for layer in layers]
    merged = [_merged(layer, operator) for layer, operator in zip(layers, own, strict=True)]
    folded = [operator for operator in merged if isinstance(operator, Linear)]
    bounds = bounds_of([*own, *folded], settings, kept)
    rest = iter(bounds[len(own) :])
    for layer, operator, behind, bound in zip(layers, own, merged, bounds, strict=False):
        whole = None
        if isinstance(behind, float):
            whole = replace(bound, lower=0.0, upper=rounding.multiply_up(bound.upper, behind), proof=None)
        elif behind is not None:
            whole = next(rest)
        yield _row(layer, operator, _scaled(layer, operator, bound), whole and _scaled(layer, operator, whole))


def operator_of(layer: OnnxLayer) -> Dense | Convolution | InfiniteConvolution:
    """What the layer applies, but for its scale."""
    if layer.weight.dim() == 2:
        return Dense(layer.weight)
    transposed = layer.op == "ConvTranspose"
    sizes = _sizes(layer)
    if sizes is None:
        return InfiniteConvolution(layer.weight, layer.stride, layer.dilation, layer.groups, transposed)
    inputs, outputs, offset = sizes
    return Convolution(
        layer.weight, layer.stride, layer.dilation, layer.groups, offset, inputs, outputs, transposed=transposed
    )


def _sizes(layer: OnnxLayer) -> tuple[tuple[int, ...], ...] | None:
    """Input sizes, output sizes and left padding of the convolution, of which a transposed one is the adjoint."""
    if layer.sizes is None or layer.pads is None:
        return None
    kernel = layer.weight.shape[2:]
    each = list(zip(layer.sizes, kernel, layer.stride, layer.dilation, layer.pads, strict=True))
    if layer.op == "ConvTranspose":
        made = tuple(
            (n - 1) * s + d * (k - 1) + 1 + more - left - right
            for (n, k, s, d, (left, right)), more in zip(each, layer.extra, strict=True)
        )
        sizes = made, layer.sizes
    else:
        sizes = layer.sizes, tuple(output_length(n, k, s, d, left + right) for n, k, s, d, (left, right) in each)
    # A graph whose layer has no output fails where it is run.
    if min(*sizes[0], *sizes[1]) < 1:
        return None
    return (*sizes, tuple(left for left, _ in layer.pads))


def _merged(layer: OnnxLayer, operator: Linear) -> Linear | float | None:
    """The operator with the batch norm behind it; what its norm is at most multiplied by, where that is not formed."""
    if layer.gain is None:
        return None
    factor = largest(layer.gain)
    if not isinstance(operator, Dense | Convolution | InfiniteConvolution):
        return factor
    if isinstance(operator, InfiniteConvolution):
        # The rows of the weight are the outputs, unless it is applied the other way.
        flat = Dense(operator.weight.flatten(1))
        if operator.transposed or not multiplies_safely(flat, layer.gain):
            return factor
        scaled = scaled_rows(flat, layer.gain, GAIN_ERROR)
        assert isinstance(scaled, Dense)
        weight = scaled.matrix.reshape(operator.weight.shape)
        return replace(operator, weight=weight, uncertainty=scaled.uncertainty)
    if not multiplies_safely(operator, layer.gain):
        return factor
    return scaled_rows(operator, layer.gain, GAIN_ERROR)


def _scaled(layer: OnnxLayer, operator: Linear, bound: Bound) -> Bound:
    """The enclosure times the layer's scale; without a lower end where the layer's size is not known."""
    lower = 0.0 if isinstance(operator, InfiniteConvolution) else rounding.multiply_down(bound.lower, layer.scale)
    return Bound(lower, rounding.multiply_up(bound.upper, layer.scale), bound.method, bound.kind)


def _row(layer: OnnxLayer, operator: Linear, bound: Bound, merged: Bound | None) -> LayerReport:
    row = LayerReport(layer.layer, f"onnx.{layer.op}", "linear", bound, merged, layer.gain_of)
    outputs, inputs = layer.weight.shape[:2]
    if layer.weight.dim() == 2:
        return replace(row, channels=(inputs, outputs))
    axes = layer.weight.dim() - 2
    inputs *= layer.groups
    row = replace(
        row,
        kind=f"conv_transpose{axes}d" if layer.op == "ConvTranspose" else f"conv{axes}d",
        kernel=tuple(layer.weight.shape[2:]),
        stride=layer.stride,
        dilation=layer.dilation,
        groups=layer.groups,
        channels=(outputs, inputs) if layer.op == "ConvTranspose" else (inputs, outputs),
        padding_mode="zeros",
    )
    if not isinstance(operator, Convolution):
        return row
    sizes = operator.input_size, operator.output_size
    return replace(
        row,
        input_size=sizes[1] if operator.transposed else sizes[0],
        output_size=sizes[0] if operator.transposed else sizes[1],
    )


def _norm_row(layer: str, gain: Tensor) -> LayerReport:
    bound = Bound(0.0, largest(gain), "diagonal")
    return LayerReport(layer, "onnx.BatchNormalization", "batch_norm", bound, channels=(len(gain), len(gain)))
