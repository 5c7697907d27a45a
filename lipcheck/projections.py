"""Which outputs of a linear layer are the queries, keys and values of an attention, and of which head of it.

Read off the graph: the outputs of every linear layer in front of an attention are numbered, and the reshapes and slices
between the two are run on the numbers.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lipcheck.graph import Graph, Node, Value
from lipcheck.operators import Concatenation, Convolution, Dense, Indexing, Weighted, weights_of
from lipcheck.steps import Step

aten = torch.ops.aten
_ROLES = ("q", "k", "v")
_PRODUCTS = frozenset((aten.matmul.default, aten.bmm.default))
_SOFTMAX = frozenset((aten.softmax.int, aten._softmax.default))
# Between scores and softmax, or softmax and values: scales, masks, biases, dropout, changes of type and of shape.
_FURTHEST = 12
_SHIFT = 1 << 24  # more outputs than any layer has


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of a linear layer's outputs, by what they are for: "q", "k head 3". `operator` is the layer cut to them."""

    name: str
    operator: Weighted


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """By the node of a linear layer: its parts where it has several, and its role where it has a single one."""

    parts: Mapping[str, tuple[Part, ...]]
    roles: Mapping[str, str]


def projections(graph: Graph, steps: Sequence[Step], *, heads: bool = False) -> Projections:
    """The projections of every attention of the graph; with `heads` each of them by head as well."""
    nodes = {node.name: node for node in graph.nodes}
    attentions = list(_attentions(graph, nodes))
    if not attentions:
        return Projections({}, {})
    sources = {s.node.name: s.operator for s in steps if isinstance(s.operator, Weighted) and _counted(s)}
    numbered = _numbers(graph, steps, sources, attentions)
    found: dict[str, dict[tuple[int, ...], list[str]]] = {}
    by_head: dict[str, dict[tuple[int, ...], list[str]]] = {}
    for attention in attentions:
        for role, value in zip(_ROLES, attention, strict=True):
            if value in numbered:
                _collect(found, by_head, role, numbered[value], list(sources))
    parts, roles = dict[str, tuple[Part, ...]](), dict[str, str]()
    for name, groups in found.items():
        operator = sources[name]
        every = _outputs(operator)
        named = {channels: "".join(dict.fromkeys(names)) for channels, names in groups.items()}
        roles[name] = next((role for channels, role in named.items() if len(channels) == every), "")
        split = []
        for channels, role in named.items():
            split += [Part(role, _only(operator, channels))] if len(channels) < every else []
            split += _of_heads(operator, role, by_head[name], groups) if heads else []
        if split:
            parts[name] = tuple(split)
    return Projections(parts, roles)


def _counted(step: Step) -> bool:
    """Whether the outputs of a layer can be told apart by their place on its channel axis."""
    operator = step.operator
    if isinstance(operator, Dense):
        return len(step.node.shape) > 1 and step.node.shape[-1] == operator.matrix.shape[0]
    return isinstance(operator, Convolution) and operator.groups == 1 and not operator.transposed


def _outputs(operator: Weighted) -> int:
    return weights_of(operator).shape[0]


def _attentions(graph: Graph, nodes: Mapping[str, Node]) -> Iterator[tuple[str, str, str]]:
    """The names of the queries, keys and values of every attention, written out ones too."""
    users = graph.users()
    for node in graph.nodes:
        if node.op is aten.scaled_dot_product_attention.default:
            given = [node.arguments[name] for name in ("query", "key", "value")]
            if all(isinstance(one, Value) for one in given):
                yield given[0].name, given[1].name, given[2].name
        elif node.op in _SOFTMAX:
            scores, result = _scores(node, nodes), _result(node, users)
            if scores is not None and result is not None:
                yield scores[0], scores[1], result


def _factors(node: Node) -> tuple[Value, Value] | None:
    """The two activations that a node multiplies as matrices."""
    if node.op not in _PRODUCTS:
        return None
    first, second = list(node.arguments.values())[:2]
    return (first, second) if isinstance(first, Value) and isinstance(second, Value) else None


def _scores(node: Node, nodes: Mapping[str, Node]) -> tuple[str, str] | None:
    """Queries and keys whose products a softmax is taken of."""
    for _ in range(_FURTHEST):
        if (factors := _factors(node)) is not None:
            return factors[0].name, factors[1].name
        if not node.inputs or node.inputs[0].name not in nodes:
            return None
        node = nodes[node.inputs[0].name]
    return None


def _result(node: Node, users: Mapping[str, Sequence[Node]]) -> str | None:
    """Values that are weighted by a softmax."""
    name = node.name
    for _ in range(_FURTHEST):
        readers = users.get(name, [])
        for reader in readers:
            factors = _factors(reader)
            if factors is not None and factors[0].name == name:
                return factors[1].name
        if len(readers) != 1:
            return None
        name = readers[0].name
    return None


def _numbers(
    graph: Graph, steps: Sequence[Step], sources: Mapping[str, Weighted], wanted: Iterable[tuple[str, str, str]]
) -> dict[str, Tensor]:
    """For each value in front of an attention, which output of which layer each of its numbers stands for; 0 for none.

    Shapes: those of the values.
    """
    nodes = {node.name: node for node in graph.nodes}
    targets = {name for names in wanted for name in names}
    needed, frontier = set[str](), list(targets)
    while frontier:
        name = frontier.pop()
        if name in needed or name not in nodes:
            continue
        needed.add(name)
        if name not in sources:
            frontier += [value.name for value in nodes[name].inputs]
    order = {name: place for place, name in enumerate(sources)}
    known: dict[str, Any] = {}
    for step in steps:
        name = step.node.name
        if name not in needed:
            continue
        if name in sources:
            known[name] = _first(step, order[name])
        elif any(value.name in known for value in step.node.inputs):
            moved = _moved(step, known)
            if moved is not None:
                known[name] = moved
    return {name: known[name] for name in targets if isinstance(known.get(name), Tensor)}


def _first(step: Step, place: int) -> Tensor:
    """The outputs of a layer, numbered along its channel axis. Shapes: that of its result."""
    shape, axis = step.node.shape, -1 if isinstance(step.operator, Dense) else 1
    numbers = torch.arange(shape[axis]) + 1 + place * _SHIFT
    return numbers.reshape(-1, *(1,) * (0 if axis == -1 else len(shape) - 2)).expand(shape)


def _moved(step: Step, known: Mapping[str, Any]) -> Any:
    """What an operation makes of the numbers: reorderings move them, what acts on each element leaves them."""
    node = step.node
    if isinstance(step.operator, Indexing | Concatenation) and not getattr(step.operator, "selecting", False):
        try:
            return _run(node, known)
        except (RuntimeError, TypeError, NotImplementedError, IndexError):
            return None
    same = (known[v.name] for v in node.inputs if v.name in known)
    return next((one for one in same if isinstance(one, Tensor) and tuple(one.shape) == node.shape), None)


def _run(node: Node, known: Mapping[str, Any]) -> Any:
    def real(argument: Any) -> Any:
        if isinstance(argument, Value):
            return known[argument.name] if argument.name in known else torch.zeros(argument.shape, dtype=torch.long)
        if isinstance(argument, Tensor):
            return argument if not argument.is_floating_point() else torch.zeros(argument.shape, dtype=torch.long)
        return [real(part) for part in argument] if isinstance(argument, list | tuple) else argument

    if node.op_name == "getitem":
        return real(node.arguments["input"])[node.arguments["index"]]
    if "dtype" in node.arguments:  # a change of type: numbers stay
        return known[node.inputs[0].name]
    schema = node.op._schema  # type: ignore[attr-defined]
    arguments = {name: real(argument) for name, argument in node.arguments.items()}
    positional = [arguments[p.name] for p in schema.arguments if not p.kwarg_only]
    return node.op(*positional, **{p.name: arguments[p.name] for p in schema.arguments if p.kwarg_only})


def _collect(
    found: dict[str, dict[tuple[int, ...], list[str]]],
    by_head: dict[str, dict[tuple[int, ...], list[str]]],
    role: str,
    numbers: Tensor,
    names: Sequence[str],
) -> None:
    """Adds what one operand of an attention reads: the outputs of all heads together, and those of each head."""
    whole: dict[str, set[int]] = {}
    heads = dict[tuple[str, tuple[int, ...]], None]()
    for head in _heads(numbers):
        of_layer: dict[str, list[int]] = {}
        for number in head:
            of_layer.setdefault(names[number // _SHIFT], []).append(number % _SHIFT - 1)
        for name, channels in of_layer.items():
            whole.setdefault(name, set()).update(channels)
            heads[name, tuple(channels)] = None
    for name, together in whole.items():
        found.setdefault(name, {}).setdefault(tuple(sorted(together)), []).append(role)
    count: dict[str, int] = {}
    for name, apart in heads:
        place = count[name] = count.get(name, -1) + 1
        by_head.setdefault(name, {}).setdefault(apart, []).append(f"{role} head {place}")


def _heads(numbers: Tensor) -> Iterator[list[int]]:
    """The different sets of numbers in the last two axes. Shapes: (..., heads, a, b); windows repeat their heads."""
    rows = numbers.reshape(-1, *numbers.shape[-2:]) if numbers.dim() > 1 else numbers.reshape(1, 1, -1)
    flat = rows.flatten(1)
    if flat.numel() == 0:
        return
    # Sets with equal extremes and sums are taken for equal; heads do not interleave like that.
    marks = torch.stack([flat.amin(1), flat.amax(1), flat.sum(1)], 1).tolist()
    seen = set[tuple[int, ...]]()
    for place, mark in enumerate(map(tuple, marks)):
        if mark not in seen:
            seen.add(mark)
            kept = sorted({number for number in flat[place].tolist() if number})
            if kept:
                yield kept


def _of_heads(
    operator: Weighted, role: str, heads: Mapping[tuple[int, ...], Sequence[str]], whole: Container[tuple[int, ...]]
) -> Iterator[Part]:
    """The heads of one role, where there is more than one."""
    for channels, names in heads.items():
        if names[0].split(" ")[0] in role and channels not in whole:
            yield Part(", ".join(names), _only(operator, channels))


def _only(operator: Weighted, channels: Sequence[int]) -> Weighted:
    """The layer with only these outputs."""
    weight = weights_of(operator)
    first, count = channels[0], len(channels)
    together = list(channels) == list(range(first, first + count))
    chosen = weight[first : first + count] if together else weight[list(channels)]
    if isinstance(operator, Dense):
        return replace(operator, matrix=chosen)
    assert isinstance(operator, Convolution), "only these are numbered"
    return replace(operator, weight=chosen)
