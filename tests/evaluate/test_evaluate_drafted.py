"""What a speculate stage found, in a line and in the report's page."""

from __future__ import annotations

import pytest

from stillhouse.core.statistics import Interval
from stillhouse.evaluate.drafted import Drafted
from stillhouse.evaluate.page import environment
from stillhouse.evaluate.summary import drafted_rows


def drafted(**changes: object) -> Drafted:
    return Drafted.model_validate(
        {
            "target": "the-teacher",
            "runtime": "llama.cpp",
            "length": 4,
            "acceptance": Interval(estimate=0.8, low=0.78, high=0.82, n=900),
            "tokens_per_s": 84.0,
            "tokens_per_s_alone": 40.0,
            "speedup": Interval(estimate=2.1, low=1.9, high=2.3, n=40),
            "over_lookup": Interval(estimate=1.3, low=1.2, high=1.4, n=40),
            "over_undistilled": None,
            "identical": 200,
            "compared": 200,
            "lossless": True,
            "faster": True,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "answers 2.10 [1.90, 2.30] times as fast in llama.cpp, 200 of 200 greedy answers"),
        ({"faster": False}, "not shown to be faster"),
        ({"speedup": None}, "at an unknown speed"),
        ({"lossless": False}, "do not serve it"),
    ],
)
def test_a_line_says_how_fast_and_whether_it_is_the_target(
    changes: dict[str, object], said: str
) -> None:
    ((name, line),) = drafted_rows(drafted(**changes))
    assert name == "as a draft"
    assert said in line
    assert list(drafted_rows(None)) == []


def test_the_page_shows_the_figures_and_warns() -> None:
    template = environment().from_string(
        '{% from "drafted.html" import drafted with context %}{{ drafted(d) }}'
    )
    page = template.render(d=drafted())
    assert "<strong>2.10</strong> times as fast" in page
    assert "200 of 200 greedy ones token for token" in page
    assert "1.30" in page
    assert "do not serve" not in page
    assert "do not serve this" in template.render(d=drafted(lossless=False))
