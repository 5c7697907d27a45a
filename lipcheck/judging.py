"""The commands of a team's pipeline: an audit that says yes or no, the files it is judged by, two reports compared."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipcheck.asking import (
    SHOWING,
    Asked,
    complete,
    complete_paths,
    emit,
    file_option,
    takes_model,
    takes_options,
    width_of,
)
from lipcheck.errors import OutputError, UsageError
from lipcheck.text import clean

if TYPE_CHECKING:
    from lipcheck.policy import Policy
    from lipcheck.renderers.outputs import Output
    from lipcheck.report import Report

# What a layer may rise by against a baseline where no policy says it.
_USUAL_INCREASE = 0.05


def register(app: typer.Typer) -> None:
    """The commands become those of the program."""
    app.command("audit")(audit)
    app.command("init")(init)
    app.command("baseline")(baseline)
    app.command("diff")(diff)
    app.command("policy")(policy_command)


def _formats(incomplete: str) -> list[str]:
    from lipcheck.renderers.outputs import FORMATS

    return _outputs(incomplete, FORMATS)


def _formats_of_differences(incomplete: str) -> list[str]:
    from lipcheck.renderers.outputs import DIFFERENCES

    return _outputs(incomplete, DIFFERENCES)


def _outputs(incomplete: str, formats: Iterable[str]) -> list[str]:
    """KIND: as far as it is written, then the files behind it."""
    from lipcheck import completion

    kind, colon, start = incomplete.partition(":")
    if colon:
        return [f"{kind}:{path}" for path in completion.paths(start)]
    return [f"{name}:" for name in formats if name.startswith(incomplete)]


@takes_model
def audit(
    asked: Asked,
    policy: Annotated[
        str | None,
        file_option(
            text="The policy; by default lipcheck.toml or [tool.lipcheck] of pyproject.toml, here or above.",
            panel="Judging",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        file_option(
            text="A report of an earlier release, to judge increases against; by default the policy's.",
            panel="Judging",
            metavar="REPORT",
        ),
    ] = None,
    exit_zero: Annotated[
        bool,
        typer.Option("--exit-zero", help="Exit with 0 whatever the verdict is.", rich_help_panel="Judging", metavar=""),
    ] = False,
    output: Annotated[
        list[str] | None,
        typer.Option(
            help="Write a format into a file, as often as wanted: json, csv, markdown, junit, sarif, html, svg, png; "
            "html:report.html. With - as one file standard output has nothing else.",
            autocompletion=complete(_formats),
            rich_help_panel=SHOWING,
            metavar="KIND:FILE",
        ),
    ] = None,
    svg: Annotated[
        str | None,
        file_option(text="Write the main chart as SVG."),
    ] = None,
    png: Annotated[
        str | None,
        file_option(text="Write the main chart as PNG."),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(help="Order of layers, as without `audit`.", rich_help_panel=SHOWING, metavar="BY"),
    ] = "network",
    top: Annotated[
        int | None, typer.Option(help="Show only the first N layers.", min=1, rich_help_panel=SHOWING, metavar="N")
    ] = None,
) -> int:
    """Audit a model and judge it by a policy: 0 passed, 1 violated, 3 incomplete or not proven."""
    from lipcheck.policy import judge
    from lipcheck.renderers import describe, github, terminal
    from lipcheck.renderers import judgement as verdict
    from lipcheck.renderers.outputs import read_outputs, write

    describe.check_choice(sort, top)
    charts = [f"{kind}:{file}" for kind, file in (("svg", svg), ("png", png)) if file is not None]
    outputs = read_outputs([*(output or []), *charts])
    rules = _policy(policy, wanted=baseline is None)
    # The wish of the command line is one of whoever runs it now.
    earlier = baseline or rules.baseline
    against = None if not earlier else read_report(Path(earlier))
    if against is not None and not rules.judges_increases:
        rules = replace(rules, max_layer_increase=_USUAL_INCREASE)
    report = asked.report()
    judged = judge(report, rules, against)
    for one in outputs:
        write(one, report, judged, _print)
    if not _alone(outputs):

        def show(out: Any) -> None:
            terminal.print_report(report, file=out, sort=sort, top=top)
            out.write("\n" + verdict.text(judged, width_of(out)))

        emit(_unheard(show) if os.environ.get("GITHUB_ACTIONS") == "true" else show)
    if _alone(outputs):
        github.emit(report, judged, os.environ, sys.stderr)
    else:
        emit(lambda out: github.emit(report, judged, os.environ, out))
    return 0 if exit_zero else judged.exit_code


def _unheard(show: Callable[[Any], None]) -> Callable[[Any], None]:
    """The same, so that GitHub obeys nothing in it: a layer may have the name of a workflow command."""
    token = secrets.token_hex(16)

    def between(out: Any) -> None:
        out.write(f"::stop-commands::{token}\n")
        show(out)
        out.write(f"\n::{token}::\n")

    return between


def _print(content: str) -> None:
    emit(lambda out: out.write(content))


def _alone(outputs: Sequence[Output]) -> bool:
    """Whether one of them goes to standard output, which then has nothing else."""
    return any(one.path is None for one in outputs)


def _policy(file: str | None, *, wanted: bool) -> Policy:
    """The policy that is named, or found from here; where none is wanted, one for a baseline alone."""
    from lipcheck.policy import Policy
    from lipcheck.policy_file import read_policy

    path = _policyfile_option(file)
    if path is not None:
        return read_policy(path)
    if wanted:
        raise UsageError(
            "there is no policy here; write one with `lipcheck init MODEL`, or give --policy FILE or --baseline REPORT"
        )
    return Policy(max_layer_increase=_USUAL_INCREASE)


def _policyfile_option(file: str | None) -> Path | None:
    """The policy's file that is named, or the one found from here."""
    from lipcheck.policy_file import find_policy

    return Path(file).expanduser() if file is not None else find_policy(Path.cwd())


def policy_command(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            autocompletion=complete_paths(),
            help="The policy; by default lipcheck.toml or [tool.lipcheck] of pyproject.toml, here or above.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Check a policy by itself, without a model; 2 with a line for each fault."""
    from lipcheck.policy_file import faults, read_policy

    path = _policyfile_option(file)
    if path is None:
        raise UsageError("there is no policy here; write one with `lipcheck init MODEL`, or name a file")
    shown = clean(str(path))
    found = faults(path)
    for fault in found:
        print(f"lipcheck: error: {shown}: {fault}", file=sys.stderr)
    if found:
        return 2
    policy = read_policy(path)
    budgets, waivers = len(policy.layers), len(policy.waivers)
    emit(lambda out: print(f"{shown} is a policy: budgets for layers {budgets}, waivers {waivers}", file=out))
    return 0


def read_report(path: Path) -> Report:
    """The report in a file.

    Errors: UsageError with the file's name and the reason.
    """
    from lipcheck.report import Report

    try:
        return Report.from_json(path.expanduser().read_bytes())
    except OSError as error:
        raise UsageError(
            f"{clean(str(path))}: {error.strerror}; write a report with `lipcheck baseline MODEL -o FILE`"
        ) from error
    except UsageError as error:
        raise UsageError(f"{clean(str(path))}: {error}") from error


@takes_model
def init(
    asked: Asked,
    output: Annotated[
        str,
        file_option(
            "--output",
            "-o",
            text="The file; - for standard output. For pyproject.toml a section to put there is printed.",
        ),
    ] = "lipcheck.toml",
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a file that is there.", rich_help_panel=SHOWING, metavar=""),
    ] = False,
) -> int:
    """Write a commented policy from a model's present figures, with headroom."""
    from lipcheck.policy_file import PROJECT, first_policy
    from lipcheck.renderers import files

    project = Path(output).name == PROJECT
    written = output != "-" and not project
    if written:
        if Path(output).exists() and not force:
            raise OutputError(f"{clean(output)} is there already; give --force to replace it, or -o with another file")
        files.check_writable(Path(output))
    text = first_policy(asked.report(), _line(), project=project)
    if written:
        files.write_atomically(Path(output), text)
        emit(lambda out: print(f"{clean(output)} written; judge by it with: lipcheck audit MODEL", file=out))
    else:
        emit(lambda out: out.write(text))
    return 0


def _line() -> str:
    """The command line, as it can be given again."""
    return " ".join(["lipcheck", *map(shlex.quote, sys.argv[1:])])


@takes_model
def baseline(
    asked: Asked,
    output: Annotated[
        str,
        file_option("--output", "-o"),
    ] = "baseline.json",
) -> int:
    """Write a model's report, for later audits to be judged against."""
    from lipcheck.renderers import files

    if output != "-":
        files.check_writable(Path(output))
    report = asked.report()
    if output == "-":
        emit(lambda out: print(report.to_json(), file=out))
        return 0
    files.write_atomically(Path(output), report.to_json() + "\n")
    file = clean(output)
    told = f"{file} written, with {len(report.layers)} layers; audit against it with --baseline {file}"
    emit(lambda out: print(told, file=out))
    return 0


@takes_options
def diff(
    asked: Asked,
    before: Annotated[
        str,
        typer.Argument(
            metavar="A", autocompletion=complete_paths(), help="A report, a checkpoint or a model.", show_default=False
        ),
    ],
    after: Annotated[
        str,
        typer.Argument(metavar="B", autocompletion=complete_paths(), help="The later one.", show_default=False),
    ],
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="Exit with 1 when a layer's norm has surely risen by more, like +5%.",
            rich_help_panel=SHOWING,
            metavar="RISE",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="List unchanged layers too.", rich_help_panel=SHOWING, metavar="")
    ] = False,
    output: Annotated[
        list[str] | None,
        typer.Option(
            help="Write a format into a file, as often as wanted: json, markdown; markdown:changes.md. With - as one "
            "file standard output has nothing else.",
            autocompletion=complete(_formats_of_differences),
            rich_help_panel=SHOWING,
            metavar="KIND:FILE",
        ),
    ] = None,
) -> int:
    """Compare two reports, checkpoints or models, layer by layer; 1 when one rose by more than --fail-on."""
    from lipcheck.diff import compare
    from lipcheck.policy_file import percent
    from lipcheck.renderers import changes
    from lipcheck.renderers.outputs import DIFFERENCES, put, read_outputs

    limit = None if fail_on is None else percent(fail_on)
    outputs = read_outputs(output or [], DIFFERENCES)
    # What cannot be opened is told before the first audit is under way.
    read = [_report_in(word) for word in (before, after)]
    reports = [report or asked.with_model(word).report() for word, report in zip((before, after), read, strict=True)]
    found = compare(*reports)
    for one in outputs:
        put(one, DIFFERENCES[one.kind](found, every), _print)
    if not _alone(outputs):
        emit(lambda out: out.write(changes.text(found, width_of(out), every=every)))
    if limit is None:
        return 0
    risen = [change for change in found.layers if change.least_rise > limit]
    if not risen:
        return 0
    first = clean(risen[0].layer) or "(model)"
    more = f" and {len(risen) - 1} more" if len(risen) > 1 else ""
    print(f"lipcheck: {first}{more} rose by more than {clean(str(fail_on))}", file=sys.stderr)
    return 1


def _report_in(word: str) -> Report | None:
    """The report in a JSON file; None for what is a checkpoint or a model."""
    from lipcheck.sources.shards import INDEX_SUFFIX

    path = Path(word).expanduser()
    if path.suffix == ".json" and not path.name.endswith(INDEX_SUFFIX):
        return read_report(path)
    return None
