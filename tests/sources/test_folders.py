"""HuggingFace folders, for timm and for transformers: built from the folder alone, strictly, within a budget."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from lipcheck.errors import LipcheckError, SourceError, UnknownModelError, WeightsError
from lipcheck.sources import budget, load
from lipcheck.sources.surroundings import quiet

TIMM = "test_resnet"


@pytest.fixture(scope="module")
def resnets(tmp_path_factory):
    """A folder as transformers writes it, and the network in it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("resnet")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    with quiet():
        model = transformers.ResNetForImageClassification(config)
        model.save_pretrained(folder)
    return folder, model.eval()


@pytest.fixture
def hf(resnets, tmp_path):
    """A copy of the transformers folder, to be spoiled."""
    return shutil.copytree(resnets[0], tmp_path / "copy")


@pytest.fixture
def timm_folder(tmp_path):
    """A folder as timm writes it."""
    import timm

    with quiet():
        model = timm.create_model(TIMM, num_classes=5)
    config = {
        "architecture": TIMM,
        "num_classes": 5,
        "model_args": {"num_classes": 5},
        "pretrained_cfg": {"input_size": [3, 96, 96], "num_classes": 5, "classifier": "fc", "first_conv": "conv1"},
    }
    folder = tmp_path / "of timm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def changed(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return str(folder)


def test_a_transformers_folder_is_loaded_as_saved(resnets, capfd):
    folder, model = resnets
    loaded = load(str(folder))
    assert (loaded.source, loaded.keyword) == ("transformers", "pixel_values")
    assert loaded.weights.startswith("pretrained (model.safetensors of ")
    assert loaded.notes == ("input 3x224x224 assumed: the model states no size",)
    assert "transformers" in loaded.versions
    assert capfd.readouterr() == ("", "")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.module(pixel_values=x).logits, model(pixel_values=x).logits)


def test_a_stated_size_is_used(hf):
    assert load(changed(hf, image_size=48)).example.shape == (1, 3, 48, 48)
    (hf / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 40, "width": 56}}))
    assert load(changed(hf, image_size=None)).example.shape == (1, 3, 40, 56)
    assert load(str(hf), input_size=(3, 33, 33)).notes == ()


def test_the_folder_says_how_pixels_are_normalised(hf):
    assert load(str(hf)).pixels is None
    stated = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": {"height": 32, "width": 32}}
    (hf / "preprocessor_config.json").write_text(json.dumps(stated))
    pixels = load(str(hf)).pixels
    assert (pixels.mean, pixels.std, pixels.zoom) == ((0.5,) * 3, (0.25,) * 3, None)


@pytest.fixture(scope="module")
def berts(tmp_path_factory):
    """A language model's folder, and the network in it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    with quiet():
        model = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=31))
        model.save_pretrained(folder)
    return folder, model.eval()


def test_a_language_model_is_taken_from_behind_its_embeddings(berts):
    folder, model = berts
    loaded = load(str(folder))
    assert (loaded.keyword, loaded.example.shape) == ("inputs_embeds", (1, 16, 12))
    assert any("16 tokens" in note for note in loaded.notes)
    assert loaded.pixels is None
    x = torch.randn(1, 5, 12)
    found = loaded.module(inputs_embeds=x).last_hidden_state
    assert torch.equal(found, model(inputs_embeds=x).last_hidden_state)
    assert load(str(folder), input_size=(5, 12)).example.shape == (1, 5, 12)


def test_a_language_models_table_and_projections_are_in_its_report(berts):
    import lipcheck

    report = lipcheck.check(str(berts[0]), input_size=(4, 12), samples=1, heads=True)
    tables = {table.layer: table for table in report.embeddings}
    assert (tables["embeddings.word_embeddings"].entries, tables["embeddings.word_embeddings"].width) == (31, 12)
    query = "encoder.layer.0.attention.self.query"
    assert [row.part for row in report.layers if row.layer == query] == ["", *(f"q head {n}" for n in range(3))]
    norms = [row for row in report.layers if row.kind == "layer_norm"]
    assert [row.layer.rpartition(".")[2] for row in norms] == ["LayerNorm"] * 3
    assert all(row.slope_everywhere.upper > 1e5 for row in norms)  # eps is 1e-12


def test_random_weights_come_from_the_config_only(hf):
    (hf / "model.safetensors").unlink()
    first, again = (load(str(hf), weights="random", seed=s).module.state_dict() for s in (3, 3))
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(WeightsError, match=r"no model\.safetensors .*--weights random, or --weights FILE"):
        load(str(hf))


def test_a_checkpoint_fills_a_transformers_network(hf, tmp_path):
    state = load_file(hf / "model.safetensors")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    (hf / "model.safetensors").unlink()
    loaded = load(str(hf), weights=str(tmp_path / "w.pth"))
    assert loaded.notes[0] == "weights read from the checkpoint's entry 'state_dict'"


def test_transformers_weights_that_do_not_fit_are_refused(hf):
    state = load_file(hf / "model.safetensors")
    name = "resnet.embedder.embedder.convolution.weight"
    for spoiled, words in (
        ({n: t for n, t in state.items() if n != name}, f"1 missing: {name}"),
        (state | {"classifier.9.weight": torch.zeros(2)}, "1 unexpected: classifier.9.weight"),
        (state | {"classifier.1.bias": torch.zeros(9)}, "1 of another shape: classifier.1.bias"),
        (state | {name: state[name] / 0}, r"NaN or infinite weights in .*convolution\.weight"),
    ):
        save_file(spoiled, hf / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=words) as caught:
            load(str(hf))
        assert "\n" not in str(caught.value)


def test_a_pickle_in_a_transformers_folder_is_not_read(hf):
    torch.save(load_file(hf / "model.safetensors"), hf / "pytorch_model.bin")
    (hf / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        load(str(hf))


def test_an_index_stays_inside_its_folder(hf):
    (hf / "model.safetensors").rename(hf.parent / "outside.safetensors")
    index = hf / "model.safetensors.index.json"
    for target in ("../outside.safetensors", str(hf.parent / "outside.safetensors"), "linked.safetensors"):
        index.write_text(json.dumps({"weight_map": {"classifier.1.bias": target}}))
        if target.startswith("linked"):
            (hf / target).symlink_to(hf.parent / "outside.safetensors")
        with pytest.raises(WeightsError, match="no safetensors file of the folder; refused"):
            load(str(hf))


def test_no_code_from_a_folder_is_run(hf):
    witness = hf / "ran"
    (hf / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass Net: pass\n")
    auto = {"AutoConfig": "evil.Net", "AutoModelForImageClassification": "evil.Net"}
    assert load(changed(hf, auto_map=auto), weights="random").source == "transformers"
    with pytest.raises(SourceError, match="no model class Net; code from the folder is never run"):
        load(changed(hf, architectures=["Net"]))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"architectures": None}, "names no class"),
        ({"architectures": ["os.system"]}, "no model class"),
        ({"architectures": ["AutoConfig"]}, "no model class"),
        ({"architectures": ["ViTForImageClassification"]}, "is for model_type vit, config.json says resnet"),
        (
            {"architectures": ["T5Model"], "model_type": "t5"},
            "takes input_ids, integers, and cannot be run on embedded",
        ),
        ({"hidden_sizes": "many"}, "config.json is not valid|no network can be built"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised"),
    ],
)
def test_configs_that_mean_nothing_are_one_line(hf, entries, words):
    with pytest.raises(SourceError, match=words) as caught:
        load(changed(hf, **entries))
    assert "\n" not in str(caught.value)


def test_a_giant_config_is_refused_before_it_is_built(hf, monkeypatch):
    monkeypatch.setattr(budget, "MOST_MODULES", 1000)
    began = time.monotonic()
    with pytest.raises(SourceError, match="GiB for its tensors, the budget here; it was not built"):
        load(changed(hf, hidden_sizes=[10**6, 10**6]), weights="random")
    with pytest.raises(SourceError, match=f"over {budget.MOST_MODULES} modules; it was not built"):
        load(changed(hf, hidden_sizes=[1, 1], depths=[10**9, 1]), weights="random")
    assert time.monotonic() - began < 10


def test_a_timm_folder_is_loaded_as_saved(timm_folder):
    loaded = load(str(timm_folder))
    state = load_file(timm_folder / "model.safetensors")
    assert (loaded.source, loaded.keyword) == ("timm", "")
    assert loaded.example.shape == (1, 3, 96, 96)
    assert loaded.module(loaded.example).shape == (1, 5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.module.state_dict().items())


def test_timm_folders_without_fitting_weights_are_refused(timm_folder):
    state = load_file(timm_folder / "model.safetensors")
    save_file(state | {"fc.weight": torch.zeros(1000, 4)}, timm_folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 of another shape: fc\.weight"):
        load(str(timm_folder))
    (timm_folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="--weights random, or --weights FILE"):
        load(str(timm_folder))
    assert load(str(timm_folder), weights="random").weights == "random (seed 0)"


def test_a_timm_folder_may_hold_a_torch_file_read_without_its_code(timm_folder):
    torch.save(load_file(timm_folder / "model.safetensors"), timm_folder / "pytorch_model.bin")
    (timm_folder / "model.safetensors").unlink()
    assert load(str(timm_folder)).weights.startswith("pretrained (pytorch_model.bin of ")


def test_hostile_timm_configs_are_one_line(timm_folder):
    with pytest.raises(UnknownModelError, match=r"nearest names are .*test_resnet"):
        load(changed(timm_folder, architecture="test_resnett"))
    with pytest.raises(SourceError, match=r"not built|no network can be built"):
        load(changed(timm_folder, architecture=TIMM, model_args={"num_classes": 10**13}), weights="random")
    with pytest.raises(SourceError, match="no network can be built"):
        load(changed(timm_folder, model_args={"no_such_argument": 1}))


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", "[" * 200_000, '{"architecture": 3}'])
def test_folders_without_a_sound_config(tmp_path, content):
    with pytest.raises(LipcheckError, match=r"give a folder with a config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SourceError, match=r"config\.json") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)
