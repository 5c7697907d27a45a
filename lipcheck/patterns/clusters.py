"""Clusters of elementwise calls that depend on one activation alone: together they are one scalar function.

x sigmoid(x) is a product of two activations for the rules, and has a slope of 1.0998 as a function of x. A cluster's
calls become an expression of its source, whose supremum of |f'|, on the whole line or on a range, `portraits` certify.
Source: maths, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lipcheck.graph import Graph, Node, Value
from lipcheck.maps import expressions as e
from lipcheck.maps.jets import Expression
from lipcheck.maps.portraits import portrait
from lipcheck.operators import Diagonal, Indexing, Nonlinear, Operator, Pointwise, Unbounded
from lipcheck.ranges import Range
from lipcheck.steps import Step

aten = torch.ops.aten
# An expression with more operations, shared ones counted each time, is cut.
_LARGEST = 96
# What an operand of a cluster is: a function of the source or a truth value.
Part = Any
_Given = Mapping[str, Any]
Form = Callable[[_Given, Callable[[Any], Part]], Part]


class NoForm(Exception):
    """A call that is none of these functions."""


def recognise(graph: Graph, steps: dict[str, Step]) -> None:
    """The last node of every cluster gets its function."""
    clusters = _Clusters(graph, steps)
    for node, source in clusters.chosen():
        expression = clusters.expression(node, source)
        found = portrait(expression)
        operator = Pointwise(clusters.name(node, source), found.supremum, found)
        steps[node.name] = replace(steps[node.name], operator=operator, inputs=(source,))


class _Clusters:
    """The elementwise calls of a graph, each with the activation that it is a function of."""

    def __init__(self, graph: Graph, steps: Mapping[str, Step]) -> None:
        self.graph, self.steps = graph, steps
        self.nodes = {node.name: node for node in graph.nodes}
        self.users = graph.users()
        self.place = {node.name: i for i, node in enumerate(graph.nodes)}
        self.root: dict[str, str] = {}
        self.size: dict[str, int] = {}
        self.steep: dict[str, bool] = {}
        for node in graph.nodes:
            self._place(node)

    def _place(self, node: Node) -> None:
        """The root of what the node computes: that of its operands, if they have one, else itself."""
        values = node.inputs
        roots = {self.root.get(value.name, value.name) for value in values}
        size = 1 + sum(self.size.get(value.name, 0) for value in values)
        own = _is_its_own(self.steps[node.name])
        alike = all(value.shape == node.shape for value in values)
        if own and alike and len(roots) == 1 and size <= _LARGEST and self._has_form(node, *roots):
            self.root[node.name], self.size[node.name] = next(iter(roots)), size

    def _has_form(self, node: Node, root: str) -> bool:
        if node.op not in FORMS or not self._floating(root):
            return False
        try:
            self._part(node, root, {})
        except NoForm:
            return False
        return True

    def _floating(self, name: str) -> bool:
        values = [self.graph.input, *(value for node in self.users.get(name, []) for value in node.inputs)]
        return next(value.dtype.is_floating_point for value in values if value.name == name)

    def expression(self, node: Node, source: str) -> Expression:
        """What the node computes as a function of the source."""
        return _number(self._part(node, source, {}))

    def _part(self, node: Node, source: str, known: dict[str, Part]) -> Part:
        """Errors: NoForm where some call on the way is no function of the source."""

        def part(argument: Any) -> Part:
            if not isinstance(argument, Value):
                return _constant(argument)
            if argument.name == source:
                return e.X
            if argument.name not in known:
                inner = self.nodes.get(argument.name)
                if inner is None or inner.op not in FORMS:
                    raise NoForm
                known[argument.name] = self._part(inner, source, known)
            return known[argument.name]

        return FORMS[node.op](node.arguments, part)

    def chosen(self) -> list[tuple[Node, str]]:
        """The last nodes of the clusters that are worth it, each with the source that it is a function of.

        A call of several functions of one activation is; so is one that has a largest slope as a whole while its
        parts have none. What only other clusters read is left.
        """
        found: dict[str, tuple[Node, str]] = {}
        for node in self.graph.nodes:
            if node.name in self.root and self._wanted(node):
                last = self._with_scalings(node)
                found[last.name] = (last, self._source(last))
        covered: dict[str, set[str]] = {}
        for name in sorted(found, key=lambda name: -self.place[name]):
            node, source = found[name]
            readers = {reader.name for reader in self.users[name]}
            inside = any(name in inner and readers <= inner | {last} for last, inner in covered.items())
            if not inside or name == self.graph.output:
                covered[name] = self._interior(node, source)
        return [found[name] for name in sorted(covered, key=self.place.__getitem__)]

    def _wanted(self, node: Node) -> bool:
        if not _floats(node):
            return False
        if len(node.inputs) > 1:
            return True
        (value,) = node.inputs
        root = self.root[node.name]
        if value.name == root or self._affine(node):
            return False
        if not self._steep_by_itself(node) and not self._steep(value.name):
            return False
        return math.isfinite(portrait(self.expression(node, root)).supremum)

    def _steep_by_itself(self, node: Node) -> bool:
        operator = self.steps[node.name].operator
        if isinstance(operator, Nonlinear):
            slopes = operator.slopes([Range.unknown(value.shape) for value in node.inputs])
            return not all(slope < math.inf for slope in slopes)
        return isinstance(operator, Unbounded)

    def _steep(self, name: str) -> bool:
        """Whether the way from the root to this value, call by call, has no constant."""
        if name not in self.root:
            return False
        if name not in self.steep:
            node = self.nodes[name]
            if len(node.inputs) > 1 and _floats(node):
                self.steep[name] = math.isinf(portrait(self.expression(node, self.root[name])).supremum)
            else:
                self.steep[name] = self._steep_by_itself(node) or any(self._steep(v.name) for v in node.inputs)
        return self.steep[name]

    def _with_scalings(self, node: Node) -> Node:
        """The last of the calls behind a node that scale or move its result alone."""
        while node.name != self.graph.output and len(self.users[node.name]) == 1:
            (following,) = self.users[node.name]
            alone = len(following.inputs) == 1 and self.root.get(following.name) == self.root[node.name]
            if not alone or not self._affine(following) or following.op not in _ARITHMETIC:
                break
            node = following
        return node

    def _affine(self, node: Node) -> bool:
        operator: Operator = self.steps[node.name].operator
        if isinstance(operator, Indexing):
            return operator.copies == 1 and not operator.selecting
        return isinstance(operator, Diagonal) and operator.gain.numel() == 1

    def _source(self, node: Node) -> str:
        """The root, or what is behind the scalings in front of the cluster: they belong to the layers before it."""
        source = self.root[node.name]
        interior = self._interior(node, source)
        while True:
            readers = [reader for reader in self.users[source] if reader.name in interior or reader is node]
            if len(readers) != 1 or readers[0] is node or not self._affine(readers[0]):
                return source
            source = readers[0].name

    def _interior(self, node: Node, source: str) -> set[str]:
        """The nodes between the source and the cluster's last node."""
        found: set[str] = set()
        waiting = [value.name for value in node.inputs]
        while waiting:
            name = waiting.pop()
            if name != source and name not in found:
                found.add(name)
                waiting += [value.name for value in self.nodes[name].inputs]
        return found

    def name(self, node: Node, source: str) -> str:
        """What people can recognise the function by."""
        inner = sorted(self._interior(node, source), key=self.place.__getitem__)
        packets = dict.fromkeys(one.op_name.split(".")[1] for one in (*map(self.nodes.__getitem__, inner), node))
        return f"the function made of {', '.join(packets)}"


def _is_its_own(step: Step) -> bool:
    """Whether the step is its node's own, not one of a recognised pattern."""
    return step.inputs == tuple(value.name for value in step.node.inputs) and not step.absorbed_by


def _floats(node: Node) -> bool:
    """Whether a node of a cluster computes numbers, not truth values."""
    return node.op not in _TRUTHS


def _constant(argument: Any) -> Part:
    """A number, a truth value or None; a tensor that holds one number only is that number.

    Errors: NoForm where it is none of these.
    """
    if isinstance(argument, Tensor):
        if argument.numel() == 0 or argument.is_complex():
            raise NoForm
        first = argument.flatten()[0]
        if argument.numel() > 1 and not bool((argument == first).all()):
            raise NoForm
        argument = bool(first) if argument.dtype is torch.bool else float(first)
    if argument is None or isinstance(argument, bool | str):
        return argument
    if not isinstance(argument, int | float) or math.isnan(argument):
        raise NoForm
    return float(argument)


def _is_condition(part: Part) -> bool:
    return isinstance(part, bool) or (isinstance(part, tuple) and part[0] in ("gt", "ge", "not", "and", "or"))


def _number(part: Part) -> Expression:
    """A truth value is one or zero."""
    if part is None or (isinstance(part, float) and math.isinf(part)):
        raise NoForm
    expression: Expression = e.where(part, 1.0, 0.0) if _is_condition(part) else part
    return expression


def _condition(part: Part) -> Any:
    if not _is_condition(part):
        raise NoForm
    return part


def _product(a: Part, b: Part) -> Expression:
    """A truth value chooses between the other factor and zero: a jump only where that factor is not zero."""
    for one, other in ((a, b), (b, a)):
        if _is_condition(one) and not _is_condition(other):
            return e.where(one, _number(other), 0.0)
    return e.mul(_number(a), _number(b))


def _unary(function: Callable[[Expression], Expression]) -> Form:
    def form(given: _Given, part: Callable[[Any], Part]) -> Part:
        return function(_number(part(given["input"] if "input" in given else given["self"])))

    return form


def _binary(function: Callable[[Expression, Expression], Expression]) -> Form:
    def form(given: _Given, part: Callable[[Any], Part]) -> Part:
        if given.get("rounding_mode"):
            raise NoForm
        other = _number(part(given["other"]))
        alpha = _number(_constant(given.get("alpha", 1)))
        return function(_number(part(given["self"])), other if alpha == 1.0 else e.mul(alpha, other))

    return form


def _reversed(given: _Given, part: Callable[[Any], Part]) -> Part:
    """other - alpha * self."""
    own, alpha = _number(part(given["self"])), _number(_constant(given.get("alpha", 1)))
    return e.subtract(_number(part(given["other"])), own if alpha == 1.0 else e.mul(alpha, own))


def _multiplied(given: _Given, part: Callable[[Any], Part]) -> Part:
    return _product(part(given["self"]), part(given["other"]))


def _added_product(given: _Given, part: Callable[[Any], Part]) -> Part:
    product = _product(part(given["tensor1"]), part(given["tensor2"]))
    return e.add(_number(part(given["self"])), e.mul(_number(_constant(given["value"])), product))


def _power(given: _Given, part: Callable[[Any], Part]) -> Part:
    base = _number(part(given["self"]))
    exponent = _number(_constant(given["exponent"]))
    assert isinstance(exponent, float), "constants are numbers"
    return e.power(base, exponent)


def _exponential(given: _Given, part: Callable[[Any], Part]) -> Part:
    base = _number(_constant(given["self"]))
    if not isinstance(base, float) or base <= 0:
        raise NoForm
    return ("exp", e.mul(("log", base), _number(part(given["exponent"]))))


def _softplus(given: _Given, part: Callable[[Any], Part]) -> Part:
    """The jump at a high threshold is an artefact of evaluation, as in the rule of softplus."""
    if given["threshold"] < 15 or not given["beta"] > 0:
        raise NoForm
    return e.softplus(_number(part(given["self"])), float(given["beta"]))


def _clamp(given: _Given, part: Callable[[Any], Part]) -> Part:
    ends = [_constant(given.get(name, given.get(f"{name}_val"))) for name in ("min", "max")]
    low, high = -math.inf if ends[0] is None else ends[0], math.inf if ends[1] is None else ends[1]
    return e.clamp(_number(part(given["self"])), low, high)


def _gelu(given: _Given, part: Callable[[Any], Part]) -> Part:
    x = _number(part(given["self"]))
    return e.gelu(x) if given["approximate"] == "none" else e.gelu_tanh(x)


def _elu(x: Expression, alpha: float, scale: float, inner: float) -> Expression:
    below = e.mul(scale, e.mul(alpha, e.add(("exp", e.mul(inner, x)), -1.0)))
    return e.where(e.compare("gt", x, 0.0), e.mul(scale, x), below)


def _elu_given(given: _Given, part: Callable[[Any], Part]) -> Part:
    return _elu(_number(part(given["self"])), *(float(given[name]) for name in ("alpha", "scale", "input_scale")))


def _leaky(given: _Given, part: Callable[[Any], Part]) -> Part:
    x = _number(part(given["self"]))
    return e.where(e.compare("gt", x, 0.0), x, e.mul(float(given["negative_slope"]), x))


def _where(given: _Given, part: Callable[[Any], Part]) -> Part:
    return e.where(_condition(part(given["condition"])), _number(part(given["self"])), _number(part(given["other"])))


def _filled(given: _Given, part: Callable[[Any], Part]) -> Part:
    return e.where(_condition(part(given["mask"])), _number(part(given["value"])), _number(part(given["self"])))


def _comparison(kind: str) -> Form:
    def form(given: _Given, part: Callable[[Any], Part]) -> Part:
        return e.compare(kind, _number(part(given["self"])), _number(part(given["other"])))

    return form


def _logical(function: Callable[..., Any], *names: str) -> Form:
    def form(given: _Given, part: Callable[[Any], Part]) -> Part:
        return function(*(_condition(part(given[name])) for name in names))

    return form


def _unchanged(given: _Given, part: Callable[[Any], Part]) -> Part:
    """A copy, or a change of type to one of floating point."""
    target = given.get("dtype")
    if (target is not None and not target.is_floating_point) or given.get("train"):
        raise NoForm
    found = part(given["input"] if "input" in given else given["self"])
    return _number(found) if target is not None else found


def _every(form: Form, *names: str) -> dict[Any, Form]:
    """The form for all of these overloads that this torch has."""
    found = {}
    for name in names:
        packet, _, overload = name.partition(".")
        if hasattr(aten, packet) and (overload or "default") in getattr(aten, packet).overloads():
            found[getattr(getattr(aten, packet), overload or "default")] = form
    return found


_ARITHMETIC = {
    **_every(_binary(e.add), "add.Tensor", "add.Scalar"),
    **_every(_binary(e.subtract), "sub.Tensor", "sub.Scalar", "subtract.Tensor", "subtract.Scalar"),
    **_every(_reversed, "rsub.Tensor", "rsub.Scalar"),
    **_every(_multiplied, "mul.Tensor", "mul.Scalar", "multiply.Tensor", "multiply.Scalar"),
    **_every(_binary(e.divide), "div.Tensor", "div.Scalar", "divide.Tensor", "divide.Scalar", "true_divide.Tensor"),
    **_every(_unary(e.negative), "neg"),
}  # fmt: skip
_TRUTHS: dict[Any, Form] = {
    **{op: form for kind in ("gt", "ge", "lt", "le")
       for op, form in _every(_comparison(kind), f"{kind}.Scalar", f"{kind}.Tensor").items()},
    **_every(_logical(e.complement, "self"), "logical_not", "bitwise_not"),
    **_every(_logical(e.both, "self", "other"), "logical_and", "bitwise_and.Tensor"),
    **_every(_logical(e.either, "self", "other"), "logical_or", "bitwise_or.Tensor"),
}  # fmt: skip
FORMS: dict[Any, Form] = {
    **_ARITHMETIC,
    **_TRUTHS,
    **_every(_added_product, "addcmul"),
    **_every(_power, "pow.Tensor_Scalar", "pow.Tensor_Tensor"),
    **_every(_exponential, "pow.Scalar"),
    **_every(_unary(lambda u: e.power(u, 2.0)), "square"),
    **_every(_unary(lambda u: e.power(u, 0.5)), "sqrt"),
    **_every(_unary(lambda u: e.power(u, -0.5)), "rsqrt"),
    **_every(_unary(lambda u: e.power(u, -1.0)), "reciprocal"),
    **_every(_unary(lambda u: ("exp", u)), "exp"),
    **_every(_unary(lambda u: ("exp", e.mul(("log", 2.0), u))), "exp2"),
    **_every(_unary(lambda u: e.add(("exp", u), -1.0)), "expm1"),
    **_every(_unary(e.logarithm), "log"),
    **_every(_unary(lambda u: e.logarithm(e.add(1.0, u))), "log1p"),
    **_every(_unary(e.sigmoid), "sigmoid", "special_expit"),
    **_every(_unary(lambda u: ("tanh", u)), "tanh"),
    **_every(_unary(lambda u: ("erf", u)), "erf"),
    **_every(_unary(lambda u: ("erfc", u)), "erfc"),
    **_every(_unary(lambda u: ("sin", u)), "sin"),
    **_every(_unary(lambda u: ("cos", u)), "cos"),
    **_every(_unary(lambda u: ("atan", u)), "atan"),
    **_every(_unary(lambda u: ("sign", u)), "sign"),
    **_every(_unary(e.absolute), "abs"),
    **_every(_unary(e.relu), "relu"),
    **_every(_unary(lambda u: e.clamp(u, 0.0, 6.0)), "relu6"),
    **_every(_unary(e.silu), "silu"),
    **_every(_unary(e.mish), "mish"),
    **_every(_unary(e.hardsigmoid), "hardsigmoid"),
    **_every(_unary(lambda u: e.mul(u, e.hardsigmoid(u))), "hardswish"),
    **_every(_unary(lambda u: e.negative(("softplus", e.negative(u)))), "log_sigmoid"),
    **_every(_unary(lambda u: _elu(u, 1.6732632423543772, 1.0507009873554805, 1.0)), "selu"),
    **_every(_elu_given, "elu"),
    **_every(_leaky, "leaky_relu"),
    **_every(_gelu, "gelu"),
    **_every(_softplus, "softplus"),
    **_every(_clamp, "clamp", "clamp.Tensor", "clamp_min", "clamp_max", "hardtanh"),
    **_every(_binary(e.maximum), "maximum", "fmax", "max.other"),
    **_every(_binary(e.minimum), "minimum", "fmin", "min.other"),
    **_every(_where, "where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar"),
    **_every(_filled, "masked_fill.Scalar", "masked_fill.Tensor"),
    **_every(
        _unchanged, "clone", "contiguous", "alias", "detach", "dropout", "_to_copy", "to.dtype", "to.dtype_layout"
    ),
}
