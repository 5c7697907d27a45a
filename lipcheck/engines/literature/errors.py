"""Forward errors of the published methods in float64: what is added to a computed number to make it a claim.

u is the unit roundoff and gamma(n) as in `lipcheck.rounding`; weights are near one (the largest in [1/2, 1)), so
what gradual underflow can add stays below rounding.UNDERFLOW. All bounds hold for any order of summation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.engines.gram import proves
from lipcheck.symbol import Symbol

# A norm below this is taken to be this when something is divided by it, so that squares do not underflow.
TINY = 1e-130


def symbol_error(taps: int) -> float:
    """Entrywise error of a computed F(w), relative to B = sum of |P_q|.

    The real and the imaginary part are sums of `taps` products, each factor cos or sin off by at most PHASE_ERROR;
    the modulus is off by at most sqrt(2) times what each part is: two covers it.
    """
    return 2 * (rounding.gamma(taps + 4) + 2 * rounding.PHASE_ERROR)


def entry_sums(symbol: Symbol) -> Tensor:
    """B = sum of |P_q|, computed. Shapes: (groups, rows, columns)."""
    return symbol.coefficients.detach().double().abs().sum(1)


def magnitudes(symbol: Symbol) -> Tensor:
    """At least ||B||_2 per group: Frobenius or sqrt(||B||_1 ||B||_inf), the smaller. Shapes: (groups,)."""
    sums = entry_sums(symbol)
    schur = sums.sum(2).amax(1) * sums.sum(1).amax(1)
    tightest = torch.minimum(sums.square().sum((1, 2)), schur).sqrt()
    terms = symbol.coefficients[0].numel()
    return tightest * (1 + rounding.gamma(terms + 16)) + rounding.UNDERFLOW


def gram_step_error(terms: int) -> float:
    """What one step X = H H*, H = fl(G / n) with n near ||G||_F, may hide: ||G||_2 <= n sqrt(||X||_2 + this).

    An entry of X is a sum of 2 `terms` real products in each part, so the error E of the product obeys
    ||E||_F <= sqrt(2) gamma(2 terms) || |H| |H|^T ||_F <= sqrt(2) gamma(2 terms) ||H||_F^2, and ||H||_F <= 1 + 1e-6.
    The division moves H by at most u in the Frobenius norm, hence ||G|| / n <= sqrt(||X|| + ||E||) + 2 u, whose
    square is at most ||X|| + ||E|| + 8 u.
    """
    return 4 * rounding.gamma(2 * terms + 16) + 16 * rounding.UNIT


def norm_factor(entries: int) -> float:
    """At least the exact Frobenius norm of so many complex entries over the computed one, a dozen roundings more."""
    return 1 + rounding.gamma(2 * entries + 64)


def polygrid_share(degrees: tuple[int, ...], points: tuple[int, ...]) -> float:
    """At most the share of sup ||F|| that the maximum of ||F v|| on N points per axis is sure to reach, v fixed.

    f = ||F v||^2 is a real trigonometric polynomial of degree D per axis, D the range of F's exponents, since |F|^2 has
    the lags -D ... D. Pfister and Bresler: for N > 2 D points per axis,

        sup |f| <= prod over axes of (1 - 2 D / N)^(-1/2) * max over the grid of |f| .

    Proof, for one axis; the others follow one at a time, the rest held fixed. Let V have Fourier coefficients 1 for
    |k| <= D, falling linearly to 0 at |k| = N - D: V(w) = S_N(w) S_{N-2D}(w) / (N - 2 D) with
    S_m(w) = sin(m w / 2) / sin(w / 2) (the difference of two Fejer kernels). On N points frequencies alias by multiples
    of N, and D + (N - D - 1) < N, so f(w) = 1/N sum_j f(w_j) V(w - w_j). Hence sup |f| <= max |f(w_j)| 1/N sum_j |V(w -
    w_j)|, which by Cauchy and Schwarz is at most max |f(w_j)| (sum S_N^2)^(1/2) (sum S_{N-2D}^2)^(1/2) / (N (N - 2 D)).
    S_m^2 has degree m - 1 < N and mean m, so its sum over the points is N m. What remains is (N / (N - 2 D))^(1/2).

    The norm is the root of f: the share is the product of (1 - 2 D / N)^(1/4).
    Errors: ValueError when an axis has no more than 2 D points.
    Source: Pfister and Bresler, IEEE Trans. Signal Process. 67 (2019); PolyGrid in Araujo et al., AAAI 2021.
    """
    share = 1.0
    for degree, n in zip(degrees, points, strict=True):
        if n <= 2 * degree:
            raise ValueError(f"{n} grid points for degree {degree}; use at least {2 * degree + 1}")
        if degree:
            # n - 2 D is exact; the quotient and the two roots are each off by a unit.
            share = rounding.down(share * math.sqrt(math.sqrt((n - 2 * degree) / n)), 8)
    return share


def proved_norms(matrices: Tensor, guess: Tensor, magnitude: Tensor, taps: int) -> Tensor:
    """Upper bounds of the norms of the exact matrices, each the guess raised until a Cholesky factorisation proves it.

    `matrices` are sums of `taps` terms within `symbol_error`, or exact (one tap); `magnitude` bounds || |B| || of each.
    The error of F F* is rounding.gram_error, the proof is that of `lipcheck.engines.gram.proves` (Rump 2006).
    Shapes: matrices (n, r, c), guess and magnitude (n,); result (n,).
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mH
    gram = wide @ wide.mH
    error = rounding.gram_error(taps * wide.shape[2], taps)
    bound = torch.maximum(guess.double(), magnitude * 1e-9).clamp_min(TINY)
    unproved = torch.arange(len(bound), device=bound.device)
    step = 1e-9
    while len(unproved):
        done = proves(gram[unproved], bound[unproved], magnitude[unproved], error)
        unproved = unproved[~done]
        bound[unproved] *= 1 + step
        step = min(4 * step, 1.0)
    return bound
