"""`lipcheck watch`: the checkpoints of a training run audited as they come, and the course of their bounds."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import sleep, time
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from lipcheck import options
from lipcheck.asking import Asked, complete_paths, emit, file_option, takes_options, told, width_of
from lipcheck.errors import InputSizeError, MissingExtraError, UnknownModelError, UsageError
from lipcheck.text import clean

if TYPE_CHECKING:
    from lipcheck.course import Point
    from lipcheck.report import Report
    from lipcheck.sources.runs import Saved, Stamp

_SETTLED = 30.0  # seconds after which a file that nobody wrote to is taken as whole at the first look
_PAUSE = 1.0  # seconds between the two looks at a younger one
_BUDGET = "a budget is for the network's bound, and none is claimed of weights alone; give --arch NAME"


def register(app: typer.Typer) -> None:
    """The command becomes one of the program."""
    app.command("watch")(watch)


@takes_options
def watch(
    asked: Asked,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_DIR",
            autocompletion=complete_paths(),
            help="The folder that training writes its checkpoints to.",
            show_default=False,
        ),
    ],
    once: Annotated[
        bool,
        typer.Option("--once", help="Audit what is there, and end.", rich_help_panel="Watching", metavar=""),
    ] = False,
    interval: Annotated[
        str,
        typer.Option(help="Between two looks at the folder.", rich_help_panel="Watching", metavar="TIME"),
    ] = "10s",
    fail_above: Annotated[
        float | None,
        typer.Option(
            help="End with 1 at a checkpoint whose certified bound is over 10 to this power.",
            rich_help_panel="Watching",
            metavar="LOG10",
        ),
    ] = None,
    json: Annotated[
        str | None,
        file_option(
            text="Write a line of JSON for each checkpoint; - for standard output, which then has nothing else."
        ),
    ] = None,
    csv: Annotated[
        str | None,
        file_option(text="The same as a table."),
    ] = None,
) -> int:
    """Audit each new checkpoint of a training run, and draw the course of its bounds; Ctrl-C ends it."""
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{clean(run)}: no such folder; name the one that training writes its checkpoints to")
    if asked.arguments["weights"] != "pretrained":
        raise UsageError("the weights are those of the checkpoints; leave out --weights")
    if fail_above is not None and math.isnan(fail_above):
        raise UsageError("--fail-above takes a power of ten, like 6.5")
    pause = options.seconds(interval)
    if pause <= 0:
        raise UsageError(f"the interval is {clean(interval)}; give a time like 10s")
    if json == csv == "-":
        raise UsageError("--json and --csv both take standard output; give one of them a file")
    with contextlib.ExitStack() as stack:
        told_to = [stack.enter_context(_records(kind, file)) for kind, file in (("json", json), ("csv", csv)) if file]
        shown = stack.enter_context(_shown(folder, asked, nothing="-" in (json, csv), live=not once))
        course = _Course(asked, fail_above, [*told_to, shown.add])
        try:
            return _once(folder, course, shown) if once else _follow(folder, course, shown, pause)
        except KeyboardInterrupt:
            if once:
                raise
            return 0
        except _UnreadError:
            return 0


def _once(folder: Path, course: _Course, shown: _Shown) -> int:
    """All checkpoints that are there, each one that is being written as soon as that is done."""
    waiting = Waiting(folder)
    saved, left = waiting.look()
    if not saved and not left:
        raise UsageError(
            f"{clean(str(folder))}: holds no checkpoint; those that are known end in .safetensors, .pt, .pth, .ckpt or "
            ".pth.tar, or are folders like checkpoint-500"
        )
    over = False
    while saved or left:
        for one in saved:
            over |= course.audit(one, waiting, shown)
        if left:
            shown.waiting(f"waiting until {clean(left[0].name)} is written")
            sleep(_PAUSE)
        saved, left = waiting.look()
    return 1 if over else 3 if course.missed else 0


def _follow(folder: Path, course: _Course, shown: _Shown, pause: float) -> int:
    """Every checkpoint as it comes, until one is over the budget, nobody reads any more, or the user ends it."""
    waiting = Waiting(folder)
    while True:
        saved, left = waiting.look()
        for one in saved:
            if course.audit(one, waiting, shown):
                return 1
        if not saved:
            shown.waiting(f"waiting for checkpoints in {clean(str(folder))}; Ctrl-C ends")
            sleep(min(pause, _PAUSE) if left else pause)


class Waiting:
    """Which checkpoints of a run are still to be audited, and which of them are whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[Stamp] = set()
        self.seen: dict[Path, Stamp] = {}

    def look(self) -> tuple[list[Saved], list[Saved]]:
        """The new checkpoints that are whole, in the order of training, and those that may still be written to.

        One is whole when it is the same at two looks, or when nobody has written to it for a while.
        """
        from lipcheck.sources.runs import checkpoints

        new = [one for one in checkpoints(self.folder) if one.stamp not in self.done]
        whole = [one for one in new if self.seen.get(one.path) == one.stamp or time() - one.written > _SETTLED]
        self.seen = {one.path: one.stamp for one in new}
        return whole, [one for one in new if one not in whole]

    def keeps(self, one: Saved) -> bool:
        """Whether the checkpoint is still what it was at the last look; then it is done with."""
        from lipcheck.sources.runs import stamp_of

        now = stamp_of(one.path)
        if now is None or now == one.stamp:
            self.done.add(one.stamp)
            return True
        return False


class _Course:
    """The audits of a run so far."""

    def __init__(self, asked: Asked, budget: float | None, told_to: Sequence[Callable[[Point], None]]) -> None:
        self.asked = asked
        self.budget = budget
        self.told_to = told_to
        self.last: Report | None = None
        self.missed = False  # whether some checkpoint could not be audited

    def audit(self, saved: Saved, waiting: Waiting, shown: _Shown) -> bool:
        """Audits one checkpoint, tells of it, and says whether it is over the budget.

        What is written anew meanwhile is not told of, but audited again later.
        Errors: those that every other checkpoint would meet too.
        """
        from lipcheck import course

        shown.auditing(saved.name)
        model = _written(saved.path)
        try:
            report = shown.quieted(self.asked).with_model(model).report()
        except (UsageError, MissingExtraError, InputSizeError):
            raise
        except Exception as error:
            if isinstance(error, UnknownModelError) and self.asked.arguments["arch"] is not None:
                raise
            if waiting.keeps(saved):
                gone = "it was removed before it could be read"
                problem = told(error).removeprefix(f"{model}: ") if saved.path.exists() else gone
                self.missed = True
                self._tell(course.Point(saved.name, saved.step, problem=problem))
            return False
        if not waiting.keeps(saved):
            return False
        if self.budget is not None and not report.network.claimed:
            raise UsageError(_BUDGET)
        self._tell(course.point(saved.name, saved.step, report, self.last))
        self.last = report
        return self.budget is not None and report.network.log10_upper > self.budget

    def _tell(self, one: Point) -> None:
        for tell in self.told_to:
            tell(one)


class _Shown:
    """What people see: a row for each checkpoint as it comes, and the chart of all of them at the end.

    On a terminal the chart stands below the rows all the time, with what is being done.
    """

    def __init__(self, out: TextIO | None, names: Sequence[str], *, live: bool) -> None:
        self.out = out
        self.names = list(names)
        self.live: Any = None
        self.points: list[Point] = []
        if live and out is not None:
            from rich.console import Console
            from rich.live import Live

            self.live = Live(
                console=Console(file=out, highlight=False, markup=False), transient=True, redirect_stdout=False
            )
            self.live.start()

    def quieted(self, asked: Asked) -> Asked:
        """The same audit, without a display of its own where there is one already."""
        return asked if self.live is None else replace(asked, quiet=True)

    def auditing(self, name: str) -> None:
        """A checkpoint is being audited."""
        self._status(f"auditing {clean(name)}")

    def waiting(self, why: str) -> None:
        """There is nothing to do."""
        self._status(why)

    def add(self, one: Point) -> None:
        """A row for one more checkpoint."""
        from lipcheck.renderers import course

        width = self._width()
        self.names.append(one.name)
        names = course.name_width(self.names, width)
        if not self.points:
            self._print(course.heading(names, claimed=one.claimed or bool(one.problem)))
        before = next((other for other in reversed(self.points) if not other.problem), None)
        self._print(course.row(one, before, names, width))
        self.points.append(one)

    def close(self) -> None:
        """The chart, once there will be no more rows."""
        from rich.text import Text

        from lipcheck.renderers import course

        if self.live is not None:
            self.live.stop()
            self.live = None
        for line in [Text(), *course.summary(self.points, self._width())] if self.points else []:
            self._print(line)

    def _status(self, words: str) -> None:
        if self.live is None:
            return
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.text import Text

        from lipcheck.renderers import course

        chart = [Text(), *course.summary(self.points, self._width())] if self.points else []
        self.live.update(Group(*chart, Spinner("dots", Text(words, style="dim"))), refresh=True)

    def _print(self, line: Any) -> None:
        from lipcheck.renderers.terminal import print_lines

        if self.live is not None:
            self.live.console.print(line, crop=False)
        elif self.out is not None:
            _told(lambda out: print_lines([line], file=out, width=self._width()))

    def _width(self) -> int:
        return width_of(self.out or sys.stdout)


@contextlib.contextmanager
def _shown(folder: Path, asked: Asked, *, nothing: bool, live: bool) -> Iterator[_Shown]:
    """The display; nothing is shown where standard output belongs to a program."""
    from lipcheck.sources.runs import checkpoints

    terminal = sys.stdout.isatty() and not asked.quiet and not asked.debug
    names = [one.name for one in checkpoints(folder)]
    shown = _Shown(None if nothing else sys.stdout, names, live=live and terminal)
    try:
        yield shown
    finally:
        shown.close()


@contextlib.contextmanager
def _records(kind: str, file: str) -> Iterator[Callable[[Point], None]]:
    """A function that writes a checkpoint's line, each at once."""
    from lipcheck.renderers import course_records, files

    line = course_records.json_line if kind == "json" else course_records.csv_line
    heading = "" if kind == "json" else course_records.csv_heading()
    if file == "-":
        _told(lambda out: out.write(heading))
        yield lambda one: _told(lambda out: out.write(line(one)))
        return
    path = Path(file).expanduser()
    files.check_writable(path)
    with path.open("w", encoding="utf-8", newline="") as written:

        def write(text: str) -> None:
            written.write(text)
            written.flush()

        write(heading)
        yield lambda one: write(line(one))


class _UnreadError(Exception):
    """Nobody reads standard output any more."""


def _told(write: Callable[[TextIO], object]) -> None:
    if not emit(write):
        raise _UnreadError


def _written(path: Path) -> str:
    """A path as it cannot be taken for a model's name."""
    return str(path) if path.is_absolute() else f"./{path}"
