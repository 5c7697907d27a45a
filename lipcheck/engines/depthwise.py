"""Depthwise convolutions on small inputs: each group's Gram matrix comes from its few taps, and few groups need one.

Every group has its symbol's bound at once. The group that promises most is searched; then each of those whose symbol's
bound is above what was found is proved below it by one factorisation, or searched itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import lanczos
from lipcheck.engines.certified import Certified, Peak
from lipcheck.engines.finite import line_of
from lipcheck.engines.gram import least_proved, proves, scaled_by_power
from lipcheck.engines.search import top_eigenpairs
from lipcheck.engines.settings import Settings
from lipcheck.engines.vectors import GroupBounds, bound_groups
from lipcheck.operators import Convolution
from lipcheck.proof import GroupsProof
from lipcheck.symbol import Symbol, as_matrix, embedding_points, grids, matrix_sides

# Gram matrices up to this side are given to LAPACK's eigenvalues, those up to the next are searched as they are, and
# larger ones through the convolution.
_DENSE, _FORMED = 128, 400
# What the groups looked at together may take, in bytes for their Gram matrices; the first few take less.
_BATCH, _FIRST = 32 << 20, 1 << 18
# Steps of the quick search, which ends where three of them gain less than this, and of the thorough one.
_QUICK, _STALLED = 24, 1e-6
_STEPS, _ACCURACY = 200, 1e-11
# What stands between the norm found and the first bound that is tried, after the quick search and LAPACK's.
_SLACK, _EXACT = 1e-5, 1e-7


def spectral_norm(operator: Convolution, symbol: Symbol, settings: Settings) -> Bound:
    """The enclosure of a convolution whose symbol has one row or one column, its weights taken as exact.

    `upper` is proved of every group: by its symbol, or by its finite matrix.
    """
    exponent = math.frexp(float(operator.weight.abs().max()))[1]
    operator = replace(operator, weight=scaled_by_power(operator.weight, -exponent))
    symbol = Symbol(scaled_by_power(symbol.coefficients, -exponent), symbol.exponents)
    candidates = grids(operator, symbol, settings.tolerance)
    if settings.upper_only and min(matrix_sides(operator)) > _DENSE:
        # Where many groups are nearly as large as the largest, nearly all of them would be looked at.
        mu = float(bound_groups(symbol, candidates, settings.device, settings.memory).upper.max())
        return Bound(0.0, rounding.scale_up(mu, exponent), "symbol grid")
    bounds = bound_groups(symbol, candidates[:1], settings.device, settings.memory)
    search = _Search(operator, symbol, bounds, settings)
    each = 8 * min(matrix_sides(operator)) ** 2
    step = max(1, _FIRST // each)
    most = max(1, min(_BATCH, settings.memory // 4) // each)
    uppers = bounds.upper
    order = uppers.argsort(descending=True, stable=True)
    while len(order := order[uppers[order] > search.mu]):
        search.take(order[:step])
        order, step = order[step:], min(4 * step, most)
        order = order[uppers[order] > search.mu]
        if len(order) and candidates[1:]:
            # The other grids are for those groups only that the first one did not exclude.
            few = Symbol(symbol.coefficients[order], symbol.exponents)
            again = bound_groups(few, candidates[1:], settings.device, settings.memory).upper
            uppers = uppers.index_copy(0, order, torch.minimum(uppers[order], again))
            order, candidates = order[uppers[order].argsort(descending=True, stable=True)], candidates[:1]
    lower, upper = rounding.scale_down(search.lower, exponent), rounding.scale_up(search.mu, exponent)
    return Bound(lower, upper, "matrix", proof=GroupsProof(upper, embedding_points(operator)))


class _Search:
    """The largest norm attained by any group, and mu a little above it. Weights are near one."""

    def __init__(self, operator: Convolution, symbol: Symbol, bounds: GroupBounds, settings: Settings) -> None:
        self.operator, self.symbol, self.bounds, self.settings = operator, symbol, bounds, settings
        # At least || |A| || of each group: a stride can only lower it.
        taps = operator.weight.abs().flatten(2).sum(2).reshape(operator.groups, -1)
        terms = operator.weight[0].numel() + taps.shape[1] + 8
        self.magnitude = (taps.square().sum(1).sqrt() * (1 + rounding.gamma(terms)) + rounding.UNDERFLOW).cpu()
        self.lower = self.mu = 0.0

    def take(self, groups: Tensor) -> None:
        """Raises mu until it is proved for these groups."""
        family = _gram_matrices(groups_of(self.operator, groups))
        matrices = family.matrices.to(self.settings.device)
        open_ = torch.arange(len(groups))
        quick = matrices.shape[-1] > _DENSE
        slack = min(_SLACK if quick else _EXACT, self.settings.tolerance / 10)
        while True:
            if self.mu:
                mu = torch.full((len(open_),), self.mu, dtype=torch.float64)
                # The proof overwrites what it is given.
                proved = proves(matrices[open_], mu, self.magnitude[groups[open_]], family.error)
                open_ = open_[~proved.cpu()]
            if len(open_) == 0:
                return
            if quick:
                found = self._searched(int(groups[open_[0]]), matrices[open_[0]], family)
            else:
                found = self._attained(groups[open_], matrices[open_], family)
            if self.mu and found * (1 + slack) <= self.mu:
                # Where the quick search stopped short of the norm, the thorough one comes first.
                slack, quick = slack if quick else 2 * slack, False
            self.lower = max(self.lower, found)
            least = least_proved(self.magnitude[groups[open_]], family.error)
            self.mu = max(self.mu * (1 + slack), self.lower * (1 + slack), least)

    def _attained(self, groups: Tensor, matrices: Tensor, family: _Grams) -> float:
        """A norm that the largest of these groups attains."""
        if matrices.shape[-1] <= _DENSE:
            values, vectors = torch.linalg.eigh(matrices)
            values, vectors = values[:, -1], vectors[:, :, -1]
        else:
            values, vectors = top_eigenpairs(matrices, steps=_STEPS, accuracy=_ACCURACY)
        top = int(values.argmax())
        return self._attained_by(int(groups[top]), vectors[top].cpu(), family)

    def _attained_by(self, group: int, vector: Tensor, family: _Grams) -> float:
        """The norm that a vector of the group's Gram matrix attains."""
        own = groups_of(self.operator, torch.tensor([group]))
        x = family.positioned(vector)
        if family.outputs:
            x = own.adjoint(x)
        magnitude = float(self.magnitude[group])
        return lanczos.attained(own.forward, x, terms=own.weight[0].numel(), magnitude=magnitude)

    def _searched(self, group: int, matrix: Tensor, family: _Grams) -> float:
        """A norm that one group attains, from the wave at its symbol's peak."""
        own = groups_of(self.operator, torch.tensor([group]))
        symbol = Symbol(self.symbol.coefficients[group : group + 1], self.symbol.exponents)
        peak = Peak(0, self.bounds.angle(group), torch.ones(1, dtype=torch.float64))
        start = lanczos.start_vector(own, symbol, Certified(math.inf, self.bounds.grid(group), peak))
        assert start is not None
        if len(matrix) <= _FORMED:
            wave = family.flattened(start if family.outputs else own.adjoint(start))
            _, vectors = top_eigenpairs(matrix[None], steps=_QUICK, start=wave[None].to(matrix), accuracy=_STALLED)
            return self._attained_by(group, vectors[0].cpu(), family)
        return lanczos.attained_from(
            own,
            start,
            magnitude=float(self.magnitude[group]),
            steps=_QUICK,
            accuracy=_STALLED,
            device=self.settings.device,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Grams:
    """A A* (`outputs`) or A* A of every group, each entry off by at most `error` times that of |A| |A|*.

    Shapes: `matrices` (groups, s, s); the s positions are those of the first axis, then channels, then other axes'.
    """

    matrices: Tensor
    outputs: bool
    error: float
    channels: int
    size: tuple[int, ...]

    def positioned(self, vector: Tensor) -> Tensor:
        """A vector of the matrices' space as a batch of one output or input of a group."""
        first, *others = self.size
        return vector.reshape(first, self.channels, *others).transpose(0, 1)[None].contiguous()

    def flattened(self, batch: Tensor) -> Tensor:
        """One output or input of a group as a vector of the matrices' space."""
        return batch[0].transpose(0, 1).flatten()


def _gram_matrices(operator: Convolution) -> _Grams:
    """The smaller Gram matrix of every group, summed over pairs of taps of the first axis.

    A is B_k in the blocks (i, x) where tap k of the first axis takes output i to input x, B_k being the convolution
    along the other axes. So A A* is the sum of B_k B_l* in the blocks (i, i') where taps k and l meet at one x. An
    entry is summed over the products of a row of B_k, no more than its nonzero ones, and then over pairs of taps.
    """
    rows, columns = matrix_sides(operator)
    outputs = rows <= columns
    first = line_of(operator, 0, outputs)
    blocks = _blocks(operator)
    blocks = blocks if outputs else blocks.mT
    groups, taps, kept, summed = blocks.shape
    flat = blocks.reshape(groups, taps * kept, summed)
    products = (flat @ flat.mT).reshape(groups, taps, kept, taps, kept)
    blocks = products.transpose(2, 3).reshape(groups, taps * taps, kept * kept)
    places = [
        (one * taps + other, i * first.sites + j) for (one, other), met in first.pairs.items() for i, j in met.items()
    ]
    pair, site = torch.tensor(places, dtype=torch.long, device=blocks.device).reshape(-1, 2).unbind(1)
    gram = blocks.new_zeros(groups, first.sites**2, kept * kept).index_add_(1, site, blocks[:, pair])
    gram = gram.reshape(groups, first.sites, first.sites, kept, kept).transpose(2, 3)
    channels, others = operator.weight.shape[0] // groups, operator.weight.shape[1]
    channels, others = (channels, others) if outputs else (others, channels)
    # Rows of B_k: one entry a tap of the other axes and a channel that is summed over, or fewer.
    terms = others * math.prod(operator.kernel[1:]) + taps * taps
    size = operator.output_size if outputs else operator.input_size
    side = first.sites * kept
    return _Grams(gram.reshape(groups, side, side), outputs, rounding.gamma(terms + 4), channels, size)


def _blocks(operator: Convolution) -> Tensor:
    """B_k for every tap k of the first axis. Shapes: (groups, taps, outputs * n', inputs * n) of the other axes."""
    groups, taps = operator.groups, operator.kernel[0]
    weight = operator.weight.movedim(2, 0).flatten(0, 1)
    inner = replace(
        operator,
        weight=weight,
        groups=taps * groups,
        stride=operator.stride[1:],
        dilation=operator.dilation[1:],
        offset=operator.offset[1:],
        input_size=operator.input_size[1:],
        output_size=operator.output_size[1:],
    )
    matrices = as_matrix(inner)
    return matrices.reshape(taps, groups, *matrices.shape[1:]).transpose(0, 1)


def groups_of(operator: Convolution, groups: Tensor) -> Convolution:
    """The operator with some of its groups only."""
    weight = operator.weight.reshape(operator.groups, -1, *operator.weight.shape[1:])[groups].flatten(0, 1)
    return replace(operator, weight=weight, groups=len(groups))
