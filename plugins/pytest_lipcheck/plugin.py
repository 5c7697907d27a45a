"""The fixture `lipcheck`, the mark `lipschitz`, and the options --lip-save, --lip-compare and --lip-increase.

Nothing beyond pytest is imported before a test asks for a report.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_lipcheck import baselines
from pytest_lipcheck.audits import Audits
from pytest_lipcheck.limits import OPTIONS, Misuse, broken, limits_of, part, printable, risen

if TYPE_CHECKING:
    from torch import nn

    from lipcheck import Report

MARK = "lipschitz"


class Audit:
    """What the fixture `lipcheck` is: called like `lipcheck.check`, it keeps the reports that it gave to this test."""

    def __init__(self, audits: Audits) -> None:
        self._audits = audits
        self._given: list[Report] = []

    def __call__(self, model: str | Path | nn.Module, /, **options: Any) -> Report:
        """The report on a network; one that the session has already is not computed again.

        The options are those of `lipcheck.check`, which a module in hand needs one of: `example` or `input_size`.
        """
        __tracebackhide__ = True
        report = self._audits.report(model, options)
        if not any(report is earlier for earlier in self._given):
            self._given.append(report)
        return report

    @property
    def reports(self) -> tuple[Report, ...]:
        """The reports that the test was given, in their order, each once."""
        return tuple(self._given)


# --lip-save also takes FILE.json, for a session with one report.
_OPTIONS = (
    ("--lip-save", "DIR", None, "write the reports that tests which pass were given into this folder (or FILE.json)"),
    ("--lip-compare", "DIR", None, "fail tests in which a layer's norm has surely risen since --lip-save wrote DIR"),
    ("--lip-increase", "PERCENT", "5%", "by how much a norm may rise under --lip-compare (default: 5%%)"),
)
_AUDIT = pytest.StashKey[Audit]()
_FILE_TAKEN = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lipcheck", "bounds on networks (lipcheck)")
    for name, metavar, default, text in _OPTIONS:
        group.addoption(name, metavar=metavar, default=default, help=text)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARK}({', '.join(OPTIONS)}): fail unless every report that the fixture lipcheck gives is proven to keep "
        "to these limits",
    )
    save, compare = _path(config, "lip_save"), _path(config, "lip_compare")
    if save is not None and save.exists() and not save.is_dir() and not baselines.is_file(save):
        raise pytest.UsageError(f"--lip-save {printable(str(save))}: not a folder; name one, or a FILE.json")
    if save is not None and baselines.is_file(save) and config.getoption("dist", "no") != "no":
        raise pytest.UsageError(f"--lip-save {printable(str(save))}: several processes write a folder; name one")
    if compare is not None and not (compare.is_dir() or (baselines.is_file(compare) and compare.is_file())):
        raise pytest.UsageError(f"--lip-compare {printable(str(compare))}: not there; write it with --lip-save")
    try:
        part(config.getoption("lip_increase"))
    except Misuse as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture(scope="session")
def _lipcheck_audits() -> Audits:
    return Audits()


@pytest.fixture
def lipcheck(request: pytest.FixtureRequest, _lipcheck_audits: Audits) -> Audit:
    """Audit a network: lipcheck(module_or_name, **options of lipcheck.check) gives its Report, computed once."""
    audit = Audit(_lipcheck_audits)
    request.node.stash[_AUDIT] = audit
    return audit


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A test that passed fails where a report that it was given breaks its marks, or rose above its baseline."""
    yield
    audit = item.stash.get(_AUDIT, None)
    reports = () if audit is None else audit.reports
    try:
        lines = [*_broken(item, reports), *_risen(item, reports)]
        if not lines:
            _save(item, reports)
    except Misuse as error:
        lines = [str(error)]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def _broken(item: pytest.Item, reports: tuple[Report, ...]) -> Iterator[str]:
    marks = list(item.iter_markers(MARK))
    if not marks:
        return
    limits = limits_of(marks)
    if not reports:
        raise Misuse(f"the mark {MARK} judges reports, and this test was given none; call the fixture lipcheck in it")
    for report in reports:
        yield from broken(report, limits)


def _risen(item: pytest.Item, reports: tuple[Report, ...]) -> Iterator[str]:
    folder = _path(item.config, "lip_compare")
    if folder is None:
        return
    increase = part(item.config.getoption("lip_increase"))
    for number, report in enumerate(reports, start=1):
        path = baselines.place(folder, item.nodeid, number)
        if path.is_file():
            yield from risen(report, _read(path), increase)
        elif _path(item.config, "lip_save") is None:
            yield f"not compared: no baseline {printable(str(path))}; write it with --lip-save"


def _read(path: Path) -> Report:
    import lipcheck

    try:
        return lipcheck.Report.from_json(path.read_bytes())
    except (lipcheck.LipcheckError, OSError) as error:
        raise Misuse(f"{printable(str(path))}: {printable(str(error))}; write it again with --lip-save") from error


def _save(item: pytest.Item, reports: tuple[Report, ...]) -> None:
    given = _path(item.config, "lip_save")
    if given is None:
        return
    for number, report in enumerate(reports, start=1):
        if baselines.is_file(given):
            taken = item.config.stash.setdefault(_FILE_TAKEN, f"{item.nodeid} {number}")
            if taken != f"{item.nodeid} {number}":
                raise Misuse(f"--lip-save {printable(str(given))} holds one report already; name a folder for several")
        try:
            baselines.write(baselines.place(given, item.nodeid, number), report)
        except OSError as error:
            raise Misuse(f"--lip-save {printable(str(given))} cannot be written ({error.strerror})") from error


def _path(config: pytest.Config, option: str) -> Path | None:
    """Where the option points, from the folder that pytest was started in."""
    given = config.getoption(option)
    return None if given is None else Path(config.invocation_params.dir, given)
