"""What a plan would do with logged traffic: when it decides, how often wrongly, and what it saves.

The log's units are drawn with replacement, again and again, and each course of draws goes through
the plan with the tests that the gateway itself uses. Pure but for the seed. What it cannot know: a
future unlike the log, users who act on what they are shown, and outcomes that come late.

Shapes: U units, N units in the order in which they come, R repetitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stillhouse.core.anytime_margin import Floats, Margin
from stillhouse.core.anytime_replay import NEVER, Decided, Ints, Levels, replay_arms, replay_pairs
from stillhouse.core.records import Record
from stillhouse.serve.evidence import Rules
from stillhouse.serve.gateway_sections import ExperimentSection, TaskSection
from stillhouse.serve.logged_pairs import LoggedPair
from stillhouse.serve.policy import rules_of
from stillhouse.serve.records import ExperimentState
from stillhouse.serve.stages import at_stage

HOUR_S: Final = 3600.0
FEWEST_UNITS: Final = 30


class Units(NamedTuple):
    """The log's units: mean scores of their first hours, and how much they ask. [U] each."""

    student: Floats
    teacher: Floats
    requests: Floats


class Scale(NamedTuple):
    """How much is tried: requests of a stage at most, repetitions, requests a day, seed."""

    requests: int
    repetitions: int
    per_day: float
    seed: int


class StageForecast(Record):
    """One stage over all repetitions. Shares are of the repetitions that reached it."""

    stage: int
    kind: str
    share: float = Field(description="Of the traffic, to the student.")
    design: str | None
    reached: float = Field(description="Share of all repetitions.")
    advanced: float
    rolled_back: float
    undecided: float
    requests: tuple[float, float, float] | None = Field(
        description="Until it was decided: 10%, median, 90%."
    )
    days: float | None = Field(description="Median.")


class Course(NamedTuple):
    """Where each repetition ended, and how many requests each stage took. [R], [stages, R]"""

    last: Ints
    rolled_back: npt.NDArray[np.bool_]
    requests: Floats
    stages: tuple[StageForecast, ...]


def units_of(pairs: Sequence[LoggedPair], task: TaskSection, threshold: float | None) -> Units:
    """Units as the gateway counts them: the mean of their pairs' scores within a time from the
    first; with fallbacks in the student's arm."""
    plan = task.experiment
    hours = plan.evidence.unit_hours if plan.evidence is not None else 0.0
    within = 0.0 if plan.sticky == "request" else hours * HOUR_S
    by_unit: dict[str, list[LoggedPair]] = {}
    for pair in pairs:
        key = pair.request if plan.sticky == "request" else pair.unit
        by_unit.setdefault(key, []).append(pair)
    rows = []
    for group in by_unit.values():
        counted = [one for one in group if one.at <= group[0].at + within]
        counted = counted if within else counted[:1]
        student = [arm_score(one, task, threshold) for one in counted]
        teacher = [one.teacher for one in counted]
        rows.append((sum(student) / len(student), sum(teacher) / len(teacher), float(len(group))))
    return Units(*np.array(rows, dtype=np.float64).T)


def arm_score(pair: LoggedPair, task: TaskSection, threshold: float | None) -> float:
    """What the student's arm would have scored: the teacher's where it gives way."""
    return pair.teacher if gives_way(pair, task, threshold) else pair.student


def gives_way(pair: LoggedPair, task: TaskSection, threshold: float | None) -> bool:
    """Whether the teacher would have answered instead."""
    if pair.failed:
        return task.fallback.teacher_when_student_down
    return threshold is not None and pair.confidence is not None and pair.confidence < threshold


def course_of(
    units: Units, task: TaskSection, scale: Scale, weights: Floats | None = None
) -> Course:
    """The plan on `scale.repetitions` courses of drawn units, stage after stage.

    Args:
        weights: chances of the units to be drawn; None: all alike. [U]
    """
    plan, rng = task.experiment, np.random.default_rng(scale.seed)
    count = scale.repetitions
    state = ExperimentState(task="")
    last, back = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.bool_)
    running = np.ones(count, dtype=np.bool_)
    taken = np.full((len(plan.stages), count), np.nan)
    stages = []
    for number, stage in enumerate(plan.stages):
        state = state.model_copy(update=at_stage(state, plan.stages, number, 0.0))
        rules = rules_of(task, state)
        final = number + 1 == len(plan.stages)
        decided = _decided(_Draws(units, weights, rng), plan, rules, state, scale)
        least = max(stage.min_requests, stage.min_hours / 24 * scale.per_day)
        better = np.where(decided.better < NEVER, np.maximum(decided.better, least), np.inf)
        worse = np.where(decided.worse < NEVER, decided.worse.astype(np.float64), np.inf)
        if final:
            better = np.full(count, np.inf)
        fits = better <= scale.requests
        advances = running & fits & (better < worse)
        falls = running & (worse <= scale.requests) & (worse <= better)
        taken[number] = np.where(
            running, np.minimum(np.minimum(better, worse), float(scale.requests)), np.nan
        )
        last[running] = number
        back |= falls
        ended = np.where(advances | falls, taken[number], np.nan)[advances | falls]
        reached = int(running.sum())
        stages.append(
            StageForecast(
                stage=number,
                kind=stage.kind,
                share=state.share,
                design=rules.design,
                reached=reached / count,
                advanced=_share(advances, reached),
                rolled_back=_share(falls, reached),
                undecided=_share(running & ~advances & ~falls, reached),
                requests=_quantiles(ended),
                days=float(np.median(ended)) / scale.per_day if len(ended) else None,
            )
        )
        running = advances
    return Course(last, back, taken, tuple(stages))


def at_the_margin(units: Units, margin: Margin) -> Floats | None:
    """Chances of the units under which the mean slack is exactly 0, as near to alike as can be
    (exponential tilting); `None`: the log has none above or none below the margin. [U]"""
    slack = margin.slack(units.student, units.teacher)
    if not slack.min() < 0 < slack.max():
        return None

    def tilted(eta: float) -> Floats:
        logs = eta * slack
        chances: Floats = np.exp(logs - logs.max())
        chances /= chances.sum()
        return chances

    low, high = -1.0, 1.0
    while float(tilted(low) @ slack) > 0 and low > -1e4:
        low *= 2
    while float(tilted(high) @ slack) < 0 and high < 1e4:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if float(tilted(middle) @ slack) > 0:
            high = middle
        else:
            low = middle
    return tilted(low)  # at the margin or below it


class _Draws(NamedTuple):
    units: Units
    weights: Floats | None
    rng: np.random.Generator


def _decided(
    draws: _Draws, plan: ExperimentSection, rules: Rules, state: ExperimentState, scale: Scale
) -> Decided:
    """After how many requests of the stage each repetition is decided."""
    (units, weights, rng), count = draws, scale.repetitions
    if rules.design is None:
        return Decided(np.ones(count, dtype=np.int64), np.full(count, NEVER))
    weight = (
        weights if weights is not None else np.full(len(units.requests), 1 / len(units.requests))
    )
    mean_requests = float(weight @ units.requests)
    visible = _seen_share(plan, rules, state)
    number = max(1, int(scale.requests * visible / mean_requests))
    drawn = rng.choice(len(units.requests), size=(number, count), p=weights)
    levels = Levels(rules.alpha, rules.alpha_worse)
    student, teacher = units.student[drawn], units.teacher[drawn]
    if rules.design == "pairs":
        found = replay_pairs(student, teacher, rules.margin, levels)
    else:
        share = 1 / (1 + rules.teachers_per_student)
        treated = rng.random(drawn.shape) < share
        score = np.where(treated, student, teacher)
        found = replay_arms(treated, score, rules.margin, levels, share)
    asked = units.requests[drawn].cumsum(axis=0) / visible  # [N, R]
    return Decided(*(_in_requests(one, asked) for one in found))


def _seen_share(plan: ExperimentSection, rules: Rules, state: ExperimentState) -> float:
    """Share of requests whose units are evidence."""
    if rules.design == "arms":
        return 1.0
    if state.kind == "shadow":
        share = (1 - plan.teacher_only) * plan.shadow_share
    else:
        share = (1 - (1 - plan.teacher_only) * state.share) * plan.shadow_share
    return max(share, 1e-3)


def _in_requests(decided: Ints, asked: Floats) -> Ints:
    known = decided < NEVER
    rows = np.where(known, decided, 1) - 1
    requests = asked[rows, np.arange(asked.shape[1])]
    return np.where(known, np.ceil(requests).astype(np.int64), NEVER)


def _share(flags: npt.NDArray[np.bool_], of: int) -> float:
    return float(flags.sum()) / of if of else 0.0


def _quantiles(values: Floats) -> tuple[float, float, float] | None:
    if not len(values):
        return None
    low, middle, high = (float(one) for one in np.quantile(values, [0.1, 0.5, 0.9]))
    return low, middle, high
