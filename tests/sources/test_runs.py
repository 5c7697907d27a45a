"""The checkpoints of a run: which files are some, and in which order they were written."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipcheck.errors import UsageError, WeightsError
from lipcheck.sources import runs
from lipcheck.sources.checkpoint import read_checkpoint
from lipcheck.sources.runs import checkpoints, stamp_of, training_step
from lipcheck.sources.targets import target


def put(folder: Path, names: str) -> Path:
    """Files of some bytes, one written a second after the other; a name with a slash at its end is a folder's."""
    for second, name in enumerate(names.split()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        os.utime(path, (second, second))
    return folder


def names(folder: Path) -> list[str]:
    return [one.name for one in checkpoints(folder)]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("checkpoint-10.pth.tar checkpoint-9.pth.tar", "checkpoint-9.pth.tar checkpoint-10.pth.tar"),
        (
            "epoch=1-step=20.ckpt epoch=0-step=10.ckpt epoch=10-step=110.ckpt",
            "epoch=0-step=10.ckpt epoch=1-step=20.ckpt epoch=10-step=110.ckpt",
        ),
        ("b.pt a.pt", "b.pt a.pt"),
        (
            "model_best.pth.tar checkpoint-1.pth.tar last.pth.tar",
            "model_best.pth.tar checkpoint-1.pth.tar last.pth.tar",
        ),
        ("checkpoint-500/config.json checkpoint-500/model.safetensors checkpoint-500/optimizer.pt", "checkpoint-500"),
        ("step_20/model.safetensors step_20/optimizer.bin step_3/model.safetensors", "step_3 step_20"),
        (
            "config.json model.safetensors optimizer.pt scheduler.pt rng_state.pth training_args.bin",
            "model.safetensors",
        ),
        ("tmp.pth.tar recovery_tmp.pth.tar optim.pt random_states_0.pkl .hidden.pt notes.txt data.tar", ""),
        ("model.safetensors.index.json model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        ("v_2/epoch=0.ckpt v_10/epoch=0.ckpt", "v_2/epoch=0.ckpt v_10/epoch=0.ckpt"),
        ("1/2/3/4/5/6/e1.pt 1/2/3/4/5/6/7/e2.pt", "1/2/3/4/5/6/e1.pt"),
        ("pytorch_model.bin other.bin", "pytorch_model.bin"),
        ("epoch_²_1.pt epoch_²_0.pt", "epoch_²_0.pt epoch_²_1.pt"),
    ],
)
def test_what_trainers_write_is_found_in_the_order_of_training(tmp_path, written, found):
    assert names(put(tmp_path, written)) == found.split()


def test_two_names_of_one_file_are_one_checkpoint_and_the_number_names_it(tmp_path):
    put(tmp_path, "last.ckpt")
    os.link(tmp_path / "last.ckpt", tmp_path / "checkpoint-3.ckpt")
    (tmp_path / "best.ckpt").symlink_to("last.ckpt")
    assert names(tmp_path) == ["checkpoint-3.ckpt"]


def test_a_folder_of_links_in_a_ring_is_left(tmp_path):
    put(tmp_path, "run/a.pt")
    (tmp_path / "run" / "again").symlink_to(tmp_path)
    (tmp_path / "gone.pt").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path) == ["run/a.pt"]


def test_a_stamp_tells_what_was_written_anew(tmp_path):
    put(tmp_path, "checkpoint-1/model.safetensors checkpoint-1/config.json a.pt")
    for name in ("checkpoint-1", "a.pt"):
        before = stamp_of(tmp_path / name)
        assert before == stamp_of(tmp_path / name)
        changed = tmp_path / name / "model.safetensors" if name != "a.pt" else tmp_path / name
        changed.write_bytes(b"longer than it was before")
        assert stamp_of(tmp_path / name) != before
    assert stamp_of(tmp_path / "gone.pt") is None


def test_too_many_files_and_no_folder_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "MOST_ENTRIES", 2)
    with pytest.raises(UsageError, match="over 2 files; name the folder of one training run"):
        checkpoints(put(tmp_path, "a b c"))
    with pytest.raises(UsageError, match="No such file"):
        checkpoints(tmp_path / "gone")


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_every_name_has_its_numbers(name):
    assert all(number >= 0 for number in training_step(name))


def test_the_options_of_a_training_script_beside_the_weights_are_no_obstacle(tmp_path):
    """What timm's CheckpointSaver writes when it is given its script's arguments, whose suffix says tar."""
    path = tmp_path / "last.pth.tar"
    state = nn.Linear(2, 3).state_dict()
    torch.save({"epoch": 1, "state_dict": state, "args": argparse.Namespace(model="x", lr=0.1)}, path)
    assert torch.equal(read_checkpoint(path).tensors["weight"], state["weight"])
    assert target(str(path)).alone == path
    assert target(str(path)).pickled
    assert target(str(path), arch="demo").pickled


def test_no_other_object_comes_along(tmp_path):
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": nn.Linear(2, 3).state_dict(), "args": argparse.Namespace(path=Path("x"))}, path)
    with pytest.raises(WeightsError, match=r"its pickle asks for pathlib\."):
        read_checkpoint(path)
