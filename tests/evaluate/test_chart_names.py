"""Names of points: beside them, clear of each other, in the picture. Ticks of whole numbers."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.evaluate.chart_names import LETTER, LINE, Named, Place, places_of_names
from stillhouse.evaluate.plots import Series, line_chart

LEFT, RIGHT = 60.0, 700.0


def box(place: Place, name: str) -> tuple[float, float, float, float]:
    wide = LETTER * len(name)
    left = place.x if place.anchor == "start" else place.x - wide
    return left, left + wide, place.y - 5 - LINE / 2, place.y - 5 + LINE / 2


def meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def test_names_of_points_that_lie_together_stand_apart() -> None:
    at = [(300.0, 200.0), (303.0, 201.0), (310.0, 198.0), (300.0, 215.0)]
    marks = [Named(x, y, y - 40, y + 40, 5.5, f"medium/form-{k}") for k, (x, y) in enumerate(at)]
    places = places_of_names(marks, LEFT, RIGHT)
    boxes = [box(place, mark.name) for place, mark in zip(places, marks, strict=True)]
    for k, one in enumerate(boxes):
        assert not any(meet(one, other) for other in boxes[:k])


def test_a_name_alone_stands_beside_its_point_and_changes_sides_at_the_edge() -> None:
    (place,) = places_of_names([Named(100, 50, 40, 60, 5.5, "light")], LEFT, RIGHT)
    assert (place.x, place.y, place.anchor) == (111, 55, "start")
    (place,) = places_of_names([Named(690, 50, 40, 60, 5.5, "light")], LEFT, RIGHT)
    assert (place.x, place.anchor) == (679, "end")


@given(
    st.lists(
        st.tuples(st.floats(LEFT, RIGHT), st.floats(20, 400), st.text("ab/", max_size=30)),
        max_size=7,
    )
)
def test_every_point_gets_a_place_within_the_picture(
    points: list[tuple[float, float, str]],
) -> None:
    marks = [Named(x, y, y - 10, y + 10, 5.5, name) for x, y, name in points]
    places = places_of_names(marks, LEFT, RIGHT)
    assert len(places) == len(marks)
    for place, mark in zip(places, marks, strict=True):
        if mark.name:
            left, right, *_ = box(place, mark.name)
            assert LEFT <= left <= right <= RIGHT


def test_steps_are_counted_in_whole_numbers() -> None:
    for last in (3, 18, 250):
        points = [(float(k), 0.5) for k in range(1, last + 1)]
        drawn = str(line_chart("t", [Series("s", "student", points)], "step", "loss"))
        ticks = re.findall(r'text-anchor="middle">([\d,.]+)</text>', drawn)
        assert ticks
        assert not any("." in tick for tick in ticks)
