"""`lipcheck rescale`: a model's weights scaled down until every layer's certified norm is at most a number."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipcheck import completion, options
from lipcheck.asking import (
    MODEL,
    SHOWING,
    Debug,
    Ema,
    InputShape,
    Quiet,
    Threads,
    Weights,
    complete,
    emit,
    file_option,
    quietly,
    vetted,
    width_of,
)
from lipcheck.errors import OutputError, UsageError
from lipcheck.text import clean

if TYPE_CHECKING:
    from torch import nn

    from lipcheck.bound import Bound
    from lipcheck.sources import LoadedModel
    from lipcheck.sources.targets import Target

_SUFFIX = ".safetensors"
_UNLIMITED = sys.float_info.max


def register(app: typer.Typer) -> None:
    """The command becomes one of the program."""
    app.command("rescale")(rescale)


def rescale(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete(completion.model_names),
            help="As for an audit, with weights.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        file_option("--output", "-o", text="The file for the weights, a .safetensors.", shown=False),
    ],
    max_norm: Annotated[
        float,
        typer.Option(help="What no layer's norm may be above.", rich_help_panel="Rescaling", metavar="X"),
    ] = 1.0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is there.", rich_help_panel=SHOWING, metavar="")
    ] = False,
    weights: Weights = "pretrained",
    arch: Annotated[
        str | None,
        typer.Option(
            help="The network that the checkpoint MODEL is of.",
            autocompletion=complete(completion.model_names),
            rich_help_panel=MODEL,
            metavar="NAME",
        ),
    ] = None,
    ema: Ema = False,
    seed: Annotated[int, typer.Option(help="Of random weights.", min=0, rich_help_panel=MODEL, metavar="N")] = 0,
    input: InputShape = None,
    threads: Threads = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Scale a model's weights down until every layer's certified norm is at most --max-norm, and write them."""
    from lipcheck.renderers import files, rescaled

    if not 0 < max_norm < math.inf:
        raise UsageError(f"the largest norm is {max_norm}; give a positive number like 1.0")
    path = _writable(output, force=force)
    files.check_writable(path)
    size = None if input is None else options.input_size(input)
    meant = vetted(model, weights, arch, ema=ema)
    if meant.alone is not None:
        raise UsageError(f"{clean(model)}: weights alone do not say how they are applied; give --arch NAME")

    def run(progress: Any) -> tuple[dict[str, Bound], dict[str, Bound]]:
        from lipcheck.opening import with_threads

        with with_threads(threads):
            return _rescaled(meant, path, max_norm, progress, seed=seed, size=size, ema=ema)

    before, after = quietly(run, quiet=quiet, debug=debug)
    # A path in a line to type again; a name that a shell would take apart is quoted.
    again = f"lipcheck {shlex.quote(clean(str(path)))} --arch {shlex.quote(clean(meant.model))}"
    again += "" if input is None else f" --input {shlex.quote(clean(input))}"

    def show(out: Any) -> None:
        out.write(rescaled.text(before, after, max_norm, width_of(out)))
        out.write(f"{clean(str(path))} written; audit it with: {again}\n")

    emit(show)
    return 0


def _writable(output: str, *, force: bool) -> Path:
    """The file for the weights.

    Errors: UsageError, OutputError where there is a file already.
    """
    path = Path(output).expanduser()
    if path.suffix != _SUFFIX:
        raise UsageError(f"{clean(output)}: the weights are written as safetensors; name a file that ends in {_SUFFIX}")
    if path.exists() and not force:
        raise OutputError(f"{clean(output)} is there already; give --force to replace it, or -o with another file")
    return path


def _rescaled(
    meant: Target, path: Path, max_norm: float, progress: Any, *, seed: int, size: tuple[int, ...] | None, ema: bool
) -> tuple[dict[str, Bound], dict[str, Bound]]:
    """What the layers' bounds were and are; the file holds the rescaled weights."""
    from lipcheck.opening import open_model
    from lipcheck.renderers import files
    from lipcheck.training import rescale_

    progress.stage("loading the model")
    loaded = open_model(meant.model, None, meant.weights, seed, size, ema=ema)
    network, prefix = _positional(loaded)
    progress.stage("bounding the layers")
    before = rescale_(network, _UNLIMITED, inputs=loaded.example)
    progress.stage("rescaling the layers")
    after = rescale_(network, max_norm, inputs=loaded.example)
    progress.stage("writing the weights")
    files.write_atomically(path, _serialised(loaded, max_norm))
    return _named(before, prefix), _named(after, prefix)


def _named(bounds: dict[str, Bound], prefix: str) -> dict[str, Bound]:
    return {name.removeprefix(prefix): bound for name, bound in bounds.items()}


def _positional(loaded: LoadedModel) -> tuple[nn.Module, str]:
    """The network as one that takes its input by position, and what that puts in front of its layers' names."""
    if not loaded.keyword:
        return loaded.module, ""
    from torch import Tensor, nn

    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = loaded.module

        def forward(self, x: Tensor) -> Any:
            return self.module(**{loaded.keyword: x})

    return ByKeyword().eval(), "module."


def _serialised(loaded: LoadedModel, max_norm: float) -> bytes:
    """The module's state as a safetensors file, each tensor with numbers of its own."""
    from safetensors.torch import save

    from lipcheck.checking import version
    from lipcheck.sources.weights import tensors_of

    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors_of(loaded.module).items()}
    told = {"model": loaded.name, "weights": loaded.weights, "max_norm": repr(max_norm)}
    data: bytes = save(tensors, metadata={"format": "pt", "lipcheck": version(), **told})
    return data
