"""The pytest plugin, in sessions of its own; what needs no network is run on reports written by hand."""

import copy
import gc
import json
import re
import weakref
from pathlib import Path

import pytest
import torch
from public_names import imported_and_used
from pytest_lipcheck import audits, baselines, limits
from torch import nn

import lipcheck
from lipcheck.text import clean

pytest_plugins = ["pytester"]

SOURCES = sorted(Path(limits.__file__).parent.glob("*.py"))
# Weights whose norms are known: 3 and 1.5.
NETWORK = """
    import pytest, torch
    from torch import nn

    def linear(norm):
        module = nn.Linear(2, 2)
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[norm, 0.0], [0.0, 0.5]]))
        return module

    def network():
        return nn.Sequential(linear(3.0), nn.ReLU(), linear(1.5))

    X = torch.zeros(1, 2)
"""
# A session without torch: `check(name, first=, second=, upper=)` is a report with two layers.
BY_HAND = """
    import lipcheck
    from lipcheck.report import LayerReport, ModelSummary, NetworkReport, Report, RunSummary

    def check(name, first=(1.0, 1.001), second=(2.0, 2.002), upper=1.0):
        rows = (("first", first), ("second", second))
        layers = tuple(
            LayerReport(name, "aten.linear.default", "linear", lipcheck.Bound(*ends, "by hand")) for name, ends in rows
        )
        return Report(
            ModelSummary(name, "module", "as given", 1, (2,)), layers, NetworkReport(upper, upper, 0.0), (),
            RunSummary("cpu", 1, 1e-3, 0),
        )

    lipcheck.check = check
"""


@pytest.fixture
def session(pytester, monkeypatch):
    """Runs pytest in a process of its own, warnings being errors, on the files of the folder."""
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments):
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "--strict-markers", *arguments)

    return run


def test_a_session_without_the_fixture_loads_neither_torch_nor_lipcheck(pytester, session):
    pytester.makeconftest("""
        import sys

        def pytest_sessionfinish(session):
            assert session.config.pluginmanager.hasplugin("lipcheck")
            loaded = {name.partition(".")[0] for name in sys.modules}
            print("loaded:", sorted(loaded & {"torch", "lipcheck", "numpy", "rich"}))
    """)
    pytester.makepyfile("def test_nothing(): pass")
    for options in ([], ["--lip-save=kept"]):
        result = session("-s", *options)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["*loaded: []*"])
    assert not (pytester.path / "kept").exists()


def test_the_mark_is_registered_and_told(session):
    session("--markers").stdout.fnmatch_lines(["@pytest.mark.lipschitz(max_norm, max_log10_bound, max_slack, *"])


def test_networks_are_judged_by_their_marks(pytester, session):
    pytester.makepyfile(
        NETWORK
        + """
    @pytest.mark.lipschitz(max_norm=3.1, max_log10_bound=0.7, max_slack=0.01, require_finite=True)
    def test_kept(lipcheck):
        report = lipcheck(network(), example=X)
        assert lipcheck.reports == (report,)

    @pytest.mark.lipschitz(max_norm=2)
    def test_violated(lipcheck):
        lipcheck(network(), example=X)

    @pytest.mark.lipschitz(max_log10_bound=0.5)
    def test_the_bound(lipcheck):
        lipcheck(network(), example=X)

    @pytest.mark.lipschitz(max_slack=0)
    def test_slack(lipcheck):
        torch.manual_seed(0)
        lipcheck(nn.Conv2d(2, 3, 3), input_size=(2, 8, 8))

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear(1.0)

        def forward(self, x):
            return self.inner(x) * self.inner(x)

    @pytest.mark.lipschitz(require_finite=True)
    def test_infinite(lipcheck):
        lipcheck(Square(), example=X)

    @pytest.mark.lipschitz(max_norm=1.1, skip_operations=["aten.mul.*"])
    def test_skipped_operation(lipcheck):
        lipcheck(Square(), example=X)

    def test_no_mark(lipcheck):
        lipcheck(Square(), example=X)
    """
    )
    result = session("-rfE")
    result.assert_outcomes(passed=3, failed=4)
    lines = result.outlines
    assert "violated: Sequential: 0: its norm is at least 2.9999, over the budget of 2 [layer-norm-violated]" in lines
    result.stdout.re_match_lines_random(
        [
            r"(violated|not proven): Sequential: network: its .*\^0\.5.* \[network-bound-.*\]",
            r"not proven: Conv2d: \(model\): its enclosure has a slack of .*, over the budget of 0 % \[layer-slack\]",
            r"not proven: Square: network: .* \[network-not-finite\]",
            r"not proven: Square: .*aten\.mul\.Tensor: .* \[unsupported-operation\]",
            r"FAILED .*::test_violated - Failed: violated: Sequential: 0: its norm is .*",
        ]
    )
    assert not any(": 2: its norm" in line for line in lines)


def test_what_is_not_proven_fails_and_says_so(pytester, session):
    pytester.makeconftest(BY_HAND)
    pytester.makepyfile("""
        import pytest

        @pytest.mark.lipschitz(max_norm=2.001)
        def test_between(lipcheck):
            lipcheck("a")

        @pytest.mark.lipschitz(max_norm=1.5)
        def test_two_reports(lipcheck):
            lipcheck("good", second=(1.0, 1.0))
            lipcheck("bad", first=(1.4, 1.6))
    """)
    result = session()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "not proven: a: second: its norm lies between 2.0000 and 2.0020: within 2.001 is not proven "
            "[[]layer-norm-not-proven]",
            "violated: bad: second: its norm is at least 2.0000, over the budget of 1.5 [[]layer-norm-violated]",
            "not proven: bad: first: *",
        ]
    )


def test_marks_that_say_nothing_are_told(pytester, session):
    pytester.makeconftest(BY_HAND)
    pytester.makepyfile("""
        import pytest

        @pytest.mark.lipschitz(max_norm=2)
        def test_no_report(lipcheck): pass

        @pytest.mark.lipschitz(max_norm=2)
        def test_no_fixture(): pass

        @pytest.mark.lipschitz(max_nrom=2)
        def test_misspelt(lipcheck): lipcheck("a")

        @pytest.mark.lipschitz(2)
        def test_positional(lipcheck): lipcheck("a")

        @pytest.mark.lipschitz(max_norm="2")
        def test_text(lipcheck): lipcheck("a")

        @pytest.mark.lipschitz(max_norm=float("nan"))
        def test_nan(lipcheck): lipcheck("a")

        @pytest.mark.lipschitz
        def test_bare(lipcheck): lipcheck("a")
    """)
    result = session()
    result.assert_outcomes(failed=7)
    result.stdout.fnmatch_lines(
        [
            *["the mark lipschitz judges reports, and this test was given none*"] * 2,
            "the mark lipschitz has no max_nrom; it takes max_norm, *",
            "the mark lipschitz takes max_norm, *, each by its name",
            "max_norm is '2'; give a number",
            "max_norm is nan; give a number",
            "the mark lipschitz takes max_norm, *",
        ]
    )


def test_the_closest_mark_decides_and_other_outcomes_stand(pytester, session):
    pytester.makeconftest(BY_HAND)
    pytester.makepyfile("""
        import pytest

        pytestmark = pytest.mark.lipschitz(max_norm=1.5, max_log10_bound=0.5)

        @pytest.mark.lipschitz(max_norm=3, max_log10_bound=2)
        def test_wider(lipcheck): lipcheck("a")

        @pytest.mark.lipschitz(max_norm=3)
        def test_wider_in_one(lipcheck): lipcheck("a")

        @pytest.mark.xfail(strict=True)
        def test_expected(lipcheck): lipcheck("a")

        def test_skipped(lipcheck):
            lipcheck("a")
            pytest.skip("later")

        def test_own_failure(lipcheck):
            lipcheck("a")
            assert not "its own"
    """)
    result = session("-rf")
    result.assert_outcomes(passed=1, failed=2, xfailed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["FAILED *::test_wider_in_one - Failed: not proven: a: network: *", "FAILED *own_failure - AssertionError*"]
    )
    assert not re.search(r": (first|second): ", result.stdout.str())


RISES = {
    "overlapping": (1.0005, 1.2),  # no rise
    "little": (1.03, 1.031),
    "unsure": (1.04, 1.2),  # surely a rise, not surely one of more than 5 %
    "x/../../[y]": (1.1, 1.2),
    "é": (1.2, 1.3),
}


@pytest.fixture
def suite(pytester):
    """A report in each of five tests and two in a sixth; with AFTER set, norms have moved as RISES says."""
    pytester.makeconftest(BY_HAND)
    pytester.makepyfile(f"""
        import os
        import pytest

        RISES = {RISES} if "AFTER" in os.environ else {{}}

        @pytest.mark.parametrize("name", {list(RISES)})
        def test_one(lipcheck, name):
            lipcheck(name, first=RISES.get(name, (1.0, 1.001)))

        def test_two(lipcheck):
            lipcheck("a")
            lipcheck("b", first=RISES.get("x/../../[y]", (1.0, 1.001)))
    """)


def test_baselines_are_saved_and_rises_refused(pytester, session, suite, monkeypatch):
    session("--lip-save=kept/baselines").assert_outcomes(passed=6)
    folder = pytester.path / "kept" / "baselines"
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 7
    assert all(re.fullmatch(r"test_[A-Za-z0-9_.-]+\.json", name) for name in names)
    held = {lipcheck.Report.from_json((folder / name).read_bytes()).model.name for name in names}
    assert held == {*RISES, "a", "b"}
    session("--lip-compare=kept/baselines", "--lip-increase=0%").assert_outcomes(passed=6)

    monkeypatch.setenv("AFTER", "1")
    result = session("--lip-compare=kept/baselines")
    result.assert_outcomes(passed=3, failed=3)
    result.stdout.fnmatch_lines(
        [
            "risen: x/../../[[]y]: first: its norm rose by 9.89 % at least, over the budget of 5 % *",
            "risen: é: first: its norm rose by 19.8 % at least, over the budget of 5 % *",
            "risen: b: first: *",
        ]
    )
    assert not any("second" in line for line in result.outlines)
    session("--lip-compare=kept/baselines", "--lip-increase=10 %").assert_outcomes(passed=5, failed=1)
    session("--lip-compare=kept/baselines", "--lip-increase=0%").assert_outcomes(passed=1, failed=5)


def test_only_reports_of_tests_that_pass_become_baselines(pytester, session):
    pytester.makeconftest(BY_HAND)
    pytester.makepyfile("""
        import pytest

        @pytest.mark.lipschitz(max_norm=1)
        def test_violated(lipcheck): lipcheck("a")

        def test_failed(lipcheck):
            lipcheck("b")
            assert False
    """)
    session("--lip-save=kept").assert_outcomes(failed=2)
    assert not (pytester.path / "kept").exists()


def test_a_missing_or_broken_baseline_fails_the_test(pytester, session, suite):
    (pytester.path / "kept").mkdir()
    result = session("--lip-compare=kept")
    result.assert_outcomes(failed=6)
    result.stdout.fnmatch_lines(["not compared: no baseline */kept/*.json; write it with --lip-save"])
    session("--lip-compare=kept", "--lip-save=kept").assert_outcomes(passed=6)
    for path in (pytester.path / "kept").iterdir():
        path.write_text("{}")
    result = session("--lip-compare=kept")
    result.assert_outcomes(failed=6)
    result.stdout.fnmatch_lines(["*/kept/*.json: *; write it again with --lip-save"])


def test_one_report_goes_to_a_file(pytester, session):
    pytester.makeconftest(BY_HAND)
    pytester.makepyfile("""
        def test_it(lipcheck): lipcheck("a")
        def test_more(lipcheck): lipcheck("b")
    """)
    session("-k", "test_it", "--lip-save=it.json").assert_outcomes(passed=1)
    assert json.loads((pytester.path / "it.json").read_text())["model"]["name"] == "a"
    session("-k", "test_it", "--lip-compare=it.json").assert_outcomes(passed=1)
    result = session("--lip-save=it.json")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["--lip-save */it.json holds one report already; name a folder for several"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lip-compare=nowhere"], "--lip-compare */nowhere: not there; write it with --lip-save"),
        (["--lip-save=taken"], "--lip-save */taken: not a folder; name one, or a FILE.json"),
        (["--lip-increase=5"], "--lip-increase is 5; give per cent, such as 5%"),
        (["--lip-increase=-5%"], "--lip-increase is -5%; give per cent, such as 5%"),
        (["--lip-save=one.json", "-n1"], "--lip-save */one.json: several processes write a folder; name one"),
    ],
)
def test_wrong_options_are_refused_before_a_test_runs(pytester, session, options, message):
    (pytester.path / "taken").write_text("")
    pytester.makepyfile("def test_nothing(): pass")
    result = session(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_processes_write_the_same_folder(pytester, session, suite):
    session("-n2", "--lip-save=kept").assert_outcomes(passed=6)
    assert len(list((pytester.path / "kept").iterdir())) == 7


def test_hostile_names_reach_no_terminal(pytester, session):
    pytester.makeconftest(BY_HAND)
    pytester.makepyfile(r"""
        import pytest

        @pytest.mark.lipschitz(max_norm=1)
        def test_it(lipcheck):
            lipcheck("a\x1b[31m\u202e\n::error::\x9b")
    """)
    result = session("--color=no")
    result.assert_outcomes(failed=1)
    assert not re.search("[\x1b\x9b\u202e]", result.stdout.str())
    assert not any(line.startswith("::") for line in result.outlines)


def test_names_are_cleaned_as_lipcheck_cleans_them():
    hostile = "".join(map(chr, [*range(0x3100), 0xD800, 0xE000, 0xFEFF, 0xFFFF, 0x1F600, 0xE0001]))
    assert limits.printable(hostile) == clean(hostile)


def test_file_names_are_apart_and_harmless():
    tests = ["a::b", "a::B", "a:b", "a/b", "../a", "", "nul", "é" * 300, "x" * 300, "\ud800\n\0"]
    names = [baselines.file_name(test, number) for test in tests for number in (1, 2)]
    assert len({name.lower() for name in names}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,130}\.json", name) and not name.startswith(".") for name in names)


@pytest.fixture
def counted(monkeypatch):
    """The arguments of every audit that was made."""
    made = []

    def check(model, **options):
        made.append((model if isinstance(model, str) else type(model).__name__, options))
        return object()

    monkeypatch.setattr(lipcheck, "check", check)
    return made


def test_a_module_is_audited_again_only_when_it_or_the_options_changed(counted):
    module, kept = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), audits.Audits()
    first = kept.report(module, {"example": torch.zeros(1, 2)})
    assert kept.report(module, {"example": torch.zeros(1, 2)}) is first
    assert len(counted) == 1
    kept.report(copy.deepcopy(module), {"example": torch.zeros(1, 2)})
    kept.report(module, {"example": torch.ones(1, 2)})
    kept.report(module, {"example": torch.zeros(1, 2), "tolerance": 1e-2})
    assert len(counted) == 4
    module[0].weight.data[0, 0] += 1
    kept.report(module, {"example": torch.zeros(1, 2)})
    module[1].running_var.mul_(2)
    kept.report(module, {"example": torch.zeros(1, 2)})
    module[1].eps = 1e-3
    kept.report(module, {"example": torch.zeros(1, 2)})
    module[1] = nn.Identity()
    kept.report(module, {"example": torch.zeros(1, 2)})
    assert len(counted) == 8


def test_options_of_other_types_are_other_options(counted):
    kept = audits.Audits()
    for samples in (1, True, 1.0, "1", (1,), [1], None):
        kept.report("demo", {"samples": samples})
    assert len(counted) == 7
    box = lipcheck.Box(0.0, 1.0)
    kept.report("demo", {"domain": box})
    kept.report("demo", {"domain": lipcheck.Box(0.0, 1.0)})
    kept.report("demo", {"domain": lipcheck.Box(0.0, 2.0)})
    assert len(counted) == 9


def test_names_are_audited_again_when_the_file_changed(counted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = audits.Audits()
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"1")
    assert kept.report("a.safetensors", {}) is kept.report("a.safetensors", {})
    file.write_bytes(b"22")
    kept.report("a.safetensors", {})
    assert len(counted) == 2
    assert kept.report(tmp_path, {}) is kept.report(str(tmp_path), {})
    (tmp_path / "config.json").write_text("{}")
    kept.report(tmp_path, {})
    assert len(counted) == 4


@pytest.mark.parametrize("options", [{"certificate": "proof.lip"}, {"rules": {"key": len}}, {"progress": print}])
def test_what_cannot_be_compared_or_writes_a_file_is_never_given_again(counted, options):
    kept = audits.Audits()
    kept.report("demo", options)
    kept.report("demo", options)
    assert len(counted) == 2


def test_modules_are_not_kept_alive(counted):
    kept, module = audits.Audits(), nn.Linear(2, 2)
    gone = weakref.ref(module)
    kept.report(module, {})
    del module
    counted.clear()
    gc.collect()
    assert gone() is None


def test_the_session_shares_its_reports(pytester, session):
    pytester.makeconftest(BY_HAND)
    pytester.makepyfile("""
        seen = []

        def test_one(lipcheck): seen.append(lipcheck("a"))
        def test_two(lipcheck):
            assert lipcheck("a") is seen[0]
            assert lipcheck("a") is seen[0]
            assert lipcheck.reports == (seen[0],)
    """)
    session().assert_outcomes(passed=2)


def test_the_plugin_uses_public_names_alone():
    for path in SOURCES:
        modules, used = imported_and_used(path)
        assert not {name for name in modules if name.startswith("lipcheck.")}
        assert used <= set(lipcheck.__all__)
