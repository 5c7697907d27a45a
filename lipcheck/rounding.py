"""Outward rounding: the one place where a floating-point number becomes a claim.

u = 2^-53 is the unit roundoff of float64 and gamma(n) = n u / (1 - n u) (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., section 3.1). All error terms hold for any order of summation and with or without
fused multiply-add, so they do not depend on the BLAS or on the number of threads.
"""

from __future__ import annotations

import math
import sys

UNIT = 2.0**-53
# Powers of two keep every quantity here near one, so what gradual underflow can add stays below this.
UNDERFLOW = 1e-280
# exp(i pi t / m) with the argument reduced to (-pi, pi]: pi, the product and the quotient are each off by at most
# one unit (3 u pi < 10 u), cos and sin by at most two more; three axes multiply: 3 (10 + 2) + 6 rounding errors.
PHASE_ERROR = 64 * UNIT
# What one operation of a network, evaluated in float64 by a backward stable algorithm, may be off by: relative to its
# result where all terms have one sign, else to its result and to its constant times its argument. gamma(2^21) is
# 2.4e-10, so sums of two million terms and a few units for each elementary function are covered with a factor of four.
EVALUATION = 2.0**-30


def gamma(n: int) -> float:
    """Relative error of n chained float64 operations, rounded up.

    Errors: OverflowError when n is so large (2^52) that the estimate means nothing.
    Source: Higham 2002, lemma 3.1.
    """
    if n >= 2**52:
        raise OverflowError(f"{n} operations in float64 have no relative error bound")
    return n * UNIT / (1 - n * UNIT) * (1 + 4 * UNIT)


def up(value: float, steps: int = 1) -> float:
    """A float at least `steps` units in the last place above `value`; inf stays inf."""
    for _ in range(steps):
        value = math.nextafter(value, math.inf)
    return value


def down(value: float, steps: int = 1) -> float:
    """A float `steps` units in the last place below a non-negative `value`, never under zero."""
    for _ in range(steps):
        value = math.nextafter(value, 0.0)
    return value


def add_up(*values: float) -> float:
    """At least the exact sum of non-negative values."""
    total = 0.0
    for value in values:
        total = up(total + value) if value else total
    return total


def multiply_up(*values: float) -> float:
    """At least the exact product of non-negative values; a zero factor gives zero, even times inf."""
    if 0.0 in values:
        return 0.0
    product = 1.0
    for value in values:
        product = product * value if value == 1.0 or product == 1.0 else up(product * value)
    return product


def multiply_down(*values: float) -> float:
    """At most the exact product of non-negative values."""
    if 0.0 in values:
        return 0.0
    product = 1.0
    for value in values:
        if product == 0.0:
            return 0.0
        product = product * value if value == 1.0 or product == 1.0 else down(product * value)
    return product


def _exact(root: float, value: float) -> bool:
    """Whether the root is a small integer, whose square is exact, or infinite."""
    return math.isinf(root) or (root < 2**26 and root == int(root) and root * root == value)


def sqrt_up(value: float) -> float:
    """At least the square root; exact squares of integers stay as they are."""
    root = math.sqrt(value)
    return root if _exact(root, value) else up(root)


def sqrt_down(value: float) -> float:
    """At most the square root; exact squares of integers stay as they are."""
    root = math.sqrt(value)
    return root if _exact(root, value) else down(root)


def scale_up(value: float, exponent: int) -> float:
    """At least value * 2^exponent, which is exact unless it leaves the normal range."""
    try:
        scaled = math.ldexp(value, exponent)
    except OverflowError:
        return math.inf
    return up(scaled) if abs(scaled) < 2.0**-1000 and value else scaled


def scale_down(value: float, exponent: int) -> float:
    """At most value * 2^exponent."""
    try:
        scaled = math.ldexp(value, exponent)
    except OverflowError:
        return 1.7976931348623157e308
    return down(scaled) if scaled < 2.0**-1000 else scaled


# Logarithms of Lipschitz constants. The constants of the C library's log, exp and log1p are good to an ulp or two;
# four units in the last place of the larger operand, plus the same of one, cover them.


def _log_slop(*values: float) -> float:
    return 8 * UNIT * max(1.0, *(abs(v) for v in values if math.isfinite(v)), 1.0)


def log_up(value: float) -> float:
    """At least log(value); -inf for zero, inf for inf."""
    if value == 0 or math.isinf(value):
        return -math.inf if value == 0 else math.inf
    logarithm = math.log(value)
    return 0.0 if value == 1.0 else logarithm + _log_slop(logarithm)


def log_multiply_up(*logs: float) -> float:
    """At least the log of the product of the numbers that have these logs; a zero factor (-inf) wins."""
    if -math.inf in logs:
        return -math.inf
    total = 0.0
    for value in logs:
        total = total + value + (_log_slop(total, value) if total and value else 0.0)
    # No product of positive numbers is zero, however small.
    return max(total, -sys.float_info.max)


def log_sum_up(*logs: float) -> float:
    """At least the log of the sum of the numbers that have these logs."""
    top = max(logs, default=-math.inf)
    if math.isinf(top) or len(logs) == 1:
        return top
    total = math.fsum(math.exp(value - top) for value in logs)
    if total == 1.0 and sum(value > -math.inf for value in logs) == 1:
        return top
    total *= 1 + (8 + len(logs)) * UNIT
    return (
        top
        + math.log(total)
        + _log_slop(top, math.log(total))
        + 4 * UNIT * sum(min(abs(value - top), 745.0) for value in logs if value > -math.inf)
    )


def gram_error(columns: int, lags: int) -> float:
    """Entrywise error of a computed Gram matrix F F* of a symbol, relative to B B^T, B = sum of |coefficients|.

    Either the lags' autocorrelations C = sum P_q' P_q^T are formed first (inner products of `columns` terms) and
    then summed over `lags` frequencies' phases, or F is summed first and then multiplied with its adjoint. In both a
    term passes through at most `columns` + 2 `lags` + 16 real operations and two phase factors, and a complex entry
    is off by at most sqrt(2) times what its real and imaginary parts are: two covers it.
    """
    return 2 * (gamma(columns + 2 * lags + 16) + 2 * PHASE_ERROR)


def cholesky_shift(order: int, *, complex_valued: bool) -> float:
    """Shift, relative to the trace, that turns a completed Cholesky factorisation into a proof.

    If the factorisation of a Hermitian A of this order runs to completion in float64, the computed factor obeys
    |A - L L*|_ij <= g sqrt(a_ii a_jj) / (1 - g), so lambda_min(A) >= -g / (1 - g) trace(A), with g = gamma(c + 1) for
    real matrices. Complex products and sums cost at most four real errors each, hence gamma(4 (c + 4)) there.
    Source: Rump, Verification of positive definiteness, BIT 46 (2006), theorem 2.3; Demmel 1989.
    """
    g = gamma(4 * (order + 4)) if complex_valued else gamma(order + 2)
    return up(g / (1 - g), 2)


def forward_error(terms: int) -> float:
    """Entrywise error of a computed y = A x with `terms` products in a row, relative to |A| |x|."""
    return gamma(terms + 2)


def grid_ripple(degrees: tuple[int, ...], points: tuple[int, ...]) -> float:
    """At most the share of the symbol's supremum that its maximum on a uniform grid is sure to reach.

    Shapes: the degree of the symbol and the number of equidistant points, one entry per axis.
    Errors: ValueError when an axis has no more points than its degree.
    Source: Ehlich and Zeller 1964: |F v|^2 is a non-negative trigonometric polynomial of degree D, so around its
            maximum M it stays above M cos^2(D t / 2), and some grid point lies within t = pi / N of it.
    """
    share = 1.0
    for degree, n in zip(degrees, points, strict=True):
        if n <= degree:
            raise ValueError(f"{n} grid points do not resolve a symbol of degree {degree}")
        # The argument, near pi / 2 at worst, is off by less than 4 units, and so is its cosine: an absolute error.
        cosine = max(0.0, math.cos(math.pi * degree / (2 * n)) - 8 * UNIT)
        share = down(share * cosine) if degree else share
    return share


def cell_share(degrees: tuple[int, ...], points: tuple[int, ...]) -> float:
    """At most the share of the symbol's supremum that the centre of the cell which holds it is sure to reach.

    With N equal cells per axis each has half-width h = pi / N, and cos(sum of D h / 2) is that share.
    Shapes: the degree of the symbol and the number of cells, one entry per axis.
    Errors: ValueError when the cells are so wide that nothing is sure: sum of D h >= pi.
    Source: Bernstein and Szego, along one axis after the other; `lipcheck.engines.branch` has the derivation.
    """
    width = sum(degree / n for degree, n in zip(degrees, points, strict=True))
    if width >= 1:
        raise ValueError(f"{points} cells do not resolve a symbol of degree {degrees}")
    # Three quotients of at most one, their sum, and the argument pi width / 2: off by less than 16 units in all, and
    # the cosine by another.
    return max(0.0, math.cos(math.pi * width / 2) - 32 * UNIT) if width else 1.0


def factorisation_error(residual: float, trace: float, diagonal: float, *, order: int, band: int, panel: int) -> float:
    """At least ||M - L L^T||_2 for a real symmetric M and the L that a right-looking factorisation by panels made.

    The computed residuals of the panels' columns, symmetrised, have Frobenius norm at most `residual`, and
    ||L||_F^2 <= `trace`, L being zero more than `band` below the diagonal; M's diagonal is at most `diagonal`, and a
    panel has at most `panel` columns. With G = |L| |L|^T, E = M - L L^T, rho the exact residual, rho^ the computed
    one, and S an entry when its panel's turn came:

    - S is M less a sum of at most band products, in any order: |S - exact| <= g (|M| + G), g = gamma(min(order, band)
      + 2), and |M| <= G + |E|;
    - |rho - rho^| <= h (|S| + G), h = gamma(panel + 2), and |S| <= G + |rho|.

    So |E| <= (|rho^| + (2 g + 2 h) G) (1 + 4 (g + h)), entry by entry. In norms, ||G||_2 <= ||L||_F^2, which bounds
    ||E||_F and hence (L L^T)_ii <= diagonal + ||E||_F; then G_ij is at most their largest, by Cauchy-Schwarz, and
    zero outside the band: ||G||_2 is at most the largest row sum, 2 band + 1 times that.
    Errors: inf where gamma is too large to mean anything.
    Source: Higham 2002, lemma 3.1, theorems 10.3 and 13.6; Schur test for the last step.
    """
    g, h = gamma(min(order, band) + 2), gamma(panel + 2)
    if not g + h < 1e-3:
        return math.inf
    growth = (1 + 4 * (g + h)) * (1 + 16 * UNIT)
    frobenius = (residual + 2 * (g + h) * trace) * growth
    spread = min(trace, (2 * min(order, band) + 1) * (diagonal + frobenius) * (1 + 8 * UNIT))
    return (residual + 2 * (g + h) * spread) * growth + UNDERFLOW
