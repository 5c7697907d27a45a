"""Which models of the libraries have a bound: a record for each, made in child processes, kept in a file of JSON lines.

A model that takes too long, or that takes its process with it, costs its own record and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lipcheck.errors import LipcheckError, OutputError, UsageError
from lipcheck.progress import Progress, Silent
from lipcheck.text import clean

# What a verdict means, the best first. `lipcheck.structure` gives the first four.
VERDICTS = {
    "global": "finite on the whole space",
    "domain": "finite on a bounded domain",
    "infinite": "infinite on every domain",
    "no rule": "has operations without a rule",
    "not captured": "could not be built or captured",
    "error": "fails in lipcheck",
    "unfinished": "took too long or too much memory",
}
FINITE = ("global", "domain")
CAPTURED = (*FINITE, "infinite")
_TRIED_AGAIN = ("error", "unfinished")
_MODELS_PER_PROCESS = 40  # the exporter's caches grow
_TOLD_EVERY = 60.0  # seconds
_CHILD = "import sys; sys.path[:] = {path!r}; from lipcheck.coverage import serve; serve({plugins!r})"


@dataclass(frozen=True, slots=True)
class Record:
    """What covering one model came to.

    `reasons` are pairs of an operation and why it has no constant; for a model that is finite on a domain, those that
    need it; where there is no graph, the one reason, without an operation. `missing` are operations without a rule.
    """

    name: str
    verdict: str
    nodes: int = 0  # operations that depend on the input
    reasons: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def reason(self) -> str:
        """The first reason for people, "" where there is none."""
        if not self.reasons:
            return ""
        op, why = self.reasons[0]
        more = f" (and {len(self.reasons) - 1} more)" if len(self.reasons) > 1 else ""
        return f"{op}: {why}{more}" if op else why


@dataclass(frozen=True, slots=True)
class Survey:
    """The records of a run, in the order of the names, and what they were made with."""

    records: tuple[Record, ...]
    wanted: int  # models that matched
    versions: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()  # plugins that could not be used

    @property
    def counts(self) -> dict[str, int]:
        """How many models have each verdict; all verdicts, the best first."""
        found = Counter(record.verdict for record in self.records)
        return {verdict: found[verdict] for verdict in VERDICTS}


def cover(name: str, *, plugins: bool = True) -> Record:
    """The record of one model, made here: built without weights, exported, its rules looked up, its ranges followed."""
    from lipcheck.plugins import gather
    from lipcheck.skeleton import skeleton
    from lipcheck.sources.zoo import bare
    from lipcheck.structure import structure

    begun = time.perf_counter()
    try:
        book = gather(plugins=plugins)
        model = bare(name)
        exported = skeleton(model.module, model.example, keyword=model.keyword, known=book.table)
        found = structure(exported, book.table)
        record = Record(name, found.verdict, found.nodes, found.reasons, found.missing)
    except LipcheckError as error:
        record = Record(name, "not captured", reasons=(("", clean(str(error))),))
    except Exception as error:  # a rule or a map that does not survive a strange model: its record says so
        lines = str(error).strip().splitlines() or [""]
        record = Record(name, "error", reasons=(("", clean(f"{type(error).__name__}: {lines[0][:200]}")),))
    return replace(record, seconds=round(time.perf_counter() - begun, 2))


def survey(
    names: Sequence[str],
    *,
    versions: Mapping[str, str],
    jobs: int = 1,
    limit: float = 600.0,
    plugins: bool = True,
    output: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Survey:
    """The records of all the named models; those that are done where it is interrupted.

    `output` names a file for the records, written as they come. With `resume`, those that it holds already are kept,
    but for models that took too long or failed in lipcheck.
    Units: `limit` is in seconds, for one model. Errors: UsageError, OutputError.
    """
    progress = progress or Silent()
    ledger = _Ledger(output, versions, resume=resume)
    records = {name: ledger.known[name] for name in names if name in ledger.known}
    todo = [name for name in names if name not in records]
    if records:
        progress.announce(f"{len(records)} of {len(names)} models are in {output} already")
    progress.stage(f"covering {len(todo)} models", float(len(todo)))
    told = time.monotonic()
    with contextlib.closing(_run(todo, jobs, limit, plugins)) as run, contextlib.suppress(KeyboardInterrupt):
        for record in run:
            records[record.name] = record
            ledger.add(record)
            progress.advance(1.0)
            if time.monotonic() - told > _TOLD_EVERY:
                told = time.monotonic()
                progress.announce(f"{len(records)} of {len(names)} models, the last {record.name}: {record.verdict}")
    done = tuple(records[name] for name in names if name in records)
    return Survey(done, len(names), dict(versions), _problems(plugins))


def _problems(plugins: bool) -> tuple[str, ...]:
    from lipcheck.plugins import gather

    return gather(plugins=plugins).problems


class _Ledger:
    """The file of records: a line with versions, then one for each model."""

    def __init__(self, path: Path | None, versions: Mapping[str, str], *, resume: bool) -> None:
        self.path = path
        self.known: dict[str, Record] = {}
        if path is None:
            return
        if resume and path.exists():
            self._read(path, versions)
        elif path.exists():
            raise UsageError(f"{clean(str(path))} is there already; give --resume to go on with it, or another file")
        # Written anew: a line that an interruption cut off is gone, and so is what will be tried again.
        lines = [json.dumps({"versions": dict(versions)}), *(_line(record) for record in self.known.values())]
        self._write(path, "".join(f"{line}\n" for line in lines), "w")

    def add(self, record: Record) -> None:
        if self.path is not None:
            self._write(self.path, f"{_line(record)}\n", "a")

    def _read(self, path: Path, versions: Mapping[str, str]) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{clean(str(path))} cannot be read ({type(error).__name__}); give another file"
            ) from error
        documents = [_document(line) for line in lines]
        if lines and "versions" not in (documents[0] or {}):
            raise UsageError(f"{clean(str(path))} holds no records of lipcheck coverage; give another file")
        met = documents[0]["versions"] if documents and documents[0] else dict(versions)
        if met != dict(versions):
            changed = [name for name in {*met, *versions} if met.get(name) != versions.get(name)]
            raise UsageError(
                f"{clean(str(path))} was written with another version of {', '.join(sorted(map(clean, changed)))}; "
                "give another file"
            )
        records = [record for document in documents[1:] if (record := _record(document)) is not None]
        self.known = {record.name: record for record in records if record.verdict not in _TRIED_AGAIN}

    def _write(self, path: Path, text: str, mode: str) -> None:
        try:
            with path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise OutputError(
                f"{clean(str(path))} cannot be written ({error.strerror}); choose another file"
            ) from error


def _line(record: Record) -> str:
    return json.dumps(asdict(record))


def _document(line: str) -> Any:
    """What a line of JSON holds, None where it holds none, as one that was cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _record(document: Any) -> Record | None:
    """The record that a document holds, None where it holds none."""
    try:
        reasons = tuple((str(op), str(why)) for op, why in document["reasons"])
        missing = tuple(map(str, document["missing"]))
        numbers = int(document["nodes"]), float(document["seconds"])
        name, verdict = str(document["name"]), str(document["verdict"])
    except (KeyError, TypeError, ValueError):
        return None
    return Record(name, verdict, numbers[0], reasons, missing, numbers[1]) if verdict in VERDICTS else None


def _run(names: Sequence[str], jobs: int, limit: float, plugins: bool) -> Generator[Record, None, None]:
    """Records as they are made, in any order, by so many child processes."""
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        todo.put(name)
    done: queue.SimpleQueue[Record | BaseException] = queue.SimpleQueue()
    children = [_Child(limit, plugins) for _ in range(min(jobs, len(names)))]
    threads = [threading.Thread(target=_work, args=(child, todo, done), daemon=True) for child in children]
    for thread in threads:
        thread.start()
    try:
        for _ in names:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        for child in children:
            child.close()
        for thread in threads:
            thread.join(10)
        for child in children:
            child.end()


def _work(child: _Child, todo: queue.SimpleQueue[str], done: queue.SimpleQueue[Record | BaseException]) -> None:
    """One child's share of the names."""
    with contextlib.suppress(queue.Empty):
        while not child.closed:
            name = todo.get_nowait()
            try:
                done.put(child.cover(name))
            except Exception as error:
                done.put(error)
                return


class _Child:
    """A process that covers models, one after the other; a new one where it died or grew old."""

    def __init__(self, limit: float, plugins: bool) -> None:
        self.limit, self.plugins = limit, plugins
        self.process: subprocess.Popen[str] | None = None
        self.covered = 0
        self.closed = False

    def cover(self, name: str) -> Record:
        """The record of one model, whatever happens to the process.

        Errors: LipcheckError where no process can be had.
        """
        process = self._alive()
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        begun = time.monotonic()
        timer = threading.Timer(self.limit, expire)
        timer.start()
        try:
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        finally:
            timer.cancel()
        self.covered += 1
        record = _record(_document(answer))
        if record is not None:
            return record
        self.end()
        why = f"took longer than {self.limit:g} s" if expired.is_set() else f"its process ended ({process.returncode})"
        return Record(name, "unfinished", reasons=(("", why),), seconds=round(time.monotonic() - begun, 2))

    def _alive(self) -> subprocess.Popen[str]:
        if self.process is not None and self.covered < _MODELS_PER_PROCESS:
            return self.process
        self.end()
        command = [sys.executable, "-c", _CHILD.format(path=sys.path, plugins=self.plugins)]
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        # A group of its own: an interruption is the parent's to see, which ends its children.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            encoding="utf-8", env=environment, start_new_session=True,
        )  # fmt: skip
        self.covered = 0
        assert self.process.stdout is not None
        # The libraries' own loading does not count against the first model's time.
        if self.process.stdout.readline().strip() != "ready" and not self.closed:
            self.end()
            raise LipcheckError("a process that covers models could not be started; try `lipcheck coverage --jobs 1`")
        return self.process

    def end(self) -> None:
        """The process, if there is one, is no more."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def close(self) -> None:
        """No further model; what is being covered is given up."""
        self.closed = True
        process = self.process
        if process is not None:
            process.kill()
            process.wait()


def serve(plugins: bool) -> None:
    """The child's side: names come in line by line, records go out; nothing else is printed where they go."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import lipcheck.structure  # noqa: F401

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(_line(cover(line.strip(), plugins=plugins)), file=answers, flush=True)
