"""The Gram matrices R(w) = F(w) F(w)* of a batch of symbols, and the proof that mu bounds them.

Weights are scaled by powers of two, so that all arithmetic happens near one; everything here is float64 and says how
far it can be off. `proves` is the only function that turns a computation into a claim.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.symbol import Grid, Symbol

# Column blocks in which coefficients are taken to float64, and row blocks of which only the lower half is formed.
_COLUMNS = 8192
_ROWS = 256


@dataclass(frozen=True, slots=True, eq=False)
class GramFamily:
    """R(w) for a batch of symbols with one lattice of exponents, scaled by 2^-exponent each.

    Shapes: with I items (a layer's group each), L lags, r rows: `table` is (I, 2, L, r * r), the symmetric part of each
    lag's autocorrelation for the real part of R and the antisymmetric one for the imaginary part; (I, 1, 1, r * r) for
    a single lag. None where R is formed from `coefficients` instead, (I, Q, r, c). `magnitude` (I,) bounds
    ||sum_q |P_q||| after the scaling; `lags` is (L, axes).
    """

    coefficients: Tensor | None
    table: Tensor | None
    lags: Tensor
    exponent: Tensor  # (I,) integers: true weights are 2^exponent times the scaled ones
    magnitude: Tensor
    rows: int
    error: float  # entrywise error of R relative to B B^T
    _tables: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @property
    def items(self) -> int:
        return len(self.exponent)

    @property
    def device(self) -> torch.device:
        held = self.coefficients if self.table is None else self.table
        assert held is not None
        return held.device

    @property
    def real(self) -> bool:
        """Whether R(w) is real: a symbol of degree zero."""
        return len(self.lags) == 1

    @property
    def bytes_per_matrix(self) -> int:
        """What one frequency takes: R, and F too where R is formed from it."""
        if self.coefficients is not None:
            return 16 * self.rows * max(self.rows, self.coefficients.shape[3])
        return self.rows**2 * (8 if self.real else 16)

    def matrices(self, item: Tensor, grid: Grid, index: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """R(w) for pairs of an item and a frequency. Shapes: item (n,), index (n, axes); result (n, r, r)."""
        if self.coefficients is not None:
            return self._direct(item, grid, index, dtype)
        assert self.table is not None
        n, r, table = len(item), self.rows, self._table_in(dtype)
        if self.real:
            return table[item, 0].reshape(n, r, r)
        real, imaginary = torch.empty(2, n, r * r, dtype=dtype, device=self.device)
        # Pairs come in the order of their items: products for each run of the same item.
        for low, high in _runs(item):
            self._summed(table[int(item[low])], grid, index[low:high], real[low:high], imaginary[low:high])
        return torch.complex(real, imaginary).reshape(n, r, r)

    def _summed(self, table: Tensor, grid: Grid, index: Tensor, real: Tensor, imaginary: Tensor) -> None:
        """The lags times their phases at each frequency, in one product, or the last axis after the others.

        With w = (w', w_a), l = (l', l_a), j = |l_a| and s its sign, the phase of a lag is

            cos<w, l> = cos(j w_a) cos<w', l'> - sin(j w_a) s sin<w', l'>
            sin<w, l> = cos(j w_a) sin<w', l'> + sin(j w_a) s cos<w', l'>

        so that a first product sums the lags of each j at every w', a second one these few sums at every w_a.
        """
        last = max((axis for axis, m in enumerate(grid.points) if m > 1), default=0)
        steps = torch.tensor(sorted(set(self.lags[:, last].abs().tolist())))
        runs = _runs(*(index[:, axis] for axis in range(last))) if last else []
        if last == 0 or 3 * len(steps) * len(runs) > len(index):
            cosine, sine = grid.phases(index, self.lags)
            torch.mm(cosine.to(table), table[0], out=real)
            torch.mm(sine.to(table), table[1], out=imaginary)
            return
        others = self.lags.clone()
        others[:, last] = 0
        cosine, sine = grid.phases(index[[low for low, _ in runs]], others)
        sign = self.lags[:, last].sign().double()
        chosen = (self.lags[:, last].abs() == steps[:, None]).double()
        along = torch.zeros(len(steps), self.lags.shape[1], dtype=torch.long)
        along[:, last] = steps
        waves = torch.cat(grid.phases(index, along), dim=1).to(table)
        for out, part, even, odd in ((real, table[0], cosine, -sine), (imaginary, table[1], sine, cosine)):
            weights = torch.cat([even[:, None] * chosen, (sign * odd)[:, None] * chosen], dim=1)
            sums = weights.to(table).flatten(0, 1) @ part
            for (low, high), some in zip(runs, sums.reshape(len(runs), 2 * len(steps), -1), strict=True):
                torch.mm(waves[low:high], some, out=out[low:high])

    def _table_in(self, dtype: torch.dtype) -> Tensor:
        assert self.table is not None
        if dtype not in self._tables:
            self._tables[dtype] = self.table.to(dtype)
        return self._tables[dtype]

    def _direct(self, item: Tensor, grid: Grid, index: Tensor, dtype: torch.dtype) -> Tensor:
        """F F* = A A^T + B B^T + i (B A^T - A B^T) for F = A + i B, summed at each frequency.

        `lags` are the exponents then.
        """
        assert self.coefficients is not None
        device = self.coefficients.device
        cosine, sine = (p.to(device, dtype) for p in grid.phases(index, self.lags))
        n, (r, c) = len(item), self.coefficients.shape[2:]
        parts = torch.empty(n, r, 2 * c, dtype=dtype, device=device)
        for low, high in _runs(item):
            flat = self.coefficients[int(item[low])].reshape(-1, r * c).to(dtype)
            parts[low:high, :, :c] = (cosine[low:high] @ flat).reshape(-1, r, c)
            parts[low:high, :, c:] = (sine[low:high] @ flat).reshape(-1, r, c)
        real = half_product(parts)
        skew = parts[:, :, c:] @ parts[:, :, :c].mT
        return torch.complex(real, skew - skew.mT)


def half_product(matrices: Tensor) -> Tensor:
    """M M^T for each M, of whose halves only one is summed. Shapes: (n, r, c) to (n, r, r)."""
    r = matrices.shape[1]
    if r <= _ROWS:
        return matrices @ matrices.mT
    product = matrices.new_zeros(len(matrices), r, r)
    for low in range(0, r, _ROWS):
        product[:, low:, low : low + _ROWS] = matrices[:, low:] @ matrices[:, low : low + _ROWS].mT
    return product.tril() + product.tril(-1).mT


def _runs(*columns: Tensor) -> list[tuple[int, int]]:
    """Begin and end of each run of equal entries. Shapes: (n,) each, n > 0."""
    new = torch.zeros(len(columns[0]) - 1, dtype=torch.bool) if columns else torch.zeros(0, dtype=torch.bool)
    for column in columns:
        new |= (column[1:] != column[:-1]).cpu()
    ends = [0, *(torch.nonzero(new).flatten() + 1).tolist(), len(columns[0]) if columns else 0]
    return list(itertools.pairwise(ends))


def gram_family(symbols: list[Symbol], frequencies: int, device: torch.device, memory: int = 1 << 40) -> GramFamily:
    """The Gram family of symbols that share shapes and exponents, ready for about so many frequencies each.

    R is formed from F where that is less work, and where the table of autocorrelations would not fit into `memory`.
    """
    stacked = torch.cat([symbol.wide.coefficients for symbol in symbols]).to(device)
    exponents = symbols[0].exponents
    items, taps, r, c = stacked.shape
    exponent = _exponents(stacked)
    lags, pairs = _autocorrelation_pairs(exponents)
    magnitude = _magnitude(stacked, exponent)
    # The lags are summed in two products at most, the second over no more sums than there are lags: twice the terms.
    error = rounding.gram_error(taps * c, max(2 * len(lags), taps))
    products = sum(len(p) for p in pairs)
    table_bytes = items * 2 * len(lags) * r * r * (8 + 4)
    if len(lags) > 1 and (2 * products > 4 * frequencies or table_bytes > memory):
        scaled = torch.stack([scaled_by_power(one, -int(e)) for one, e in zip(stacked, exponent, strict=True)])
        return GramFamily(scaled, None, exponents, exponent, magnitude, r, error)
    single = len(lags) == 1
    table = torch.zeros(items, 1 if single else 2, len(lags), r * r, dtype=torch.float64, device=device)
    for one in range(items):
        correlations = _correlations(stacked[one], pairs, int(exponent[one]))
        table[one, 0, 0] = correlations[0].flatten()
        for lag, correlation in enumerate(correlations[1:], start=1):
            table[one, 0, lag] = (correlation + correlation.T).flatten()
            table[one, 1, lag] = (correlation - correlation.T).flatten()
    return GramFamily(None, table, lags, exponent, magnitude, r, error)


def _exponents(stacked: Tensor) -> Tensor:
    """Per item the power of two that takes its largest weight into [1/2, 1); 0 for an item of zeros."""
    largest = stacked.abs().amax((1, 2, 3)).double().cpu()
    return torch.frexp(largest).exponent.long() * (largest > 0)


def _magnitude(stacked: Tensor, exponent: Tensor) -> Tensor:
    """At least ||sum_q |P_q|||_2 per item, scaled."""
    results = []
    for one, scale in zip(stacked, exponent.tolist(), strict=True):
        blocks = [scaled_by_power(block, -scale).abs().sum(0) for block in torch.split(one, _COLUMNS, dim=2)]
        results.append(matrix_magnitude(*blocks, terms=one.shape[0]))
    return torch.tensor(results, dtype=torch.float64)


def matrix_magnitude(*blocks: Tensor, terms: int = 1) -> float:
    """At least the spectral norm of |M|, M given in column blocks: Frobenius or sqrt(||M||_1 ||M||_inf), the smaller.

    `terms` numbers were added for each entry already. Shapes: each block is (rows, columns), float64.
    """
    rows = torch.stack([block.abs().sum(1) for block in blocks]).sum(0)
    column = max(float(block.abs().sum(0).max()) for block in blocks)
    squares = sum(float(block.square().sum()) for block in blocks)
    count = sum(block.numel() for block in blocks)
    return magnitude_of(float(rows.max()), column, squares, count + terms)


def magnitude_of(row: float, column: float, squares: float, terms: int) -> float:
    """At least the spectral norm of |M|: the largest sums of its rows and columns and that of its squares, computed.

    `terms` numbers, or fewer, were added for each sum.
    """
    return float(min(squares, row * column) ** 0.5) * (1 + rounding.gamma(terms + 8)) + rounding.UNDERFLOW


def _autocorrelation_pairs(exponents: Tensor) -> tuple[Tensor, list[list[tuple[int, int]]]]:
    """The lags d >= 0 in lexicographic order, zero first, and for each all (i, j) with q_i - q_j = d."""
    points = [tuple(q) for q in exponents.tolist()]
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            lag = tuple(x - y for x, y in zip(a, b, strict=True))
            if lag >= (0,) * len(lag):
                found.setdefault(lag, []).append((i, j))
    lags = sorted(found)
    return torch.tensor(lags), [found[lag] for lag in lags]


def _correlations(coefficients: Tensor, pairs: list[list[tuple[int, int]]], exponent: int) -> Tensor:
    """Per lag the sum of P_i P_j^T over its pairs, in float64, scaled. Shapes: (Q, r, c) to (lags, r, r)."""
    r = coefficients.shape[1]
    result = torch.zeros(len(pairs), r, r, dtype=torch.float64, device=coefficients.device)
    for block in torch.split(coefficients, _COLUMNS, dim=2):
        scaled = scaled_by_power(block, -exponent)
        for lag, lag_pairs in enumerate(pairs):
            for i, j in lag_pairs:
                if i == j and r > _ROWS:
                    for low in range(0, r, _ROWS):
                        strip = scaled[i, low : low + _ROWS]
                        result[lag, low:, low : low + _ROWS].addmm_(scaled[i, low:], strip.T)
                else:
                    result[lag].addmm_(scaled[i], scaled[j].T)
    if r > _ROWS:
        result[0] = result[0].tril() + result[0].tril(-1).T
    return result


def scaled_by_power(values: Tensor, exponent: int) -> Tensor:
    """values * 2^exponent in float64, exact but for entries that become subnormal; two steps, as 2^1074 is no float."""
    half = exponent // 2
    return values.double() * 2.0**half * 2.0 ** (exponent - half)


def proves(matrices: Tensor, mu: Tensor, magnitude: Tensor, error: float) -> Tensor:
    """Where it is proved that ||F|| <= mu. False proves nothing.

    With E >= ||R - F F*||, a Cholesky factorisation of (mu^2 - s) I - R that runs to completion proves
    ||F||^2 <= mu^2, where s covers E, the rounding of the factorisation (`rounding.cholesky_shift`) and that of
    the diagonal. Where the Frobenius norm of R is below mu^2 already, no factorisation is needed.

    Shapes: matrices (n, r, r), overwritten; mu and magnitude (n,); result (n,) of bool.
    Source: Rump 2006; maths, section 4.
    """
    r, device = matrices.shape[-1], matrices.device
    mu, magnitude = mu.to(device), magnitude.to(device)
    budget = mu.square() * (1 - 8 * rounding.UNIT)
    blur = error * magnitude.square() * (1 + 8 * rounding.UNIT) + rounding.UNDERFLOW
    proved = _small_frobenius(matrices, budget - blur)
    rest = torch.nonzero(~proved).flatten()
    if len(rest) == 0:
        return proved
    trusted = device.type == "cpu"
    reserve = rounding.cholesky_shift(r, complex_valued=matrices.is_complex() or not trusted) * r
    relative = (1 if trusted else 4) * reserve + 8 * rounding.UNIT
    shift = (budget * relative + blur)[rest] * (1 + 1e-6)
    diagonal = (budget[rest] - shift)[:, None] * torch.ones(r, dtype=torch.float64, device=device)
    if trusted:
        shifted = (matrices[rest] if len(rest) < len(matrices) else matrices).neg_()
        shifted.diagonal(dim1=1, dim2=2).add_(diagonal)
        _, info = torch.linalg.cholesky_ex(shifted)
        proved[rest] = info == 0
    else:
        proved[rest] = _proved_by_residual(matrices[rest], diagonal, 4 * reserve * budget[rest])
    return proved


def least_proved(magnitude: Tensor, error: float) -> float:
    """What mu must exceed for `proves` to hold for every matrix: their error alone, however small they are.

    Shapes: magnitude (n,).
    """
    return math.sqrt(error * float(magnitude.max()) ** 2 * (1 + 1e-5) + 2 * rounding.UNDERFLOW)


def _small_frobenius(matrices: Tensor, budget: Tensor) -> Tensor:
    """Where ||R||_F is surely below the budget. A few matrices tell whether it is worth computing for all.

    Shapes: matrices (n, r, r); budget (n,); result (n,) of bool.
    """
    n, r = matrices.shape[:2]
    few = torch.linspace(0, n - 1, min(n, 4), device=matrices.device).long()
    certain = 1 + rounding.gamma(4 * r * r + 16)

    def norms(some: Tensor) -> Tensor:
        parts = torch.view_as_real(some) if some.is_complex() else some
        norm: Tensor = torch.linalg.vector_norm(parts.reshape(len(some), -1), dim=1) * certain
        return norm

    if n > 4 and bool((norms(matrices[few]) > budget[few]).all()):
        return torch.zeros(n, dtype=torch.bool, device=matrices.device)
    return norms(matrices) <= budget


def _proved_by_residual(matrices: Tensor, diagonal: Tensor, reserve: Tensor) -> Tensor:
    """As `proves`, without trusting how a device's factorisation orders its operations (blocked inverses, say).

    L L* is positive semidefinite whatever L is, so lambda_min(A) >= -||A - L L*||_F: the residual is computed, its own
    rounding added (gamma(4 (r + 4)) ||L||_F^2 for the product, a unit for the difference), and compared with the
    part of the shift that is reserved for it.
    """
    r = matrices.shape[-1]
    shifted = -matrices
    shifted.diagonal(dim1=1, dim2=2).add_(diagonal)
    shifted = shifted.tril() + shifted.tril(-1).mH
    factor, info = torch.linalg.cholesky_ex(shifted)
    factor = factor.tril()
    residual = torch.linalg.vector_norm(shifted - factor @ factor.mH, dim=(1, 2))
    size = torch.linalg.vector_norm(factor, dim=(1, 2)).square()
    own = (rounding.gamma(4 * (r + 4)) + 4 * rounding.UNIT) * size
    total: Tensor = (residual + own) * (1 + rounding.gamma(4 * r * r + 16))
    proved: Tensor = (info == 0) & (total <= reserve)
    return proved
