"""Further methods beside the audit's own enclosures, and the tight audit: what the report then holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipcheck
from lipcheck.errors import UsageError
from lipcheck.methods import LITERATURE, METHODS, OWN
from lipcheck.report import Report


def network() -> nn.Module:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.Flatten(), nn.Linear(128, 5)).eval()


def test_every_method_has_its_column_and_its_kind() -> None:
    report = lipcheck.check(network(), example=torch.zeros(1, 2, 8, 8), samples=0, methods=tuple(METHODS))
    first, _, last = report.layers
    assert set(first.compared) == set(METHODS)
    assert last.compared["frobenius"].kind == "certified"
    assert first.compared["reshape"].kind == "estimate"
    assert first.compared["randomised"].kind == "probabilistic"
    assert first.compared["gram"].kind == "estimate"
    for layer in report.layers:
        for bound in layer.compared.values():
            if bound.kind == "certified":
                assert bound.upper >= layer.bound.lower
    assert Report.from_json(report.to_json()) == report
    assert set(METHODS) <= set(report.to_frame().columns)
    assert {f"method {name}" for name in METHODS} <= set(report.run.seconds)


def test_the_names_are_those_of_the_registry() -> None:
    from lipcheck.engines.literature import METHODS as registry

    assert set(registry) == set(LITERATURE)
    assert not set(LITERATURE) & set(OWN)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_that_copies_shows_both_bounds(mode: str) -> None:
    torch.manual_seed(1)
    module = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)
    report = lipcheck.check(module, example=torch.zeros(1, 4, 40, 40), samples=0)
    (layer,) = report.layers
    assert (layer.padding_mode, layer.input_size) == (mode, (40, 40))
    assert layer.bound.kind == "certified"
    randomised = layer.compared["randomised"]
    assert randomised.kind == "probabilistic"
    assert layer.bound.lower <= randomised.upper <= layer.bound.upper
    assert "randomised" in str(report)


def test_a_tight_audit_says_what_it_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipcheck.engines.enclose._MATRIX_SIDE", 0)
    module, example = nn.Conv2d(8, 8, 3, padding=1), torch.zeros(1, 8, 7, 7)
    loose = lipcheck.check(module, example=example, samples=0)
    tight = lipcheck.check(module, example=example, samples=0, tight=True)
    assert loose.layers[0].bound.slack > 1e-3 >= tight.layers[0].bound.slack
    assert any(note.startswith("tightening 1 operator, estimated at") for note in tight.run.notes)
    none = lipcheck.check(module, example=example, samples=0, tight=True, time_budget=0)
    assert none.layers[0].bound.upper == loose.layers[0].bound.upper
    assert any("over the time budget" in note for note in none.run.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("grams",)}, "did you mean gram"),
        ({"time_budget": -1}, "time_budget is -1; give a number"),
        ({"time_budget": 60}, "give --tight"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lipcheck.check("demo", **options)
