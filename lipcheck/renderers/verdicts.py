"""A Verification as lines: what is wrong and where, then a summary."""

from __future__ import annotations

from collections import Counter

from lipcheck.text import clean
from lipcheck.verification import Verdict, Verification

_ARITHMETIC = {"exact": "exactly", "float64": "in float64", "balls": "in ball arithmetic"}


def text(verification: Verification) -> str:
    """One line for each problem, naming the layer, and the summary."""
    lines = [clean(problem) for problem in verification.problems]
    lines += [f"{name(verdict)}: {clean(problem)}" for verdict in verification.failures for problem in verdict.problems]
    proved = [verdict for verdict in verification.layers if verdict.ok]
    counts = Counter(verdict.arithmetic for verdict in proved)
    ways = ", ".join(f"{counts[way]} {words}" for way, words in _ARITHMETIC.items() if counts[way])
    total = len(verification.layers)
    state = "verified" if verification.ok else "NOT VERIFIED"
    detail = f" ({ways})" if ways else ""
    lines.append(f"{state}: {len(proved)} of {total} bounds of {clean(verification.model)} proved again{detail}")
    return "\n".join(lines) + "\n"


def name(verdict: Verdict) -> str:
    """The layer for people: its path, which call of it, and whether with the scalings behind it."""
    call = f" (call {verdict.occurrence + 1})" if verdict.occurrence else ""
    merged = " with what is merged into it" if verdict.role == "merged" else ""
    return f"{clean(verdict.layer) or 'the model itself'}: {clean(verdict.op)}{call}{merged}"
