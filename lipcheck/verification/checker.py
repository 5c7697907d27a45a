"""One stated bound of one operator, checked."""

from __future__ import annotations

import math

import numpy as np

from lipcheck.operators import Convolution, Dense, InfiniteConvolution, Operator, Padded
from lipcheck.proof import GridProof, GroupsProof, LatticesProof, ProductProof, Proof, ScaledProof, SemifiniteProof
from lipcheck.verification.arithmetic import Refuted
from lipcheck.verification.proving import Checker
from lipcheck.verification.verdict import DEFAULT_LIMITS, Limits


def counts_of(proof: Proof | None) -> tuple[int, ...]:
    """How many frequencies, one of each pair +-w, each grid of a proof has, outermost first."""
    if isinstance(proof, GridProof | SemifiniteProof):
        return (_pairs(proof.points, proof.half),)
    if isinstance(proof, GroupsProof):
        return (_pairs(proof.points, (0,) * len(proof.points)),)
    if isinstance(proof, ProductProof | LatticesProof):
        return tuple(count for part in proof.parts for count in counts_of(part))
    return counts_of(proof.inner) if isinstance(proof, ScaledProof) else ()


def _pairs(points: tuple[int, ...], half: tuple[int, ...]) -> int:
    """A grid's frequencies, w and -w counted once: -w = w where 2 j + half = 0 modulo `points` on each axis."""
    own = math.prod((1 if m % 2 else 0 if h else 2) for m, h in zip(points, half, strict=False))
    return (math.prod(points) + own) // 2


def check_bound(
    operator: Operator, proof: Proof | None, upper: float, limits: Limits = DEFAULT_LIMITS
) -> tuple[tuple[str, ...], str]:
    """What is wrong with a bound's proof, nothing when it proves norm <= upper; and in which arithmetic it was checked.

    The norm is that of every operator whose entries differ from these by at most `operator.uncertainty`, relatively.
    """
    if proof is None:
        return ("the certificate holds no proof of this bound",), ""
    if not upper >= 0:
        return (f"the bound is {upper}",), ""
    checker = Checker(limits)
    try:
        # What overflows or is undefined is never below anything, and needs no warning.
        with np.errstate(all="ignore"):
            checker.check(operator, proof, upper)
    except Refuted as reason:
        return (str(reason),), checker.arithmetic
    except MemoryError:
        return ("not checked: the proof takes more memory than there is",), checker.arithmetic
    return (), checker.arithmetic


def work(operator: Operator, proof: Proof | None) -> float:
    """An estimate of the multiplications that a check takes, for showing progress."""
    if isinstance(proof, ScaledProof):
        return work(operator, proof.inner)
    inner = operator.convolution if isinstance(operator, Padded) else operator
    if isinstance(inner, Dense):
        return float(min(inner.matrix.shape)) * inner.matrix.numel() + 1e6
    if not isinstance(inner, Convolution | InfiniteConvolution):
        return 1e5
    outputs, inputs = inner.weight.shape[0] // inner.groups, inner.weight.shape[1]
    counted = sum(counts_of(proof)) if proof is not None else 0
    side, columns = min(outputs, inputs * math.prod(inner.stride)), max(outputs, inputs * math.prod(inner.stride))
    return inner.groups * (4.0 * counted + 1) * side * side * (columns + 2.0 * side) + 1e6
