"""A survey of models for people: a table in the terminal, and the page docs/coverage.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lipcheck.coverage import CAPTURED, FINITE, VERDICTS, Record, Survey
from lipcheck.text import clean

_LEAST_WHY = 24  # columns that a reason is worth


def text(survey: Survey, width: int) -> str:
    """One line a model with its verdict and the first reason, cut to the width; then how many there are of each."""
    lines = [*_table(survey.records, width), ""] if survey.records else []
    lines += [_summary(survey), *_causes(survey.records, width)]
    lines += [clean(problem) for problem in survey.problems]
    if len(survey.records) < survey.wanted:
        lines.append(f"interrupted: {survey.wanted - len(survey.records)} of {survey.wanted} models were not reached")
    return "".join(f"{line}\n" for line in lines)


def _table(records: Sequence[Record], width: int) -> Iterator[str]:
    names = max(5, *(len(record.name) for record in records))
    verdicts = max(7, *(len(record.verdict) for record in records))
    head = f"{'model':<{names}}  {'operations':>10}  {'verdict':<{verdicts}}"
    room = width - len(head) - 2
    yield (f"{head}  why" if room >= _LEAST_WHY else head).rstrip()
    yield "─" * min(width, len(head) + (2 + max(3, *(len(r.reason) for r in records)) if room >= _LEAST_WHY else 0))
    for record in records:
        line = f"{clean(record.name):<{names}}  {record.nodes or '–':>10}  {record.verdict:<{verdicts}}"
        why = clean(record.reason)
        why = why if len(why) <= room else f"{why[: room - 1]}…"
        yield (f"{line}  {why}" if room >= _LEAST_WHY else line).rstrip()


def _summary(survey: Survey) -> str:
    parts = [f"{count} {VERDICTS[verdict]}" for verdict, count in survey.counts.items() if count]
    total = len(survey.records)
    return f"{total} model{'' if total == 1 else 's'}: {', '.join(parts) or 'none covered'}"


def _causes(records: Iterable[Record], width: int) -> Iterator[str]:
    """What stands in the way, the most frequent first."""
    counted = _counted(records)
    if counted:
        yield "what stands in the way of a bound on the whole space, by models"
    for (op, why), count in counted:
        line = f"{count:>6}  {clean(f'{op}: {why}' if op else why)}"
        yield line if len(line) <= width else f"{line[: width - 1]}…"


def _counted(records: Iterable[Record]) -> list[tuple[tuple[str, str], int]]:
    counts = Counter(reason for record in records for reason in record.reasons)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def markdown(survey: Survey, command: str) -> str:
    """The page: what was run, how many models have which verdict, and every failure by name."""
    versions = ", ".join(f"{clean(name)} {clean(version)}" for name, version in survey.versions.items())
    seconds = sum(record.seconds for record in survey.records)
    lines = [
        "# Which models have a bound",
        "",
        f"Written by `{command} --markdown`, with {versions}; do not edit. `scripts/zoo` runs it over every model.",
        "",
        f"{len(survey.records)} models were built without weights (on the meta device), exported, and their operations "
        "looked up; the audit's own rules, patterns and ranges then say whether the network's Lipschitz constant has a "
        "finite bound on the whole space, on a bounded domain of inputs (`--domain`), or none. No weight has a value "
        f"here: a verdict is about ordinary numbers, and a bound is the audit's. It took {seconds / 3600:.1f} hours of "
        "one core. The models of transformers are small ones, one of each type.",
        "",
        *_counts(survey),
        "",
        *_failures(survey, "no rule", "Operations without a rule"),
        *_failures(survey, "not captured", "Not captured"),
        *_failures(survey, "error", "Failures of lipcheck"),
        *_failures(survey, "unfinished", "Unfinished"),
        *_failures(survey, "infinite", "Infinite on every domain"),
        *_domain_causes(survey),
        *_everything(survey),
    ]
    if len(survey.records) < survey.wanted:
        lines.insert(4, f"**Incomplete**: {len(survey.records)} of {survey.wanted} models.\n")
    return "\n".join(lines).rstrip() + "\n"


def _counts(survey: Survey) -> Iterator[str]:
    libraries = list(dict.fromkeys(_library(record) for record in survey.records))
    yield "| | " + " | ".join(libraries) + " | all |"
    yield "|---|" + "---:|" * (len(libraries) + 1)
    for verdict, meaning in VERDICTS.items():
        if survey.counts[verdict]:
            yield _row(survey, libraries, meaning, [verdict], share=False)
    yield _row(survey, libraries, "captured, no operation without a rule", CAPTURED, share=True)
    yield _row(survey, libraries, "finite on a bounded domain or everywhere", FINITE, share=True)


def _row(survey: Survey, libraries: Sequence[str], title: str, verdicts: Sequence[str], *, share: bool) -> str:
    cells = []
    for library in (*libraries, ""):
        here = [record for record in survey.records if library in ("", _library(record))]
        count = sum(record.verdict in verdicts for record in here)
        cells.append(f"{count} ({_percent(count, len(here))})" if share else str(count))
    return f"| {title} | " + " | ".join(cells) + " |"


def _percent(count: int, total: int) -> str:
    """Rounded down: what is not reached is not claimed."""
    return f"{1000 * count // max(1, total) / 10:.1f}%"


def _failures(survey: Survey, verdict: str, title: str) -> Iterator[str]:
    found = [record for record in survey.records if record.verdict == verdict]
    if not found:
        return
    yield from (f"## {title}", "", "| model | why |", "|---|---|")
    for record in found:
        why = "; ".join(_reason(op, why) for op, why in record.reasons)
        yield f"| {_cell(record.name)} | {why or '–'} |"
    yield ""


def _domain_causes(survey: Survey) -> Iterator[str]:
    counted = _counted(record for record in survey.records if record.verdict == "domain")
    if not counted:
        return
    yield from ("## What needs a domain", "", "| operation | models |", "|---|---:|")
    for (op, why), count in counted:
        yield f"| {_reason(op, why)} | {count} |"
    yield ""


def _everything(survey: Survey) -> Iterator[str]:
    for verdict in FINITE:
        names = [_cell(record.name) for record in survey.records if record.verdict == verdict]
        if names:
            meaning = VERDICTS[verdict]
            yield from (f"## {meaning[0].upper()}{meaning[1:]}", "", ", ".join(names), "")


def _reason(op: str, why: str) -> str:
    return f"`{clean(op)}`: {_cell(why)}" if op else _cell(why)


def _cell(words: str) -> str:
    """Text that Markdown shows as it is."""
    shown = clean(words)
    for sign in "\\`*_|<>[]":
        shown = shown.replace(sign, f"\\{sign}")
    return shown


def _library(record: Record) -> str:
    return record.name.partition(":")[0]
