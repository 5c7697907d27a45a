"""The terminal report against golden files, and the promises that no golden file can keep."""

import io
import os
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import example_report
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from lipcheck import numbers
from lipcheck.errors import UsageError
from lipcheck.renderers import describe, table, terminal

GOLDEN = Path(__file__).parent.parent / "golden"
EXAMPLES = ["small", "unbounded", "constant", "resnet", "transformer"]


@pytest.mark.parametrize("width", [80, 160, 200])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_report_is_the_golden_one(name, width):
    """Write the files anew with LIPCHECK_GOLDEN=write, then look at them."""
    text = terminal.to_text(getattr(example_report, name)(), width=width)
    file = GOLDEN / f"{name}-{width}.txt"
    if os.environ.get("LIPCHECK_GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", range(34, 220, 7))
@pytest.mark.parametrize("name", EXAMPLES)
def test_rows_are_single_lines_and_numbers_are_never_cut(name, width):
    report = getattr(example_report, name)()
    rows = table.layer_table(report.layers, width)[2:]
    for row, layer in zip(rows, report.layers, strict=True):
        assert "\n" not in row.plain
        assert cell_len(row.plain) <= width
        assert numbers.down(layer.bound.lower) in row.plain.split()
        assert numbers.up(layer.bound.upper) in row.plain.split()


@pytest.mark.parametrize("width", [20, 60, 80, 160])
def test_hostile_names_reach_no_terminal(width):
    report = example_report.unbounded()
    hostile = replace(
        report,
        model=replace(report.model, name=example_report.HOSTILE, weights="\x1b]0;x\x07", notes=("\x1b[2J",)),
        network=replace(report.network, reason="\x1b[2J\u202e"),
        run=replace(report.run, device="\x1b[2J", versions={"\x1b": "\r"}, seconds={"\x9b": 1.0}),
    )
    text = terminal.to_text(hostile, width=width)
    assert {unicodedata.category(character) for character in text.replace("\n", "")} & {"Cc", "Cf", "Cs"} == set()
    assert "[/red]" in text


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"sort": "network"}, "stem.conv"),
        ({"sort": "name"}, "decoder.up"),
        ({"sort": "slack"}, "stages.1.dilated"),
        ({"sort": "merged"}, "stem.conv"),
        ({"sort": "share", "layers": "stages*"}, "stages.0.blocks.0.channel_mixer.expansion.pointwise_convolution"),
        ({"sort": "lower", "layers": "st*"}, "stem.conv"),
    ],
)
def test_orders(options, first):
    assert describe.chosen(example_report.small(), **options)[0].layer == first


def test_top_and_layers_say_what_is_left_out():
    out = io.StringIO()
    terminal.print_report(example_report.small(), file=out, width=120, top=2, layers="st*")
    assert "2 of 8 layers shown, matching st*" in out.getvalue()
    assert "norm  " not in out.getvalue()
    out = io.StringIO()
    terminal.print_report(example_report.small(), file=out, width=120, layers="nothing")
    assert "0 of 8 layers shown" in out.getvalue()


def test_wrong_choices_are_refused():
    with pytest.raises(UsageError, match="no order called 'size'; choose one of network, name"):
        describe.chosen(example_report.small(), sort="size")
    with pytest.raises(UsageError, match="give 1 or more"):
        describe.chosen(example_report.small(), top=0)


def test_files_are_wide_and_plain(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    out = io.StringIO()
    terminal.print_report(example_report.small(), file=out)
    assert "\x1b" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) > 100
    monkeypatch.setenv("COLUMNS", "70")
    out = io.StringIO()
    terminal.print_report(example_report.resnet(), file=out)
    assert max(map(len, out.getvalue().splitlines())) <= 70


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("refused", [True, False])
def test_colours_only_where_they_are_wanted(monkeypatch, refused):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if refused:
        monkeypatch.setenv("NO_COLOR", "1")
    out = FakeTerminal()
    terminal.print_report(example_report.small(), file=out, width=100)
    assert bool(re.search(r"\x1b\[[\d;]*3\d", out.getvalue())) is not refused


def test_random_weights_stand_out():
    text = terminal.to_text(example_report.unbounded(), width=100)
    assert "random weights (seed 0): the figures say nothing about a trained network" in text
    assert "trained network" not in terminal.to_text(example_report.small(), width=100)


def test_the_networks_bound_is_called_no_more_than_its_weakest_layer_allows():
    report = example_report.small()
    kinds = {"certified": "certified upper", "probabilistic": "probable upper", "estimate": "estimated upper"}
    for kind, words in kinds.items():
        bound = replace(report.layers[0].bound, kind=kind)
        text = terminal.to_text(replace(report, layers=(replace(report.layers[0], bound=bound, merged=None),)))
        assert words in text
        assert sum(word in text for word in kinds.values()) == 1


def test_marks_are_explained_only_where_they_occur():
    assert "not certified" in terminal.to_text(example_report.small())
    assert "not certified" not in terminal.to_text(example_report.resnet())


@pytest.mark.parametrize("cut", [table.cut_middle, table.cut_path])
@given(
    st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Mn", "Me")), max_size=30)
    | st.lists(st.sampled_from(["0", "12", "layer", "attention", "q head 1", "…", ""]), max_size=7).map(".".join),
    st.integers(0, 30),
)
def test_a_cut_name_fits_and_keeps_both_ends(cut, text, width):
    shown = cut(text, width)
    assert cell_len(shown) <= width
    if cell_len(text) <= width:
        assert shown == text


def test_a_cut_path_keeps_what_tells_layers_apart():
    names = [
        f"encoder.layer.{number}.{rest}"
        for number in (0, 11)
        for rest in ("attention.self.query", "attention.self.key", "attention.output.dense", "intermediate.dense")
    ]
    for width in (20, 22, 26):
        assert len({table.cut_path(name, width) for name in names}) == len(names)
    assert table.cut_path("stages.0.blocks.0.token_mixer.depthwise ×2", 26) == "….0.….0.….depthwise ×2"


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (0, "conv 7×7/2 3→64"),
        (1, "avg pool 3×3/2 64"),
        (2, "dwconv 3×3 64"),
        (4, "conv 3×3 256→256 d2 g32 reflect"),
        (5, "convT 4×4/2 256→64"),
        (6, "batch norm 64"),
        (7, "linear 2048→1000"),
    ],
)
def test_operators_in_words(index, words):
    assert describe.operator(example_report.small().layers[index]) == words


def test_bars():
    assert table.bar(1.0, 4) == "████"
    assert table.bar(0.5, 3) == "█▌ "
    assert table.bar(-1.0, 2) == "  "
