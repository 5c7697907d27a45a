"""Layers as real architectures build them, at small sizes: the enclosure against the dense SVD of what torch does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import reference
import torch
from networks import in_double
from timm import layers as timm_layers
from torch import nn

import lipcheck


def decoder() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1),
    )


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    # Weight standardisation: BiT, NFNet, each with symmetric and with TensorFlow's "same" padding.
    "BiT": (lambda: timm_layers.StdConv2d(3, 6, 3, padding=1), (3, 8, 8)),
    "BiT, same padding, stride 2": (lambda: timm_layers.StdConv2dSame(3, 6, 3, stride=2), (3, 9, 9)),
    "NFNet": (lambda: timm_layers.ScaledStdConv2d(4, 6, 3, padding=1), (4, 8, 8)),
    "NFNet, same padding, groups": (lambda: timm_layers.ScaledStdConv2dSame(4, 8, 3, stride=2, groups=2), (4, 8, 8)),
    "ConvNeXt depthwise 7×7": (lambda: nn.Conv2d(6, 6, 7, padding=3, groups=6), (6, 14, 14)),
    "ConvNeXt downsampling 2×2/2": (lambda: nn.Conv2d(6, 10, 2, stride=2), (6, 8, 8)),
    "ViT patch stem 16×16/16": (lambda: timm_layers.PatchEmbed(48, 16, 3, 24, flatten=False).proj, (3, 48, 48)),
    "ResNet stem 7×7/2": (lambda: nn.Conv2d(3, 8, 7, stride=2, padding=3), (3, 16, 16)),
    "circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 9, 9)),
    "circular, stride 2": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular"), (3, 8, 8)),
    "circular, inexact": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular"), (3, 9, 9)),
    "reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 8, 8)),
    "replicate, 5×5": (lambda: nn.Conv2d(2, 3, 5, padding=2, padding_mode="replicate"), (2, 8, 8)),
    "dilated": (lambda: nn.Conv2d(3, 4, 3, padding=4, dilation=4), (3, 9, 9)),
    "audio stem": (lambda: nn.Conv1d(1, 16, 10, stride=5), (1, 160)),
    "audio dilated": (lambda: nn.Conv1d(4, 4, 3, padding=9, dilation=9), (4, 40)),
    "video 3×3×3": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 4, 6, 6)),
    "video (2+1)D": (lambda: nn.Conv3d(2, 4, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)), (2, 3, 8, 8)),
    "transposed, dilated, grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, dilation=2, groups=2), (4, 5, 5)),
    "one output": (lambda: nn.Conv2d(4, 3, 6), (4, 6, 6)),
    "kernel beyond the input": (lambda: nn.Conv2d(4, 3, 7, padding=3), (4, 2, 2)),
}

# Inputs of so few positions that the embedding alone is far above the norm.
TINY = ("video 3×3×3", "kernel beyond the input", "dilated")


@pytest.mark.parametrize("formed", [True, False], ids=["as a matrix", "by its symbol"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_norm_lies_in_the_enclosure(name: str, formed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not formed:
        monkeypatch.setattr("lipcheck.engines.enclose._MATRIX_SIDE", 0)
        monkeypatch.setattr("lipcheck.engines.enclose._GROUP_SIDE", 0)
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    module = build().eval()
    matrix = reference.jacobian_of(in_double(module), shape)
    exact = reference.norm(matrix)
    (layer,) = lipcheck.check(module, example=torch.zeros(1, *shape), samples=0).layers
    # Weights that a graph computes from parameters are computed in float32.
    rounding = 1 + 1e-6 if "BiT" in name or "NFNet" in name else 1 + 1e-12
    assert layer.bound.lower <= exact * rounding
    assert exact <= layer.bound.upper * rounding
    if formed:
        assert layer.bound.upper <= exact * 1.0001
    elif "copies" not in layer.bound.method and name not in TINY:
        assert layer.bound.upper <= exact * 1.1


def test_a_decoder_of_transposed_convolutions_layer_by_layer() -> None:
    torch.manual_seed(0)
    module = decoder().eval()
    report = lipcheck.check(module, example=torch.zeros(1, 6, 4, 4), samples=1)
    shapes = [(1, 6, 4, 4), (1, 4, 8, 8)]
    for part, shape, layer in zip(module, shapes, report.layers, strict=True):
        exact = reference.norm(reference.jacobian_of(in_double(part), shape[1:]))
        assert layer.bound.lower <= exact * (1 + 1e-12)
        assert exact <= layer.bound.upper * (1 + 1e-12) <= exact * 1.0001
    whole = reference.norm(reference.jacobian_of(in_double(module), shapes[0][1:]))
    assert whole <= 10**report.network.log10_upper
