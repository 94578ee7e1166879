"""`stillhouse simulate`: a plan's savings and risks on logged traffic, before it is turned on.

Puts `forecast` and the log's own figures together. Knows no command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from pydantic import Field

from stillhouse.core.anytime_margin import Floats, margin_of
from stillhouse.core.errors import UserError
from stillhouse.core.records import Record
from stillhouse.core.statistics import Interval, bootstrap_mean
from stillhouse.serve.forecast import (
    FEWEST_UNITS,
    Course,
    Scale,
    StageForecast,
    at_the_margin,
    course_of,
    gives_way,
    units_of,
)
from stillhouse.serve.gateway_sections import ExperimentSection, TaskSection
from stillhouse.serve.guardrails import Guardrails, Reading
from stillhouse.serve.logged_pairs import LoggedPair
from stillhouse.serve.policy import preference_margin
from stillhouse.serve.records import Served

DAY_S: Final = 86_400.0
MOST_REQUESTS: Final = 20_000


class Money(Record):
    """USD over the days that were asked for. What a judge costs is not known here."""

    days: float
    requests: int
    teacher_only: float
    saved: tuple[float, float, float] = Field(description="10%, mean, 90% of the repetitions.")
    per_1000_teacher: float
    per_1000_student: float = Field(description="Of the student's arm, its fallbacks included.")


class Forecast(Record):
    """What is foreseen of one task's plan."""

    task: str
    pairs: int
    units: int
    per_day: float = Field(description="Requests.")
    teacher: Interval = Field(description="Mean score by unit.")
    student: Interval = Field(description="Of the student's arm: with its fallbacks.")
    bare: float = Field(description="Mean score of the student alone.")
    slack: Interval = Field(description="0 is exactly at the margin; above is good enough.")
    answered: float = Field(description="Share of the student's arm that the student answers.")
    stages: tuple[StageForecast, ...]
    reaches_last: float
    rolled_back: float
    undecided: float
    at_margin_advances: float | None = Field(
        description="Chance that a student exactly at the margin leaves the first stage that is "
        "decided by scores; None: the log has no answers on one side of the margin."
    )
    at_margin_reaches_last: float | None
    days: tuple[float, float, float] | None = Field(
        description="To the last stage, where it is reached: 10%, median, 90%."
    )
    money: Money
    guardrails: tuple[Reading, ...] = Field(description="On the log's pairs, in their order.")
    notes: tuple[str, ...]


class Asked(NamedTuple):
    """What is asked for. `per_day` None: as the log has it."""

    repetitions: int = 300
    seed: int = 0
    days: float = 30.0
    per_day: float | None = None
    requests: int = MOST_REQUESTS


def simulate(name: str, task: TaskSection, pairs: Sequence[LoggedPair], asked: Asked) -> Forecast:
    """The forecast of one task.

    Raises:
        UserError: too few units for a statement about others.
    """
    plan, threshold = task.experiment, task.fallback.threshold
    units = units_of(pairs, task, threshold)
    count = len(units.requests)
    if count < FEWEST_UNITS:
        raise UserError(
            "log",
            f"has pairs of {count} units, and a forecast needs {FEWEST_UNITS}",
            action="wait for more users, or use sticky: request where each counts alone",
        )
    judged = plan.evidence is not None and plan.evidence.source == "judge"
    margin = margin_of(plan.margin_kind, plan.margin)
    margin = preference_margin(plan, None) if judged else margin
    per_day = asked.per_day or _per_day(pairs, plan)
    scale = Scale(asked.requests, asked.repetitions, per_day, asked.seed)
    course = course_of(units, task, scale)
    weights = at_the_margin(units, margin)
    worst = None if weights is None else course_of(units, task, scale, weights)
    scored = next(
        (
            one
            for one in course.stages
            if one.design is not None and one.stage + 1 < len(plan.stages)
        ),
        None,
    )
    given = [gives_way(one, task, threshold) for one in pairs]
    slack = margin.slack(units.student, units.teacher)
    readings = _guardrails(task, pairs, given)

    def mean(values: Floats) -> Interval:
        return bootstrap_mean(values, resamples=1000, seed=asked.seed)

    return Forecast(
        task=name,
        pairs=len(pairs),
        units=count,
        per_day=per_day,
        teacher=mean(units.teacher),
        student=mean(units.student),
        bare=float(np.mean([one.student for one in pairs])),
        slack=mean(slack),
        answered=1 - float(np.mean(given)),
        stages=course.stages,
        reaches_last=course.stages[-1].reached,
        rolled_back=float(course.rolled_back.mean()),
        undecided=1 - float(course.rolled_back.mean()) - _settled(course, len(plan.stages)),
        at_margin_advances=(
            None
            if worst is None or scored is None
            else worst.stages[scored.stage].advanced * worst.stages[scored.stage].reached
        ),
        at_margin_reaches_last=None if worst is None else worst.stages[-1].reached,
        days=_days_to_last(course, per_day, len(plan.stages)),
        money=_money(task, _Means.of(pairs, given), course, asked.days * per_day, asked.days),
        guardrails=readings,
        notes=_notes(task, pairs, readings),
    )


def _per_day(pairs: Sequence[LoggedPair], plan: ExperimentSection) -> float:
    """Requests a day, from those that were shadowed."""
    span = max(pairs[-1].at - pairs[0].at, 1.0)
    share = max((1 - plan.teacher_only) * plan.shadow_share, 1e-3)
    return len(pairs) / span * DAY_S / share


def _settled(course: Course, stages: int) -> float:
    return float(((course.last == stages - 1) & ~course.rolled_back).mean())


def _days_to_last(course: Course, per_day: float, stages: int) -> tuple[float, float, float] | None:
    there = course.last == stages - 1
    if not there.any() or stages < 2:
        return None
    days = course.requests[: stages - 1, there].sum(axis=0) / per_day
    low, middle, high = (float(one) for one in np.quantile(days, [0.1, 0.5, 0.9]))
    return low, middle, high


class _Means(NamedTuple):
    """USD a request: the teacher's, the student's, and the student's arm with its fallbacks."""

    teacher: float
    student: float
    arm: float

    @classmethod
    def of(cls, pairs: Sequence[LoggedPair], given: Sequence[bool]) -> _Means:
        teacher = np.array([one.teacher_usd for one in pairs])
        student = float(np.mean([one.student_usd for one in pairs]))
        return cls(float(teacher.mean()), student, student + float((teacher * given).mean()))


def _money(task: TaskSection, means: _Means, course: Course, total: float, days: float) -> Money:
    plan, (teacher, student, arm) = task.experiment, means
    costs = []
    for stage in course.stages:
        share = (1 - plan.teacher_only) * stage.share if stage.kind != "shadow" else 0.0
        shadowed = 0.0
        if stage.kind == "shadow":
            shadowed = (1 - plan.teacher_only) * plan.shadow_share
        elif plan.shadows_later:
            shadowed = (1 - share) * plan.shadow_share
        costs.append(share * arm + (1 - share) * teacher + shadowed * student)
    spent = np.zeros(len(course.last))
    left = np.full(len(course.last), total)
    for number, cost in enumerate(costs):
        there = course.last >= number
        ends = np.where(course.last > number, course.requests[number], np.inf)
        ends = np.where(course.rolled_back & (course.last == number), course.requests[number], ends)
        used = np.where(there, np.minimum(ends, left), 0.0)
        spent += used * cost
        left -= used
    spent += left * costs[0]  # what was rolled back is at the first stage again
    saved = total * teacher - spent
    low, high = (float(one) for one in np.quantile(saved, [0.1, 0.9]))
    return Money(
        days=days,
        requests=round(total),
        teacher_only=total * teacher,
        saved=(low, float(saved.mean()), high),
        per_1000_teacher=1000 * teacher,
        per_1000_student=1000 * arm,
    )


def _guardrails(
    task: TaskSection, pairs: Sequence[LoggedPair], given: Sequence[bool]
) -> tuple[Reading, ...]:
    """The plan's guardrails over the log, as if it came in again."""
    plan = task.experiment
    watch = Guardrails(plan.guardrails, plan.alpha, "shadow", 1.0)
    for pair, way in zip(pairs, given, strict=True):
        shared = {"task": "", "tenant": "", "unit": pair.unit, "at": pair.at, "arm": "shadow"}
        seen = {**shared, "id": pair.request, "stage": 0, "version": 0, "upstream": ""}
        full = pair.teacher_usd
        watch.take(
            Served(
                **seen,
                variant="teacher",
                latency_ms=pair.teacher_ms,
                cost_usd=full,
                teacher_cost_usd=full,
                status=200,
            )
        )
        watch.take(
            Served(
                **seen,
                variant="student",
                latency_ms=pair.student_ms + (pair.teacher_ms if way else 0.0),
                cost_usd=pair.student_usd + (full if way else 0.0),
                teacher_cost_usd=full,
                status=502 if pair.failed else 200,
                shadow_of=pair.request,
            )
        )
    return watch.readings()


def _notes(
    task: TaskSection, pairs: Sequence[LoggedPair], readings: Sequence[Reading]
) -> tuple[str, ...]:
    found = [
        f"{one.name} as logged would roll the student back at once"
        for one in readings
        if one.tripped
    ]
    evidence = task.experiment.evidence
    if evidence is not None and evidence.source == "feedback":
        found.append(
            "feedback is of seen answers alone: the scores of the log's pairs stand for it, and "
            "every request is taken to get some"
        )
    if task.fallback.threshold is not None and any(one.confidence is None for one in pairs):
        found.append("pairs without a confidence are taken to be shown, whatever the threshold")
    if task.experiment.approval:
        found.append("approvals are taken to come at once")
    if not any(one.teacher_usd for one in pairs):
        found.append("the teacher's price is 0 in the log: set upstreams.NAME.price")
    return tuple(found)
