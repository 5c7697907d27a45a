"""The finite operator itself, exact to rounding: its Gram matrix, in blocks along one axis, is banded and below mu^2.

What zero padding leaves of a convolution is a block-banded matrix, and so is A A* or A* A. The blocks are sums of
products of taps, so the operator is never written out; one banded factorisation proves the norm. Source: maths,
section 2.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import banded, lanczos
from lipcheck.engines.certified import certify
from lipcheck.engines.gram import matrix_magnitude, scaled_by_power
from lipcheck.engines.matrix import blurred
from lipcheck.engines.settings import Settings
from lipcheck.engines.vectors import bound_groups
from lipcheck.errors import CertificateError
from lipcheck.operators import Convolution
from lipcheck.proof import FiniteProof, ZeroProof
from lipcheck.symbol import Symbol, convolution_symbol, grids, trimmed

# The search in a large operator rests on plateaus below its norm: it stops when hardly anything is gained any more.
_STEPS, _STALLED = 240, 1e-6
_MOST_SLACK = 1e-4
# After so many failures, each of which doubles the slack at least, something else is wrong.
_ATTEMPTS = 40


@dataclass(frozen=True, slots=True)
class Line:
    """One axis of a Gram matrix: the positions of the kept side, and where two taps meet at one of the other side.

    `pairs[k, l]` takes position i to i' where tap k at i and tap l at i' belong to the same position of the other
    side.
    """

    sites: int
    pairs: dict[tuple[int, int], dict[int, int]]

    @property
    def reach(self) -> int:
        """The largest i - i'."""
        return max((i - other for meeting in self.pairs.values() for i, other in meeting.items()), default=0)

    @property
    def period(self) -> int:
        """Positions that differ modulo this never meet; the number of positions where none meets another."""
        lags = {abs(i - other) for meeting in self.pairs.values() for i, other in meeting.items()}
        return math.gcd(*lags) or self.sites


@dataclass(frozen=True, slots=True)
class Plan:
    """A A* (`outputs`) or A* A of one group, in blocks along `axis`; `others` are the remaining axes in order."""

    outputs: bool
    axis: int
    line: Line
    others: tuple[Line, ...]
    channels: int

    @property
    def inner(self) -> int:
        """Positions in a block."""
        return math.prod(line.sites for line in self.others)

    @property
    def chains(self) -> list[range]:
        """The positions along the axis that hang together: Gram matrices of their own."""
        return [range(r, self.line.sites, self.line.period) for r in range(min(self.line.period, self.line.sites))]

    def layout(self, chain: range) -> banded.Layout:
        """The band of one chain's matrix."""
        inner_reach, reach = 0, min(self.line.reach // self.line.period, len(chain) - 1)
        for line in self.others:
            inner_reach = inner_reach * line.sites + line.reach
        width = (reach * self.inner + inner_reach + 1) * self.channels - 1
        order = self.inner * self.channels
        return banded.Layout(len(chain), order, reach, min(width, len(chain) * order - 1))

    @property
    def products(self) -> float:
        """Pairs of taps, as often as a block row differs from the one before it: products of matrices of taps."""
        inner = math.prod(sum(1 for meeting in line.pairs.values() if meeting) for line in self.others)
        patterns: set[tuple[tuple[int, int], ...]] = set()
        for i in range(self.line.sites):
            patterns.add(tuple(pair for pair, meeting in self.line.pairs.items() if meeting.get(i, i + 1) <= i))
        return float(inner * sum(map(len, patterns)))

    @property
    def factorisation(self) -> float:
        return sum(self.layout(chain).flops for chain in self.chains)


def plan(operator: Convolution) -> Plan:
    """The cheapest side and axis to factor along."""
    operator = trimmed(operator)
    found = []
    for outputs in (True, False):
        channels = operator.weight.shape[0] // operator.groups if outputs else operator.weight.shape[1]
        lines = [line_of(operator, axis, outputs) for axis in range(operator.axes)]
        for axis, line in enumerate(lines):
            found.append(Plan(outputs, axis, line, (*lines[:axis], *lines[axis + 1 :]), channels))
    return min(found, key=lambda one: one.factorisation)


def line_of(operator: Convolution, axis: int, outputs: bool) -> Line:
    """Where the taps of one axis meet; the positions kept are those of the outputs or of the inputs."""
    n, count = operator.input_size[axis], operator.output_size[axis]
    s, d, p = operator.stride[axis], operator.dilation[axis], operator.offset[axis]
    meets: list[dict[int, int]] = []
    for k in range(operator.kernel[axis]):
        reads = {i: s * i + d * k - p for i in range(count)}
        if operator.circular:
            reads = {i: j % n for i, j in reads.items()}
        reads = {i: j for i, j in reads.items() if 0 <= j < n}
        meets.append({j: i for i, j in reads.items()} if outputs else reads)
    taps = range(len(meets))
    pairs = {(k, m): {meets[k][x]: meets[m][x] for x in meets[k] if x in meets[m]} for k in taps for m in taps}
    return Line(count if outputs else n, pairs)


def cost(operator: Convolution) -> float:
    """Floating-point operations of forming and factoring the Gram matrices of all groups once."""
    chosen = plan(operator)
    other = operator.weight.shape[1] if chosen.outputs else operator.weight.shape[0] // operator.groups
    search = 4.0 * _STEPS * operator.weight[0].numel() * operator.weight.shape[0] * math.prod(operator.output_size)
    forming = 2 * chosen.products * chosen.channels**2 * other
    return search + operator.groups * (forming + chosen.factorisation)


def memory(operator: Convolution) -> int:
    """Bytes held at most while a Gram matrix is factored."""
    chosen = plan(operator)
    sides = (
        math.prod(operator.output_size) * operator.weight.shape[0]
        + math.prod(operator.input_size) * operator.input_channels
    )
    own = max(chosen.layout(chain).memory for chain in chosen.chains)
    return own + 16 * operator.weight.numel() + 4 * (_STEPS + 8) * sides


def spectral_norm(operator: Convolution, settings: Settings) -> Bound:
    """The enclosure of a zero-padded convolution's norm, exact but for the search's accuracy.

    The search gives the lower end, and mu a little above it is proved for every group at once; groups whose symbol is
    below mu already need no factorisation.
    Errors: CertificateError where mu could not be proved. Before calling, compare `memory` with what there is.
    """
    assert not operator.circular, "a circular convolution's symbol is exact"
    operator = trimmed(operator)
    if not bool(operator.weight.any()):
        return Bound(0.0, 0.0, "zero", proof=ZeroProof())
    exponent = math.frexp(float(operator.weight.abs().max()))[1]
    scaled = replace(operator, weight=scaled_by_power(operator.weight, -exponent))
    lower, mu = prove(scaled, settings)
    lower, mu = rounding.scale_down(lower, exponent), rounding.scale_up(mu, exponent)
    blur = rounding.multiply_up(operator.uncertainty, rounding.scale_up(magnitude(scaled), exponent))
    return blurred(lower, mu, blur, "finite", FiniteProof(mu, plan(operator).axis))


def prove(scaled: Convolution, settings: Settings) -> tuple[float, float]:
    """A norm attained and a norm proved, for weights near one.

    Errors: CertificateError where no proof succeeds.
    """
    slack = min(settings.tolerance / 10, _MOST_SLACK)
    lower = search(scaled, settings)
    mu = lower * (1 + slack) + rounding.UNDERFLOW
    chosen = plan(scaled)
    uppers = symbol_bounds(scaled, settings)
    for group in uppers.argsort(descending=True, stable=True).tolist():
        own = _group(scaled, group)
        for _ in range(_ATTEMPTS):
            # With room to spare, so that a factorisation would succeed as well.
            if float(uppers[group]) <= mu * (1 - 1e-6) or below(own, chosen, mu, settings.device):
                break
            # Either the search stopped short of the norm, or this group was not the one it looked at.
            lower = max(lower, search(own, settings, 2 * _STEPS))
            slack *= 2
            mu = max(mu, lower) * (1 + slack)
        else:
            raise CertificateError(f"finite operator: no factorisation at {mu} or below; use the embedding's bound")
    return lower, mu


def search(scaled: Convolution, settings: Settings, steps: int = _STEPS) -> float:
    """A norm that a vector attains, less its rounding."""
    noise = torch.Generator().manual_seed(0)
    # An input that the operator sees all of, so that the search ends with nothing left over.
    image = torch.randn(1, scaled.weight.shape[0], *scaled.output_size, generator=noise)
    accuracy = settings.tolerance * _STALLED
    return lanczos.attained_from(
        scaled, image, magnitude=magnitude(scaled), steps=steps, accuracy=accuracy, device=settings.device
    )


def magnitude(scaled: Convolution) -> float:
    """At least the norm of the convolution with |W|, for weights near one: a stride can only lower it."""
    taps = scaled.weight.double().abs().flatten(2).sum(2)
    each = [matrix_magnitude(group, terms=scaled.weight[0, 0].numel()) for group in taps.chunk(scaled.groups)]
    return max(each)


def symbol_bounds(scaled: Convolution, settings: Settings) -> Tensor:
    """A bound of each group's norm by its symbol; of a single group's, which is factored anyway, inf.

    Shapes: (groups,).
    """
    if scaled.groups == 1:
        return torch.tensor([math.inf])
    symbol = convolution_symbol(scaled)
    candidates = grids(scaled, symbol, settings.tolerance)
    if symbol.side == 1:
        return bound_groups(symbol, candidates, settings.device, settings.memory).upper
    alone = [Symbol(one[None], symbol.exponents) for one in symbol.coefficients]
    found = certify(
        alone, candidates, tolerance=settings.tolerance, device=settings.device, memory=settings.memory
    )  # fmt: skip
    return torch.tensor([one.upper for one in found], dtype=torch.float64)


def _group(operator: Convolution, group: int) -> Convolution:
    return replace(operator, weight=operator.weight.chunk(operator.groups)[group], groups=1)


def below(own: Convolution, chosen: Plan, mu: float, device: torch.device) -> bool:
    """Whether it is proved that a convolution of one group, with weights near one, has no norm above mu.

    Every entry of the Gram matrix H is a sum of `terms` products, formed block by block: |H^ - H| <= gamma(terms + 2)
    |A| |A|*, whose norm is at most gamma magnitude^2.
    """
    taps = _taps(own, chosen).to(device)
    # A tap's inner products, the taps of the axis side by side, and the additions of the other axes' pairs.
    terms = own.weight[0].numel() + own.weight.shape[0] * math.prod(own.kernel)
    blur = rounding.gamma(terms + 2) * magnitude(own) ** 2 * (1 + 8 * rounding.UNIT) + rounding.UNDERFLOW
    for chain in chosen.chains:
        rows = _Rows(chosen, chain, taps)
        if not banded.below(rows, chosen.layout(chain), mu, blur, device):
            return False
    return True


def _taps(own: Convolution, chosen: Plan) -> Tensor:
    """The taps' matrices, kept channels first. Shapes: (taps of the axis, taps of the others, kept, summed)."""
    weight = own.weight.double().movedim((0, 1), (-2, -1)).movedim(chosen.axis, 0)
    weight = weight.flatten(1, -3) if own.axes > 1 else weight[:, None]
    return (weight if chosen.outputs else weight.mT).contiguous()


class _Rows:
    """The lower block rows of one chain's Gram matrix, for `banded`; equal rows are formed once."""

    def __init__(self, chosen: Plan, chain: range, taps: Tensor) -> None:
        self.chosen, self.chain, self.taps = chosen, chain, taps
        self.layout = chosen.layout(chain)
        self.meetings = list(_inner_meetings(chosen.others))
        self.last: tuple[tuple[tuple[int, int], ...], ...] | None = None
        self.row = taps.new_zeros(0)

    def __call__(self, t: int) -> Tensor:
        pattern = tuple(self._meeting(t, lag) for lag in range(min(self.layout.reach, t), -1, -1))
        if pattern != self.last:
            self.row = self.taps.new_zeros(0)
            self.row = self._formed(pattern)
            self.last = pattern
        return self.row

    def _meeting(self, t: int, lag: int) -> tuple[tuple[int, int], ...]:
        """The pairs of taps of the axis at which blocks t and t - lag meet."""
        i, other = self.chain[t], self.chain[t - lag]
        return tuple(pair for pair, meeting in self.chosen.line.pairs.items() if meeting.get(i) == other)

    def _formed(self, pattern: tuple[tuple[tuple[int, int], ...], ...]) -> Tensor:
        inner, c = self.chosen.inner, self.chosen.channels
        row = self.taps.new_zeros(inner, c, len(pattern), inner, c)
        for place, pairs in enumerate(pattern):
            if not pairs:
                continue
            first, second = (torch.tensor(taps) for taps in zip(*pairs, strict=True))
            for one, other, rows, columns in self.meetings:
                left = self.taps[first, one].transpose(0, 1).flatten(1)
                right = self.taps[second, other].transpose(0, 1).flatten(1)
                block = row[:, :, place]
                block[rows, :, columns, :] += left @ right.T
        return row.reshape(inner * c, len(pattern) * inner * c)


def _inner_meetings(lines: tuple[Line, ...]) -> Iterable[tuple[int, int, Tensor, Tensor]]:
    """Pairs of taps of the remaining axes, flattened, and the positions (flattened) where they meet."""
    kernel = [max(k for k, _ in line.pairs) + 1 for line in lines]
    for pairs in itertools.product(*(line.pairs.items() for line in lines)):
        if not all(meeting for _, meeting in pairs):
            continue
        one = functools.reduce(lambda flat, k: flat * k[0] + k[1][0][0], zip(kernel, pairs, strict=True), 0)
        other = functools.reduce(lambda flat, k: flat * k[0] + k[1][0][1], zip(kernel, pairs, strict=True), 0)
        rows, columns = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        for line, (_, meeting) in zip(lines, pairs, strict=True):
            rows = (rows[:, None] * line.sites + torch.tensor(list(meeting))).flatten()
            columns = (columns[:, None] * line.sites + torch.tensor(list(meeting.values()))).flatten()
        yield one, other, rows, columns
