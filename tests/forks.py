"""Runs command lines, each in a fork of a process that has loaded the command line and no torch.

A fork's largest memory and processor time are those of its command alone, and a hundred of them take seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did. Units: seconds of the processor, bytes of resident memory."""

    code: int
    out: str
    error: str
    seconds: float
    bytes: int
    loaded_torch: bool


class Forks:
    """The process that forks; to be closed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *words: str) -> Outcome:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.communicate()


def _serve() -> None:
    from lipcheck import cli

    for line in sys.stdin:
        with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as error:
            child = os.fork()
            if child == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(error.fileno(), 2)
                code = cli.main(json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code + (100 if "torch" in sys.modules else 0))
            _, status, usage = os.wait4(child, 0)
            code = os.waitstatus_to_exitcode(status)
            told = {"code": code % 100, "loaded_torch": code >= 100, "seconds": usage.ru_utime + usage.ru_stime}
            for name, file in (("out", out), ("error", error)):
                file.seek(0)
                told[name] = file.read().decode("utf-8", "backslashreplace")
            print(json.dumps({**told, "bytes": usage.ru_maxrss * 1024}), flush=True)


if __name__ == "__main__":
    _serve()
