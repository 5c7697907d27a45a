"""Reports that are computed once a session: of a module while its weights stand, of a name while its files do."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Hashable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lipcheck import Report

Key = tuple[Hashable, ...]

_PLAIN = (str, bytes, int, float, bool, type(None))
_BY_NAME = {"torch.device", "torch.dtype"}


class Unknown(Exception):
    """Nothing tells whether the value is the same as an earlier one."""


class Audits:
    """The session's reports, each computed when it is first asked for.

    A report is given again for the same module object with the same weights, or for the same name, and the same
    options. Modules are not kept alive. An argument of a kind that cannot be compared, and one that names a file to
    write, mean another audit.
    """

    def __init__(self) -> None:
        self._of_modules: dict[int, tuple[weakref.ref[nn.Module], dict[Key, Report]]] = {}
        self._of_names: dict[Key, Report] = {}

    def report(self, model: str | Path | nn.Module, options: dict[str, Any]) -> Report:
        """What `lipcheck.check` says of the model."""
        import lipcheck

        model = str(model) if isinstance(model, Path) else model
        try:
            if options.get("certificate") is not None:
                raise Unknown("a file to write")
            known = self._of_names if isinstance(model, str) else self._of(model)
            key = (_of_name(model) if isinstance(model, str) else _of_weights(model), _of_value(options))
        except Unknown:
            return lipcheck.check(model, **options)
        if key not in known:
            known[key] = lipcheck.check(model, **options)
        return known[key]

    def _of(self, module: nn.Module) -> dict[Key, Report]:
        try:
            reference, known = self._of_modules.get(id(module), (None, {}))
            if reference is None or reference() is not module:  # the id of one that is gone
                reference, known = weakref.ref(module), {}
                self._of_modules[id(module)] = reference, known
        except TypeError as error:
            raise Unknown(f"{type(module).__name__} is no module") from error
        return known


def _of_name(name: str) -> Key:
    """A name, where it is read from, and when what it names was last written."""
    return name, os.getcwd(), tuple(_stamp(path) for path in _files(Path(name)))


def _files(path: Path) -> Iterable[Path]:
    try:
        return sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError as error:
        raise Unknown(f"{path} cannot be read") from error


def _stamp(path: Path) -> Key:
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return (path.name,)
    return path.name, facts.st_mtime_ns, facts.st_size, facts.st_ino


def _of_weights(module: nn.Module) -> Key:
    """What the module is made of as it prints itself, its mode, and the bytes of every parameter and buffer."""
    try:
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    except AttributeError as error:
        raise Unknown(f"{type(module).__name__} is no module") from error
    return repr(module), module.training, tuple((name, _of_tensor(tensor)) for name, tensor in named)


def _of_tensor(tensor: Tensor) -> Key:
    import torch

    try:
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    except (RuntimeError, TypeError) as error:
        raise Unknown("a tensor without plain bytes") from error
    return str(tensor.dtype), tuple(tensor.shape), hashlib.blake2b(raw, digest_size=20).digest()


def _of_value(value: Any) -> Key:
    if isinstance(value, _PLAIN):
        return type(value).__name__, value
    if isinstance(value, Path):
        return "Path", str(value)
    if isinstance(value, tuple | list):
        return type(value).__name__, *(_of_value(entry) for entry in value)
    if isinstance(value, dict):
        return "dict", *sorted((str(name), _of_value(entry)) for name, entry in value.items())
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if kind in _BY_NAME:
        return kind, str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return kind, *((field.name, _of_value(getattr(value, field.name))) for field in fields(value))
    if kind == "torch.Tensor":
        return kind, *_of_tensor(value)
    raise Unknown(f"a {kind}")
