"""A tiny image classifier and its data, for the trainers of several frameworks."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

SIZE = (1, 8, 8)


def body() -> nn.Sequential:
    """The same weights at each call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def examples() -> Dataset[tuple[Tensor, ...]]:
    """The same inputs and labels at each call."""
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(24, *SIZE, generator=generator), torch.arange(24) % 3)


def batches(size: int = 4) -> DataLoader[tuple[Tensor, ...]]:
    """They in their order."""
    return DataLoader(examples(), batch_size=size)
