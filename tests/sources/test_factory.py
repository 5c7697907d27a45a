"""Python factories: the user's own code, found from the working directory."""

import sys
from itertools import count

import pytest
import torch

from lipcheck.errors import InputSizeError, SourceError, UnknownModelError, WeightsError
from lipcheck.sources import load

CODE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, size):
        super().__init__(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.input_size = size

def sized():
    return Net((1, 8, 8))

def unsized():
    return Net(None)

def wrong_size():
    return Net("big")

def fixed():
    torch.manual_seed(7)
    return sized()

def nan():
    net = sized()
    net[0].weight.data[0, 0, 0, 0] = float("nan")
    return net

def a_list():
    return [1]

def needs(argument):
    return sized()

def fails():
    raise ValueError("first line\\nsecond line")

def leaves():
    raise SystemExit(3)

constant = 3
"""

fresh = count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a new importable module in the working directory."""
    name = f"factory_under_test_{next(fresh)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_factory_gives_its_weights_as_they_are(module):
    path = list(sys.path)
    loaded = load(f"{module}:sized")
    assert (loaded.source, loaded.weights) == ("factory", "as given")
    assert loaded.example.shape == (1, 1, 8, 8)
    assert not loaded.module.training
    assert sys.path == path


def test_a_module_attribute_states_the_size_too(module, tmp_path):
    with (tmp_path / f"{module}.py").open("a") as file:
        file.write("\ninput_size = (1, 9, 9)\n")
    assert load(f"{module}:unsized").example.shape == (1, 1, 9, 9)
    assert load(f"{module}:sized").example.shape == (1, 1, 8, 8)


def test_an_unknown_size_names_the_option(module):
    with pytest.raises(InputSizeError, match="--input 3x224x224"):
        load(f"{module}:unsized")
    assert load(f"{module}:unsized", input_size=(1, 5, 6)).example.shape == (1, 1, 5, 6)
    with pytest.raises(InputSizeError, match="input_size is big"):
        load(f"{module}:wrong_size")


def test_random_weights_follow_the_seed(module):
    first, again, other = (load(f"{module}:sized", weights="random", seed=s) for s in (1, 1, 2))
    assert first.weights == "random (seed 1)"
    assert torch.equal(first.module[0].weight, again.module[0].weight)
    assert not torch.equal(first.module[0].weight, other.module[0].weight)


def test_fixed_weights_are_not_called_random(module):
    with pytest.raises(WeightsError, match=r"same values at every call.*drop --weights random"):
        load(f"{module}:fixed", weights="random")


def test_a_checkpoint_fills_a_factory(module, tmp_path):
    state = load(f"{module}:sized", weights="random", seed=5).module.state_dict()
    torch.save(state, tmp_path / "w.pth")
    loaded = load(f"{module}:fixed", weights="w.pth")
    assert loaded.weights == "w.pth"
    assert torch.equal(loaded.module[0].weight, state["0.weight"])


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("sizd", UnknownModelError, "no function sizd; it has sized"),
        ("a_list", SourceError, "returned list, not a torch.nn.Module"),
        ("needs", SourceError, "called without arguments, raised TypeError"),
        ("fails", SourceError, "raised ValueError: first line$"),
        ("leaves", SourceError, "raised SystemExit: 3"),
        ("constant", SourceError, "int, not a function"),
        ("nan", WeightsError, r"0\.weight \(1 of 18 elements\)"),
    ],
)
def test_what_goes_wrong_in_a_factory_is_one_line(module, function, error, words):
    with pytest.raises(error, match=words) as caught:
        load(f"{module}:{function}")
    assert "\n" not in str(caught.value)


def test_modules_that_cannot_be_imported(module, tmp_path):
    with pytest.raises(UnknownModelError, match="no Python module no_such_package"):
        load("no_such_package.here:f")
    (tmp_path / f"{module}_needy.py").write_text("import no_such_dependency\n")
    with pytest.raises(SourceError, match="imports no_such_dependency, which is not installed"):
        load(f"{module}_needy:f")
    (tmp_path / f"{module}_broken.py").write_text("1 / 0\n")
    with pytest.raises(SourceError, match=r"importing .* failed \(ZeroDivisionError"):
        load(f"{module}_broken:f")
