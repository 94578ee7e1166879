"""Cost against quality of a student with its teacher behind it, over the one knob: the threshold.

Points on held-out samples with the interval of their quality, as JSON, as a picture that stands by
itself and as a table for a terminal. Estimates, without a promise. Knows numbers; what confidence
is made of it does not.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from markupsafe import Markup
from pydantic import Field, ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json
from stillhouse.core.risk_control import Costs, Floats, frontier, probability_grid
from stillhouse.core.statistics import Interval, bootstrap_mean
from stillhouse.evaluate import summary
from stillhouse.evaluate.compressed import TABLE, read_table
from stillhouse.evaluate.results import STUDENT, TEACHER, Result, SpeedResult
from stillhouse.evaluate.study_chart import Axes, Dot, Level, study_chart

STEPS: Final = 20
RESAMPLES: Final = 1000
Unit = Literal["usd", "teacher"]


class Priced(Result):
    """One threshold: `chosen` is the one that keeps the promised error."""

    threshold: float
    coverage: float = Field(description="Share of the requests that the student answers.")
    student_error: float | None = Field(description="1 - its mean score there; null: none.")
    quality: Interval = Field(description="Mean score of the pair.")
    cost_per_1000: float
    chosen: bool = False


class FallbackFrontier(Result):
    """frontier.json. `unit` of costs: usd, or teacher: of what 1,000 teacher answers cost."""

    format: Literal[1] = 1
    metric: str
    n: int
    unit: Unit
    teacher: Interval = Field(description="The teacher's mean score on these samples.")
    points: tuple[Priced, ...]


def costs_of(
    run: Path, *, compressed: bool, given: tuple[float | None, float | None]
) -> tuple[Costs, Unit]:
    """What 1,000 answers of student and teacher cost: as given, else as the run measured.

    Where either is unknown, the teacher costs 1,000 and the student nothing.

    Args:
        compressed: the student is the run's best artefact.
        given: of student and teacher, USD per 1,000.
    """
    student, teacher = given
    try:
        speed = SpeedResult.model_validate(read_json(run / "evaluate" / "speed.json"))
        known = {name: one.usd_per_1k for name, one in speed.candidates.items()}
        shown = compressed and (run / "compress" / TABLE).is_file()
        best = read_table(run / "compress").chosen if shown else None
        own = known.get(STUDENT) if best is None else best.speed.usd_per_1k
        student = own if student is None else student
        teacher = known.get(TEACHER) if teacher is None else teacher
    except (RunFolderError, OSError, ValidationError):
        pass  # a run that was not timed
    if student is None or teacher is None:
        return Costs(0.0, 1000.0), "teacher"
    return Costs(student, teacher), "usd"


def fallback_frontier(
    confidence: Floats,  # [N]
    student: Floats,  # [N] scores in [0, 1]
    teacher: Floats,  # [N]
    groups: Sequence[str],  # [N]
    *,
    costs: Costs,
    unit: Unit,
    metric: str,
    chosen: float | None,
) -> FallbackFrontier:
    """Points at 20 even thresholds and at the chosen one.

    Raises:
        ValueError: no samples, or values out of range.
    """
    marks = set(probability_grid(STEPS).tolist()) | ({chosen} if chosen is not None else set())
    found = []
    grid = np.array(sorted(marks, reverse=True))
    for point in frontier(confidence, student, teacher, costs, grid):
        mixture = np.where(confidence >= point.threshold, student, teacher)
        found.append(
            Priced(
                threshold=point.threshold,
                coverage=point.coverage,
                student_error=point.student_error,
                quality=bootstrap_mean(mixture, resamples=RESAMPLES, groups=groups),
                cost_per_1000=point.cost_per_1000_usd,
                chosen=point.threshold == chosen,
            )
        )
    return FallbackFrontier(
        metric=metric,
        n=len(confidence),
        unit=unit,
        teacher=bootstrap_mean(teacher, resamples=RESAMPLES, groups=groups),
        points=tuple(found),
    )


def frontier_picture(found: FallbackFrontier) -> Markup:
    """Quality against cost, a dot a threshold."""
    least = max(one.cost_per_1000 for one in found.points) / 1000  # the axis has no zero
    dots = [
        Dot(
            max(one.cost_per_1000, least),
            one.quality.estimate,
            one.quality.low,
            one.quality.high,
            f"t = {one.threshold:.3f}" if one.chosen else "",
            "chosen" if one.chosen else "",
            f"t = {one.threshold:.3f}: the student answers {100 * one.coverage:.0f}%",
        )
        for one in found.points
    ]
    metric = summary.METRIC_NAMES.get(found.metric, found.metric)
    return study_chart(
        f"{metric} against cost, by threshold",
        dots,
        Axes(f"{_unit(found)} (log scale)", metric, lambda value: f"{value:.2g}"),
        levels=[Level("teacher", found.teacher.estimate, "teacher")],
    )


class Row(NamedTuple):
    """A line of the table."""

    threshold: str
    student: str
    error: str
    quality: str
    cost: str


def frontier_rows(found: FallbackFrontier) -> list[Row]:
    """The table: its head, then a line a threshold at which something changes."""
    rows = [Row("threshold", "student answers", "wrong of these", "quality", _unit(found))]
    last: float | None = None
    for one in found.points:
        if one.coverage == last and not one.chosen:
            continue
        last = one.coverage
        rows.append(
            Row(
                f"{one.threshold:.3f}{' *' if one.chosen else ''}",
                f"{100 * one.coverage:.1f}%",
                "" if one.student_error is None else f"{100 * one.student_error:.1f}%",
                summary.share(one.quality),
                f"{one.cost_per_1000:.4g}",
            )
        )
    return rows


def _unit(found: FallbackFrontier) -> str:
    return "USD per 1,000" if found.unit == "usd" else "teacher answers per 1,000"
