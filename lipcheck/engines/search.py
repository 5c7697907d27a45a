"""Estimates of the largest eigenvalue of Hermitian matrices, to guess what is then proved: Lanczos, in batches.

Nothing here is a claim. An estimate is never above the eigenvalue by more than rounding, and may be below it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_eigenpairs(
    matrices: Tensor,
    *,
    steps: int,
    start: Tensor | None = None,
    accuracy: float = 0.0,
    orthogonal: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Estimates of the largest eigenvalues and their eigenvectors.

    A dozen steps need no reorthogonalisation (`orthogonal=False`). Stops early once every residual, squared and
    relative, is below `accuracy`: for a separated eigenvalue the relative error is of that order.
    Shapes: matrices (n, r, r); values (n,) real, vectors (n, r) of norm one.
    Source: Lanczos with full reorthogonalisation; Parlett, The Symmetric Eigenvalue Problem, chapter 13.
    """
    n, r = matrices.shape[:2]
    if r == 1:
        return matrices[:, 0, 0].real, torch.ones(n, 1, dtype=matrices.dtype, device=matrices.device)
    steps = min(steps, r)
    if start is None:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(r, generator=generator, dtype=torch.float64).to(matrices).expand(n, r)
    vector = start / torch.linalg.vector_norm(start, dim=1, keepdim=True).clamp_min(1e-30)
    basis = torch.zeros(n, steps, r, dtype=matrices.dtype, device=matrices.device)
    triangle = torch.zeros(n, steps, steps, dtype=matrices.real.dtype, device=matrices.device)
    used = 0
    for step in range(steps):
        basis[:, step] = vector
        used = step + 1
        image = torch.bmm(matrices, vector[:, :, None])[:, :, 0]
        triangle[:, step, step] = (vector.conj() * image).sum(1).real
        if not orthogonal:
            image = image - triangle[:, step, step, None] * vector
            if step:
                image = image - triangle[:, step, step - 1, None] * basis[:, step - 1]
        known = basis[:, :used]
        for _ in range(2 if orthogonal else 0):
            image = image - torch.bmm(torch.bmm(known.conj(), image[:, :, None]).mT, known)[:, 0]
        length = torch.linalg.vector_norm(image, dim=1)
        if accuracy and used % 5 == 0 and _converged(triangle[:, :used, :used], length, accuracy):
            break
        if step + 1 < steps:
            triangle[:, step, step + 1] = triangle[:, step + 1, step] = length
            # What is left of an exhausted space is rounding, whose norm may underflow: it is dropped, not scaled up.
            vector = torch.where(length > 1e-15, 1 / length.clamp_min(1e-15), 0)[:, None] * image
    values, weights = torch.linalg.eigh(triangle[:, :used, :used])
    vectors = torch.bmm(weights[:, None, :, -1].to(basis.dtype), basis[:, :used])[:, 0]
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(1e-30)
    if not orthogonal:
        return values[:, -1], vectors
    # A Rayleigh quotient is never above the eigenvalue, even where the basis lost its orthogonality.
    return (vectors.conj() * torch.bmm(matrices, vectors[:, :, None])[:, :, 0]).sum(1).real, vectors


def _converged(triangle: Tensor, length: Tensor, accuracy: float) -> bool:
    values, weights = torch.linalg.eigh(triangle)
    residual = length * weights[:, -1, -1].abs()
    return bool((residual.square() <= accuracy * values[:, -1].square() + 1e-300).all())
