"""Expressions of one variable to draw, and what they are: evaluated by mpmath, as they were written."""

from __future__ import annotations

import math
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
from hypothesis import strategies as st

from lipcheck.maps import expressions as e
from lipcheck.maps.jets import Expression

mp = mpmath.mp
DIGITS = 70


class Undefined(Exception):
    """A root or logarithm of what has none, a quotient by zero."""


def value(tree: Any, x: Any, single: bool = False) -> Any:
    """The tree at a point, with its numbers as float64 or as float32 networks read them.

    Errors: Undefined.
    """
    if tree == "x":
        return x
    if isinstance(tree, float):
        return mp.mpf(float(np.float32(tree)) if single else tree)
    operation, *operands = tree
    if operation == "where":
        (kind, *sides), yes, no = operands
        u, v = (value(side, x, single) for side in sides)
        return value(yes if {"gt": u > v, "ge": u >= v, "lt": u < v, "le": u <= v}[kind] else no, x, single)
    u, *others = (value(operand, x, single) for operand in operands)
    found = _OPERATIONS[operation](u, *others)
    if isinstance(found, mpmath.mpc) or not mpmath.isfinite(found):
        raise Undefined
    return found


def _power(u: Any, p: Any) -> Any:
    if (u < 0 and p != int(p)) or (u == 0 and p < 0):
        raise Undefined
    return u ** int(p) if p == int(p) else mp.power(u, p) if u else mp.mpf(0)


def _quotient(u: Any, v: Any) -> Any:
    if v == 0:
        raise Undefined
    return u / v


def _exp(u: Any) -> Any:
    if abs(u) > 1e4:
        raise Undefined
    return mp.exp(u)


def _log(u: Any) -> Any:
    if u <= 0:
        raise Undefined
    return mp.log(u)


_OPERATIONS: dict[str, Any] = {
    "add": lambda u, v: u + v,
    "sub": lambda u, v: u - v,
    "mul": lambda u, v: u * v,
    "div": _quotient,
    "max": max,
    "min": min,
    "pow": _power,
    "exp": _exp,
    "log": _log,
    "sigmoid": lambda u: 1 / (1 + _exp(-u)),
    "softplus": lambda u: mp.log1p(_exp(u)),
    "tanh": lambda u: mp.tanh(u) if abs(u) < 1e4 else mp.sign(u),
    "erf": lambda u: mp.erf(u) if abs(u) < 1e3 else mp.sign(u),
    "sin": mp.sin,
    "cos": mp.cos,
    "atan": mp.atan,
    "abs": abs,
    "sign": mp.sign,
    "clamp": lambda u, low, high: min(max(u, low), high),
}


def built(tree: Any) -> Expression:
    """The tree as `lipcheck.maps.expressions` makes it."""
    if tree == "x" or isinstance(tree, float):
        return tree
    operation, *operands = tree
    if operation == "where":
        (kind, *sides), yes, no = operands
        return e.where(e.compare(kind, *map(built, sides)), built(yes), built(no))
    first, *others = map(built, operands)
    make: Any = {
        "add": e.add, "sub": e.subtract, "mul": e.mul, "div": e.divide, "max": e.maximum, "min": e.minimum,
        "log": e.logarithm, "clamp": e.clamp, "pow": e.power,
    }.get(operation)  # fmt: skip
    return make(first, *others) if make else (operation, first)


_NUMBERS = st.sampled_from((0.0, 1.0, -1.0, 2.0, 0.5, 3.0, 6.0, 0.1, 1.702, -0.3, 0.044715)) | st.floats(
    -3, 3, width=32
).map(lambda number: round(number, 4))
_LEAVES = st.just("x") | st.just("x") | _NUMBERS


def _grown(smaller: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def of(operations: tuple[str, ...], *operands: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.tuples(st.sampled_from(operations), *operands)

    ends = st.sampled_from(((0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-0.3, 0.7)))
    conditions = st.tuples(
        st.sampled_from(("gt", "ge", "lt", "le")), st.sampled_from(("x", ("abs", "x"))) | smaller, _NUMBERS
    )
    return st.one_of(
        of(("add", "sub", "mul", "mul", "div", "max", "min"), smaller, smaller),
        of(("exp", "log", "sigmoid", "softplus", "tanh", "erf", "sin", "cos", "atan", "abs", "sign"), smaller),
        st.tuples(smaller, ends).map(lambda pair: ("clamp", pair[0], *pair[1])),
        of(("pow",), smaller, st.sampled_from((2.0, 3.0, 4.0, -1.0, -2.0, 0.5, -0.5, 1.5, 0.3))),
        st.tuples(st.just("where"), conditions, smaller, smaller),
    )


trees = st.recursive(_LEAVES, _grown, max_leaves=6)
