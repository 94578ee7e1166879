"""How a training went, on the page: read, drawn, and refused where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse.core.errors import RunFolderError
from stillhouse.evaluate.course import course_charts, read_course
from stillhouse.evaluate.page import environment


def write(folder: Path, accuracy: float | None) -> None:
    looks = [
        {"step": 10 * k, "agreement": 0.8, "accuracy": accuracy, "agreement_on_mistakes": None}
        for k in (1, 2)
    ]
    said = {
        "verdict": {"state": "capacity_ceiling", "sentence": "Too <small>.", "actions": ["bigger"]},
        "findings": [
            {"name": "capacity_ceiling", "found": True, "seen": "82%"},
            {"name": "copies_mistakes", "found": None, "seen": "no truth"},
        ],
        "looks": looks,
    }
    (folder / "convergence.json").write_text(json.dumps(said))


def test_a_course_is_read_and_drawn(tmp_path: Path) -> None:
    assert read_course(tmp_path) is None
    assert course_charts(None) == []
    write(tmp_path, None)
    course = read_course(tmp_path)
    assert course is not None
    assert [(f.title, f.answer) for f in course.findings] == [
        ("Student too small", "yes"),
        ("Copies the teacher's mistakes", "not known"),
    ]
    assert course_charts(course) == []
    write(tmp_path, 0.75)
    (chart,) = course_charts(read_course(tmp_path))
    assert "accuracy" in chart.svg
    assert "agreement where" not in chart.svg
    template = (
        "{% for f in course.findings %}{{ f.answer }}{% endfor %}{{ course.verdict.sentence }}"
    )
    assert environment().from_string(template).render(course=course) == (
        "yesnot knownToo &lt;small&gt;."
    )


def test_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "convergence.json").write_text("{")
    with pytest.raises(RunFolderError, match="is damaged"):
        read_course(tmp_path)
