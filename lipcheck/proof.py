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
    """sup ||F|| <= mu on the whole torus: ||F(c)|| <= mu cos(sum of D_a h_a / 2), every group, at each cell's centre c.

    F is the symbol as `engines.branch.infinite_symbol` reduces it, `degrees` its D per axis. At level l an axis has
    N = points 2^l cells of half-width h = pi / N (a single one where D = 0, not halved), cell j has its centre at
    pi (2 j + 1) / N. Shapes: `cells` holds (l, j per axis) for each cell. The cells tile the half torus whose first
    axis with D > 0 runs over [0, pi]; F(-w) = conj F(w) gives the other half.
    """

    mu: float
    degrees: tuple[int, ...]
    points: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]


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


@dataclass(frozen=True, slots=True)
class LatticesProof(Proof):
    """A dilated convolution is a direct sum of undilated ones, each with its proof, in the order of
    `lattices.sublattices`: what is proved of the whole is the largest of theirs.
    """

    parts: tuple[Proof, ...]
