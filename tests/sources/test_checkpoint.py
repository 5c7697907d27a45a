"""Checkpoints of unknown origin: sound ones are read, hostile ones are refused in one line."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lipcheck.errors import WeightsError
from lipcheck.sources import header
from lipcheck.sources.checkpoint import read_checkpoint, read_tensor

STATE = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.tensor([1.0, 2.0]))


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def safetensors_file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_single_tensor_comes_back(tmp_path, legacy):
    tensor = STATE["weight"]
    torch.save(tensor, tmp_path / "bare.pt", _use_new_zipfile_serialization=not legacy)
    torch.save({"x": tensor}, tmp_path / "named.pt", _use_new_zipfile_serialization=not legacy)
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    for path in tmp_path.iterdir():
        assert torch.equal(read_tensor(path), tensor)
    torch.save(dict(STATE), tmp_path / "two.pt")
    with pytest.raises(WeightsError, match=r"two\.pt: holds 2 tensors, one is expected"):
        read_tensor(tmp_path / "two.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_saved_state_dict_comes_back(tmp_path, legacy):
    torch.save(STATE, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(tmp_path / "w.pth")
    assert list(read.tensors) == ["weight", "bias"]
    assert all(torch.equal(read.tensors[name], STATE[name]) for name in STATE)
    assert read.ordered
    assert read.notes == ()


def test_safetensors_come_back_without_an_order(tmp_path):
    save_file(dict(STATE), tmp_path / "w.safetensors")
    read = read_checkpoint(tmp_path / "w.safetensors")
    assert all(torch.equal(read.tensors[name], STATE[name]) for name in STATE)
    assert not read.ordered


def test_content_decides_where_the_suffix_says_nothing(tmp_path):
    save_file(dict(STATE), tmp_path / "w.bin")
    assert set(read_checkpoint(tmp_path / "w.bin").tensors) == set(STATE)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrappers_and_parallel_prefixes_come_off_and_are_noted(tmp_path, wrapper):
    inner = OrderedDict((f"module.{name}", tensor) for name, tensor in STATE.items())
    torch.save({"epoch": 3, wrapper: inner}, tmp_path / "w.pth")
    read = read_checkpoint(tmp_path / "w.pth")
    assert list(read.tensors) == ["weight", "bias"]
    assert read.notes == (
        f"weights read from the checkpoint's entry {wrapper!r}",
        "prefix 'module.' taken off the checkpoint's names",
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_payload_is_refused_and_not_run(tmp_path, legacy):
    target = tmp_path / "written-by-the-payload"
    torch.save(
        {"w": STATE["weight"], "x": Payload(target)}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy
    )
    assert "its pickle asks for" in refusal(tmp_path / "w.pth")
    assert not target.exists()


def test_a_plain_pickle_payload_is_refused_and_not_run(tmp_path):
    target = tmp_path / "written-by-the-payload"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Payload(target), protocol=2))
    refusal(tmp_path / "w.pth")
    assert not target.exists()


def test_a_whole_pickled_module_names_the_way_out(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    assert "save model.state_dict()" in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_stride_bomb_is_refused(tmp_path, legacy):
    bomb = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    torch.save({"w": bomb}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert "claims 1000000000000 elements over 4 bytes" in refusal(tmp_path / "w.pth")


def test_a_compressed_archive_is_refused_before_it_unfolds(tmp_path):
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "w.pth", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "w.pth").stat().st_size < 100_000
    assert "is compressed" in refusal(tmp_path / "w.pth")


def test_overlapping_archive_entries_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x" * 5000)
        archive.writestr("a/data/0", b"y" * 5000)
        first = archive.infolist()[0]
        archive.filelist += [_named(first, f"a/data/{i}") for i in range(1, 6)]  # more entries over the same bytes
    assert "in a file of" in refusal(path)


def _named(entry: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    copy = zipfile.ZipInfo(name)
    for field in ("compress_type", "header_offset", "CRC", "compress_size", "file_size", "external_attr"):
        setattr(copy, field, getattr(entry, field))
    return copy


def test_a_storage_larger_than_its_file_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "w.pth")
    torch.save({"w": torch.zeros(1000)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("w.pth", "old.pth"):
        whole = (tmp_path / name).read_bytes()
        assert whole.count(b"M\xe8\x03") >= 1  # the pickle's BININT2 of 1000, the storage's length
        (tmp_path / name).write_bytes(whole.replace(b"M\xe8\x03", b"M\xff\xff"))
        refusal(tmp_path / name)


def test_a_truncated_file_is_refused(tmp_path):
    for name, legacy in (("new.pth", False), ("old.pth", True)):
        torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        refusal(tmp_path / name)


def test_sparse_and_meta_tensors_are_refused(tmp_path):
    for name, tensor in (("sparse", torch.eye(3).to_sparse()), ("meta", torch.empty(3, device="meta"))):
        torch.save({"w": tensor}, tmp_path / f"{name}.pth")
        refusal(tmp_path / f"{name}.pth")


@pytest.mark.parametrize(
    ("header", "data"),
    [
        pytest.param({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8, id="over the file"),
        pytest.param({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 16]}}, b"\0" * 16, id="shape over bytes"),
        pytest.param({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, b"\0" * 16, id="negative shape"),
        pytest.param(
            {
                "v": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                "w": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
            },
            b"\0" * 24,
            id="overlap",
        ),
        pytest.param(
            {
                "v": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "w": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
            },
            b"\0" * 12,
            id="hole",
        ),
        pytest.param({"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4, id="unknown dtype"),
        pytest.param(
            {"w": {"dtype": "F32", "shape": [2**62, 16], "data_offsets": [0, 4]}}, b"\0" * 4, id="overflowing shape"
        ),
        pytest.param(b"[" * 50_000, b"", id="deep JSON"),
        pytest.param(b"{nonsense", b"", id="no JSON"),
    ],
)
def test_an_unsound_safetensors_header_is_refused(tmp_path, header, data):
    assert "no sound safetensors file" in refusal(safetensors_file(tmp_path / "w.safetensors", header, data))


def test_a_safetensors_header_over_the_file_or_over_the_cap_is_refused(tmp_path):
    assert "no sound" in refusal(safetensors_file(tmp_path / "over.safetensors", {}, length=10**6))
    assert "header claims over" in refusal(safetensors_file(tmp_path / "huge.safetensors", {}, length=2**60))


def test_too_many_tensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "MOST_TENSORS", 10)
    many = {f"w{i}": torch.zeros(1) for i in range(11)}
    save_file(many, tmp_path / "w.safetensors")
    torch.save(many, tmp_path / "w.pth")
    assert "at most 10 are read" in refusal(tmp_path / "w.safetensors")
    assert "at most 10 are read" in refusal(tmp_path / "w.pth")


def test_files_that_are_no_checkpoints_say_so(tmp_path):
    samples = {
        "text.pth": b"hello, world",
        "empty.pth": b"",
        "empty.safetensors": b"",
        "zip.pth": _zip_bytes({"readme.txt": b"hi"}),
        "pickle.pth": pickle.dumps({"a": 1}),
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    }
    for name, content in samples.items():
        (tmp_path / name).write_bytes(content)
        refusal(tmp_path / name)
    assert "git lfs pull" in refusal(tmp_path / "pointer.pth")
    refusal(tmp_path / "absent.pth")


def test_a_checkpoint_without_named_tensors_is_refused(tmp_path):
    for value in ([torch.zeros(2)], {"epoch": 1}, {0: torch.zeros(2)}, torch.zeros(2)):
        torch.save(value, tmp_path / "w.pth")
        assert "holds no named tensors" in refusal(tmp_path / "w.pth")


def test_hostile_names_are_printed_harmlessly(tmp_path):
    bomb = torch.zeros(1).as_strided((9, 9), (0, 0))
    torch.save({"w\x1b[2J\n\u202e": bomb}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert message.isprintable()
    assert r"w\x1b[2J\n\u202e" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser reads everything")
def test_an_unreadable_file_is_refused(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    (tmp_path / "w.pth").chmod(0)
    assert "Permission denied" in refusal(tmp_path / "w.pth")


def _zip_bytes(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()
