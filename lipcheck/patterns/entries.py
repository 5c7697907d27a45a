"""The entries of an attention's matrices between its two products, followed call by call: whose query, whose key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.graph import Node, Value
from lipcheck.patterns.rotations import SEVERAL, evaluated, overloads
from lipcheck.rules.attention import WRITTEN, Contraction

aten = torch.ops.aten

COPIES = overloads("expand", "repeat", "tile", "repeat_interleave")
FACTORS = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})
SUMS = frozenset(
    {aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar, aten.rsub.Tensor}
)
FILLS = frozenset({aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self, aten.where.ScalarOther})
# Scalar functions that move no two numbers apart.
CURVES = frozenset({aten.tanh.default, aten.hardtanh.default, aten.clamp.default})
MIXES = frozenset({aten.linear.default, aten.conv2d.default, aten.conv1d.default})

_WIDENED = 1 + rounding.EVALUATION


@dataclass(slots=True, eq=False)
class Entries:
    """The logits on their way to the softmax, or, with a `sample`, the weights on theirs to the values.

    Each method takes them through one call and says whether it was understood; after a False they mean nothing.
    Shapes: the tensors are those of the current call's result. `row` numbers the rows of logits, one for each query,
        and `place` the keys in each; -1 stands for what no query and key made. `key` numbers the keys of all heads.
    """

    row: Tensor
    place: Tensor
    key: Tensor | None
    zero: Tensor  # the entries if all products are zero, or all weights
    count: int  # the places of a row
    sample: Tensor | None = None  # the weights if the softmax gives all keys the same
    norm: float = 1.0  # at least the norm of the factors and of the mixing over heads
    total: float = 1.0  # at least the sum of an entry's factors over the heads
    even: bool = True  # whether a row's entries all have the same factor
    plain: bool = True  # whether nothing but places changed
    curved: bool = False  # whether a scalar function was applied
    shifted: bool = False  # whether a number was taken off all entries of a row
    biases: list[tuple[str, float, float]] = field(default_factory=list)  # activation, factor, root of its copies

    @staticmethod
    def of_product(node: Node, product: Contraction, asking: int) -> Entries | None:
        """The logits that a product makes, this operand being the queries."""
        if math.prod(product.shape) == 0:
            return None
        keys = product.own(1 - asking)
        sizes = dict(zip(product.result, product.shape, strict=True))
        own = dict(zip(product.axes[1 - asking], product.operands[1 - asking].shape, strict=True))

        def numbered(labels: Sequence[int]) -> Tensor:
            shape = [sizes[label] if label in labels else 1 for label in product.result]
            return torch.arange(math.prod(shape)).reshape(shape).expand(product.shape)

        places, count = [own[label] for label in product.places], math.prod(sizes[label] for label in keys)
        key = product.assembled(1 - asking)(torch.arange(math.prod(places) * count).reshape(*places, -1))
        row = numbered([label for label in product.result if label not in keys])
        found = Entries(row, numbered(keys), key, torch.zeros(product.shape, dtype=torch.float64), count)
        if node.op is aten.baddbmm.default:
            found._added_first(node)
        return found

    def _added_first(self, node: Node) -> None:
        """beta times the first operand and alpha times the product of the others."""
        added, alpha, beta = (node.arguments[name] for name in ("self", "alpha", "beta"))
        factor = abs(float(alpha)) * WRITTEN
        self._scaled(factor, factor)
        if isinstance(added, Value) and beta:
            copies = self.row.numel() // max(1, math.prod(added.shape))
            self.biases.append((added.name, abs(float(beta)) * WRITTEN, rounding.sqrt_up(copies)))
        elif beta:
            self.zero = self.zero + float(beta) * added.detach().double()

    def softmax(self, node: Node) -> Entries | None:
        """The weights behind a softmax over whole rows, their places counted anew; the logits' axis is the last now."""
        axis = node.arguments["dim"]
        if not self.complete(axis) or not bool((self.zero < math.inf).all()):
            return None
        self.zero, self.row = self.zero.movedim(axis, -1), self.row.movedim(axis, -1)
        self.key = None if self.key is None else self.key.movedim(axis, -1)
        row = self.row.amax(-1, keepdim=True).expand(self.row.shape)
        count = row.shape[-1]
        zero = torch.zeros(row.shape, dtype=torch.float64)
        tensors = row, torch.arange(count).expand(row.shape), zero
        row, place, zero = (tensor.movedim(-1, axis) for tensor in tensors)
        return Entries(row, place, None, zero, count, zero + 1 / count)

    def complete(self, axis: int) -> bool:
        """Whether the entries along an axis are all those of one row, with others that nobody made."""
        row, place = self.row.movedim(axis, -1), self.place.movedim(axis, -1)
        whole = row.amax(-1, keepdim=True)
        if bool(((place >= 0) & (row != whole)).any()):
            return False
        others = row.shape[-1] - self.count
        expected = torch.cat([torch.full((max(others, 0),), -1), torch.arange(self.count)])
        return others >= 0 and bool((place.sort(-1).values == expected).all())

    def _scaled(self, norm: float, total: float) -> None:
        self.norm = rounding.multiply_up(self.norm, norm)
        self.total = rounding.multiply_up(self.total, total)
        most = max(norm, total)
        self.biases = [(name, rounding.multiply_up(by, most), copies) for name, by, copies in self.biases]

    def _applied(self, node: Node, carrier: str, tensor: Tensor) -> Tensor:
        result: Tensor = evaluated(node, {carrier: tensor})
        return result

    def _valued(self, node: Node, carrier: str) -> None:
        self.zero = self._applied(node, carrier, self.zero)
        self.sample = None if self.sample is None else self._applied(node, carrier, self.sample)

    def _shaped(self, shape: tuple[int, ...]) -> bool:
        """The numbers in the result's shape, which may have more axes but no more elements."""
        if math.prod(shape) != self.row.numel():
            return False
        self.row, self.place = self.row.reshape(shape), self.place.reshape(shape)
        self.key = None if self.key is None else self.key.reshape(shape)
        return True

    def moved(self, node: Node, carrier: str) -> bool:
        """A call that moves entries, copies them or changes their type."""
        if node.op in SEVERAL:
            return False
        if node.op is not aten.copy.default:  # this one's result is its second operand
            self.row, self.place = (self._applied(node, carrier, tensor) for tensor in (self.row, self.place))
            self.key = None if self.key is None else self._applied(node, carrier, self.key)
            self._valued(node, carrier)
        return True

    def changed(self, node: Node, carrier: str) -> bool:
        """A call on each entry by itself, with constants."""
        if self.shifted or not self._shaped(node.shape):
            return False
        self.plain = False
        if node.op in CURVES:
            self.even, self.curved = False, True
            self._valued(node, carrier)
            return self.sample is None
        if node.op in FILLS:
            nothing = torch.zeros_like(self.zero)
            kept = self._applied(node, carrier, nothing) != self._applied(node, carrier, nothing + 1)
            self._valued(node, carrier)
            unseen = bool((self.zero[~kept] == -math.inf).all())
            self.even = self.even and self.sample is None and unseen
            return True
        factor = self._summand(node) if node.op in SUMS else self._factor(node)
        self._valued(node, carrier)
        self._scaled(factor, factor)
        return math.isfinite(factor)

    def _summand(self, node: Node) -> float:
        """The magnitude of what the entries are multiplied by where a constant is added."""
        scaled = node.arguments["self" if "rsub" in node.op_name else "other"]
        return abs(float(node.arguments["alpha"])) if isinstance(scaled, Value) else 1.0

    def _factor(self, node: Node) -> float:
        """The largest magnitude of a constant factor; inf where there is none."""
        first, second = node.arguments["self"], node.arguments["other"]
        dividing = "div" in node.op_name
        constant = second if isinstance(first, Value) else first
        if isinstance(constant, complex) or (dividing and not isinstance(first, Value)):
            return math.inf
        if not isinstance(constant, Tensor):
            size = abs(float(constant)) * (1 / WRITTEN if dividing else WRITTEN)
            return (rounding.up(1 / size, 2) if size else math.inf) if dividing else size
        self.even = self.even and self._same_in_rows(constant.detach())
        sizes = constant.detach().double().abs()
        return rounding.up(float(1 / sizes.min()), 2) if dividing else float(sizes.max())

    def _same_in_rows(self, constant: Tensor) -> bool:
        """Whether a constant, broadcast, has one value in each row."""
        if constant.numel() == 1:
            return True
        row, value = self.row.flatten(), constant.double().expand(self.row.shape).flatten()
        value, row = value[row >= 0], row[row >= 0]
        first = torch.zeros(int(row.max()) + 1, dtype=torch.float64)
        first[row] = value
        return torch.equal(first[row], value)

    def biased(self, node: Node, carrier: str) -> bool:
        """A sum with another activation."""
        if self.sample is not None or self.shifted or not self._shaped(node.shape):
            return False
        first, second = node.inputs
        other = second if first.name == carrier else first
        scaled = first if "rsub" in node.op_name else second
        alpha = abs(float(node.arguments["alpha"]))
        if scaled.name == carrier:
            self._scaled(alpha, alpha)
        nothing = torch.zeros(other.shape, dtype=torch.float64)
        self.zero = evaluated(node, {carrier: self.zero, other.name: nothing})
        copies = rounding.sqrt_up(math.prod(node.shape) // max(1, math.prod(other.shape)))
        self.biases.append((other.name, alpha if scaled is other else 1.0, copies))
        return True

    def lowered(self, axes: Any) -> bool:
        """What the entries of a row have in common was taken off them: their largest. No softmax of them changes."""
        found = [axes] if isinstance(axes, int) else list(axes)
        if self.sample is not None or self.shifted or len(found) != 1 or not self.complete(found[0]):
            return False
        lowered = self.zero - self.zero.amax(found[0], keepdim=True)
        self.zero = torch.where(torch.isnan(lowered), -math.inf, lowered)
        self.shifted = True
        return True

    def normalised(self) -> bool:
        """The weights of each row divided by their sum, which is the same whatever the softmax."""
        if self.sample is None or not self.even or not self.complete(-1):
            return False
        total, size = self.sample.sum(-1, keepdim=True), self.sample.abs().sum(-1, keepdim=True)
        least = float((total.abs() - size * rounding.EVALUATION).min())
        if not least > 0:
            return False
        self._scaled(rounding.up(1 / least, 2), rounding.up(1 / least, 2))
        self.zero, self.sample, self.plain = self.zero / total, self.sample / total, False
        return True

    def mixed(self, node: Node, carrier: str) -> bool:
        """A matrix over the heads, the same for all queries and keys: what it mixes are entries of one key."""
        matrix, axis = _matrix(node)
        if matrix is None or self.shifted or not bool(torch.isfinite(self.zero).all()):
            return False
        row, place = self.row.movedim(axis, -1), self.place.movedim(axis, -1)
        if bool((place != place[..., :1]).any()) or bool((place < 0).any()):
            return False
        # Rows come together in the same tuples everywhere, and each in one place of one tuple.
        together = row.reshape(-1, row.shape[-1])
        table = torch.full((int(row.max()) + 1, row.shape[-1]), -1)
        table[together[:, 0]] = together
        used = table[:, 0] >= 0
        members = table[used].flatten()
        if not torch.equal(table[together[:, 0]], together) or len(torch.unique(members)) != len(members):
            return False
        number, outputs = torch.cumsum(used, 0) - 1, len(matrix)
        row = number[row[..., :1]] * outputs + torch.arange(outputs)
        self.row, self.place = row.movedim(-1, axis), place[..., :1].expand(row.shape).movedim(-1, axis)
        self.key, self.plain = None, False
        self._valued(node, carrier)
        norm = float(torch.linalg.matrix_norm(matrix, 2)) * _WIDENED
        self._scaled(norm, float(matrix.sum(1).max()) * _WIDENED)
        return math.isfinite(norm)

    def extended(self, node: Node, carrier: str) -> bool:
        """Constant logits beside the others, as of a key that is 0: none of the others is seen from another point."""
        if self.sample is not None or self.shifted:
            return False
        axis, parts = node.arguments["dim"], node.arguments["tensors"]

        def beside(tensor: Tensor) -> Tensor:
            return torch.cat([tensor if isinstance(p, Value) else torch.full(p.shape, -1) for p in parts], axis)

        self.row, self.place = beside(self.row), beside(self.place)
        self.key = None if self.key is None else beside(self.key)
        self._valued(node, carrier)
        self.even = False
        return True


def _matrix(node: Node) -> tuple[Tensor | None, int]:
    """The magnitudes of a matrix over one axis, and that axis; None for what is no such map.

    Shapes: (outputs, inputs).
    """
    weight, given = node.arguments["weight"], node.arguments
    if not isinstance(weight, Tensor) or (isinstance(given["bias"], Value)):
        return None, 0
    magnitudes = weight.detach().double().reshape(weight.shape[0], -1).abs()
    if node.op is aten.linear.default:
        return magnitudes, -1
    once = all(step == 1 for name in ("stride", "dilation") for step in given[name]) and given["groups"] == 1
    return (magnitudes if once and not any(given["padding"]) and math.prod(weight.shape[2:]) == 1 else None), 1
