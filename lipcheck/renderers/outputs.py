"""Where a report goes and in which format: `html:report.html`, several at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lipcheck.diff import Difference
from lipcheck.errors import UsageError
from lipcheck.policy import Judgement
from lipcheck.renderers import chart, csv_table, document, files, junit, markdown, page, sarif
from lipcheck.report import Report
from lipcheck.text import clean

Write = Callable[[Report, Judgement | None], str | bytes]
FORMATS: dict[str, Write] = {
    "json": document.text,
    "csv": csv_table.text,
    "markdown": markdown.text,
    "junit": junit.text,
    "sarif": sarif.text,
    "html": page.text,
    "svg": lambda report, _: chart.svg(report),
    "png": lambda report, _: chart.png(report),
}
# Those of two reports compared. The second argument says whether unchanged layers are listed where people read.
DIFFERENCES: dict[str, Callable[[Difference, bool], str]] = {
    "json": lambda difference, _: document.difference(difference),
    "markdown": lambda difference, every: markdown.difference(difference, every=every),
}
STANDARD_OUTPUT = "-"


@dataclass(frozen=True, slots=True)
class Output:
    """A format and the file that it is written to, "-" for standard output."""

    kind: str
    file: str

    @property
    def path(self) -> Path | None:
        """The file, None for standard output."""
        return None if self.file == STANDARD_OUTPUT else Path(self.file).expanduser()


def read_outputs(texts: Sequence[str], formats: Collection[str] = tuple(FORMATS)) -> tuple[Output, ...]:
    """What `--output KIND:FILE` says, each, in one of the formats; the files can be written now.

    Errors: UsageError for a kind that there is not, for two outputs to one place; OutputError.
    """
    found = tuple(_read(text, formats) for text in texts)
    places = [str(output.path.resolve()) if output.path is not None else STANDARD_OUTPUT for output in found]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise UsageError(f"two outputs go to {clean(found[index].file)}; give each its own file")
    for output in found:
        if output.path is not None:
            files.check_writable(output.path)
    return found


def _read(text: str, formats: Collection[str]) -> Output:
    kind, colon, file = text.partition(":")
    if kind == "md":
        kind = "markdown"
    if kind not in formats:
        near = get_close_matches(kind, formats, n=1)
        known = f"; there are {', '.join(formats)}"
        hint = f"; did you mean {near[0]}:{clean(file) or 'FILE'}?" if near and colon else known
        raise UsageError(f"the output {clean(text)!r} has no format that lipcheck writes{hint}")
    if not file:
        raise UsageError(f"the output {clean(text)!r} names no file; write it like {kind}:report.{kind}")
    if file == STANDARD_OUTPUT and kind == "png":
        raise UsageError("a PNG is a binary file; give --output png: the name of one")
    return Output(kind, file)


def write(output: Output, report: Report, judgement: Judgement | None, stdout: Callable[[str], None]) -> None:
    """The report in the output's format, in its file whole or not at all; what goes to no file is given to `stdout`.

    Errors: OutputError; MissingExtraError where a format needs a library that is not installed.
    """
    put(output, FORMATS[output.kind](report, judgement), stdout)


def put(output: Output, content: str | bytes, stdout: Callable[[str], None]) -> None:
    """The content in the output's file, whole or not at all; what goes to no file is given to `stdout`.

    Errors: OutputError.
    """
    if output.path is not None:
        files.write_atomically(output.path, content)
    else:
        stdout(content if isinstance(content, str) else content.decode())
