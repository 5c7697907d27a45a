"""Reports written by hand, with all that a renderer must show: merged bounds, marks, hostile names, infinity."""

from __future__ import annotations

import math
from dataclasses import replace

from lipcheck.bound import Bound
from lipcheck.report import (
    EmbeddingReport,
    LayerReport,
    ModelSummary,
    NetworkReport,
    Report,
    RunSummary,
    UnsupportedOperation,
)

HOSTILE = "head\x1b[31m[/red]\u202eevil\n::error::\x9b"


def layer(name: str, kind: str, lower: float, upper: float, **more: object) -> LayerReport:
    """A layer with a certified enclosure."""
    bound = more.pop("bound", None) or Bound(lower, upper, "circular-embedding")
    return LayerReport(layer=name, op=f"aten.{kind}.default", kind=kind, bound=bound, **more)  # type: ignore[arg-type]


def convolution(
    name: str, inputs: int, outputs: int, kernel: int, size: int, stride: int = 1, **more: object
) -> LayerReport:
    """A square two-dimensional convolution."""
    geometry = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "dilation": (1, 1), "channels": (inputs, outputs)}
    sizes = {"input_size": (size,) * 2, "output_size": (size // stride,) * 2, "padding_mode": "zeros"}
    lower = more.pop("lower", 1.99987)
    upper = more.pop("upper", 2.00043)
    return layer(name, "conv2d", lower, upper, **(geometry | sizes | more))  # type: ignore[arg-type]


def small() -> Report:
    """Eight layers, one of every kind of row, with a finite network bound."""
    layers = (
        convolution("stem.conv", 3, 64, 7, 224, 2, lower=3.99951, upper=4.00049, share=0.31,
                    merged=Bound(1.49991, 1.50012, "circular-embedding"), merged_with="stem.bn"),
        layer("stem.pool", "avg_pool", 0.4999999, 0.5000001, kernel=(3, 3), stride=(2, 2), channels=(64, 64),
              input_size=(112, 112), output_size=(56, 56), share=-0.02),
        convolution("stages.0.blocks.0.token_mixer.depthwise", 64, 64, 3, 56, groups=64, share=0.12, calls=2),
        convolution("stages.0.blocks.0.channel_mixer.expansion.pointwise_convolution", 64, 256, 1, 56, share=0.22),
        convolution("stages.1.dilated", 256, 256, 3, 28, groups=32, dilation=(2, 2), share=0.2,
                    bound=Bound(0.9, 1.25, "kuczynski-wozniakowski", "probabilistic"), padding_mode="reflect"),
        layer("decoder.up", "conv_transpose2d", 1.2e-30, 1.3e-30, kernel=(4, 4), stride=(2, 2), dilation=(1, 1),
              channels=(256, 64), input_size=(28, 28), output_size=(56, 56), share=0.0),
        layer("norm", "batch_norm", 1.0, 1.0, channels=(64, 64), input_size=(56, 56), output_size=(56, 56)),
        layer(HOSTILE, "linear", 9.87654321e29, 1e30, channels=(2048, 1000), share=0.17,
              bound=Bound(9.87654321e29, 1e30, "power-iteration", "estimate")),
    )  # fmt: skip
    return Report(
        model=ModelSummary("example", "timm", "pretrained (example.v1)", 25_557_032, (3, 224, 224)),
        layers=layers,
        network=NetworkReport(log10_upper=3.14159, log10_product=12.5, lower=2.71828, samples=2),
        unsupported=(),
        run=RunSummary("cpu", 2, 1e-3, 0, {"load": 1.21, "capture": 2.04, "bounds": 9.87},
                       {"lipcheck": "0.1.0", "torch": "2.15.0", "timm": "1.0.31"}, 3.1e-8),
    )  # fmt: skip


def unbounded() -> Report:
    """The same layers with random weights in a network that has gates, so that its bound is infinite."""
    gates = tuple(f"blocks.{index}.se.gate" for index in range(18))
    layers = tuple(replace(entry, share=None) for entry in small().layers)
    odd = Bound(1.0, math.inf, "no rule for its padding")
    return replace(
        small(),
        model=replace(small().model, weights="random (seed 0)", notes=("the input size is the model's own",)),
        layers=(*layers, convolution("odd", 8, 8, 3, 14, bound=odd)),
        network=NetworkReport(math.inf, math.inf, 0.0, 0, reason="aten.mul.Tensor in blocks.0.se.gate and 17 more"),
        unsupported=(
            UnsupportedOperation("aten.mul.Tensor", "a product of two activations has no global constant", gates),
            UnsupportedOperation("aten.fancy.default", "no rule", ("", HOSTILE)),
        ),
    )


def constant() -> Report:
    """A network whose output does not depend on its input."""
    layers = tuple(replace(entry, share=None) for entry in small().layers)
    return replace(small(), layers=layers, network=NetworkReport(-math.inf, -math.inf, 0.0, 1))


def transformer() -> Report:
    """Two blocks of attention on a domain: packed projections with their parts, normalisations with their slopes."""
    layers = [convolution("patch_embed.proj", 3, 192, 16, 224, 16, lower=0.8587, upper=0.85873, share=-0.01)]
    for block in range(2):
        name = f"blocks.{block}"
        for norm, slope, share in ((f"{name}.norm1", 35.35, 0.21), (f"{name}.norm2", 12.125, 0.17)):
            ends = {"slope": Bound(0.0, slope, "on ranges"), "slope_everywhere": Bound(0.0, 1250.5, "everywhere")}
            layers.append(layer(norm, "layer_norm", 1.25, 1.25, channels=(192, 192), share=share, **ends))
            if norm.endswith("norm1"):
                qkv = layer(f"{name}.attn.qkv", "linear", 0.7542, 0.75425, channels=(192, 576), share=-0.02)
                parts = (("q", 0.5473), ("k", 0.5488), ("v", 0.5495), ("q head 11", 0.2183))
                layers += [qkv, *(replace(qkv, part=p, bound=Bound(n, n, "matrix"), share=None) for p, n in parts)]
                layers.append(layer(f"{name}.attn.proj", "linear", 0.5457, 0.54571, channels=(192, 192), share=0.0))
    endless = {"slope": Bound(0.0, math.inf, "on ranges"), "slope_everywhere": Bound(0.0, math.inf, "everywhere")}
    layers.append(layer("norm", "rms_norm", 1.0, 1.0, channels=(192, 192), **endless))
    domain = "box:0,1 in pixels, before the model's normalisation (mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225)"
    return replace(
        small(),
        layers=tuple(layers),
        network=NetworkReport(25.15, 30.5, 1.25, 2, elsewhere={"scaled_dot_product_attention": 0.4}, domain=domain),
        embeddings=(
            EmbeddingReport(
                "embeddings.word_embeddings", 30522, 384, Bound(3.71, 3.72, "matrix"), Bound(0.2, 0.3, "row")
            ),
            EmbeddingReport(HOSTILE, 2, 384, Bound(0.0, 0.0, "zero"), Bound(0.0, 0.0, "zero")),
        ),
    )


def resnet() -> Report:
    """Fifty-four layers with the names and sizes of a ResNet-50; the figures are made up."""
    layers = [convolution("conv1", 3, 64, 7, 224, 2, lower=5.1234567, upper=5.1251, share=0.03)]
    inputs, size = 64, 56
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            name, wide = f"layer{stage}.{block}", 4 * width
            rows = [(f"{name}.conv1", inputs, width, 1, 1), (f"{name}.conv2", width, width, 3, stride)]
            rows.append((f"{name}.conv3", width, wide, 1, 1))
            if block == 0:
                rows.append((f"{name}.downsample.0", inputs, wide, 1, stride))
            for index, (path, c_in, c_out, kernel, step) in enumerate(rows):
                lower = 1.5 + 0.37 * index + 0.113 * len(layers)
                merged = Bound(lower / 3.7, 1.0004 * lower / 3.7, "circular-embedding")
                layers.append(
                    convolution(path, c_in, c_out, kernel, size, step, lower=lower, upper=lower * 1.0004,
                                merged=merged, merged_with=path.replace("conv", "bn"), share=0.05 / (1 + index))
                )  # fmt: skip
            size //= stride
            inputs = wide
    layers.append(layer("fc", "linear", 2.345678, 2.345679, channels=(2048, 1000), share=0.021))
    return replace(
        small(),
        model=ModelSummary("resnet50", "timm", "pretrained (resnet50.a1_in1k)", 25_557_032, (3, 224, 224)),
        layers=tuple(layers),
        network=NetworkReport(18.76543, 42.98765, 12.3456, 2),
    )
