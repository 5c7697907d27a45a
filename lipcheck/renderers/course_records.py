"""The course of a run's bounds for programs: one line for each checkpoint, as JSON or as CSV."""

from __future__ import annotations

import csv
import io
import json
import math

from lipcheck.course import Point
from lipcheck.renderers.csv_table import cell, down, up

COLUMNS = (
    *("checkpoint", "step", "status", "log10_upper", "sampled_lower", "certified", "largest_layer", "largest_upper"),
    *("grew_most", "grew_by", "problem"),
)


def json_line(one: Point) -> str:
    """The checkpoint's figures as one line of JSON, exactly; an infinite number is null, `status` says what it is.

    Units: `grown` holds by what part of itself a layer's upper end rose since the checkpoint before.
    """
    upper, lower = _network(one)
    record = {
        "checkpoint": one.name,
        "step": list(one.step),
        "status": status(one),
        "log10_upper": _finite(upper),
        "sampled_lower": _finite(lower),
        "certified": one.certified if not one.problem else None,
        "norms": {name: _finite(norm) for name, norm in one.norms.items()},
        "grown": {name: _finite(part) for name, part in one.grown},
        "problem": one.problem or None,
    }
    return json.dumps(record, allow_nan=False) + "\n"


def csv_heading() -> str:
    """The first line of the table."""
    return ",".join(COLUMNS) + "\n"


def csv_line(one: Point) -> str:
    """The checkpoint's figures as one line of CSV: lower ends rounded down, upper ends up, infinity inf."""
    upper, lower = _network(one)
    largest, norm = one.largest
    grew, part = one.grown[0] if one.grown else ("", math.nan)
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow(
        [
            *(cell(one.name), " ".join(map(str, one.step)), status(one), up(upper), down(lower)),
            *("" if one.problem else str(one.certified).lower(), cell(largest), up(norm)),
            *(cell(grew), up(part), cell(one.problem)),
        ]
    )
    return written.getvalue()


def status(one: Point) -> str:
    """bounded, unbounded, not claimed (weights without a network), not audited."""
    if one.network is None:
        return "not audited"
    if not one.network.claimed:
        return "not claimed"
    return "unbounded" if one.network.log10_upper == math.inf else "bounded"


def _network(one: Point) -> tuple[float, float]:
    """The network's upper bound in powers of ten, and the sampled lower bound; nan for what there is not."""
    if one.network is None or not one.network.claimed:
        return math.nan, math.nan
    return one.network.log10_upper, one.network.lower if one.network.samples else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
