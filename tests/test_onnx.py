"""ONNX graphs: each layer's bound against the same node run on unit vectors by the standard's own evaluator."""

import math

import numpy
import pytest
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

import lipcheck
from lipcheck.errors import WeightsError

onnx = pytest.importorskip("onnx")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
SLACK = 1 + 1e-5  # the evaluator works in float32


def graph(nodes, weights, shape, *, inner=()):
    held = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    return helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        held,
        value_info=list(inner),
    )


def written(path, *given, **more):
    model = helper.make_model(graph(*given, **more), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, path)
    return model


def norm_of(model, shape):
    """The norm of a linear graph, from its values on the unit vectors."""
    from onnx.reference import ReferenceEvaluator

    run = ReferenceEvaluator(model)
    zero = run.run(None, {"x": numpy.zeros(shape, numpy.float32)})[0]
    columns = []
    for place in range(math.prod(shape)):
        x = numpy.zeros(math.prod(shape), numpy.float32)
        x[place] = 1
        columns.append((run.run(None, {"x": x.reshape(shape)})[0] - zero).ravel())
    return numpy.linalg.norm(numpy.array(columns), 2)


def numbers(seed, *shape):
    return numpy.random.default_rng(seed).standard_normal(shape).astype(numpy.float32)


@st.composite
def convolutions(draw):
    axes = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    attributes = {
        "strides": [draw(st.integers(1, 3)) for _ in range(axes)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(axes)],
        "group": groups,
    }
    transposed = draw(st.booleans())
    padding = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if transposed or padding == "pads":
        attributes["pads"] = [draw(st.integers(0, 1)) for _ in range(2 * axes)]
    else:
        attributes["auto_pad"] = padding
        if padding != "VALID":
            attributes["dilations"] = [1] * axes
    shape = (groups * draw(st.integers(1, 2)), draw(st.integers(1, 2)), *kernel)
    inputs = shape[0] if transposed else shape[1] * groups
    size = [draw(st.integers(3, 5)) for _ in range(axes)]
    return transposed, attributes, numbers(draw(st.integers(0, 999)), *shape), (1, inputs, *size)


@settings(max_examples=draws(25))
@given(drawn=convolutions(), fixed=st.booleans())
def test_no_convolution_is_above_its_bound(tmp_path_factory, drawn, fixed):
    transposed, attributes, weight, shape = drawn
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    node = helper.make_node("ConvTranspose" if transposed else "Conv", ["x", "c.weight"], ["y"], **attributes)
    model = written(
        path, [node], {"c.weight": weight}, shape if fixed else ["n", *shape[1:2], *["s"] * (len(shape) - 2)]
    )
    try:
        exact = norm_of(model, shape)
    except (RuntimeError, ValueError, IndexError):  # what the evaluator does not do: a kernel larger than the input
        return
    (row,) = lipcheck.check(str(path)).layers
    assert row.layer == "c"
    assert row.bound.lower <= exact * SLACK
    assert exact <= row.bound.upper * SLACK
    if not fixed:
        assert row.bound.lower == 0


@pytest.mark.parametrize(
    ("op", "attributes", "second"),
    [
        ("MatMul", {}, True),
        ("MatMul", {}, False),
        ("Gemm", {"alpha": -3.0}, True),
        ("Gemm", {"transB": 1, "alpha": 0.5}, True),
        ("Gemm", {"transA": 1}, True),
        ("Gemm", {}, False),
    ],
)
def test_products_are_enclosed(tmp_path, op, attributes, second):
    shape = (3, 4)
    inside = shape[1 if second else 0] if not attributes.get("transA") else shape[0]
    weight = numbers(1, *((5, inside) if not second or attributes.get("transB") else (inside, 5)))
    names = ["x", "w"] if second else ["w", "x"]
    model = written(tmp_path / "m.onnx", [helper.make_node(op, names, ["y"], **attributes)], {"w": weight}, shape)
    (row,) = lipcheck.check(str(tmp_path / "m.onnx")).layers
    exact = norm_of(model, shape)
    assert row.bound.lower / SLACK <= exact <= row.bound.upper * SLACK
    assert row.bound.slack < 2e-3


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_batch_norm_behind_a_convolution_is_folded(tmp_path, transposed, fixed):
    kinds = ["ConvTranspose" if transposed else "Conv", "BatchNormalization"]
    weight = numbers(1, 4, 2, 3, 3) if not transposed else numbers(1, 2, 4, 3, 3)
    norm = {"s": numbers(2, 4), "b": numbers(3, 4), "m": numbers(4, 4), "v": abs(numbers(5, 4)) + 0.1}
    nodes = [
        helper.make_node(kinds[0], ["x", "c.weight"], ["h"]),
        helper.make_node(kinds[1], ["h", "s", "b", "m", "v"], ["y"], name="bn", epsilon=1e-3),
    ]
    shape = (1, 2, 5, 5)
    model = written(tmp_path / "m.onnx", nodes, {"c.weight": weight, **norm}, shape if fixed else [1, 2, "h", "w"])
    (row,) = lipcheck.check(str(tmp_path / "m.onnx")).layers
    exact = norm_of(model, shape)
    assert row.merged_with == "bn"
    assert row.merged.lower <= exact * SLACK
    assert exact <= row.merged.upper * SLACK
    # What else reads the convolution's output keeps the norm from being folded.
    nodes += [helper.make_node("Relu", ["h"], ["z"])]
    written(tmp_path / "m.onnx", nodes, {"c.weight": weight, **norm}, shape)
    assert [row.kind[:4] for row in lipcheck.check(str(tmp_path / "m.onnx")).layers] == ["conv", "batc"]


def test_a_size_that_the_file_only_claims_is_not_used(tmp_path):
    """The values in between are said to have one position, where padding would leave one tap of three."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Conv", ["h", "c.weight"], ["y"], pads=[1, 1]),
    ]
    lie = helper.make_tensor_value_info("h", FLOAT, [1, 1, 1])
    model = written(
        tmp_path / "m.onnx", nodes, {"c.weight": numpy.ones((1, 1, 3), numpy.float32)}, [1, 1, 9], inner=[lie]
    )
    (row,) = lipcheck.check(str(tmp_path / "m.onnx")).layers
    assert norm_of(model, (1, 1, 9)) <= row.bound.upper * SLACK
    assert row.input_size == (9,)


def test_layers_within_other_graphs_are_listed_for_every_size(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Conv", ["x", "c.weight"], ["z"], pads=[1, 1])],
        "then",
        [],
        [helper.make_tensor_value_info("z", FLOAT, [1, 1, 1])],
        [onnx.numpy_helper.from_array(numpy.ones((1, 1, 3), numpy.float32), "c.weight")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["t"])], "else", [], [helper.make_tensor_value_info("t", FLOAT, None)]
    )
    nodes = [
        helper.make_node("If", ["q"], ["h"], then_branch=body, else_branch=other),
        helper.make_node("Conv", ["h", "d.weight"], ["y"], pads=[1, 1]),
    ]
    weights = {"q": numpy.array(True), "d.weight": numpy.ones((1, 1, 3), numpy.float32)}
    written(tmp_path / "m.onnx", nodes, weights, [1, 1, 9])
    found = {row.layer: row for row in lipcheck.check(str(tmp_path / "m.onnx")).layers}
    assert set(found) == {"c", "d"}
    assert found["c"].bound.upper >= 3
    assert found["d"].bound.upper >= 1 + 2 * math.cos(math.pi / 10)  # of nine positions, not one


def test_what_is_not_bounded_is_named(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["e"]),
        helper.make_node("MatMul", ["x", "stack"], ["s"], name="stacked"),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("MatMul", ["x", "y"], ["p"], name="product"),
    ]
    weights = {"table": numbers(1, 4, 3), "i": numpy.array([1]), "stack": numbers(2, 2, 4, 3), "w": numbers(3, 4, 4)}
    written(tmp_path / "m.onnx", nodes, weights, [4, 4])
    report = lipcheck.check(str(tmp_path / "m.onnx"))
    assert [row.op for row in report.layers] == ["onnx.MatMul"]
    assert {name for group in report.left_out for name in group.names} == {"table", "stacked", "product"}
    assert not report.network.claimed


def test_hostile_onnx_files_are_refused(tmp_path):
    path = tmp_path / "m.onnx"
    for content in (b"", b"\x00" * 100, b"\x80\x02]", b"\xff" * 999):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"m\.onnx: ") as caught:
            lipcheck.check(str(path))
        assert "\n" not in str(caught.value)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    broken = numbers(1, 4, 4)
    broken[0, :2] = numpy.nan
    written(path, [node], {"w": broken}, [4, 4])
    with pytest.raises(WeightsError, match=r"in w \(2 of 16 elements\)"):
        lipcheck.check(str(path))
    written(path, [helper.make_node("QLinearMatMul", ["x", "w"], ["y"])], {"w": numbers(1, 4, 4)}, [4, 4])
    with pytest.raises(WeightsError, match="quantised"):
        lipcheck.check(str(path))


@pytest.mark.parametrize("place", ["../out.bin", "", "linked.bin", "none.bin", "a\0b"])
def test_weights_in_other_files_stay_in_the_folder(tmp_path, place):
    folder = tmp_path / "model"
    folder.mkdir()
    weight = numbers(1, 4, 4)
    (tmp_path / "out.bin").write_bytes(weight.tobytes())
    (folder / "linked.bin").symlink_to(tmp_path / "out.bin")
    (folder / "in.bin").write_bytes(b"before" + weight.tobytes())
    model = written(folder / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, [4, 4])

    def point(to, offset):
        held = model.graph.initializer[0]
        held.ClearField("raw_data")
        held.ClearField("external_data")
        held.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", to), ("offset", str(offset))):
            held.external_data.add(key=key, value=value)
        (folder / "m.onnx").write_bytes(model.SerializeToString())

    point(place, 0)
    with pytest.raises(WeightsError, match="refused"):
        lipcheck.check(str(folder / "m.onnx"))
    point("in.bin", 7)
    with pytest.raises(WeightsError, match="beyond the end"):
        lipcheck.check(str(folder / "m.onnx"))
    point("in.bin", 6)
    (row,) = lipcheck.check(str(folder / "m.onnx")).layers
    assert row.bound.lower <= numpy.linalg.norm(weight, 2) * SLACK
    assert numpy.linalg.norm(weight, 2) <= row.bound.upper * SLACK
