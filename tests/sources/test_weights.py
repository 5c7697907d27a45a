"""Weights fit whole or are refused, and are finite or are refused."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lipcheck.errors import WeightsError
from lipcheck.sources.checkpoint import read_checkpoint
from lipcheck.sources.weights import fill, refuse_nonfinite


class Named(nn.Module):
    """Convolution, norm, convolution, linear, under names of one's choice."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)
        for name, layer in zip(names or ("first", "norm", "second", "head"), layers, strict=True):
            self.add_module(name, layer)


def saved(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_fitting_checkpoint_fills_the_module(tmp_path, name):
    source, target = Named(), Named()
    assert fill(target, read_checkpoint(saved(source.state_dict(), tmp_path / name))) == ()
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_counters_of_batch_norms_may_be_missing(tmp_path):
    state = {name: t for name, t in Named().state_dict().items() if not name.endswith("num_batches_tracked")}
    assert fill(Named(), read_checkpoint(saved(state, tmp_path / "w.safetensors"))) == ()


def test_a_misfit_counts_everything_and_names_ten_of_each(tmp_path):
    state = Named().state_dict()
    del state["first.weight"]
    state |= {f"extra{i}": torch.zeros(1) for i in range(15)}
    state["head.weight"] = torch.zeros(7, 4)
    with pytest.raises(WeightsError) as caught:
        fill(Named(), read_checkpoint(saved(state, tmp_path / "w.pth")))
    message = str(caught.value)
    assert "1 missing: first.weight" in message
    assert (
        "15 unexpected: extra0, extra1, extra2, extra3, extra4, extra5, extra6, extra7, extra8, extra9 and 5 more"
        in message
    )
    assert "1 of another shape: head.weight (7, 4) where the model has (2, 4)" in message
    assert "\n" not in message


def test_other_names_match_by_position_and_the_note_says_so(tmp_path):
    source, target = Named("a", "b", "c", "d"), Named()
    state = {name: t for name, t in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert fill(target, read_checkpoint(saved(state, tmp_path / "w.pth"))) == ("weights matched by position",)
    assert torch.equal(target.second.weight, source.c.weight)
    assert torch.equal(target.norm.running_var, source.b.running_var)


def test_a_sorted_file_is_never_matched_by_position(tmp_path):
    """Twelve equal layers sort as 0, 1, 10, 11, 2: every shape agrees and the network would be another one."""
    source = nn.ModuleDict({"old": nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(12)))})
    target = nn.ModuleDict({"new": nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(12)))})
    with pytest.raises(WeightsError, match="weights do not fit"):
        fill(target, read_checkpoint(saved(source.state_dict(), tmp_path / "w.safetensors")))
    assert fill(target, read_checkpoint(saved(source.state_dict(), tmp_path / "w.pth")))
    assert torch.equal(target["new"][2].weight, source["old"][2].weight)


def test_equal_shapes_in_another_role_are_not_matched_by_position(tmp_path):
    state = Named("a", "b", "c", "d").state_dict()
    swapped = {name.replace("weight", "scale"): tensor for name, tensor in state.items()}
    with pytest.raises(WeightsError, match="weights do not fit"):
        fill(Named(), read_checkpoint(saved(swapped, tmp_path / "w.pth")))


def test_partly_equal_names_are_not_matched_by_position(tmp_path):
    state = Named("first", "b", "c", "d").state_dict()
    with pytest.raises(WeightsError, match="weights do not fit"):
        fill(Named(), read_checkpoint(saved(state, tmp_path / "w.pth")))


def test_integers_for_real_weights_are_refused(tmp_path):
    state = Named().state_dict()
    state["head.weight"] = torch.ones(2, 4, dtype=torch.int8)
    with pytest.raises(WeightsError, match=r"head\.weight is torch\.int8 where the model has torch\.float32"):
        fill(Named(), read_checkpoint(saved(state, tmp_path / "w.pth")))


def test_lost_precision_is_noted_and_gained_precision_is_not(tmp_path):
    double, half = ({n: t.to(d) for n, t in nn.Linear(3, 2).state_dict().items()} for d in (torch.float64, torch.half))
    wide = read_checkpoint(saved(double, tmp_path / "wide.pth"))
    narrow = read_checkpoint(saved(half, tmp_path / "narrow.pth"))
    assert fill(nn.Linear(3, 2), wide) == ("weights rounded from float64 to float32",)
    assert fill(nn.Linear(3, 2), narrow) == ()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", ["second.weight", "norm.running_var"])
def test_nonfinite_weights_are_named_and_counted(value, path):
    model = Named()
    refuse_nonfinite(model)
    tensor = model.state_dict()[path]
    tensor.view(-1)[:2] = value
    with pytest.raises(WeightsError, match=rf"in {path} \(2 of {tensor.numel()} elements\)"):
        refuse_nonfinite(model)


def test_a_mask_of_infinities_that_is_no_weight_is_allowed():
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]), persistent=False)
    refuse_nonfinite(model)
    model.register_buffer("scale", torch.tensor([0.0, -math.inf]))
    with pytest.raises(WeightsError, match="scale"):
        refuse_nonfinite(model)


@pytest.mark.parametrize("model", [nn.Linear(2, 2, device="meta"), nn.LazyLinear(3)], ids=["meta", "lazy"])
def test_weights_without_values_are_refused(model):
    with pytest.raises(WeightsError, match="no values yet"):
        refuse_nonfinite(model)
