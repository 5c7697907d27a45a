"""`lipcheck audit`, `init`, `baseline` and `diff` from the command line: verdicts, exit codes, every output."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import example_report
import pytest
import torch
from safetensors.torch import save_file

from lipcheck import cli
from lipcheck.bound import Bound
from lipcheck.report import Report

POLICY = "[[layers]]\nmatch = '*'\nmax_norm = {}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a checkpoint of two matrices, of norms 2 and 3."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    save_file({"small.weight": 2 * torch.eye(3), "large.weight": 3 * torch.eye(4)}, tmp_path / "w.safetensors")
    return tmp_path


def lipcheck(*words: str) -> int:
    return cli.main([*words, "-q"] if words[0] in ("audit", "init", "baseline") else list(words))


@pytest.mark.parametrize(
    ("limit", "code", "word"), [(3.5, 0, "passed"), (2.5, 1, "violated"), (3.0000001, 3, "not proven")]
)
def test_an_audit_says_yes_or_no(folder, capsys, limit, code, word):
    Path("lipcheck.toml").write_text(POLICY.format(limit))
    assert lipcheck("audit", "w.safetensors") == code
    out = " ".join(capsys.readouterr().out.split())
    assert word in out
    assert ("large" in out.split("no bound is claimed")[1]) == (code != 0)
    assert lipcheck("audit", "w.safetensors", "--exit-zero") == 0


def test_the_exit_code_is_the_same_whatever_the_output(folder, capsys):
    Path("p.toml").write_text(POLICY.format(2.5))
    kinds = ("json", "csv", "markdown", "junit", "sarif", "html", "svg", "png")
    words = [word for kind in kinds for word in ("--output", f"{kind}:out.{kind}")]
    assert lipcheck("audit", "w.safetensors", "--policy", "p.toml", *words) == 1
    assert all(Path(f"out.{kind}").stat().st_size > 100 for kind in kinds)
    document = json.loads(Path("out.json").read_text())
    assert document["judgement"]["outcome"] == "violated"
    assert Report.from_json(Path("out.json").read_text()).layers
    capsys.readouterr()
    for kind in ("json", "csv", "markdown", "junit", "sarif", "html", "svg"):
        assert lipcheck("audit", "w.safetensors", "--policy", "p.toml", "--output", f"{kind}:-") == 1
        assert capsys.readouterr().out == Path(f"out.{kind}").read_text() or kind in (
            "json",
            "html",
            "markdown",
            "sarif",
        )


def test_a_baseline_is_kept_and_judged_against(folder, capsys):
    assert lipcheck("baseline", "w.safetensors", "-o", "old.json") == 0
    assert "2 layers" in capsys.readouterr().out
    assert lipcheck("audit", "w.safetensors", "--baseline", "old.json") == 0
    save_file({"small.weight": 2.2 * torch.eye(3), "large.weight": 3 * torch.eye(4)}, "w.safetensors")
    assert lipcheck("audit", "w.safetensors", "--baseline", "old.json") == 1
    assert "small" in " ".join(capsys.readouterr().out.split()).split("no bound is claimed")[-1]
    Path("lipcheck.toml").write_text('[baseline]\nfile = "old.json"\nmax_increase = "20%"\n')
    assert lipcheck("audit", "w.safetensors") == 0


def test_the_policy_that_init_writes_is_passed_and_not_replaced(folder, capsys):
    assert lipcheck("init", "w.safetensors") == 0
    assert lipcheck("audit", "w.safetensors") == 0
    assert lipcheck("init", "w.safetensors") == 2
    assert "is there already; give --force" in capsys.readouterr().err
    assert lipcheck("init", "w.safetensors", "--force") == 0
    capsys.readouterr()
    assert lipcheck("init", "w.safetensors", "-o", "pyproject.toml") == 0
    assert "[tool.lipcheck.network]" in capsys.readouterr().out
    assert not Path("pyproject.toml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["audit", "w.safetensors"], "there is no policy here; write one with `lipcheck init MODEL`"),
        (["audit", "w.safetensors", "--policy", "none.toml"], "none.toml: No such file"),
        (["audit", "w.safetensors", "--baseline", "none.json"], "none.json: No such file"),
        (["audit", "w.safetensors", "--baseline", "w.safetensors"], "w.safetensors: this is no lipcheck report"),
        (["audit", "gone.safetensors", "--policy", "p.toml"], "gone.safetensors"),
        (["audit", "w.safetensors", "--policy", "p.toml", "--output", "sarf:x"], "did you mean sarif:x?"),
        (["audit", "w.safetensors", "--policy", "p.toml", "--output", "html"], "names no file"),
        (["audit", "w.safetensors", "--policy", "p.toml", "--output", "csv:no/x"], "cannot be written"),
        (["audit", "w.safetensors", "--policy", "p.toml", "--output", "csv:x", "--svg", "x"], "two outputs go to x"),
        (["policy"], "there is no policy here; write one with `lipcheck init MODEL`"),
        (["policy", "none.toml"], "none.toml: No such file"),
        (["diff", "w.safetensors", "w.safetensors", "--output", "html:x"], "there are json, markdown"),
        (["diff", "w.safetensors"], "B is missing"),
        (["diff", "none.json", "w.safetensors"], "none.json: No such file"),
        (["diff", "w.safetensors", "w.safetensors", "--fail-on", "lots"], "is no percentage"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_two(folder, capsys, words, message):
    Path("p.toml").write_text(POLICY.format(9))
    before = sorted(folder.iterdir())
    assert lipcheck(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(folder.iterdir()) == before


def test_a_policy_is_checked_by_itself_without_torch(folder, capsys):
    Path("lipcheck.toml").write_text(POLICY.format(2.5))
    assert lipcheck("policy") == 0
    assert capsys.readouterr().out.endswith("lipcheck.toml is a policy: budgets for layers 1, waivers 0\n")
    Path("p.toml").write_text('[network]\nmax = 1\n[skip]\nlayers = "\x1b"\n'.replace("\x1b", "\\u001b"))
    assert lipcheck("policy", "p.toml") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert all(line.startswith("lipcheck: error: p.toml: ") for line in lines)
    assert "network.max is unknown" in lines[0]
    assert "skip.layers is" in lines[1]
    assert "\x1b" not in captured.err
    script = "import sys; from lipcheck.cli import main; sys.exit(main(['policy']) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_two_reports_or_checkpoints_are_compared(folder, capsys):
    assert lipcheck("baseline", "w.safetensors", "-o", "old.json") == 0
    save_file({"small.weight": 2.2 * torch.eye(3), "new.weight": torch.eye(4)}, "v.safetensors")
    capsys.readouterr()
    assert lipcheck("diff", "old.json", "v.safetensors", "-q") == 0
    out = capsys.readouterr().out
    assert [word for word in ("small", "new", "large") if word in out] == ["small", "new", "large"]
    assert out.index("small") < out.index("new") < out.index("large")
    assert lipcheck("diff", "old.json", "v.safetensors", "-q", "--fail-on", "+5%") == 1
    assert "small rose by more than +5%" in capsys.readouterr().err
    assert lipcheck("diff", "old.json", "v.safetensors", "-q", "--fail-on", "+15%") == 0


def test_a_difference_is_written_as_json_and_markdown(folder, capsys):
    assert lipcheck("baseline", "w.safetensors", "-o", "old.json") == 0
    weights = {"small.weight": 2.2 * torch.eye(3), "<b>|`.weight": torch.eye(4), "large.weight": 3 * torch.eye(4)}
    save_file(weights, "v.safetensors")
    line = ("diff", "old.json", "v.safetensors", "-q", "--output", "markdown:changes.md")
    assert lipcheck(*line, "--output", "json:changes.json", "--fail-on", "+5%") == 1
    document = json.loads(Path("changes.json").read_text())
    assert [(one["layer"], one["state"]) for one in document["layers"]] == [
        *(("small", "raised"), ("<b>|`", "added"), ("large", "unchanged")),
    ]
    small, added = document["layers"][:2]
    assert small["percent"] == pytest.approx(10, abs=0.1)
    assert small["least_rise"] <= 0.1 + 1e-6
    assert (added["before"], added["percent"], added["largest_rise"]) == (None, None, None)
    assert document["counts"] == {"raised": 1, "added": 1, "unchanged": 1}
    text = Path("changes.md").read_text()
    assert text.startswith("# lipcheck: `w.safetensors` → `v.safetensors`\n")
    assert "`small`" in text
    assert "<b>|" not in text
    assert "`large`" not in text
    capsys.readouterr()
    assert lipcheck("diff", "old.json", "v.safetensors", "-q", "--all", "--output", "markdown:-") == 0
    alone = capsys.readouterr().out
    assert alone.startswith("# lipcheck: ")
    assert "`large`" in alone


def test_overlapping_enclosures_are_never_a_regression(folder, capsys):
    for name, ends in (("a.json", (1.0, 2.0)), ("b.json", (1.9, 4.0))):
        layer = example_report.layer("a", "linear", *ends, channels=(3, 3))
        whole = replace(example_report.small(), layers=(replace(layer, bound=Bound(*ends, "m")),))
        Path(name).write_text(whole.to_json())
    assert lipcheck("diff", "a.json", "b.json", "--fail-on", "0%") == 0
    assert "within slack" in " ".join(capsys.readouterr().out.split())


def test_github_is_told_where_it_runs(folder, capsys, monkeypatch):
    Path("p.toml").write_text(POLICY.format(2.5))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(folder / "summary.md"))
    assert lipcheck("audit", "w.safetensors", "--policy", "p.toml") == 1
    assert "::error" in capsys.readouterr().out
    assert "large" in (folder / "summary.md").read_text()
    assert lipcheck("audit", "w.safetensors", "--policy", "p.toml", "--output", "json:-") == 1
    json.loads(capsys.readouterr().out)


def test_a_reader_that_went_away_is_no_error(folder):
    Path("p.toml").write_text(POLICY.format(3.5))
    layers = {f"layer{index}.weight": torch.eye(2) for index in range(400)}  # more than a pipe holds
    save_file(layers, "many.safetensors")
    words = ["audit", "many.safetensors", "--policy", "p.toml", "--output", "json:-", "-q", "--no-isolate"]
    run = subprocess.Popen(
        [sys.executable, "-m", "lipcheck", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    run.stdout.close()
    _, told = run.communicate(timeout=300)
    assert (run.returncode, told) == (0, "")
