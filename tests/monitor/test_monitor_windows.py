"""Windows: every request in one, by count and by hours, whatever their times."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monitor_world import row_of
from pydantic import ValidationError

from stillhouse.core.loop_monitor import WindowSection
from stillhouse.monitor.windows import gathered, in_bounds, windows


def cut(times: list[float], until: float, since: float | None = None, **section: object) -> list:
    rows = [row_of(number, at=at) for number, at in enumerate(sorted(times))]
    return list(windows(rows, WindowSection.model_validate(section), since, until))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 400).map(float), max_size=120),
    st.sampled_from([20, None]),
    st.sampled_from([0.01, 0.02, None]),
)
def test_no_request_is_in_two_windows_or_passed_over(
    times: list[float], requests: int | None, hours: float | None
) -> None:
    if requests is None and hours is None:
        hours = 0.01
    found = cut(times, 1000.0, requests=requests, hours=hours)
    ids = [row.id for window in found for row in window.rows]
    assert ids == [f"r{number}" for number in range(len(ids))]  # in order, from the first on
    for before, after in itertools.pairwise(found):
        assert before.until == after.since
    for window in found:
        assert all(window.since <= row.at < window.until for row in window.rows)
        assert window.requests == len(window.rows)
        assert bool(window.empties) == (not window.rows)
    if hours is not None and times:
        assert len(ids) == len(times)  # the last window's time is over
    # Read on from any window's end, the rest is the same.
    if len(found) > 1:
        rest = sorted(time for time in times if time >= found[0].until)
        again = cut(rest, 1000.0, since=found[0].until, requests=requests, hours=hours)
        assert [w.requests for w in again] == [w.requests for w in found[1:]]


def test_requests_of_one_instant_stay_together() -> None:
    found = cut([0.0] * 19 + [1.0] * 5 + [2.0] * 30, 10.0, requests=20)
    assert [window.requests for window in found] == [24, 30]


def test_empty_hours_come_as_one_window_that_counts_them() -> None:
    found = cut([0.0, 10.0, 3600.0 * 5 + 1], 3600.0 * 8 + 5, requests=None, hours=1)
    assert [(w.requests, w.empties) for w in found] == [(2, 0), (0, 4), (1, 0), (0, 2)]


def test_a_window_of_very_many_is_thinned_by_unit() -> None:
    rows = [row_of(number, unit=f"u{number % 100}") for number in range(2000)]
    found = gathered(rows, 500)
    assert found.requests == 2000
    assert 200 <= len(found.rows) <= 500
    kept = {row.unit for row in found.rows}
    assert len(found.rows) == 20 * len(kept)  # whole units


def test_past_windows_are_found_again() -> None:
    rows = [row_of(number) for number in range(10)]
    found = list(in_bounds(rows, [(1.0, 3.0), (3.0, 4.0), (6.0, 9.0)], 100))
    assert [[row.at for row in one.rows] for one in found] == [[1, 2], [3], [6, 7, 8]]


def test_a_section_without_an_end_is_refused() -> None:
    with pytest.raises(ValidationError, match="requests, hours or both"):
        WindowSection(requests=None)
