"""Rules from outside: how they are registered, loaded, preferred, named and left out; the page about them runs."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcheck
from lipcheck import cli, plugins
from lipcheck.errors import UsageError
from lipcheck.operators import Dense, Diagonal, Nonlinear, Operator, Pointwise
from lipcheck.plugins import gather, overloads_of
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES

aten = torch.ops.aten


@torch.library.custom_op("lipcheck_plugins::bent", mutates_args=())
def bent(x: Tensor, scale: float = 1.0) -> Tensor:
    return scale * torch.where(x > 0, x, x / 2)


@bent.register_fake
def _(x: Tensor, scale: float = 1.0) -> Tensor:
    return torch.empty_like(x)


BENT = torch.ops.lipcheck_plugins.bent.default


class Bent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return bent(x, 3.0)


class Rectified(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No registration outlives its test, and no plugin of the machine is seen."""
    monkeypatch.setattr(plugins, "_REGISTERED", {})
    monkeypatch.setattr(plugins, "_LOADED", {})


def rule_of_bent(node: lipcheck.Node) -> Operator:
    return Pointwise("bent", abs(node.arguments["scale"]))


def audit(module: nn.Module = Bent(), **options: Any) -> lipcheck.Report:  # noqa: B008
    return lipcheck.check(module, example=torch.randn(1, 4), samples=0, **options)


def upper(report: lipcheck.Report) -> float:
    return 10**report.network.log10_upper


def test_a_registered_rule_is_used_named_and_left_out_on_request() -> None:
    assert upper(audit()) == math.inf
    lipcheck.rule(bent)(rule_of_bent)
    report = audit()
    assert 3 <= upper(report) <= 3.0001
    note = f"rule of {BENT}: {__name__}.rule_of_bent (registered in this process)"
    assert note in report.run.notes
    assert note in str(report).replace("\n", " ")
    without = audit(plugins=False)
    assert upper(without) == math.inf
    assert not any("rule of" in note for note in without.run.notes)
    assert "rule of" not in " ".join(audit(Rectified()).run.notes), "only what is used is named"


@pytest.mark.parametrize("op", [bent, torch.ops.lipcheck_plugins.bent, BENT], ids=["definition", "packet", "overload"])
def test_an_operation_has_three_names(op: Any) -> None:
    assert overloads_of(op) == (BENT,)
    assert 3 <= upper(audit(rules={op: rule_of_bent})) <= 3.0001


@pytest.mark.parametrize("op", [torch.relu, nn.ReLU, "aten::relu", 3])
def test_what_is_no_operation_is_refused(op: Any) -> None:
    with pytest.raises(UsageError, match=r"is no operation; give torch\.ops"):
        lipcheck.rule(op)(rule_of_bent)


def test_a_decorator_without_an_operation_is_refused() -> None:
    with pytest.raises(UsageError, match="no operation is named"):
        lipcheck.rule()
    with pytest.raises(UsageError, match="is no operation"):
        lipcheck.rule(rule_of_bent)
    with pytest.raises(UsageError, match="a rule is a function of a Node, not a float"):
        lipcheck.rule(bent)(1.0)  # type: ignore[type-var]


def test_a_built_in_rule_is_replaced_only_on_purpose() -> None:
    def steeper(node: lipcheck.Node) -> Operator:
        return Pointwise("relu", 5.0)

    with pytest.raises(UsageError, match=r"aten\.relu\.default has a built-in rule; say override=True"):
        lipcheck.rule(aten.relu.default)(steeper)
    assert upper(audit(Rectified())) == 1
    lipcheck.rule(aten.relu.default, override=True)(steeper)
    report = audit(Rectified())
    assert upper(report) >= 5
    assert any(note.endswith("in place of the built-in rule") for note in report.run.notes)
    assert upper(audit(Rectified(), plugins=False)) == 1
    assert DEFAULT_RULES[aten.relu.default] is not steeper


def test_the_same_function_again_replaces_itself_and_another_one_does_not() -> None:
    def first(node: lipcheck.Node) -> Operator:
        return Pointwise("bent", 4.0)

    lipcheck.rule(bent)(rule_of_bent)
    lipcheck.rule(bent)(rule_of_bent)
    with pytest.raises(
        UsageError, match=r"has a rule already, .*rule_of_bent; say override=True to replace it by .*first"
    ):
        lipcheck.rule(bent)(first)
    lipcheck.rule(bent, override=True)(first)
    assert upper(audit()) >= 4


def test_rules_of_one_audit_come_as_a_table_a_module_or_functions() -> None:
    decorated = lipcheck.rule(bent)(lambda node: Pointwise("bent", 7.0))
    module = ModuleType("some_rules")
    vars(module)["rule_of_bent"] = decorated
    for rules in ({bent: decorated}, module, [decorated], decorated, [module, {bent: decorated}]):
        assert 7 <= upper(audit(rules=rules, plugins=False)) <= 7.0001
    # A whole table, the built-in rules among it, counts as the one that is new.
    report = audit(rules={**DEFAULT_RULES, BENT: rule_of_bent}, plugins=False)
    assert [note for note in report.run.notes if "rule of" in note] == [
        f"rule of {BENT}: {__name__}.rule_of_bent (given by rules=)"
    ]
    for wrong in (3, [3], {bent: 3}, {"bent": rule_of_bent}, [rule_of_bent_undecorated]):
        with pytest.raises(UsageError):
            audit(rules=wrong)


def rule_of_bent_undecorated(node: lipcheck.Node) -> Operator:
    return Pointwise("bent", 3.0)


def test_a_rule_that_fails_costs_its_operation_the_bound_and_is_named() -> None:
    def raises(node: lipcheck.Node) -> Operator:
        return Pointwise("bent", node.arguments["slope"])

    def returns(node: lipcheck.Node) -> Any:
        return 3.0

    for function, said in ((raises, "failed (KeyError: 'slope')"), (returns, "returned a float, no operator")):
        report = audit(rules={bent: function})
        assert upper(report) == math.inf
        (group,) = report.unsupported
        assert said in group.reason
        assert function.__name__ in group.reason


def test_a_map_that_fails_costs_its_operation_the_bound_and_is_named() -> None:
    @dataclass(frozen=True, slots=True, eq=False)
    class Wrong(Nonlinear):
        slope: Any

        def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
            return tuple(self.slope)

        def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
            return Range.between(0, 1, (7, 7))

    for slope, said in (((math.nan,), "gave the slopes"), ((0.0, 0.0), "for 1 inputs"), (3, "failed (TypeError")):
        report = audit(rules={bent: lambda node, slope=slope: Wrong(slope)})
        assert upper(report) == math.inf
        assert said in report.unsupported[0].reason
    assert upper(audit(rules={bent: lambda node: Wrong((0.0,))})) == 1


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Packages made on the spot, each with its metadata, on the path while the test runs."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(name: str, code: str, value: str | None = None) -> None:
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[lipcheck.rules]\n{name} = {value or name}\n", encoding="utf-8")
        importlib.invalidate_caches()

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("shop"):
            del sys.modules[name]


DECORATED = """
import torch, lipcheck
from lipcheck.operators import Pointwise

@lipcheck.rule(torch.ops.lipcheck_plugins.bent)
def bends(node):
    return Pointwise("bent", {slope} * abs(node.arguments["scale"]))
"""


def test_an_installed_plugin_is_loaded_named_and_left_out_on_request(installed: Any) -> None:
    installed("shop_one", DECORATED.format(slope=1))
    for _ in range(2):  # the second audit finds the module imported already
        report = audit()
        assert 3 <= upper(report) <= 3.0001
        assert f"rule of {BENT}: shop_one.bends (plugin shop_one of shop_one 1.2)" in report.run.notes
    assert plugins._REGISTERED == {}, "a plugin's rules are the plugin's"
    assert upper(audit(plugins=False)) == math.inf


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (DECORATED.format(slope=1), "shop_two:bends"),
        (DECORATED.format(slope=1) + "\ntable = {torch.ops.lipcheck_plugins.bent: bends}\n", "shop_two:table"),
        ("import shop_two_inner\n", "shop_two"),
    ],
    ids=["function", "table", "module that imports another"],
)
def test_what_an_entry_point_may_name(installed: Any, tmp_path: Path, code: str, value: str) -> None:
    (tmp_path / "shop_two_inner.py").write_text(DECORATED.format(slope=1), encoding="utf-8")
    installed("shop_two", code, value)
    assert 3 <= upper(audit()) <= 3.0001
    assert 3 <= upper(audit()) <= 3.0001


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("x = 1\n", "it holds no rule"),
        (DECORATED.format(slope=1).replace("lipcheck_plugins.bent", "aten.relu.default"), "has a built-in rule"),
    ],
)
def test_a_broken_plugin_is_one_line_and_the_audit_goes_on(
    installed: Any, capsys: pytest.CaptureFixture[str], code: str, said: str
) -> None:
    installed("shop_broken", code)
    installed("shop_whole", DECORATED.format(slope=1))
    report = audit(progress=True)
    assert 3 <= upper(report) <= 3.0001
    (line,) = [note for note in report.run.notes if "shop_broken" in note]
    assert line.startswith("plugin shop_broken of shop_broken 1.2 could not be loaded (")
    assert said in line
    assert line.endswith("its rules are missing from this audit")
    assert line in capsys.readouterr().err


def test_of_two_plugins_the_second_is_named_and_not_used(installed: Any) -> None:
    installed("shop_a", DECORATED.format(slope=1))
    installed("shop_b", DECORATED.format(slope=9))
    report = audit()
    assert 3 <= upper(report) <= 3.0001
    (note,) = [note for note in report.run.notes if "shop_b" in note]
    assert note == f"plugin shop_b of shop_b 1.2: its rule of {BENT} is not used, plugin shop_a of shop_a 1.2 has one"


def test_this_process_and_the_audit_itself_come_before_plugins(installed: Any) -> None:
    installed("shop_one", DECORATED.format(slope=1))
    lipcheck.rule(bent)(lambda node: Pointwise("bent", 20.0))
    assert 20 <= upper(audit()) <= 20.001
    assert 30 <= upper(audit(rules={bent: lambda node: Dense(30 * torch.eye(1))})) <= 30.1


def test_a_table_of_a_plugin_replaces_no_built_in_rule(installed: Any) -> None:
    flat = "{torch.ops.aten.relu.default: lambda node: Pointwise('relu', 0.1)}"
    code = f"import torch\nfrom lipcheck.operators import Pointwise\ntable = {flat}\n"
    installed("shop_sly", code, "shop_sly:table")
    book = gather()
    assert book.table[aten.relu.default] is DEFAULT_RULES[aten.relu.default]
    assert any("override=True" in problem for problem in book.problems)


def test_the_command_line_leaves_plugins_out(
    installed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed("shop_one", DECORATED.format(slope=1))
    (tmp_path / "shop_models.py").write_text(
        f"import torch\nfrom {__name__} import Bent\ndef build():\n    return Bent()\n", encoding="utf-8"
    )
    line = ["shop_models:build", "--input", "4", "--weights", "random", "--samples", "0", "-q", "--require-finite"]
    assert cli.main(line) == 0
    assert "plugin shop_one of shop_one 1.2" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*line, "--no-plugins"]) == 3
    assert "shop_one" not in capsys.readouterr().out


def test_a_certificate_is_verified_with_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "bent.safetensors"

    def dense(node: lipcheck.Node) -> Operator:
        return Dense(3 * torch.eye(1))

    module = nn.Sequential(nn.Linear(4, 4), Bent())
    lipcheck.check(module, example=torch.randn(1, 4), samples=0, rules={bent: dense}, certificate=path)
    assert lipcheck.verify(path, module, example=torch.randn(1, 4), rules={bent: dense}).ok
    assert not lipcheck.verify(path, module, example=torch.randn(1, 4)).ok


@torch.library.custom_op("lipcheck_plugins::mirrored", mutates_args=())
def mirrored(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise NotImplementedError("single precision only")
    return -2 * x + 1


mirrored.register_fake(torch.empty_like)


class Squared(nn.Module):
    """The slope of the square is twice the largest entry of what the operation returns: 9 on [-4, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.square(mirrored(x))


@pytest.mark.parametrize(
    "operator", [Dense(-2 * torch.eye(1)), Diagonal(torch.tensor([-2.0])), Pointwise("mirror", 2.0)]
)
def test_of_the_range_of_a_custom_operation_only_its_own_map_speaks(operator: Operator) -> None:
    """Running it in float64, or on magnitudes, would say what is not so."""

    @dataclass(frozen=True, slots=True, eq=False)
    class Mirrored(Nonlinear):
        def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
            return (math.log(2) + 1e-15,)

        def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
            return Range.box(1 - 2 * ranges[0].high, 1 - 2 * ranges[0].low)

    where = lipcheck.Box(-4.0, 1.0)
    assert upper(audit(Squared(), rules={mirrored: lambda node: operator}, domain=where)) == math.inf
    stated = audit(Squared(), rules={mirrored: lambda node: Mirrored()}, domain=where)
    assert 36 <= upper(stated) <= 36.001
