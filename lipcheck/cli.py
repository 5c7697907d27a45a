"""The command line: parse, call `check`, print. No torch is loaded before a model is really audited."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lipcheck import completion, judging, options, rescaling, watching
from lipcheck.asking import SHOWING, Asked, complete, complete_paths, emit, quietly, takes_model, told
from lipcheck.errors import OutputError, UnknownModelError, UsageError
from lipcheck.explain import TOPICS, explain, overview, reflow
from lipcheck.text import clean

if TYPE_CHECKING:
    pass

_AUDIT = "MODEL"  # the command that a line without a command's name means
_COMMANDS = (
    "audit",
    "baseline",
    "cache",
    "coverage",
    "diff",
    "explain",
    "init",
    "policy",
    "rescale",
    "schema",
    "verify",
    "watch",
)
_EVERYWHERE = ("--help", "-h", "--version")
_HELPING = "lipcheck.helping"
# What the parser says of a line, in our words.
_REWORDED = {
    r"^Invalid value for '(--[\w-]+)': Input should be greater than or equal to (\S+)$": r"\1 takes numbers from \2 on",
    r"^Invalid value for '(--[\w-]+)': Input should be a valid integer.*": r"\1 takes a whole number",
    r"^Invalid value for '(--[\w-]+)': Input should be a valid number.*": r"\1 takes a number",
    r"^No such command '(.*)'$": r"no command called \1; `lipcheck --help` lists them",
    r"^Got unexpected extra argument\(?s?\)? \((.*)\)$": r"unexpected extra argument: \1",
    r"^Missing argument '(.*)'$": r"\1 is missing; `lipcheck --help` tells what a line takes",
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

Exit codes: 0 done; 1 a budget violated, a rise over --fail-on, a bound that `verify` finds not proved; 2 wrong usage or
no model; 3 an audit that is incomplete, infinite with --require-finite."""

app = typer.Typer(
    cls=ModelOrCommand,
    help="Bound, with proof, how strongly a neural network can amplify a change of its input.",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        emit(lambda out: print(f"lipcheck {_version()}", file=out))
        raise typer.Exit


@app.callback()
def general(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.", metavar=""),
    ] = False,
) -> None:
    """Bound, with proof, how strongly a neural network can amplify a change of its input."""


def _sorts(incomplete: str) -> list[str]:
    from lipcheck.renderers.describe import SORTS

    return [name for name in SORTS if name.startswith(incomplete)]


@app.command(_AUDIT, hidden=True)
@takes_model
def audit(
    asked: Asked,
    sort: Annotated[
        str,
        typer.Option(
            help="Order of layers: network, name, lower, upper, slack, merged, share.",
            autocompletion=_sorts,
            rich_help_panel=SHOWING,
            metavar="BY",
        ),
    ] = "network",
    top: Annotated[
        int | None, typer.Option(help="Show only the first N layers.", min=1, rich_help_panel=SHOWING, metavar="N")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Show only layers like this: 'layer4.*'.", rich_help_panel=SHOWING, metavar="GLOB"),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(
            help="Write everything as JSON; - for standard output, which then has nothing else.",
            autocompletion=complete_paths(),
            rich_help_panel=SHOWING,
            metavar="FILE",
        ),
    ] = None,
    certificate: Annotated[
        str | None,
        typer.Option(
            help="Write the bounds' proofs, for `lipcheck verify`.",
            autocompletion=complete_paths(),
            rich_help_panel=SHOWING,
            metavar="FILE",
        ),
    ] = None,
    require_finite: Annotated[
        bool,
        typer.Option(
            "--require-finite",
            help="Exit with 3 when the network's bound is infinite.",
            rich_help_panel=SHOWING,
            metavar="",
        ),
    ] = False,
) -> int:
    """Audit a model; 3 when its bound has to be finite and is not."""
    from lipcheck.renderers import describe, files

    describe.check_choice(sort, top)
    if json not in (None, "-"):
        files.check_writable(Path(json))
    if certificate is not None:
        _check_certificate(certificate, json)
        asked.arguments["certificate"] = certificate
    report = asked.report()
    if json == "-":
        emit(lambda out: print(report.to_json(), file=out))
    else:
        if json is not None:
            files.write_atomically(Path(json), report.to_json() + "\n")
        from lipcheck.renderers import terminal

        emit(lambda out: terminal.print_report(report, file=out, sort=sort, top=top, layers=layers))
    if require_finite and not report.network.claimed:
        _say(f"no bound on the network is claimed: {report.network.reason}")
        return 3
    if require_finite and report.network.log10_upper == math.inf:
        _say(f"the network's bound is infinite: {report.network.reason or 'an operation has none'}")
        return 3
    return 0


judging.register(app)
rescaling.register(app)
watching.register(app)


@app.command("verify")
def verify_certificate(
    certificate: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            autocompletion=complete_paths(),
            help="What --certificate wrote.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete(completion.model_names),
            help="The model that it is about, as for an audit.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Default: as in the certificate.", autocompletion=complete(completion.weights), metavar="WHICH"
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

    found = quietly(run, quiet=quiet, debug=debug)
    from lipcheck.renderers import verdicts

    emit(lambda out: out.write(verdicts.text(found)))
    return 0 if found.ok else 1


@app.command("coverage")
def coverage(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATTERN]...",
            autocompletion=complete(completion.zoo_names),
            help="Which models: 'resnet*' (of timm), 'torchvision:*', 'transformers:bert'; all without one.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Keep the records here, as JSON lines.",
            autocompletion=complete_paths(),
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
            autocompletion=complete_paths(),
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

    found = quietly(run, quiet=quiet, debug=debug)
    from lipcheck.renderers import coverage as pages

    if markdown is not None:
        words = " ".join(shlex.quote(word) for word in patterns or [])
        files.write_atomically(Path(markdown), pages.markdown(found, f"lipcheck coverage {words}".strip()))
    # As wide as the terminal; in a file or a pipe COLUMNS, or what the audit's table takes.
    emit(lambda out: out.write(pages.text(found, shutil.get_terminal_size((160, 24)).columns)))
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
    emit(lambda out: print(f"folder  {clean(str(contents.folder))}\nbounds  {contents.rows}\nsize    {size}", file=out))
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
    emit(lambda out: print(f"{removed} bound{'' if removed == 1 else 's'} removed", file=out))
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
            autocompletion=complete(lambda incomplete: [name for name in TOPICS if name.startswith(incomplete)]),
            metavar="[TOPIC]",
            help="What to explain; without it, the topics.",
        ),
    ] = None,
) -> None:
    """Tell what a number of the report means and which theorem gives it."""
    text = overview() if topic is None else reflow(explain(topic), min(100, shutil.get_terminal_size().columns))
    emit(lambda out: out.write(text))


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of what --json writes."""
    from importlib.resources import files

    text = files("lipcheck").joinpath("schema.json").read_text(encoding="utf-8")
    emit(lambda out: out.write(text))


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
    if hasattr(error, "format_message"):  # what typer raises on a line that it cannot parse
        return _told_usage(error, given)
    return told(error, debug="--debug" in given)


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
    near = get_close_matches(first, _COMMANDS, n=1, cutoff=0.7)
    return f"; or did you mean `lipcheck {near[0]}`?" if near and first != near[0] else ""


def _say(message: str) -> None:
    print(f"lipcheck: error: {clean(message)}", file=sys.stderr)


def _interrupted() -> int:
    print("lipcheck: interrupted", file=sys.stderr)
    return 130


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lipcheck")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
