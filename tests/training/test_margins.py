"""No attack within a certified radius changes the prediction, and a radius is never rounded up."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lipcheck
from lipcheck import Bound
from lipcheck.errors import UsageError
from lipcheck.training import certified_accuracy, certified_radius

FLOATS = st.floats(-1e6, 1e6, width=32)


@given(st.lists(FLOATS, min_size=2, max_size=5), st.floats(1e-6, 1e9))
def test_the_radius_is_rounded_down(logits, constant):
    found = certified_radius(torch.tensor(logits), constant)
    first, second = sorted(map(Fraction, logits))[-1:-3:-1]
    exact = (first - second) ** 2 / (2 * Fraction(constant) ** 2)
    assert found.dtype == torch.float64
    assert Fraction(found.item()) ** 2 <= exact
    assert found.item() >= math.sqrt(exact) * (1 - 1e-14)


@given(st.integers(0, 2**32 - 1))
def test_nothing_within_the_radius_of_a_linear_network_changes_the_prediction(seed):
    """For a linear network with two opposite logits the radius is exact: just beyond it the prediction changes."""
    noise = torch.Generator().manual_seed(seed)
    row = torch.randn(4, dtype=torch.float64, generator=noise)
    matrix = torch.stack((row, -row))
    x = torch.randn(4, dtype=torch.float64, generator=noise)
    bound = lipcheck.spectral_norm(matrix)
    radius = certified_radius(matrix @ x, bound).item()
    towards = -torch.sign(row @ x) * row / torch.linalg.vector_norm(row)
    before = (matrix @ x).argmax()
    assert (matrix @ (x + (1 - 1e-9) * radius * towards)).argmax() == before
    if radius > 1e-6:
        assert (matrix @ (x + 1.01 * radius * towards)).argmax() != before


def net() -> nn.Module:
    torch.manual_seed(8)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))


def test_a_report_and_shapes():
    model = net().eval()
    example = torch.randn(1, 1, 2, 2)
    report = lipcheck.check(model, example=example)
    logits = torch.randn(2, 5, 3)
    found = certified_radius(logits, report)
    assert found.shape == (2, 5)
    direct = certified_radius(logits, 10**report.network.log10_upper)
    torch.testing.assert_close(found, direct, rtol=1e-9, atol=0)
    assert bool((found <= direct).all())
    assert certified_radius(torch.tensor([1.0, 1.0]), report).item() == 0
    assert certified_radius(torch.tensor([1.0, 0.0]), 0.0).item() == math.inf


def test_certified_accuracy_counts_what_is_right_and_safe():
    model = net().train()
    inputs = torch.randn(50, 1, 2, 2)
    report = lipcheck.check(model, example=inputs[:1])
    assert model.training
    logits = model.eval()(inputs).detach()
    labels = logits.argmax(1)
    labels[:10] = (labels[:10] + 1) % 3
    loader = list(zip(inputs.split(20), labels.split(20), strict=True))
    model.train()
    radii = certified_radius(logits, report)
    assert certified_accuracy(model, loader, report, 0) == 0.8
    for radius in radii.quantile(torch.tensor([0.2, 0.7], dtype=torch.float64)).tolist():
        expected = (radii[10:] > radius).sum().item() / 50
        assert certified_accuracy(model, loader, report, radius) == expected
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kind", ["estimate", "probabilistic"])
def test_a_report_with_a_layer_that_is_not_certified_is_refused(kind):
    report = lipcheck.check(nn.Sequential(nn.Linear(3, 2)), example=torch.zeros(1, 3), samples=0)
    assert report.kind == "certified"
    (layer,) = report.layers
    report = replace(report, layers=(replace(layer, bound=Bound(0.0, layer.bound.upper, "m", kind)),))
    with pytest.raises(UsageError, match=f"of the kind {kind}.*not certified"):
        certified_radius(torch.tensor([1.0, 0.0]), report)


def test_what_certifies_nothing_is_refused():
    logits = torch.tensor([1.0, 0.0])
    report = lipcheck.check(net(), example=torch.zeros(1, 1, 2, 2))
    endless = replace(report, network=replace(report.network, log10_upper=math.inf, reason="a gate"))
    for bound, message in (
        (math.inf, "certifies nothing"),
        (math.nan, "certifies nothing"),
        (-1.0, "certifies nothing"),
        (Bound(1.0, 2.0, "power", "estimate"), "by power, of the kind estimate: not certified"),
        (endless, "no finite bound: a gate"),
        ("2", "give a number, a Bound or a Report"),
    ):
        with pytest.raises(UsageError, match=message):
            certified_radius(logits, bound)
    with pytest.raises(UsageError, match="at least two classes"):
        certified_radius(torch.ones(3, 1), 1.0)
    with pytest.raises(UsageError, match="not finite"):
        certified_radius(torch.tensor([1.0, math.nan]), 1.0)
    with pytest.raises(UsageError, match="gave no inputs"):
        certified_accuracy(net(), [], 1.0, 0.1)
    with pytest.raises(UsageError, match="distance of at least 0"):
        certified_accuracy(net(), [], 1.0, -0.1)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (lambda x, y: (x, y[:, None]), "shape 10 x 1"),
        (lambda x, y: (x, y[:1]), "shape 1,"),
        (lambda x, y: (x[:1], y), "shape 10,"),
        (lambda x, y: (x, y[0]), "shape ()"),
        (lambda x, y: (x, nn.functional.one_hot(y, 3)), "shape 10 x 3"),
        (lambda x, y: (x, y.double()), "torch.float64"),
        (lambda x, y: (x, y.tolist()), "pairs of tensors"),
        (lambda x, y: {"x": x, "y": y}, "pairs of tensors"),
        (lambda x, y: (x, y, y), "pairs of tensors"),
    ],
)
def test_labels_that_would_broadcast_are_refused(batch, words):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(10, 4)
    y = model(x).argmax(1)
    assert certified_accuracy(model, [(x, y)], 1e-3, 0.01) == 1.0
    with pytest.raises(UsageError, match=re.escape(words)):
        certified_accuracy(model, [batch(x, y)], 1e-3, 0.01)


def test_what_is_no_model_or_no_loader_is_told():
    model, x, y = nn.Linear(4, 3), torch.randn(2, 4), torch.tensor([0, 1])
    with pytest.raises(UsageError, match="model is a function"):
        certified_accuracy(lambda x: x, [(x, y)], 1.0, 0.1)
    with pytest.raises(UsageError, match="loader is a int"):
        certified_accuracy(model, 3, 1.0, 0.1)
    with pytest.raises(UsageError, match="returns a tuple"):
        certified_accuracy(_Tuple(), [(x, y)], 1.0, 0.1)


class _Tuple(nn.Module):
    def forward(self, x):
        return x, x


def test_a_tie_is_certified_by_no_network():
    assert certified_radius(torch.tensor([[0.0, 0.0, -1.0]]), 0.0).tolist() == [0.0]
    assert certified_radius(torch.tensor([[1.0, 0.0]]), 0.0).tolist() == [math.inf]
