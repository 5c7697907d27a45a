"""Files of an adversary, each made here: refused in one line, at once, with little memory, and nothing written.

The time is the processor's, the memory the largest that the command or a process of it held. What is refused takes
two seconds at most on a machine of its own (LIPCHECK_HOSTILE_SECONDS=2); the suite, whose machine may be busy with
other things, refuses what never comes to an end.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from forks import Forks
from safetensors.torch import save_file

from lipcheck import cli
from lipcheck.errors import WeightsError
from lipcheck.sources import archive
from lipcheck.sources.vetting import vet

SECONDS, BYTES = float(os.environ.get("LIPCHECK_HOSTILE_SECONDS", "20")), 500 * 10**6
WEIGHT = {"fc.weight": torch.ones(3, 4)}


@pytest.fixture(scope="module")
def forks():
    found = Forks()
    yield found
    found.close()


@pytest.fixture
def refused(forks):
    """Runs a command line on a file, which has to be refused; what it says."""

    def check(path: Path, *words: str, quick: bool = True) -> str:
        before = sorted(path.parent.rglob("*"))
        outcome = forks.run(str(path), "-q", *words)
        assert outcome.code == 2, outcome.error
        assert outcome.out == ""
        assert outcome.error.count("\n") == 1
        assert outcome.error.startswith("lipcheck: error: ")
        assert "bug" not in outcome.error
        assert outcome.error.rstrip("\n").isprintable()
        assert sorted(path.parent.rglob("*")) == before
        if quick:
            assert outcome.seconds < SECONDS
            assert outcome.bytes < BYTES
            assert not outcome.loaded_torch
        return str(outcome.error)

    return check


def safetensors_file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


class Payload:
    """Runs a call when it is unpickled by a reader that runs such."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.parts = call, arguments

    def __reduce__(self):
        return self.parts


PAYLOADS: dict[str, Callable[[Path], Payload]] = {
    "open": lambda target: Payload(io.open, str(target), "w"),
    "system": lambda target: Payload(os.system, f"touch '{target}'"),
    "eval": lambda target: Payload(eval, f"open({str(target)!r}, 'w')"),
    "load": lambda target: Payload(torch.load, str(target)),
    "numpy": lambda target: Payload(numpy.load, str(target)),
    "getattr": lambda target: Payload(getattr, Payload(__import__, "os"), "system"),
    "subprocess": lambda target: Payload(subprocess.call, ["touch", str(target)]),
}


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("form", ["archive", "stream", "pickle"])
def test_a_pickle_that_would_run_code(refused, tmp_path, name, form):
    target = tmp_path / "ran"
    payload = {"w": torch.ones(2), "x": PAYLOADS[name](target)}
    if form == "pickle":
        (tmp_path / "w.pth").write_bytes(pickle.dumps(PAYLOADS[name](target), protocol=4))
    else:
        torch.save(payload, tmp_path / "w.pth", _use_new_zipfile_serialization=form == "archive")
    assert "its pickle asks for" in refused(tmp_path / "w.pth")
    assert not target.exists()


@pytest.mark.parametrize("archive", [True, False])
def test_a_stride_bomb(refused, tmp_path, archive):
    bomb = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    torch.save({"w": bomb}, tmp_path / "w.pth", _use_new_zipfile_serialization=archive)
    assert "claims 1000000000000 elements over 4 bytes" in refused(tmp_path / "w.pth")


def test_a_zip_bomb(refused, tmp_path):
    torch.save({"w": torch.zeros(1 << 24)}, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(tmp_path / "w.pth", "w") as bomb:
        for one in plain.infolist():
            bomb.writestr(one.filename, plain.read(one), compress_type=zipfile.ZIP_DEFLATED)
    (tmp_path / "plain").unlink()
    assert "is compressed" in refused(tmp_path / "w.pth")


def test_a_storage_larger_than_its_bytes(refused, tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole.replace(b"M\xe8\x03", b"M\xff\xff"))
    refused(tmp_path / "w.pth")


HEADERS = {
    "length over the file": (b"{}", b"", 10**6),
    "length over the cap": (b"{}", b"", 2**60),
    "over the file": ({"w": entry([4], 0, 16)}, b"\0" * 8, None),
    "shape over the bytes": ({"w": entry([9], 0, 16)}, b"\0" * 16, None),
    "negative shape": ({"w": entry([-4], 0, 16)}, b"\0" * 16, None),
    "negative offset": ({"w": entry([4], -16, 0)}, b"\0" * 16, None),
    "overlap": ({"v": entry([4], 0, 16), "w": entry([4], 8, 24)}, b"\0" * 24, None),
    "hole": ({"v": entry([1], 0, 4), "w": entry([1], 8, 12)}, b"\0" * 12, None),
    "overflow": ({"w": entry([2**62, 16], 0, 4)}, b"\0" * 4, None),
    "end before begin": ({"w": entry([1], 8, 4)}, b"\0" * 8, None),
    "deep": (b'{"w":' + b"[" * 10**6, b"", None),
    "no JSON": (b"{nonsense", b"", None),
    "unknown format": ({"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4, None),
    "empty": (b"", b"", None),
    "many axes": ({"w": entry([1] * 100_000, 0, 4)}, b"\0" * 4, None),
    "much metadata": ({"__metadata__": {f"k{i}": "" for i in range(10**6)}, "w": entry([1], 0, 4)}, b"\0" * 4, None),
}


@pytest.mark.parametrize("case", HEADERS)
def test_an_unsound_header(refused, tmp_path, case):
    header, data, length = HEADERS[case]
    safetensors_file(tmp_path / "w.safetensors", header, data, length=length)
    refused(tmp_path / "w.safetensors")


def test_the_same_name_twice(refused, tmp_path):
    text = (
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    )
    safetensors_file(tmp_path / "w.safetensors", text, b"\0" * 8)
    refused(tmp_path / "w.safetensors")


def test_three_hundred_thousand_names(refused, tmp_path):
    many = {f"w{i}": entry([], 4 * i, 4 * i + 4) for i in range(300_000)}
    safetensors_file(tmp_path / "w.safetensors", many, b"\0" * 1_200_000)
    assert "at most 100000 are read" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize("legacy", [False, True])
def test_too_many_tensors_in_a_pickle(tmp_path, monkeypatch, legacy):
    monkeypatch.setattr(archive, "MOST_PICKLED", 100)
    shared = torch.zeros(1)
    torch.save(
        {f"w{i}": shared.view(1) for i in range(101)}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(WeightsError, match="over 100 tensors"):
        vet(tmp_path / "w.pth")


def test_a_pickle_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_STEPS", 1000)
    (tmp_path / "w.pth").write_bytes(b"\x80\x02" + b"]0" * 1000)
    with pytest.raises(WeightsError, match="over 1000 steps"):
        vet(tmp_path / "w.pth")


def test_a_pickle_of_marks(refused, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02" + b"(" * 5_000_000)
    assert "steps; refused" in refused(tmp_path / "w.pth")


def test_a_pickle_that_makes_bytes_of_nothing(refused, tmp_path):
    torch.save({"w": torch.ones(2), "x": Payload(bytearray, 0x7FFFFFFF)}, tmp_path / "w.pth")
    assert "makes 2147483647 bytes of nothing" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((2, 2), (10**9, 1), 0),
        ((2, 2), (2, 1), 10**9),
        ((2, 2), (2, 1), -1),
        ((2, 2), (-2, 1), 3),
        ((2, 2), (2, 1), 0.5),
        ((-2, -2), (2, 1), 0),
        ((2, 2), (2,), 0),
    ],
)
def test_a_tensor_outside_its_storage(refused, tmp_path, shape, stride, offset):
    class Views:
        """A tensor as its pickle has it."""

        def __init__(self, tensor):
            self.tensor = tensor

        def __reduce__(self):
            storage = torch.storage.TypedStorage(
                wrap_storage=self.tensor.untyped_storage(), dtype=torch.float32, _internal=True
            )
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, stride, False, {})

    torch.save({"w": Views(torch.ones(4))}, tmp_path / "w.pth")
    assert "refused" in refused(tmp_path / "w.pth")


def test_a_pickle_whose_memo_would_fill_the_memory(refused, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02]r\xff\xff\xff\x7f" + b"cos\nsystem\n.")
    assert "its pickle asks for os.system" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *(("nan", dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)),
        *(("inf", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float8_e5m2)),
        *(("-inf", torch.float16), ("nan", torch.float8_e4m3fn)),
    ],
)
def test_numbers_that_are_none(refused, tmp_path, value, dtype):
    weight = torch.ones(3, 4)
    weight[1, :3] = float(value)
    save_file({"fc.weight": weight.to(dtype)}, tmp_path / "w.safetensors")
    assert "in fc.weight (3 of 12 elements)" in refused(tmp_path / "w.safetensors")


def test_numbers_that_are_none_in_a_shard(refused, tmp_path):
    save_file({"a.weight": torch.ones(3, 4)}, tmp_path / "one.safetensors")
    save_file({"b.weight": torch.full((3, 4), float("nan"))}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}}))
    assert "two.safetensors: NaN or infinite weights in b.weight (12 of 12 elements)" in refused(index)


def test_a_tensor_with_an_endless_name(refused, tmp_path):
    save_file({"a" * 20_000: torch.ones(3, 4)}, tmp_path / "w.safetensors")
    assert "a tensor's name of 20000 characters; at most 1000 are read" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize("held", ["plain", "wrapped", "parameters", "turned"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_none_in_a_file_of_torch(refused, tmp_path, held, dtype):
    weight = torch.ones(4, 3, dtype=dtype)
    weight[:3, 1] = float("nan")
    state = {"fc.weight": weight.T if held == "turned" else weight, "fc.bias": torch.ones(4), "count": torch.tensor(3)}
    if held == "parameters":
        state = {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in state.items()}
    torch.save({"state_dict": state, "epoch": 3} if held == "wrapped" else state, tmp_path / "w.pth")
    assert "in fc.weight (3 of 12 elements)" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize("found", [b"archive/data/0", b"\x00\x00\x80\x3f" * 8, b"little"])
@pytest.mark.parametrize("changed", [b"\xb4", b"|"])
def test_an_archive_that_was_damaged_on_its_way(refused, tmp_path, found, changed):
    torch.save({"fc.weight": torch.ones(30, 40)}, tmp_path / "archive.pth")
    whole = bytearray((tmp_path / "archive.pth").read_bytes())
    at = whole.index(found)
    whole[at : at + 1] = changed
    (tmp_path / "archive.pth").write_bytes(whole)
    assert "cut off or damaged" in refused(tmp_path / "archive.pth")


def test_numbers_beside_those_of_the_network_may_be_none(forks, tmp_path):
    storage = torch.full((20,), float("nan"))
    storage[4:16] = 1
    state = {"fc.weight": storage[4:16].view(3, 4)}
    torch.save({"model": state, "optimizer": {"lr": torch.full((3,), float("inf"))}}, tmp_path / "w.pth")
    assert forks.run(str(tmp_path / "w.pth"), "-q").code == 0


CONFIGS: dict[str, dict[str, object]] = {
    "wide": {"model_type": "llama", "hidden_size": 10**6, "num_hidden_layers": 2, "vocab_size": 100},
    "many tokens": {"model_type": "bert", "hidden_size": 768, "vocab_size": 10**10},
    "deep": {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 10**9},
    "stages": {"model_type": "resnet", "hidden_sizes": [10**6, 10**6], "depths": [1, 1]},
    "positions": {"model_type": "bert", "max_position_embeddings": 10**11},
    "tokens alone": {"model_type": "bert", "vocab_size": 10**12},
    "labels": {"model_type": "bert", "num_labels": 10**9},
    "classes": {"architecture": "resnet18", "num_classes": 10**12},
    "pixels": {"model_type": "vit", "image_size": 10**6, "patch_size": 1},
    "timm, wide": {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 300_000, "num_heads": 1}},
    "timm, deep": {"architecture": "resnet18", "model_args": {"layers": [10**5, 2, 2, 2]}},
    "within": {"model_type": "clip", "text_config": {"hidden_size": 10**6, "num_hidden_layers": 9}},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_config_of_more_than_there_is_memory_for(refused, tmp_path, name, weights):
    folder = tmp_path / "giant"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    told = refused(folder, "--weights", weights)
    assert ("it was not built" if weights == "random" else "no model.safetensors beside the config.json") in told


@pytest.mark.parametrize("name", ["EvilModel", "os.system", "\x1b[31m", "AutoModel"])
def test_a_config_that_asks_for_code_of_its_own(refused, tmp_path, name):
    folder = tmp_path / "remote"
    folder.mkdir()
    config = {"model_type": "evil", "auto_map": {"AutoModel": f"evil.{name}"}, "architectures": [name]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert "code from the folder is never run" in refused(folder, "--weights", "random")


def test_an_index_with_an_endless_file_name(refused, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "a" * 5000 + ".safetensors"}}))
    assert "no safetensors file of the folder; refused" in refused(index)


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;x\x07", "a\nb", "\u202egnp", "[/x][bold]", "a\u0085b", "\ud7ff\ufffe"])
def test_hostile_names_are_harmless_everywhere(refused, capsys, tmp_path, name):
    save_file({name: torch.ones(3, 4), f"{name}.bias": torch.ones(3)}, tmp_path / "w.safetensors")
    assert cli.main([str(tmp_path / "w.safetensors"), "-q", "--json", str(tmp_path / "report.json")]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
    assert json.loads((tmp_path / "report.json").read_text())["layers"][0]["layer"] == name
    save_file({name: torch.full((3, 4), float("nan"))}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize("shard", ["../w.safetensors", "linked.safetensors", "", "x\0.safetensors", "sub/w.safetensors",
                                   "w.pth", "none.safetensors", "/absolute", 3, None, ["w"]])  # fmt: skip
def test_an_index_that_leads_elsewhere(refused, tmp_path, shard):
    save_file(WEIGHT, tmp_path / "w.safetensors")
    inside = tmp_path / "folder"
    (inside / "sub").mkdir(parents=True)
    (inside / "linked.safetensors").symlink_to(tmp_path / "w.safetensors")
    save_file(WEIGHT, inside / "sub" / "w.safetensors")
    target = str(tmp_path / "w.safetensors") if shard == "/absolute" else shard
    index = inside / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": target}}))
    refused(index)
    refused(inside)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 10**6])
def test_an_index_that_is_none(refused, tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    refused(tmp_path / "model.safetensors.index.json")


def test_an_index_and_its_files_agree(refused, tmp_path):
    save_file({**WEIGHT, "more.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": "a.safetensors"}}))
    assert "also holds more.weight" in refused(index)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(("fc.weight", "more.weight", "gone"), "a.safetensors")}))
    assert "is without gone" in refused(index)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"version https://git-lfs\n", b"\0" * 99, b"x"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_checkpoint(refused, tmp_path, content, suffix):
    (tmp_path / f"w{suffix}").write_bytes(content)
    refused(tmp_path / f"w{suffix}")


def test_a_failed_audit_leaves_the_old_report(refused, tmp_path):
    folder = tmp_path / "written"
    folder.mkdir()
    (folder / "report.json").write_text("old")
    save_file({"fc.weight": torch.full((3, 4), float("nan"))}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "--json", str(folder / "report.json"))
    assert (folder / "report.json").read_text() == "old"
    assert os.listdir(folder) == ["report.json"]


def test_a_pipe_is_no_checkpoint(refused, tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    assert "no regular file" in refused(tmp_path / "w.pth")


# Isolation


def test_a_file_of_torch_is_audited_in_a_process_of_its_own(forks, capsys, tmp_path):
    torch.save({"state_dict": WEIGHT}, tmp_path / "w.pth")
    apart = forks.run(str(tmp_path / "w.pth"), "-q")
    assert (apart.code, apart.loaded_torch) == (0, False)
    assert cli.main([str(tmp_path / "w.pth"), "-q", "--no-isolate"]) == 0
    assert apart.out.split("tolerance")[0].split() == capsys.readouterr().out.split("tolerance")[0].split()


def test_limits_of_memory_and_time_are_kept(refused, tmp_path):
    save_file({"fc.weight": torch.ones(300, 400)}, tmp_path / "w.safetensors")
    error = refused(tmp_path / "w.safetensors", "--isolate", "--isolate-memory", "100MB", quick=False)
    assert "--isolate-memory" in error
    error = refused(tmp_path / "w.safetensors", "--isolate-time", "0.2s", quick=False)
    assert "took over 0.2 s" in error
