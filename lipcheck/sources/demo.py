"""The demo network: a small residual classifier of Fashion-MNIST that the package ships, weights included."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from lipcheck.sources.blueprint import Blueprint
from lipcheck.sources.checkpoint import read_checkpoint
from lipcheck.sources.pixels import Pixels
from lipcheck.sources.weights import fill

INPUT_SIZE = (1, 28, 28)
CLASSES = 10
PIXELS = Pixels((0.0,), (1.0,), zoom=None)  # in [0, 1], as they are
WEIGHTS = Path(__file__).parent.parent / "data" / "demo.safetensors"


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))): two 3x3 convolutions around which x passes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(self.conv1(x)))
        output: Tensor = self.relu2(self.shortcut(x) + self.norm2(self.conv2(inner)))
        return output


class SeparableBlock(nn.Module):
    """A residual block of depthwise 3x3 convolutions, each followed by a 1x1 convolution across channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise1 = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.depthwise2 = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False)
        self.pointwise2 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, 1)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(self.pointwise1(self.depthwise1(x))))
        output: Tensor = self.relu2(self.shortcut(x) + self.norm2(self.pointwise2(self.depthwise2(inner))))
        return output


class DemoNetwork(nn.Module):
    """Logits of ten classes of clothing.

    Shapes: (batch, 1, 28, 28), pixels in [0, 1], to (batch, 10).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.stage1 = BasicBlock(24, 24)
        self.stage2 = BasicBlock(24, 56, stride=2)
        self.stage3 = SeparableBlock(56, 112)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(112, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stage3(self.stage2(self.stage1(self.stem(x))))
        logits: Tensor = self.head(self.pool(features).flatten(1))
        return logits


def demo() -> Blueprint:
    """The demo network; its published weights are the package's own file."""
    return Blueprint("demo", DemoNetwork, _pretrained, own_size=lambda _: INPUT_SIZE, pixels=lambda _: PIXELS)


def _pretrained() -> tuple[nn.Module, str]:
    model = DemoNetwork()
    fill(model, read_checkpoint(WEIGHTS))
    accuracy = float(json.loads(WEIGHTS.with_suffix(".json").read_text())["test_accuracy"])
    return model, f"pretrained (Fashion-MNIST, test accuracy {accuracy:.1%})"


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
