"""The whole command, from the shell's point of view: wall clock and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class CommandRun:
    """What was run, as one would type it. Units: seconds, bytes."""

    typed: str
    seconds: float
    peak: int


def run_command(arguments: list[str]) -> CommandRun:
    """`lipcheck` with these arguments, in a process of its own, nothing taken from its cache.

    The kernel counts what the parent holds when it starts a child among the child's peak, so run this first.
    Errors: RuntimeError with the command's last words where it fails.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    with tempfile.TemporaryFile() as words:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "lipcheck", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "LIPCHECK_NO_CACHE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=words,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        typed = " ".join(["lipcheck", *arguments])
        if process.returncode:
            words.seek(0)
            last = words.read().decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"{typed} ended with {process.returncode}: {last[0]}")
    # Kibibytes on Linux, bytes on macOS.
    return CommandRun(typed, seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
