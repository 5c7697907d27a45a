"""The demo network that the package ships."""

import json

import torch
from safetensors import safe_open

from lipcheck.sources import load
from lipcheck.sources.demo import INPUT_SIZE, WEIGHTS


def test_the_demo_loads_with_its_accuracy_in_the_heading():
    loaded = load("demo")
    assert loaded.source == "demo"
    assert loaded.weights == "pretrained (Fashion-MNIST, test accuracy 92.1%)"
    assert loaded.example.shape == (1, *INPUT_SIZE)
    assert not loaded.module.training
    assert loaded.module(loaded.example).shape == (1, 10)


def test_the_file_is_small_and_carries_its_facts():
    beside = json.loads(WEIGHTS.with_suffix(".json").read_text())
    with safe_open(WEIGHTS, framework="pt") as file:
        assert file.metadata() == beside
    assert WEIGHTS.stat().st_size <= 400_000
    assert float(beside["test_accuracy"]) >= 0.91
    assert int(beside["parameters"]) == sum(p.numel() for p in load("demo").module.parameters())


def test_trained_weights_are_not_random_ones():
    trained, drawn = load("demo").module.state_dict(), load("demo", weights="random").module.state_dict()
    assert trained.keys() == drawn.keys()
    assert not any(torch.equal(trained[name], drawn[name]) for name in trained if trained[name].dim() > 1)
