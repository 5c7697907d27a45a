"""The network as a list of maps, and linear stretches of it merged: each value there as one map of what enters.

Between activations a network is linear. What a layer reads there is a sum over the activations that enter the stretch,
each through its own product of matrices, sum_j A_j h_j: the 1x1 projection of one block and the expansion of the next,
a stream of residual sums, branches of the same input. ||A_j|| is at most the product of the norms on the way, and the
maps A_j read side by side, [A_1 A_2 ...], say how much all the h_j together move the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lipcheck.channels import Map, added, beside, composed
from lipcheck.graph import Graph, Node, Value
from lipcheck.operators import Convolution, Dense, Diagonal, Indexing, Operator, Padded, Sum
from lipcheck.simplify import channel_axis, channel_gain
from lipcheck.steps import Step

# Operations whose identity is one element by element: the result has its operand's place in it.
_PASSING = frozenset(
    (
        *("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach", "lift_fresh_copy"),
        *("positive", "_to_copy", "to", "type_as", "add", "sub", "subtract", "getitem"),
    )
)
# Operations with several results of their own.
SPLITTING = frozenset(
    (
        *("split", "split_with_sizes", "chunk", "unbind", "tensor_split"),
        *("unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"),
    )
)
# A sum of more maps than this is read where it stands.
_MOST_TERMS = 24


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One map of the composition, under the name of the value that it makes.

    A map along channels (`axis`, counted from the end) that has several inputs reads them side by side: `widths` are
    their channels. `error` is as in `Map`. `own` says that the inputs are those of the node, in order, and the operator
    is what the node applies to them; a sum that merging made is `elementwise` whatever its node does.
    """

    name: str
    inputs: tuple[str, ...]
    operator: Operator
    node: Node
    shape: tuple[int, ...]
    axis: int = 0
    widths: tuple[int, ...] = ()
    error: Tensor | None = None
    own: bool = False
    elementwise: bool = False

    @property
    def map(self) -> Map | None:
        """The map along channels; None of any other."""
        if not self.axis or not isinstance(self.operator, Dense | Convolution | Padded):
            return None
        return Map(self.operator, self.axis, self.error)

    @property
    def base(self) -> str:
        """The operation's name without its overload."""
        return base_of(self.node)


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """The maps of a network in order, from the input to the output."""

    source: str
    output: str
    links: tuple[Link, ...]
    shapes: dict[str, tuple[int, ...]]


def base_of(node: Node) -> str:
    """The name of the node's operation without namespace and overload."""
    parts = node.op_name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def chain_of(graph: Graph, steps: Sequence[Step]) -> Chain:
    """The steps that the output depends on, those left out that hand on what they read."""
    names = {graph.input.name: graph.input.name}
    nodes: dict[str, Node] = {}
    links: list[Link] = []
    for step in steps:
        inputs = tuple(names[name] for name in step.inputs)
        if _passes_on(step, nodes):
            names[step.node.name] = inputs[0]
            continue
        names[step.node.name] = step.node.name
        nodes[step.node.name] = step.node
        links.append(_link(step, inputs))
    output = names.get(graph.output, graph.output)
    live = tuple(_live(links, output))
    shapes = {graph.input.name: tuple(graph.input.shape)} | {link.name: link.shape for link in links}
    return Chain(graph.input.name, output, live, shapes)


def _passes_on(step: Step, nodes: dict[str, Node]) -> bool:
    """Whether the step's result is what it reads, element by element, but for constants that were added."""
    node, operator = step.node, step.effective
    plain = isinstance(operator, Indexing) and operator.copies == 1 and not operator.selecting
    if not plain or len(step.inputs) != 1 or step.inputs != tuple(value.name for value in node.inputs):
        return False
    if step.absorbed_by:
        return True
    (value,) = node.inputs
    if base_of(node) not in _PASSING or value.shape != node.shape:
        return False
    if base_of(node) != "getitem":
        return True
    source = nodes.get(value.name)
    return node.arguments.get("index") == 0 and (source is None or base_of(source) not in SPLITTING)


def _link(step: Step, inputs: tuple[str, ...]) -> Link:
    node, operator = step.node, step.effective
    axis = 0
    if len(inputs) == 1 and isinstance(operator, Dense | Convolution | Padded):
        axis = channel_axis(node, operator)
    own = step.inputs == tuple(value.name for value in node.inputs)
    return Link(node.name, inputs, operator, node, node.shape, axis, own=own)


def _live(links: Sequence[Link], output: str) -> list[Link]:
    """The links that the output depends on."""
    needed, found = {output}, list[Link]()
    for link in reversed(links):
        if link.name in needed:
            needed.update(link.inputs)
            found.append(link)
    return found[::-1]


# Merging

Form = tuple[tuple[str, Map | None], ...]
"""A value as a sum of maps of other values; None is the identity."""


def merged(chain: Chain, affordable: Callable[[Operator], bool]) -> Chain:
    """The same network with its linear stretches merged, as far as the maps that arise are affordable.

    A value that something else than a linear map reads enters what follows as itself.
    """
    work = _Merging(chain, affordable)
    for link in chain.links:
        work.take(link)
    work.make(chain.output)
    links = tuple(_live(work.links, chain.output))
    shapes = {chain.source: chain.shapes[chain.source]} | {link.name: link.shape for link in links}
    return replace(chain, links=links, shapes=shapes)


@dataclass
class _Merging:
    """Values that were taken and not yet made have their form in `forms`; the rest stands for itself."""

    chain: Chain
    affordable: Callable[[Operator], bool]
    links: list[Link] = field(default_factory=list)
    forms: dict[str, Form] = field(default_factory=dict)
    taken: dict[str, Link] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.read = {self.chain.output}
        for link in self.chain.links:
            if not self._is_linear(link):
                self.read.update(link.inputs)

    def _is_linear(self, link: Link) -> bool:
        return link.map is not None or _diagonal(link, self._shape(link)) is not None or signs(link) is not None

    def _shape(self, link: Link) -> tuple[int, ...]:
        return self.chain.shapes[link.inputs[0]] if link.inputs else ()

    def take(self, link: Link) -> None:
        """The link's value as a form where it has one, else as itself."""
        form = self._form(link)
        if form is None or len(form) > _MOST_TERMS:
            for name in link.inputs:
                self.make(name)
            form = self._form(link)
        if form is None:
            self.links.append(link)
            return
        self.forms[link.name], self.taken[link.name] = form, link
        if link.name in self.read:
            self.make(link.name)

    def make(self, name: str) -> None:
        """From here on the value stands for itself."""
        form, link = self.forms.pop(name, None), self.taken.pop(name, None)
        if form is None or link is None:
            return
        sources = tuple(source for source, _ in form)
        if sources == link.inputs and (len(form) == 1 or all(one is None for _, one in form)):
            self.links.append(link)  # nothing was merged
        else:
            self.links += self._made(link, form)

    def _of(self, name: str) -> Form:
        return self.forms.get(name, ((name, None),))

    def _form(self, link: Link) -> Form | None:
        """What the link makes as a sum of maps; None where some part cannot be merged."""
        own = link.map or _diagonal(link, self._shape(link))
        if own is not None:
            terms = [(source, composed(own, one) if one else own) for source, one in self._of(link.inputs[0])]
            return tuple(terms) if all(self._fits(one) for _, one in terms) else None
        factors = signs(link)
        if factors is None:
            return None
        found: dict[str, Map | None] = {}
        for name, factor in zip(link.inputs, factors, strict=True):
            for source, one in self._of(name):
                part = _negative(one) if factor < 0 else one
                if factor < 0 and part is None:
                    return None
                if source in found:
                    part = added(found[source], part)
                    if not self._fits(part):
                        return None
                found[source] = part
        return tuple(found.items())

    def _fits(self, one: Map | None) -> bool:
        return one is not None and (isinstance(one.operator, Diagonal) or self.affordable(one.operator))

    def _made(self, link: Link, form: Form) -> Iterator[Link]:
        """The links that make a value of what its form reads."""
        maps = [one for _, one in form]
        joint = beside(maps) if len(maps) > 1 else None
        if joint is not None and self._fits(joint[0]):
            yield _mapped(link, link.name, tuple(source for source, _ in form), *joint)
            return
        if len(form) == 1 and maps[0] is not None:
            yield _mapped(link, link.name, (form[0][0],), maps[0], ())
            return
        names = []
        for place, (source, one) in enumerate(form):
            if one is None:
                names.append(source)
                continue
            names.append(f"{link.name}+{place}")
            yield _mapped(link, names[-1], (source,), one, ())
        weights = (1.0,) * len(names)
        yield Link(link.name, tuple(names), Sum(weights), link.node, link.shape, elementwise=True)


def _mapped(link: Link, name: str, inputs: tuple[str, ...], one: Map, widths: tuple[int, ...]) -> Link:
    operator: Operator = one.operator
    if isinstance(operator, Diagonal) and operator.gain.numel() > 1:
        operator = replace(operator, gain=operator.gain.reshape(-1, *(1,) * (-one.axis - 1)))
    axis = 0 if isinstance(operator, Diagonal) else one.axis
    return Link(name, inputs, operator, link.node, link.shape, axis, widths, one.error)


def _diagonal(link: Link, shape: tuple[int, ...]) -> Map | None:
    """A scaling by one number or by one per channel; None of anything else."""
    operator = link.operator
    if not isinstance(operator, Diagonal) or len(link.inputs) != 1 or link.shape != shape or operator.gain.numel() == 0:
        return None
    gain = operator.gain
    axis = next((n - gain.dim() for n in range(gain.dim()) if gain.shape[n] > 1), 0)
    flat = channel_gain(operator, shape, len(shape) + axis) if axis else gain.reshape(1)
    return None if flat is None else Map(Diagonal(flat, operator.uncertainty), axis)


def signs(link: Link) -> tuple[int, ...] | None:
    """The signs of a sum of activations of one shape, element by element; None of anything else."""
    operator, given = link.operator, link.node.arguments
    if not isinstance(operator, Sum) or link.base not in ("add", "sub", "subtract") or not link.own:
        return None
    operands = [given.get("self"), given.get("other")]
    if len(link.inputs) != 2 or any(not isinstance(one, Value) or one.shape != link.shape for one in operands):
        return None
    alpha: Any = given.get("alpha", 1)
    if alpha not in (1, -1):
        return None
    return (1, int(alpha) if link.base == "add" else -int(alpha))


def _negative(one: Map | None) -> Map | None:
    minus = Map(Diagonal(torch.tensor([-1.0], dtype=torch.float64)), 0)
    return minus if one is None else composed(minus, one)
