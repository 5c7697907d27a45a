"""Each row of the symbol by itself: an upper bound at every input size, zero padded or circular.

The outputs of a convolution are stacked, so ||A||^2 <= sum_o ||A_o||^2, and ||A_o|| <= sup_w ||F(w)[o, :]||_2:

    ||A|| <= sqrt(sum_o sup_w sum_c |F(w)[o, c]|^2),

and the same for the columns of F, A's adjoint; the smaller of both. The suprema are taken over S points per axis and
divided by the share of the supremum that these are sure to reach: Ehlich and Zeller's cosine, or PolyGrid's
(1 - 2 D / S)^(1/4) per axis as published, which is never the better one. A stride is folded, a dilation drops out.
Source: Araujo, Negrevergne, Chevaleyre, Atif, On Lipschitz regularization of convolutional layers using Toeplitz matrix
theory, AAAI 2021; Pfister and Bresler 2019; Ehlich and Zeller 1964.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.engines.literature import errors
from lipcheck.engines.literature.frequencies import Samples
from lipcheck.engines.literature.subject import (
    MEMORY,
    Claim,
    Subject,
    normalised,
    nothing,
    power_of,
    reduced,
    rescaled,
    symbol_of,
)
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution, Dense, InfiniteConvolution
from lipcheck.symbol import Grid

SAMPLES = 50
# So many points for each unit of the degree are taken at least, however few `samples` are asked for.
_FINEST = 4
Orientation = Literal["rows", "columns", "best"]
Correction = Literal["cosine", "polygrid"]


def spectral_norm(
    operator: Subject,
    *,
    samples: int = SAMPLES,
    orientation: Orientation = "best",
    correction: Correction = "cosine",
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The bound, the largest over the groups. Gradients flow to the weight.

    At least four points are taken for each unit of the symbol's degree, whatever `samples` says.
    """
    exponent = power_of(operator)
    if exponent is None:
        return nothing(operator, dtype)
    sampled = _samples(normalised(operator, exponent, dtype), samples)
    share = _share(sampled, correction)
    suprema = _suprema(sampled, memory)
    sums = torch.stack([suprema[side][0].sum(1) for side in _sides(orientation)])
    group = int(sums.amin(0).argmax())
    side = _sides(orientation)[int(sums[:, group].argmin())]
    chosen = torch.tensor([group], device=sums.device)
    return rescaled(_again(sampled, side, chosen, suprema[side][1])[0].sum().sqrt() / share, exponent)


def group_norms(
    operator: Subject, *, samples: int = SAMPLES, memory: int = MEMORY, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The bound of each group by itself, the smaller of rows and columns. Gradients flow to the weight.

    Units: the weights should be near one; a group whose weights are all zero has a gradient of zeros.
    Shapes: (groups,).
    """
    sampled = _samples(normalised(operator, 0, dtype), samples)
    suprema = _suprema(sampled, memory)
    side_of = torch.stack([values.sum(1) for values, _ in suprema]).argmin(0)
    squares = torch.zeros(len(side_of), dtype=dtype, device=side_of.device)
    for side in (0, 1):
        chosen = torch.nonzero(side_of == side).flatten()
        if len(chosen):
            squares = squares.index_add(0, chosen, _again(sampled, side, chosen, suprema[side][1]).sum(1))
    return squares.clamp_min(torch.finfo(dtype).tiny).sqrt() / _share(sampled, "cosine")


def _sides(orientation: Orientation) -> list[int]:
    return {"rows": [0], "columns": [1], "best": [0, 1]}[orientation]


def _samples(operator: Subject, samples: int) -> Samples:
    symbol = reduced(symbol_of(operator))
    points = tuple(max(samples, _FINEST * degree) if degree else 1 for degree in symbol.degrees)
    return Samples(symbol, Grid(points, (0,) * len(points)))


def _share(sampled: Samples, correction: Correction) -> float:
    share = rounding.grid_ripple if correction == "cosine" else errors.polygrid_share
    return share(sampled.symbol.degrees, sampled.grid.points)


def _suprema(sampled: Samples, memory: int) -> list[tuple[Tensor, Tensor]]:
    """For rows, then columns: the largest sum of squares over the grid, and the frequency it stands at.

    Shapes: values (groups, lines), places (groups, lines, axes).
    """
    with torch.no_grad():
        lags, lag_of = _lags(sampled.symbol.exponents)
        coefficients = sampled.symbol.coefficients
        sides = (coefficients.transpose(1, 2), coefficients.permute(0, 3, 1, 2))
        return [_largest(sampled.grid, lags, _autocorrelations(lines, lag_of, memory), memory) for lines in sides]


def _lags(exponents: Tensor) -> tuple[Tensor, Tensor]:
    """The differences of exponents, one of each pair +-, and which of them each pair of exponents has.

    Shapes: lags (lags, axes), places (taps * taps,).
    """
    difference = (exponents[:, None] - exponents).flatten(0, 1)
    sign = torch.ones(len(difference), dtype=torch.long)
    for axis in reversed(range(difference.shape[1])):
        sign = torch.where(difference[:, axis] != 0, difference[:, axis].sign(), sign)
    lags, lag_of = torch.unique(difference * sign[:, None], dim=0, return_inverse=True)
    return lags, lag_of


def _autocorrelations(lines: Tensor, lag_of: Tensor, memory: int) -> Tensor:
    """sum of P_i . P_j over all i, j of each lag, either sign: |F(w)|^2 of a line is their sum with cos <w, lag>.

    Shapes: lines (groups, lines, taps, entries); result (groups, lines, lags).
    """
    flat = lines.flatten(0, 1)
    taps = flat.shape[1]
    lag_of = lag_of.to(flat.device)
    results = []
    for part in torch.split(flat, max(1, memory // (16 * taps * (taps + flat.shape[2])))):
        products = (part @ part.mT).flatten(1)
        empty = products.new_zeros(len(part), int(lag_of.max()) + 1)
        results.append(empty.index_add(1, lag_of, products))
    return torch.cat(results).reshape(*lines.shape[:2], -1)


def _largest(grid: Grid, lags: Tensor, table: Tensor, memory: int) -> tuple[Tensor, Tensor]:
    """The maximum over the grid for each line, and its place."""
    flat = table.flatten(0, 1).mT
    index = grid.indices()
    best = flat.new_full((flat.shape[1],), -1.0)
    where = torch.zeros(flat.shape[1], dtype=torch.long, device=flat.device)
    step = max(1, memory // (16 * (flat.shape[1] + 4 * len(lags))))
    for start in range(0, len(index), step):
        values, places = (grid.phases(index[start : start + step], lags)[0].to(flat) @ flat).max(0)
        where = torch.where(values > best, places + start, where)
        best = torch.maximum(values, best)
    shape = table.shape[:2]
    return best.clamp_min(0).reshape(shape), index[where.cpu()].reshape(*shape, -1)


def _again(sampled: Samples, side: int, chosen: Tensor, places: Tensor) -> Tensor:
    """The sums of squares of some groups' rows or columns, each at its own frequency, with gradients.

    Shapes: chosen (n,), places (groups, lines, axes); result (n, lines).
    """
    coefficients = sampled.symbol.coefficients[chosen]
    lines = (coefficients if side == 0 else coefficients.mT).transpose(1, 2).flatten(0, 1)
    index = places[chosen.cpu()].flatten(0, 1)
    cosine, sine = (wave.to(lines) for wave in sampled.grid.phases(index, sampled.symbol.exponents))
    # Line l at its own frequency: (l, 1, Q) times (l, Q, entries).
    squares = sum(torch.bmm(wave[:, None], lines).square().sum((1, 2)) for wave in (cosine, sine))
    assert isinstance(squares, Tensor)
    return squares.reshape(len(chosen), -1)


def upper(operator: Subject, settings: Settings) -> float:
    """The bound with the cosine correction, rounded outwards.

    A computed sum of squares is off by at most rounding.gram_error ||B_o||^2: it is the diagonal entry of F F* summed
    by lags, as there: inner products of as many entries, at most 2 taps of them a lag. So the sum over all rows is off
    by that times ||B||_F^2.
    """
    exponent = power_of(operator)
    if exponent is None:
        return 0.0
    sampled = _samples(normalised(operator, exponent, torch.float64), SAMPLES)
    share = _share(sampled, "cosine")
    symbol = sampled.symbol
    sums = [values.sum(1) for values, _ in _suprema(sampled, settings.memory)]
    _, taps, rows, columns = symbol.coefficients.shape
    lags, _ = _lags(symbol.exponents)
    error = rounding.gram_error(max(rows, columns) + 2 * taps, len(lags))
    squares = errors.entry_sums(symbol).square().sum((1, 2)) * (1 + rounding.gamma(symbol.coefficients[0].numel() + 16))
    found = torch.minimum(*sums) * (1 + rounding.gamma(rows + columns + 8)) + error * squares + rounding.UNDERFLOW
    total = float(found.max().sqrt()) * (1 + 8 * rounding.UNIT)
    return rounding.scale_up(rounding.up(total / share, 4), exponent)


def applies(operator: Subject) -> bool:
    """Everywhere."""
    return isinstance(operator, Dense | Convolution | InfiniteConvolution)


def claim(operator: Subject) -> Claim:
    """A bound for every padding that is zero or circular, at every size."""
    return "upper"
