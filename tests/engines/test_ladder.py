"""The ladder of small inputs: what is climbed, in which order, within which budget, and what a climb may change."""

from __future__ import annotations

import math

import pytest
import torch

from lipcheck.bound import Bound
from lipcheck.engines import ladder
from lipcheck.engines.enclose import enclose
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution, Dense

TIGHT = Settings(tight=True)


def convolution(channels: int, size: int, seed: int = 0, **changes: object) -> Convolution:
    weight = torch.randn(channels, channels, 3, 3, generator=torch.Generator().manual_seed(seed)) / channels**0.5
    given = {"circular": False} | changes
    return Convolution(weight, (1, 1), (1, 1), 1, (1, 1), (size, size), (size, size), **given)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[Convolution]:
    """Convolutions that are bounded by their embedding although they are small."""
    monkeypatch.setattr("lipcheck.engines.enclose._MATRIX_SIDE", 0)
    return [convolution(12, 7), convolution(8, 5, seed=1)]


def test_a_climb_brings_the_slack_within_the_tolerance(embedded: list[Convolution]) -> None:
    bounds = enclose(embedded, TIGHT)
    assert all(bound.slack > 5e-3 for bound in bounds)
    chosen = ladder.plan(embedded, bounds, TIGHT)
    assert {step.method for step in chosen.climbs} == {"finite"}
    told: list[float] = []
    after = ladder.climb(embedded, bounds, chosen, TIGHT, told.append)
    assert math.isclose(sum(told), chosen.seconds)
    for operator, low, high in zip(embedded, after, bounds, strict=True):
        exact = float(torch.linalg.matrix_norm(dense(operator), 2))
        assert low.lower <= exact * (1 + 1e-12)
        assert exact <= low.upper <= min(high.upper, exact * 1.001)
        assert low.method == "finite"


def dense(operator: Convolution) -> torch.Tensor:
    basis = torch.eye(operator.input_channels * math.prod(operator.input_size), dtype=torch.float64)
    columns = operator.forward(basis.reshape(-1, operator.input_channels, *operator.input_size))
    return columns.flatten(1).T


def test_what_does_not_fit_the_budget_is_left_with_its_price(embedded: list[Convolution]) -> None:
    bounds = enclose(embedded, TIGHT)
    chosen = ladder.plan(embedded, bounds, Settings(tight=True, time_budget=0.0))
    assert not chosen.climbs
    assert [step.seconds > 0 for step in chosen.left] == [True, True]
    assert ladder.climb(embedded, bounds, chosen, TIGHT) == bounds


def test_one_finite_axis_where_the_whole_does_not_fit(embedded: list[Convolution]) -> None:
    bounds = enclose(embedded[:1], TIGHT)
    full = ladder.plan(embedded[:1], bounds, TIGHT).seconds
    scarce = Settings(tight=True, memory=1)
    chosen = ladder.plan(embedded[:1], bounds, scarce)
    assert [step.method for step in chosen.climbs] == ["semifinite"]
    assert chosen.seconds != full
    assert ladder.climb(embedded[:1], bounds, chosen, TIGHT)[0].upper < bounds[0].upper


def test_only_embedded_convolutions_above_the_tolerance_climb() -> None:
    fine = Bound(1.0, 1.0005, "embedding 8×8")
    loose = Bound(1.0, 1.02, "embedding 8×8")
    exact = Bound(1.0, 1.02, "matrix")
    estimate = Bound(1.0, 1.02, "embedding 8×8", "estimate")
    one, wrapped = convolution(2, 4), convolution(2, 4, circular=True)
    operators = [one, wrapped, Dense(torch.eye(3)), one, one]
    chosen = ladder.plan(operators, [fine, loose, loose, exact, estimate], TIGHT)
    assert chosen == ladder.Plan((), ())


def test_the_better_of_both_ends_is_kept() -> None:
    loose, tight = Bound(0.9, 1.1, "embedding 8×8"), Bound(0.8, 1.0, "finite")
    assert ladder.tightest(loose, tight) == Bound(0.9, 1.0, "finite")
    assert ladder.tightest(tight, loose) == Bound(0.9, 1.0, "finite")
    # Ends from different searches may cross by their rounding: the enclosure stays one.
    assert ladder.tightest(Bound(1.1, 1.2, "embedding"), tight).lower <= 1.0


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_for_people(seconds: float, text: str) -> None:
    assert ladder.lasting(seconds).startswith(text)


def test_one_finite_axis_is_enough_for_a_little_slack(embedded: list[Convolution]) -> None:
    slack = enclose(embedded[:1], TIGHT)[0].slack
    little = Bound(1.0, 1.0014, "embedding 8×8")
    much = Bound(1.0, 1.0 + slack, "embedding 8×8")
    chosen = ladder.plan([embedded[0], embedded[0]], [little, much], TIGHT)
    assert {step.place: step.method for step in chosen.climbs} == {0: "semifinite", 1: "finite"}
