"""The chart of a run's course and its rows, whatever the numbers and the names."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from lipcheck.course import Point, grown_since, log10_uppers
from lipcheck.renderers import course
from lipcheck.renderers.course import plot
from lipcheck.report import NetworkReport

NUMBERS = st.floats(-300, 300) | st.sampled_from([math.inf, -math.inf, math.nan])
NAMES = st.text(max_size=40)


def point(name: str, log10: float, norms: dict[str, float], grown=(), *, claimed: bool = True) -> Point:
    if math.isnan(log10):
        return Point(name, (), problem=f"broken\n{name}")
    network = NetworkReport(log10, log10, 1.5, samples=1, claimed=claimed)
    return Point(name, (1,), network, True, norms, tuple(grown))


points = st.builds(
    point,
    NAMES,
    NUMBERS,
    st.dictionaries(NAMES, st.floats(0, 1e9) | st.just(math.inf), max_size=4),
    st.lists(st.tuples(NAMES, st.floats(1e-9, 1e9) | st.just(math.inf)), max_size=7),
)


@given(st.lists(NUMBERS, min_size=1, max_size=200), st.integers(1, 90), st.integers(1, 8), st.integers(1, 4))
def test_a_chart_fits_and_higher_values_have_higher_columns(values, width, height, widest):
    lines = plot(values, width, height, widest=widest)
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)
    if len(values) > width or widest > 1:
        return
    columns = ["".join(line[place] for line in lines) for place in range(len(values))]
    filled = [sum(" ▁▂▃▄▅▆▇█".index(cell) for cell in column if cell not in "∞×") for column in columns]
    order = sorted((value, amount) for value, amount in zip(values, filled, strict=True) if math.isfinite(value))
    assert [amount for _, amount in order] == sorted(amount for _, amount in order)
    assert [column[-1] == "×" for column in columns] == [math.isnan(value) for value in values]
    assert [column[0] == "∞" for column in columns] == [value == math.inf for value in values]


@given(st.lists(st.floats(-9, 9), min_size=30, max_size=300))
def test_the_largest_value_is_never_left_out(values):
    (line,) = plot(values, 20, 1)
    (all_of_them,) = plot(values, 999, 1)
    assert max(line) == max(all_of_them)


@given(st.lists(points, min_size=1, max_size=12), st.sampled_from([80, 100, 160]))
def test_rows_and_chart_fit_any_terminal_and_steer_none(held, width):
    names = course.name_width([one.name for one in held], width)
    lines = [course.heading(names, claimed=True).plain]
    for before, one in zip([None, *held], held, strict=False):
        row = course.row(one, before if before is None or not before.problem else None, names, width).plain
        assert one.problem or "\n" not in row
        lines += row.split("\n")
    lines += [part for line in course.summary(held, width) for part in line.plain.split("\n")]
    assert all(line.replace("\n", "").isprintable() for line in lines)
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("claimed", [True, False])
def test_what_is_drawn_is_the_network_or_else_the_largest_layer(claimed):
    held = [point("a", 2.0, {"fc": 10.0}, claimed=claimed), point("b", math.nan, {}), point("c", 3.0, {"fc": 1000.0})]
    values = log10_uppers([held[0], held[1]])
    assert values[0] == pytest.approx(2.0 if claimed else 1.0)
    assert math.isnan(values[1])
    text = "\n".join(line.plain for line in course.summary(held[:2] if not claimed else held, 160))
    assert ("of the network" in text) == claimed
    assert "of them audited" in text


def test_layers_are_told_by_the_ratio_of_their_ends():
    first = point("a", 0.0, {"x": 1.0, "y": 2.0, "z": 0.0, "gone": 1.0, "less": 3.0})
    last = point("b", 0.0, {"x": 2.0, "y": 8.0, "z": 1.0, "new": 1.0, "less": 2.0})
    assert grown_since(first, last) == [("z", 0.0, 1.0), ("y", 2.0, 8.0), ("x", 1.0, 2.0)]


def test_a_run_of_which_nothing_could_be_read_says_so():
    assert "no checkpoint could be audited" in course.summary([point("a", math.nan, {})], 80)[0].plain
    assert course.summary([], 80) == []
