"""The command line from outside: what it prints where, its exit codes, and how fast it answers without torch."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import example_report
import jsonschema
import pytest

from lipcheck import cli
from lipcheck.errors import SourceError, UnknownModelError
from lipcheck.explain import TOPICS, reflow
from lipcheck.report import Report

LOADED = "import sys; from lipcheck.cli import main; main({!r}); sys.exit('torch' in sys.modules)"


@pytest.fixture
def audit(monkeypatch):
    """Run a command line against a `check` that returns or raises what the test says, and keep what it was given."""
    given = {}

    def run(*arguments, result=None):
        def check(model, **options):
            given.clear()
            given.update(options, model=model)
            print("a library prints")
            warnings.warn("a library warns", stacklevel=1)
            options["progress"].stage("bounds", 10)
            options["progress"].advance(5)
            if isinstance(result, BaseException):
                raise result
            return result or example_report.small()

        monkeypatch.setitem(sys.modules, "lipcheck.checking", SimpleNamespace(check=check))
        return cli.main(list(arguments))

    run.given = given
    return run


def one_line(text: str) -> str:
    assert text.startswith("lipcheck: error: ")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["schema"], ["explain", "certified"], ["explain"], ["resnet50", "--json", "/no/x"]],
)
def test_answers_without_torch(arguments):
    done = subprocess.run([sys.executable, "-c", LOADED.format(arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, "torch was imported"


def test_help_shows_the_model_every_option_and_the_commands(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in (
        "MODEL",
        "--weights",
        "--json",
        "--require-finite",
        "--version",
        "--install-completion",
        "explain",
        "schema",
    ):
        assert word in text
    assert "lipcheck demo" in text
    assert cli.main(["resnet50", "--weights", "random", "-h"]) == 0
    assert capsys.readouterr().out == text


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lipcheck ")


def test_schema_prints_a_schema(capsys):
    assert cli.main(["schema"]) == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))


def test_explain(capsys):
    assert cli.main(["explain"]) == 0
    listed = capsys.readouterr().out
    assert all(topic in listed for topic in TOPICS)
    assert cli.main(["explain", "LOWER"]) == 0
    assert "attained" in capsys.readouterr().out
    assert cli.main(["explain", "certifed"]) == 2
    assert "did you mean certified or certificate?" in one_line(capsys.readouterr().err)
    assert cli.main(["explain", "zzz"]) == 2
    assert "topics are certified, lower" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("topic", TOPICS)
def test_explanations_are_short(topic):
    lines = TOPICS[topic].splitlines()
    assert len(lines) <= 25
    for width in (60, 80, 100):
        assert max(map(len, reflow(TOPICS[topic], width).splitlines())) <= width


def test_defaults_and_every_option_arrive(audit):
    assert audit("resnet50") == 0
    progress = audit.given.pop("progress")
    assert progress is not None
    assert audit.given == {
        **{"model": "resnet50", "weights": "pretrained", "seed": 0, "input_size": None, "device": None},
        **{"tolerance": 1e-3, "memory": None, "threads": None, "samples": 2},
        **{"methods": (), "domain": None, "heads": False, "tight": False, "time_budget": None, "plugins": True},
        **{"cache": True},
        **{"arch": None, "partial": False, "ema": False, "bn_eps": 0.0},
    }
    line = (
        "--weights random --seed 3 resnet50 --input 3×64,32 --device cuda:0 --tolerance 0.01 --memory 2GB --threads 1"
    )
    line += " --method gram,lipbound --tight --time-budget 2min --domain box:0,1 --heads --no-cache"
    line += " --partial --ema --bn-eps 1e-5 --no-isolate"
    assert audit(*line.split(), "--samples", "0", "-q") == 0
    audit.given.pop("progress")
    assert audit.given == {
        **{"model": "resnet50", "weights": "random", "seed": 3, "input_size": (3, 64, 32), "device": "cuda:0"},
        **{"tolerance": 0.01, "memory": 2 * 10**9, "threads": 1, "samples": 0},
        **{"methods": ("gram", "lipbound"), "domain": "box:0,1", "heads": True, "tight": True, "time_budget": 120.0},
        **{"plugins": True, "cache": False, "arch": None, "partial": True, "ema": True, "bn_eps": 1e-5},
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--method gramm", "no method called 'gramm'; did you mean gram?"),
        ("--method ,", "no method is named; choose from certified, "),
        ("--time-budget soon", "the time 'soon' is none; write it like 90s"),
    ],
)
def test_methods_and_times_that_mean_nothing(audit, capsys, line, message):
    assert audit("resnet50", *line.split()) == 2
    assert message in capsys.readouterr().err


def test_only_the_report_is_on_standard_output(audit, capsys):
    assert audit("resnet50", "--top", "1") == 0
    captured = capsys.readouterr()
    assert "stem.conv" in captured.out
    assert "1 of 8 layers shown" in captured.out
    assert "library" not in captured.out
    assert captured.err == "a library prints\n"


def test_json_to_standard_output_is_alone_there(audit, capsys):
    assert audit("resnet50", "--json", "-") == 0
    assert Report.from_json(capsys.readouterr().out) == example_report.small()


def test_json_to_a_file_comes_beside_the_table(audit, capsys, tmp_path):
    target = tmp_path / "report.json"
    assert audit("resnet50", "--json", str(target), result=example_report.unbounded()) == 0
    assert Report.from_json(target.read_text()) == example_report.unbounded()
    assert "stem.conv" in capsys.readouterr().out


def test_a_failed_audit_leaves_the_old_file(audit, tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")
    assert audit("resnet50", "--json", str(target), result=SourceError("no")) == 2
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritable_file_is_refused_before_the_work(audit, capsys):
    assert audit("resnet50", "--json", "/no/such/file") == 2
    assert "/no/such/file cannot be written" in one_line(capsys.readouterr().err)
    assert audit.given == {}


def test_an_infinite_bound_is_an_error_only_when_asked(audit, capsys):
    assert audit("x", result=example_report.unbounded()) == 0
    assert audit("x", "--require-finite") == 0
    capsys.readouterr()
    assert audit("x", "--require-finite", result=example_report.unbounded()) == 3
    captured = capsys.readouterr()
    assert "stem.conv" in captured.out
    assert "bound is infinite: aten.mul.Tensor" in captured.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no model is named"),
        ("demo --wieghts random", "no option called --wieghts; did you mean --weights?"),
        ("demo --zzzz", "`lipcheck --help` lists them"),
        ("exlain lower", "did you mean `lipcheck explain`?"),
        ("demo resnet50", "unexpected extra argument"),
        ("demo --weights", "--weights takes a value"),
        ("demo --tolerance x", "--tolerance takes a number"),
        ("demo --tolerance 0", "give a positive number"),
        ("demo --tolerance nan", "give a positive number"),
        ("demo --top 0", "--top takes numbers from 1 on"),
        ("demo --threads -1", "--threads takes numbers from 1 on"),
        ("demo --seed x", "--seed takes a whole number"),
        ("demo --weights nowhere.pth", "--weights nowhere.pth: no such file"),
        ("cache foo", "no command called foo"),
        ("demo --sort size", "no order called 'size'; choose one of network"),
        ("demo --input 3xx4", "the input size '3xx4' is no shape"),
        ("demo --input 0x3", "write it like 3x224x224"),
        ("demo --memory much", "write it like 2GB"),
        ("demo --device tpu", "use cpu, cuda or cuda:0"),
        ("demo --domain bx:0,1", "the domain 'bx:0,1' is no box and no ball; did you mean box:0,1?"),
        ("demo --domain box:1,0", "its low end 1 is not below its high end 0"),
        ("demo --domain ball:-1", "give a positive number, like ball:0.5"),
        ("schema now", "unexpected extra argument"),
    ],
)
def test_a_wrong_line_is_one_line_and_exit_code_two(audit, capsys, line, message):
    assert audit(*line.split()) == 2
    captured = capsys.readouterr()
    assert message in one_line(captured.err)
    assert captured.out == ""
    assert audit.given == {}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SourceError("the file \x1b[31m\nis odd"), "the file \\x1b[31m\\nis odd"),
        (ValueError("oh"), "this is a bug in lipcheck: ValueError: oh; run it again with --debug"),
        (MemoryError(), "not enough memory"),
        (AssertionError("no"), "this is a bug in lipcheck: AssertionError: no"),
    ],
)
def test_errors_are_one_line(audit, capsys, error, message):
    assert audit("demo", "-q", result=error) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 2  # the library's line, and ours
    assert captured.out == ""


def test_a_model_that_is_nearly_a_command(audit, capsys):
    assert audit("shcema", result=UnknownModelError("no model called shcema")) == 2
    assert "no model called shcema; or did you mean `lipcheck schema`?" in capsys.readouterr().err


def test_debug_shows_the_traceback(audit, capsys):
    with pytest.warns(UserWarning, match="a library warns"):
        assert audit("demo", "--debug", result=ValueError("oh")) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_is_130(audit, capsys):
    assert audit("demo", result=KeyboardInterrupt()) == 130
    assert "lipcheck: interrupted\n" in capsys.readouterr().err


def test_the_progress_is_shown_only_on_a_terminal(monkeypatch):
    from lipcheck.progress import Display

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Display() as display:
            display.stage("bounds", 10)
            display.advance(10)
            display.stage("network\x1b[31m")
        assert ("bounds" in stream.getvalue()) is shown
        assert "\x1b[31mnetwork" not in stream.getvalue()


def command(*arguments, **options):
    return subprocess.Popen([sys.executable, "-m", "lipcheck", *arguments], stderr=subprocess.PIPE, **options)


@pytest.mark.skipif(os.name != "posix", reason="needs pipes of a POSIX system")
def test_a_reader_that_goes_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = command("schema", stdout=writing)
    os.close(writing)
    assert done.communicate()[1] == b""
    assert done.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = command("schema", stdout=full)
        assert "standard output cannot be written (No space left on device)" in one_line(done.communicate()[1].decode())
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lipcheck dem", {"demo"}),
        ("lipcheck exp", {"explain"}),
        ("lipcheck resnet101", {"resnet101"}),
        ("lipcheck --wei", {"--weights"}),
        ("lipcheck resnet50 --requ", {"--require-finite"}),
        ("lipcheck resnet50 --sort sl", {"slack"}),
        ("lipcheck --weights ran", {"random"}),
        ("lipcheck resnet50 --domain bo", {"box:0,1"}),
        ("lipcheck explain prod", {"product"}),
    ],
)
def test_completion(words, expected, tmp_path):
    variables = {"_LIPCHECK_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = command(stdout=subprocess.PIPE, env=os.environ | variables, text=True, cwd=tmp_path)
    found = done.communicate()[0].split()
    assert expected <= set(found)
    start = words.split()[-1]
    assert all(word.startswith(start) for word in found)
