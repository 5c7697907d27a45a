"""The true norm of a layer's operator, independent of lipcheck's engines, to nine digits and kept on disk.

A 1 x 1 kernel is a matrix: a dense float64 SVD. Anything else is a long Lanczos iteration on A*A, A being torch's
convolution in float64 at the true size, from a random start.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.layers import Layer
from lipcheck.operators import Convolution

ACCURACY = 1e-9
_BLOCK = 2
# Lanczos looks now and then whether it is done, and gives up at last.
_EVERY = 20
_STEPS = 5000
# A space of so few dimensions is diagonalised.
_DENSE = 200


def true_norm(operator: Convolution) -> float:
    """The operator norm, off by ACCURACY relatively at the most.

    Errors: ArithmeticError where Lanczos does not get there.
    """
    if all(k == 1 for k in operator.kernel) and not any(operator.offset):
        blocks = operator.weight.detach().double().flatten(1).reshape(operator.groups, -1, operator.weight.shape[1])
        return float(torch.linalg.matrix_norm(blocks, 2).max())
    inputs, outputs = operator.input_channels, operator.weight.shape[0]
    inner, outer = (inputs, *operator.input_size), (outputs, *operator.output_size)
    if math.prod(inner) <= math.prod(outer):
        return _root_of_largest(lambda x: operator.adjoint(operator.forward(x)), inner)
    return _root_of_largest(lambda y: operator.forward(operator.adjoint(y)), outer)


@torch.no_grad()
def _root_of_largest(gram: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
    """The root of the largest eigenvalue of a positive map of tensors of this shape: block Lanczos, random start.

    A peak of the symbol at w has a twin at -w, so the largest eigenvalue of a real convolution often has a neighbour
    that agrees with it to nine digits: a single vector stays between the two for thousands of steps, a block of two
    finds both. Without reorthogonalisation: rounding only makes copies of eigenvalues already found.
    Source: Golub and Underwood 1977; Parlett, The Symmetric Eigenvalue Problem, chapter 13.
    """
    size = math.prod(shape)

    def apply(block: Tensor) -> Tensor:
        return gram(block.T.reshape(-1, *shape)).reshape(-1, size).T

    if size <= _DENSE:
        return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(apply(torch.eye(size, dtype=torch.float64)))[-1])))
    start = torch.randn(size, _BLOCK, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block = torch.linalg.qr(start)[0]
    before, beside = torch.zeros_like(block), torch.zeros(_BLOCK, _BLOCK, dtype=torch.float64)
    projected = torch.zeros(0, 0, dtype=torch.float64)
    for step in range(1, _STEPS + 1):
        image = apply(block) - before @ beside.T
        corner = block.T @ image
        projected = _grown(projected, beside, (corner + corner.T) / 2)
        before, (block, beside) = block, torch.linalg.qr(image - block @ corner)
        if step % _EVERY == 0:
            values, vectors = torch.linalg.eigh(projected)
            value, residual = float(values[-1]), float(torch.linalg.vector_norm(beside @ vectors[-_BLOCK:, -1]))
            # Some eigenvalue is that near; the root halves the relative error.
            if residual <= 2 * ACCURACY * value or value <= 0:
                return math.sqrt(max(value, 0.0))
    raise ArithmeticError(f"Lanczos stopped after {_STEPS} steps at a residual of {residual / value:.0e}")


def _grown(projected: Tensor, beside: Tensor, corner: Tensor) -> Tensor:
    """The block tridiagonal matrix with one more block on its diagonal and `beside` next to it."""
    old = len(projected)
    grown = torch.zeros(old + _BLOCK, old + _BLOCK, dtype=torch.float64)
    grown[:old, :old] = projected
    grown[old:, old:] = corner
    if old:
        grown[old:, old - _BLOCK : old] = beside
        grown[old - _BLOCK : old, old:] = beside.T
    return grown


class Truths:
    """True norms, each computed once and then read from a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def of(self, layer: Layer) -> float:
        key = layer.identity
        if key not in self.known:
            self.known[key] = true_norm(layer.operator)
            self._save()
        return self.known[key]

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(self.known, indent=1) + "\n")
        os.replace(partial, self.path)


def default_path(model: str, weights: str, seed: int) -> Path:
    """Where the truths of a network are kept. The entries are found by hash; the name is for people."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{model}-{weights}-{seed}")
    return cache / "lipcheck-bench" / f"truth-{name}.json"
