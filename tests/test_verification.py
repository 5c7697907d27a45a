"""The checker by itself: it accepts no bound below the norm, accepts the engines' bounds, and names what is wrong."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import strategies
import torch
from draws import draws
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lipcheck.engines import branch, finite, semifinite
from lipcheck.engines.enclose import Settings, spectral_norm
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
    CellsProof,
    CopiesProof,
    DiagonalProof,
    FiniteProof,
    GridProof,
    GroupsProof,
    LatticesProof,
    MatrixProof,
    ProductProof,
    Proof,
    ScaledProof,
    SemifiniteProof,
    ZeroProof,
)
from lipcheck.symbol import convolution_symbol, embedding_points, trimmed
from lipcheck.verification import Limits, check_bound, counts_of
from lipcheck.verification.arithmetic import Refuted
from lipcheck.verification.geometry import axes_of, embeds, frequencies, undilated
from lipcheck.verification.proving import uncovered
from lipcheck.verification.stated import implied, times, unscaled

FOLDER = Path(__file__).parent.parent / "lipcheck" / "verification"
NOISE = torch.Generator().manual_seed(7)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=NOISE)


def conv(weight: torch.Tensor, size: int, *, stride: int = 1, padding: int = 0, groups: int = 1) -> Convolution:
    axes = weight.dim() - 2
    out = (size + 2 * padding - weight.shape[2]) // stride + 1
    return Convolution(
        weight, (stride,) * axes, (1,) * axes, groups, (padding,) * axes, (size,) * axes, (out,) * axes
    )  # fmt: skip


def problem(operator: Operator, proof: Proof | None, upper: float, limits: Limits | None = None) -> str:
    """What is wrong, "" when the bound is proved."""
    return "; ".join(check_bound(operator, proof, upper, limits or Limits())[0])


def accepted(operator: Operator, proof: Proof) -> float | None:
    """The bound that follows from the proof where the proof is accepted for it; None where it is not."""
    try:
        upper = implied(operator, unscaled(proof))
    except Refuted:
        return None
    return None if problem(operator, proof, upper) else upper


@st.composite
def grid_proofs(draw: st.DrawFn, axes: int) -> Proof:
    """Grids of any size and phase, corrected or not, whether they bound anything or not; mu is 1."""
    points = tuple(draw(st.integers(1, 12)) for _ in range(axes))
    half = tuple(draw(st.integers(0, 1)) for _ in range(axes))
    finite_axes = tuple(draw(st.sets(st.integers(0, axes - 1))))
    rest = [a for a in range(axes) if a not in finite_axes]
    return draw(
        st.sampled_from(
            (
                GridProof(1.0, points, half, tuple(draw(st.booleans()) for _ in range(axes))),
                GridProof(1.0, points, half, (False,) * axes),
                GroupsProof(1.0, points),
                SemifiniteProof(1.0, finite_axes, tuple(points[a] for a in rest), tuple(half[a] for a in rest)),
                FiniteProof(1.0, draw(st.integers(0, axes - 1))),
                MatrixProof(1.0),
            )
        )
    )


@settings(max_examples=draws(80))
@given(st.data())
def test_nothing_below_the_norm_is_accepted(data):
    operator = data.draw(strategies.convolutions())
    matrix = reference.written_out(operator)
    truth = reference.norm(matrix)
    proof = data.draw(grid_proofs(operator.axes))
    assume(truth > 0)
    # What is implied grows with mu: a proof whose bound is just below the norm, and lower ones, whether it bounds
    # anything or not.
    large = 8 * float(operator.weight.double().abs().sum())
    most = accepted(operator, times(proof, large))
    if most is None:
        return
    for share in (1 - 1e-6, 0.9, 0.5):
        found = accepted(operator, times(proof, large * (truth / most) * share))
        assert found is None or truth <= found * reference.slack(matrix)


@settings(max_examples=draws(60))
@given(strategies.convolutions(paddings=("same", "free")), st.data())
def test_a_grid_is_accepted_just_above_its_largest_norm_and_refused_below(operator, data):
    operator = trimmed(operator)
    assume(bool(operator.weight.any()))
    symbol = convolution_symbol(operator)
    points = tuple(m + data.draw(st.integers(0, 2)) for m in embedding_points(operator))
    half = tuple(data.draw(st.integers(0, 1)) for _ in points)
    index = np.indices(points).reshape(len(points), -1).T
    angles = math.pi * (2 * index + np.array(half)) / np.array(points)
    waves = np.exp(1j * angles @ symbol.exponents.numpy().T)
    values = np.einsum("nq,gqrc->ngrc", waves, symbol.coefficients.double().numpy())
    largest = float(np.linalg.norm(values, 2, axis=(2, 3)).max())
    assume(1e-250 < largest < 1e250)
    proof = GridProof(largest * (1 + 1e-6), points, half, (False,) * len(points))
    assert problem(operator, proof, proof.mu) == ""
    assert "is not proved at frequency" in problem(operator, replace(proof, mu=largest * (1 - 1e-6)), proof.mu)


@settings(max_examples=draws(100))
@given(strategies.convolutions())
def test_the_engines_bounds_are_accepted_and_lower_ones_are_not(operator):
    bound = spectral_norm(operator, Settings())
    assert problem(operator, bound.proof, bound.upper) == ""
    truth = reference.norm(reference.written_out(operator))
    if truth > 1e-200:
        low = truth / bound.upper * (1 - 1e-6)
        assert problem(operator, times(bound.proof, low), bound.upper * low) != ""


@pytest.mark.parametrize(
    "operator",
    [
        Dense(randn(40, 70), uncertainty=1e-12),
        Dense(randn(9, 5).bfloat16()),
        Diagonal(randn(12, 1, 1), 1e-15),
        Indexing(9, selecting=True),
        Separable((randn(4, 9), randn(5, 7)), 1e-14),
        conv(randn(32, 8, 3, 3), 40, padding=1),
        conv(randn(32, 16, 3, 3), 40, stride=2, padding=1),
        conv(randn(64, 1, 3, 3), 40, padding=1, groups=64),
        conv(randn(24, 24, 1, 1), 30),
        replace(conv(randn(24, 24, 3, 3), 30, padding=1), circular=True),
        replace(conv(randn(24, 24, 3, 3), 30, padding=1), uncertainty=1e-7),
        conv(torch.zeros(24, 24, 3, 3), 30, padding=1),
    ],
)
def test_engines_and_checker_agree(operator):
    bound = spectral_norm(operator, Settings())
    assert problem(operator, bound.proof, bound.upper) == ""
    if bound.lower:
        assert problem(operator, bound.proof, bound.lower * (1 - 1e-6)) != ""


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("size", [6, 40])
def test_padding_that_copies(mode, size):
    place = torch.nn.functional.pad(torch.arange(float(size))[None, None], (2, 2), mode=mode)[0, 0].long()
    inner = conv(randn(16, 8, 5, 5), size + 4)
    operator = Padded(inner, (place, place), (size, size), mode)
    bound = spectral_norm(operator, Settings())
    assert problem(operator, bound.proof, bound.upper) == ""
    assert problem(operator, bound.proof, bound.lower * (1 - 1e-6)) != ""
    if size == 40:
        assert isinstance(bound.proof, ProductProof)
        fewer = ProductProof((bound.proof.parts[0], CopiesProof(1)))
        assert "copies is 1 in the certificate" in problem(operator, fewer, bound.upper)


@pytest.mark.parametrize("stride", [1, 2])
def test_finite_and_semifinite_proofs(stride):
    operator = conv(randn(6, 4, 3, 3), 9, stride=stride, padding=1)
    truth = reference.norm(reference.written_out(operator))
    for engine in (finite, semifinite):
        bound = engine.spectral_norm(operator, Settings())
        assert isinstance(bound.proof, FiniteProof | SemifiniteProof)
        assert problem(operator, bound.proof, bound.upper) == ""
        low = truth / bound.upper * (1 - 1e-6)
        assert "is not proved" in problem(operator, times(bound.proof, low), bound.upper)
    assert "needs" in problem(operator, SemifiniteProof(1e3, (0,), (3,), (0,)), 1e3)
    assert "more memory" in problem(operator, FiniteProof(1e3, 1), 1e3, Limits(memory=1000))


def test_sublattices_are_the_whole():
    weight = randn(3, 2, 3, 2)
    operator = Convolution(weight, (2, 1), (3, 2), 1, (2, 1), (11, 8), (4, 7))
    truth = reference.norm(reference.written_out(operator))
    norms = [reference.norm(reference.written_out(part)) for part in undilated(operator)]
    assert max(norms) == pytest.approx(truth, rel=1e-12)
    mu = truth * (1 + 1e-6)
    assert problem(operator, LatticesProof((MatrixProof(mu),)), mu) == ""
    low = truth * (1 - 1e-6)
    assert "is not proved" in problem(operator, LatticesProof((MatrixProof(low),)), low)
    assert "no proof is given" in problem(operator, LatticesProof(()), 9e9)


@given(strategies.convolutions(paddings=("zeros", "same", "free")))
def test_sublattices_of_any_convolution(operator):
    matrix = reference.written_out(operator)
    norms = [reference.norm(reference.written_out(part)) for part in undilated(operator)
             if 0 not in part.input_size]  # fmt: skip
    assert max(norms, default=0.0) == pytest.approx(reference.norm(matrix), rel=1e-9, abs=1e-300)


def test_cells():
    operator = InfiniteConvolution(randn(4, 3, 3, 3), (1, 1), (1, 1), 1)
    bound = branch.spectral_norm(operator, Settings(tolerance=1e-2))
    proof = bound.proof
    assert isinstance(proof, CellsProof)
    assert problem(operator, proof, bound.upper) == ""
    assert "is not proved on cell" in problem(operator, times(proof, 0.98 * bound.lower / bound.upper), bound.upper)
    for gone in (0, len(proof.cells) // 2):
        fewer = replace(proof, cells=proof.cells[:gone] + proof.cells[gone + 1 :])
        assert "no cell covers" in problem(operator, fewer, bound.upper)
    assert "degrees is" in problem(operator, replace(proof, degrees=(1, 1)), bound.upper)
    assert "does not exist" in problem(operator, replace(proof, cells=((99, 0, 0),)), bound.upper)
    assert "does not exist" in problem(operator, replace(proof, cells=((0, 10**9, 0),)), bound.upper)


def test_the_corrections_are_sharp():
    """The symbol 1 + exp(i w) has norm 2, sqrt(3) on this grid and sqrt(2) at the centres of these cells."""
    operator = InfiniteConvolution(torch.ones(1, 1, 2), (1,), (1,), 1)
    grid = GridProof(math.sqrt(3) * (1 + 1e-9), (3,), (1,), (True,))
    assert problem(operator, grid, 2 * (1 + 1e-8)) == ""
    assert "the proof gives" in problem(operator, grid, 2 * (1 - 1e-5))
    cells = CellsProof(2 * (1 + 1e-9), (1,), (2,), ((0, 0),))
    assert problem(operator, cells, 2 * (1 + 1e-8)) == ""
    assert "is not proved on cell" in problem(operator, replace(cells, mu=2 * (1 - 1e-5)), 2.0)


def test_a_covering_needs_every_cell():
    cells = {0: {(0,)}, 1: {(2,), (3,)}}
    assert uncovered(cells, (4,), [True]) is None
    assert uncovered({0: {(0,)}, 1: {(2,)}}, (4,), [True]) == (1, 3)
    assert uncovered({0: {(0,)}}, (4,), [True]) == (0, 1)


def test_an_infinite_convolution_needs_the_correction():
    operator = InfiniteConvolution(randn(2, 2, 3), (1,), (1,), 1)
    assert "is not corrected" in problem(operator, GridProof(99.0, (50,), (0,), (False,)), 100.0)
    assert problem(operator, GridProof(99.0, (50,), (0,), (True,)), 100.0) == ""
    assert "too coarse" in problem(operator, GridProof(99.0, (2,), (0,), (True,)), 1e9)


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        (GridProof(50.0, (13, 15), (0, 0), (False, False)), "13×15 points does not embed axis 0, .* needs 15"),
        (GridProof(50.0, (15,), (0,), (False,)), "has 1 axes, the operator 2"),
        (GridProof(50.0, (15, 0), (0, 0), (False, False)), "is not checked"),
        (GridProof(50.0, (1 << 40, 1 << 40), (0, 0), (False, False)), "is not checked"),
        (GridProof(50.0, (15, 15), (7, 0), (False, False)), "is not checked"),
        (GridProof(50.0, (2, 15), (0, 0), (True, False)), "too coarse"),
        (GridProof(60.0, (15, 15), (0, 0), (False, False)), "the proof gives 60, the certificate states 50"),
        (GridProof(math.inf, (15, 15), (0, 0), (False, False)), "the proof gives inf"),
        (DiagonalProof(), "proves nothing"),
        (CopiesProof(1), "copies is 1 in the certificate, none"),
        (ProductProof((ZeroProof(),)), "proves nothing"),
        (ZeroProof(), "not all zero"),
        (ScaledProof(0.0, ZeroProof()), "not all zero"),
        (FiniteProof(50.0, 7), "axis is 7"),
        (SemifiniteProof(50.0, (5,), (15,), (0,)), "do not make 2 axes"),
        (None, "no proof"),
    ],
)
def test_what_is_wrong_is_named(proof, said):
    import re

    operator = conv(randn(3, 3, 3, 3), 14, padding=1)
    assert re.search(said, problem(operator, proof, 50.0))


def test_scaled_proofs_and_uncertain_entries():
    operator = conv(randn(16, 16, 3, 3), 30, padding=1)
    bound = spectral_norm(operator, Settings())
    tripled = replace(operator, weight=operator.weight.double() * 3, uncertainty=1e-15)
    assert problem(tripled, ScaledProof(3.0, bound.proof), 3 * bound.upper * (1 + 1e-14)) == ""
    assert problem(tripled, ScaledProof(2.9, bound.proof), 3 * bound.upper) != ""
    # The same proof says less of entries that may be off by one per cent.
    assert problem(replace(operator, uncertainty=0.01), bound.proof, bound.upper) != ""


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_prove_nothing(bad):
    weight = randn(3, 3, 3, 3)
    weight[0, 0, 0, 0] = bad
    operator = conv(weight, 9, padding=1)
    for proof in (GridProof(50.0, (10, 10), (0, 0), (False, False)), MatrixProof(50.0), FiniteProof(50.0, 0)):
        assert problem(operator, proof, 1e300) != ""
    assert problem(Dense(weight[0, 0]), MatrixProof(1e9), 1e9) != ""
    assert problem(Diagonal(weight), DiagonalProof(), 1e9) != ""


@pytest.mark.parametrize("lie", [np.zeros_like, lambda a: np.zeros_like(a) + np.eye(a.shape[-1])])
def test_a_factorisation_that_lies_proves_nothing(lie, monkeypatch):
    operator = conv(randn(6, 4, 3, 3), 9, padding=1)
    grid = GridProof(1.0, (10, 10), (0, 0), (False, False))
    proofs = [MatrixProof(1.0), grid, FiniteProof(1.0, 0), SemifiniteProof(1.0, (0,), (10,), (0,))]
    monkeypatch.setattr(np.linalg, "cholesky", lie)
    assert all("is not proved" in problem(operator, proof, 1.0) for proof in proofs)
    assert "is not proved" in problem(Dense(randn(5, 9)), MatrixProof(1.0), 1.0)


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 1)), min_size=1, max_size=3))
def test_one_of_each_pair_of_frequencies(axes):
    points, half = tuple(m for m, _ in axes), tuple(h for _, h in axes)
    index = frequencies(points, half)
    turns = {tuple((2 * np.array(j) + half) % (2 * np.array(points))) for j in index.tolist()}
    mirrored = {tuple((-np.array(t)) % (2 * np.array(points))) for t in turns}
    assert len(turns | mirrored) == math.prod(points)
    assert counts_of(GridProof(1.0, points, half, (False,) * len(points))) == (len(index),)


@given(strategies.convolutions(paddings=("same", "free")))
def test_the_engines_embedding_embeds_and_one_point_less_does_not_always(operator):
    operator = trimmed(operator)
    for axis, points in zip(axes_of(operator), embedding_points(operator), strict=True):
        assert axis.degree == 0 or embeds(axis, points)


@pytest.mark.parametrize(
    "operator",
    [
        Dense(randn(12, 20)),
        conv(randn(5, 4, 3, 3), 26, padding=1),
        conv(randn(3, 1, 3, 3), 34, padding=1, groups=3),
        conv(randn(3, 2, 3), 30, stride=2),
        conv(randn(2, 2, 3), 5),
    ],
)
def test_balls_agree_with_float64(operator):
    pytest.importorskip("flint")
    bound = spectral_norm(operator, Settings(tolerance=1e-2))
    assert check_bound(operator, bound.proof, bound.upper, Limits(ball_side=64)) == ((), "balls")
    low = bound.lower * (1 - 1e-6)
    problems, _ = check_bound(operator, times(bound.proof, low / bound.upper), low, Limits(ball_side=64))
    assert problems
    assert check_bound(operator, bound.proof, bound.upper, Limits(ball_side=1))[1] in ("float64", "balls")


def test_the_checker_shares_no_code_with_the_engines():
    allowed = {"lipcheck.errors", "lipcheck.proof", "lipcheck.operators", "lipcheck.certificate"}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.startswith("lipcheck"):
                    assert name in allowed or name.startswith("lipcheck.verification"), f"{path.name} imports {name}"
                assert name.partition(".")[0] not in ("torch", "scipy"), f"{path.name} imports {name}"


def test_an_axis_that_is_named_twice_is_not_one_that_is_finite():
    weight = torch.zeros(2, 2, 2, 1)
    weight[:, 0, 1, 0], weight[0, 1, 1, 0], weight[0, 0, 0, 0] = 100, 0.01, 1
    operator = Convolution(weight, (2, 1), (1, 1), 1, (1, 0), (1, 5), (1, 5))
    assert reference.norm(reference.written_out(operator)) > 141
    for twice in ((0, 0), (1, 1), (0, 0, 0)):
        assert "do not make 2 axes" in problem(operator, SemifiniteProof(1e-3, twice, (5,), (0,)), 1e-3)


def test_points_beyond_counting_are_refused():
    operator = conv(randn(4, 1, 3, 3), 5, padding=1, groups=4)
    assert "is not checked" in problem(operator, GroupsProof(1.0, (1, 2**62)), 1.0)
    assert "is not checked" in problem(operator, GroupsProof(1.0, (0, 8)), 1.0)


def test_taps_between_others_that_read_nothing_play_no_part():
    # One input per axis and a stride of three: of four taps the second and third never meet it.
    operator = Convolution(randn(8, 8, 4, 3), (3, 1), (1, 1), 1, (3, 1), (1, 40), (2, 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lipcheck.engines.enclose._MATRIX_SIDE", 0)
        bound = spectral_norm(operator)
    assert problem(operator, bound.proof, bound.upper) == ""
    assert problem(operator, bound.proof, bound.lower * 0.999) != ""


def test_a_supremum_of_taps_with_gaps():
    weight = randn(2, 2, 5)
    weight[:, :, [1, 3]] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lipcheck.engines.enclose._MATRIX_SIDE", 0)
        patch.setattr("lipcheck.engines.enclose._MUCH", 0)
        patch.setattr("lipcheck.engines.enclose._LOSS", 1e4)
        operator = conv(weight, 60, padding=2)
        bound = spectral_norm(operator, Settings(tolerance=1e-2))
    assert isinstance(bound.proof, CellsProof)
    assert bound.proof.degrees == (2,)
    assert problem(operator, bound.proof, bound.upper) == ""
