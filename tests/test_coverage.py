"""Coverage without weights: what has no value leads to no false verdict, and a survey survives what models do to it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Function
from torch import Tensor, nn
from torch.nn import functional

import lipcheck
from lipcheck import cli, coverage
from lipcheck.coverage import VERDICTS, Record, Survey, survey
from lipcheck.errors import CaptureError, MissingExtraError, OutputError, UnknownModelError, UsageError
from lipcheck.graph import Value
from lipcheck.plugins import gather
from lipcheck.renderers import coverage as pages
from lipcheck.skeleton import STAND_IN, skeleton, stand_in
from lipcheck.sources import zoo
from lipcheck.structure import Structure, structure

ROOT = Path(__file__).parent.parent


def verdict(module: nn.Module, *shape: int) -> Structure:
    """What is said of the network, moved to the meta device."""
    book = gather()
    return structure(
        skeleton(module.eval().to("meta"), torch.empty(1, *shape, device="meta"), known=book.table), book.table
    )


class Attention(nn.Module):
    """One head, written out, behind what `before` does."""

    def __init__(self, before: nn.Module) -> None:
        super().__init__()
        self.before, self.both = before, nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.both(self.before(x)).chunk(3, -1)
        return x + functional.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, padding=1)


class Biased(nn.Module):
    """A table of relative positions, its index a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 1))
        place = torch.arange(4)
        self.register_buffer("index", place[:, None] - place[None] + 3, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.table[self.index.flatten()].reshape(4, 4)
        return functional.softmax(functional.layer_norm(x, (4,)) + bias, -1) @ torch.ones(4, 2, device=x.device)


NETWORKS = [
    ("global", nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), (6,)),
    ("global", nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)), (2, 8, 8)),
    ("global", nn.Sequential(Standardised(2, 4, 3), nn.ReLU()), (2, 6, 6)),
    ("global", Attention(nn.LayerNorm(8)), (4, 8)),
    ("global", Biased(), (4, 4)),
    ("domain", Attention(nn.Identity()), (4, 8)),
    ("domain", Function(lambda self, x: self.a(x) * self.a(x.roll(1, -1)).sigmoid(), a=nn.Linear(4, 4)), (4,)),
    ("domain", Function(lambda self, x: x * x.roll(1, -1)), (4,)),
    ("infinite", Function(lambda self, x: functional.threshold(x, 0.5, 0.0)), (4,)),
    ("infinite", Function(lambda self, x: 1 / x), (4,)),
    ("no rule", Function(lambda self, x: torch.special.bessel_j0(x)), (4,)),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "module", "shape"), NETWORKS, ids=[str(i) for i in range(len(NETWORKS))])
def test_the_verdict_without_weights_is_that_of_the_audit_with_them(
    expected: str, module: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    example = torch.randn(1, *shape)
    everywhere = lipcheck.check(module, example=example, samples=0)
    inside = lipcheck.check(module, example=example, samples=0, domain=lipcheck.Box(0.0, 1.0))
    met = "global" if everywhere.network.log10_upper < math.inf else "domain"
    met = met if inside.network.log10_upper < math.inf else "infinite"
    found = verdict(module, *shape)
    assert found.verdict == expected
    assert met == ("infinite" if expected == "no rule" else expected)
    if met != "global":
        assert {op for op, _ in found.reasons} == {
            entry.op for entry in (everywhere if met == "domain" else inside).unsupported
        }


def reciprocal(x: Tensor) -> Tensor:
    return 1 / x


# Each is finite if the parameter is the number that stands in its place, and not for all numbers.
DECEIVING = [
    lambda self, x: reciprocal(torch.relu(x) + self.p),
    lambda self, x: reciprocal(torch.sigmoid(x) * self.p),
    lambda self, x: reciprocal(torch.maximum(torch.sigmoid(x), self.p)),
    lambda self, x: reciprocal(torch.clamp(torch.tanh(x), min=self.p)),
    lambda self, x: torch.log(functional.layer_norm(torch.tanh(x), (4,), None, self.p) * 0 + self.p),
    lambda self, x: reciprocal(functional.linear(torch.sigmoid(x), self.p[None])),
    lambda self, x: torch.log(functional.batch_norm(torch.sigmoid(x), self.p, self.p, self.p, self.p)),
    lambda self, x: reciprocal(torch.cat([torch.sigmoid(x), self.p[None]], 1) + 0.1 * 0),
]


@pytest.mark.parametrize("forward", DECEIVING)
def test_a_parameter_without_a_value_is_not_taken_for_the_number_in_its_place(forward: Any) -> None:
    module = Function(forward, p=torch.ones(4))
    assert verdict(module, 4).verdict != "global"
    assert verdict(module, 4).verdict in ("infinite", "no rule")


def test_constants_that_are_written_in_the_forward_keep_their_values() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        place = torch.arange(4, device=x.device, dtype=x.dtype)
        return x * place * 2 + self.p * torch.zeros_like(x)

    module = Function(forward, p=torch.ones(4)).to("meta")
    graph, unvalued = skeleton(module, torch.empty(1, 4, device="meta"), known=gather().table).graph()
    multiplied, added, *_ = graph.nodes
    (constant,) = (one for one in multiplied.arguments.values() if isinstance(one, Tensor))
    assert constant.tolist() == [0, 1, 2, 3]
    assert constant.device.type == "cpu"
    assert multiplied.name not in unvalued
    assert added.name not in unvalued
    assert graph.nodes[-1].name in unvalued
    assert isinstance(graph.nodes[-1].arguments["self"], Value)


def test_numbers_in_the_place_of_values_take_no_memory_and_fit_every_type() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn):
        found = stand_in(torch.empty(10**4, 10**5, dtype=dtype, device="meta"))
        assert (found.dtype, found.shape) == (dtype, (10**4, 10**5))
        assert found.untyped_storage().nbytes() <= 16
        assert complex(found[0, 0].to(torch.complex64)) == STAND_IN
    mask = stand_in(torch.empty(3, 5, dtype=torch.bool, device="meta"))
    assert mask.any(-1).all()
    assert not mask.all(-1).any()
    assert not stand_in(torch.empty(7, dtype=torch.int64, device="meta")).any()
    assert stand_in(torch.empty((), dtype=torch.bool, device="meta"))
    assert stand_in(torch.empty(0, 4, device="meta")).numel() == 0


def test_values_are_used_where_a_network_has_them() -> None:
    module = nn.Linear(3, 2)
    graph, unvalued = skeleton(module, torch.zeros(1, 3), known=gather().table).graph()
    assert torch.equal(graph.nodes[0].constant("weight"), module.weight)
    assert not unvalued


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda self, x: x[x > 0], "torch.export fails|shape that depends on values"),
        (lambda self, x: x + torch.rand_like(x), "draws random numbers"),
        (lambda self, x: x.argmax(-1), "no floating-point output"),
    ],
)
def test_what_cannot_be_captured_is_said(forward: Any, said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        skeleton(Function(forward), torch.empty(1, 4, device="meta"), known=gather().table).graph()


def test_patterns_name_models() -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("transformers")
    assert zoo.matching(["resnet18"]) == ["timm:resnet18"]
    assert zoo.matching(["timm/resnet18", "timm:resnet18"]) == ["timm:resnet18"]
    assert zoo.matching(["torchvision:resnet1?", "resnet18"]) == ["timm:resnet18", "torchvision:resnet18"]
    assert set(zoo.matching(["*:resnet18"])) == {"timm:resnet18", "torchvision:resnet18"}
    assert "transformers:bert" in zoo.matching(["transformers:"])
    every = zoo.matching([])
    assert len(every) > 1200
    assert every == sorted(every, key=lambda name: name.partition(":")[0])


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("resnt18", "no model matches timm:resnt18; the nearest names are timm:resnet18"),
        ("resnt18*", "the nearest names are timm:resnet18"),
        ("torchvison:resnet18", "no library torchvison of models; did you mean torchvision?"),
        ("keras:resnet18", "the libraries are timm, torchvision, transformers"),
        ("timm:", None),
        ("qqqqqqqqqq", "write it like 'resnet"),
        ("tran*:resnt", "the nearest names are transformers:resnet"),
    ],
)
def test_a_mistyped_pattern_is_one_line_with_near_names(pattern: str, said: str | None) -> None:
    if said is None:
        assert len(zoo.matching([pattern])) > 1000
        return
    with pytest.raises(UnknownModelError) as caught:
        zoo.matching([pattern])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_library_that_is_not_installed_is_left_out_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(library: str) -> Any:
        if library == "torchvision":
            raise MissingExtraError("torchvision is not installed; run: pip install 'lipcheck[torchvision]'")
        return known(library)

    known = zoo._imported
    monkeypatch.setattr(zoo, "_imported", missing)
    for patterns in ([], ["*:*"]):
        assert {name.partition(":")[0] for name in zoo.matching(patterns)} == {"timm", "transformers"}
    with pytest.raises(MissingExtraError):
        zoo.matching(["resnet18", "torchvision:*"])
    assert set(zoo.versions()) == {"torch", "timm", "transformers"}


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "transformers:resnet", "transformers:bert"])
def test_models_are_built_without_memory(name: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    model = zoo.bare(name)
    assert {tensor.device.type for tensor in model.module.state_dict().values()} == {"meta"}
    assert model.example.device.type == "meta"
    assert not model.module.training


def test_optical_flow_is_of_two_images_side_by_side() -> None:
    class Flow(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
            return [first, first - 2 * second]

    x = torch.randn(1, 6, 4, 4)
    assert torch.equal(zoo.SideBySide(Flow())(x), x[:, :3] - 2 * x[:, 3:])
    pytest.importorskip("torchvision")
    model = zoo.bare("torchvision:raft_small")
    assert model.example.shape == (1, 6, 128, 128)
    assert model.example.device.type == "meta"


def test_a_model_that_looks_at_values_is_built_with_some(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        module = nn.Linear(3, 3)
        assert float(module.weight.sum()) < 1e9
        return module

    blueprint = zoo.Blueprint("timm", build, lambda: (build(), ""), own_size=lambda _: (3,))
    monkeypatch.setattr(zoo, "_blueprint", lambda library, short: blueprint)
    assert zoo.bare("timm:any").example.device.type == "cpu"
    assert coverage.cover("timm:any").verdict == "global"


def test_one_model_is_covered_whatever_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    record = coverage.cover("timm:resnet18")
    assert (record.verdict, record.reasons, record.missing) == ("global", (), ())
    assert record.nodes > 60
    assert coverage.cover("timm:no_such_model").verdict == "not captured"

    def fails(*args: Any) -> Any:
        raise KeyError("slope")

    monkeypatch.setattr("lipcheck.structure.structure", fails)
    record = coverage.cover("timm:resnet18")
    assert (record.verdict, record.reason) == ("error", "KeyError: 'slope'")


VERSIONS = {"lipcheck": "0.1.0", "torch": "2"}
RECORDS = {
    "timm:a": Record("timm:a", "global", 9, seconds=1.5),
    "timm:b": Record(
        "timm:b", "domain", 20, (("aten.mul.Tensor", "a product"), ("aten.exp.default", "steep")), (), 2.0
    ),
    "timm:c": Record("timm:c", "unfinished", 0, (("", "took longer than 3 s"),)),
    "timm:d": Record("timm:d", "no rule", 5, (("aten.x.default", "no rule for this operation"),), ("aten.x.default",)),
    "torchvision:e": Record("torchvision:e", "not captured", 0, (("", "a | b_c"),), (), 1800.0),
}


@pytest.fixture
def covered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were really covered, each with its record from above; 'stop' is an interruption."""
    met: list[str] = []

    def run(names: Any, jobs: int, limit: float, plugins: bool) -> Generator[Record, None, None]:
        for name in names:
            if name == "stop":
                raise KeyboardInterrupt
            met.append(name)
            yield RECORDS[name]

    monkeypatch.setattr(coverage, "_run", run)
    return met


def test_records_are_kept_and_gone_on_with(covered: list[str], tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    found = survey(["timm:b", "stop", "timm:a"], versions=VERSIONS, output=path)
    assert found.records == (RECORDS["timm:b"],)
    assert found.wanted == 3
    with path.open("a", encoding="utf-8") as file:
        file.write('{"name": "timm:a", "verd')  # a line that was cut off
    with pytest.raises(UsageError, match="is there already; give --resume"):
        survey(["timm:a"], versions=VERSIONS, output=path)
    names = ["timm:a", "timm:b", "timm:c"]
    for again in (["timm:a", "timm:c"], ["timm:c"]):  # what took too long is tried again
        covered.clear()
        found = survey(names, versions=VERSIONS, output=path, resume=True)
        assert covered == again
        assert found.records == tuple(RECORDS[name] for name in names)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"versions": VERSIONS}
    assert [json.loads(line)["name"] for line in lines[1:]] == ["timm:b", "timm:a", "timm:c"]


def test_a_file_of_something_else_is_refused(covered: list[str], tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    survey(["timm:a"], versions=VERSIONS | {"timm": "1"}, output=path)
    with pytest.raises(UsageError, match="written with another version of timm, torch; give another file"):
        survey(["timm:a"], versions={"lipcheck": "0.1.0", "torch": "3", "timm": "2"}, output=path, resume=True)
    for text in ("hello\n", "[]\n", '{"name": 3}\n'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match="holds no records"):
            survey(["timm:a"], versions=VERSIONS, output=path, resume=True)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        survey(["timm:a"], versions=VERSIONS, output=path, resume=True)
    with pytest.raises(OutputError, match="cannot be written"):
        survey(["timm:a"], versions=VERSIONS, output=tmp_path / "missing" / "records.jsonl")


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done = 0.0

    def stage(self, name: str, total: float | None = None) -> None:
        self.lines.append(name)

    def advance(self, work: float) -> None:
        self.done += work

    def announce(self, text: str) -> None:
        self.lines.append(text)


def test_processes_cover_models_and_outlive_none() -> None:
    """A real run: one model after the other in a child, and one that takes too long."""
    told = Told()
    names = ["timm:resnet18", "timm:no_such_model"]
    found = survey(names, versions=VERSIONS, jobs=1, progress=told)
    assert [record.verdict for record in found.records] == ["global", "not captured"]
    assert told.done == 2
    assert told.lines[0] == "covering 2 models"


def test_a_process_that_ends_or_hangs_costs_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import sys, time
print('ready', flush=True)
for line in sys.stdin:
    if line.startswith('bad'):
        sys.exit(7)
    if line.startswith('slow'):
        time.sleep(600)
    rest = '"verdict": "global", "nodes": 1, "reasons": [], "missing": [], "seconds": 0.5}'
    print('{"name": "%s", %s' % (line.strip(), rest), flush=True)
"""
    monkeypatch.setattr(coverage, "_CHILD", code.replace("{", "{{").replace("}", "}}"))
    for jobs in (1, 3):
        found = survey(["one", "bad", "two", "slow", "three"], versions=VERSIONS, jobs=jobs, limit=2)
        verdicts = [record.verdict for record in found.records]
        assert verdicts == ["global", "unfinished", "global", "unfinished", "global"]
        assert "its process ended" in found.records[1].reason
        assert found.records[3].reason == "took longer than 2 s"
    monkeypatch.setattr(coverage, "_CHILD", "raise SystemExit(3)")
    with pytest.raises(lipcheck.LipcheckError, match="could not be started"):
        survey(["one"], versions=VERSIONS)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interruption_keeps_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    # A shell's background jobs ignore interruptions, and would hand that on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    line = ["coverage", "resnet18", "resnet34", "swin*", "--output", str(path), "-q"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lipcheck", *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (path.exists() and len(path.read_text().splitlines()) > 2):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "timm:resnet18" in out
    assert "were not reached" in out
    assert err == "lipcheck: interrupted\n"
    assert len(path.read_text().splitlines()) >= 3


SURVEY = Survey(tuple(RECORDS.values()), 6, VERSIONS, ("plugin p could not be loaded",))


def test_the_table_fits_its_width_and_counts() -> None:
    assert (
        pages.text(SURVEY, 76)
        == """\
model          operations  verdict       why
────────────────────────────────────────────────────────────────────────────
timm:a                  9  global
timm:b                 20  domain        aten.mul.Tensor: a product (and 1 …
timm:c                  –  unfinished    took longer than 3 s
timm:d                  5  no rule       aten.x.default: no rule for this o…
torchvision:e           –  not captured  a | b_c

5 models: 1 finite on the whole space, 1 finite on a bounded domain, 1 has operations without a rule, 1 could not be \
built or captured, 1 took too long or too much memory
what stands in the way of a bound on the whole space, by models
     1  a | b_c
     1  took longer than 3 s
     1  aten.exp.default: steep
     1  aten.mul.Tensor: a product
     1  aten.x.default: no rule for this operation
plugin p could not be loaded
interrupted: 1 of 6 models were not reached
"""
    )
    for width in (20, 40, 300):
        table = pages.text(SURVEY, width).partition("\n\n")[0]
        assert all(len(line) <= max(width, 42) for line in table.splitlines())
    assert "none covered" in pages.text(Survey((), 3), 80)


def test_the_page_lists_every_failure_by_name() -> None:
    page = pages.markdown(SURVEY, "lipcheck coverage")
    assert "**Incomplete**: 5 of 6 models." in page
    assert "| finite on the whole space | 1 | 0 | 1 |" in page
    assert "| captured, no operation without a rule | 2 (50.0%) | 0 (0.0%) | 2 (40.0%) |" in page
    assert "| torchvision:e | a \\| b\\_c |" in page
    assert "| timm:d | `aten.x.default`: no rule for this operation |" in page
    assert "| `aten.mul.Tensor`: a product | 1 |" in page
    assert "`lipcheck coverage --markdown`, with lipcheck 0.1.0, torch 2;" in page
    for record in RECORDS.values():
        assert record.name in page


def test_percentages_are_rounded_down() -> None:
    records = tuple(Record(f"timm:{i}", "global" if i else "error") for i in range(2000))
    assert "1999 (99.9%)" in pages.markdown(Survey(records, 2000), "lipcheck coverage")


def test_every_verdict_of_the_structure_has_a_meaning() -> None:
    from lipcheck import structure as module

    assert {module.GLOBAL, module.DOMAIN, module.INFINITE, module.MISSING} <= set(VERDICTS)
    assert set(coverage.CAPTURED) <= set(VERDICTS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resnt18"], "no model matches timm:resnt18; the nearest names are timm:resnet18"),
        (["resnet18", "--resume"], "give --output as well"),
        (["resnet18", "--time-limit", "0s"], "give at least a second"),
        (["resnet18", "--time-limit", "soon"], "write it like 90s"),
        (["resnet18", "--output", "/no/such/folder/x"], "cannot be written"),
        (["resnet18", "--jobs", "0"], "jobs"),
    ],
)
def test_wrong_lines_are_refused_in_one(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["coverage", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("lipcheck: error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert captured.out == ""


def test_the_command_prints_the_table_and_writes_the_page(
    covered: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zoo, "matching", lambda patterns: ["timm:a", "timm:b"])
    monkeypatch.setenv("COLUMNS", "90")
    page = tmp_path / "page.md"
    assert cli.main(["coverage", "a*", "--markdown", str(page), "--output", str(tmp_path / "r.jsonl"), "-q"]) == 0
    assert "2 models: 1 finite on the whole space, 1 finite on a bounded domain" in capsys.readouterr().out
    assert "lipcheck coverage 'a*' --markdown" in page.read_text(encoding="utf-8")
    monkeypatch.setattr(zoo, "matching", lambda patterns: ["timm:a", "stop"])
    assert cli.main(["coverage", "a*", "-q"]) == 130
    assert "interrupted: 1 of 2 models were not reached" in capsys.readouterr().out


def test_the_script_is_a_shell_script() -> None:
    subprocess.run(["sh", "-n", str(ROOT / "scripts" / "zoo")], check=True)
    assert os.access(ROOT / "scripts" / "zoo", os.X_OK)
