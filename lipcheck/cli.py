"""The command line: parse, call `check`, print. No torch is loaded before a model is really audited."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from lipcheck import completion, options
from lipcheck.errors import LipcheckError, OutputError, UnknownModelError, UsageError
from lipcheck.explain import TOPICS, explain, overview, reflow
from lipcheck.text import clean

if TYPE_CHECKING:
    from lipcheck.report import Report

_AUDIT = "MODEL"  # the command that a line without a command's name means
_EVERYWHERE = ("--help", "-h", "--version")
_HELPING = "lipcheck.helping"
# What the parser says of a line, in our words.
_REWORDED = {
    r"^Invalid value for '(--[\w-]+)': Input should be greater than or equal to (\S+)$": r"\1 takes numbers from \2 on",
    r"^Invalid value for '(--[\w-]+)': Input should be a valid integer.*": r"\1 takes a whole number",
    r"^Invalid value for '(--[\w-]+)': Input should be a valid number.*": r"\1 takes a number",
    r"^No such command '(.*)'$": r"no command called \1; `lipcheck --help` lists them",
    r"^Got unexpected extra argument\(?s?\)? \((.*)\)$": r"unexpected extra argument: \1",
    r"^Option '(--[\w-]+)' requires an argument$": r"\1 takes a value; `lipcheck --help` tells which",
}


class ModelOrCommand(TyperGroup):
    """A group whose first word may also be a model or an option: then the line is an audit of that model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What is left after the group's own options, an audit named as such."""
        if not args and not ctx.resilient_parsing:
            raise UsageError("no model is named; try `lipcheck demo`, or `lipcheck --help`")
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in self.commands and args[0].partition("=")[0] not in own:
            asked = [word for word in args if word in _EVERYWHERE]
            args = asked[:1] or [_AUDIT, *args]
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """The group's own options; on the help page behind those of the audit."""
        own: list[Any] = [*super().get_params(ctx)]
        if not ctx.meta.get(_HELPING):
            return own
        for parameter in own:
            parameter.rich_help_panel = "General"
        return [*self.commands[_AUDIT].params, *own]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The line under "Usage"."""
        return ["MODEL [OPTIONS]  or  lipcheck COMMAND"]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """One page with the audit's options, the general ones and the commands."""
        ctx.meta[_HELPING] = True
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands and general options, and what may stand in their place: models and the audit's options."""
        audited = self.commands[_AUDIT]
        with audited.make_context(_AUDIT, [], parent=ctx, resilient_parsing=True) as inner:
            further = audited.shell_complete(inner, incomplete)
            if not incomplete.startswith("-"):
                further += audited.params[0].shell_complete(inner, incomplete)
        return [*super().shell_complete(ctx, incomplete), *further]


_EPILOG = """\
Examples:

  lipcheck demo

  lipcheck resnet50 --sort share --top 10

  lipcheck torchvision:resnet18 --json report.json

  lipcheck resnet50 --weights random --input 3x160x160

  lipcheck model.safetensors

  lipcheck checkpoint.pth --arch resnet50

  lipcheck vit_tiny_patch16_224 --domain box:0,1

  lipcheck mypackage.models:build --input 1x28x28 --weights model.safetensors

Exit codes: 0 done; 1 `verify` found a bound not proved; 2 wrong usage or no model; 3 infinite with --require-finite."""

app = typer.Typer(
    cls=ModelOrCommand,
    help="Bound, with proof, how strongly a neural network can amplify a change of its input.",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        _emit(lambda out: print(f"lipcheck {_version()}", file=out))
        raise typer.Exit


@app.callback()
def general(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.", metavar=""),
    ] = False,
) -> None:
    """Bound, with proof, how strongly a neural network can amplify a change of its input."""


_MODEL = "Model"
_COMPUTING = "Computing"
_SHOWING = "Showing and writing"


def _complete(values: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return values(incomplete)

    return complete


def _sorts(incomplete: str) -> list[str]:
    from lipcheck.renderers.describe import SORTS

    return [name for name in SORTS if name.startswith(incomplete)]


@app.command(_AUDIT, hidden=True)
def audit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=_complete(completion.model_names),
            help="demo, a timm name (resnet50), torchvision:NAME, hf:ORG/NAME, a folder of transformers with its "
            "weights, package.module:function that builds a torch module, or a checkpoint: .safetensors, .pth, .onnx.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        str,
        typer.Option(
            help="pretrained, random, or a checkpoint: .safetensors, .pth.",
            autocompletion=_complete(completion.weights),
            rich_help_panel=_MODEL,
            metavar="WHICH",
        ),
    ] = "pretrained",
    arch: Annotated[
        str | None,
        typer.Option(
            help="The network that the checkpoint MODEL is of; none to bound its weights one by one.",
            autocompletion=_complete(completion.model_names),
            rich_help_panel=_MODEL,
            metavar="NAME",
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Audit what fits of a checkpoint.", rich_help_panel=_MODEL, metavar=""),
    ] = False,
    ema: Annotated[
        bool,
        typer.Option("--ema", help="Take a checkpoint's averaged weights.", rich_help_panel=_MODEL, metavar=""),
    ] = False,
    bn_eps: Annotated[
        float,
        typer.Option(
            help="Least eps of batch norms, where weights stand alone.", min=0, rich_help_panel=_MODEL, metavar="X"
        ),
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(help="Of random weights and of all sampling.", min=0, rich_help_panel=_MODEL, metavar="N")
    ] = 0,
    input: Annotated[
        str | None,
        typer.Option(help="Shape of one input, like 3x224x224.", rich_help_panel=_MODEL, metavar="SHAPE"),
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            help="Bound the network for inputs in box:LOW,HIGH (pixels) or ball:RADIUS@FILE only; "
            "`lipcheck explain domain`.",
            autocompletion=_complete(completion.domains),
            rich_help_panel=_MODEL,
            metavar="WHERE",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(help="Relative slack that the search may leave.", rich_help_panel=_COMPUTING, metavar="X"),
    ] = 1e-3,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or cuda:0.", rich_help_panel=_COMPUTING, metavar="WHERE"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="For the search of bounds, like 2GB.", rich_help_panel=_COMPUTING, metavar="SIZE"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads.", min=1, rich_help_panel=_COMPUTING, metavar="N")
    ] = None,
    isolate: Annotated[
        bool | None,
        typer.Option(
            "--isolate/--no-isolate",
            help="In a process of its own, with limits; default for files of torch.save.",
            rich_help_panel=_COMPUTING,
            metavar="",
        ),
    ] = None,
    isolate_memory: Annotated[
        str | None,
        typer.Option(
            help="Of that process, like 8GB; most of what is free.", rich_help_panel=_COMPUTING, metavar="SIZE"
        ),
    ] = None,
    isolate_time: Annotated[
        str | None, typer.Option(help="Of that process, like 10min.", rich_help_panel=_COMPUTING, metavar="TIME")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Further methods to compare, comma-separated: gram,lipbound; `lipcheck explain methods`.",
            autocompletion=_complete(completion.methods),
            rich_help_panel=_COMPUTING,
            metavar="A,B",
        ),
    ] = None,
    tight: Annotated[
        bool,
        typer.Option(
            "--tight",
            help="Take layers of small inputs to a finite method.",
            rich_help_panel=_COMPUTING,
            metavar="",
        ),
    ] = False,
    time_budget: Annotated[
        str | None,
        typer.Option(help="Of --tight, estimated: 90s, 10min.", rich_help_panel=_COMPUTING, metavar="TIME"),
    ] = None,
    no_plugins: Annotated[
        bool,
        typer.Option(
            "--no-plugins", help="Leave out rules of installed packages.", rich_help_panel=_COMPUTING, metavar=""
        ),
    ] = False,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            help="Compute all bounds, keep none; `lipcheck cache info`.",
            rich_help_panel=_COMPUTING,
            metavar="",
        ),
    ] = False,
    samples: Annotated[
        int,
        typer.Option(
            help="Inputs at which the network's lower bound is sought.",
            min=0,
            rich_help_panel=_COMPUTING,
            metavar="N",
        ),
    ] = 2,
    sort: Annotated[
        str,
        typer.Option(
            help="Order of layers: network, name, lower, upper, slack, merged, share.",
            autocompletion=_sorts,
            rich_help_panel=_SHOWING,
            metavar="BY",
        ),
    ] = "network",
    top: Annotated[
        int | None, typer.Option(help="Show only the first N layers.", min=1, rich_help_panel=_SHOWING, metavar="N")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Show only layers like this: 'layer4.*'.", rich_help_panel=_SHOWING, metavar="GLOB"),
    ] = None,
    heads: Annotated[
        bool,
        typer.Option("--heads", help="List attention's projections by head.", rich_help_panel=_SHOWING, metavar=""),
    ] = False,
    json: Annotated[
        str | None,
        typer.Option(
            help="Write everything as JSON; - for standard output, which then has nothing else.",
            autocompletion=_complete(lambda incomplete: list(completion.paths(incomplete))),
            rich_help_panel=_SHOWING,
            metavar="FILE",
        ),
    ] = None,
    certificate: Annotated[
        str | None,
        typer.Option(
            help="Write the bounds' proofs, for `lipcheck verify`.",
            autocompletion=_complete(lambda incomplete: list(completion.paths(incomplete))),
            rich_help_panel=_SHOWING,
            metavar="FILE",
        ),
    ] = None,
    require_finite: Annotated[
        bool,
        typer.Option(
            "--require-finite",
            help="Exit with 3 when the network's bound is infinite.",
            rich_help_panel=_SHOWING,
            metavar="",
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "--no-progress", "-q", help="No progress on stderr.", rich_help_panel=_SHOWING, metavar=""
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show warnings and tracebacks.", rich_help_panel=_SHOWING, metavar="")
    ] = False,
) -> int:
    """Audit a model; 3 when its bound has to be finite and is not."""
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
    limits = _Limits(
        isolate,
        None if isolate_memory is None else options.memory(isolate_memory),
        None if isolate_time is None else options.seconds(isolate_time),
    )
    from lipcheck.renderers import describe, files

    describe.check_choice(sort, top)
    if json not in (None, "-"):
        files.check_writable(Path(json))
    if certificate is not None:
        _check_certificate(certificate, json)
        arguments["certificate"] = certificate
    report = _checked(model, arguments, limits, quiet=quiet, debug=debug)
    if json == "-":
        _emit(lambda out: print(report.to_json(), file=out))
    else:
        if json is not None:
            files.write_atomically(Path(json), report.to_json() + "\n")
        from lipcheck.renderers import terminal

        _emit(lambda out: terminal.print_report(report, file=out, sort=sort, top=top, layers=layers))
    if require_finite and not report.network.claimed:
        _say(f"no bound on the network is claimed: {report.network.reason}")
        return 3
    if require_finite and report.network.log10_upper == math.inf:
        _say(f"the network's bound is infinite: {report.network.reason or 'an operation has none'}")
        return 3
    return 0


@app.command("verify")
def verify_certificate(
    certificate: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            autocompletion=_complete(lambda incomplete: list(completion.paths(incomplete))),
            help="What --certificate wrote.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=_complete(completion.model_names),
            help="The model that it is about, as for an audit.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Default: as in the certificate.", autocompletion=_complete(completion.weights), metavar="WHICH"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: as in the certificate.", min=0, metavar="N")] = None,
    input: Annotated[str | None, typer.Option(help="Default: as in the certificate.", metavar="SHAPE")] = None,
    arb: Annotated[
        bool, typer.Option("--arb", help="Check small matrices in ball arithmetic (python-flint).", metavar="")
    ] = False,
    arb_side: Annotated[
        int, typer.Option("--arb-side", help="Largest side of a small matrix.", min=1, metavar="N")
    ] = 64,
    memory: Annotated[str | None, typer.Option(help="For the largest matrix, like 8GB.", metavar="SIZE")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1, metavar="N")] = None,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Leave out rules of installed packages, as the audit did.", metavar="")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "--no-progress", "-q", help="No progress on stderr.", metavar="")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show warnings and tracebacks.", metavar="")] = False,
) -> int:
    """Check a certificate's proofs against a model's weights; 1 when a bound is not proved."""
    arguments: dict[str, Any] = {
        "weights": weights,
        "seed": seed,
        "input_size": None if input is None else options.input_size(input),
        "arb": arb,
        "arb_side": arb_side,
        "memory": None if memory is None else options.memory(memory),
        "threads": threads,
        "plugins": not no_plugins,
    }

    def run(progress: Any) -> Any:
        from lipcheck.verifying import verify

        return verify(certificate, model, progress=progress, **arguments)

    found = _quietly(run, quiet=quiet, debug=debug)
    from lipcheck.renderers import verdicts

    _emit(lambda out: out.write(verdicts.text(found)))
    return 0 if found.ok else 1


@app.command("coverage")
def coverage(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATTERN]...",
            autocompletion=_complete(completion.zoo_names),
            help="Which models: 'resnet*' (of timm), 'torchvision:*', 'transformers:bert'; all without one.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Keep the records here, as JSON lines.",
            autocompletion=_complete(lambda incomplete: list(completion.paths(incomplete))),
            metavar="FILE",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what --output holds already.", metavar="")
    ] = False,
    markdown: Annotated[
        str | None,
        typer.Option(
            help="Write a page like docs/coverage.md.",
            autocompletion=_complete(lambda incomplete: list(completion.paths(incomplete))),
            metavar="FILE",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Models at a time, a process and a core each.", min=1, metavar="N")] = 1,
    limit: Annotated[str, typer.Option("--time-limit", help="For one model.", metavar="TIME")] = "10min",
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Leave out rules of installed packages.", metavar="")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "--no-progress", "-q", help="No progress on stderr.", metavar="")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show warnings and tracebacks.", metavar="")] = False,
) -> int:
    """Tell which models of timm, torchvision and transformers have a bound, without their weights."""
    from lipcheck.renderers import files

    seconds = options.seconds(limit)
    if seconds < 1:
        raise UsageError(f"the time limit is {clean(limit)}; give at least a second, like 10min")
    if resume and output is None:
        raise UsageError("--resume goes on with what --output FILE holds; give --output as well")
    for path in (output, markdown):
        if path is not None:
            files.check_writable(Path(path))

    def run(progress: Any) -> Any:
        from lipcheck.coverage import survey
        from lipcheck.sources import zoo

        names = zoo.matching(patterns or [])
        return survey(
            names,
            versions={"lipcheck": _version(), **zoo.versions()},
            jobs=jobs,
            limit=seconds,
            plugins=not no_plugins,
            output=None if output is None else Path(output),
            resume=resume,
            progress=progress,
        )

    found = _quietly(run, quiet=quiet, debug=debug)
    from lipcheck.renderers import coverage as pages

    if markdown is not None:
        words = " ".join(shlex.quote(word) for word in patterns or [])
        files.write_atomically(Path(markdown), pages.markdown(found, f"lipcheck coverage {words}".strip()))
    # As wide as the terminal; in a file or a pipe COLUMNS, or what the audit's table takes.
    _emit(lambda out: out.write(pages.text(found, shutil.get_terminal_size((160, 24)).columns)))
    return 130 if len(found.records) < found.wanted else 0


def _check_certificate(path: str, json: str | None) -> None:
    """Refuses, before the audit, a place where no certificate can be put."""
    from lipcheck.renderers import files

    if not path or path == "-":
        raise UsageError("a certificate is a binary file; give --certificate the name of one")
    if Path(path).exists() and not Path(path).is_file():
        raise OutputError(f"{clean(path)} is no regular file; name a file for the certificate")
    if json not in (None, "-") and os.path.realpath(str(json)) == os.path.realpath(path):
        raise UsageError(f"--json and --certificate both name {clean(path)}; give each its own file")
    files.check_writable(Path(path))


_cache = typer.Typer(help="Tell of the bounds that audits keep for later ones, or remove them.")
app.add_typer(_cache, name="cache")


@_cache.callback(invoke_without_command=True)
def cache_command(context: typer.Context) -> None:
    """Tell of the bounds that audits keep for later ones, or remove them; without a command as `info`."""
    if context.invoked_subcommand is None:
        cache_info()


@_cache.command("info")
def cache_info() -> int:
    """Tell where the cache is and what it holds."""
    contents = _opened_cache().contents()
    size = f"{contents.size / 1e6:.1f} MB of at most {contents.most / 1e6:.0f} MB"
    _emit(
        lambda out: print(f"folder  {clean(str(contents.folder))}\nbounds  {contents.rows}\nsize    {size}", file=out)
    )
    if contents.problem:
        raise UsageError(f"the cache cannot be used: {contents.problem}")
    return 0


@_cache.command("clear")
def cache_clear() -> int:
    """Remove all bounds from the cache."""
    cache = _opened_cache()
    removed = cache.clear()
    if cache.problem:
        raise OutputError(f"the cache in {clean(str(cache.folder))} cannot be cleared: {cache.problem}")
    _emit(lambda out: print(f"{removed} bound{'' if removed == 1 else 's'} removed", file=out))
    return 0


def _opened_cache() -> Any:
    """The user's cache, whether or not audits are told to use it."""
    try:
        from lipcheck import cache
    except ImportError as error:
        raise UsageError("there is no cache: sqlite3 is missing in this Python") from error
    return cache.Cache(cache.folder())


@app.command("explain")
def explain_topic(
    topic: Annotated[
        str | None,
        typer.Argument(
            autocompletion=_complete(lambda incomplete: [name for name in TOPICS if name.startswith(incomplete)]),
            metavar="[TOPIC]",
            help="What to explain; without it, the topics.",
        ),
    ] = None,
) -> None:
    """Tell what a number of the report means and which theorem gives it."""
    text = overview() if topic is None else reflow(explain(topic), min(100, shutil.get_terminal_size().columns))
    _emit(lambda out: out.write(text))


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of what --json writes."""
    from importlib.resources import files

    text = files("lipcheck").joinpath("schema.json").read_text(encoding="utf-8")
    _emit(lambda out: out.write(text))


@dataclass(frozen=True, slots=True)
class _Limits:
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


def _checked(model: str, arguments: dict[str, Any], limits: _Limits, *, quiet: bool, debug: bool) -> Report:
    """The audit. Its files are looked at before any library is loaded."""
    from lipcheck.sources.claims import vet_config
    from lipcheck.sources.targets import target
    from lipcheck.sources.vetting import vet, vet_alone

    meant = target(model, arguments["weights"], arguments["arch"])
    for path in meant.files:
        if path == meant.alone:
            vet_alone(path, ema=arguments["ema"])
        else:
            vet(path)
    if meant.folder is not None:
        vet_config(meant.folder, meant.weights)
    if limits.apply(meant.pickled):
        from lipcheck.isolation import check_isolated

        return check_isolated(model, arguments, memory=limits.memory, seconds=limits.seconds, quiet=quiet, debug=debug)

    def run(progress: Any) -> Report:
        from lipcheck.checking import check

        return check(model, progress=progress, **arguments)

    report: Report = _quietly(run, quiet=quiet, debug=debug)
    return report


def _quietly(run: Callable[[Any], Any], *, quiet: bool, debug: bool) -> Any:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; every failure is one line on standard error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        result = typer.main.get_command(app).main(args=given, prog_name="lipcheck", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        return _interrupted() if code == 130 else code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        _say(_told(error, given))
        return 2


def _told(error: Exception, given: Sequence[str]) -> str:
    """The error in one line: what is wrong, and what to do."""
    if isinstance(error, UnknownModelError):
        return f"{error}{_nearest_command(given)}"
    if isinstance(error, LipcheckError):
        return str(error)
    if hasattr(error, "format_message"):  # what typer raises on a line that it cannot parse
        return _told_usage(error, given)
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return f"not enough memory ({name}); give a smaller --memory or --input, or another --device"
    advice = "" if "--debug" in given else "; run it again with --debug for the traceback"
    return f"this is a bug in lipcheck: {name}: {error}{advice}"


def _told_usage(error: Any, given: Sequence[str]) -> str:
    option = getattr(error, "option_name", "")
    possible = getattr(error, "possibilities", None)
    if possible is not None:
        near = get_close_matches(option, possible, n=1)
        return f"no option called {option}; " + (f"did you mean {near[0]}?" if near else "`lipcheck --help` lists them")
    message = " ".join(str(error.format_message()).split()).rstrip(".")
    for pattern, ours in _REWORDED.items():
        message = re.sub(pattern, ours, message)
    return f"{message}{_nearest_command(given)}" if "unexpected extra" in message else message


def _nearest_command(given: Sequence[str]) -> str:
    first = next((word for word in given if not word.startswith("-")), "")
    near = get_close_matches(first, ("cache", "coverage", "explain", "schema", "verify"), n=1, cutoff=0.7)
    return f"; or did you mean `lipcheck {near[0]}`?" if near and first != near[0] else ""


def _say(message: str) -> None:
    print(f"lipcheck: error: {clean(message)}", file=sys.stderr)


def _interrupted() -> int:
    print("lipcheck: interrupted", file=sys.stderr)
    return 130


def _emit(write: Callable[[TextIO], object]) -> None:
    """Write to standard output; a reader that went away (`| head`) ends the writing and is no error."""
    try:
        write(sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"standard output cannot be written ({error.strerror})") from error


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lipcheck")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
