"""Mutated checkpoints: headers, indexes, configs and pickles of sound files, spoiled at random from a seed.

What lipcheck makes of one is a refusal in one line, or bounds that hold of whatever the file says now.
"""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from lipcheck.checking import check
from lipcheck.errors import LipcheckError
from lipcheck.sources.vetting import vet_alone

SECONDS = 30.0  # for one file of some kilobytes: what takes longer would hardly come to an end
SLACK = 1 + 1e-9

STRANGE = [
    *(0, -1, 1, 2**31, 2**63, 2**64, 10**30, 1.5, 1e400, True, None, "", "F32", "BF16", "F8_E4M3", "I8", "F4", "U64"),
    *("../x", "\x00", "\u202e", "[/x]", "model.safetensors", "a" * 5000, [], {}, [[]], [1] * 40, [0, 4], {"a": {}}),
]


def sound(generator: random.Random) -> dict[str, torch.Tensor]:
    """A small network's tensors."""
    torch.manual_seed(generator.randrange(10**6))
    channels = generator.randrange(1, 4)
    return {
        "conv1.weight": torch.randn(channels, 3, generator.randrange(1, 4), 2),
        "bn1.weight": torch.randn(channels),
        "bn1.running_mean": torch.zeros(channels),
        "bn1.running_var": torch.rand(channels),
        "fc.weight": torch.randn(generator.randrange(1, 5), channels).to(
            generator.choice([torch.float32, torch.bfloat16])
        ),
        "fc.bias": torch.randn(2),
    }


def mutants(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """So many spoiled files, one after the other in the same place: what was done, and where it is."""
    for number in range(count):
        generator = random.Random(seed * 10**6 + number)
        yield generator.choice([_header, _header, _other, _other, _bytes, _index, _index, _config, _pickle])(
            generator, folder
        )


def verdict(path: Path) -> str:
    """What lipcheck says of a file: "refused" or "bounded". AssertionError where it should not have said so."""
    began = time.process_time()
    try:
        vet_alone(path)
        report = check(str(path), arch="none")
    except LipcheckError as error:
        if "\n" in str(error):
            raise AssertionError(f"two lines: {error}") from error
        return "refused"
    finally:
        assert time.process_time() - began < SECONDS, "took too long"
    for row in report.layers:
        assert row.bound.lower <= row.bound.upper
    if path.suffix == ".safetensors":
        _refuse_wrong_bounds(path, report)
    return "bounded"


def _refuse_wrong_bounds(path: Path, report: object) -> None:
    """Matrices against their singular values, kernels against the longest of their own outputs."""
    rows = {row.layer: row for row in report.layers}  # type: ignore[attr-defined]
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for name in names:
            tensor = file.get_tensor(name)
            module = name.removesuffix("weight").removesuffix(".")
            row = rows.get(name if name in rows or module in names else module)
            if row is None or row.kind == "batch_norm" or not 2 <= tensor.dim() <= 5 or not tensor.is_floating_point():
                continue
            tensor = tensor.double()
            least = torch.linalg.matrix_norm(tensor, 2) if tensor.dim() == 2 else tensor.flatten(1).norm(dim=1).max()
            assert float(least) <= row.bound.upper * SLACK, f"{name}: {float(least)} above {row.bound.upper}"


# Ways of spoiling


def _header(generator: random.Random, folder: Path) -> tuple[str, Path]:
    data = save(sound(generator))
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for _ in range(generator.randrange(1, 3)):
        _spoil(generator, header)
    text = json.dumps(header).encode()
    if generator.random() < 0.3:
        text = _flipped(generator, text)
    claimed = len(text) if generator.random() < 0.9 else generator.choice([0, 1, len(text) - 1, len(text) + 9, 2**62])
    return _written(folder / "w.safetensors", struct.pack("<Q", max(0, claimed)) + text + data[8 + length :], "header")


def _other(generator: random.Random, folder: Path) -> tuple[str, Path]:
    """A sound header that says something else of the same bytes: other names, shapes and formats."""
    data = save(sound(generator))
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for name in [name for name in header if name != "__metadata__"]:
        entry = header.pop(name)
        begin, end = entry["data_offsets"]
        entry["dtype"] = generator.choice([entry["dtype"], "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2", "F64", "I16"])
        rest = (end - begin) * 8 // {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "I16": 16}.get(entry["dtype"], 8)
        shape = []
        while rest > 1 and len(shape) < 5:
            shape.append(generator.choice([d for d in range(1, rest + 1) if rest % d == 0]))
            rest //= shape[-1]
        entry["shape"] = [*shape, rest] if rest > 1 or not shape else shape
        words = ("conv1", "bn1", "fc", "0", "1", "embed_tokens", "weight", "running_var", "running_mean", "experts", "")
        header[generator.choice([name, ".".join(generator.choices(words, k=generator.randrange(1, 4)))])] = entry
    text = json.dumps(header).encode()
    return _written(folder / "w.safetensors", struct.pack("<Q", len(text)) + text + data[8 + length :], "other")


def _bytes(generator: random.Random, folder: Path) -> tuple[str, Path]:
    return _written(folder / "w.safetensors", _flipped(generator, save(sound(generator))), "bytes")


def _index(generator: random.Random, folder: Path) -> tuple[str, Path]:
    tensors = sound(generator)
    (folder / "a.safetensors").write_bytes(save(tensors))
    index = {"metadata": {"total_size": 10}, "weight_map": dict.fromkeys(tensors, "a.safetensors")}
    for _ in range(generator.randrange(1, 3)):
        _spoil(generator, index)
    text = json.dumps(index).encode()
    text = _flipped(generator, text) if generator.random() < 0.3 else text
    return _written(folder / "model.safetensors.index.json", text, "index")


def _config(generator: random.Random, folder: Path) -> tuple[str, Path]:
    """A config is read for an architecture only: here it stands beside weights that are audited alone."""
    (folder / "config.json").write_bytes(_flipped(generator, b'{"architecture": "resnet18", "num_classes": 3}'))
    return _written(folder / "model.safetensors", save(sound(generator)), "config")


def _pickle(generator: random.Random, folder: Path) -> tuple[str, Path]:
    buffer = io.BytesIO()
    wrapped = {"state_dict": sound(generator)}
    torch.save(wrapped, buffer, _use_new_zipfile_serialization=generator.random() < 0.5)
    return _written(folder / "w.pth", _flipped(generator, buffer.getvalue()), "pickle")


def _spoil(generator: random.Random, value: dict[str, object]) -> None:
    """Changes, drops or moves one entry at some depth."""
    key = generator.choice(list(value) or ["x"])
    inner = value.get(key)
    if isinstance(inner, dict) and inner and generator.random() < 0.8:
        _spoil(generator, inner)
    elif isinstance(inner, list) and inner and generator.random() < 0.6:
        inner[generator.randrange(len(inner))] = copy.deepcopy(generator.choice(STRANGE))
    elif generator.random() < 0.2:
        value.pop(key, None)
    elif generator.random() < 0.3:
        value[str(generator.choice(STRANGE))] = inner
    else:
        value[key] = copy.deepcopy(generator.choice(STRANGE))


def _flipped(generator: random.Random, text: bytes) -> bytes:
    found = bytearray(text)
    for _ in range(generator.choice([1, 1, 2, 5, 30])):
        place = generator.randrange(len(found) or 1)
        kind = generator.random()
        if kind < 0.6 and found:
            found[place] = generator.randrange(256)
        elif kind < 0.8:
            del found[place : place + generator.randrange(1, 20)]
        else:
            found[place:place] = generator.randbytes(generator.randrange(1, 20))
    return bytes(found)


def _written(path: Path, content: bytes, what: str) -> tuple[str, Path]:
    path.write_bytes(content)
    return what, path
