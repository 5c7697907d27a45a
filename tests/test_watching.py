"""`lipcheck watch`: checkpoints as they come, whatever state they are in, and what is told of them."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lipcheck import cli, watching
from lipcheck.report import Report

ARCH = "watched_network:build"


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's folder, in a folder with the network that its checkpoints are of; time passes when a test says so."""
    source = "from torch import nn\n\n\ndef build():\n    return nn.Sequential(\n"
    source += "        nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False)\n    )\n"
    (tmp_path / "watched_network.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    folder = tmp_path / "run"
    folder.mkdir()

    def never(seconds):
        raise AssertionError("nothing is to be waited for")

    monkeypatch.setattr(watching, "sleep", never)
    return folder


def write(path: Path, first: float, second: float = 1.0, *, old: bool = True) -> Path:
    """A checkpoint whose layers have these norms, written long ago unless it is new."""
    save_file({"0.weight": first * torch.eye(3), "2.weight": second * torch.eye(3)}, path)
    if old:
        os.utime(path, (1, 1))
    return path


def watch(*words: str) -> int:
    return cli.main(["watch", "run", "--input", "3", "--samples", "1", "-q", *words])


def records(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_finished_run_is_told_in_its_order(run, capsys):
    for number, norm in ((1, 1.0), (2, 2.0), (10, 10.0)):
        write(run / f"checkpoint-{number}.safetensors", norm)
    assert watch("--arch", ARCH, "--once") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("checkpoint-")]
    assert [row[0] for row in rows] == [f"checkpoint-{n}.safetensors" for n in (1, 2, 10)]
    for row, norm in zip(rows, (1, 2, 10), strict=True):
        # An exponent that is rounded up, and a norm that is rounded down.
        assert math.log10(norm) <= float(row[1]) <= math.log10(norm) + 0.02
        assert float(row[2]) <= norm
    assert rows[1][-2:] == ["0", "+100%"]
    text = "\n".join(lines)
    assert "certified upper bound of the network, in powers of ten · 3 checkpoints" in text
    assert re.search(r"0 +1\.000\d → 10\.00\d +\+90\d% +▁▃█", text)
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("width", [80, 160])
def test_lines_fit_the_width_whatever_the_names(run, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for number in range(12):
        write(run / f"a-name-of-great-length-{'x' * 90}-step={number}.safetensors", 1.0 + number)
    (run / "broken-1.safetensors").write_bytes(b"no header")
    os.utime(run / "broken-1.safetensors", (1, 1))
    assert watch("--arch", ARCH, "--once") == 3
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert sum("safetensors" in line and "%" in line for line in lines) >= 11


def test_what_is_broken_is_one_line_and_the_watch_goes_on(run, capsys):
    write(run / "checkpoint-1.safetensors", 1.0)
    for number, name in ((2, "checkpoint-2.safetensors"), (3, "checkpoint-3.pt"), (4, "check\x1b[mpoint-4.pth")):
        (run / name).write_bytes(b"PK\x03\x04 nothing that follows" * number)
        os.utime(run / name, (1, 1))
    save_file({"0.weight": torch.full((3, 3), math.nan), "2.weight": torch.eye(3)}, run / "checkpoint-5.safetensors")
    save_file({"other": torch.eye(3)}, run / "checkpoint-6.safetensors")
    os.utime(run / "checkpoint-5.safetensors", (1, 1))
    os.utime(run / "checkpoint-6.safetensors", (1, 1))
    write(run / "checkpoint-7.safetensors", 2.0)
    assert watch("--arch", ARCH, "--once", "--json", "-") == 3
    found = records(capsys)
    assert [record["status"] for record in found] == ["bounded", *["not audited"] * 5, "bounded"]
    told = [record["problem"] for record in found[1:6]]
    assert [bool(re.search(sign, text)) for sign, text in zip(_SIGNS, told, strict=True)] == [True] * 5
    assert all("\n" not in text and "bug in lipcheck" not in text for text in told)
    # What rose is told against the last checkpoint that has figures.
    assert list(found[6]["grown"]) == ["0"]
    assert watch("--arch", ARCH, "--once") == 3
    out = capsys.readouterr().out
    assert out.count("not audited: ") == 5
    assert "\x1b" not in out
    assert "7 checkpoints, 2 of them audited" in out


_SIGNS = ("no safetensors file", "cut off or damaged", "cut off or damaged", "NaN or infinite", "do not fit the model")


def test_weights_without_an_architecture_are_bounded_by_themselves(run, capsys):
    for number in (1, 2):
        write(run / f"w{number}.safetensors", 2.0 * number)
    assert cli.main(["watch", "run", "--once", "-q"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"w1\.safetensors +2\.000\d +2 ", out)
    assert re.search(r"w2\.safetensors +4\.000\d +2 +\+0\.31 +0 +\+100%", out)
    assert "certified upper bound of the largest layer" in out
    assert cli.main(["watch", "run", "--once", "-q", "--fail-above", "3"]) == 2
    assert "give --arch NAME" in capsys.readouterr().err


def test_a_budget_ends_with_one(run, capsys):
    write(run / "checkpoint-1.safetensors", 1.0)
    write(run / "checkpoint-2.safetensors", 200.0)
    assert watch("--arch", ARCH, "--once", "--fail-above", "2.5") == 0
    assert watch("--arch", ARCH, "--once", "--fail-above", "2") == 1
    assert watch("--arch", ARCH, "--fail-above", "2") == 1  # and the watch ends by itself


def test_both_formats_hold_the_same(run, capsys):
    write(run / "=1+1.safetensors", 1.0)
    write(run / "checkpoint-2.safetensors", 3.0)
    assert watch("--arch", ARCH, "--once", "--json", "out.jsonl", "--csv", "-") == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["checkpoint"].lstrip("'") for row in rows] == [line["checkpoint"] for line in lines]
    assert rows[0]["checkpoint"].startswith("'=")
    for row, line in zip(rows, lines, strict=True):
        assert float(row["log10_upper"]) >= line["log10_upper"] - 1e-16
        assert float(row["sampled_lower"]) <= line["sampled_lower"]
        assert float(row["largest_upper"]) >= max(line["norms"].values())
        assert row["status"] == "bounded"
    assert rows[1]["grew_most"] == "0"


def following(monkeypatch, *actions) -> list[float]:
    """Each pause of the watch runs the next action; behind the last one the user ends it."""
    left, pauses = list(actions), []

    def pause(seconds):
        pauses.append(seconds)
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr(watching, "sleep", pause)
    return pauses


def test_checkpoints_are_audited_as_they_come_and_an_end_is_no_failure(run, capsys, monkeypatch):
    pauses = following(
        monkeypatch,
        lambda: write(run / "checkpoint-1.safetensors", 1.0),
        lambda: None,  # nothing is written to it any more
        lambda: write(run / "last.safetensors", 2.0, old=False),
        lambda: write(run / "last.safetensors", 3.0, old=False),  # still being written
        lambda: None,
        lambda: write(run / "last.safetensors", 4.0, old=False),  # and again, a later one
        lambda: None,
    )
    assert watch("--arch", ARCH, "--interval", "5s", "--json", "-") == 0
    found = records(capsys)
    assert [record["checkpoint"] for record in found] == ["checkpoint-1.safetensors", *["last.safetensors"] * 2]
    assert [round(record["norms"]["0"], 3) for record in found] == [1.0, 3.0, 4.0]
    assert pauses[0] == 5.0
    assert min(pauses) < 5.0  # while one is being written, it looks more often


def test_half_a_file_is_waited_for_and_told_when_it_stays(run, capsys, monkeypatch):
    whole = write(run / "whole.safetensors", 1.0).read_bytes()
    (run / "whole.safetensors").unlink()
    half = run / "checkpoint-1.safetensors"
    following(monkeypatch, lambda: half.write_bytes(whole[:-9]), lambda: half.write_bytes(whole), lambda: None)
    assert watch("--arch", ARCH, "--json", "-") == 0
    assert [record["status"] for record in records(capsys)] == ["bounded"]
    following(monkeypatch, lambda: half.write_bytes(whole[:-9]), lambda: None, lambda: half.write_bytes(whole + b" "))
    half.unlink()
    assert watch("--arch", ARCH, "--json", "-") == 0
    assert [record["status"] for record in records(capsys)] == ["not audited"]


def test_what_is_written_anew_or_removed_during_its_audit_is_not_told_as_it_was(run, capsys, monkeypatch):
    write(run / "checkpoint-1.safetensors", 1.0)
    write(run / "checkpoint-2.safetensors", 1.0)
    own = watching.Asked.report
    met = []

    def meanwhile(asked) -> Report:
        met.append(Path(asked.model).name)
        if len(met) == 1:
            report = own(asked)
            write(run / "checkpoint-1.safetensors", 7.0)
            return report
        if len(met) == 2:
            (run / "checkpoint-2.safetensors").unlink()
        return own(asked)

    monkeypatch.setattr(watching.Asked, "report", meanwhile)
    following(monkeypatch)
    assert watch("--arch", ARCH, "--json", "-") == 0
    found = {record["checkpoint"]: record for record in records(capsys)}
    assert met == [f"checkpoint-{number}.safetensors" for number in (1, 2, 1)]
    assert "removed before it could be read" in found["checkpoint-2.safetensors"]["problem"]
    assert round(found["checkpoint-1.safetensors"]["norms"]["0"]) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["watch", "gone"], "gone: no such folder; name the one that training writes"),
        (["watch", "run", "--once"], "run: holds no checkpoint; those that are known end in"),
        (["watch", "run", "--weights", "random"], "leave out --weights"),
        (["watch", "run", "--interval", "0s"], "the interval is 0s"),
        (["watch", "run", "--json", "-", "--csv", "-"], "give one of them a file"),
        (["watch", "run", "--fail-above", "nan"], "--fail-above takes a power of ten"),
        (["watch", "run", "--json", "no/where"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, capsys, words, message):
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("words", [["--arch", "resnet5O"], ["--arch", ARCH, "--domain", "nowhere"]])
def test_what_every_checkpoint_would_meet_ends_the_watch(run, capsys, words):
    write(run / "checkpoint-1.safetensors", 1.0)
    write(run / "checkpoint-2.safetensors", 1.0)
    assert watch("--once", *words) == 2
    assert capsys.readouterr().err.count("lipcheck: error") == 1


def test_a_reader_that_goes_away_ends_the_watch(run):
    write(run / "checkpoint-1.safetensors", 1.0)
    line = [sys.executable, "-c", "import sys; from lipcheck.cli import main; sys.exit(main())", "watch", "run", "-q"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.wait(120) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(("limit", "code"), [("5", 3), ("-5", 1)])
def test_a_checkpoint_that_was_not_audited_is_within_no_budget(run, limit, code):
    write(run / "checkpoint-1.safetensors", 1.0)
    (run / "checkpoint-2.pt").write_bytes(b"PK\x03\x04 nothing that follows")
    os.utime(run / "checkpoint-2.pt", (1, 1))
    assert watch("--arch", ARCH, "--once", "--fail-above", limit) == code
