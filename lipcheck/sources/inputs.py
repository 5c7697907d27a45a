"""A file that a user names as one input of a network: an array, a tensor, or an image. It may be a stranger's."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from lipcheck.errors import InputSizeError, MissingExtraError, SourceError
from lipcheck.sources.checkpoint import read_tensor
from lipcheck.sources.pixels import Pixels
from lipcheck.sources.vetting import WEIGHT_SUFFIXES
from lipcheck.sources.wording import plain, reason, times

MOST_PIXELS = 2**26  # of one image, before it is resized
MOST_ELEMENTS = 2**28
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
KINDS = "an image, .npy, .pt or .safetensors with one tensor"
NUMPY = b"\x93NUMPY"
MODES = {1: "L", 3: "RGB"}


def check_input_file(path: Path) -> None:
    """Refuses, before any model is loaded, what is no file.

    Errors: SourceError.
    """
    if not path.is_file():
        raise SourceError(f"{plain(path)}: {'a folder' if path.is_dir() else 'no such file'}; give {KINDS}")


def read_input(path: Path, size: tuple[int, ...], pixels: Pixels | None) -> Tensor:
    """One input of a network as the file has it, in float64: tensors as they are, images as the model's config says.

    Shapes: `size` is one input's without the batch axis; a tensor comes back as it is in the file, an image in `size`.
    Errors: SourceError, or one of its kinds, with the file's name and the reason.
    """
    check_input_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise SourceError(f"{plain(path)}: {error.strerror}; give {KINDS}") from error
    if start.startswith(NUMPY) or path.suffix == ".npy":
        found = _read_numpy(path)
    elif path.suffix in WEIGHT_SUFFIXES:
        found = read_tensor(path)
    else:
        return _read_image(path, size, pixels)
    if found.is_complex() or found.dtype == torch.bool:
        raise SourceError(f"{plain(path)}: holds {found.dtype}; give a file of real numbers")
    if not bool(torch.isfinite(found.double()).all()):
        raise SourceError(f"{plain(path)}: holds NaN or infinite numbers; give finite ones")
    return found.detach().double().clone()


def _read_numpy(path: Path) -> Tensor:
    """An array of numbers. It is mapped first: then its header cannot claim more than the file holds."""
    try:
        array: Any = numpy.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a stranger's header
        why = reason(error)
        raise SourceError(f"{plain(path)}: no .npy file of numbers ({why}); save it with numpy.save") from error
    if array.dtype.kind not in "fiu" or array.size > MOST_ELEMENTS:
        raise SourceError(f"{plain(path)}: holds {array.size} of {plain(array.dtype)}; give an array of real numbers")
    return torch.from_numpy(numpy.array(array, dtype=numpy.float64))


def _read_image(path: Path, size: tuple[int, ...], pixels: Pixels | None) -> Tensor:
    """The image resized, its middle cut out, in [0, 1] and normalised, as the model's config says."""
    if len(size) != 3 or size[0] not in MODES:
        raise InputSizeError(
            f"{plain(path)}: the network takes {times(size)}, no image; give .npy, .pt or .safetensors with that shape"
        )
    if pixels is None:
        raise SourceError(
            f"{plain(path)}: the model's config does not say how images are normalised; give the input that the "
            "network receives as .npy, .pt or .safetensors"
        )
    if any(len(values) not in (1, size[0]) for values in (pixels.mean, pixels.std)):
        raise InputSizeError(
            f"{plain(path)}: the model's config normalises {len(pixels.mean)} channels, the network takes "
            f"{times(size)}; give .npy, .pt or .safetensors with that shape"
        )
    image = _opened(path, MODES[size[0]])
    array = numpy.asarray(_fitted(image, size[1:], pixels), dtype=numpy.float64).reshape(*size[1:], size[0])
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in (pixels.mean, pixels.std))
    return (torch.from_numpy(array / 255).permute(2, 0, 1) - mean) / std


def _opened(path: Path, mode: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("reading images needs pillow; run: pip install pillow") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if math.prod(image.size) > MOST_PIXELS:
                    raise SourceError(f"{plain(path)}: an image of {times(image.size)} pixels; give a smaller one")
                return image.convert(mode)
    except SourceError:
        raise
    except Exception as error:  # of a stranger's file, from any of the decoders
        raise SourceError(f"{plain(path)}: no readable image ({reason(error)}); give {KINDS}") from error


def _fitted(image: Any, sides: tuple[int, ...], pixels: Pixels) -> Any:
    """The image at the network's height and width: squeezed, or its shorter side resized and its middle cut out."""
    from PIL import Image

    filters = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}
    filters |= {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
    chosen = filters.get(pixels.interpolation, Image.Resampling.BILINEAR)
    height, width = sides
    if pixels.zoom is None:
        return image.resize((width, height), chosen)
    scale = max(height / image.height, width / image.width) * pixels.zoom
    # As timm and torchvision count: whole pixels, the rest cut off.
    wide, high = max(width, int(image.width * scale + 1e-6)), max(height, int(image.height * scale + 1e-6))
    if wide * high > MOST_PIXELS:
        raise SourceError(f"an image of {image.width}x{image.height} is too long for one of {width}x{height}; cut it")
    left, top = round((wide - width) / 2), round((high - height) / 2)
    return image.resize((wide, high), chosen).crop((left, top, left + width, top + height))
