"""The benchmark's own numbers: its references against dense matrices, its rows, and one tiny run."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcheck.operators import Convolution

sys.path.append(str(Path(__file__).parent.parent))
cli, command, layers, measure, methods, outcome, spectrum, truth = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("cli", "command", "layers", "measure", "methods", "outcome", "spectrum", "truth")
)
MEMORY = 1 << 12  # so little that every spectrum comes in several blocks


@pytest.fixture(autouse=True)
def one_thread():
    """The matrices are tiny: a second thread would only be waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def convolutions(draw, *, circular=False):
    """Small convolutions in one or two axes; the circular ones have a size that their stride divides."""
    axes = draw(st.integers(1, 2))
    groups, stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel = draw(st.integers(1, 4))
    shape = (groups * draw(st.integers(1, 3)), draw(st.integers(1, 3)), *(kernel,) * axes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    weight = torch.randn(shape, dtype=torch.float64, generator=generator)
    per_axis = [(stride,) * axes, (dilation,) * axes]
    if circular:
        size = tuple(stride * draw(st.integers(1, 5)) for _ in range(axes))
        outputs = tuple(n // stride for n in size)
        offset = (draw(st.integers(0, 2)),) * axes
    else:
        padding = draw(st.integers(0, kernel // 2))
        size = tuple(dilation * (kernel - 1) + 1 + draw(st.integers(0, 6)) for _ in range(axes))
        outputs = tuple((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in size)
        offset = (padding,) * axes
    return Convolution(weight, *per_axis, groups, offset, size, outputs, circular)


def dense_norm(operator: Convolution) -> float:
    shape = (operator.input_channels, *operator.input_size)
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
    return float(torch.linalg.matrix_norm(operator.forward(basis.reshape(-1, *shape)).flatten(1), 2))


def same_padded(weight: torch.Tensor, side: int, stride: int = 1) -> Convolution:
    pad, outputs = weight.shape[-1] // 2, (side - 1) // stride + 1
    return Convolution(weight, (stride,) * 2, (1, 1), 1, (pad, pad), (side, side), (outputs, outputs))


@settings(max_examples=50)
@given(convolutions(circular=True))
def test_all_singular_values_by_fft_give_the_circular_norm(operator):
    exact = dense_norm(operator)
    assert methods.exact_fft(operator, MEMORY) == pytest.approx(exact, rel=1e-12, abs=1e-12)


@settings(max_examples=50)
@given(convolutions(circular=True))
def test_gram_iteration_bounds_the_circular_norm_by_a_root_of_the_rank(operator):
    exact = methods.exact_fft(operator, MEMORY)
    bound = methods.gram_grid(operator, MEMORY)
    rank = min(operator.weight.shape[0] // operator.groups, operator.weight.shape[1] * max(operator.stride) ** 2)
    assert exact * (1 - 1e-12) <= bound <= exact * rank ** (1 / 2**8) * (1 + 1e-12)


@settings(max_examples=50)
@given(convolutions(circular=True))
def test_dropping_the_stride_raises_the_norm(operator):
    whole = spectrum.unstrided(operator)
    assert methods.exact_fft(operator, MEMORY) <= methods.exact_fft(whole, MEMORY) * (1 + 1e-12)


@settings(max_examples=50)
@given(convolutions())
def test_the_truth_is_the_dense_norm(operator):
    assert truth.true_norm(operator) == pytest.approx(dense_norm(operator), rel=truth.ACCURACY, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stride", [1, 2])
def test_the_truth_beyond_dense_sizes(seed, stride):
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    operator = same_padded(weight, 19, stride)
    assert truth.true_norm(operator) == pytest.approx(dense_norm(operator), rel=truth.ACCURACY)


def test_the_truth_of_twin_peaks():
    # The symbol of (1, 0, -1) is highest at pi/2 and at -pi/2: the largest eigenvalues come in close pairs.
    row = torch.tensor([1.0, 0.0, -1.0])
    operator = same_padded(torch.outer(row, row)[None, None], 30)
    assert truth.true_norm(operator) == pytest.approx(dense_norm(operator), rel=truth.ACCURACY)


def test_truths_are_computed_once(tmp_path, monkeypatch):
    path = tmp_path / "new" / "truths.json"
    layer = layers.Layer("conv", same_padded(torch.ones(1, 1, 3, 3), 5))
    other = layers.Layer("conv", same_padded(torch.full((1, 1, 3, 3), 2.0), 5))
    first = truth.Truths(path).of(layer)
    monkeypatch.setattr(truth, "true_norm", lambda operator: 7.0)
    again = truth.Truths(path)
    assert (again.of(layer), again.of(other)) == (first, 7.0)


def test_power_iteration_stays_below_the_norm():
    operator = same_padded(torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)), 9)
    found = methods.power_iteration(operator, seed=0)
    assert 0.99 <= found / dense_norm(operator) <= 1 + 1e-5  # it runs in float32


def test_a_circular_grid_is_no_bound_for_zero_padding():
    # x[i] - x[i+1] on a circle of three is at most 2 sin(pi / 3) strong; zero padding lets it reach more.
    operator = same_padded(torch.tensor([[[[0.0, 0, 0], [0, 1, -1], [0, 0, 0]]]]), 3)
    number, true = methods.exact_fft(operator, MEMORY), truth.true_norm(operator)
    result = measure.Result("fft", "", "exact", 1, 1.0, 1.0, {0: measure.Reading(None, number)})
    slack = measure.upper_slack(result, [true])
    assert (slack.wrong, slack.of) == (1, 1)
    assert measure.upper_slack(result, [number]).wrong == 0


def test_lower_numbers_above_the_truth_are_wrong():
    readings = {0: measure.Reading(1.1, 1.2), 1: measure.Reading(0.9, 1.0)}
    result = measure.Result("lipcheck", "", "both", 2, 1.0, 1.0, readings)
    assert measure.lower_slack(result, [1.0, 1.0]).wrong == 1
    assert measure.upper_slack(result, [1.0, 1.0]).wrong == 0
    assert measure.upper_slack(result, []) is None


def test_one_of_each_shape_stands_for_the_others():
    same = [layers.Layer(str(i), same_padded(torch.randn(2, 2, 3, 3), 5)) for i in range(3)]
    wider = layers.Layer("wider", same_padded(torch.randn(3, 2, 3, 3), 5))
    calls = []
    method = measure.Method("gram", "", "upper", lambda operator: calls.append(operator) or 1.0)
    progress = importlib.import_module("lipcheck.progress").Silent()
    result = measure.measure(method, [*same, wider], [], progress)
    assert list(result.readings) == [0, 3]
    assert [id(one) for one in calls[1:]] == [id(same[0].operator), id(wider.operator)]  # the first call warms up
    assert result.seconds == pytest.approx(3 * result.readings[0].seconds + result.readings[3].seconds)
    assert len(measure.measure(method, [*same, wider], [], progress, every=True).readings) == 4


def test_an_unstrided_layer_is_not_run_again_folded():
    plain = layers.Layer("plain", same_padded(torch.randn(2, 2, 3, 3), 6))
    strided = layers.Layer("strided", same_padded(torch.randn(2, 2, 3, 3), 6, 2))
    gram = measure.Result("gram", "", "upper", 2, 3.0, 3.0, {i: measure.Reading(None, 5.0, 1.0 + i) for i in (0, 1)})
    method = measure.Method("gram-folded", "", "upper", lambda operator: 1.0, unless_strided="gram")
    result = measure.measure(method, [plain, strided], [gram], importlib.import_module("lipcheck.progress").Silent())
    assert (result.readings[0], result.readings[1].upper) == (gram.readings[0], 1.0)


def test_the_convolutions_of_a_network():
    found = layers.convolutions("demo", "random", 0, None)
    names = [layer.name for layer in found]
    assert names[:3] == ["stem.0", "stage1.conv1", "stage1.conv2"]
    assert [layer.name for layer in found if layer.operator.groups > 1] == ["stage3.depthwise1", "stage3.depthwise2"]
    assert [layer.operator.input_size for layer in found][:3] == [(28, 28), (14, 14), (14, 14)]
    assert {layer.name for layer in found if layer.pointwise} >= {"stage3.pointwise1", "stage2.shortcut.0"}


def test_a_tiny_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    weights = torch.randn(3, 4, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    strided, *others = (same_padded(weight, 24, 2 if i == 0 else 1) for i, weight in enumerate(weights))
    chosen = [layers.Layer(f"layer{i}", operator) for i, operator in enumerate((strided, *others))]
    monkeypatch.setattr(cli, "convolutions", lambda *of: chosen)
    file, truths = tmp_path / "bench.json", tmp_path / "truths.json"
    assert cli.main(["--threads", "1", "--json", str(file), "--truths", str(truths)]) == 0
    text = capsys.readouterr().out
    assert "times faster than the Gram grid" in text
    assert "one of each shape, times its count" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    written = json.loads(file.read_text())
    assert [method["name"] for method in written["methods"]] == ["lipcheck", "gram", "gram-folded", "fft", "power"]
    assert [method["measured"] for method in written["methods"]] == [3, 2, 2, 2, 2]
    assert len(json.loads(truths.read_text())) == 3
    for layer in written["layers"]:
        own = layer["readings"]["lipcheck"]
        assert own["lower"] <= layer["true"] * (1 + truth.ACCURACY)
        assert own["upper"] >= layer["true"] * (1 - truth.ACCURACY)


def test_without_the_truth_there_are_seconds_only(capsys, monkeypatch):
    layer = layers.Layer("only", same_padded(torch.randn(2, 2, 3, 3), 6))
    monkeypatch.setattr(cli, "convolutions", lambda *of: [layer])
    assert cli.main(["--methods", "power", "--no-truth", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert "power iteration" in text
    assert "Gram" not in text


def test_an_enclosure_that_misses_the_truth_fails_the_run(capsys, monkeypatch):
    layer = layers.Layer("only", same_padded(torch.randn(2, 2, 3, 3), 6))
    monkeypatch.setattr(cli, "convolutions", lambda *of: [layer])
    monkeypatch.setattr(cli, "_truths", lambda *of: [1e3])
    assert cli.main(["--methods", "power", "--threads", "1"]) == 1
    assert "1/1" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--layers", "0"], ["--methods", "magic"], ["--threads", "two"]])
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert arguments[1] in capsys.readouterr().err


def test_an_unknown_network(capsys):
    assert cli.main(["--model", "./nowhere/at-all"]) == 2
    assert "bench: error: ./nowhere/at-all" in capsys.readouterr().err


def test_the_whole_command_is_timed_from_outside():
    found = command.run_command(["--version"])
    assert found.typed == "lipcheck --version"
    assert found.seconds > 0
    assert found.peak > 1 << 20
    with pytest.raises(RuntimeError, match="ended with 2"):
        command.run_command(["--no-such-option"])
