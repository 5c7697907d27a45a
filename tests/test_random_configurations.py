"""A small draw of the random configurations, and proof that the script would notice a wrong bound."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

from lipcheck.bound import Bound
from lipcheck.operators import Convolution, InfiniteConvolution, Padded

sys.path.append(str(Path(__file__).parent.parent))
configurations = importlib.import_module("benchmarks.random_configurations")


@pytest.fixture(autouse=True)
def one_thread():
    """The matrices are tiny: a second thread would only be waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_small_draw_has_no_unsound_bound(capsys: pytest.CaptureFixture[str]) -> None:
    assert configurations.main(["--count", "60", "--seed", "1"]) == 0
    assert "60 configurations, 0 unsound or failed" in capsys.readouterr().out


def test_a_configuration_can_be_drawn_again_by_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    one, again, other = (configurations.draw(seed, number) for seed, number in ((3, 5), (3, 5), (3, 6)))
    assert (one.text, one.route) == (again.text, again.route)
    assert other.text != one.text
    assert configurations.main(["--seed", "3", "--only", "5"]) == 0
    assert one.text in capsys.readouterr().out


def test_all_kinds_are_drawn_and_written_out_as_torch_applies_them() -> None:
    kinds = set()
    for number in range(80):
        chosen = configurations.draw(7, number)
        operator = chosen.operator
        kinds.add(chosen.text.split()[0])
        if isinstance(operator, InfiniteConvolution):
            continue
        if isinstance(operator, Convolution):
            expected = reference.written_out(operator).numpy()
        else:
            assert isinstance(operator, Padded)
            channels = operator.convolution.input_channels
            units = torch.eye(channels * math.prod(operator.input_size), dtype=torch.float64)
            expected = operator.forward(units.reshape(-1, channels, *operator.input_size)).flatten(1).T.numpy()
        rest = 1e-14 * max(1e-300, float(np.abs(expected).max()))
        np.testing.assert_allclose(configurations.written_out(operator), expected, rtol=1e-12, atol=rest)
    assert kinds == {"zeros", "same", "lopsided", "circular", "copied", "infinite"}


@pytest.mark.parametrize("factor", [1 - 1e-9, 1 + 1e-9])
def test_a_bound_off_by_a_billionth_is_noticed(
    factor: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each route answers with a single number, a little off the norm: below it, or above it as a lower end."""

    def off(operator: Convolution) -> Bound:
        value = configurations.truth(operator).low * factor
        return Bound(value, value if factor < 1 else math.inf, "wrong")

    for route in configurations._ROUTES:
        monkeypatch.setitem(configurations._ROUTES, route, off)
    assert configurations.main(["--count", "20", "--seed", "2"]) == 1
    shown = capsys.readouterr().out
    assert "UNSOUND OR FAILED --seed 2 --only " in shown


def test_a_crash_is_reported_with_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(operator: Convolution) -> Bound:
        raise RuntimeError("no such luck")

    for route in configurations._ROUTES:
        monkeypatch.setitem(configurations._ROUTES, route, crash)
    assert configurations.main(["--count", "2"]) == 1
    assert "RuntimeError: no such luck" in capsys.readouterr().out
