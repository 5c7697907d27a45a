"""Frozen dataclasses to the plain values of JSON and back, exactly, with infinities spelled out.

JSON has no infinity. A float field that may be infinite is an *extended* field: its class and name stand in a table
beside the key that tells its status. Infinite values are written as null and the status says which infinity.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from lipcheck.errors import UsageError

Extended = Mapping[tuple[type, str], str]  # (class, field) -> key of its status

_LARGEST = sys.float_info.max
_STATUS = {"unbounded": math.inf, "constant": -math.inf}


def encode(value: Any, extended: Extended) -> Any:
    """The value with dataclasses as dictionaries and tuples as lists; every float in it is finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _encode_fields(value, extended)
    if isinstance(value, Mapping):
        return {str(key): encode(item, extended) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item, extended) for item in value]
    assert not isinstance(value, float) or math.isfinite(value), f"{value} stands where the document has no status"
    return value


def _encode_fields(value: Any, extended: Extended) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for field in _written(type(value)):
        item = getattr(value, field.name)
        key = extended.get((type(value), field.name))
        if key is None:
            document[field.name] = encode(item, extended)
            continue
        assert not math.isnan(item), f"{type(value).__name__}.{field.name} is nan"
        document[field.name] = item if math.isfinite(item) else None
        if math.isinf(item):
            document[key] = "unbounded" if item > 0 else "constant"
        else:
            document.setdefault(key, "bounded")
    return document


def decode(kind: Any, value: Any, extended: Extended, place: str = "") -> Any:
    """The value of type `kind` that `encode` wrote as `value`; keys that the type does not know are ignored.

    Errors: UsageError naming the place in the document, what was met and what was expected.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _decode_fields(kind, value, extended, place)
    if origin in (types.UnionType, typing.Union):  # only "X | None" is used
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else decode(inner, value, extended, place)
    if origin is typing.Literal:
        return value if value in arguments else _refuse(place, value, " or ".join(map(str, arguments)))
    if origin is tuple:
        return _decode_tuple(arguments, value, extended, place)
    if origin is dict:
        items = value.items() if isinstance(value, dict) else _refuse(place, value, "an object")
        return {key: decode(arguments[1], item, extended, f"{place}.{key}") for key, item in items}
    return _decode_plain(kind, value, place)


def _decode_plain(kind: type, value: Any, place: str) -> Any:
    """JSON writes 1.0 as 1.0, but other programs may write 1: an integer is a number too; true is not."""
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return float(value)
    if kind is not float and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    return _refuse(place, value, {str: "a string", int: "an integer", float: "a finite number"}[kind])


def _decode_tuple(arguments: tuple[Any, ...], value: Any, extended: Extended, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        _refuse(place, value, "an array")
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        _refuse(place, value, f"an array of {len(arguments)}")
    return tuple(decode(arguments[0], item, extended, f"{place}[{index}]") for index, item in enumerate(value))


def _decode_fields(kind: type, value: Any, extended: Extended, place: str) -> Any:
    if not isinstance(value, dict):
        _refuse(place, value, "an object")
    hints, given = _hints(kind), {}
    for field in _written(kind):
        where = f"{place}.{field.name}" if place else field.name
        key = extended.get((kind, field.name))
        if field.name not in value:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise UsageError(f"this is no lipcheck report: {where} is missing")
        elif key is not None and value[field.name] is None:
            status = value.get(key)
            if not isinstance(status, str) or status not in _STATUS:
                _refuse(where, None, "a number, or a status of unbounded or constant beside it")
            given[field.name] = _STATUS[status]
        else:
            given[field.name] = decode(hints[field.name], value[field.name], extended, where)
    try:
        return kind(**given)
    except AssertionError as error:  # the class's own invariants, broken by the document
        fact = str(error).partition("\n")[0]  # pytest adds lines to an assertion of a package that it rewrites
        raise UsageError(f"this is no lipcheck report: {place}: {fact}") from error


def _written(kind: type) -> list[dataclasses.Field[Any]]:
    """The fields that a document has: all but those marked document=False."""
    return [field for field in dataclasses.fields(kind) if field.metadata.get("document", True)]


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _refuse(place: str, value: Any, expected: str) -> typing.NoReturn:
    met = "null" if value is None else f"{type(value).__name__} {value!r}"
    met = met if len(met) <= 60 else met[:59] + "…"
    raise UsageError(f"this is no lipcheck report: {place or 'the document'} is {met}, expected {expected}")
