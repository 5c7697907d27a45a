"""Attacks on certified bounds: weights as hard as they come, against norms computed to fifty digits.

Every way an operator can take is attacked with every content: nothing is forgiven but the reference's own 48th digit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from unittest.mock import patch

import digits
import pytest
import reference
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import enclose, gram, lanczos
from lipcheck.engines.certified import certify
from lipcheck.engines.enclose import Settings, spectral_norm
from lipcheck.engines.gram import gram_family, matrix_magnitude, proves
from lipcheck.engines.search import top_eigenpairs
from lipcheck.engines.vectors import bound_groups
from lipcheck.operators import Convolution, Dense, Diagonal, Separable
from lipcheck.symbol import Grid, Symbol, convolution_symbol, grids, matrix_symbol, trimmed

CPU = torch.device("cpu")
MEMORY = 1 << 26
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
Prove = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@contextlib.contextmanager
def no_small_matrices() -> Iterator[None]:
    """Every convolution by its symbol, however small."""
    with patch.multiple(enclose, _MATRIX_SIDE=0, _GROUP_SIDE=0):
        yield


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hadamard(order: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


# Contents: each is (4, 4, 3), or a matrix where it is a square of 4 x 4 at one tap.


def _taps(*matrices: Tensor) -> Tensor:
    return torch.stack(matrices, dim=2)


EYE, NONE = torch.eye(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
ULP = 2.0**-52
SUBNORMAL = torch.arange(1.0, 49.0, dtype=torch.float64).reshape(4, 4, 3) * 5e-324
CONTENTS = {
    "gaussian": noise(4, 4, 3),
    "ill-conditioned": noise(4, 4, 3) * 10.0 ** -torch.arange(0.0, 48.0, dtype=torch.float64).reshape(4, 4, 3),
    "hilbert": 1 / (torch.arange(48, dtype=torch.float64).reshape(4, 4, 3) % 7 + torch.arange(1.0, 4.0)),
    "subnormal": SUBNORMAL,
    "subnormal beside one": SUBNORMAL + torch.nn.functional.pad(torch.ones(1, 1, 1), (1, 1, 3, 0, 3, 0)),
    "mostly zeros": noise(4, 4, 3) * (noise(4, 4, 3, seed=1) > 1),
    "rank one": noise(4, 1, 1) * noise(1, 4, 1, seed=1) * noise(1, 1, 3, seed=2),
    "rank one, box": torch.ones(4, 4, 3, dtype=torch.float64) / 3,
    "one output 1e8 times the rest": noise(4, 4, 3) * torch.tensor([1e8, 1, 1, 1]).reshape(4, 1, 1),
    "one input 1e8 times the rest": noise(4, 4, 3) * torch.tensor([1, 1, 1e8, 1]).reshape(1, 4, 1),
    "one tap 1e8 times the rest": noise(4, 4, 3) * torch.tensor([1.0, 1e8, 1.0]),
    "flat: a shift by orthogonal channels": _taps(NONE, hadamard(4), NONE),
    "flat: shifts by one channel each": _taps(EYE * (EYE[0] + EYE[3]), EYE * EYE[1], EYE * EYE[2]),
    "repeated peaks": _taps(EYE, NONE, EYE),
    "repeated peaks, an ulp apart": _taps(EYE, NONE, EYE + ULP * torch.diag(torch.arange(4.0))),
    "high-pass": torch.ones(4, 4, 3, dtype=torch.float64) * torch.tensor([1.0, -1.0, 1.0]) * 0.7,
    "taps that cancel": _taps(EYE, -2 * EYE, EYE) + ULP * noise(4, 4, 3),
    "nilpotent": _taps(*(torch.diag(noise(3, seed=s), 1) for s in range(3))),
}
SCALES = (1e30, 1e-30, 1e-290, 1e290)
DTYPES = [torch.bfloat16, torch.float16, *FLOAT8]


# Routes: what a weight (4, 4, 3) becomes, how it is bounded, and its norm.


def same(weight: Tensor, n: int, *, circular: bool = False, groups: int = 1) -> Convolution:
    return Convolution(weight, (1,), (1,), groups, (1,), (n,), (n,), circular)


def _finite(operator: Convolution) -> tuple[Bound, Fraction]:
    return spectral_norm(operator), digits.norm(reference.written_out(operator))


def _embedded(operator: Convolution) -> tuple[Bound, Fraction]:
    """Against the finite norm, and above the maximum on the grid, which is larger: the grid is what was certified."""
    with no_small_matrices():
        bound = spectral_norm(operator)
    short = trimmed(operator)
    symbol = convolution_symbol(replace(short, weight=short.weight.double()))
    if bool(operator.weight.any()):
        offered = grids(short, symbol, 1e-3)
        found = certify([symbol], offered, tolerance=1e-3, device=CPU, memory=MEMORY)[0]
        digits.assert_above(found.upper, _on_grid(symbol, found.grid))
    return bound, digits.norm(reference.written_out(operator))


def _on_grid(symbol: Symbol, grid: Grid) -> Fraction:
    """The norm on the grid less what the reference is unsure of where coefficients cancel."""
    size = max(
        digits.norm(group.double().abs().sum(0) if _summable(group) else group[0]) for group in symbol.coefficients
    )
    return digits.grid_norm(symbol, grid) - size * digits.REST


def _summable(group: Tensor) -> bool:
    return bool(torch.isfinite(group.double().abs().sum(0)).all())


def _dense(weight: Tensor) -> tuple[Bound, Fraction]:
    matrix = weight.flatten(1)
    return spectral_norm(Dense(matrix)), digits.norm(matrix)


def _strided(weight: Tensor) -> tuple[Bound, Fraction]:
    """A stride as long as the kernel: the symbol is constant, the matrix of all taps."""
    bound = spectral_norm(Convolution(weight, (3,), (1,), 1, (0,), (6,), (2,)))
    return bound, digits.norm(weight.flatten(1))


def _depthwise(weight: Tensor) -> tuple[Bound, Fraction]:
    return _finite(same(weight.reshape(16, 1, 3), 3, groups=16))


def _depthwise_embedded(weight: Tensor) -> tuple[Bound, Fraction]:
    operator = same(weight.reshape(16, 1, 3), 3, groups=16)
    with no_small_matrices():
        bound = spectral_norm(operator)
    return bound, digits.norm(reference.written_out(operator))


def _one_output(weight: Tensor) -> tuple[Bound, Fraction]:
    """One row: a vector at each frequency, no factorisation."""
    return _embedded(same(weight[:1], 4))


def _separable(weight: Tensor) -> tuple[Bound, Fraction]:
    parts = (weight[:, :, 0], weight[:, :, 1])
    return spectral_norm(Separable(parts)), digits.norm(parts[0]) * digits.norm(parts[1])


def _diagonal(weight: Tensor) -> tuple[Bound, Fraction]:
    return spectral_norm(Diagonal(weight)), Fraction(float(weight.double().abs().max()))


ROUTES: dict[str, Callable[[Tensor], tuple[Bound, Fraction]]] = {
    "dense": _dense,
    "diagonal": _diagonal,
    "separable": _separable,
    "constant symbol": _strided,
    "finite matrix": lambda weight: _finite(same(weight, 3)),
    "finite matrix, circular": lambda weight: _finite(same(weight, 4, circular=True)),
    "finite matrix, stride, lopsided": lambda weight: _finite(Convolution(weight, (2,), (2,), 1, (3,), (5,), (4,))),
    "embedding": lambda weight: _embedded(same(weight, 3)),
    "embedding, circular": lambda weight: _embedded(same(weight, 3, circular=True)),
    "embedding, circular, wrapped onto itself": lambda weight: _embedded(same(weight, 2, circular=True)),
    "embedding, stride, lopsided": lambda weight: _embedded(Convolution(weight, (2,), (2,), 1, (3,), (5,), (4,))),
    "embedding, groups": lambda weight: _embedded(same(weight[:, :2], 3, groups=2)),
    "depthwise matrices": _depthwise,
    "depthwise embeddings": _depthwise_embedded,
    "one output": _one_output,
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("content", CONTENTS)
def test_no_bound_falls_below_fifty_digits(content: str, route: str) -> None:
    # Each content meets every scale on some route, each route every scale with some content.
    turn = list(CONTENTS).index(content) + list(ROUTES).index(route)
    for scale in (1.0, SCALES[turn % len(SCALES)]):
        digits.assert_encloses(*ROUTES[route](CONTENTS[content] * scale))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_narrow_weights_are_taken_as_they_are(dtype: torch.dtype, route: str) -> None:
    """No rounding on the way in; their smallest subnormals and their largest numbers among them."""
    info = torch.finfo(dtype)
    ends = torch.tensor([info.max, info.smallest_normal, info.smallest_normal * info.eps, 0.0], dtype=torch.float64)
    for weight in (noise(4, 4, 3), noise(4, 4, 3) * info.smallest_normal, ends.repeat(12).reshape(4, 4, 3)):
        digits.assert_encloses(*ROUTES[route](weight.to(dtype)))


@pytest.mark.parametrize("content", CONTENTS)
def test_a_corrected_grid_is_above_the_supremum(content: str) -> None:
    """A long line, on a grid coarser than its embedding: the supremum at the highest place found by brute force."""
    weight = CONTENTS[content]
    operator = same(weight, 4000)
    for tolerance in (0.3, 1e-2):
        bound = spectral_norm(operator, Settings(tolerance=tolerance, memory=MEMORY))
        symbol = convolution_symbol(trimmed(operator))
        if len(symbol.exponents) > 1:
            assert bound.method.startswith("symbol grid")
        exponents = symbol.exponents
        top = digits.symbol_norm(symbol.coefficients[0], exponents, [_highest(symbol)])
        digits.assert_above(bound.upper, top)


def _highest(symbol: Symbol) -> Fraction:
    """Where the norm of a symbol of one axis is largest among the multiples of 2 pi / 720."""
    coefficients = symbol.coefficients[0].double()
    coefficients = coefficients / coefficients.abs().max()
    turns = torch.arange(361, dtype=torch.float64) / 720
    waves = torch.polar(
        torch.ones(361, 1, dtype=torch.float64), 2 * math.pi * torch.outer(turns, symbol.exponents[:, 0].double())
    )
    values = torch.linalg.matrix_norm(torch.einsum("wq,qrc->wrc", waves, coefficients.to(waves)), 2)
    return Fraction(int(values.argmax()), 720)


@pytest.mark.parametrize("rows", [33, 60])
def test_large_matrices_are_enclosed(rows: int) -> None:
    matrix = noise(rows, rows + 5)
    digits.assert_encloses(spectral_norm(Dense(matrix)), digits.norm(matrix))


# Groups whose weights are nearly as far apart as floats can be


def test_groups_far_below_the_largest_are_not_lost_where_the_largest_reads_nothing() -> None:
    """The largest weight stands at a tap that no output reads, so the norm is that of the last, tiny group."""
    weight = torch.zeros(4, 1, 3, dtype=torch.float64)
    weight[0, 0, 1] = 1
    weight[1:3, 0, 0] = 1e-200
    weight[3, 0, ::2] = 1e-170
    operator = Convolution(weight, (2,), (1,), 4, (2,), (1,), (2,))
    digits.assert_encloses(spectral_norm(operator), digits.norm(reference.written_out(operator)))


@pytest.mark.parametrize("ratio", [1e-100, 1e-150, 1e-170, 1e-250, 1e-300])
def test_each_group_of_vectors_has_a_bound_of_its_own(ratio: float) -> None:
    weight = noise(3, 1, 3) * torch.tensor([1.0, ratio, ratio**0.5], dtype=torch.float64).reshape(3, 1, 1)
    operator = same(weight, 3, groups=3)
    symbol = convolution_symbol(operator)
    found = bound_groups(symbol, grids(operator, symbol, 1e-3), CPU, MEMORY)
    for group, upper in zip(weight, found.upper.tolist(), strict=True):
        digits.assert_above(upper, digits.norm(reference.written_out(same(group[None], 3))))


@pytest.mark.parametrize("loud", [0, 1, 50, 99])
def test_one_loud_group_among_a_hundred_silent_ones_is_found(loud: int) -> None:
    weight = noise(200, 2, 1) * 1e-200
    weight[2 * loud : 2 * loud + 2] *= 1e200
    for bound in (
        spectral_norm(same(weight, 2, groups=100)),
        spectral_norm(same(weight.flatten(1)[:, :, None], 2, groups=100)),
    ):
        digits.assert_encloses(bound, digits.norm(weight[2 * loud : 2 * loud + 2, :, 0]))


# Uncertain entries


@pytest.mark.parametrize("entry", [5e-324, 1e-310, 1.0, 1e300])
@pytest.mark.parametrize("uncertainty", [2.0**-53, 1e-9, 0.3])
def test_uncertain_entries_are_covered_however_small(entry: float, uncertainty: float) -> None:
    value = torch.tensor([[entry]], dtype=torch.float64)
    operators = (
        Diagonal(value, uncertainty),
        Dense(value, uncertainty),
        replace(same(value[None], 3), uncertainty=uncertainty),
    )
    moved = Fraction(entry) * (1 + Fraction(uncertainty)), Fraction(entry) * (1 - Fraction(uncertainty))
    for operator in operators:
        for truth in moved:
            digits.assert_encloses(spectral_norm(operator), truth)


# The proof itself


def integers(rows: int, *, complex_valued: bool, seed: int, kind: str) -> Tensor:
    """Small integers, real or Gaussian, whose Gram matrix is exact in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        if kind == "signs":
            return torch.randint(0, 2, (rows, rows + 1), generator=generator).double() * 2 - 1
        if kind == "rank one":
            left, right = (torch.randint(-3, 4, (n,), generator=generator).double() for n in (rows, rows + 1))
            return torch.outer(left, right) + torch.eye(rows, rows + 1, dtype=torch.float64)
        return torch.randint(-9, 10, (rows, rows + 1), generator=generator).double()

    return torch.complex(draw(), draw()) if complex_valued else draw()


def exact_norm(matrix: Tensor) -> Fraction:
    if not matrix.is_complex():
        return digits.norm(matrix)
    return digits.norm(torch.cat([torch.cat([matrix.real, -matrix.imag], 1), torch.cat([matrix.imag, matrix.real], 1)]))


def by_residual(matrices: Tensor, mu: Tensor, magnitude: Tensor, error: float) -> Tensor:
    """What `proves` does on a device whose factorisation it does not trust, on this one."""
    r = matrices.shape[-1]
    budget = mu.square() * (1 - 8 * rounding.UNIT)
    blur = error * magnitude.square() * (1 + 8 * rounding.UNIT) + rounding.UNDERFLOW
    reserve = rounding.cholesky_shift(r, complex_valued=True) * r
    shift = (budget * (4 * reserve + 8 * rounding.UNIT) + blur) * (1 + 1e-6)
    diagonal = (budget - shift)[:, None] * torch.ones(r, dtype=torch.float64)
    return gram._proved_by_residual(matrices, diagonal, 4 * reserve * budget)


BELOW = (0.0, 1e-16, 1e-15, 3e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9)


@pytest.mark.parametrize("prove", [proves, by_residual])
@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("kind", ["integers", "signs", "rank one"])
def test_nothing_is_proved_by_a_hair_below_the_norm(kind: str, complex_valued: bool, prove: Prove) -> None:
    """An exact Gram matrix with no error to hide behind: what stands between yes and no is the shift alone."""
    for rows in (1, 2, 3, 5, 8, 13, 16 if complex_valued else 24):
        matrix = integers(rows, complex_valued=complex_valued, seed=rows, kind=kind)
        truth = exact_norm(matrix)
        if truth == 0:
            continue
        below = [digits.float_below(truth * (1 - Fraction(share)) * (1 - digits.REST)) for share in BELOW]
        mu = torch.tensor(below, dtype=torch.float64)
        held = (matrix @ matrix.mH).repeat(len(below), 1, 1)
        assert not prove(held, mu, torch.zeros_like(mu), 0.0).any()
        held = (matrix @ matrix.mH)[None]
        above = torch.tensor([float(truth) * (1 + 1e-9)], dtype=torch.float64)
        assert prove(held, above, torch.zeros_like(above), 0.0).all()


@pytest.mark.parametrize("prove", [proves, by_residual])
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 32, 64])
def test_a_flat_matrix_is_not_proved_at_or_below_its_norm(rows: int, prove: Prove) -> None:
    """Every pivot vanishes at once: R is rows times the identity, known without any reference."""
    for matrix in (hadamard(rows), hadamard(rows) * 1j):
        truth = math.isqrt(rows) if math.isqrt(rows) ** 2 == rows else math.nextafter(math.sqrt(rows), 0.0)
        mu = torch.tensor([truth * (1 - share) for share in BELOW], dtype=torch.float64)
        if Fraction(float(mu[0])) ** 2 == rows:
            mu = mu[1:]
        assert all(Fraction(m) ** 2 < rows for m in mu.tolist())
        held = (matrix @ matrix.mH).repeat(len(mu), 1, 1)
        assert not prove(held, mu, torch.zeros_like(mu), 0.0).any()


@settings(max_examples=draws(40))
@given(
    st.integers(1, 10), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from((1.0, 1e-8, 1e-30)),
    st.sampled_from(BELOW),
)  # fmt: skip
def test_computed_gram_matrices_are_not_proved_below_the_norm(
    rows: int, columns: int, seed: int, grading: float, share: float
) -> None:
    """As the engine calls it, rounding of R and all."""
    matrix = noise(rows, columns, seed=seed) * grading ** torch.linspace(0, 1, rows, dtype=torch.float64)[:, None]
    family = gram_family([matrix_symbol(matrix)], 1, CPU)
    truth = digits.norm(matrix) / Fraction(2) ** int(family.exponent[0])
    mu = torch.tensor([digits.float_below(truth * (1 - Fraction(share)) * (1 - digits.REST))], dtype=torch.float64)
    held = family.matrices(torch.tensor([0]), Grid((1,), (0,)), torch.zeros(1, 1, dtype=torch.long))
    assert not proves(held, mu, family.magnitude, family.error).any()


def test_what_is_no_number_is_never_proved() -> None:
    for value in (math.nan, math.inf):
        for complex_valued in (False, True):
            held = torch.eye(5, dtype=torch.complex128 if complex_valued else torch.float64).repeat(6, 1, 1)
            held[:, 3, 1] = held[:, 1, 3] = value
            mu = torch.full((6,), 100.0, dtype=torch.float64)
            for prove in (proves, by_residual):
                assert not prove(held.clone(), mu, torch.ones(6).double(), 1e-15).any()
            assert not proves(held.clone(), torch.full_like(mu, math.nan), torch.ones(6).double(), 1e-15).any()


# What a vector attains


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("start", ["gaussian", "graded", "one entry", "orthogonal", "narrow"])
def test_what_a_vector_attains_is_not_above_the_norm(content: str, start: str) -> None:
    matrix = gram.scaled_by_power(CONTENTS[content], -math.frexp(float(CONTENTS[content].abs().max()))[1]).flatten(1)
    n = matrix.shape[1]
    x = {
        "gaussian": noise(n, seed=3),
        "graded": noise(n, seed=3) * 10.0 ** -torch.linspace(0, 320, n, dtype=torch.float64),
        "one entry": torch.eye(n, dtype=torch.float64)[int(matrix.abs().sum(0).argmax())] * 5e-324,
        "orthogonal": torch.linalg.svd(matrix)[2][-1],
        "narrow": noise(n, seed=4).bfloat16(),
    }[start]
    claimed = lanczos.attained(lambda v: matrix @ v, x, terms=n, magnitude=matrix_magnitude(matrix))
    image = digits.exact_quotient(matrix, x)
    assert Fraction(claimed) ** 2 <= image


@settings(max_examples=draws(60))
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3),
       st.integers(-2, 5), st.booleans(), st.integers(0, 2**31))  # fmt: skip
def test_what_a_convolution_attains_is_not_above_the_quotient_in_rationals(
    outputs: int, inputs: int, kernel: int, stride: int, dilation: int, offset: int, circular: bool, seed: int
) -> None:
    """By torch's own convolution, against the matrix written out by index, in rationals."""
    n, after = (2 * stride, 2) if circular else (5, 3)
    weight = noise(outputs, inputs, kernel, seed=seed)
    operator = Convolution(weight, (stride,), (dilation,), 1, (offset,), (n,), (after,), circular)
    x = noise(1, inputs, n, seed=seed + 1)
    magnitude = matrix_magnitude(reference.written_out(replace(operator, weight=weight.abs())))
    claimed = lanczos.attained(operator.forward, x, terms=inputs * kernel, magnitude=magnitude)
    image = Fraction(0)
    for o in range(outputs):
        for i in range(after):
            total = Fraction(0)
            for c in range(inputs):
                for k in range(kernel):
                    place = stride * i + dilation * k - offset
                    if circular or 0 <= place < n:
                        total += Fraction(float(weight[o, c, k])) * Fraction(float(x[0, c, place % n]))
            image += total**2
    length = sum(Fraction(v) ** 2 for v in x.flatten().tolist())
    assert Fraction(claimed) ** 2 * length <= image


def test_a_space_exhausted_but_for_rounding_is_not_scaled_up() -> None:
    """After two steps what is left is so small that its squares vanish in float32, and its norm with them."""
    matrix = torch.zeros(1, 5, 5, dtype=torch.complex64)
    matrix[0, 2, 2] = 1.343517541885376
    matrix[0, 3, 4] = -8.908328224334732e-17 + 1.34416849539867e-24j
    matrix[0, 4, 3] = -8.908328224334732e-17 - 1.34416849539867e-24j
    values, vectors = top_eigenpairs(matrix, steps=6, orthogonal=False)
    assert bool(torch.isfinite(vectors).all())
    assert float(values) <= 1.3436
