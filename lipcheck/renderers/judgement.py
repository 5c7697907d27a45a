"""A Judgement for people at a terminal: the verdict, then the findings, the gravest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath

from rich.cells import cell_len

from lipcheck.policy import Finding, Judgement
from lipcheck.renderers import describe
from lipcheck.report import LayerReport
from lipcheck.text import clean


def text(judgement: Judgement, width: int) -> str:
    """The verdict in one line, then each finding with its place, wrapped between words to the width.

    A line begins with a word of ours or with a space before one, never with a name that a stranger chose.
    """
    lines = [*wrapped(summary(judgement), width)]
    for finding in judgement.active:
        lines += _finding(finding, finding.severity, width)
    for finding in judgement.waived:
        lines += _finding(finding, "waived", width)
    return "".join(f"{line}\n" for line in lines)


def summary(judgement: Judgement) -> str:
    """The verdict and how many findings of each sort there are: violated: 1 error, 2 warnings, 1 waived."""
    parts = counts(judgement.active)
    parts += [f"{len(judgement.waived)} waived"] if judgement.waived else []
    policy = f" ({clean(PurePath(judgement.policy.source).name)})" if judgement.policy.source else ""
    return f"{judgement.outcome}: {', '.join(parts) or 'no findings'}{policy}"


def counts(findings: Iterable[Finding]) -> list[str]:
    """How many of each severity: 1 error, 2 warnings."""
    found = Counter(finding.severity for finding in findings)
    return [f"{count} {severity}{describe.s(count)}" for severity, count in found.items()]


def subject(finding: Finding) -> str:
    """What the finding is about, safe to print."""
    return describe.path(finding.layer) if finding.layer else clean(finding.subject) or "(model)"


def about(findings: Iterable[Finding]) -> Callable[[LayerReport], list[Finding]]:
    """A function from a layer to what was found about it."""
    by_name: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.layer is not None:
            by_name.setdefault(finding.layer.layer, []).append(finding)

    def find(layer: LayerReport) -> list[Finding]:
        # Calls of one layer may have a row each, with the same name.
        return [one for one in by_name.get(layer.layer, ()) if one.layer is layer or one.layer == layer]

    return find


def reason(finding: Finding) -> str:
    """Why a waived finding is allowed, and until when; nothing for another."""
    if finding.waiver is None:
        return ""
    until = f"until {finding.waiver.expires}" if finding.waiver.expires else "without an end"
    return f"waived {until}: {clean(finding.waiver.reason)}"


def shortened(words: str, most: int) -> str:
    """The text, safe to print, in at most `most` characters, its middle replaced by an ellipsis.

    >>> shortened("layer1.0.conv2", 9)
    'laye…onv2'
    """
    shown = clean(words)
    half = (most - 1) // 2
    return shown if len(shown) <= most else f"{shown[:half]}…{shown[len(shown) - (most - 1 - half) :]}"


def wrapped(words: str, width: int, *, first: int = 0, indent: int = 0) -> Iterator[str]:
    """The text in lines of at most `width` cells, broken between words; a word that is longer stands alone.

    No line is begun with a word that starts with `::`, which a CI system would take for a command.
    """
    line, margin = "", first
    for word in words.split(" "):
        longer = f"{line} {word}" if line else word
        if line and margin + cell_len(longer) > width and not word.startswith("::"):
            yield " " * margin + line
            longer, margin = word, indent
        line = longer
    yield " " * margin + line


def _finding(finding: Finding, label: str, width: int) -> Iterator[str]:
    told = f"{label:<7}  {subject(finding)}: {clean(finding.message)} ({finding.rule})"
    why = f"; {reason(finding)}" if finding.waiver else ""
    return wrapped(told + why, width, first=2, indent=11)
