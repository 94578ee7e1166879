"""Plots: well-formed SVG from any numbers, with a title, a description and escaped names."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from stillhouse.evaluate.plots import (
    HEIGHT,
    WIDTH,
    Mark,
    Series,
    cost_chart,
    gate_chart,
    heat_map,
    line_chart,
)

numbers = st.floats(-1e6, 1e6)
evil = '<script>&"'


def parse(svg: Markup) -> ET.Element:
    root = ET.fromstring("<div>" + str(svg) + "</div>")
    figure = root.find("svg")
    assert figure is not None
    assert figure.findtext("title")
    assert figure.findtext("desc")
    assert "nan" not in str(svg).lower()
    return figure


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_lines_stay_inside_the_frame(points: list[tuple[float, float]]) -> None:
    figure = parse(line_chart("t", [Series(evil, "student", points)], "x", evil))
    circles = list(figure.iter("circle"))
    assert len(circles) == len(points)
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= WIDTH
        assert 0 <= float(circle.attrib["cy"]) <= HEIGHT


@given(
    st.lists(
        st.tuples(st.none() | st.just(0.0) | st.floats(1e-9, 1e4), st.floats(0, 1)),
        min_size=1,
        max_size=6,
    )
)
def test_cost_chart_places_free_and_unknown_costs(items: list[tuple[float | None, float]]) -> None:
    marks = [Mark(f"m{i}", "student", x, y, y - 0.01, y + 0.01) for i, (x, y) in enumerate(items)]
    figure = parse(cost_chart("t", marks, "x", "y"))
    texts = [t.text or "" for t in figure.iter("text")]
    assert sum("(cost unknown)" in t for t in texts) == sum(x is None for x, _ in items)
    assert sum("(free)" in t for t in texts) == sum(x == 0 for x, _ in items)
    for circle in figure.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= WIDTH


def test_cheaper_is_further_left_and_better_is_higher() -> None:
    marks = [
        Mark("cheap", "student", 0.01, 0.8, 0.7, 0.9),
        Mark("dear", "teacher", 10.0, 0.9, 0.8, 1.0),
    ]
    circles = {c.attrib["class"]: c for c in parse(cost_chart("t", marks, "x", "y")).iter("circle")}
    cheap, dear = circles["dot student"], circles["dot teacher"]
    assert float(cheap.attrib["cx"]) < float(dear.attrib["cx"])
    assert float(cheap.attrib["cy"]) > float(dear.attrib["cy"])


def test_heat_map_shows_every_count_and_an_unreadable_column_only_if_used() -> None:
    figure = parse(heat_map("t", [[5, 1, 0], [2, 7, 0]], ["a", evil], "truth", "student"))
    counts = [t.text for t in figure.iter("text") if t.attrib.get("class") == "count"]
    assert counts == ["5", "1", "2", "7"]
    figure = parse(heat_map("t", [[5, 1, 3], [2, 7, 0]], ["a", "b"], "truth", "student"))
    assert len([t for t in figure.iter("text") if t.attrib.get("class") == "count"]) == 6
    assert "12 of 18" in (figure.findtext("desc") or "")


@pytest.mark.parametrize(("low", "style"), [(-0.04, "pass"), (-0.06, "fail")])
def test_gate_chart_shows_the_verdict(low: float, style: str) -> None:
    figure = parse(gate_chart("t", -0.02, low, 0.01, 0.05))
    assert [c.attrib["class"] for c in figure.iter("circle")] == [f"dot {style}"]


@pytest.mark.parametrize("low", [-0.06, -0.25, -0.9])
def test_the_gate_charts_names_do_not_meet(low: float) -> None:
    texts = {t.text: t.attrib for t in parse(gate_chart("t", low, low, 0.01, 0.05)).iter("text")}
    assert texts["margin -5"]["text-anchor"] == "end"
    assert texts["equal"]["text-anchor"] == "start"
    assert float(texts["margin -5"]["x"]) < float(texts["equal"]["x"])


def test_empty_plots_raise() -> None:
    with pytest.raises(ValueError):
        line_chart("t", [Series("a", "b", [])], "x", "y")
    with pytest.raises(ValueError):
        cost_chart("t", [], "x", "y")
    with pytest.raises(ValueError):
        heat_map("t", [], [], "x", "y")


def test_no_two_ticks_of_percent_read_alike() -> None:
    marks = [Mark(name, "teacher", x, 1.0, 0.981, 1.0) for name, x in (("a", 1.0), ("b", 2.0))]
    text = str(cost_chart("t", marks, "cost", "accuracy"))
    ticks = re.findall(r'text-anchor="end">([^<]*%)<', text)
    assert len(ticks) >= 3
    assert len(set(ticks)) == len(ticks)
