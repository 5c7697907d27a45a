"""Bounds that an earlier audit computed: which key stands for an operator, and how a bound becomes a row and is read.

A key is a digest of all that a bound follows from: every field of the operator, its weights by their bytes; every
setting; the method; the libraries that computed; and lipcheck's own source, so that a bound never outlives the code it
came from. A row has the bound with its proof. It is checked when read, but not proved again: whoever can write to the
folder is trusted as much as whoever installed lipcheck, and `lipcheck verify` trusts neither.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lipcheck.bound import Bound, Kind
from lipcheck.certificate import proof_document, proof_of
from lipcheck.engines import threads
from lipcheck.engines.settings import Settings
from lipcheck.errors import CertificateError
from lipcheck.operators import BatchedDense, Convolution, Dense, InfiniteConvolution, Operator, Padded, Separable

if TYPE_CHECKING:
    from lipcheck.cache import Cache

_CPU = torch.device("cpu")
# What takes time to bound. Nothing is kept of operators that others define: what they do is not known.
_KEPT = frozenset((Dense, BatchedDense, Convolution, InfiniteConvolution, Padded, Separable))
_LONGEST_METHOD = 200

# The methods whose bounds an audit composes: nothing but a certified bound is taken for theirs.
ENCLOSED, TIGHTENED = "enclosed", "tightened"
_CERTIFIED = frozenset((ENCLOSED, TIGHTENED))


class Kept:
    """The bounds that are kept between audits with the same settings; nothing is kept where `cache` is None."""

    def __init__(self, cache: Cache | None, settings: Settings, absent: str = "") -> None:
        self._cache, self._absent = cache, absent
        self._common: dict[str, Any] = {} if cache is None else _circumstances(settings)
        self._known: dict[int, tuple[Operator, str | None]] = {}
        self._found: set[int] = set()
        self._before = 0  # found among those that were let go
        if not self._common.get("source"):
            self._cache = None

    def under(self, settings: Settings) -> Kept:
        """The same cache for other settings; what is found there counts here as well."""
        other = Kept(self._cache, settings)
        other._known, other._found = self._known, self._found
        return other

    @property
    def used(self) -> bool:
        """Whether bounds are looked up and kept."""
        return self._cache is not None

    @staticmethod
    def takes(operator: Operator) -> bool:
        """Whether bounds of this operator are kept: those of the others cost nothing, or rest on code of others."""
        return type(operator) in _KEPT

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found, and what hinders, for people."""
        problem = self._absent or ("" if self._cache is None else self._cache.problem)
        count = self._before + len(self._found)
        bounds = "bound was" if count == 1 else "bounds were"
        found = [f"{count} {bounds} found in the cache of earlier audits"] if count else []
        return (*found, *([f"the cache of bounds cannot be used: {problem}"] if problem else []))

    def find(self, operators: Sequence[Operator], method: str, given: float = 0.0) -> list[Bound | None]:
        """What is known of each operator by this method, None where nothing is.

        `given` is a number beside the operator that the method's result depends on.
        """
        if self._cache is None:
            return [None] * len(operators)
        keys = self._keys(operators, method, given)
        rows = self._cache.find([key for key in keys if key])
        bounds = [None if key is None or key not in rows else _read(rows[key], method) for key in keys]
        self._found.update(id(one) for one, bound in zip(operators, bounds, strict=True) if bound is not None)
        return bounds

    def keep(self, operators: Sequence[Operator], bounds: Sequence[Bound], method: str, given: float = 0.0) -> None:
        """The bounds can be found from now on, those that are finite and not zero."""
        if self._cache is None:
            return
        keys = self._keys(operators, method, given)
        pairs = zip(keys, bounds, strict=True)
        self._cache.keep({key: _row(bound) for key, bound in pairs if key and 0 < bound.upper < math.inf})

    def let_go(self) -> None:
        """No operator is held any longer: whoever reads weights one after the other has no room for all."""
        self._before += len(self._found)
        self._known.clear()
        self._found.clear()

    def _keys(self, operators: Sequence[Operator], method: str, given: float) -> list[str | None]:
        new = [operator for operator in operators if id(operator) not in self._known]
        # Hashing a large buffer leaves the other threads of Python running.
        for operator, identity in zip(new, threads.shared(_identity, new, _CPU), strict=True):
            self._known[id(operator)] = operator, identity
        return [self._key(self._known[id(operator)][1], method, given) for operator in operators]

    def _key(self, identity: str | None, method: str, given: float) -> str | None:
        if identity is None:
            return None
        return _digest({**self._common, "operator": identity, "method": method, "given": float(given).hex()})


def kept(settings: Settings, *, wanted: bool) -> Kept:
    """The user's cache for these settings, or none where it is not wanted, is turned off or cannot be had."""
    if not wanted:
        return Kept(None, settings)
    try:
        from lipcheck import cache as store

        return Kept(None if store.turned_off() else store.Cache(store.folder()), settings)
    except ImportError:  # a Python that was built without SQLite
        return Kept(None, settings, "sqlite3 is missing in this Python")
    except (OSError, RuntimeError) as error:  # a user without a home
        return Kept(None, settings, " ".join(str(error).split())[:80])


# Keys


def _circumstances(settings: Settings) -> dict[str, Any]:
    """What a bound depends on beside its operator. `source` is empty where lipcheck's cannot be read."""
    described = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return {
        "settings": {name: _plain(value) for name, value in described.items()},
        "workers": threads.workers(settings.device),  # they share the memory, which decides between methods
        "source": _source(),
        "versions": [_version("lipcheck"), torch.__version__, np.__version__],
    }


@cache
def _source() -> str:
    """The digest of lipcheck's own code, "" where it cannot be read."""
    found = hashlib.sha256()
    files = sorted(_modules(resources.files("lipcheck")), key=lambda pair: pair[0])
    for name, file in files:
        found.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest() if files else ""


def _modules(folder: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for part in folder.iterdir():
        if part.is_dir():
            yield from _modules(part, f"{prefix}{part.name}/")
        elif part.name.endswith(".py"):
            yield prefix + part.name, part


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _identity(operator: Operator) -> str | None:
    """The digest of everything that makes the operator; None of one that is not kept."""
    return _digest(_described(operator)) if Kept.takes(operator) else None


def _described(operator: Operator) -> list[Any]:
    fields = {field.name: _plain(getattr(operator, field.name)) for field in dataclasses.fields(operator)}
    return [type(operator).__qualname__, fields]


def _plain(value: Any) -> Any:
    """The value in JSON, so that different values are different text."""
    if isinstance(value, Tensor):
        return ["tensor", str(value.dtype), list(value.shape), _bytes_digest(value)]
    if isinstance(value, Operator):
        return _described(value)
    if isinstance(value, tuple):
        return ["tuple", *map(_plain, value)]
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, torch.device):
        return ["device", value.type]
    assert value is None or isinstance(value, str | bool | int), f"{type(value).__name__} has no place in a key"
    return value


def _bytes_digest(tensor: Tensor) -> str:
    """SHA-256 of the elements, row by row, as they stand in memory."""
    held = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return hashlib.sha256(held.flatten().view(torch.uint8).numpy().data).hexdigest()


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


# Rows


def _row(bound: Bound) -> bytes:
    tables: dict[str, Any] = {}
    document = {
        "lower": bound.lower.hex(),
        "upper": bound.upper.hex(),
        "method": bound.method,
        "kind": bound.kind,
        "proof": None if bound.proof is None else proof_document(bound.proof, "proof", tables),
        "tables": {name: table.tolist() for name, table in tables.items()},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _read(row: bytes, method: str) -> Bound | None:
    """The bound in a row; None of a row that makes no sense."""
    try:
        document = json.loads(row)
        lower, upper = float.fromhex(document["lower"]), float.fromhex(document["upper"])
        words, kind = document["method"], document["kind"]
        tables = {name: _table(table) for name, table in document["tables"].items()}
        proof = None if document["proof"] is None else proof_of(document["proof"], tables)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, CertificateError):
        return None
    if not (0 <= lower <= upper and 0 < upper < math.inf):
        return None
    if not isinstance(words, str) or len(words) > _LONGEST_METHOD or kind not in typing.get_args(Kind):
        return None
    if method in _CERTIFIED and kind != "certified":
        return None
    return Bound(lower, upper, words, kind, proof)


def _table(rows: Any) -> Any:
    table = np.array(rows)
    if table.ndim != 2 or table.dtype.kind != "i":
        raise ValueError("no table of integers")
    return table.astype(np.int64)
