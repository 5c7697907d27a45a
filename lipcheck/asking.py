"""The options that every command about a model has, and the audit that they ask for.

No torch is loaded before a model is really audited.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from lipcheck import completion, options
from lipcheck.errors import LipcheckError, OutputError, UsageError

if TYPE_CHECKING:
    from lipcheck.report import Report
    from lipcheck.sources.targets import Target

MODEL, COMPUTING, SHOWING = "Model", "Computing", "Showing and writing"


def complete(values: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """What the shell may put in the place of an option's value, as typer asks for it."""

    def completed(incomplete: str) -> list[str]:
        return values(incomplete)

    return completed


def complete_paths() -> Callable[[str], list[str]]:
    """Files and folders."""
    return complete(lambda incomplete: list(completion.paths(incomplete)))


def file_option(
    *names: str,
    text: str = "The file; - for standard output.",
    panel: str = SHOWING,
    metavar: str = "FILE",
    shown: bool = True,
) -> Any:
    """An option that names a file; its default is `shown` in the help where there is one."""
    return typer.Option(
        *names,
        help=text,
        autocompletion=complete_paths(),
        rich_help_panel=panel,
        metavar=metavar,
        show_default=shown,
    )


# Options that more than one command has, each the same everywhere.
Weights = Annotated[
    str,
    typer.Option(
        help="pretrained, random, or a checkpoint: .safetensors, .pth.",
        autocompletion=complete(completion.weights),
        rich_help_panel=MODEL,
        metavar="WHICH",
    ),
]
Ema = Annotated[
    bool, typer.Option("--ema", help="Take a checkpoint's averaged weights.", rich_help_panel=MODEL, metavar="")
]
InputShape = Annotated[
    str | None, typer.Option(help="Shape of one input, like 3x224x224.", rich_help_panel=MODEL, metavar="SHAPE")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", min=1, rich_help_panel=COMPUTING, metavar="N")]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "--no-progress", "-q", help="No progress on stderr.", rich_help_panel=SHOWING, metavar=""),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show warnings and tracebacks.", rich_help_panel=SHOWING, metavar="")
]


@dataclass(frozen=True, slots=True)
class Limits:
    """Whether an audit has a process of its own, None for where its files ask for one, and what that may use."""

    wanted: bool | None
    memory: int | None
    seconds: float | None

    def apply(self, pickled: bool) -> bool:
        """Whether this audit is isolated.

        Errors: UsageError for limits that nothing keeps.
        """
        limited = self.memory is not None or self.seconds is not None
        if limited and self.wanted is False:
            raise UsageError("limits are kept in a process of its own; leave out --no-isolate")
        return bool(self.wanted) or limited or (self.wanted is None and pickled)


@dataclass(frozen=True, slots=True)
class Asked:
    """An audit as a command line asks for it."""

    model: str
    arguments: dict[str, Any]
    limits: Limits
    quiet: bool
    debug: bool

    def with_model(self, model: str) -> Asked:
        """The same audit of another model."""
        return replace(self, model=model, arguments=dict(self.arguments))

    def report(self) -> Report:
        """The audit. Its files are looked at before any library is loaded."""
        model, arguments = self.model, self.arguments
        meant = vetted(model, arguments["weights"], arguments["arch"], ema=arguments["ema"])
        if self.limits.apply(meant.pickled):
            from lipcheck.isolation import check_isolated

            return check_isolated(
                model,
                arguments,
                memory=self.limits.memory,
                seconds=self.limits.seconds,
                quiet=self.quiet,
                debug=self.debug,
            )

        def run(progress: Any) -> Report:
            from lipcheck.checking import check

            return check(model, progress=progress, **arguments)

        report: Report = quietly(run, quiet=self.quiet, debug=self.debug)
        return report


def vetted(model: str, weights: str, arch: str | None, *, ema: bool) -> Target:
    """What the words of a command line mean, its files looked at; no library is loaded.

    Errors: UsageError, SourceError and its kinds.
    """
    from lipcheck.sources.claims import vet_config
    from lipcheck.sources.targets import target
    from lipcheck.sources.vetting import vet, vet_alone

    meant = target(model, weights, arch)
    for path in meant.files:
        if path == meant.alone:
            vet_alone(path, ema=ema)
        else:
            vet(path)
    if meant.folder is not None:
        vet_config(meant.folder, meant.weights)
    return meant


def takes_model(command: Callable[..., int]) -> Callable[..., int]:
    """The command with a model and its options: it is called with an `Asked` and with its own options."""
    return _asking(command, _named)


def takes_options(command: Callable[..., int]) -> Callable[..., int]:
    """The command with the options of an audit, for models that its own arguments name."""
    return _asking(command, None)


def _asking(command: Callable[..., int], naming: Callable[..., None] | None) -> Callable[..., int]:
    named = [] if naming is None else _parameters(naming)
    shared, own = _parameters(_options), _parameters(command)[1:]

    @functools.wraps(command)
    def run(**given: Any) -> int:
        asked = _options(**{one.name: given[one.name] for one in shared})
        return command(asked.with_model(given.get("model", "")), **{one.name: given[one.name] for one in own})

    # Arguments stand in front of options, as a signature has to have them.
    ordered = sorted([*named, *shared, *own], key=lambda one: one.default is not one.empty)
    run.__signature__ = inspect.Signature(ordered, return_annotation=int)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in ordered}
    return run


@functools.cache
def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def _named(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete(completion.model_names),
            help="demo, a timm name (resnet50), torchvision:NAME, hf:ORG/NAME, a folder of transformers with its "
            "weights, package.module:function that builds a torch module, or a checkpoint: .safetensors, .pth, .onnx.",
            show_default=False,
        ),
    ],
) -> None:
    """The model of an audit."""


def _options(
    weights: Weights = "pretrained",
    arch: Annotated[
        str | None,
        typer.Option(
            help="The network that the checkpoint MODEL is of; none to bound its weights one by one.",
            autocompletion=complete(completion.model_names),
            rich_help_panel=MODEL,
            metavar="NAME",
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Audit what fits of a checkpoint.", rich_help_panel=MODEL, metavar=""),
    ] = False,
    ema: Ema = False,
    bn_eps: Annotated[
        float,
        typer.Option(
            help="Least eps of batch norms, where weights stand alone.", min=0, rich_help_panel=MODEL, metavar="X"
        ),
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(help="Of random weights and of all sampling.", min=0, rich_help_panel=MODEL, metavar="N")
    ] = 0,
    input: InputShape = None,
    domain: Annotated[
        str | None,
        typer.Option(
            help="Bound the network for inputs in box:LOW,HIGH (pixels) or ball:RADIUS@FILE only; "
            "`lipcheck explain domain`.",
            autocompletion=complete(completion.domains),
            rich_help_panel=MODEL,
            metavar="WHERE",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(help="Relative slack that the search may leave.", rich_help_panel=COMPUTING, metavar="X"),
    ] = 1e-3,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or cuda:0.", rich_help_panel=COMPUTING, metavar="WHERE"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="For the search of bounds, like 2GB.", rich_help_panel=COMPUTING, metavar="SIZE"),
    ] = None,
    threads: Threads = None,
    isolate: Annotated[
        bool | None,
        typer.Option(
            "--isolate/--no-isolate",
            help="In a process of its own, with limits; default for files of torch.save.",
            rich_help_panel=COMPUTING,
            metavar="",
        ),
    ] = None,
    isolate_memory: Annotated[
        str | None,
        typer.Option(
            help="Of that process, like 8GB; most of what is free.", rich_help_panel=COMPUTING, metavar="SIZE"
        ),
    ] = None,
    isolate_time: Annotated[
        str | None, typer.Option(help="Of that process, like 10min.", rich_help_panel=COMPUTING, metavar="TIME")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Further methods to compare, comma-separated: gram,lipbound; `lipcheck explain methods`.",
            autocompletion=complete(completion.methods),
            rich_help_panel=COMPUTING,
            metavar="A,B",
        ),
    ] = None,
    tight: Annotated[
        bool,
        typer.Option(
            "--tight",
            help="Take layers of small inputs to a finite method.",
            rich_help_panel=COMPUTING,
            metavar="",
        ),
    ] = False,
    time_budget: Annotated[
        str | None,
        typer.Option(help="Of --tight, estimated: 90s, 10min.", rich_help_panel=COMPUTING, metavar="TIME"),
    ] = None,
    no_plugins: Annotated[
        bool,
        typer.Option(
            "--no-plugins", help="Leave out rules of installed packages.", rich_help_panel=COMPUTING, metavar=""
        ),
    ] = False,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            help="Compute all bounds, keep none; `lipcheck cache info`.",
            rich_help_panel=COMPUTING,
            metavar="",
        ),
    ] = False,
    samples: Annotated[
        int,
        typer.Option(
            help="Inputs at which the network's lower bound is sought.",
            min=0,
            rich_help_panel=COMPUTING,
            metavar="N",
        ),
    ] = 2,
    heads: Annotated[
        bool,
        typer.Option("--heads", help="List attention's projections by head.", rich_help_panel=SHOWING, metavar=""),
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> Asked:
    """What is asked for, of a model that is named elsewhere."""
    if not 0 < tolerance < math.inf:
        raise UsageError(f"the tolerance is {tolerance}; give a positive number like 0.001")
    arguments = {
        "weights": weights,
        "seed": seed,
        "input_size": None if input is None else options.input_size(input),
        "device": None if device is None else options.device(device),
        "tolerance": tolerance,
        "memory": None if memory is None else options.memory(memory),
        "threads": threads,
        "samples": samples,
        "plugins": not no_plugins,
        "cache": not no_cache,
        "methods": () if method is None else options.methods(method),
        "domain": None if domain is None else options.domain(domain),
        "heads": heads,
        "tight": tight,
        "time_budget": None if time_budget is None else options.seconds(time_budget),
        "arch": arch,
        "partial": partial,
        "ema": ema,
        "bn_eps": bn_eps,
    }
    limits = Limits(
        isolate,
        None if isolate_memory is None else options.memory(isolate_memory),
        None if isolate_time is None else options.seconds(isolate_time),
    )
    return Asked("", arguments, limits, quiet, debug)


def quietly(run: Callable[[Any], Any], *, quiet: bool, debug: bool) -> Any:
    """What `run` returns, with whatever libraries print or warn kept away from standard output."""
    from lipcheck.progress import Display, Silent

    progress = Silent() if quiet else Display()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if isinstance(progress, Display):
            stack.enter_context(progress)
        if not debug:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        progress.stage("loading libraries")
        return run(progress)


def emit(write: Callable[[TextIO], object]) -> bool:
    """Write to standard output; a reader that went away (`| head`) ends the writing, False, and is no error."""
    try:
        write(sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"standard output cannot be written ({error.strerror})") from error
    return True


def width_of(out: TextIO) -> int:
    """The width of the terminal; in a file or a pipe COLUMNS, or what the report's table takes."""
    from lipcheck.renderers.terminal import WIDTH_OF_FILES

    if hasattr(out, "isatty") and out.isatty():
        return shutil.get_terminal_size().columns
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) > 0 else WIDTH_OF_FILES


def told(error: Exception, *, debug: bool = False) -> str:
    """The error in one line: what is wrong, and what to do."""
    if isinstance(error, LipcheckError):
        return str(error)
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return f"not enough memory ({name}); give a smaller --memory or --input, or another --device"
    advice = "" if debug else "; run it again with --debug for the traceback"
    return f"this is a bug in lipcheck: {name}: {error}{advice}"
