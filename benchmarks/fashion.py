"""Fashion-MNIST, small networks for it, and how robustly a network classifies it.

The data are the four gzipped IDX files of Debian's package dataset-fashion-mnist.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

DATA = Path("/usr/share/datasets/fashion-mnist")
_MAGIC = {1: 2049, 3: 2051}  # number of axes -> the IDX file's first word


def read_idx(path: Path, axes: int) -> Tensor:
    """The file's bytes, shaped as its header says."""
    raw = gzip.decompress(path.read_bytes())
    magic, *shape = struct.unpack(f">{1 + axes}I", raw[: 4 * (1 + axes)])
    if magic != _MAGIC[axes]:
        raise SystemExit(f"{path}: not an IDX file of {axes} axes")
    return torch.frombuffer(bytearray(raw[4 * (1 + axes) :]), dtype=torch.uint8).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] of shape (n, 1, 28, 28), and their classes."""
    try:
        images = read_idx(folder / f"{split}-images-idx3-ubyte.gz", 3)
        labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz", 1)
    except FileNotFoundError as error:
        raise SystemExit(
            f"{error.filename}: no such file; apt-get install dataset-fashion-mnist, or --data FOLDER"
        ) from None
    return images.unsqueeze(1).float() / 255, labels.long()


def convolutional() -> nn.Module:
    """Six layers with weights: five convolutions, two of them strided, and a linear one. No normalisation."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 2), (16, 32, 1), (32, 32, 2), (32, 32, 1), (32, 32, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


class Block(nn.Module):
    """Two convolutions beside a shortcut, a convolution of one tap where the shape changes, each with a batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, normalised: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(inputs, outputs, 3, stride, normalised),
            nn.ReLU(),
            *_convolution(outputs, outputs, 3, 1, normalised),
        )
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*_convolution(inputs, outputs, 1, stride, normalised)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + (x if self.shortcut is None else self.shortcut(x)))


def _convolution(inputs: int, outputs: int, taps: int, stride: int, normalised: bool) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, taps, stride, padding=taps // 2, bias=not normalised)
    return [layer, nn.BatchNorm2d(outputs)] if normalised else [layer]


def residual(*, normalised: bool = False) -> nn.Module:
    """A strided stem, two residual blocks, and a linear layer on the means."""
    return nn.Sequential(
        *_convolution(1, 16, 3, 2, normalised),
        nn.ReLU(),
        Block(16, 16, 1, normalised=normalised),
        Block(16, 32, 2, normalised=normalised),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convolutional": convolutional,
    "residual": residual,
    "normalised": partial(residual, normalised=True),
}


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Of all images, in evaluation mode."""
    model.eval()
    return torch.cat([model(part) for part in images.split(500)])


def attacked(model: nn.Module, images: Tensor, labels: Tensor, radius: float, *, steps: int = 20) -> float:
    """Accuracy under projected gradient ascent of the cross entropy in the Euclidean ball, pixels kept in [0, 1].

    From the image itself, with steps of 2.5 radius / steps along the normalised gradient (Madry et al., ICLR 2018). An
    image counts as classified only where it was at no step misclassified. An upper estimate of the robust accuracy.
    """
    model.eval()
    right = torch.zeros(len(images), dtype=torch.bool)
    for part in torch.arange(len(images)).split(500):
        clean, wanted = images[part], labels[part]
        moved, standing = clean.clone(), torch.ones(len(part), dtype=torch.bool)
        for _ in range(steps + 1):
            moved.requires_grad_()
            found = model(moved)
            standing &= found.argmax(1) == wanted
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(found, wanted, reduction="sum"), moved)
            with torch.no_grad():
                step = moved + 2.5 * radius / steps * gradient / _lengths(gradient).clamp_min(1e-12)
                change = step - clean
                change = change * (radius / _lengths(change).clamp_min(1e-12)).clamp_max(1.0)
                moved = (clean + change).clamp(0, 1)
        right[part] = standing
    return float(right.double().mean())


def _lengths(images: Tensor) -> Tensor:
    return torch.linalg.vector_norm(images.flatten(1), dim=1)[:, None, None, None]
