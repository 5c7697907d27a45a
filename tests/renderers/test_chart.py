"""The charts: well-formed, safe from hostile names, true to the report's shares."""

import math
import re
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace

import example_report
import pytest
from rich.cells import cell_len

from lipcheck.bound import Bound
from lipcheck.errors import MissingExtraError
from lipcheck.renderers import chart

EXAMPLES = ["small", "unbounded", "constant", "resnet", "transformer"]
SVG = "{http://www.w3.org/2000/svg}"
NAMES = (
    example_report.HOSTILE,
    "</title></svg><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$x^$",
    "名",
)


def hostile():
    report = example_report.small()
    layers = tuple(replace(layer, layer=NAMES[i % len(NAMES)]) for i, layer in enumerate(report.layers))
    return replace(
        report,
        model=replace(report.model, name=NAMES[2]),
        layers=layers,
        network=replace(report.network, elsewhere={NAMES[1]: 0.1}),
    )


def many(count=2000):
    report = example_report.resnet()
    names = (f"stages.{index // 100}.blocks.{index}" for index in range(count))
    layers = tuple(replace(report.layers[i % 54], layer=name, share=(-1) ** i / count) for i, name in enumerate(names))
    return replace(report, layers=layers)


def boxes(drawing, *roles):
    return [mark for mark in drawing.marks if isinstance(mark, chart.Box) and mark.role in roles]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_chart_is_well_formed_and_names_nothing_outside(name):
    text = chart.svg(getattr(example_report, name)())
    assert ET.fromstring(text.encode()).tag == f"{SVG}svg"
    assert re.findall(r"\w+://[^\s\"'<]*", text) == ["http://www.w3.org/2000/svg"]
    assert "nan" not in text
    assert "inf" not in re.sub(r"<t(itle|ext).*?</t(itle|ext)>", "", text)


def test_hostile_names_are_only_text():
    report = hostile()
    for text in (chart.svg(report), *(chart.inline(chart.enclosures(report, width)) for width in (1000, 350))):
        tags = {element.tag.removeprefix(SVG) for element in ET.fromstring(text.encode()).iter()}
        assert tags <= {"svg", "style", "rect", "g", "text", "title", "polyline"}
        assert not {"\x1b", "\u202e", "\x9b"} & set(text)


@pytest.mark.parametrize("width", [1000, 350])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_mark_lies_on_the_paper(name, width):
    report = getattr(example_report, name)()
    for drawing in (chart.growth(report, width), chart.enclosures(report, width)):
        for mark in drawing.marks:
            if isinstance(mark, chart.Box):
                assert -0.1 <= mark.x <= mark.x + mark.width <= drawing.width + 0.1
                assert -0.1 <= mark.y <= mark.y + mark.height <= drawing.height + 0.1
            elif isinstance(mark, chart.Words) and chart.ROLES[mark.role].mono:
                size = cell_len(mark.text) * 6.7
                left = mark.x - {"start": 0, "middle": size / 2, "end": size}[mark.anchor]
                assert left >= -1
                assert left + size <= drawing.width + 1, mark.text


def test_the_stairs_end_at_the_networks_bound():
    report = example_report.small()
    assert math.isclose(sum(step.log10 for step in chart.steps(report)), report.network.log10_upper)
    lines = {mark.role: mark for mark in chart.growth(report, 1000).marks if isinstance(mark, chart.Line)}
    assert lines["stairs"].points[-1] == pytest.approx(lines["limit"].points[-1])


def test_layers_that_shrink_hang_below_the_axis():
    drawing = chart.growth(example_report.small(), 1000)
    axis = next(mark for mark in drawing.marks if isinstance(mark, chart.Line) and mark.role == "axis").points[0][1]
    (below,) = boxes(drawing, "shrinking")
    assert below.tip.startswith("stem.pool")
    assert below.y == pytest.approx(axis)
    assert all(box.y + box.height == pytest.approx(axis) for box in boxes(drawing, "growing"))


def test_a_contracting_network_goes_down():
    report = example_report.small()
    report = replace(report, network=replace(report.network, log10_upper=-2.0, lower=1e-4))
    assert len(boxes(chart.growth(report, 1000), "shrinking")) == 5


def test_what_has_no_row_stands_last():
    last = chart.steps(example_report.transformer())[-1]
    assert (last.name, last.elsewhere) == ("scaled_dot_product_attention", True)
    assert not any("head 11" in step.name for step in chart.steps(example_report.transformer()))


def test_without_shares_the_layers_own_ends_are_drawn():
    drawing = chart.growth(example_report.unbounded(), 1000)
    assert not [mark for mark in drawing.marks if mark.role == "stairs"]
    assert [box.tip for box in boxes(drawing, "endless")] == ["odd: ∞"]


def test_no_layers_are_said_to_be_none():
    report = replace(example_report.constant(), layers=())
    assert "no layer has a bound" in chart.svg(report)
    assert "no layer has a bound" in chart.inline(chart.enclosures(report, 350))
    assert chart.png(report).startswith(b"\x89PNG")


def test_ends_that_are_not_known_reach_the_margin():
    ends = (Bound(0.0, 2.0, "m"), Bound(1.0, math.inf, "m"), Bound(0.0, 0.0, "m"))
    layers = tuple(example_report.layer(f"l{i}", "linear", 0, 0, bound=bound) for i, bound in enumerate(ends))
    drawn = boxes(chart.enclosures(replace(example_report.small(), layers=layers), 1000), "own", "endless")
    assert [box.role for box in drawn] == ["own", "endless", "own"]
    assert drawn[0].x == pytest.approx(drawn[2].x + 2)
    assert drawn[1].x + drawn[1].width < 1000


def test_two_thousand_layers_share_bars_and_lose_nothing():
    report = many()
    began = time.process_time()
    text = chart.svg(report)
    assert time.process_time() - began < 1
    assert len(text) < 200_000
    assert "layers in a bar" in text
    drawing = chart.growth(report, 1000)
    high, low = (sum(box.height for box in boxes(drawing, role)) for role in ("growing", "shrinking"))
    assert high == pytest.approx(low, rel=1e-3)
    assert len(chart.shown_enclosures(report)) == 40


@pytest.mark.parametrize("make", [hostile, many, *(getattr(example_report, name) for name in EXAMPLES)])
def test_an_image_needs_no_browser(make):
    image = chart.png(make())
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(image[16:20], "big") == 2 * chart.WIDTH


def test_an_image_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lipcheck\[chart\]'"):
        chart.png(example_report.small())
