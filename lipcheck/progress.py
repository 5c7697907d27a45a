"""Where a long computation tells how far it is: a protocol, the silent version, and one that people watch."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from lipcheck.text import clean

if TYPE_CHECKING:
    from rich.progress import TaskID


class Progress(Protocol):
    """Told of each stage's start and of the work done in it."""

    def stage(self, name: str, total: float | None = None) -> None:
        """A new stage begins; the one before it is done. `total` is its work in any unit, None if unknown."""

    def advance(self, work: float) -> None:
        """So much of the present stage's total is done."""

    def announce(self, text: str) -> None:
        """Something to know before it begins, such as what it will cost: a line that stays."""


class Silent:
    """Says nothing."""

    def stage(self, name: str, total: float | None = None) -> None:
        pass

    def advance(self, work: float) -> None:
        pass

    def announce(self, text: str) -> None:
        pass


class Display:
    """A line on standard error with the stage, a bar, the time it took and the time left; gone when closed.

    Where standard error is no terminal it only announces. Use it as a context manager.
    """

    def __init__(self) -> None:
        self._bars: Any = None
        self._task: TaskID | None = None

    def __enter__(self) -> Display:
        if sys.stderr is None or not sys.stderr.isatty():
            return self
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None

    def stage(self, name: str, total: float | None = None) -> None:
        """The line shows this stage; a total of None shows a bar that only says that something goes on."""
        if self._bars is None:
            return
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(clean(name), total=total)

    def announce(self, text: str) -> None:
        """A line on standard error, terminal or not."""
        if self._bars is not None:
            self._bars.console.print(clean(text), markup=False, highlight=False)
        elif sys.stderr is not None:
            print(clean(text), file=sys.stderr, flush=True)

    def advance(self, work: float) -> None:
        """The bar moves on by `work`."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, work)


@dataclass
class Clock:
    """Seconds of each stage, told to the progress display as they begin."""

    display: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    _running: tuple[str, float] | None = None

    def stage(self, name: str, total: float | None = None) -> None:
        self.stop()
        self._running = (name, time.perf_counter())
        self.display.stage(name, total)

    def stop(self) -> None:
        if self._running is not None:
            name, begun = self._running
            self.seconds[name] = round(time.perf_counter() - begun, 3)
            self._running = None

    def advance(self, work: float) -> None:
        self.display.advance(work)

    def announce(self, text: str) -> None:
        self.display.announce(text)
