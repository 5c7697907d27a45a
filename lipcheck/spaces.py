"""Which elements of a network's activations share a scale: the free logarithms behind the D of weighted norms.

An elementwise map, a pooling, a depthwise convolution or a residual sum keeps channels apart, so what it reads and
makes has the same scale, times what it multiplies by; where channels are mixed new scales begin. None of this is a
claim: `weighted.factors` bounds the network for any D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcheck.merging import Chain, Link
from lipcheck.operators import Convolution, Diagonal, Linear
from lipcheck.symbol import Grid, convolution_symbol, embedding_points, trimmed
from lipcheck.weighted import Scale, Scales, followed, gain_of, is_elementwise, narrowed, reduced

# Factors below this part of the largest are not made up for.
_SMALLEST = 1e-6
# Frequencies per axis at which depthwise convolutions are estimated.
_POINTS = 12
# No scale leaves the range from exp(-_WIDEST) to exp(_WIDEST).
_WIDEST = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """ln D of a value: the variable `label` of each element, plus `offset`. Label 0 is the constant 0.

    Shapes: both have as many axes as the value, each of full length or of one.
    """

    label: Tensor
    offset: Tensor

    @property
    def is_uniform(self) -> bool:
        return self.label.numel() == 1


Spaces = Space | tuple[Space, ...]


class Variables:
    """Labels that were found to be the same but for a constant, as trees: a label is its root's plus a shift."""

    def __init__(self) -> None:
        self.parent = [0]
        self.shift = [0.0]

    def fresh(self, count: int) -> Tensor:
        """New labels."""
        first = len(self.parent)
        self.parent += range(first, first + count)
        self.shift += [0.0] * count
        return torch.arange(first, first + count)

    def root(self, label: int) -> tuple[int, float]:
        """The root of a label and what the label is above it."""
        path, total = [], 0.0
        while self.parent[label] != label:
            path.append(label)
            label = self.parent[label]
        for each in reversed(path):
            total += self.shift[each]
            self.parent[each], self.shift[each] = label, total
        return label, total

    def join(self, first: Space, second: Space) -> None:
        """Makes the two equal element by element, as far as what was joined before allows."""
        a_label, b_label = _broadcast(first.label, second.label)
        gaps, _ = _broadcast(second.offset - first.offset, a_label)
        pairs = torch.stack([a_label.double(), b_label.double(), gaps], -1).reshape(-1, 3)
        for a, b, gap in torch.unique(pairs, dim=0).tolist():
            (one, above), (other, over) = self.root(int(a)), self.root(int(b))
            if one == other:
                continue
            # theta_one + above = theta_other + over + gap; the constant stays a root.
            shift = over + gap - above
            if one == 0:
                self.parent[other], self.shift[other] = one, -shift
            else:
                self.parent[one], self.shift[one] = other, shift

    def join_along(self, space: Space, axes: Iterable[int]) -> Space:
        """Makes the scale constant along these axes, and drops them to one."""
        for axis in axes:
            if space.label.shape[axis] > 1:
                first = Space(space.label.narrow(axis, 0, 1), space.offset.narrow(axis, 0, 1))
                self.join(first, space)
                space = first
        return space

    def resolved(self) -> tuple[Tensor, Tensor]:
        """For every label its root and its shift."""
        pairs = [self.root(label) for label in range(len(self.parent))]
        return torch.tensor([root for root, _ in pairs]), torch.tensor([s for _, s in pairs], dtype=torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The scales of a chain's values as functions of `count` variables, of which the first is the constant 0."""

    chain: Chain
    of: Mapping[str, Spaces]
    balance: Mapping[str, Tensor]  # the variables of the maps that read several inputs side by side
    norms: Mapping[str, Tensor]  # `channel_norms` of depthwise convolutions whose scales are free
    roots: Tensor
    shifts: Tensor

    @property
    def count(self) -> int:
        return len(self.roots)

    def resolved(self, space: Space) -> tuple[Tensor, Tensor]:
        """The variables and the constants of ln D, the joined labels taken together."""
        return self.roots[space.label], space.offset + self.shifts[space.label]

    def scales(self, theta: Tensor) -> Scales:
        """D at these values of the variables. Shapes: `theta` (count,) float64, its first entry 0."""

        def scale(space: Spaces) -> Scale:
            if isinstance(space, tuple):
                return tuple(one for part in space if isinstance(one := scale(part), Tensor))
            variables, constants = self.resolved(space)
            return (theta[variables] + constants).clamp(-_WIDEST, _WIDEST).exp()

        balance = {name: tuple(theta[labels].exp().tolist()) for name, labels in self.balance.items()}
        return Scales({name: scale(space) for name, space in self.of.items()}, balance)


def layout(chain: Chain, fixed: Callable[[Link], bool]) -> Layout:
    """Scales for a chain, as free as its maps leave them; a `fixed` map along channels keeps D = 1 on both sides."""
    work = _Work(chain, fixed)
    for link in chain.links:
        work.spaces[link.name] = work.made(link)
    last = work.spaces[chain.output]
    for part in last if isinstance(last, tuple) else (last,):
        work.variables.join(part, _constant(part.label.dim()))
    roots, shifts = work.variables.resolved()
    return Layout(chain, work.spaces, work.balance, work.norms, roots, shifts)


def unweighted(chain: Chain) -> Layout:
    """D = 1 everywhere; only inputs side by side are balanced."""
    variables = Variables()
    spaces = {name: _constant(len(shape)) for name, shape in chain.shapes.items()}
    balance = {link.name: variables.fresh(len(link.inputs)) for link in chain.links if link.widths}
    roots, shifts = variables.resolved()
    return Layout(chain, spaces, balance, {}, roots, shifts)


def _constant(rank: int) -> Space:
    """D = 1."""
    return Space(torch.zeros((1,) * rank, dtype=torch.long), torch.zeros((1,) * rank, dtype=torch.float64))


class _Work:
    """The spaces of the values so far."""

    def __init__(self, chain: Chain, fixed: Callable[[Link], bool]) -> None:
        self.chain, self.fixed = chain, fixed
        self.variables = Variables()
        self.spaces: dict[str, Spaces] = {chain.source: _constant(len(chain.shapes[chain.source]))}
        self.balance: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}

    def made(self, link: Link) -> Spaces:
        """The space of what a link makes; what it reads is joined where that costs nothing."""
        given = [self.spaces[name] for name in link.inputs]
        if link.map is not None:
            return self._mapped(link, [one for one in given if isinstance(one, Space)])
        if len(given) == 1 and isinstance(given[0], Space):
            axes, _ = reduced(link, self.chain.shapes[link.inputs[0]]) if link.own else (None, True)
            if axes:
                given = [self.variables.join_along(given[0], axes)]
        carried = [self._carried(link, place, one) for place, one in enumerate(given)]
        if len(carried) == 1 and isinstance(carried[0], tuple):
            return tuple(Space(part.label.clamp_min(0), part.offset) for part in carried[0])
        known = [one for one in carried if isinstance(one, Space)]
        if len(known) < len(given) or not self._keeps_apart(link, given):
            return self._renewed(link, known)
        return self._joined(link, known)

    def _mapped(self, link: Link, given: list[Space]) -> Space:
        own, operator = link.map, link.operator
        assert own is not None
        rank = len(link.shape)
        read = []
        for space in given:
            others = [axis for axis in range(space.label.dim()) if axis != space.label.dim() + own.axis]
            read.append(self.variables.join_along(space, others))
        shape = tuple(own.outputs if axis == rank + own.axis else 1 for axis in range(rank))
        if len(given) > 1:
            self.balance[link.name] = self.variables.fresh(len(given))
        if self.fixed(link):
            for space in read:
                self.variables.join(space, _constant(space.label.dim()))
            return _constant(rank)
        if is_depthwise(operator) and isinstance(operator, Convolution):
            norms = self.norms[link.name] = channel_norms(operator)
            times = own.outputs // own.inputs
            axis = rank + own.axis
            label, offset = read[0].label, read[0].offset
            if label.shape[axis] == 1:
                wide = [own.inputs if n == axis else 1 for n in range(rank)]
                label, offset = label.expand(wide), offset.expand(wide)
            label, offset = label.repeat_interleave(times, axis), offset.repeat_interleave(times, axis)
            return Space(label, offset - norms.log().reshape(shape))
        return Space(self.variables.fresh(own.outputs).reshape(shape), torch.zeros(shape, dtype=torch.float64))

    def _carried(self, link: Link, place: int, space: Spaces) -> Spaces | None:
        """What the link leaves of an operand's space: for every element of the result the first of those it depends
        on, label -1 where it depends on none.
        """
        if isinstance(space, tuple):
            index = link.node.arguments["index"] if link.base == "getitem" and link.own else -1
            return space[index] if 0 <= index < len(space) else None
        index = torch.arange(1, space.label.numel() + 1, dtype=torch.float64).reshape(space.label.shape)
        found = followed(link, place, index, self.chain.shapes)
        parts = []
        for part in found if isinstance(found, tuple) else (found,):
            known = torch.isfinite(part)
            chosen = torch.where(known, part - 1, 0.0).long()
            label = torch.where(known, space.label.reshape(-1)[chosen], -1)
            parts.append(Space(label, torch.where(known, space.offset.reshape(-1)[chosen], 0.0)))
        return tuple(parts) if isinstance(found, tuple) else parts[0]

    def _keeps_apart(self, link: Link, given: list[Spaces]) -> bool:
        """Whether an element of the result depends on elements of one scale only, in each operand."""
        for place, space in enumerate(given):
            if not isinstance(space, Space):
                continue  # one of several results was picked, whole
            if space.is_uniform or is_elementwise(link, place, self.chain.shapes[link.inputs[place]]):
                continue
            if link.own and link.base in ("cat", "stack"):
                continue
            least = torch.arange(1, space.label.numel() + 1, dtype=torch.float64).reshape(space.label.shape)
            first = followed(link, place, least, self.chain.shapes)
            last = followed(link, place, 1 + least.numel() - least, self.chain.shapes)
            if isinstance(first, tuple) or isinstance(last, tuple):
                continue
            if not bool((first == 1 + least.numel() - last)[torch.isfinite(first)].all()):
                return False
        return True

    def _renewed(self, link: Link, carried: list[Space]) -> Space:
        """New scales behind a map that mixes: one for each block that what it reads tells apart."""
        rank = len(link.shape)
        if len(carried) == 1 and len(link.inputs) == 1:
            kept = torch.stack([carried[0].label.double(), carried[0].offset], -1)
            blocks, which = torch.unique(kept.reshape(-1, 2), dim=0, return_inverse=True)
            labels = self.variables.fresh(len(blocks))[which].reshape(carried[0].label.shape)
        else:
            labels = self.variables.fresh(1).reshape((1,) * rank)
        space = Space(labels, torch.zeros(labels.shape, dtype=torch.float64))
        gain = gain_of(link)
        return space if gain is None else _divided(space, narrowed(gain))

    def _joined(self, link: Link, carried: list[Space]) -> Space:
        """The scale of several operands that meet; one that is the same everywhere adapts to none."""
        varied = [one for one in carried if not one.is_uniform] or carried
        whole = varied[0]
        for one in varied[1:]:
            if link.base in ("cat", "stack") and link.own:
                whole = _filled(whole, one)
                continue
            self.variables.join(whole, one)
            if one.label.numel() > whole.label.numel():
                whole = one
        if bool((whole.label < 0).any()):
            uniform = next((one for one in carried if one.is_uniform), _constant(len(link.shape)))
            whole = _filled(whole, uniform)
        if isinstance(link.operator, Diagonal) and isinstance(link.operator, Linear):
            gain = link.operator.gain.double().abs()
            return _divided(whole, gain.reshape((1,) * (len(link.shape) - gain.dim()) + tuple(gain.shape)))
        return whole


def _filled(space: Space, other: Space) -> Space:
    """The first, and the second where the first has nothing."""
    label, rest = _broadcast(space.label, other.label)
    offset, more = _broadcast(space.offset, other.offset)
    missing = label < 0
    return Space(torch.where(missing, rest, label), torch.where(missing, more, offset))


def _divided(space: Space, gain: Tensor) -> Space:
    """The scale over a gain."""
    floor = gain.max().clamp_min(1e-300) * _SMALLEST
    logs = gain.clamp_min(float(floor)).log()
    label, offset = _broadcast(space.label, logs)
    return Space(label, space.offset - offset)


def _broadcast(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    one, other = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
    return one, other


def is_depthwise(operator: object) -> bool:
    """Whether a convolution keeps its channels apart."""
    return (
        isinstance(operator, Convolution)
        and not operator.transposed
        and operator.groups == operator.input_channels > 1
        and operator.weight.numel() > 0
    )


def channel_norms(operator: Convolution) -> Tensor:
    """An estimate of each output channel's norm in a depthwise convolution, never zero. Shapes: (outputs,)."""
    operator = trimmed(operator)
    symbol = convolution_symbol(operator)
    points = tuple(min(m, _POINTS) for m in embedding_points(operator))
    grid = Grid(points, (0,) * len(points))
    cosine, sine = grid.phases(grid.indices(), symbol.exponents)
    groups, taps, rows, columns = symbol.coefficients.shape
    flat = symbol.coefficients.double().transpose(0, 1).reshape(taps, -1)
    squares = (cosine @ flat).square() + (sine @ flat).square()
    norms = squares.reshape(-1, groups, rows, columns).sum(3).amax(0).sqrt().reshape(-1)
    return norms.clamp_min(float(norms.max().clamp_min(1e-300)) * _SMALLEST)
