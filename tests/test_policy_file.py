"""Policies as they are written: every key, every mistake in one line with its place, and the one to begin with."""

from __future__ import annotations

import datetime
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import example_report
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcheck.bound import Bound
from lipcheck.errors import UsageError
from lipcheck.policy import LayerBudget, Waiver, judge
from lipcheck.policy_file import faults, find_policy, first_policy, percent, read_policy

WHOLE = """
[network]
max_log10_bound = 12
require_finite = true
max_increase = "10%"
[[layers]]
match = "stage*"
max_norm = 2.5
max_slack = "5%"
max_increase = 0.02
[[kinds]]
match = "linear"
max_norm = 5
[baseline]
file = "old.json"
max_increase = "5%"
[skip]
layers = ["head*"]
operations = ["aten.topk.*"]
[[waivers]]
match = "stage1.*"
rule = "layer-norm-*"
reason = "known"
expires = 2030-01-31
[[waivers]]
match = "network"
reason = "for now"
expires = "2031-02-03"
"""


def test_every_key_is_read(tmp_path):
    (tmp_path / "lipcheck.toml").write_text(WHOLE)
    policy = read_policy(tmp_path / "lipcheck.toml")
    assert policy.layers == (
        LayerBudget("stage*", max_norm=2.5, max_slack=0.05, max_increase=0.02),
        LayerBudget("linear", of_kind=True, max_norm=5.0),
    )
    assert (policy.max_log10_bound, policy.require_finite, policy.max_increase) == (12, True, 0.1)
    assert (policy.max_layer_increase, policy.baseline) == (0.05, str(tmp_path / "old.json"))
    assert (policy.skip_layers, policy.skip_operations) == (("head*",), ("aten.topk.*",))
    assert policy.waivers == (
        Waiver("stage1.*", "known", datetime.date(2030, 1, 31), "layer-norm-*"),
        Waiver("network", "for now", datetime.date(2031, 2, 3)),
    )


def test_a_section_of_pyproject_is_the_same(tmp_path):
    text = "\n".join(line.replace("[", "[tool.lipcheck.", 1) if line.startswith("[") and "[[" not in line
                     else line.replace("[[", "[[tool.lipcheck.") for line in WHOLE.splitlines())  # fmt: skip
    (tmp_path / "pyproject.toml").write_text(text)
    (tmp_path / "lipcheck.toml").write_text(WHOLE)
    both = [read_policy(tmp_path / name) for name in ("pyproject.toml", "lipcheck.toml")]
    assert replace(both[0], source="") == replace(both[1], source="")


def test_the_nearest_policy_is_found(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert find_policy(inner) is None
    (tmp_path / "pyproject.toml").write_text("[tool.lipcheck.network]\nrequire_finite = true\n")
    assert find_policy(inner) == tmp_path / "pyproject.toml"
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert find_policy(inner) == tmp_path / "pyproject.toml"
    (inner / "lipcheck.toml").write_text("")
    assert find_policy(inner) == inner / "lipcheck.toml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[network", "is no TOML"),
        ("[netwrk]\n", "netwrk is unknown; did you mean network?"),
        ("[network]\nmax_log10 = 3\n", "network.max_log10 is unknown; did you mean max_log10_bound?"),
        ("[network]\nmax_log10_bound = '3'\n", "network.max_log10_bound is '3'; give a number"),
        ("[network]\nmax_log10_bound = nan\n", "give a number"),
        ("[network]\nrequire_finite = 1\n", "network.require_finite is 1; give true or false"),
        ("[network]\nmax_increase = '5'\n", 'give a part, like "5%" or 0.05'),
        ("[network]\nmax_increase = 5\n", 'is 5, 5 times the whole; write "5%" for per cent'),
        ("[[layers]]\nmatch = ''\nmax_norm = 1\n", r"layers\[1\].match is empty"),
        ("[network]\nmax_increase = -0.1\n", 'give a part, like "5%" or 0.05'),
        ("network = 3\n", r"network is 3; write a table \[network\]"),
        ("[layers]\nmatch = 'a'\n", r"write tables \[\[layers\]\]"),
        ("[[layers]]\nmax_norm = 3\nmax_slack = 1\n", r"layers\[1\] has no match"),
        ("[[layers]]\nmatch = 'a'\n", r"layers\[1\] sets no budget"),
        ("[[layers]]\nmatch = 'a'\nmax_norm = -1\n", r"layers\[1\].max_norm is -1; give a number from 0 on"),
        ("[[layers]]\nmatch = 'a'\nmax_norm = true\n", r"layers\[1\].max_norm is True"),
        ("[skip]\nlayers = 'head'\n", "skip.layers is 'head'; give a list of texts"),
        ("[[waivers]]\nmatch = 'a'\n", r"waivers\[1\] has no reason"),
        ("[[waivers]]\nmatch = 'a'\nreason = ' '\n", "a waiver says why"),
        ("[[waivers]]\nmatch = 'a'\nreason = 'r'\nexpires = 'soon'\n", "give a date, like 2030-12-31"),
        ("[[waivers]]\nmatch = 'a'\nreason = 'r'\nrule = 'layer-nrm'\n", "is no rule"),
        ("[[kinds]]\nmatch = 'a'\nmax_norm = 1\n'\\u001b[31m' = 1\n", r"\\x1b\[31m is unknown"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path, text, words):
    (tmp_path / "lipcheck.toml").write_text(text.replace("'\\u", '"\\u').replace("31m'", '31m"'))
    with pytest.raises(UsageError, match=words) as caught:
        read_policy(tmp_path / "lipcheck.toml")
    assert str(caught.value).startswith(str(tmp_path / "lipcheck.toml"))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_policy(tmp_path / "none.toml")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(UsageError, match=r"has no \[tool.lipcheck\]"):
        read_policy(tmp_path / "pyproject.toml")
    (tmp_path / "large.toml").write_text("#" * 2_000_000)
    with pytest.raises(UsageError, match="no policy is"):
        read_policy(tmp_path / "large.toml")


@pytest.mark.parametrize("name", ["small", "unbounded", "constant", "transformer", "resnet"])
@pytest.mark.parametrize("project", [False, True])
def test_the_first_policy_is_one_that_the_report_passes(tmp_path, name, project):
    report = getattr(example_report, name)()
    certified = [
        replace(layer, bound=Bound(layer.bound.lower, layer.bound.upper, "m"), merged=None) for layer in report.layers
    ]
    report = replace(report, layers=tuple(certified))
    file = tmp_path / ("pyproject.toml" if project else "lipcheck.toml")
    text = first_policy(report, "lipcheck init x\n[evil]\x1b", project=project)
    file.write_text(text)
    judged = judge(report, read_policy(file), report)
    assert judged.outcome == "passed", judged.findings
    grown = replace(
        report,
        layers=tuple(
            replace(layer, bound=Bound(2 * layer.bound.lower, 2 * layer.bound.upper, "m")) for layer in report.layers
        ),
    )
    assert judge(grown, read_policy(file)).outcome == ("violated" if certified else "passed")
    uncommented = (
        text.replace("# [[", "[[").replace("# match", "match").replace("# max_", "max_").replace("# rule", "rule")
    )
    uncommented = (
        uncommented.replace("# [", "[")
        .replace("# reason", "reason")
        .replace("# expires", "expires")
        .replace("# file", "file")
    )
    if "max_log10_bound = 12.0" not in uncommented:
        file.write_text(uncommented)
        read_policy(file)


def test_percentages():
    assert percent("+5%") == 0.05
    assert math.isclose(percent("12.5 %"), 0.125)
    for text in ("5", "%", "-5%", "five%"):
        with pytest.raises(UsageError, match="no percentage"):
            percent(text)


def test_every_fault_is_told_at_its_place(tmp_path):
    file = tmp_path / "lipcheck.toml"
    file.write_text(WHOLE)
    assert faults(file) == ()
    file.write_text(
        "nets = 1\nskip = 3\n[network]\nmax_log10_bond = 1\nrequire_finite = 1\n"
        '[[layers]]\nmatch = "a"\nmax_norm = 1\n[[layers]]\nmatch = "b"\nmax_norm = "x"\nmax_slack = -1\n'
        '[[layers]]\nmax_norm = 1\nmax_slack = 1\n[[kinds]]\nmatch = "c"\n'
        '[[waivers]]\nmatch = "d"\nreason = ""\nexpires = 3\n'
    )
    assert [fault.split()[0] for fault in faults(file)] == [
        *("nets", "skip", "network.max_log10_bond", "network.require_finite"),
        *("layers[2].max_norm", "layers[2].max_slack", "layers[3]", "kinds[1]", "waivers[1].reason"),
    ]


@given(
    lines=st.lists(
        st.sampled_from(WHOLE.strip().splitlines()).flatmap(
            lambda line: st.tuples(
                st.just(line), st.sampled_from(["", "= -1", '= "x"', "= []", "= true", "= 2030-01-01", "= {}", "z = 1"])
            )
        ),
        max_size=3,
    )
)
def test_there_are_faults_exactly_where_a_policy_cannot_be_read(lines):
    text = WHOLE
    for line, wrong in lines:
        key, equals, _ = line.partition("=")
        text = text.replace(line, f"{key}{wrong}" if equals and not wrong.startswith("z") else wrong, 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lipcheck.toml"
        file.write_text(text)
        message = refused(read_policy, file)
        if unreadable := refused(faults, file):
            assert unreadable == message
        else:
            assert (message.removeprefix(f"{file}: ") in faults(file)) if message else faults(file) == ()


def refused(read: Callable[[Path], object], file: Path) -> str:
    """Why the file is not read; "" where it is."""
    try:
        read(file)
    except UsageError as error:
        return str(error)
    return ""
