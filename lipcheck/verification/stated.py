"""What a proof would give if it holds: the bound that follows from its mu, with the operator's uncertain entries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from lipcheck.operators import (
    Convolution,
    Dense,
    Diagonal,
    Indexing,
    InfiniteConvolution,
    Operator,
    Padded,
    Separable,
)
from lipcheck.proof import (
    CopiesProof,
    DiagonalProof,
    GridProof,
    LatticesProof,
    ProductProof,
    Proof,
    ScaledProof,
    ZeroProof,
)
from lipcheck.verification.arithmetic import UNIT, Refuted, down, exponent_of, numbers, size_of, times_power, up
from lipcheck.verification.geometry import Axis, Symbols, axes_of, reduced, symbols_of, undilated


def implied(operator: Operator, proof: Proof) -> float:
    """The upper bound that follows from the proof, if it holds."""
    if isinstance(proof, ZeroProof):
        return 0.0
    if isinstance(proof, DiagonalProof):
        return _diagonal(operator)
    if isinstance(proof, CopiesProof):
        return math.sqrt(proof.copies) if math.isqrt(proof.copies) ** 2 == proof.copies else up(math.sqrt(proof.copies))
    if isinstance(proof, ProductProof):
        bounds = [implied(part, p) for part, p in zip(parts_of(operator, proof), proof.parts, strict=True)]
        result = bounds[0]
        for bound in bounds[1:]:
            result = up(result * bound) if bound != 1 else result
        return result
    if not isinstance(operator, Dense | Convolution | InfiniteConvolution | Padded):
        raise Refuted(f"a {type(proof).__name__} proves nothing of a {type(operator).__name__}")
    if isinstance(proof, LatticesProof):
        if not isinstance(operator, Convolution):
            raise Refuted(f"sublattices prove nothing of a {type(operator).__name__}")
        pairs = itertools.product(undilated(operator), proof.parts)
        return max((implied(one, part) for one, part in pairs), default=math.inf)
    mu: float = proof.mu  # type: ignore[attr-defined]
    share = _share(operator, proof)
    if not share > 0:
        raise Refuted("the grid is too coarse for its correction")
    divided = mu if share == 1 else up(mu / share, 2)
    blur = uncertainty_of(operator)
    return divided if blur == 0 else up(divided + up(blur * size_bound(operator), 4), 2)


def _diagonal(operator: Operator) -> float:
    if not isinstance(operator, Diagonal):
        raise Refuted(f"a diagonal proves nothing of a {type(operator).__name__}")
    gain = numbers(operator.gain)
    largest = float(np.abs(gain).max(initial=0.0))
    if not math.isfinite(largest):
        raise Refuted("the weights are not finite")
    exact = Fraction(largest) * (1 + Fraction(operator.uncertainty))
    return float(exact) if Fraction(float(exact)) >= exact else up(float(exact))


def parts_of(operator: Operator, proof: ProductProof) -> list[Operator]:
    """What each part of a product is the proof of."""
    if isinstance(operator, Padded) and len(proof.parts) == 2 and isinstance(proof.parts[1], CopiesProof):
        counts = (np.bincount(place.numpy()).max(initial=0) for place in operator.places)
        return [operator.convolution, Indexing(math.prod(map(int, counts)))]
    if isinstance(operator, Separable) and len(proof.parts) == len(operator.matrices) > 0:
        return [Dense(matrix, operator.uncertainty) for matrix in operator.matrices]
    raise Refuted(f"a product of {len(proof.parts)} proofs proves nothing of this {type(operator).__name__}")


def _share(operator: Operator, proof: Proof) -> float:
    if not isinstance(proof, GridProof) or not any(proof.corrected):
        return 1.0
    if not isinstance(operator, Convolution | InfiniteConvolution):
        raise Refuted(f"a corrected grid proves nothing of a {type(operator).__name__}")
    degrees = _degrees(operator)
    if not len(degrees) == len(proof.points) == len(proof.corrected):
        raise Refuted(f"the grid has {len(proof.points)} axes, the operator {len(degrees)}")
    return share_of([d if c else 0 for d, c in zip(degrees, proof.corrected, strict=True)], proof.points)


def _degrees(operator: Convolution | InfiniteConvolution) -> list[int]:
    if isinstance(operator, InfiniteConvolution):
        exponents = symbols_for(operator, axes_of(operator)).exponents
        return [int(e) for e in exponents.max(0) - exponents.min(0)]
    return [axis.degree for axis in axes_of(operator)]


def size_bound(operator: Dense | Convolution | InfiniteConvolution | Padded) -> float:
    """At least the norm of the operator of the |W|."""
    if isinstance(operator, Dense):
        matrix = numbers(operator.matrix)
        exponent = exponent_of(matrix)
        return up(math.ldexp(size_of(np.abs(times_power(matrix, -exponent)), 1), exponent))
    if isinstance(operator, Padded):
        copies = math.prod(int(np.bincount(place.numpy()).max(initial=0)) for place in operator.places)
        return up(size_bound(operator.convolution) * up(math.sqrt(copies)), 2)
    return symbols_for(operator, axes_of(operator)).largest()


def symbols_for(operator: Convolution | InfiniteConvolution, axes: list[Axis]) -> Symbols:
    """The symbols on whose frequencies the operator's proofs are stated."""
    symbols = symbols_of(operator, axes)
    return reduced(symbols) if isinstance(operator, InfiniteConvolution) else symbols


def unscaled(proof: Proof) -> Proof:
    """The proof with every gain multiplied into its mu."""
    if isinstance(proof, ScaledProof):
        return times(unscaled(proof.inner), abs(proof.gain)) if proof.gain else ZeroProof()
    if isinstance(proof, ProductProof | LatticesProof):
        return replace(proof, parts=tuple(unscaled(part) for part in proof.parts))
    return proof


def times(proof: Proof, factor: float) -> Proof:
    """The proof with its mu multiplied; of a product, that of its first part that has one."""
    if isinstance(proof, LatticesProof):
        return LatticesProof(tuple(times(part, factor) for part in proof.parts))
    if isinstance(proof, ProductProof):
        parts = list(proof.parts)
        for n, part in enumerate(parts):
            if not isinstance(part, CopiesProof | ZeroProof):
                parts[n] = times(part, factor)
                break
        return ProductProof(tuple(parts))
    if isinstance(proof, ZeroProof | CopiesProof | DiagonalProof):
        return proof
    return replace(proof, mu=proof.mu * factor)  # type: ignore[call-arg, attr-defined]


def uncertainty_of(operator: Operator) -> float:
    """The relative error of the operator's weights."""
    inner = operator.convolution if isinstance(operator, Padded) else operator
    return float(getattr(inner, "uncertainty", 0.0))


def share_of(degrees: Sequence[int], points: Sequence[int]) -> float:
    """At most the share of sup ||F|| that its maximum on a uniform grid reaches; 0 where it may be none.

    Around the maximum M of the non-negative polynomial |F v|^2 of degree D it stays above M cos^2(D t / 2), and a grid
    point lies within t = pi / N: cos(pi D / (2 N)) for each axis (Ehlich and Zeller 1964).
    """
    share = 1.0
    for degree, n in zip(degrees, points, strict=True):
        if degree:
            share = max(0.0, down(share * (math.cos(math.pi * degree / (2 * n)) - 16 * UNIT))) if n > degree else 0.0
    return share


def cell_share(degrees: Sequence[int], points: Sequence[int]) -> float:
    """At most cos(S / 2), S = sum of D pi / N: the share of sup ||F|| that the centre of the cell holding it reaches.

    Let M = sup ||F||^2 be ||F(w*) v||^2 and f = ||F v||^2 <= M. Along one axis arccos(2 f / M - 1) changes by at most D
    a unit (Bernstein, Szego), it is 0 at w*, and the centre is at most pi / N away on each axis: f >= M cos^2(S / 2)
    there while S < pi. So if ||F|| <= mu cos(S / 2) at every centre of a covering, sup ||F|| <= mu.
    """
    width = sum(degree / n for degree, n in zip(degrees, points, strict=True))
    if width == 0:
        return 1.0
    return max(0.0, math.cos(math.pi * width / 2) - 64 * UNIT) if width < 1 - 1e-12 else 0.0
