"""A policy as a team writes it, in lipcheck.toml or under [tool.lipcheck] of pyproject.toml, and one to begin with."""

from __future__ import annotations

import datetime
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lipcheck import numbers
from lipcheck.diff import applied
from lipcheck.errors import UsageError
from lipcheck.policy import RULES, LayerBudget, Policy, Waiver
from lipcheck.report import Report
from lipcheck.text import clean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME, PROJECT = "lipcheck.toml", "pyproject.toml"
LONGEST = 1 << 20  # bytes
HEADROOM = 0.1  # of a budget that is written from a model's figures

# Every key of every table, and what it means.
_BUDGET = {
    "max_norm": "the largest norm: a number from 0 on",
    "max_slack": 'how far apart the ends of the enclosure may be: a part, like "2%" or 0.02',
    "max_increase": 'what the norm may rise by against the baseline: a part, like "1%"',
}
KEYS: dict[str, dict[str, str]] = {
    "network": {
        "max_log10_bound": "the largest bound on the network's Lipschitz constant, as a power of ten: a number",
        "require_finite": "whether the network has to have a finite bound: true or false",
        "max_increase": 'what the bound may rise by against the baseline: a part, like "10%" or 0.1',
    },
    "baseline": {
        "file": "a report of an earlier release, from the policy's folder; --baseline outweighs it",
        "max_increase": 'what any layer\'s norm may rise by: a part, like "5%"',
    },
    "layers": {"match": 'a glob of layers\' paths, like "stage3.*"; must be given', **_BUDGET},
    "kinds": {"match": 'a glob of layers\' kinds, like "conv2d"; must be given', **_BUDGET},
    "skip": {
        "layers": "globs of layers that no budget is for: a list of texts",
        "operations": "globs of operations that need no finite bound: a list of texts",
    },
    "waivers": {
        "match": 'a glob of layers\' paths, or "network", which no glob covers; must be given',
        "rule": "a glob of the rules below; any rule without it",
        "reason": "why it is allowed for now; must be given",
        "expires": "the last day, like 2030-12-31; never without it",
    },
}

# An entry in order, for each table that has several.
_STAND_INS: dict[str, dict[str, Any]] = {
    "layers": {"match": "*", "max_norm": 0},
    "kinds": {"match": "*", "max_norm": 0},
    "waivers": {"match": "*", "reason": "-"},
}


def find_policy(folder: Path) -> Path | None:
    """The policy of a folder: its lipcheck.toml or pyproject.toml, or that of the nearest folder above with one."""
    for place in (folder, *folder.parents):
        if (place / NAME).is_file():
            return place / NAME
        if (place / PROJECT).is_file() and _section(_document(place / PROJECT)) is not None:
            return place / PROJECT
    return None


def read_policy(path: Path) -> Policy:
    """The policy that the file holds.

    Errors: UsageError naming the file, the place in it, what was met and what is expected.
    """
    try:
        return _policy(_written(path), path)
    except _Misfit as error:
        raise UsageError(f"{clean(str(path))}: {error}") from error


def faults(path: Path) -> tuple[str, ...]:
    """All that is wrong in the file, each with its place in it; nothing where `read_policy` reads it.

    Errors: UsageError where the file holds no policy at all.
    """
    found = []
    for part in _parts(_written(path)):
        try:
            _policy(part, path)
        except _Misfit as error:
            found.append(str(error))
    return tuple(dict.fromkeys(found))


def _parts(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Documents with one key of the whole each, at the place that it has there."""
    for name, value in document.items():
        if name in _STAND_INS and isinstance(value, list):
            for index, entry in enumerate(value):
                yield from ({name: [_STAND_INS[name]] * index + [one]} for one in _entry_parts(entry, _STAND_INS[name]))
        elif name in KEYS and name not in _STAND_INS and isinstance(value, dict):
            yield from ({name: {key: one}} for key, one in value.items())
        else:
            yield {name: value}


def _entry_parts(entry: Any, valid: Mapping[str, Any]) -> Iterator[Any]:
    """The entry with one of its keys each, beside those that it must have; as it is where they are missing."""
    needed = {"match", "reason"} & set(valid)
    if not isinstance(entry, dict) or not needed < set(entry):
        yield entry
        return
    kept = {key: entry[key] for key in entry if key in needed}
    yield from ({**kept, key: one} for key, one in entry.items() if key not in needed)


def _written(path: Path) -> dict[str, Any]:
    """The policy's part of the document."""
    document = _document(path)
    if path.name != PROJECT:
        return document
    section = _section(document)
    if section is None:
        raise UsageError(f"{clean(str(path))} has no [tool.lipcheck]; write one with `lipcheck init MODEL`")
    return section


class _Misfit(Exception):
    """What is wrong in the document, with its place."""


def _document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LONGEST:
            raise UsageError(f"{clean(str(path))} is over {LONGEST} bytes; no policy is")
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{clean(str(path))}: {error.strerror}; write a policy with `lipcheck init MODEL`") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{clean(str(path))} is no TOML ({clean(str(error))})") from error
    return document


def _section(document: Mapping[str, Any]) -> dict[str, Any] | None:
    tool = document.get("tool")
    found = tool.get("lipcheck") if isinstance(tool, dict) else None
    return found if isinstance(found, dict) else None


def _policy(document: Mapping[str, Any], path: Path) -> Policy:
    _known(document, tuple(KEYS), "")
    network, baseline, skip = (_table(document, name) for name in ("network", "baseline", "skip"))
    return Policy(
        layers=(*_budgets(document, "layers"), *_budgets(document, "kinds")),
        max_log10_bound=_number(network, "max_log10_bound", "network", least=-math.inf),
        require_finite=_truth(network, "require_finite", "network"),
        max_increase=_part(network, "max_increase", "network"),
        max_layer_increase=_part(baseline, "max_increase", "baseline"),
        skip_layers=_strings(skip, "layers", "skip"),
        skip_operations=_strings(skip, "operations", "skip"),
        waivers=tuple(_waiver(waiver, f"waivers[{index}]") for index, waiver in _entries(document, "waivers")),
        baseline=_beside(path, _string(baseline, "file", "baseline", "")),
        source=str(path),
    )


def _budgets(document: Mapping[str, Any], table: str) -> Iterator[LayerBudget]:
    for index, given in _entries(document, table):
        place = f"{table}[{index}]"
        match = _glob(given, place)
        if len(given) < 2:
            raise _Misfit(f"{place} sets no budget; give one of {', '.join(_BUDGET)}")
        yield LayerBudget(
            match,
            of_kind=table == "kinds",
            max_norm=_number(given, "max_norm", place),
            max_slack=_part(given, "max_slack", place),
            max_increase=_part(given, "max_increase", place),
        )


def _waiver(given: Mapping[str, Any], place: str) -> Waiver:
    match, reason = _glob(given, place), _string(given, "reason", place)
    if not reason.strip():
        raise _Misfit(f"{place}.reason is empty; a waiver says why")
    rule = _string(given, "rule", place, "*")
    if not any(fnmatchcase(known, rule) for known in RULES):
        raise _Misfit(f"{place}.rule {rule!r} is no rule{_near(rule, tuple(RULES))}")
    return Waiver(match, reason, _date(given, "expires", place), rule)


# The parts of a document


def _known(given: Mapping[str, Any], names: Sequence[str], place: str) -> None:
    for name in given:
        if name not in names:
            shown = f"{place}.{name}" if place else name
            raise _Misfit(f"{clean(shown)} is unknown{_near(name, names)}")


def _near(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    given = document.get(name, {})
    if not isinstance(given, dict):
        raise _Misfit(f"{name} is {_what(given)}; write a table [{name}]")
    _known(given, tuple(KEYS[name]), name)
    return given


def _entries(document: Mapping[str, Any], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    given = document.get(name, [])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise _Misfit(f"{name} is {_what(given)}; write tables [[{name}]]")
    for index, one in enumerate(given, 1):
        _known(one, tuple(KEYS[name]), f"{name}[{index}]")
        yield index, one


def _of(given: Mapping[str, Any], name: str, place: str, fits: Callable[[Any], bool], wanted: str, default: Any) -> Any:
    value = given.get(name, default)
    if value is None:
        raise _Misfit(f"{place} has no {name}; give {wanted}")
    if value is not default and not fits(value):
        raise _Misfit(f"{place}.{name} is {_what(value)}; give {wanted}")
    return value


def _what(value: Any) -> str:
    return clean(repr(value))[:60]


def _string(given: Mapping[str, Any], name: str, place: str, default: str | None = None) -> str:
    found: str = _of(given, name, place, lambda value: isinstance(value, str), "a text in quotes", default)
    return found


def _glob(given: Mapping[str, Any], place: str) -> str:
    found = _string(given, "match", place)
    if not found:
        raise _Misfit(f"{place}.match is empty; give a glob like '*'")
    return found


def _strings(given: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    def fits(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)

    return tuple(_of(given, name, place, fits, 'a list of texts, like ["head*"]', []))


def _truth(given: Mapping[str, Any], name: str, place: str) -> bool:
    found: bool = _of(given, name, place, lambda value: isinstance(value, bool), "true or false", False)
    return found


def _number(given: Mapping[str, Any], name: str, place: str, *, least: float = 0.0) -> float:
    wanted = "a number" if least < 0 else f"a number from {least:g} on"
    return float(_of(given, name, place, lambda value: _finite(value) and value >= least, wanted, math.inf))


def _part(given: Mapping[str, Any], name: str, place: str) -> float:
    """A part of something: "5%", or 0.05."""

    def fits(value: Any) -> bool:
        return (_finite(value) and value >= 0) or (isinstance(value, str) and bool(_PERCENT.fullmatch(value)))

    found = _of(given, name, place, fits, 'a part, like "5%" or 0.05', math.inf)
    if not isinstance(found, str) and 1 < found < math.inf:
        raise _Misfit(f'{place}.{name} is {_what(found)}, {found:g} times the whole; write "{found:g}%" for per cent')
    return percent(found) if isinstance(found, str) else float(found)


_PERCENT = re.compile(r"\s*\+?\s*(\d{1,9}(?:\.\d{1,9})?)\s*%\s*", re.ASCII)


def percent(text: str) -> float:
    """What "5%" is a part of: 0.05.

    Errors: UsageError for any other text.

    >>> percent("5%"), percent("+0.5 %")
    (0.05, 0.005)
    """
    match = _PERCENT.fullmatch(text)
    if match is None:
        raise UsageError(f"{clean(text)!r} is no percentage; write it like 5%")
    return float(match[1]) / 100


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _date(given: Mapping[str, Any], name: str, place: str) -> datetime.date | None:
    value = given.get(name)
    if isinstance(value, str):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            pass
    elif isinstance(value, datetime.datetime):
        return value.date()
    elif value is None or isinstance(value, datetime.date):
        return value
    raise _Misfit(f"{place}.{name} is {_what(value)}; give a date, like 2030-12-31")


def _beside(policy: Path, file: str) -> str:
    """A path that the policy names, from the folder of the policy."""
    return str(policy.parent / Path(file).expanduser()) if file else ""


# A policy to begin with


def first_policy(report: Report, command: str, *, project: bool = False) -> str:
    """A commented policy that the report passes with some headroom, for lipcheck.toml or, with `project`, for
    pyproject.toml.
    """
    prefix = "tool.lipcheck." if project else ""
    network = report.network
    lines = [
        f"# A policy for {clean(report.model.name)}, from the figures of `{clean(command)}`, each with",
        f"# {HEADROOM:.0%} of headroom. `lipcheck audit` reads it; docs/policy.md tells every key.",
        "",
        f"[{prefix}network]",
    ]
    if network.claimed and math.isfinite(network.log10_upper):
        lines += [
            f"# The bound was 10^{numbers.power_up(network.log10_upper)} when this was written.",
            f"max_log10_bound = {_roomy_power(network.log10_upper)}",
            "require_finite = true",
        ]
    else:
        lines += [
            f"# No finite bound: {clean(network.reason) or 'an operation has none'}.",
            "# max_log10_bound = 12.0",
            "require_finite = false",
        ]
    lines += [
        "",
        "# Against a report of an earlier release, written by `lipcheck baseline MODEL -o baseline.json`.",
        "# With a budget for increases an audit is incomplete without one. Where no budget is set, --baseline sets 5%.",
        f"# [{prefix}baseline]",
        '# file = "baseline.json"',
        '# max_increase = "5%"  # of any layer\'s norm; enclosures that overlap are no increase',
    ]
    skipped = sorted({group.op for group in report.unsupported})
    if skipped:
        lines += [
            "",
            "# Operations without a finite bound, which the audit would otherwise call incomplete.",
            f"[{prefix}skip]",
            f"operations = {json.dumps(skipped)}",
        ]
    kinds: dict[str, float] = {}
    for layer in report.layers:
        if not layer.part:
            kinds[layer.kind] = max(kinds.get(layer.kind, 0.0), applied(layer).upper)
    for kind, upper in sorted(kinds.items()):
        if math.isfinite(upper):
            lines += ["", f"[[{prefix}kinds]]", f"match = {_quoted(kind)}", f"max_norm = {_roomy(upper)}"]
    heaviest = max(
        (layer for layer in report.layers if not layer.part and math.isfinite(applied(layer).upper)),
        key=lambda layer: applied(layer).upper,
        default=None,
    )
    if heaviest is not None:
        lines += [
            "",
            "# A budget of its own for some layers; of several for a layer, the least counts.",
            f"# [[{prefix}layers]]",
            f"# match = {_quoted(_literal(heaviest.layer))}",
            f"# max_norm = {_roomy(applied(heaviest).upper)}",
            '# max_slack = "5%"',
        ]
    lines += [
        "",
        "# What is known and allowed for a time.",
        f"# [[{prefix}waivers]]",
        f"# match = {_quoted(_literal(heaviest.layer) if heaviest is not None else 'network')}",
        '# rule = "layer-norm-*"',
        '# reason = "retrained in the next release"',
        "# expires = 2030-12-31",
        "",
    ]
    return "\n".join(lines)


def _roomy(upper: float) -> str:
    """The figure with headroom, three digits, rounded up, as TOML writes numbers."""
    return f"{float(numbers.up(upper * (1 + HEADROOM), digits=3)):g}" if upper else "0.0"


def _roomy_power(log10: float) -> str:
    return numbers.power_up(log10 + math.log10(1 + HEADROOM))


def _literal(path: str) -> str:
    """A glob that matches this path alone."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _quoted(text: str) -> str:
    """A TOML string: those of JSON are such, but for code points that it may not hold."""
    return json.dumps(text).replace("\x7f", "\\u007f")
