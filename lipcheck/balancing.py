"""The search for scales under which the composed constant of a network is small; certifying it is somebody else's.

ln ||exp(a) W exp(-b)|| is convex in (a, b), by Hadamard's three lines, and so is the logarithm of a sum of products of
such norms: any descent finds the best scales. Gradients come from singular vectors, |u_c|^2 for an output's scale and
-|v_c|^2 for an input's, by blocks of vectors that take one step of subspace iteration at each evaluation. At the best
scales many singular values are equal, so the largest is smoothed: the p-norm of the leading ones.
Source: maths, section 6 (a); Kingma and Ba, ICLR 2015, for the steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcheck.compose import Composition, Factor, compose
from lipcheck.engines.threads import shared
from lipcheck.merging import Link
from lipcheck.operators import Convolution, Dense, Diagonal, Linear, Padded
from lipcheck.spaces import Layout, Space, channel_norms, is_depthwise
from lipcheck.symbol import Grid, convolution_symbol, embedding_points, trimmed
from lipcheck.weighted import assembled, followed, gain_of, groups_of, is_elementwise

# The exponent of the norms that stand for maxima.
_POWER = 64.0
# Singular vectors of each map, and the frequencies at which a convolution is looked at.
_VECTORS, _FREQUENCIES = 16, 6
# Steps of subspace iteration before the first descent.
_WARM = 4
_RATE, _MOMENTA = 0.1, (0.9, 0.99)
# Scales this far below the largest in a map are lifted to it, so that single precision holds their squares.
_LOWEST = -26.0
_CPU = torch.device("cpu")


class _Term:
    """A number of the composition as a function of the variables, under the name of its factor."""

    name: str

    def evaluate(self, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        """The logarithm, and its derivatives by some variables, with their labels."""
        raise NotImplementedError


@dataclass(eq=False)
class _Side:
    """ln of the scales of the channels on one side of a map: sign (theta[label] + extra) + constant."""

    label: Tensor
    constant: Tensor
    sign: float
    extra: Tensor | None = None  # labels of one more variable each

    def logs(self, theta: Tensor) -> Tensor:
        found = theta[self.label] + self.constant
        if self.extra is not None:
            found = found + theta[self.extra]
        return self.sign * found


@dataclass(eq=False)
class _Matrix(_Term):
    """ln of the norm of a scaled map along channels, at some frequencies.

    Shapes: `held` is (batch, rows, columns), `row` and `column` (batch, ...) say whose scale each has.
    """

    name: str
    held: Tensor
    row: Tensor
    column: Tensor
    rows: _Side
    columns: _Side
    block: Tensor = field(init=False)

    def __post_init__(self) -> None:
        batch, rows, columns = self.held.shape
        count = min(_VECTORS, rows, columns)
        generator = torch.Generator().manual_seed(rows * 7919 + columns)
        start = torch.randn(batch, rows, count, generator=generator).to(self.held)
        self.block = torch.linalg.qr(start)[0]

    def evaluate(self, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        logs = [side.logs(theta) for side in (self.rows, self.columns)]
        tops = [float(one.max()) for one in logs]
        scales = [(one - top).clamp_min(_LOWEST).exp().to(self.held.real) for one, top in zip(logs, tops, strict=True)]
        outer, inner = scales[0][self.row].unsqueeze(-1), scales[1][self.column].unsqueeze(-1)
        image = inner * (self.held.mH @ (outer * self.block))
        size = float(image.abs().max())
        if not 0 < size < math.inf:
            nothing = torch.zeros(0, dtype=torch.long)
            return -math.inf, nothing, nothing.double()
        image = image / size
        values, turn = torch.linalg.eigh(image.mH @ image)
        values = values.clamp_min(1e-12 * float(values.max()))
        roots = values.double().log().reshape(-1) / 2
        shares = torch.softmax(_POWER * roots, 0)
        found = float(torch.logsumexp(_POWER * roots, 0)) / _POWER + math.log(size) + sum(tops)
        shares = shares.reshape(values.shape).unsqueeze(1)
        left = (self.block @ turn).abs().square()
        right = (image @ turn).abs().square() / values.unsqueeze(1)
        self.block = torch.linalg.qr(outer * (self.held @ (inner * image)))[0]
        parts = [
            self._gathered(self.rows, self.row, (left * shares).sum(-1)),
            self._gathered(self.columns, self.column, (right * shares).sum(-1)),
        ]
        labels, slopes = zip(*itertools.chain(*parts), strict=True)
        return found, torch.cat(labels), torch.cat(slopes)

    def _gathered(self, side: _Side, places: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        slopes = torch.zeros(len(side.label), dtype=torch.float64)
        slopes.index_add_(0, places.reshape(-1).cpu(), weights.reshape(-1).double().cpu())
        yield side.label, side.sign * slopes
        if side.extra is not None:
            yield side.extra, side.sign * slopes

    def norms_of_parts(self, theta: Tensor, widths: tuple[int, ...]) -> list[float]:
        """Estimates of ln of the norms of the parts that read one input each, unbalanced."""
        outer = self.rows.logs(theta).exp().to(self.held.real)[self.row].unsqueeze(-1)
        inner = (-(theta[self.columns.label] + self.columns.constant)).exp().to(self.held.real)[self.column]
        scaled = outer * self.held * inner.unsqueeze(-2)
        sizes = scaled.abs().square().sum((0, 1)).double()
        ends = itertools.accumulate(widths)
        return [float(sizes[end - width : end].sum().sqrt().log()) for end, width in zip(ends, widths, strict=True)]

    @property
    def work(self) -> float:
        """Multiplications of one evaluation."""
        return 2.0 * self.held.numel() * self.block.shape[-1] * (4 if self.held.is_complex() else 1)


@dataclass(eq=False)
class _Ratio(_Term):
    """ln of the largest, over some blocks, of the largest of their own scales over the least of what they read."""

    name: str
    own: tuple[Tensor, Tensor, Tensor]  # block, variable, constant of each
    read: tuple[Tensor, Tensor, Tensor]
    blocks: int

    def evaluate(self, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        tops, weights = [], []
        for (block, label, constant), sign in ((self.own, 1.0), (self.read, -1.0)):
            logs = sign * (theta[label] + constant)
            top = torch.full((self.blocks,), -math.inf, dtype=torch.float64)
            top = top.scatter_reduce(0, block, logs, "amax")
            powers = (_POWER * (logs - top[block])).exp()
            total = torch.zeros(self.blocks, dtype=torch.float64).index_add(0, block, powers)
            tops.append(top + total.log() / _POWER)
            weights.append(sign * powers / total[block])
        whole = tops[0] + tops[1]
        shares = torch.softmax(_POWER * whole, 0)
        found = float(torch.logsumexp(_POWER * whole, 0)) / _POWER
        slopes = [weight * shares[block] for weight, (block, _, _) in zip(weights, (self.own, self.read), strict=True)]
        return found, torch.cat([self.own[1], self.read[1]]), torch.cat(slopes)


@dataclass(eq=False)
class _Balance(_Term):
    """One input among several: its own variable."""

    name: str
    label: Tensor

    def evaluate(self, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        return float(theta[self.label]), self.label.reshape(1), torch.ones(1, dtype=torch.float64)


class Search:
    """The composition of a chain as a function of its layout's variables."""

    def __init__(
        self,
        layout: Layout,
        norms: Mapping[str, float],
        slopes: Mapping[str, tuple[float, ...]],
        device: torch.device = _CPU,
    ) -> None:
        """`norms` are those of the linear links that the scales do not change, by name; `slopes` as `propagate`'s."""
        self.layout, self.norms, self.slopes, self.device = layout, norms, slopes, device
        self.terms: dict[str, _Term] = {}
        for link in layout.chain.links:
            for term in self._terms(link):
                self.terms[term.name] = term

    @property
    def work(self) -> float:
        """Multiplications of one step."""
        return sum(2 * term.work for term in self.terms.values() if isinstance(term, _Matrix))

    def start(self) -> Tensor:
        """All scales 1 where the layout leaves them free, inputs side by side balanced for their sum."""
        theta = torch.zeros(self.layout.count, dtype=torch.float64)
        values = {name: term.evaluate(theta)[0] for name, term in self.terms.items()}
        found: list[Factor] = []
        for link in self.layout.chain.links:
            labels = self.layout.balance.get(link.name)
            term = self.terms.get(link.name)
            if labels is not None and isinstance(term, _Matrix):
                logs = compose(self.layout.chain.source, found, "").logs
                parts = term.norms_of_parts(theta, link.widths)
                moved = [logs[name] + part for name, part in zip(link.inputs, parts, strict=True)]
                total = float(torch.logsumexp(torch.tensor(moved, dtype=torch.float64), 0))
                if math.isfinite(total):
                    # sum of s_j, as the norm of (s_j / sqrt w_j) with w_j = s_j / sum of s: t_j = sqrt(w_j) / L_j.
                    sets = [(part - total) / 2 - logs[name] for name, part in zip(link.inputs, moved, strict=True)]
                    # An input that the map does not read, or that is constant, has no say.
                    theta[labels] = torch.tensor(sets, dtype=torch.float64).nan_to_num(0.0).clamp(-200.0, 200.0)
                for place, label in enumerate(labels.tolist()):
                    values[f"{link.name}/{place}"] = float(theta[label])
                values[link.name] = term.evaluate(theta)[0]
            found += self._factors(link, values)
        return theta

    def run(self, steps: int) -> Tensor:
        """The variables of the best scales after so many steps of descent, the last ones averaged."""
        theta = self.start()
        for _ in range(_WARM + 1):
            composition, gradient = self._descended(theta)
        first, second = torch.zeros_like(theta), torch.zeros_like(theta)
        best, kept = (composition.output, theta.clone()), torch.zeros_like(theta)
        averaged = max(1, steps // 5)
        for step in range(steps):
            composition, gradient = self._descended(theta)
            if not math.isfinite(composition.output):
                break
            if composition.output < best[0]:
                best = composition.output, theta.clone()
            first = _MOMENTA[0] * first + (1 - _MOMENTA[0]) * gradient
            second = _MOMENTA[1] * second + (1 - _MOMENTA[1]) * gradient.square()
            mean, spread = first / (1 - _MOMENTA[0] ** (step + 1)), second / (1 - _MOMENTA[1] ** (step + 1))
            rate = _RATE * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-3
            theta = theta - rate * mean / (spread.sqrt() + 1e-12)
            if step >= steps - averaged:
                kept = kept + theta / averaged
        if steps and math.isfinite(composition.output):
            composition, _ = self._descended(kept)
            if composition.output < best[0]:
                best = composition.output, kept
        return best[1]

    def _descended(self, theta: Tensor) -> tuple[Composition, Tensor]:
        """The composition and the gradient of its logarithm."""
        names = list(self.terms)
        found = shared(lambda name: self.terms[name].evaluate(theta), names, self.device)
        values = {name: value for name, (value, _, _) in zip(names, found, strict=True)}
        factors = [factor for link in self.layout.chain.links for factor in self._factors(link, values)]
        last = Factor("", (self.layout.chain.output,), Dense(torch.ones(1, 1)), _exp(values.get("", 0.0)))
        composition = compose(self.layout.chain.source, [*factors, last], "")
        gradient = torch.zeros_like(theta)
        for name, (_, labels, slopes) in zip(names, found, strict=True):
            weight = composition.elasticity.get(name, 0.0)
            if weight:
                gradient.index_add_(0, labels, weight * slopes)
        gradient[0] = 0.0
        return composition, gradient

    def _factors(self, link: Link, values: Mapping[str, float]) -> list[Factor]:
        count = len(link.inputs)
        if link.map is not None:
            # A depthwise convolution without a term has scales that make its norm 1.
            known = 1.0 if is_depthwise(link.operator) else self.norms.get(link.name, 1.0)
            norm = _exp(values[link.name]) if link.name in values else known
            return assembled(link, norm, (), [_exp(values.get(f"{link.name}/{n}", 0.0)) for n in range(count)], ())
        linear = isinstance(link.operator, Linear)
        names = [link.name if linear else f"{link.name}/{n}" for n in range(count)]
        ratios = [_exp(values[name]) if name in values else 1.0 for name in names]
        # What has a term keeps its edge.
        ratios = [math.nextafter(1.0, 2.0) if by == 1.0 and name in values else by
                  for name, by in zip(names, ratios, strict=True)]  # fmt: skip
        norm = self.norms.get(link.name, 1.0) if linear and not isinstance(link.operator, Diagonal) else 1.0
        return assembled(link, norm, ratios, (), self.slopes.get(link.name, ()))

    def _terms(self, link: Link) -> Iterator[_Term]:
        spaces = [self.layout.of[name] for name in link.inputs]
        if link.map is not None:
            labels = self.layout.balance.get(link.name)
            if labels is not None:
                for place, label in enumerate(labels):
                    yield _Balance(f"{link.name}/{place}", label)
            yield from self._of_map(link)
            return
        for place, space in enumerate(spaces):
            if isinstance(space, Space):
                term = self._ratio(link, place, space)
                if term is not None:
                    yield term

    def _of_map(self, link: Link) -> Iterator[_Term]:
        own = self.layout.of[link.name]
        assert isinstance(own, Space)
        if is_depthwise(link.operator) and isinstance(link.operator, Convolution):
            times = link.operator.weight.shape[0] // link.operator.groups
            axis = len(link.shape) + link.axis
            read = self.layout.of[link.inputs[0]]
            assert isinstance(read, Space)
            label = read.label if read.label.shape[axis] == 1 else read.label.repeat_interleave(times, axis)
            offset = read.offset if read.label.shape[axis] == 1 else read.offset.repeat_interleave(times, axis)
            gain = self.layout.norms.get(link.name)
            gain = channel_norms(link.operator) if gain is None else gain
            shape = [len(gain) if n == axis else 1 for n in range(len(link.shape))]
            term = self._apart(link.name, own, Space(label, offset), gain.reshape(shape))
            if term is not None:
                yield term
            return
        if not self._is_free(link):
            return
        rows = _side(self.layout, own, link, 1.0)
        reads = [self.layout.of[name] for name in link.inputs]
        widths = link.widths or (_width(link),)
        sides = [
            _side(self.layout, space, link, -1.0, width)
            for space, width in zip(reads, widths, strict=True)
            if isinstance(space, Space)
        ]
        columns = _Side(torch.cat([s.label for s in sides]), torch.cat([s.constant for s in sides]), -1.0)
        labels = self.layout.balance.get(link.name)
        if labels is not None:
            columns.extra = torch.cat([label.expand(width) for label, width in zip(labels, widths, strict=True)])
        held, row, column = _looked_at(link)
        row, column = row.to(self.device), column.to(self.device)
        operator = link.operator
        if isinstance(operator, Convolution) and operator.transposed:
            rows, columns = columns, rows
        yield _Matrix(link.name, held.to(self.device), row, column, rows, columns)

    def _is_free(self, link: Link) -> bool:
        """Whether the scales of a map can move, or nobody bounded it yet."""
        if link.name in self.layout.balance or link.name not in self.norms:
            return True
        for name in (link.name, *link.inputs):
            space = self.layout.of[name]
            if isinstance(space, Space) and (bool(self.layout.resolved(space)[0].any()) or bool(space.offset.any())):
                return True
        return False

    def _ratio(self, link: Link, place: int, space: Space) -> _Term | None:
        """The ratio of the scales of a link's result to those of one operand; None where it is 1 throughout."""
        name = link.name if isinstance(link.operator, Linear) else f"{link.name}/{place}"
        own = self.layout.of[link.name]
        shape = self.layout.chain.shapes[link.inputs[place]]
        index = torch.arange(1, space.label.numel() + 1, dtype=torch.float64).reshape(space.label.shape)
        found = followed(link, place, index, self.layout.chain.shapes)
        if isinstance(own, tuple) or isinstance(found, tuple):
            return None
        gain = link.operator.gain.double().abs() if isinstance(link.operator, Diagonal) else gain_of(link)
        if gain is not None and gain.dim() < len(link.shape):
            gain = gain.reshape((1,) * (len(link.shape) - gain.dim()) + tuple(gain.shape))
        groups = groups_of(link)
        apart = is_elementwise(link, place, shape) or found.numel() > 1 or space.is_uniform
        if apart and groups is None:
            known = torch.isfinite(found)
            chosen = torch.where(known, found - 1, 0.0).long()
            constant = torch.where(known, space.offset.reshape(-1)[chosen], math.inf)
            return self._apart(name, own, Space(space.label.reshape(-1)[chosen], constant), gain)
        return self._blocks(name, own, space, found, index, groups, gain, shape)

    def _apart(self, name: str, own: Space, read: Space, gain: Tensor | None) -> _Term | None:
        """Each element of the result by itself."""
        (first, above), (second, below) = self.layout.resolved(own), self.layout.resolved(read)
        if gain is not None:
            above = above + gain.clamp_min(1e-300).log()
        rank = max(first.dim(), second.dim(), above.dim())
        parts = [one.reshape((1,) * (rank - one.dim()) + tuple(one.shape)).double() for one in (first, second)]
        gaps = above - below
        together = torch.broadcast_tensors(parts[0], parts[1], gaps)  # type: ignore[no-untyped-call]
        triples = torch.unique(torch.stack(together, -1).reshape(-1, 3), dim=0)
        triples = triples[triples[:, 2] > -math.inf]
        same = (triples[:, 0] == triples[:, 1]) & (triples[:, 2].abs() < 1e-9)
        if bool(same.all()):
            return None
        block = torch.arange(len(triples))
        zeros = torch.zeros(len(triples), dtype=torch.float64)
        return _Ratio(
            name, (block, triples[:, 0].long(), triples[:, 2]), (block, triples[:, 1].long(), zeros), len(triples)
        )

    def _blocks(
        self,
        name: str,
        own: Space,
        space: Space,
        found: Tensor,
        index: Tensor,
        groups: object,
        gain: Tensor | None,
        shape: tuple[int, ...],
    ) -> _Term | None:
        """Blocks of elements that meet, each known by the first element that it reads."""
        first, above = self.layout.resolved(own)
        if gain is not None:
            above = above + gain.clamp_min(1e-300).log()
        together = torch.broadcast_tensors(found, first.double(), above)  # type: ignore[no-untyped-call]
        makes = torch.unique(torch.stack(together, -1).reshape(-1, 3), dim=0)
        second, below = self.layout.resolved(space)
        wide = found if groups is not None else found.reshape(-1)[:1].reshape((1,) * index.dim())
        pairs = torch.broadcast_tensors(wide, second.double(), below)  # type: ignore[no-untyped-call]
        reads = torch.unique(torch.stack(pairs, -1).reshape(-1, 3), dim=0)
        numbers = torch.unique(torch.cat([makes[:, 0], reads[:, 0]]))
        if not len(makes) or not len(reads):
            return None
        sides = [
            (torch.searchsorted(numbers, part[:, 0].contiguous()), part[:, 1].long(), part[:, 2])
            for part in (makes, reads)
        ]
        if (
            len({int(label) for _, label, _ in sides for label in label.tolist()}) == 1
            and len(makes) == len(reads) == 1
        ):
            return None
        return _Ratio(name, sides[0], sides[1], len(numbers))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if value > -700 else 1e-300


def _width(link: Link) -> int:
    own = link.map
    assert own is not None
    return own.inputs


def _side(layout: Layout, space: Space, link: Link, sign: float, width: int | None = None) -> _Side:
    """The scales of a value's channels, at its first position."""
    label, constant = layout.resolved(space)
    axis = label.dim() + link.axis
    for other in range(label.dim()):
        if other != axis:
            label, constant = label.narrow(other, 0, 1), constant.narrow(other, 0, 1)
    label, constant = label.reshape(-1), constant.reshape(-1)
    if width is not None and len(label) == 1:
        label, constant = label.expand(width), constant.expand(width)
    own = link.map
    assert own is not None
    if sign > 0 and len(label) == 1:
        label, constant = label.expand(own.outputs), constant.expand(own.outputs)
    return _Side(label.contiguous(), constant.contiguous(), sign)


def _looked_at(link: Link) -> tuple[Tensor, Tensor, Tensor]:
    """The map's symbol at the frequencies where it is largest, and whose scales its rows and columns have.

    Shapes: (batch, rows, columns) in single precision, (batch, rows), (batch, columns).
    """
    operator = link.operator
    if isinstance(operator, Dense):
        rows, columns = operator.matrix.shape
        return operator.matrix.detach().float()[None], torch.arange(rows)[None], torch.arange(columns)[None]
    operator = operator.convolution if isinstance(operator, Padded) else operator
    assert isinstance(operator, Convolution)
    symbol = convolution_symbol(trimmed(operator))
    groups, taps, rows, columns = symbol.coefficients.shape
    inputs = operator.weight.shape[1]
    row = torch.arange(groups * rows).reshape(groups, rows)
    column = torch.arange(groups)[:, None] * inputs + torch.arange(columns)[None] % inputs
    coefficients = symbol.coefficients.detach().float()
    if taps == 1:
        return coefficients[:, 0], row, column
    points = tuple(
        1 if degree == 0 else min(m, 2 * degree)
        for m, degree in zip(embedding_points(trimmed(operator)), symbol.degrees, strict=True)
    )
    grid = Grid(points, (0,) * len(points))
    cosine, sine = grid.phases(grid.indices(), symbol.exponents)
    flat = coefficients.transpose(0, 1).reshape(taps, -1)
    sizes = (cosine.float() @ flat).square().sum(1) + (sine.float() @ flat).square().sum(1)
    chosen = sizes.argsort(descending=True, stable=True)[:_FREQUENCIES]
    wave = torch.complex(cosine[chosen].float(), sine[chosen].float())
    held = (wave @ flat.to(wave)).reshape(-1, rows, columns)
    if bool((sine[chosen].abs() < 1e-12).all()):
        held = held.real.contiguous()
    return held, row.repeat(len(chosen), 1), column.repeat(len(chosen), 1)
