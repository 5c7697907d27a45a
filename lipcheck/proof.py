"""What a certified upper bound rests on: enough to check it again without searching, and free of tensors.

An engine hands a Proof out with its Bound. `mu` is what was proved at each frequency or for each matrix, in the units
of the operator; the bound is mu divided by the share of a corrected grid, plus what the operator's entries are
uncertain by.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Proof:
    """Base of all proofs."""


@dataclass(frozen=True, slots=True)
class ZeroProof(Proof):
    """All weights are zero."""


@dataclass(frozen=True, slots=True)
class MatrixProof(Proof):
    """The finite operator, formed as one matrix a group, has no norm above mu: a Cholesky factorisation each."""

    mu: float


@dataclass(frozen=True, slots=True)
class GridProof(Proof):
    """||F(w)|| <= mu for every group at all w = pi (2 j + half) / points, j = 0 ... points - 1 per axis.

    An axis is `corrected` where its points do not embed the finite operator: then mu is divided by
    cos(pi D / (2 points)), D the symbol's degree there (Ehlich-Zeller).
    """

    mu: float
    points: tuple[int, ...]
    half: tuple[int, ...]
    corrected: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class GroupsProof(Proof):
    """Every group has norm at most mu, by whichever is easier: its own grid (as `GridProof`) or its finite matrix."""

    mu: float
    points: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CellsProof(Proof):
    """sup ||F|| <= mu on the whole torus, by cells whose union is the torus.

    A cell has centre w, half-width h per axis and a bound nu with ||F(w)|| <= nu < mu; then the cell bound of section 3
    gives ||F|| <= mu on it. Shapes: `centres` holds one tuple (one float per axis) a cell, `widths` h per axis a cell,
    `values` nu a cell; `degrees` is the symbol's degree per axis.
    """

    mu: float
    degrees: tuple[int, ...]
    centres: tuple[tuple[float, ...], ...]
    widths: tuple[tuple[float, ...], ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SemifiniteProof(Proof):
    """The axes of `finite` are kept as block-Toeplitz matrices, the others are embedded: ||F(w)|| <= mu on their grid.

    `points` and `half` have one entry per embedded axis, in order.
    """

    mu: float
    finite: tuple[int, ...]
    points: tuple[int, ...]
    half: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FiniteProof(Proof):
    """The finite operator's Gram matrix, in blocks along axis `axis`, is below mu^2: one banded block factorisation."""

    mu: float
    axis: int


@dataclass(frozen=True, slots=True)
class CopiesProof(Proof):
    """Each output is one input, and none is taken more than `copies` times: sqrt(copies)."""

    copies: int


@dataclass(frozen=True, slots=True)
class DiagonalProof(Proof):
    """The largest modulus of the diagonal."""


@dataclass(frozen=True, slots=True)
class ProductProof(Proof):
    """The product of what is proved of the parts: Kronecker factors, or a map and the padding in front of it."""

    parts: tuple[Proof, ...]


@dataclass(frozen=True, slots=True)
class ScaledProof(Proof):
    """The inner proof of the unscaled operator, times `gain`."""

    gain: float
    inner: Proof
