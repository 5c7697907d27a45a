"""Attacks on rules: two inputs that an operation moves further apart than its rule says refute the rule.

`assert_rule_sound` looks for such a pair. That it finds none is no proof that the rule is right.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lipcheck.attack import Claim, Refuted, Search
from lipcheck.capture import capture, choose_output
from lipcheck.compose import Factor, compose
from lipcheck.domains import Box, Domain
from lipcheck.engines.enclose import enclose
from lipcheck.errors import LipcheckError, UsageError
from lipcheck.graph import Graph
from lipcheck.operators import Linear, Operator, Unbounded
from lipcheck.plugins import Rules, gather, overloads_of
from lipcheck.propagate import Propagation, propagate
from lipcheck.ranges import Range
from lipcheck.rules import operator_of
from lipcheck.simplify import simplify
from lipcheck.steps import Step

# A box for all activations, by its two ends or as a domain, or one for each activation.
Where = Domain | tuple[float, float] | Sequence["Domain | tuple[float, float]"] | None
# What an operation may be off by in its own precision, in units of it: relative to its results.
_ROUNDING = 256
_FORGIVEN = 1 + 1e-9
_SHOWN = 64  # numbers of an input that a message still lists


class UnsoundRule(AssertionError):
    """A rule claims less than two inputs show; `first` and `second` hold one tensor for each activation.

    Where an output lies outside the range that the rule states, `second` is empty.
    """

    def __init__(
        self, message: str, first: tuple[Tensor, ...], second: tuple[Tensor, ...], claimed: float, found: float
    ) -> None:
        super().__init__(message)
        self.first, self.second, self.claimed, self.found = first, second, claimed, found


@dataclass(frozen=True, slots=True)
class Attack:
    """What a rule claims and the most that was found: a ratio far below one hints at a loose rule."""

    claimed: float
    found: float


def assert_rule_sound(
    op: Any,
    example_args: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    activations: Sequence[int] | None = None,
    rules: Rules | None = None,
    domain: Where = None,
    trials: int = 100,
    seed: int = 0,
    rounding: float | None = None,
) -> Attack:
    """Attacks the constants and the range that the rules give for a call, by sampling and by ascent on the Jacobian.

    `op` is an operation, or a function of several or a module, in which an audit's patterns count as well;
    `example_args` and `options` are what it is called with.
    `activations` are the places of the arguments that depend on the network's input, the first floating-point tensor
    unless given; the others are constants. `domain` says where the activations are: (low, high), `lipcheck.Box` or
    `lipcheck.Ball`, or a list with one for each. Where the operation has no derivative, differences take its place.
    Shapes: an activation has a batch axis of one.
    Units:  `trials` is the number of starts; `rounding` is what the operation's own arithmetic may be off by, relative
        to its result, from its result's type unless given.
    Errors: UnsoundRule, an AssertionError, with the two inputs; UsageError where there is no finite claim to attack.
    """
    call = _call(op, tuple(example_args), dict(options or {}), activations)
    within = _range(domain, call.shapes)
    with torch.inference_mode(False):
        claims, output = _claims(call, rules, within, domain is not None)
        function, example, unit = _function(call)
        search = Search(
            *(function, example, None if domain is None else within, output),
            *(_ROUNDING * unit if rounding is None else rounding, trials, seed),
        )
        try:
            found = [search.attack(claim) for claim in claims]
        except Refuted as refuted:
            raise _unsound(call, refuted) from None
    return Attack(claims[0].constant, found[0])


class _Call(nn.Module):
    """The call as a network: its input is the one activation, or all activations side by side."""

    def __init__(self, op: Any, args: tuple[Any, ...], options: dict[str, Any], places: tuple[int, ...]) -> None:
        super().__init__()
        self.op, self.args, self.options, self.places = op, args, options, places
        self.name = str(getattr(op, "__name__", None) or getattr(op, "_qualname", None) or type(op).__name__)
        self.shapes = tuple(tuple(args[place].shape) for place in places)
        for place, value in enumerate(args):
            if isinstance(value, Tensor) and place not in places:
                self.register_buffer(f"constant{place}", value)

    def forward(self, x: Tensor) -> Any:
        args = [getattr(self, f"constant{place}", value) for place, value in enumerate(self.args)]
        for place, part in zip(self.places, self.parts(x), strict=True):
            args[place] = part
        return self.op(*args, **self.options)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """The activations in the network's input."""
        if len(self.shapes) == 1:
            return (x,)
        ends = self.ends
        return tuple(
            x[:, low:high].reshape(shape) for low, high, shape in zip(ends, ends[1:], self.shapes, strict=False)
        )

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each activation begins among the input's numbers, and where the last one ends."""
        found = [0]
        for shape in self.shapes:
            found.append(found[-1] + math.prod(shape))
        return tuple(found)

    def example(self) -> Tensor:
        """The input that the arguments make up."""
        parts = [self.args[place].detach() for place in self.places]
        return parts[0] if len(parts) == 1 else torch.cat([part.reshape(1, -1) for part in parts], 1)

    def to_precision(self, dtype: torch.dtype) -> _Call:
        """The same call on tensors of this precision."""
        cast = [v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for v in self.args]
        op = copy.deepcopy(self.op).to(dtype) if isinstance(self.op, nn.Module) else self.op
        return _Call(op, tuple(cast), self.options, self.places)


def _call(op: Any, args: tuple[Any, ...], options: dict[str, Any], activations: Sequence[int] | None) -> _Call:
    """Errors: UsageError where the arguments hold no activation, or one without a batch axis of one."""
    floating = [i for i, value in enumerate(args) if isinstance(value, Tensor) and value.is_floating_point()]
    places = tuple(activations) if activations is not None else tuple(floating[:1])
    if not places or any(place not in floating for place in places):
        raise UsageError(f"activations is {activations!r}; name places of floating-point tensors among example_args")
    for place in places:
        if not args[place].dim() or args[place].shape[0] != 1:
            raise UsageError(
                f"argument {place} has the shape {tuple(args[place].shape)}; an activation has a batch axis of one"
            )
    if not callable(op):
        raise UsageError(f"op is a {type(op).__name__}; give an operation, a function or a module")
    return _Call(op, args, options, places).eval()


def _range(domain: Where, shapes: Sequence[tuple[int, ...]]) -> Range:
    """Where the network's input is: the activation's own range, or those of all of them side by side.

    Errors: UsageError for what is no domain.
    """
    size = (1, sum(map(math.prod, shapes)))
    if domain is None:
        return Range.unknown(shapes[0] if len(shapes) == 1 else size)
    each = list(domain) if isinstance(domain, list) else [domain] * len(shapes)
    if len(each) != len(shapes):
        raise UsageError(f"domain has {len(each)} parts for {len(shapes)} activations; give one for each")
    found = [_domain(one).range(shape) for one, shape in zip(each, shapes, strict=True)]
    if len(found) == 1:
        return found[0]
    # A ball of one activation says nothing of the others: the boxes around them stay.
    low, high = (torch.cat([getattr(one, end).reshape(1, -1) for one in found], 1) for end in ("low", "high"))
    return Range(low, high)


def _domain(one: Any) -> Domain:
    if isinstance(one, Domain):
        return one
    if isinstance(one, tuple) and len(one) == 2:
        return Box(*one)
    raise UsageError(f"domain holds a {type(one).__name__}; give (low, high), lipcheck.Box or lipcheck.Ball")


def _claims(call: _Call, rules: Rules | None, within: Range, bounded: bool) -> tuple[list[Claim], Range | None]:
    """The constant of the whole call, those of each activation by itself, and the range of the output.

    Errors: UsageError where the constant is infinite, or the operation is not in the captured graph.
    """
    book = gather(rules)
    graph, _ = capture(call, call.example(), known=book.table)
    steps = _steps(call, graph, [operator_of(node, book.table) for node in graph.nodes])
    linear = [step.operator for step in steps if isinstance(step.operator, Linear)]
    bounds = {id(operator): bound.upper for operator, bound in zip(linear, enclose(linear), strict=True)}
    known = propagate(graph, steps, lambda operator: bounds[id(operator)], within)
    factors = [
        Factor(step.node.name, step.inputs, step.operator, bounds.get(id(step.operator), math.inf),
               known.slopes.get(step.node.name, ()))
        for step in steps
    ]  # fmt: skip
    own = _own_steps(call, graph, steps)
    whole = compose(graph.input.name, factors, graph.output).output
    if whole == math.inf:
        reason = next(iter(_reasons(steps, known)), "its constant is infinite")
        hint = "" if bounded else "; give a domain=(low, high) if it is finite on one"
        raise UsageError(f"{call.name}: there is no finite constant to attack: {reason}{hint}")
    ends = call.ends
    claims = [Claim("its constant", _plain(whole), 0, ends[-1])]
    if len(call.places) > 1 and len(own) == 1 and len(own[0].inputs) == len(call.places):
        logs = next(factor for factor in factors if factor.name == own[0].node.name).logs()
        claims += [
            Claim(f"its constant in argument {place}", _plain(log), start, stop)
            for place, log, start, stop in zip(call.places, logs, ends, ends[1:], strict=False)
        ]
    return claims, known.output


def _steps(call: _Call, graph: Graph, operators: Sequence[Operator]) -> list[Step]:
    """What is attacked: an operation's own rule, and of a function what an audit makes of it, patterns included."""
    if not _overloads(call):
        return simplify(graph, operators)
    return [
        Step(node, operator, inputs=tuple(value.name for value in node.inputs))
        for node, operator in zip(graph.nodes, operators, strict=True)
    ]


def _overloads(call: _Call) -> tuple[Any, ...]:
    """The overloads of an operation; none of a function or a module."""
    try:
        return overloads_of(call.op)
    except LipcheckError:
        return ()


def _plain(log: float) -> float:
    return math.exp(log) * _FORGIVEN if log < 700 else math.inf


def _reasons(steps: Sequence[Step], known: Propagation) -> Iterator[str]:
    for step in steps:
        operator: Operator = step.operator
        found = operator.reason if isinstance(operator, Unbounded) else known.reasons.get(step.node.name, "")
        if found:
            yield f"{step.node.op_name}: {found}"


def _own_steps(call: _Call, graph: Graph, steps: Sequence[Step]) -> list[Step]:
    """The steps of the operation itself, where one was given: those of its overloads.

    Errors: UsageError where the capture took the operation apart.
    """
    overloads = _overloads(call)
    found = [step for step in steps if step.node.op in overloads]
    if overloads and not found and graph.output:
        met = ", ".join(dict.fromkeys(step.node.op_name for step in steps))
        raise UsageError(f"{call.name} is not in the captured graph, which has {met or 'no operation'}")
    return found


def _function(call: _Call) -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    """The call in float64, or in its own precision where it cannot be run so, an input, and the result's unit."""
    failure: Exception | None = None
    for dtype in (torch.float64, call.example().dtype):
        chosen, example = call.to_precision(dtype), call.example().to(dtype)
        try:
            with torch.no_grad():
                result = _result(chosen, example)
        except Exception as error:  # of a kernel that knows no float64
            failure = error
            continue
        return partial(_result, chosen), example, torch.finfo(result.dtype).eps
    assert failure is not None, "a call that was captured runs in its own precision"
    raise failure


def _result(call: _Call, x: Tensor) -> Tensor:
    return choose_output(call(x))[2]


def _unsound(call: _Call, refuted: Refuted) -> UnsoundRule:
    """What was found, for people."""
    claim, first = refuted.claim, call.parts(refuted.first)
    if refuted.second is None:
        where = _shown(first)
        message = f"{call.name}: the output at x = {where} lies outside the range that its rule states"
        return UnsoundRule(message, first, (), claim.constant, refuted.found)
    second = call.parts(refuted.second)
    message = (
        f"{call.name}: ||f(x) - f(y)|| / ||x - y|| is {refuted.found:.9g}, {claim.what} is said to be "
        f"{claim.constant:.9g}, at x = {_shown(first)} and y = {_shown(second)}"
    )
    return UnsoundRule(message, first, second, claim.constant, refuted.found)


def _shown(parts: Sequence[Tensor]) -> str:
    """The numbers of an input, those of a large one by their shapes."""
    texts = [
        str(part.tolist()) if part.numel() <= _SHOWN else f"a tensor of {tuple(part.shape)} (see the exception)"
        for part in parts
    ]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"
