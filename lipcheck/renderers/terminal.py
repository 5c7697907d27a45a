"""A Report for people at a terminal: the heading, the table of layers, the network, what has no bound, what was run."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from lipcheck import numbers
from lipcheck.renderers import describe
from lipcheck.renderers.table import cut_path, layer_table, marked, share_text
from lipcheck.report import NetworkReport, Report, UnsupportedOperation
from lipcheck.text import clean

WIDTH_OF_FILES = 160  # where no terminal and no COLUMNS says otherwise: names whole, one line a layer
_NEGLIGIBLE = 5e-4
_HEAVIEST = 5
_LAYERS_NAMED = 6


@dataclass(frozen=True, slots=True)
class render:
    """The report as a rich renderable, fitted to the console's width; numbers are never cut or wrapped.

    `sort`, `top` and `layers` choose the rows of the table as `describe.chosen` does; all else is about the whole.
    """

    report: Report
    sort: str = "network"
    top: int | None = None
    layers: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield from _heading(self.report, width)
        yield Text()
        yield from self._table(width)
        yield Text()
        yield from _embeddings(self.report, width)
        yield from _left_out(self.report, width)
        yield from _network(self.report, width)
        yield from _unsupported(self.report, width)
        yield Text()
        for note in self.report.run.notes:
            yield from _facts(clean(note).split(" "), width, "dim", between=" ")
        run = (*describe.settings(self.report), *describe.versions(self.report), *describe.stages(self.report))
        yield from _facts(run, width, "dim")

    def _table(self, width: int) -> Iterator[Text]:
        shown = describe.chosen(self.report, sort=self.sort, top=self.top, layers=self.layers)
        total = len(self.report.layers)
        if shown:
            yield from layer_table(shown, width)
        if len(shown) < total:
            matching = "" if self.layers is None else f", matching {clean(self.layers)}"
            like = "" if shown else f"; their names are like {describe.path(self.report.layers[0])}"
            yield Text(f"{len(shown)} of {total} layers shown{matching}{like}", style="dim" if shown else "yellow")
        elif not total:
            yield Text("no linear layers", style="dim")
        kinds = {
            bound.kind
            for layer in shown
            for bound in (layer.bound, layer.merged, *layer.compared.values())
            if bound is not None
        }
        if "probabilistic" in kinds:
            yield Text("p  not certified: holds with the probability that its method states", style="yellow")
        if "estimate" in kinds:
            yield Text("~  not certified: an estimate, which may lie below the norm", style="yellow")


def print_report(
    report: Report,
    *,
    file: IO[str] | None = None,
    width: int | None = None,
    sort: str = "network",
    top: int | None = None,
    layers: str | None = None,
) -> None:
    """The report on `file` (standard output), coloured only on a terminal that wants colours (NO_COLOR is honoured).

    The width is the terminal's; in a file or a pipe it is COLUMNS, or 160 columns where that is unset.
    """
    print_lines([render(report, sort=sort, top=top, layers=layers)], file=file, width=width)


def print_lines(lines: Iterable[RenderableType], *, file: IO[str] | None = None, width: int | None = None) -> None:
    """The lines on `file`, as `print_report` prints a report."""
    console = Console(file=file, width=width, markup=False, emoji=False, highlight=False, force_jupyter=False)
    if width is None and not console.is_terminal and "COLUMNS" not in console._environ:
        console.width = WIDTH_OF_FILES
    # Captured and written by hand, so that a broken pipe is the caller's to see.
    with console.capture() as captured:
        for line in lines:
            console.print(line, crop=False)
    console.file.write(captured.get())


def to_text(report: Report, *, width: int = WIDTH_OF_FILES) -> str:
    """The report as plain text, without colours."""
    written = io.StringIO()
    console = Console(file=written, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    console.print(render(report), crop=False)
    return written.getvalue()


def _heading(report: Report, width: int) -> Iterator[Text]:
    model = report.model
    yield Text(clean(model.name), style="bold")
    yield from _facts(describe.model_facts(report), width)
    if model.weights.startswith("random"):
        weights = clean(model.weights).replace("random", "random weights", 1)
        yield Text(f"{weights}: the figures say nothing about a trained network", style="bold yellow")
    if report.network.domain:
        yield from _facts(["domain:", *report.network.domain.split(" ")], width, between=" ")
    for note in model.notes:
        yield from _facts(["note:", *clean(note).split(" ")], width, "yellow", between=" ")


def _facts(
    facts: Sequence[str], width: int, style: str = "", *, between: str = " · ", indent: int = 0
) -> Iterator[Text]:
    """Facts one behind the other, broken only between two of them where that is possible."""
    line = ""
    for fact in map(clean, facts):
        longer = f"{line}{between}{fact}" if line else " " * indent + fact
        if line and cell_len(longer) > width:
            yield Text(line, style=style)
            longer = " " * indent + fact
        line = longer
    yield Text(line, style=style)


def _embeddings(report: Report, width: int) -> Iterator[Text]:
    if not report.embeddings:
        return
    heading = Text("embedding tables", style="bold")
    yield heading.append("  each as a matrix; no part of the network's bound", style="not bold dim")
    tables = report.embeddings
    sizes = [f"{table.entries}×{table.width}" for table in tables]
    norms = [f"norm {marked(table.bound)}" for table in tables]
    across = [max(map(len, cells)) for cells in (sizes, norms)]
    facts = [
        f"  {size:<{across[0]}}  {norm:<{across[1]}}  longest vector {marked(table.largest_row)}"
        for size, norm, table in zip(sizes, norms, tables, strict=True)
    ]
    names = [clean(table.layer) or "(model)" for table in tables]
    longest = min(max(map(cell_len, names)), max(8, width - 2 - max(map(len, facts))))
    for name, fact in zip(names, facts, strict=True):
        shown = cut_path(name, longest)
        line = Text("  ", no_wrap=True, overflow="ignore").append(shown, style="cyan")
        yield line.append(" " * (longest - cell_len(shown)) + fact)
    yield Text()


def _left_out(report: Report, width: int) -> Iterator[Text]:
    if not report.left_out:
        return
    yield Text("left out", style="bold").append("  of the checkpoint, without a bound", style="not bold dim")
    for group in report.left_out:
        yield from _facts([*group.reason.split(" "), f"({len(group.names)})"], width, between=" ", indent=2)
        yield from _named(group.names, width)
    yield Text()


def _network(report: Report, width: int) -> Iterator[Text]:
    network = report.network
    if not network.claimed:
        yield Text("network", style="bold").append("  no bound is claimed", style="not bold")
        yield from _facts(clean(network.reason).split(" "), width, "dim", between=" ", indent=2)
        return
    yield Text("network", style="bold").append(
        f"  output change per input change, Euclidean norms, {describe.scope(report)}", style="not bold dim"
    )
    sampled = "no input was sampled"
    if network.samples:
        sampled = f"largest Jacobian norm at {network.samples} sampled input{describe.s(network.samples)}"
    rows = (
        (describe.claim(report), describe.power_and_plain(network.log10_upper), _beside(network)),
        ("plain product", describe.power_and_plain(network.log10_product), _gain(network)),
        ("sampled lower", numbers.down(network.lower) if network.samples else "–", sampled),
    )
    longest = max(len(value) for _, value, _ in rows)
    for index, (label, value, note) in enumerate(rows):
        line = Text(f"  {label:<15}  ").append(value, style="" if index else "bold")
        yield line.append(" " * (longest + 2 - len(value)) + note if note else "", style="dim")
    if network.tightening:
        gains = (f"{step.name} {step.log10_before - step.log10_after:.2f}" for step in network.tightening)
        yield from _facts(["tightened, in powers of ten:", " · ".join(gains)], width, "dim", between=" ", indent=2)
    if network.log10_upper == math.inf:
        yield Text(f"  no finite bound: {clean(network.reason) or 'a layer has none'}", style="bold red")
    yield from _holders(report, width)


def _holders(report: Report, width: int) -> Iterator[Text]:
    holders = [(layer.share or 0.0, describe.path(layer)) for layer in describe.heaviest(report, _HEAVIEST)]
    holders += [(share, f"{clean(op)}, all together") for op, share in report.network.elsewhere.items()]
    holders = [holder for holder in holders if holder[0] > _NEGLIGIBLE]
    holders.sort(key=lambda holder: -holder[0])
    if holders:
        yield Text("largest shares of the log-bound", style="bold")
    for share, name in holders[:_HEAVIEST]:
        yield Text(f"  {share_text(share):>6}  ").append(cut_path(name, width - 10), style="cyan")


def _beside(network: NetworkReport) -> str:
    return "the output does not depend on the input" if network.log10_upper == -math.inf else ""


def _gain(network: NetworkReport) -> str:
    gained = network.log10_product - network.log10_upper
    return f"each operation alone; 10^{gained:.2f} higher" if 0.01 <= gained < math.inf else "each operation alone"


def _unsupported(report: Report, width: int) -> Iterator[Text]:
    if not report.unsupported:
        return
    places = sum(len(entry.layers) for entry in report.unsupported)
    yield Text()
    yield Text(f"without a bound: {places} place{describe.s(places)} in the network", style="bold")
    for entry in sorted(report.unsupported, key=lambda entry: -len(entry.layers)):
        yield from _group(entry, width)


def _group(entry: UnsupportedOperation, width: int) -> Iterator[Text]:
    count = f"{entry.op} ×{len(entry.layers)} "
    yield from _facts([count, *entry.reason.split(" ")], width, between=" ", indent=2)
    yield from _named(list(dict.fromkeys(layer or "(model)" for layer in entry.layers)), width)


def _named(names: Sequence[str], width: int) -> Iterator[Text]:
    """Some names and how many more there are."""
    more = len(names) - _LAYERS_NAMED
    named = [*names[:_LAYERS_NAMED], *([f"and {more} more"] if more > 0 else [])]
    commas = [f"{name}," for name in named[:-1]]
    yield from _facts([*commas, *named[-1:]], width, "dim", between=" ", indent=4)
