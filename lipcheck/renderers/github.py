"""What GitHub Actions shows of a judgement: annotations on the run, and a page in the job's summary."""

# No `from __future__ import annotations` here: the name is that of a function.
import os
from collections.abc import Mapping, Sequence
from typing import IO

from lipcheck.errors import OutputError
from lipcheck.policy import Finding, Judgement, Severity
from lipcheck.renderers import judgement as verdicts
from lipcheck.renderers import markdown
from lipcheck.report import Report
from lipcheck.text import clean

MOST_ANNOTATIONS = 10  # of each kind that one step may show; more are dropped in silence
MOST_SUMMARY = 1_048_576  # bytes that one step's summary may have; a longer one is refused as a whole
_COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "note": "notice"}
_LONGEST = 4000  # characters of a message


def annotations(judgement: Judgement) -> str:
    """A workflow command a line for each finding that is not waived, the gravest first, ten of them at most.

    Where there are more, the last one says how many.
    """
    findings = judgement.active
    shown = findings if len(findings) <= MOST_ANNOTATIONS else findings[: MOST_ANNOTATIONS - 1]
    lines = [_annotation(finding) for finding in shown]
    if rest := findings[len(shown) :]:
        lines.append(_command(rest[0].severity, "lipcheck", _more(rest)))
    return "".join(f"{line}\n" for line in lines)


def summary(report: Report, judgement: Judgement | None = None, *, most: int = MOST_SUMMARY) -> str:
    """The report as Markdown below the size that GitHub takes, with a note of what was left out for it."""
    return markdown.text(report, judgement, most=most)


def emit(report: Report, judgement: Judgement, environ: Mapping[str, str], stdout: IO[str]) -> None:
    """Under GitHub Actions, the annotations on `stdout` and the summary behind what the step's file has already.

    Errors: OutputError with the file and the system's reason.
    """
    if environ.get("GITHUB_ACTIONS") != "true":
        return
    stdout.write(annotations(judgement))
    if path := environ.get("GITHUB_STEP_SUMMARY"):
        _append(path, report, judgement)


def _append(path: str, report: Report, judgement: Judgement) -> None:
    try:
        there = os.path.getsize(path) if os.path.exists(path) else 0
        before = "\n" if there else ""
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(before + summary(report, judgement, most=MOST_SUMMARY - there - len(before)))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(
            f"{clean(path)} (GITHUB_STEP_SUMMARY) cannot be written ({reason}); unset it or name another file"
        ) from error


def _annotation(finding: Finding) -> str:
    subject = verdicts.subject(finding)
    return _command(finding.severity, f"lipcheck: {finding.rule}", f"{subject}: {clean(finding.message)}")


def _more(findings: Sequence[Finding]) -> str:
    return f"and {', '.join(verdicts.counts(findings))} more; the job's summary and the report have them all"


def _command(severity: Severity, title: str, message: str) -> str:
    return f"::{_COMMANDS[severity]} title={_property(title)}::{_data(verdicts.shortened(message, _LONGEST))}"


def _data(words: str) -> str:
    """The words as a command's message: what would end it is percent-encoded.

    >>> _data("5 %"), _property("a:b,c")
    ('5 %25', 'a%3Ab%2Cc')
    """
    return words.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(words: str) -> str:
    return _data(words).replace(":", "%3A").replace(",", "%2C")
