"""A report as Markdown for comments and job summaries: the verdict first, then what changed, then the figures."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from lipcheck import numbers
from lipcheck.diff import Difference, LayerChange
from lipcheck.policy import Finding, Judgement
from lipcheck.renderers import changes, describe
from lipcheck.renderers import judgement as verdicts
from lipcheck.renderers.table import marked, share_text, slope_text
from lipcheck.report import LayerReport, Report

_LONGEST_NAME, _LONGEST_PROSE = 200, 2000  # characters
_LAYERS_NAMED = 6
_CODES = str.maketrans({"|": r"\x7c", "`": r"\x60"})
_ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_{}[]~$!"} | {
    "&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&vert;",
})  # fmt: skip
# Addresses become links without any sign; @ and # notify people and refer to issues on GitHub and GitLab.
_LINKS = re.compile(r"(?i)(?<=www)\.|(?<=:)/(?=/)")
_MENTIONS = re.compile(r"[@#]+")


@dataclass(frozen=True, slots=True)
class _Section:
    """Lines that stand together; of `rows`, as many as there is room for, and `what` they are."""

    head: tuple[str, ...]
    rows: tuple[str, ...] = ()
    what: str = ""
    rank: int = 0  # the rows of the least are kept first
    left_out: int = 0

    def lines(self) -> tuple[str, ...]:
        note = ("", f"_{self.left_out} more {self.what} left out to keep this text short._") if self.left_out else ()
        return (*self.head, *self.rows, *note)


def text(report: Report, judgement: Judgement | None = None, *, most: int | None = None) -> str:
    """The verdict and the findings, the difference to the baseline, the table of layers, the network.

    With `most`, the text is shorter than so many bytes of UTF-8: layers are left out first, then unsupported
    operations, changes and findings, each with a note of how many; only a text without any of them is cut.
    Names are code, in which nothing is a link or a mention; `|` and a backtick in them are written as escapes.
    """
    sections = [*_heading(report)]
    if judgement is not None:
        sections += _verdict(judgement)
        sections += _difference(judgement.difference) if judgement.difference else []
    sections += [*_layers(report), *_network(report), *_unsupported(report), *_embeddings(report), *_run(report)]
    whole = _joined(sections)
    if most is None or len(whole.encode()) < most:
        return whole
    return _cut(_joined(_fitted(sections, most)), most)


def difference(found: Difference, *, every: bool = False) -> str:
    """Two reports compared: the networks, the counts, and the layers that moved, with `every` all of them."""
    sections = [_Section((f"# lipcheck: {code(found.before.name)} → {code(found.after.name)}",))]
    sections += [_Section((f"{when}: {prose(model.weights)}",))
                 for when, model in (("Before", found.before), ("After", found.after))]  # fmt: skip
    return _joined([*sections, *_changes(found, every=every)])


def code(name: str) -> str:
    """The name as code, in one line and safe in a table: `layer1.0.conv2`.

    >>> print(code("a|b"))
    `a\\x7cb`
    """
    shown = verdicts.shortened(name, _LONGEST_NAME).translate(_CODES)
    # Code that begins or ends with a space would lose it, and there is no empty code.
    return f"`{shown}`" if shown.strip() else "` `"


def prose(words: str) -> str:
    """The words as Markdown shows them: no sign has a meaning, nothing is a link, a mention or a reference.

    >>> print(prose("a*b <c> | @d"))
    a\\*b &lt;c&gt; &vert; `@`d
    """
    shown = verdicts.shortened(words, _LONGEST_PROSE).translate(_ESCAPED)
    shown = _LINKS.sub(r"\\\g<0>", shown)
    return _MENTIONS.sub(r"`\g<0>`", shown)


def _joined(sections: Sequence[_Section]) -> str:
    return "\n\n".join("\n".join(section.lines()) for section in sections) + "\n"


def _fitted(sections: Sequence[_Section], most: int) -> list[_Section]:
    """The sections with as many of their rows as `most` bytes allow, those of the least rank first."""
    kept = [replace(section, rows=(), left_out=len(section.rows)) for section in sections]
    room = max(0, most - len(_joined(kept).encode()) - 1)
    for place in sorted(range(len(kept)), key=lambda place: sections[place].rank):
        rows = sections[place].rows
        used = [0, *accumulate(len(row.encode()) + 1 for row in rows)]
        count = bisect_right(used, room) - 1
        room -= used[count]
        kept[place] = replace(sections[place], rows=rows[:count], left_out=len(rows) - count)
    return kept


def _cut(whole: str, most: int) -> str:
    """As many whole lines of the text as stay below `most` bytes."""
    lengths = accumulate(len(line.encode()) for line in whole.splitlines(keepends=True))
    kept = max((length for length in lengths if length < most), default=0)
    return whole.encode()[:kept].decode()


def _table(headings: Sequence[str], right: str) -> tuple[str, str]:
    """The heading of a table; `right` has an r for each column of numbers."""
    line = "|".join("---:" if side == "r" else "---" for side in right)
    return _row(headings), f"|{line}|"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _heading(report: Report) -> Iterator[_Section]:
    model = report.model
    yield _Section((f"# lipcheck: {code(model.name)}", "", " · ".join(map(prose, describe.model_facts(report)))))
    if model.weights.startswith("random"):
        yield _Section(("**Random weights: the figures say nothing about a trained network.**",))
    for note in model.notes:
        yield _Section((f"Note: {prose(note)}",))


def _verdict(judgement: Judgement) -> Iterator[_Section]:
    outcome, _, rest = verdicts.summary(judgement).partition(":")
    lines = tuple(_finding(finding) for finding in judgement.findings)
    yield _Section((f"## {outcome.capitalize()}", "", prose(rest.strip()), *([""] if lines else [])), lines, "findings")


def _finding(finding: Finding) -> str:
    severity = finding.severity if finding.waiver is None else "waived"
    why = f"; {prose(verdicts.reason(finding))}" if finding.waiver else ""
    return f"- **{severity}** {code(verdicts.subject(finding))}: {prose(finding.message)} (`{finding.rule}`){why}"


def _difference(difference: Difference) -> Iterator[_Section]:
    before = difference.before
    facts = f"{code(before.name)} ({prose(before.weights)})"
    yield _Section(("## Difference to the baseline", "", f"Baseline: {facts}"))
    yield from _changes(difference)


def _changes(difference: Difference, *, every: bool = False) -> Iterator[_Section]:
    yield _Section((f"Network: {prose(changes.network(difference))}", "", f"{prose(changes.counts(difference))}"))
    rows = tuple(_row(_change(change)) for change in changes.listed(difference, every=every))
    if rows:
        headings = ("layer", "before", "after", "change", "log10", "state")
        yield _Section(_table(headings, "lrrrrl"), rows, "changes", rank=1)


def _change(change: LayerChange) -> tuple[str, ...]:
    old, new = change.bounds
    moved = (changes.enclosure(old), changes.enclosure(new), changes.percent(change), changes.log10(change))
    return (code(changes.name(change)), *map(prose, moved), change.state)


def _layers(report: Report) -> Iterator[_Section]:
    yield _Section(("## Layers",))
    if not report.layers:
        yield _Section(("No linear layers.",))
        return
    columns = _columns(report)
    rows = tuple(_row([cell(layer) for _, _, cell in columns]) for layer in report.layers)
    head = _table([heading for heading, _, _ in columns], "".join(side for _, side, _ in columns))
    yield _Section(head, rows, "layers", rank=3)
    kinds = {bound.kind for layer in report.layers for bound in (layer.bound, layer.merged) if bound is not None}
    if "probabilistic" in kinds:
        yield _Section(("p: not certified, holds with the probability that its method states",))
    if "estimate" in kinds:
        yield _Section((prose("~: not certified, an estimate, which may lie below the norm"),))


_Column = tuple[str, str, Callable[[LayerReport], str]]


def _columns(report: Report) -> list[_Column]:
    layers = report.layers
    found: list[_Column] = [
        ("layer", "l", lambda layer: code(describe.path(layer)) + (f" ×{layer.calls}" if layer.calls > 1 else "")),
        ("operator", "l", lambda layer: prose(describe.operator(layer))),
        ("input", "r", describe.input_size),
        ("lower", "r", describe.lower),
        ("upper", "r", lambda layer: prose(marked(layer.bound))),
        ("slack", "r", describe.slack),
    ]
    if any(layer.merged for layer in layers):
        found.append(("merged", "r", lambda layer: prose(marked(layer.merged)) if layer.merged else ""))
    if any(layer.slope for layer in layers):
        found.append(("slope", "r", lambda layer: prose(slope_text(layer.slope))))
    if any(layer.share is not None for layer in layers):
        found.append(("share", "r", lambda layer: "" if layer.part else share_text(layer.share)))
    return found


def _network(report: Report) -> Iterator[_Section]:
    network = report.network
    yield _Section(("## Network",))
    if not network.claimed:
        yield _Section((f"No bound is claimed: {prose(network.reason)}",))
        return
    if network.domain:
        yield _Section((f"On the domain {prose(network.domain)}",))
    rows = [
        (f"{describe.claim(report)}, {describe.scope(report)}", describe.power(network.log10_upper)),
        ("plain product", describe.power(network.log10_product)),
    ]
    if network.samples:
        rows.append((f"largest Jacobian norm at {network.samples} sampled inputs", numbers.down(network.lower)))
    yield _Section(_table(("Euclidean norms", "output change per input change"), "lr") + tuple(map(_row, rows)))
    if network.log10_upper == math.inf:
        yield _Section((f"**No finite bound**: {prose(network.reason or 'a layer has none')}",))


def _unsupported(report: Report) -> Iterator[_Section]:
    rows = tuple(
        f"- {code(entry.op)} ×{len(entry.layers)}: {prose(entry.reason)}, in {_named(entry.layers)}"
        for entry in sorted(report.unsupported, key=lambda entry: -len(entry.layers))
    )
    if rows:
        yield _Section(("## Without a bound", ""), rows, "operations", rank=2)


def _named(layers: Sequence[str]) -> str:
    """Some names and how many more there are."""
    names = list(dict.fromkeys(layer or "(model)" for layer in layers))
    more = [f"{len(names) - _LAYERS_NAMED} more"] if len(names) > _LAYERS_NAMED else []
    return ", ".join([*map(code, names[:_LAYERS_NAMED]), *more])


def _embeddings(report: Report) -> Iterator[_Section]:
    rows = tuple(
        _row((
            code(table.layer or "(model)"), f"{table.entries}×{table.width}",
            *map(prose, (changes.enclosure(table.bound), changes.enclosure(table.largest_row))),
        ))
        for table in report.embeddings
    )  # fmt: skip
    if rows:
        head = _table(("embedding table", "size", "norm as a matrix", "longest vector"), "lrrr")
        yield _Section(head, rows, "tables", rank=2)


def _run(report: Report) -> Iterator[_Section]:
    left_out = tuple(f"- {len(group.names)} tensors: {prose(group.reason)}" for group in report.left_out)
    if left_out:
        yield _Section(("## Left out of the checkpoint", ""), left_out, "reasons", rank=2)
    notes = tuple(f"- {prose(note)}" for note in (*report.run.notes, *report.run.unfinished))
    if notes:
        yield _Section(("## The run", ""), notes, "notes", rank=2)
    run = report.run
    facts = [f"tolerance {run.tolerance:g}", f"seed {run.seed}", run.device]
    yield _Section((" · ".join(map(prose, [*facts, *describe.versions(report)])),))
