"""The certificate: what was proved of each layer, of which weights and which map, in a file without a weight in it.

A `.safetensors` file whose metadata holds one JSON document under the key "lipcheck"; lists too long for JSON (the
cells of a covering) are its tensors. docs/certificate.md describes it. A file is taken for hostile until it is read:
sizes are looked at before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import struct
import tempfile
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcheck import proof as proofs
from lipcheck.errors import CertificateError, OutputError, UsageError
from lipcheck.operators import (
    BatchedDense,
    Convolution,
    Dense,
    Diagonal,
    Indexing,
    InfiniteConvolution,
    Operator,
    Padded,
    Separable,
)
from lipcheck.proof import Proof
from lipcheck.text import clean

FORMAT, VERSION = "lipcheck-certificate", 1
_KEY = "lipcheck"
_MOST_HEADER = 64 << 20
_MOST_FILE = 1 << 30
_MOST_LAYERS = 1 << 17
_MOST_TEXT = 4096
_MOST_NUMBERS = 1 << 16
_MOST_CELLS = 1 << 24
_DEEPEST = 8
_KINDS: dict[str, type[Proof]] = {
    kind.__name__.removesuffix("Proof").lower(): kind
    for kind in vars(proofs).values()
    if isinstance(kind, type) and issubclass(kind, Proof) and kind is not Proof
}
_NAMES = {kind: name for name, kind in _KINDS.items()}

Fact = str | bool | int | float | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that the bounded map is made from, by its digest. `sha256` covers dtype, shape and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class LayerCertificate:
    """One stated bound. The layer is known by its path, operation and occurrence among the layer's calls of it.

    `role` is "own" for what the node applies by itself, "merged" together with the scalings behind it.
    `facts` describe the operator; `frequencies` counts those that each grid of the proof covers, w and -w once.
    """

    layer: str
    op: str
    occurrence: int
    role: str
    facts: Mapping[str, Fact]
    constants: tuple[Constant, ...]
    upper: float
    method: str
    proof: Proof | None
    frequencies: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What names the entry: no other has the same."""
        return self.layer, self.op, self.occurrence, self.role


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which network was audited, in the words that load it again. `weights` is pretrained, random or a path."""

    name: str
    source: str
    weights: str
    seed: int
    input_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Certificate:
    """The proofs of all certified bounds of a network's linear maps, in the order of the network."""

    model: ModelIdentity
    made_by: str
    layers: tuple[LayerCertificate, ...]


# What identifies a map


def digest(name: str, tensor: Tensor) -> Constant:
    """The constant's identity: SHA-256 over "dtype shape" and the bytes, row by row, little-endian as stored."""
    held = tensor.detach().cpu().contiguous()
    dtype, shape = str(held.dtype).removeprefix("torch."), tuple(held.shape)
    found = hashlib.sha256(f"{dtype} {'x'.join(map(str, shape))}\n".encode())
    found.update(held.flatten().view(torch.uint8).numpy().tobytes())
    return Constant(name, dtype, shape, found.hexdigest())


def facts_of(operator: Operator) -> dict[str, Fact]:
    """What an operator is, but for its weights."""
    if isinstance(operator, Padded):
        inner = facts_of(operator.convolution)
        places = {f"places_{axis}": tuple(map(int, place)) for axis, place in enumerate(operator.places)}
        return {**inner, "kind": "padded convolution", "padding_mode": operator.mode,
                "unpadded_size": operator.input_size, **places}  # fmt: skip
    if isinstance(operator, Convolution | InfiniteConvolution):
        outputs, inputs, *kernel = operator.weight.shape
        facts: dict[str, Fact] = {
            "kind": "convolution" if isinstance(operator, Convolution) else "infinite convolution",
            "outputs": outputs,
            "inputs": inputs * operator.groups,
            "kernel": tuple(kernel),
            "stride": operator.stride,
            "dilation": operator.dilation,
            "groups": operator.groups,
        }
        if isinstance(operator, Convolution):
            facts |= {
                "offset": operator.offset,
                "input_size": operator.input_size,
                "output_size": operator.output_size,
                "circular": operator.circular,
            }
        return {**facts, "transposed": operator.transposed, "uncertainty": operator.uncertainty}
    if isinstance(operator, Dense):
        outputs, inputs = operator.matrix.shape
        return {"kind": "matrix", "outputs": outputs, "inputs": inputs, "uncertainty": operator.uncertainty}
    if isinstance(operator, BatchedDense):
        parts, outputs, inputs = operator.matrices.shape
        return {"kind": "matrices", "parts": parts, "outputs": outputs, "inputs": inputs,
                "uncertainty": operator.uncertainty}  # fmt: skip
    if isinstance(operator, Separable):
        rows, columns = tuple(m.shape[0] for m in operator.matrices), tuple(m.shape[1] for m in operator.matrices)
        return {"kind": "kronecker", "outputs": rows, "inputs": columns, "uncertainty": operator.uncertainty}
    if isinstance(operator, Diagonal):
        return {"kind": "diagonal", "shape": tuple(operator.gain.shape), "uncertainty": operator.uncertainty}
    if isinstance(operator, Indexing):
        return {"kind": "copies", "copies": operator.copies, "selecting": operator.selecting}
    return {"kind": type(operator).__name__}


# Writing


def write(certificate: Certificate, path: str | Path) -> None:
    """The file holds the certificate; when writing fails, whatever it held before is untouched.

    Errors: OutputError with the path and the system's reason.
    """
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {}
    layers = [_layer_document(layer, str(n), tensors) for n, layer in enumerate(certificate.layers)]
    document = {
        "format": FORMAT,
        "version": VERSION,
        "made_by": certificate.made_by,
        "model": dataclasses.asdict(certificate.model),
        "layers": layers,
    }
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OutputError(f"{clean(str(path))} is no regular file; name a file for the certificate")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=".part", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save(tensors, {_KEY: text}))
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~umask)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{clean(str(path))} cannot be written ({reason}); choose another file") from error


def _layer_document(layer: LayerCertificate, place: str, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "op": layer.op,
        "occurrence": layer.occurrence,
        "role": layer.role,
        "operator": dict(layer.facts),
        "constants": [dataclasses.asdict(constant) for constant in layer.constants],
        "upper": layer.upper,
        "method": layer.method,
        "proof": None if layer.proof is None else proof_document(layer.proof, place, tensors),
        "frequencies": layer.frequencies,
    }


def proof_document(proof: Proof, place: str, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The proof's fields under its kind; a table of numbers goes into the tensors under the name given in its place."""
    document: dict[str, Any] = {"kind": _NAMES[type(proof)]}
    for field in dataclasses.fields(proof):
        value = getattr(proof, field.name)
        if isinstance(value, Proof):
            value = proof_document(value, f"{place}.{field.name}", tensors)
        elif isinstance(value, tuple) and value and isinstance(value[0], Proof):
            value = [proof_document(part, f"{place}.{n}", tensors) for n, part in enumerate(value)]
        elif _is_table(type(proof), field.name):
            name = f"{place}.{field.name}"
            tensors[name] = np.array(value, dtype=np.int64).reshape(len(value), -1)
            value = name
        document[field.name] = value
    return document


def _is_table(kind: type[Proof], field: str) -> bool:
    return bool(_hints(kind)[field] == tuple[tuple[int, ...], ...])


def _hints(kind: type[Proof]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


# Reading


def proof_of(document: Any, tables: Mapping[str, NDArray[Any]]) -> Proof:
    """The proof that `proof_document` wrote.

    Errors: CertificateError for a document that is none.
    """
    try:
        return _Reader(tables).proof(document, "proof", _DEEPEST)
    except _MalformedError as error:
        raise CertificateError(f"this is no proof: {clean(str(error))[:200]}") from error


def read(path: str | Path) -> Certificate:
    """The certificate in a file.

    Errors: UsageError for a file that cannot be opened; CertificateError, with the place, for one that is none.
    """
    shown = clean(str(path))
    text, tensors = _opened(Path(path), shown)
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
        return _Reader(tensors).certificate(document)
    except (_MalformedError, ValueError, RecursionError) as error:
        reason = clean(" ".join(str(error).split()))[:200]
        raise CertificateError(f"{shown} is no certificate that can be read: {reason}") from error


class _MalformedError(Exception):
    pass


def _refuse_constant(name: str) -> typing.NoReturn:
    raise _MalformedError(f"{name} stands where a number is expected")


def _opened(path: Path, shown: str) -> tuple[str, dict[str, NDArray[Any]]]:
    """The JSON text and the tables."""
    import safetensors

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UsageError(f"{shown} cannot be read ({error.strerror or type(error).__name__})") from error
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if size > _MOST_FILE or header > min(_MOST_HEADER, size - 8):
        raise CertificateError(f"{shown} is no certificate: no safetensors file, or one of over {_MOST_FILE >> 30} GiB")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tables = {}
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                shape = part.get_shape()
                if part.get_dtype() != "I64" or len(shape) != 2 or math.prod(shape) > _MOST_CELLS:
                    raise CertificateError(
                        f"{shown} is no certificate: tensor {clean(name)[:80]} is no table of integers"
                    )
                tables[name] = file.get_tensor(name)
    except CertificateError:
        raise
    except Exception as error:  # safetensors has one class of its own, made at run time
        reason = clean(" ".join(str(error).split()))[:200]
        raise CertificateError(f"{shown} is no certificate: {reason}") from error
    if _KEY not in metadata:
        raise CertificateError(f"{shown} is no certificate: its metadata has no {_KEY}")
    return metadata[_KEY], tables


class _Reader:
    """A JSON document to a Certificate; every method raises _MalformedError with the place."""

    def __init__(self, tables: Mapping[str, NDArray[Any]]) -> None:
        self.tables = tables

    def certificate(self, document: Any) -> Certificate:
        top = self._object(document, "the document")
        if top.get("format") != FORMAT:
            raise _MalformedError(f"format is {str(top.get('format'))[:40]!r}, expected {FORMAT}")
        if top.get("version") != VERSION or top.get("version") is True:
            raise _MalformedError(f"version is {str(top.get('version'))[:40]}, this lipcheck reads {VERSION}")
        model = self._object(top.get("model"), "model")
        layers = self._list(top.get("layers"), "layers", _MOST_LAYERS)
        return Certificate(
            model=ModelIdentity(
                name=self._text(model.get("name"), "model.name"),
                source=self._text(model.get("source"), "model.source"),
                weights=self._text(model.get("weights"), "model.weights"),
                seed=self._integer(model.get("seed"), "model.seed", 0),
                input_shape=self._integers(model.get("input_shape"), "model.input_shape", 1),
            ),
            made_by=self._text(top.get("made_by"), "made_by"),
            layers=tuple(self._layer(layer, f"layers[{n}]") for n, layer in enumerate(layers)),
        )

    def _layer(self, document: Any, place: str) -> LayerCertificate:
        layer = self._object(document, place)
        role = self._text(layer.get("role"), f"{place}.role")
        if role not in ("own", "merged"):
            raise _MalformedError(f"{place}.role is {role[:40]!r}, expected own or merged")
        facts = self._object(layer.get("operator"), f"{place}.operator")
        constants = self._list(layer.get("constants"), f"{place}.constants", _MOST_NUMBERS)
        proof = layer.get("proof")
        return LayerCertificate(
            layer=self._text(layer.get("layer"), f"{place}.layer"),
            op=self._text(layer.get("op"), f"{place}.op"),
            occurrence=self._integer(layer.get("occurrence"), f"{place}.occurrence", 0),
            role=role,
            facts={self._text(k, place): self._fact(v, f"{place}.operator.{k[:40]}") for k, v in facts.items()},
            constants=tuple(self._constant(c, f"{place}.constants[{n}]") for n, c in enumerate(constants)),
            upper=self._number(layer.get("upper"), f"{place}.upper"),
            method=self._text(layer.get("method"), f"{place}.method"),
            proof=None if proof is None else self.proof(proof, f"{place}.proof", _DEEPEST),
            frequencies=self._integers(layer.get("frequencies"), f"{place}.frequencies", 0),
        )

    def _constant(self, document: Any, place: str) -> Constant:
        constant = self._object(document, place)
        return Constant(
            name=self._text(constant.get("name"), f"{place}.name"),
            dtype=self._text(constant.get("dtype"), f"{place}.dtype"),
            shape=self._integers(constant.get("shape"), f"{place}.shape", 0),
            sha256=self._text(constant.get("sha256"), f"{place}.sha256"),
        )

    def _fact(self, value: Any, place: str) -> Fact:
        if isinstance(value, list):
            return self._integers(value, place, -(1 << 40))
        if isinstance(value, str):
            return self._text(value, place)
        if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        raise _MalformedError(f"{place} is a {type(value).__name__}")

    def proof(self, document: Any, place: str, depth: int) -> Proof:
        given = self._object(document, place)
        name = given.get("kind")
        kind = _KINDS.get(name) if isinstance(name, str) else None
        if kind is None:
            raise _MalformedError(f"{place}.kind is {str(name)[:40]!r}, expected one of {', '.join(_KINDS)}")
        if depth == 0:
            raise _MalformedError(f"{place} is nested too deeply")
        hints = _hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        values = {n: self._field(given.get(n), hints[n], f"{place}.{n}", depth) for n in names}
        return kind(**values)

    def _field(self, value: Any, hint: Any, place: str, depth: int) -> Any:
        if hint is float:
            return self._number(value, place)
        if hint is int:
            return self._integer(value, place, 0)
        if hint is Proof:
            return self.proof(value, place, depth - 1)
        if hint == tuple[Proof, ...]:
            parts = self._list(value, place, 64)
            return tuple(self.proof(part, f"{place}[{n}]", depth - 1) for n, part in enumerate(parts))
        if hint == tuple[bool, ...]:
            flags = self._list(value, place, 16)
            if not all(isinstance(flag, bool) for flag in flags):
                raise _MalformedError(f"{place} is no list of true and false")
            return tuple(flags)
        if hint == tuple[tuple[int, ...], ...]:
            table = self.tables.get(value) if isinstance(value, str) else None
            if table is None:
                raise _MalformedError(f"{place} names no tensor of the file")
            return tuple(map(tuple, table.tolist()))
        assert hint == tuple[int, ...], f"no way to read {hint}"
        return self._integers(value, place, 0)

    @staticmethod
    def _object(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _MalformedError(f"{place} is {_kind(value)}, expected an object")
        return value

    @staticmethod
    def _list(value: Any, place: str, most: int) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            met = (
                f"{len(value)} long, at most {most}" if isinstance(value, list) else f"{_kind(value)}, expected a list"
            )
            raise _MalformedError(f"{place} is {met}")
        return value

    @staticmethod
    def _text(value: Any, place: str) -> str:
        if not isinstance(value, str) or len(value) > _MOST_TEXT:
            raise _MalformedError(f"{place[:80]} is {_kind(value)}, expected a string of at most {_MOST_TEXT}")
        return value

    @staticmethod
    def _integer(value: Any, place: str, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 63:
            raise _MalformedError(f"{place} is {_kind(value)}, expected an integer of at least {least}")
        return value

    def _integers(self, value: Any, place: str, least: int) -> tuple[int, ...]:
        return tuple(self._integer(item, place, least) for item in self._list(value, place, _MOST_NUMBERS))

    @staticmethod
    def _number(value: Any, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _MalformedError(f"{place} is {_kind(value)}, expected a number")
        if not 0 <= value <= 1.7976931348623157e308:
            raise _MalformedError(f"{place} is {str(value)[:40]}, expected a finite number of at least 0")
        return float(value)


def _kind(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
