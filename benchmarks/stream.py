"""A checkpoint of random bf16 shards, audited: seconds, peak memory, and how often the floor's time.

The floor is what the proof of any bound of this kind takes at least: each layer's Gram product and its Cholesky
factorisation, in float64, one layer after the other.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# The layers of one block of a language model, as (outputs, inputs) in units of its width.
BLOCK = {
    **{f"self_attn.{name}_proj": (1.0, 1.0) for name in ("q", "k", "v", "o")},
    **{"mlp.gate_proj": (2.6875, 1.0), "mlp.up_proj": (2.6875, 1.0), "mlp.down_proj": (1.0, 2.6875)},
}
SHARD = 2_000_000_000  # bytes


def layers(size: int, width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes of so many bytes of weights, at least one block."""
    block, written = 0, 0
    while written < size or block == 0:
        for name, (outputs, inputs) in BLOCK.items():
            shape = (int(outputs * width), int(inputs * width))
            written += 2 * shape[0] * shape[1]
            yield f"model.layers.{block}.{name}.weight", shape
        block += 1


def generate(folder: Path, size: int, width: int) -> None:
    """A sharded checkpoint in the folder."""
    import torch

    generator = torch.Generator().manual_seed(0)
    where: dict[str, str] = {}
    waiting: dict[str, torch.Tensor] = {}
    held = 0
    for name, shape in layers(size, width):
        tensor = torch.randn(shape, generator=generator, dtype=torch.float32).mul_(shape[1] ** -0.5).bfloat16()
        waiting[name] = tensor
        held += tensor.numel() * 2
        if held >= SHARD:
            _flush(folder, waiting, where)
            held = 0
    if waiting:
        _flush(folder, waiting, where)
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _flush(folder: Path, waiting: dict, where: dict[str, str]) -> None:
    """One more shard, of what is waiting."""
    from safetensors.torch import save_file

    name = f"model-{len(set(where.values())):05}.safetensors"
    save_file(waiting, folder / name)
    where.update(dict.fromkeys(waiting, name))
    waiting.clear()


def floor(folder: Path, most: int) -> tuple[float, int]:
    """Seconds of Gram product and Cholesky of the first layers, as many as asked for, and how many those were."""
    import torch
    from safetensors import safe_open

    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    seconds, done = 0.0, 0
    for name in list(where)[:most]:
        with safe_open(folder / where[name], framework="pt") as file:
            matrix = file.get_tensor(name)
        matrix = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).double()
        began = time.perf_counter()
        gram = matrix @ matrix.T
        scale = float(gram.diagonal().sum())
        torch.linalg.cholesky(torch.eye(len(gram), dtype=torch.float64) * scale - gram)
        seconds += time.perf_counter() - began
        done += 1
    return seconds, done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=13.0, help="gigabytes")
    parser.add_argument("--width", type=int, default=4096, help="of the model's activations")
    parser.add_argument("--folder", help="keep the checkpoint here, and take it from here where it is")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--floor-layers", type=int, default=14, help="layers on which the floor is timed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model.safetensors.index.json").is_file():
            generate(folder, int(given.size * 1e9), given.width)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        print(f"{size / 1e9:.2f} GB in {len(list(folder.glob('*.safetensors')))} files", flush=True)
        words = [sys.executable, "-m", "lipcheck", f"{folder}/", "-q", "--no-cache", "--json", "-"]
        words += ["--device", given.device]
        words += [] if given.threads is None else ["--threads", str(given.threads)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        began = time.perf_counter()
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
        seconds = time.perf_counter() - began
        peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024
        rows = json.loads(done.stdout)["layers"]
        slack = max(row["bound"]["slack"] for row in rows)
        print(f"audit: {seconds:.1f} s for {len(rows)} layers, largest slack {slack:.1e}, peak {peak / 1e9:.2f} GB")
        if given.threads is not None:
            import torch

            torch.set_num_threads(given.threads)
        least, timed = floor(folder, given.floor_layers)
        whole = least * _work(rows, len(rows)) / _work(rows, timed)
        print(f"floor: {whole:.1f} s on the CPU (from {timed} layers); ratio {seconds / whole:.2f}")
    return 0


def _work(rows: list[dict], count: int) -> float:
    """Multiplications of the first rows' Gram products and factorisations."""
    sides = [sorted(row["channels"]) for row in rows[:count]]
    return sum(small**2 * large + small**3 / 3 for small, large in sides)


if __name__ == "__main__":
    sys.exit(main())
