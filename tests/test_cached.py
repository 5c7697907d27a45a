"""A second audit computes what changed and nothing else, and no kept bound stands for another layer than its own."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sqlite3
import subprocess
import sys

import pytest
import torch
from draws import draws
from hypothesis import given, settings
from safetensors.torch import save_file
from strategies import convolutions
from torch import nn

import lipcheck
from lipcheck import audit, bare, cache, cached, tighten
from lipcheck.bound import Bound
from lipcheck.cache import Cache
from lipcheck.cached import ENCLOSED, Kept
from lipcheck.engines.enclose import enclose, spectral_norm
from lipcheck.engines.settings import DEFAULT_SETTINGS, Settings
from lipcheck.operators import BatchedDense, Convolution, Dense, Diagonal, Padded, Separable
from lipcheck.proof import CellsProof, MatrixProof

EXAMPLE = torch.zeros(1, 3, 9, 9)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        norm,
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.AvgPool2d(3, stride=2),
        nn.Flatten(),
        nn.Linear(64, 10),
        nn.Linear(10, 10),
    ).eval()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache of the test's own, turned on."""
    monkeypatch.delenv(cache.OFF)
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "bounds"))
    return Cache(tmp_path / "bounds")


@pytest.fixture
def computed(monkeypatch):
    """The operators of layers that an audit really encloses, of those that are worth keeping."""
    return watched(monkeypatch, audit)


def watched(monkeypatch, module):
    seen = []

    def watching(operators, *rest, **others):
        seen.extend(operator for operator in operators if Kept.takes(operator))
        return enclose(operators, *rest, **others)

    monkeypatch.setattr(module, "enclose", watching)
    return seen


def check(model: nn.Module, **options):
    return lipcheck.check(model, example=EXAMPLE, samples=0, **options)


def rows(place: Cache) -> dict[str, bytes]:
    connection = sqlite3.connect(place.file)
    found = dict(connection.execute("SELECT key, value FROM bounds"))
    connection.close()
    return found


def test_a_second_audit_computes_nothing_and_says_the_same(place, computed, monkeypatch):
    merged = watched(monkeypatch, tighten)
    first = check(network())
    assert len(computed) >= 5
    assert merged
    computed.clear()
    merged.clear()
    second = check(network())
    assert computed == merged == []
    assert second.layers == first.layers
    assert second.network == first.network
    assert "10 bounds were found in the cache of earlier audits" in second.run.notes
    assert not any("cache" in note for note in first.run.notes)
    assert "looking up the layers" in second.run.seconds
    assert "bounding the layers" not in second.run.seconds


def test_one_changed_layer_is_computed_alone(place, computed):
    check(network())
    for layer, number in ((7, 1), (6, 1), (3, 1), (0, 2), (1, 1)):  # 0: with its batch norm, and without
        changed = network()
        weight = changed[layer].weight
        with torch.no_grad():
            weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(math.inf))
        computed.clear()
        found = check(changed)
        assert len(computed) == number
        expected = check(changed, cache=False)
        assert [row.bound for row in found.layers] == [row.bound for row in expected.layers]


def test_of_weights_alone_the_changed_tensor_is_computed(place, monkeypatch, tmp_path):
    computed = watched(monkeypatch, bare)
    path = tmp_path / "weights.safetensors"
    tensors = {f"layer{n}.weight": torch.randn(6, 5 + n) for n in range(4)}
    save_file(tensors, path)
    first = lipcheck.check(str(path))
    assert len(computed) == 4
    tensors["layer2.weight"][0, 0] += 1
    save_file(tensors, path)
    computed.clear()
    second = lipcheck.check(str(path))
    (changed,) = computed
    assert torch.equal(changed.matrix, tensors["layer2.weight"])
    assert "3 bounds were found in the cache of earlier audits" in second.run.notes
    same = [n for n, row in enumerate(first.layers) if row.layer != "layer2"]
    assert [first.layers[n] for n in same] == [second.layers[n] for n in same]


def test_nothing_is_kept_where_it_is_not_wanted(place, computed, monkeypatch):
    check(network(), cache=False)
    monkeypatch.setenv(cache.OFF, "1")
    report = check(network())
    assert not place.folder.exists()
    assert not any("cache" in note for note in report.run.notes)
    monkeypatch.delenv(cache.OFF)
    check(network())
    computed.clear()
    check(network(), cache=False)
    assert len(computed) >= 5


def test_what_was_found_is_kept_when_the_audit_is_broken_off(place, computed, monkeypatch):
    wide = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(200, 10))
    with monkeypatch.context() as broken:
        calls = []

        def stop(one, *rest):
            calls.append(one)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return spectral_norm(one, *rest)

        broken.setattr("lipcheck.engines.enclose.spectral_norm", stop)
        with pytest.raises(KeyboardInterrupt):
            lipcheck.check(wide, example=EXAMPLE, samples=0, threads=1)
    computed.clear()
    lipcheck.check(wide, example=EXAMPLE, samples=0, threads=1)
    assert 1 <= len(computed) <= 2


def test_a_certificate_of_kept_bounds_is_that_of_computed_ones(place, computed, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    check(network(), certificate=first)
    computed.clear()
    check(network(), certificate=second)
    assert computed == []
    assert second.read_bytes() == first.read_bytes()
    assert lipcheck.verify(second, network(), example=EXAMPLE).ok


def test_climbs_and_comparisons_are_kept(place, computed, monkeypatch):
    # Too many rows for the matrix it is, small enough to climb.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1))
    small = torch.zeros(1, 64, 6, 6)
    options = {"example": small, "samples": 0, "tight": True, "methods": ("gram", "lipbound", "randomised")}
    with monkeypatch.context() as few:
        few.setattr("lipcheck.engines.enclose._MATRIX_SIDE", 16)
        first = lipcheck.check(model, **options)
        few.setattr("lipcheck.engines.ladder.climb", None)
        few.setattr(audit, "bound_by", None)
        computed.clear()
        second = lipcheck.check(model, **options)
        assert computed == []
    assert first.layers == second.layers
    assert "finite" in second.layers[0].bound.method
    assert {*second.layers[0].compared} == {"gram", "lipbound", "randomised"}
    # Of another budget of time nothing is taken: what is climbed depends on it.
    lipcheck.check(model, **options, time_budget=0.0)
    assert computed


# What a key must tell apart

CONVOLUTION = Convolution(
    torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(1)),
    (1, 1), (1, 1), 1, (1, 1), (8, 8), (8, 8), uncertainty=1e-9,
)  # fmt: skip
DENSE = Dense(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))


def one_bit(weight: torch.Tensor) -> torch.Tensor:
    changed = weight.clone()
    changed.view(-1)[-1] = torch.nextafter(changed.view(-1)[-1], torch.tensor(9.0))
    return changed


DIFFERENT = [
    (CONVOLUTION, {"weight": one_bit(CONVOLUTION.weight)}),
    (CONVOLUTION, {"weight": CONVOLUTION.weight.double()}),
    (CONVOLUTION, {"weight": CONVOLUTION.weight.transpose(0, 1)}),
    (CONVOLUTION, {"weight": CONVOLUTION.weight.reshape(4, 4, 9, 1)}),
    (CONVOLUTION, {"stride": (2, 1)}),
    (CONVOLUTION, {"dilation": (1, 2)}),
    (CONVOLUTION, {"groups": 2}),
    (CONVOLUTION, {"offset": (0, 1)}),
    (CONVOLUTION, {"input_size": (9, 8)}),
    (CONVOLUTION, {"output_size": (8, 7)}),
    (CONVOLUTION, {"circular": True}),
    (CONVOLUTION, {"transposed": True}),
    (CONVOLUTION, {"uncertainty": 0.0}),
    (DENSE, {"matrix": DENSE.matrix.reshape(4, 9)}),
    (DENSE, {"matrix": DENSE.matrix.T}),
    (DENSE, {"matrix": DENSE.matrix.half()}),
    (DENSE, {"uncertainty": 1e-30}),
]


def test_every_field_of_an_operator_is_tried():
    tried = {(type(operator), name) for operator, change in DIFFERENT for name in change}
    for operator in (CONVOLUTION, DENSE):
        assert {(type(operator), field.name) for field in dataclasses.fields(operator)} <= tried


@pytest.mark.parametrize(("operator", "change"), DIFFERENT)
def test_another_operator_is_not_found(tmp_path, operator, change):
    bound = Bound(1.0, 2.0, "any")
    Kept(Cache(tmp_path), DEFAULT_SETTINGS).keep([operator], [bound], ENCLOSED)
    other = dataclasses.replace(operator, **change)
    assert Kept(Cache(tmp_path), DEFAULT_SETTINGS).find([operator, other], ENCLOSED) == [bound, None]


@pytest.mark.parametrize(
    "change",
    [{"tolerance": 1e-2}, {"device": torch.device("cuda")}, {"memory": 1 << 29}, {"tight": True}, {"time_budget": 9.0},
     {"upper_only": True}],
)  # fmt: skip
def test_of_other_settings_nothing_is_found(tmp_path, change):
    Kept(Cache(tmp_path), DEFAULT_SETTINGS).keep([DENSE], [Bound(1.0, 2.0, "any")], ENCLOSED)
    assert {field.name for field in dataclasses.fields(Settings)} == {
        *("tolerance", "device", "memory", "tight", "time_budget", "upper_only")
    }
    assert Kept(Cache(tmp_path), dataclasses.replace(DEFAULT_SETTINGS, **change)).find([DENSE], ENCLOSED) == [None]


def test_of_another_method_or_version_nothing_is_found(tmp_path, monkeypatch):
    def found(method=ENCLOSED, given=0.0):
        return Kept(Cache(tmp_path), DEFAULT_SETTINGS).find([DENSE], method, given) != [None]

    Kept(Cache(tmp_path), DEFAULT_SETTINGS).keep([DENSE], [Bound(1.0, 2.0, "any")], ENCLOSED)
    assert found()
    assert not found("tightened")
    assert not found(given=1.0)
    for name, value in (("_source", lambda: "other code"), ("_version", lambda name: "0.0.1")):
        with monkeypatch.context() as other:
            other.setattr(cached, name, value)
            assert not found()
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "1.0")
        assert not found()
    with monkeypatch.context() as other:
        other.setattr(cached, "_source", lambda: "")
        assert not Kept(Cache(tmp_path), DEFAULT_SETTINGS).used


def test_the_source_is_all_of_lipchecks_code(tmp_path, monkeypatch):
    files = {"a.py": "x = 1", "deep/b.py": "y = 2", "data.json": "{}"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cached.resources, "files", lambda name: tmp_path)
    plain = cached._source.__wrapped__()
    for name, changes in (("deep/b.py", True), ("data.json", False)):
        (tmp_path / name).write_text("changed")
        assert (cached._source.__wrapped__() != plain) is changes
        (tmp_path / name).write_text(files[name])
    for name in ("a.py", "deep/b.py"):
        (tmp_path / name).unlink()
    assert cached._source.__wrapped__() == ""


def test_operators_that_others_define_are_not_kept(tmp_path):
    class Mine(Dense):
        pass

    mine = Mine(DENSE.matrix)
    kept = Kept(Cache(tmp_path), DEFAULT_SETTINGS)
    kept.keep([mine, Diagonal(torch.ones(3))], [Bound(1.0, 2.0, "any")] * 2, ENCLOSED)
    assert kept.find([mine, DENSE], ENCLOSED) == [None, None]
    assert not (tmp_path / "bounds-1.sqlite").exists()


def test_views_of_one_memory_are_different_weights(tmp_path):
    whole = torch.randn(8, 8, dtype=torch.float16)
    views = [whole[:4], whole[4:], whole[:, :4].T, whole[:4].view(torch.bfloat16), whole.flip(0)[:4]]
    kept = Kept(Cache(tmp_path), DEFAULT_SETTINGS)
    for n, view in enumerate(views):
        assert kept.find([Dense(view)], ENCLOSED) == [None]
        kept.keep([Dense(view)], [Bound(n + 1.0, n + 1.0, "any")], ENCLOSED)
    assert [one.upper for one in kept.find([Dense(view.clone()) for view in views], ENCLOSED)] == [1, 2, 3, 4, 5]


# Rows


@settings(max_examples=draws(30))
@given(convolutions())
def test_a_bound_and_its_proof_come_back_as_they_were(tmp_path_factory, convolution):
    bound = spectral_norm(convolution)
    back = cached._read(cached._row(bound), ENCLOSED) if bound.upper > 0 else bound
    assert back == bound
    assert back.proof == bound.proof


def test_bounds_of_every_kept_kind_come_back(tmp_path):
    weight = torch.randn(3, 3, 3, 3)
    inner = Convolution(weight, (1, 1), (1, 1), 1, (0, 0), (7, 7), (5, 5))
    place = torch.tensor([1, 0, 1, 2, 3, 4, 3])
    operators = [
        DENSE, CONVOLUTION, inner, Padded(inner, (place, place), (5, 5), "reflect"), BatchedDense(torch.randn(2, 3, 4)),
        Separable((torch.randn(3, 4), torch.randn(2, 2))),
        lipcheck.operators.InfiniteConvolution(weight, (1, 1), (1, 1), 1),
    ]  # fmt: skip
    bounds = enclose(operators)
    bounds[2] = Bound(0.1, 0.3, "cells", proof=CellsProof(0.2, (1, 1), (4, 4), ((0, 1, 2), (1, 3, 5))))
    Kept(Cache(tmp_path), DEFAULT_SETTINGS).keep(operators, bounds, ENCLOSED)
    found = Kept(Cache(tmp_path), DEFAULT_SETTINGS).find(operators, ENCLOSED)
    assert found == bounds
    assert [one.proof for one in found] == [one.proof for one in bounds]


GOOD = json.loads(cached._row(Bound(1.0, 2.0, "matrix", proof=MatrixProof(2.0))))


@pytest.mark.parametrize(
    "change",
    [
        {"lower": (3.0).hex()}, {"lower": (-1.0).hex()}, {"upper": "nan"}, {"lower": "nan"}, {"upper": "inf"},
        {"lower": "0x0p0", "upper": "0x0p0"}, {"upper": 2.0}, {"upper": None}, {"upper": "two"}, {"upper": "0x1p99999"},
        {"kind": "proved"}, {"kind": "estimate"}, {"kind": "probabilistic"}, {"kind": []}, {"method": 7},
        {"method": "m" * 999}, {"proof": 7}, {"proof": {"kind": "matrix"}}, {"proof": {"kind": "other", "mu": 1.0}},
        {"proof": {"kind": "matrix", "mu": -1}}, {"tables": 7}, {"tables": {"a": [[1.5]]}}, {"tables": {"a": [1]}},
        {"tables": {"a": [[1], [1, 2]]}},
    ],
)  # fmt: skip
def test_rows_that_make_no_sense_are_absent(change):
    assert cached._read(json.dumps(GOOD).encode(), ENCLOSED) == Bound(1.0, 2.0, "matrix")
    assert cached._read(json.dumps(GOOD | change).encode(), ENCLOSED) is None


@pytest.mark.parametrize("row", [b"", b"{", b"[]", b"7", b"null", b"\xff", b"[" * 100_000, b"{}"])
def test_rows_that_are_no_rows_are_absent(row):
    assert cached._read(row, ENCLOSED) is None


def test_zero_and_infinite_bounds_are_not_kept(tmp_path):
    kept = Kept(Cache(tmp_path), DEFAULT_SETTINGS)
    kept.keep([DENSE, CONVOLUTION], [Bound(0.0, 0.0, "zero"), Bound(1.0, math.inf, "none")], ENCLOSED)
    assert kept.find([DENSE, CONVOLUTION], ENCLOSED) == [None, None]


# Trouble


def test_a_poisoned_database_changes_no_bound(place, computed):
    right = check(network())
    connection = sqlite3.connect(place.file)
    with connection:
        for key, value in rows(place).items():
            small = json.loads(value) | {"lower": "0x0p0", "upper": "0x1p-40", "proof": None}
            connection.execute("UPDATE bounds SET value = ? WHERE key = ?", (json.dumps(small).encode(), key))
    connection.close()
    computed.clear()
    assert check(network()).layers == right.layers
    assert len(computed) >= 5
    computed.clear()
    assert check(network()).layers == right.layers
    assert computed == []


@pytest.mark.parametrize("damage", [b"", b"garbage" * 1000, "half"])
def test_a_damaged_database_is_rebuilt(place, computed, damage):
    right = check(network())
    whole = place.file.read_bytes()
    place.file.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    assert check(network()).layers == right.layers
    computed.clear()
    assert check(network()).layers == right.layers
    assert computed == []


def test_a_cache_that_cannot_be_used_is_told_in_the_notes(place, computed, monkeypatch):
    monkeypatch.setenv(cache.FOLDER, os.path.join(os.devnull, "folder"))
    report = check(network())
    assert "the cache of bounds cannot be used: Not a directory" in report.run.notes
    monkeypatch.setitem(sys.modules, "lipcheck.cache", None)
    monkeypatch.delattr(lipcheck, "cache")
    report = check(network())
    assert "the cache of bounds cannot be used: sqlite3 is missing in this Python" in report.run.notes


AGAIN = """
import lipcheck
from test_cached import network, EXAMPLE
report = lipcheck.check(network(), example=EXAMPLE, samples=0, threads=1)
assert report.run.notes == ("10 bounds were found in the cache of earlier audits",), report.run.notes
print([(row.bound.lower, row.bound.upper) for row in report.layers])
"""


def test_another_process_finds_them(place):
    right = check(network(), threads=1)
    path = {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, env=os.environ | path)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == str([(row.bound.lower, row.bound.upper) for row in right.layers]) + "\n"


def test_the_suite_keeps_nothing():
    assert not cached.kept(DEFAULT_SETTINGS, wanted=True).used
