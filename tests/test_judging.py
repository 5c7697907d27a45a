"""`lipcheck audit`, `init`, `baseline` and `diff` from the command line: verdicts, exit codes, every output."""

from __future__ import annotations

import json
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
