"""The true norm of a layer's operator, to a stated accuracy, in float64 on the operator itself; kept on disk.

A 1 x 1 kernel is a matrix: a dense SVD. Anything else is a long block Lanczos iteration on A*A at the true size,
padding and stride. One start is the wave at the symbol's peak, which shortens the way on long inputs and cannot change
where it leads: the other start is random, and 100 steps are made at least.
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
from benchmarks.peaks import start
from benchmarks.taps import taps
from lipcheck.operators import Convolution

ACCURACY = 1e-7
_BLOCK = 2
# Lanczos looks now and then whether it is done, not before so many steps, and gives up at last.
_EVERY = 20
_LEAST = 100
_STEPS = 5000
# A space of so few dimensions is diagonalised.
_DENSE = 200


def true_norm(operator: Convolution, accuracy: float = ACCURACY) -> float:
    """The operator norm, off by `accuracy` relatively at the most.

    Errors: ArithmeticError where Lanczos does not get there.
    """
    if all(k == 1 for k in operator.kernel) and not any(operator.offset):
        blocks = operator.weight.detach().double().flatten(1).reshape(operator.groups, -1, operator.weight.shape[1])
        return float(torch.linalg.matrix_norm(blocks, 2).max())
    if not bool(operator.weight.any()):
        return 0.0
    fast = operator if operator.circular else taps(operator)
    inner = (operator.input_channels, *operator.input_size)
    outer = (operator.weight.shape[0], *operator.output_size)
    if math.prod(inner) <= math.prod(outer):
        return _root_of_largest(
            lambda x: fast.adjoint(fast.forward(x)), inner, lambda: fast.adjoint(start(operator)), accuracy
        )
    return _root_of_largest(lambda y: fast.forward(fast.adjoint(y)), outer, lambda: start(operator), accuracy)


@torch.no_grad()
def _root_of_largest(
    gram: Callable[[Tensor], Tensor], shape: tuple[int, ...], near: Callable[[], Tensor], accuracy: float
) -> float:
    """The root of the largest eigenvalue of a positive map of tensors of this shape: block Lanczos.

    One start is `near`, the other random. A peak of the symbol at w has a twin at -w, so the largest eigenvalue of a
    real convolution often has a neighbour that agrees with it to nine digits: a single vector stays between the two for
    thousands of steps, a block of two finds both. Without reorthogonalisation: rounding only makes copies of
    eigenvalues already found.
    Source: Golub and Underwood 1977; Parlett, The Symmetric Eigenvalue Problem, chapter 13.
    """
    size = math.prod(shape)

    def apply(block: Tensor) -> Tensor:
        return gram(block.T.reshape(-1, *shape)).reshape(-1, size).T

    if size <= _DENSE:
        return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(apply(torch.eye(size, dtype=torch.float64)))[-1])))
    block = torch.randn(size, _BLOCK, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block[:, 0] = near().flatten()
    block = torch.linalg.qr(block)[0]
    before, beside = torch.zeros_like(block), torch.zeros(_BLOCK, _BLOCK, dtype=torch.float64)
    projected = torch.zeros(0, 0, dtype=torch.float64)
    for step in range(1, _STEPS + 1):
        image = apply(block) - before @ beside.T
        corner = block.T @ image
        projected = _grown(projected, beside, (corner + corner.T) / 2)
        before, (block, beside) = block, torch.linalg.qr(image - block @ corner)
        if step % _EVERY == 0 and step >= min(_LEAST, size):
            values, vectors = torch.linalg.eigh(projected)
            value, residual = float(values[-1]), float(torch.linalg.vector_norm(beside @ vectors[-_BLOCK:, -1]))
            # Some eigenvalue is that near; the root halves the relative error.
            if residual <= 2 * accuracy * value or value <= 0:
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
    """True norms, each computed once and then read from a file unless a better one is wanted."""

    def __init__(self, path: Path, accuracy: float = ACCURACY) -> None:
        self.path, self.accuracy = path, accuracy
        # By hash: the norm and its accuracy.
        self.known: dict[str, tuple[float, float]] = json.loads(path.read_text()) if path.is_file() else {}

    def of(self, layer: Layer) -> float:
        key = layer.identity
        if key not in self.known or self.known[key][1] > self.accuracy:
            self.known[key] = (true_norm(layer.operator, self.accuracy), self.accuracy)
            self._save()
        return self.known[key][0]

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(self.known, indent=1) + "\n")
        os.replace(partial, self.path)


def cache() -> Path:
    """The folder for what is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lipcheck-bench"


def default_path(model: str, weights: str, seed: int) -> Path:
    """Where the truths of a network are kept. The entries are found by hash; the name is for people."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{model}-{weights}-{seed}")
    return cache() / f"norms-{name}.json"
