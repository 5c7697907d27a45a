"""A Python factory `package.module:function`: the user's own code, called without arguments."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from types import ModuleType

import torch
from torch import nn

from lipcheck.errors import InputSizeError, SourceError, UnknownModelError, WeightsError
from lipcheck.sources.blueprint import Blueprint, Size
from lipcheck.sources.wording import plain, reason


def factory(name: str) -> Blueprint:
    """What the function named after the colon returns, with the working directory importable.

    Its published weights are those it gives. The input size is the attribute `input_size` of what it
    returns, or else of its Python module.
    Errors: UnknownModelError without such a module or function, SourceError when the user's code raises.
    """
    path, _, attribute = name.partition(":")
    with _working_directory_importable():
        module = _imported(name, path)
        function: object = module
        for part in attribute.split("."):
            if not hasattr(function, part):
                offered = [one for one in dir(function) if callable(getattr(function, one)) and not one.startswith("_")]
                near = get_close_matches(part, offered, n=3) or offered[:3]
                hint = f"; it has {', '.join(near)}" if near else ""
                raise UnknownModelError(f"{name}: {path} has no function {plain(part) or 'without a name'}{hint}")
            function = getattr(function, part)
    if not callable(function):
        raise SourceError(f"{name}: {type(function).__name__}, not a function that returns a torch.nn.Module")

    called: Callable[[], object] = function

    def build() -> nn.Module:
        return _called(name, called)

    return Blueprint(
        "factory",
        build,
        lambda: (build(), "as given"),
        random=lambda: _random(name, build),
        own_size=lambda built: _stated_size(name, built, module),
    )


def _imported(name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(error.name + ".")):
            raise UnknownModelError(
                f"{name}: no Python module {error.name} in the working directory or among the installed packages"
            ) from error
        raise SourceError(f"{name}: {path} imports {plain(error.name)}, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise SourceError(f"{name}: importing {path} failed ({type(error).__name__}: {reason(error)})") from error


def _called(name: str, function: Callable[[], object]) -> nn.Module:
    if isinstance(function, nn.Module):
        return function  # the module itself stands under the name
    try:
        with _working_directory_importable():
            built = function()
    except (Exception, SystemExit) as error:
        raise SourceError(
            f"{name}: the factory, called without arguments, raised {type(error).__name__}: {reason(error)}"
        ) from error
    if not isinstance(built, nn.Module):
        raise SourceError(f"{name}: the factory returned {type(built).__name__}, not a torch.nn.Module")
    return built


def _random(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """The factory's own initialisation, which must follow torch's generator to be called random."""
    built, again = build(), dict(build().named_parameters())
    for path, parameter in built.named_parameters():
        varies = parameter.dim() > 1 and bool((parameter != parameter.flatten()[0]).any())
        if varies and path in again and torch.equal(parameter, again[path]):
            raise WeightsError(
                f"{name}: the factory gives {plain(path)} the same values at every call, so they are not random; "
                "drop --weights random"
            )
    return built


def _stated_size(name: str, built: nn.Module, module: ModuleType) -> Size | None:
    size = getattr(built, "input_size", None)
    size = getattr(module, "input_size", None) if size is None else size
    if size is None:
        return None
    if isinstance(size, (tuple, list)) and all(isinstance(side, int) for side in size):
        return tuple(size)
    raise InputSizeError(
        f"{name}: its attribute input_size is {plain(size)}; make it a tuple such as (3, 224, 224), "
        "or give --input 3x224x224"
    )


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
