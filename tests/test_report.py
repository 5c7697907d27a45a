"""The report's JSON: exact both ways, valid under the shipped schema, and refused with a place when it is wrong."""

import builtins
import dataclasses
import json
import math
import re
from importlib.resources import files

import example_report
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcheck.bound import Bound
from lipcheck.errors import MissingExtraError, UsageError
from lipcheck.report import (
    LayerReport,
    ModelSummary,
    NetworkReport,
    Report,
    RunSummary,
    UnsupportedOperation,
)

EXAMPLES = [
    *(example_report.small, example_report.unbounded, example_report.constant, example_report.resnet),
    example_report.transformer,
]
SCHEMA = json.loads(files("lipcheck").joinpath("schema.json").read_text(encoding="utf-8"))
# Made once: `jsonschema.validate` checks the schema itself at every call, as one test below does.
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(0, allow_nan=False, allow_infinity=False)
extended = st.floats(allow_nan=False)
sizes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@st.composite
def bounds(draw):
    lower, upper = sorted([draw(positive), draw(st.floats(0, allow_nan=False))])
    return Bound(lower, upper, draw(st.text()), draw(st.sampled_from(["certified", "probabilistic", "estimate"])))


layers = st.builds(
    LayerReport,
    bound=bounds(),
    merged=st.none() | bounds(),
    share=st.none() | finite,
    kernel=sizes,
    stride=sizes,
    dilation=sizes,
    groups=st.integers(1, 9),
    channels=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    input_size=sizes,
    output_size=sizes,
    calls=st.integers(1, 3),
)
reports = st.builds(
    Report,
    model=st.builds(
        ModelSummary,
        parameters=st.integers(0, 10**12),
        input_shape=sizes,
        notes=st.lists(st.text(), max_size=2).map(tuple),
    ),
    layers=st.lists(layers, max_size=3).map(tuple),
    network=st.builds(
        NetworkReport, log10_upper=extended, log10_product=extended, lower=positive, samples=st.integers(0, 9)
    ),
    unsupported=st.lists(
        st.builds(UnsupportedOperation, layers=st.lists(st.text(), max_size=2).map(tuple)), max_size=2
    ).map(tuple),
    run=st.builds(
        RunSummary,
        threads=st.integers(1, 9),
        tolerance=positive,
        seconds=st.dictionaries(st.text(max_size=5), positive, max_size=2),
        versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
        capture_difference=positive,
    ),
    schema_version=st.just(1),
)


@given(reports)
def test_json_and_back_is_exact_and_valid(report):
    text = report.to_json()
    assert Report.from_json(text) == report
    assert text.isascii()
    document = json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))
    VALIDATOR.validate(document)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_survive_json(example):
    assert Report.from_json(example().to_json()) == example()
    assert Report.from_dict(example().to_dict()) == example()
    jsonschema.validate(example().to_dict(), SCHEMA)


def test_schema_is_a_schema_and_names_every_field():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    classes = {"model": ModelSummary, "layer": LayerReport, "network": NetworkReport, "bound": Bound}
    classes |= {"unsupported": UnsupportedOperation, "run": RunSummary}
    derived = {"bound": {"slack", "status", "reason"}, "network": {"status", "product_status"}}
    for name, kind in classes.items():
        fields = {field.name for field in dataclasses.fields(kind) if field.metadata.get("document", True)}
        assert set(SCHEMA["$defs"][name]["properties"]) == fields | derived.get(name, set())
    assert set(SCHEMA["properties"]) == {field.name for field in dataclasses.fields(Report)}


def test_infinity_is_null_with_a_status_and_a_reason():
    document = example_report.unbounded().to_dict()
    assert document["network"]["log10_upper"] is None
    assert document["network"]["status"] == document["network"]["product_status"] == "unbounded"
    assert document["network"]["reason"]
    odd = document["layers"][-1]["bound"]
    assert odd["upper"] is None
    assert odd["slack"] is None
    assert odd["status"] == "unbounded"
    assert "no rule for its padding" in odd["reason"]
    first = document["layers"][0]["bound"]
    assert first["status"] == "bounded"
    assert first["slack"] == example_report.small().layers[0].bound.slack
    assert example_report.constant().to_dict()["network"]["status"] == "constant"


@pytest.mark.parametrize("value", [math.inf, 3.0])
def test_the_schema_refuses_a_status_that_does_not_fit(value):
    document = example_report.small().to_dict()
    bound = document["layers"][0]["bound"]
    bound["upper"], bound["status"] = (None, "bounded") if math.isinf(value) else (value, "unbounded")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def altered(path, value):
    document = example_report.small().to_dict()
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is not JSON"),
        ("{", "the text is not JSON"),
        ("[" * 100_000, "the text is not JSON"),
        ("[]", "the document is list"),
        ("null", "the document is null"),
        ("{}", "model is missing"),
        (altered(["schema_version"], 7), "schema version 7, this lipcheck reads 1"),
        (altered(["layers"], {}), "layers is dict"),
        (
            altered(["layers", 2, "bound", "upper"], "x"),
            r"layers\[2\].bound.upper is str 'x', expected a finite number",
        ),
        (altered(["layers", 2, "bound", "upper"], None), r"layers\[2\].bound.upper is null, expected a number, or"),
        (altered(["layers", 2, "bound", "upper"], 0), r"layers\[2\].bound: not an enclosure"),
        (altered(["layers", 2, "bound", "upper"], True), r"layers\[2\].bound.upper is bool"),
        (altered(["layers", 2, "bound", "upper"], 10**400), r"layers\[2\].bound.upper is int 1000"),
        (altered(["layers", 2, "bound", "kind"], "sure"), "expected certified or probabilistic or estimate"),
        (altered(["layers", 0, "channels"], [1, 2, 3]), r"layers\[0\].channels is list"),
        (altered(["layers", 0, "groups"], 1.5), r"layers\[0\].groups is float 1.5, expected an integer"),
        (altered(["layers", 0, "op"], KeyError), r"layers\[0\].op is missing"),
        (altered(["network", "lower"], math.nan), "network.lower is float nan"),
        (altered(["run", "seconds"], {"load": "x"}), "run.seconds.load is str 'x'"),
        (altered(["run", "seconds"], []), "run.seconds is list"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line_with_the_place(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        Report.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_unknown_fields_are_ignored():
    document = example_report.small().to_dict() | {"later": 1}
    assert Report.from_dict(document) == example_report.small()


def test_frame_has_one_row_per_layer():
    pytest.importorskip("pandas")
    report = example_report.small()
    frame = report.to_frame()
    assert list(frame["layer"]) == [layer.layer for layer in report.layers]
    assert frame["upper"][0] == report.layers[0].bound.upper
    assert frame["merged_upper"][0] == report.layers[0].merged.upper
    assert len(dataclasses.replace(report, layers=()).to_frame()) == 0


def test_frame_without_pandas_names_the_extra(monkeypatch):
    original = builtins.__import__

    def absent(name, *arguments, **more):
        if name == "pandas":
            raise ImportError(name)
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError, match=re.escape("lipcheck[pandas]")):
        example_report.small().to_frame()


def test_a_report_prints_itself():
    report = example_report.small()
    assert "stem.conv" in str(report)
    assert repr(report) == "<Report on 'example': 8 layers, log10 of the network's bound 3.142>"
    assert report._repr_html_().startswith("<div>")


def test_network_refuses_nan_and_infinite_norms():
    with pytest.raises(AssertionError, match="never nan"):
        NetworkReport(math.nan, 0.0, 0.0)
    with pytest.raises(AssertionError, match="evaluated"):
        NetworkReport(0.0, 0.0, math.inf)
