"""A small classifier of Fashion-MNIST and its training, as a team might have them."""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian: apt-get install dataset-fashion-mnist


class Clothes(nn.Sequential):
    """Logits of ten classes. Shapes: (batch, 1, 28, 28), pixels in [0, 1], to (batch, 10)."""

    input_size = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.act3 = nn.ReLU()
        self.flat = nn.Flatten()
        self.classifier = nn.Linear(32 * 7 * 7, 10)


def network() -> Clothes:
    """What `lipcheck audit clothes:network --weights FILE` builds."""
    return Clothes()


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images and their classes."""
    pixels = numpy.frombuffer(
        gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes()), numpy.uint8, offset=16
    )
    labels = numpy.frombuffer(
        gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes()), numpy.uint8, offset=8
    )
    return torch.from_numpy(pixels.reshape(-1, 1, 28, 28) / numpy.float32(255)), torch.from_numpy(
        labels.astype("int64")
    )


def train(model: Clothes, images: Tensor, labels: Tensor, *, steps: int, rate: float) -> None:
    """So many steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (128,))
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    parser.add_argument("--start", type=Path, help="the weights to go on from")
    parser.add_argument("--grow", help="a layer whose weights are multiplied by 1.6 before the training goes on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--data", type=Path, default=DATA)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a network gains nothing from more
    try:
        images, labels = read_split(given.data, "train")
        held_out = read_split(given.data, "t10k")
    except FileNotFoundError as error:
        raise SystemExit(
            f"{error.filename}: no such file; apt-get install dataset-fashion-mnist, or --data FOLDER"
        ) from None
    model = network()
    if given.start is not None:
        model.load_state_dict(load_file(given.start))
    if given.grow is not None:
        with torch.no_grad():
            model.get_submodule(given.grow).weight.mul_(1.6)
    train(model, images, labels, steps=given.steps, rate=given.rate)
    with torch.no_grad():
        right = (model(held_out[0]).argmax(1) == held_out[1]).float().mean()
    save_file(model.state_dict(), given.out)
    print(f"{given.out}: test accuracy {right:.1%}")


if __name__ == "__main__":
    main()
