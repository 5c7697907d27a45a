"""The pre-commit hook and the GitHub Action: what stands in their files, and the action's scripts run by bash."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from lipcheck.cli import app

ROOT = Path(__file__).parent.parent.parent
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
AUDIT = next(step for step in STEPS if step.get("id") == "audit")
HOSTILE = "a'b\"; touch $(echo ran) `touch ran` * $HOME"


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_runs_a_command_of_ours(hook):
    program, command = hook["entry"].split()
    assert program == "lipcheck"
    assert command in typer.main.get_command(app).commands
    assert hook["language"] == "python"
    assert hook["pass_filenames"] is False


@pytest.mark.parametrize(
    ("path", "fits"),
    [
        ("model.safetensors", True),
        ("out/pytorch_model.bin", True),
        ("model.onnx", True),
        ("a/config.json", True),
        ("model.safetensors.index.json", True),
        ("lipcheck.toml", True),
        ("pyproject.toml", True),
        ("README.md", False),
        ("train.py", False),
        ("pt", False),
    ],
)
def test_the_hook_runs_when_weights_or_a_policy_changed(path, fits):
    assert bool(re.search(HOOKS[0]["files"], path)) is fits


def test_no_input_stands_in_a_script():
    assert ACTION["runs"]["using"] == "composite"
    scripts = [step["run"] for step in STEPS if "run" in step]
    assert len(scripts) == 2
    assert not any("${{" in script for script in scripts)
    assert all(step["shell"] == "bash" for step in STEPS if "run" in step)


def test_every_input_is_used_and_every_one_used_is_declared():
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == set(ACTION["inputs"])
    assert [name for name, entry in ACTION["inputs"].items() if entry.get("required")] == ["model"]
    assert ACTION["outputs"]["exit-code"]["value"] == "${{ steps.audit.outputs.exit-code }}"


@pytest.fixture
def step(tmp_path):
    """Runs the audit's script as GitHub does, on inputs by their names."""

    def run(folder=None, **inputs):
        given = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()} | inputs
        told = {name: given[re.search(r"inputs\.([\w-]+)", text)[1]] for name, text in AUDIT["env"].items()}
        script = tmp_path / "script.sh"
        script.write_text(AUDIT["run"])
        places = [*([str(folder)] if folder else []), str(Path(sys.executable).parent), os.environ["PATH"]]
        environment = {**os.environ, **told, "GITHUB_OUTPUT": str(tmp_path / "output"), "PATH": ":".join(places)}
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def recorder(tmp_path):
    """A folder with a `lipcheck` that prints its arguments, each between brackets, and exits with 3."""
    folder = tmp_path / "stub"
    folder.mkdir()
    stub = folder / "lipcheck"
    stub.write_text("#!/bin/sh\nprintf '[%s]\\n' \"$@\"\nexit 3\n")
    stub.chmod(0o755)
    return folder


def test_inputs_become_arguments_as_they_stand(step, recorder, tmp_path):
    result = step(
        recorder,
        model=HOSTILE,
        policy=HOSTILE,
        baseline="-b",
        output="sarif:a b.sarif\n\nhtml:r.html\n",
        args=f"--exit-zero\n{HOSTILE}",
    )
    expected = [
        *("audit", f"--policy={HOSTILE}", "--baseline=-b", "--output=sarif:a b.sarif", "--output=html:r.html"),
        *("--exit-zero", HOSTILE, "--", HOSTILE),
    ]
    assert result.stdout.splitlines() == [f"[{argument}]" for argument in expected]
    assert result.returncode == 3
    assert (tmp_path / "output").read_text() == "exit-code=3\n"
    assert not (tmp_path / "ran").exists()


def test_without_further_inputs_only_the_model_is_given(step, recorder):
    assert step(recorder, model="-model").stdout.splitlines() == ["[audit]", "[--]", "[-model]"]


@pytest.mark.parametrize(("inputs", "code"), [({"model": "demo"}, 0), ({"model": "--nowhere"}, 2)])
def test_the_script_runs_the_real_command(step, tmp_path, inputs, code):
    (tmp_path / "lipcheck.toml").write_text("")
    result = step(**inputs, output="json:report.json" if code == 0 else "")
    assert result.returncode == code, result.stderr
    assert (tmp_path / "output").read_text() == f"exit-code={code}\n"
    assert (tmp_path / "report.json").exists() is (code == 0)
