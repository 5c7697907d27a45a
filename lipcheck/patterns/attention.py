"""Attention, written out: softmax of a product of two activations, and the product of that with a third."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.graph import Graph, Node, Value
from lipcheck.maps.attention import Attention, Operand, Origin
from lipcheck.operators import Dense, Linear, Operator, Sum
from lipcheck.patterns import rotations
from lipcheck.patterns.entries import COPIES, CURVES, FACTORS, FILLS, MIXES, SUMS, Entries
from lipcheck.patterns.rotations import MOVES, SEVERAL, converts, evaluated
from lipcheck.rules.attention import WRITTEN, Contraction, contraction, unevenness
from lipcheck.rules.pointwise import scalar
from lipcheck.steps import Step

aten = torch.ops.aten

_SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})
_FOLLOWED = MOVES | COPIES | FACTORS | SUMS | FILLS | CURVES | MIXES | {aten.cat.default}
_WIDENED = 1 + rounding.EVALUATION
# Linear layers, and which of their arguments holds the rows.
_LAYERS: dict[Any, str] = {
    aten.linear.default: "input",
    aten.addmm.default: "mat1",
    aten.mm.default: "self",
    aten.matmul.default: "self",
}
_LONGEST = 16
_MOST_LOGITS = 2**23
# One call behind another: the node, and the activation among its operands that carries the logits or the weights.
_Chain = list[tuple[Node, str]]


def recognise(graph: Graph, steps: dict[str, Step]) -> None:
    """The step of the product with the values becomes the attention of queries, keys and values."""
    rotations.recognise(graph, steps)
    reader = _Reader(graph, steps)
    for node in graph.nodes:
        own = steps[node.name].operator
        if isinstance(own, Attention):
            inputs, attention = reader.with_origins(node, [value.name for value in node.inputs], own)
            steps[node.name] = replace(steps[node.name], operator=attention, inputs=inputs)
            continue
        last = contraction(node)
        if last is None or node.op is aten.baddbmm.default:
            continue
        for side in (0, 1):
            found = reader.attention(node, last, side)
            if found is not None:
                inputs, attention = found
                steps[node.name] = replace(steps[node.name], operator=attention, inputs=inputs)
                break


class _Reader:
    """Finds the calls of an attention behind its last product."""

    def __init__(self, graph: Graph, steps: Mapping[str, Step]) -> None:
        self.steps = steps
        self.nodes = {node.name: node for node in graph.nodes}
        self.order = {node.name: place for place, node in enumerate(graph.nodes)}

    def attention(self, node: Node, last: Contraction, side: int) -> tuple[tuple[str, ...], Attention] | None:
        """The node as an attention whose weights are this operand of its product, and what it reads."""
        operand, other = last.operands[side], last.operands[1 - side]
        behind = self._weights(operand.name) if isinstance(operand, Value) and isinstance(other, Value) else None
        before = self._logits(behind[0][1]) or self._logits(behind[0][1], activations=1) if behind else None
        if behind is None or before is None or math.prod(before[0][0].shape) > _MOST_LOGITS:
            return None
        first = contraction(before[0][0])
        assert first is not None, "a path to logits begins with a product"
        for asking in (0, 1):
            logits = Entries.of_product(before[0][0], first, asking)
            if logits is None or not self._follow(logits, before[1:]):
                continue
            weights = logits.softmax(behind[0][0])
            if weights is None or not self._follow(weights, behind[1:]):
                continue
            found = self._assembled(node, _Logits(first, asking, logits), last, side, weights)
            if found is not None:
                return found
        return None

    # The way back from the last product

    def _weights(self, name: str) -> _Chain | None:
        """The softmax and the calls behind it, in order, up to this value."""
        chain: _Chain = []
        for _ in range(_LONGEST):
            node = self.nodes.get(name)
            if node is None:
                return None
            if node.op in _SOFTMAX:
                return [(node, node.inputs[0].name), *chain]
            carrier = self._carrier(node) or self._divided(node)
            if not carrier:
                return None
            chain.insert(0, (node, carrier))
            name = carrier
        return None

    def _logits(self, name: str, activations: int = 2, left: int = _LONGEST) -> _Chain | None:
        """The product of so many activations and the calls behind it, in order, up to this value."""
        node = self.nodes.get(name)
        if node is None or left == 0:
            return None
        if (product := contraction(node)) is not None:
            known = sum(isinstance(operand, Value) for operand in product.operands) == activations
            return [(node, "")] if known else None
        carriers = [self._carrier(node) or self._lowered(node)]
        if not carriers[0] and node.op in SUMS:
            carriers = [value.name for value in node.inputs]
        for carrier in carriers:
            if carrier and (chain := self._logits(carrier, activations, left - 1)) is not None:
                return [*chain, (node, carrier)]
        return None

    def _carrier(self, node: Node) -> str:
        """The only activation that the node reads; "" where there are several or the node is none to follow."""
        if node.op is aten.copy.default:
            source = node.arguments["src"]
            return source.name if isinstance(source, Value) and source.shape == node.shape else ""
        single = len(node.inputs) == 1 and (node.op in _FOLLOWED or converts(node))
        return node.inputs[0].name if single else ""

    def _lowered(self, node: Node) -> str:
        """x in x - max(x), along axes that are kept."""
        made = self._largest(node)
        return node.inputs[0].name if made is not None and made.inputs[0].name == node.inputs[0].name else ""

    def _largest(self, node: Node) -> Node | None:
        """max(x) in y - max(x)."""
        if node.op is not aten.sub.Tensor or len(node.inputs) != 2 or node.arguments["alpha"] != 1:
            return None
        made = self.nodes.get(node.inputs[1].name)
        if made is not None and made.op is operator.getitem and made.arguments["index"] == 0:
            made = self.nodes.get(made.inputs[0].name)
        kept = made is not None and made.op in (aten.amax.default, aten.max.dim) and made.arguments["keepdim"]
        return made if kept else None

    def _divided(self, node: Node) -> str:
        """x in x / sum(x), along the last axis."""
        if node.op is not aten.div.Tensor or len(node.inputs) != 2:
            return ""
        whole, total = node.inputs
        made, last, kept = self.nodes.get(total.name), len(whole.shape) - 1, True
        if made is not None and made.op is aten.unsqueeze.default and made.arguments["dim"] in (-1, last):
            made, kept = self.nodes.get(made.inputs[0].name), False
        if made is None or made.op is not aten.sum.dim_IntList or made.arguments["keepdim"] is not kept:
            return ""
        return whole.name if made.inputs[0].name == whole.name and made.arguments["dim"] in ([-1], [last]) else ""

    def _follow(self, entries: Entries, chain: _Chain) -> bool:
        """Takes the entries through these calls; False where one of them is not understood."""
        return all(self._taken(entries, node, carrier) for node, carrier in chain)

    def _taken(self, entries: Entries, node: Node, carrier: str) -> bool:
        if node.op in MOVES | COPIES or node.op is aten.copy.default or converts(node):
            return entries.moved(node, carrier)
        if len(node.inputs) > 1:
            if self._lowered(node) == carrier:
                largest = self._largest(node)
                return largest is not None and entries.lowered(largest.arguments["dim"])
            return entries.normalised() if self._divided(node) == carrier else entries.biased(node, carrier)
        if node.op in MIXES:
            return entries.mixed(node, carrier)
        return entries.extended(node, carrier) if node.op is aten.cat.default else entries.changed(node, carrier)

    # The attention itself

    def _assembled(
        self, node: Node, logits: _Logits, last: Contraction, side: int, weights: Entries
    ) -> tuple[tuple[str, ...], Attention] | None:
        """The operator and what it reads, if each row of the weights meets one softmax's entries, each once."""
        arrange = last.arranged(side, last.own(side), last.summed)
        row, place, added = (arrange(tensor) for tensor in (weights.row, weights.place, weights.zero.abs()))
        order = place.sort(-1).values
        if bool((row != row[..., :1]).any()) or bool((order[..., 1:] == order[..., :-1]).any()):
            return None
        first, asking, entries = logits.product, logits.asking, logits.entries
        if not bool(torch.isfinite(added).all()) or not math.isfinite(entries.norm * weights.norm):
            return None
        full = row.shape[-1] == weights.count
        times = int(torch.bincount(row[..., 0].flatten()).max()) * last.copies(side)
        sizes = dict(zip(last.result, last.shape, strict=True))
        of_value = math.prod(sizes[label] for label in last.own(side)) * last.copies(1 - side)
        sums = float(added.sum(-1).max()), float(added.sum(-2).max()) * last.copies(1 - side)
        least, most, of_key = logits.seen()
        places = (
            (first.operands[asking], first.arranged(asking, first.own(asking), first.summed)),
            (first.operands[1 - asking], first.arranged(1 - asking, first.own(1 - asking), first.summed)),
            (last.operands[1 - side], last.arranged(1 - side, last.summed, last.own(1 - side))),
        )
        names, (query, key, values) = self._operands(places)
        names += [name for name, _, _ in entries.biases]
        found = Attention(
            query,
            key,
            values,
            readers=(first.copies(asking) * times, of_key * times, of_value),
            seen=(max(1, least), most),
            scale=entries.norm,
            swing=entries.total,
            assemble=last.assembled(1 - side),
            uneven=math.inf if entries.curved else unevenness(entries.zero),
            biases=tuple((factor, copies) for _, factor, copies in entries.biases),
            centred=(entries.even, weights.even and full),
            after=weights.norm,
            outer=weights.total,
            constant=(math.sqrt(sums[0] * sums[1]) * _WIDENED, sums[0] * _WIDENED),
            convex=weights.plain and full,
            empty=not least,
            rows=set(last.result[-1:]) == set(last.own(1 - side)[-1:]),
        )
        return self.with_origins(node, names, found)

    def with_origins(self, node: Node, names: list[str], own: Attention) -> tuple[tuple[str, ...], Attention]:
        """The attention that reads these with the origins of its operands, which it reads as well."""
        origins, given, operands = list[str](), iter(names), list[Operand]()
        for operand in (own.query, own.key, own.values):
            found = None if operand.fixed is not None else self._origin(next(given), operand.arrange)
            if found is not None:
                source, origin = found
                if source not in origins:
                    origins.append(source)
                operand = replace(operand, origin=replace(origin, place=len(names) + origins.index(source)))
            operands.append(operand)
        query, key, values = operands
        compute = self._computed(node, names)
        return (*names, *origins), replace(own, query=query, key=key, values=values, compute=compute)

    def _origin(self, name: str, arrange: Callable[[Tensor], Tensor]) -> tuple[str, Origin] | None:
        """The activation that a linear layer makes an operand's rows of, head by head.

        None where there is no such layer, or where its input is linear itself: other steps merge the two.
        """
        way, factor = list[tuple[Node, str]](), 1.0
        while (node := self.nodes.get(name)) is not None and len(node.inputs) == 1 and len(way) < _LONGEST:
            number = _number(node)
            if node.op not in MOVES and not converts(node) and number is None:
                break
            factor *= 1.0 if number is None else number
            name = node.inputs[0].name
            way.append((node, name))
        if node is None or not _is_layer(node) or math.prod(node.shape) > _MOST_LOGITS:
            return None
        layer, source, outputs = self.steps[name].operator, node.inputs[0].name, node.shape[-1]
        if not isinstance(layer, Dense) or isinstance(self._made_by(source), Linear | Sum) or not outputs:
            return None
        numbers: Any = torch.arange(math.prod(node.shape)).reshape(node.shape)
        for step, carrier in reversed(way):
            numbers = numbers if _number(step) is not None else evaluated(step, {carrier: numbers})
        rows, channels = arrange(numbers) // outputs, arrange(numbers) % outputs
        if bool((rows != rows[..., :1]).any()) or bool((channels != channels[..., :1, :]).any()):
            return None
        heads = torch.unique(channels[..., 0, :].reshape(-1, channels.shape[-1]), dim=0)

        def carry(tensor: Tensor) -> Tensor:
            for step, carrier in ((node, source), *reversed(way)):
                tensor = evaluated(step, {carrier: tensor})
            return arrange(tensor)

        return source, Origin(0, carry, layer.matrix.detach(), heads, abs(factor) * WRITTEN)

    def _made_by(self, name: str) -> Operator | None:
        """What makes the activation, seen through moves."""
        while (node := self.nodes.get(name)) is not None and len(node.inputs) == 1 and node.op in MOVES:
            name = node.inputs[0].name
        return self.steps[name].operator if name in self.steps else None

    def _operands(
        self, places: Sequence[tuple[Value | Tensor, Callable[[Tensor], Tensor]]]
    ) -> tuple[list[str], list[Operand]]:
        """The operands, and the names of those that are activations."""
        names, operands = list[str](), list[Operand]()
        for value, arranged in places:
            if isinstance(value, Tensor):
                operands.append(Operand(fixed=arranged(value.detach().double())))
                continue
            name, operand = self._operand(value, arranged)
            names.append(name)
            operands.append(operand)
        return names, operands

    def _operand(self, value: Value, arrange: Callable[[Tensor], Tensor]) -> tuple[str, Operand]:
        """Where the rows stand: in the nearest activation, on the way back over moves, that has each in one row."""
        name, shape, moves = value.name, value.shape, list[tuple[Node, str]]()

        def arranged(tensor: Tensor, way: Sequence[tuple[Node, str]]) -> Tensor:
            for node, source in way:
                tensor = evaluated(node, {source: tensor})
            return arrange(tensor)

        for _ in range(_LONGEST):
            way = tuple(moves[::-1])
            node = self.nodes.get(name)
            if node is None or node.op not in SEVERAL:
                rows = torch.arange(math.prod(shape[:-1])).reshape(*shape[:-1], 1).expand(shape)
                numbered = arranged(rows, way)
                if bool((numbered == numbered[..., :1]).all()):
                    return name, Operand(partial(arranged, way=way))
            if node is None or not (node.op in MOVES or converts(node)) or len(node.inputs) != 1:
                break
            name, shape = node.inputs[0].name, node.inputs[0].shape
            moves.append((node, name))
        return value.name, Operand(arrange, whole=False)

    def _computed(self, last: Node, names: Sequence[str]) -> Callable[[Sequence[Tensor]], Tensor]:
        """The map from the named activations to the node's result, call by call."""
        needed, between = [last.name], dict[str, Node]()
        while needed:
            name = needed.pop()
            if name not in names and name not in between:
                between[name] = self.nodes[name]
                needed += [value.name for value in self.nodes[name].inputs]
        ordered = sorted(between.values(), key=lambda node: self.order[node.name])

        def compute(points: Sequence[Tensor]) -> Tensor:
            known: dict[str, Any] = dict(zip(names, points, strict=False))  # origins follow the others
            for node in ordered:
                known[node.name] = evaluated(node, known)
            result: Tensor = known[last.name]
            return result

        return compute


def _number(node: Node) -> float | None:
    """The number that a node multiplies its only activation by, None where it does something else."""
    if node.op not in FACTORS or not isinstance(node.arguments["self"], Value):
        return None
    number = scalar(node.arguments["other"])
    if number is None or "mul" in node.op_name:
        return number
    return 1 / number if number else None


def _is_layer(node: Node) -> bool:
    """Whether the node multiplies the rows of its only activation by a constant matrix."""
    first = node.arguments.get(_LAYERS.get(node.op, ""))
    return len(node.inputs) == 1 and isinstance(first, Value)


@dataclass(frozen=True, slots=True, eq=False)
class _Logits:
    """What the softmax reads: the entries of a product, one of whose operands asks."""

    product: Contraction
    asking: int
    entries: Entries

    def seen(self) -> tuple[int, int, int]:
        """The least and the largest number of keys that a query sees, and the most queries that see one key."""
        visible, key = self.entries.zero > -math.inf, self.entries.key
        counts = visible.sum(-1)
        if key is not None:
            of_key = int(torch.bincount(key[visible & (key >= 0)].flatten(), minlength=1).max())
        else:
            sizes = dict(zip(self.product.result, self.product.shape, strict=True))
            own = math.prod(sizes[label] for label in self.product.own(self.asking))
            of_key = own * self.product.copies(1 - self.asking)
        return int(counts.min()), int(counts.max()), of_key
