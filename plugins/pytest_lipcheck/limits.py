"""What `@pytest.mark.lipschitz` and `--lip-increase` allow, and how what they do not allow is told."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipcheck import Finding, Report

NUMBERS = ("max_norm", "max_log10_bound", "max_slack")
OPTIONS = (*NUMBERS, "require_finite", "skip_operations")


class Misuse(Exception):
    """A mark or an option that cannot mean anything."""


def limits_of(marks: Iterable[Any]) -> dict[str, Any]:
    """What the marks of a test set, the closest first: of several that set the same, the closest decides.

    Errors: Misuse with what was met and what is expected.
    """
    limits: dict[str, Any] = {}
    for mark in marks:
        if mark.args or not mark.kwargs:
            raise Misuse(f"the mark lipschitz takes {', '.join(OPTIONS)}, each by its name")
        limits = {name: _checked(name, value) for name, value in mark.kwargs.items()} | limits
    return limits


def _checked(name: str, value: Any) -> Any:
    if name not in OPTIONS:
        raise Misuse(f"the mark lipschitz has no {printable(name)}; it takes {', '.join(OPTIONS)}")
    if name in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise Misuse(f"{name} is {printable(repr(value))}; give a number")
        if value < 0 and name != "max_log10_bound":
            raise Misuse(f"{name} is {value}; nothing is below 0")
        return float(value)
    if name == "require_finite" and not isinstance(value, bool):
        raise Misuse(f"require_finite is {printable(repr(value))}; give True or False")
    if name == "skip_operations":
        if not isinstance(value, tuple | list) or not all(isinstance(entry, str) for entry in value):
            raise Misuse(f"skip_operations is {printable(repr(value))}; give a list such as ['aten.mul.*']")
        return tuple(value)
    return value


def broken(report: Report, limits: dict[str, Any]) -> Iterator[str]:
    """One line for each way in which the report does not keep to the limits, or is not proven to, the gravest first."""
    import lipcheck

    budget = {name: limits[name] for name in ("max_norm", "max_slack") if name in limits}
    network = {name: value for name, value in limits.items() if name not in budget}
    layers = (lipcheck.LayerBudget("*", **budget),) if budget else ()
    for finding in lipcheck.judge(report, lipcheck.Policy(layers=layers, **network)).active:
        if finding.severity != "note":
            yield _line(report, finding)


def risen(report: Report, baseline: Report, increase: float) -> Iterator[str]:
    """One line for each layer whose norm has surely risen by more than `increase`, the largest rise first.

    A norm has surely risen where the enclosures are apart.
    Units: `increase` is a part of the baseline's norm: 0.05 is five per cent.
    """
    import lipcheck

    policy = lipcheck.Policy(max_layer_increase=increase, skip_operations=("*",))
    for finding in lipcheck.judge(report, policy, baseline).active:
        if finding.rule == "layer-increase-violated":
            yield _line(report, finding, "risen")


def part(text: str) -> float:
    """An increase in per cent as a part: 5% is 0.05.

    Errors: Misuse where the text is no such increase.
    """
    if not re.fullmatch(r"\+?\d+(\.\d*)?\s*%", text, re.ASCII):
        raise Misuse(f"--lip-increase is {printable(text)}; give per cent, such as 5%")
    return float(text.rstrip(" %\t")) / 100


def printable(text: str) -> str:
    r"""One line in which whatever could steer a terminal is written as an escape, as in lipcheck's own reports.

    >>> printable("fc\x1b[31m\n")
    'fc\\x1b[31m\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _line(report: Report, finding: Finding, word: str = "") -> str:
    word = word or ("violated" if finding.rule.endswith("-violated") else "not proven")
    subject = finding.subject or "(model)"
    return printable(f"{word}: {report.model.name}: {subject}: {finding.message} [{finding.rule}]")
