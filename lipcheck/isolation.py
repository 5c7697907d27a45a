"""An audit in a process of its own, with limits on its memory and its time: what a hostile file can take is bounded.

The process reads its task from standard input and writes a report, or what went wrong, to standard output. What it
shows of its progress goes to standard error, as that of an audit in this process does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Mapping
from typing import Any

from lipcheck import errors
from lipcheck.errors import LipcheckError
from lipcheck.report import Report

MEMORY_SHARE = 0.8  # of the memory that is free, where no limit is given
# What torch and the dynamic loader say where memory is refused.
_SHORT = ("can't allocate memory", "not enough memory", "failed to map segment", "Cannot allocate memory")


class IsolationError(LipcheckError):
    """The process ended before the audit did: at a limit, or by a crash."""


def check_isolated(
    model: str,
    arguments: Mapping[str, Any],
    *,
    memory: int | None,
    seconds: float | None,
    quiet: bool,
    debug: bool,
) -> Report:
    """What `check(model, **arguments)` returns, computed by another process.

    Units:  `memory` in bytes of data, by default most of what is free; `seconds` of wall time, without end by default.
    Errors: those of `check`; IsolationError where the process met a limit or crashed.
    """
    task = {"model": model, "arguments": dict(arguments), "memory": memory, "quiet": quiet, "debug": debug}
    process = subprocess.Popen(
        [sys.executable, "-m", "lipcheck.isolation"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        answer, _ = process.communicate(json.dumps(task), timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise IsolationError(f"{model}: the audit took over {seconds:g} s; raise --isolate-time") from error
    finally:
        _end(process)
    return _read(model, answer, process.returncode)


def _end(process: subprocess.Popen[str]) -> None:
    """No process of the session is left."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        process.wait()


def _read(model: str, answer: str, code: int) -> Report:
    try:
        found = json.loads(answer)
    except ValueError as error:
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        raise IsolationError(
            f"{model}: the audit ended {how}, as a process does without memory; raise --isolate-memory"
        ) from error
    if "report" in found:
        return Report.from_dict(found["report"])
    if found["error"] in ("MemoryError", "OutOfMemoryError"):
        raise IsolationError(f"{model}: the audit took more memory than it may; raise --isolate-memory")
    kind = getattr(errors, found["error"], None)
    if isinstance(kind, type) and issubclass(kind, LipcheckError):
        raise kind(found["message"])
    raise RuntimeError(f"{found['error']}: {found['message']}")


# In the other process


def _limit(memory: int | None) -> None:
    """No more than so many bytes of data from now on, where the system has such limits."""
    try:
        import resource
    except ImportError:
        return
    if memory is None:
        from lipcheck.sources.memory import available_memory

        memory = int(available_memory() * MEMORY_SHARE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def main() -> None:
    """Read a task, and write its answer."""
    answering = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    task = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        if not str(task["arguments"].get("device") or "").startswith("cuda"):
            _limit(task["memory"])
        answer = {"report": _audited(task).to_dict()}
    except Exception as error:
        if task["debug"]:
            traceback.print_exc()
        text = str(error)
        short = isinstance(error, MemoryError) or any(sign in text for sign in _SHORT)
        answer = {"error": "MemoryError" if short else type(error).__name__, "message": text}
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        json.dump(answer, answering)
        answering.close()


def _audited(task: Mapping[str, Any]) -> Report:
    from lipcheck.progress import Display, Silent

    arguments: Any = {
        name: tuple(value) if isinstance(value, list) else value for name, value in task["arguments"].items()
    }
    progress = Silent() if task["quiet"] else Display()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if isinstance(progress, Display):
            stack.enter_context(progress)
        if not task["debug"]:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        progress.stage("loading libraries")
        from lipcheck.checking import check

        return check(task["model"], progress=progress, **arguments)


if __name__ == "__main__":
    main()
