"""Names, input sizes, seeds and the refusals that go with them."""

import socket

import pytest
import torch

from lipcheck.errors import InputSizeError, LipcheckError, SourceError, UnknownModelError, UsageError, WeightsError
from lipcheck.sources import load


@pytest.fixture
def unreachable(tmp_path, monkeypatch):
    """No hub answers, no cache holds anything."""
    from huggingface_hub import constants

    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*_args, **_keywords):
        raise socket.gaierror("no names here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_bare_and_prefixed_timm_names_are_the_same_model():
    bare, prefixed = (
        load(name, weights="random", seed=4) for name in ("mobilenetv3_small_050", "timm:mobilenetv3_small_050")
    )
    assert bare.source == prefixed.source == "timm"
    assert bare.weights == "random (seed 4)"
    assert bare.example.shape == (1, 3, 224, 224)
    assert not bare.module.training
    assert "timm" in bare.versions
    pairs = zip(bare.module.parameters(), prefixed.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_tags_and_hub_names_of_timm_are_known_without_the_hub(unreachable):
    for name in ("timm:resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k", "hf:timm/resnet18.a1_in1k"):
        assert load(name, weights="random").source == "timm"


@pytest.mark.parametrize(("name", "side"), [("squeezenet1_1", 224), ("inception_v3", 299)])
def test_torchvision_models_state_their_crop(name, side):
    pytest.importorskip("torchvision")
    loaded = load(f"torchvision:{name}", weights="random")
    assert (loaded.source, loaded.example.shape) == ("torchvision", (1, 3, side, side))


def test_a_video_model_needs_a_size():
    pytest.importorskip("torchvision")
    with pytest.raises(InputSizeError, match="--input"):
        load("torchvision:r3d_18", weights="random")


@pytest.mark.parametrize(
    "name", ["resnet18", "hf:timm/resnet18.a1_in1k", "torchvision:resnet18", "timm:efficientnet_b0"]
)
def test_missing_pretrained_weights_name_both_ways_out(unreachable, name, capfd):
    if name.startswith("torchvision"):
        pytest.importorskip("torchvision")
    with pytest.raises(WeightsError, match="--weights random, or --weights FILE") as caught:
        load(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(name)
    assert capfd.readouterr() == ("", "")


def test_a_model_that_never_had_weights_names_both_ways_out():
    import timm

    name = next(name for name in timm.list_models() if not timm.get_pretrained_cfg(name).has_weights)
    with pytest.raises(WeightsError, match="no pretrained weights for it; use --weights random, or --weights FILE"):
        load(name)


def test_a_hub_repository_out_of_reach_is_one_line(unreachable):
    with pytest.raises(SourceError, match=r"hub does not answer.*--weights random") as caught:
        load("hf:some-org/some-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet5O", "nearest names are resnet50"),
        ("timm:resnet5O", "no model timm:resnet5O; the nearest names are resnet50"),
        ("resnet18.a1_in2k", r"nearest names are resnet18\.a1_in1k"),
        ("dem", "demo"),
        ("qqqqqqqqqqqqqqqqqqqqqqqq", "no name is near it"),
        ("./no/such/folder", "no such file or folder"),
        ("org/model", "for the model hub write hf:org/model"),
        ("model.safetensors", "no such file or folder"),
        ("", "empty model name"),
        ("hf:no-organisation", "expected hf:ORG/NAME"),
        ("hf:../../etc", "expected hf:ORG/NAME"),
        ("bad\nname\x1b[2J", r"bad\\nname\\x1b\[2J"),
    ],
)
def test_unknown_names_are_one_line_with_the_nearest(unreachable, name, words):
    with pytest.raises(UnknownModelError, match=words) as caught:
        load(name)
    assert str(caught.value).isprintable()


def test_a_name_of_torchvision_alone_is_suggested_with_its_prefix():
    pytest.importorskip("torchvision")
    with pytest.raises(UnknownModelError, match="nearest names are torchvision:alexnet"):
        load("alexnet")
    with pytest.raises(UnknownModelError, match="nearest names are torchvision:resnet"):
        load("torchvision:resnet81")


def test_a_checkpoint_alone_is_no_model(tmp_path):
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(SourceError, match="give MODEL --weights"):
        load(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("weights", ["pretraned", "no/such/file.pth", "."])
def test_weights_that_are_no_file(weights):
    with pytest.raises(WeightsError, match="expected pretrained, random or a checkpoint file"):
        load("demo", weights=weights)


@pytest.mark.parametrize("size", [(), (0, 28, 28), (1, -28, 28), (1, 10**6, 10**6), (1, 1, 1, 1, 1, 1)])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(InputSizeError, match="--input"):
        load("demo", input_size=size)


def test_a_given_size_wins():
    assert load("demo", input_size=(1, 20, 24)).example.shape == (1, 1, 20, 24)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(UsageError, match="seed"):
        load("demo", seed=seed)


def test_the_seed_draws_the_example_and_leaves_the_generator_alone():
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first, again, other = load("demo", seed=1), load("demo", seed=1), load("demo", weights="random", seed=2)
    assert torch.equal(first.example, again.example)
    assert not torch.equal(first.example, other.example)
    assert torch.equal(before, torch.random.get_rng_state())


def test_nan_weights_name_the_model_and_the_tensor(tmp_path):
    state = load("demo").module.state_dict()
    state["head.weight"][0, :3] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(LipcheckError, match=r"^demo: NaN or infinite weights in head\.weight \(3 of 1120 elements\)"):
        load("demo", weights=str(tmp_path / "w.pth"))
