"""frontier.html and frontier.svg, and the same study in a few lines for a terminal.

Chooses what is shown and in which words; the figures come from the study. Everything is inline: the
page asks no server for anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from markupsafe import Markup

from stillhouse.evaluate import summary
from stillhouse.evaluate.page import environment
from stillhouse.evaluate.studies import DraftedTeacher, FrontierStudy, SizedStudent
from stillhouse.evaluate.study_chart import Axes, Bend, Dot, Level, study_chart


class FrontierRow(NamedTuple):
    """One student in the terminal's table."""

    name: str
    parameters: str
    score: str
    retention: str
    gate: str
    speed: str
    cost: str
    size: str


def frontier_chart(study: FrontierStudy) -> Markup:
    """Score against USD per 1,000 queries: students and teacher. Where no cost is known: against
    parameters."""
    priced = all(one.usd_per_1k for one in study.students)

    def x_of(one: SizedStudent) -> float:
        return float((one.usd_per_1k if priced else one.parameters) or 1)

    dots = [
        Dot(
            x_of(one),
            one.score.estimate,
            one.score.low,
            one.score.high,
            one.name,
            _style(study, one),
            f"{one.name}: {summary.share(one.score)}",
        )
        for one in study.students
    ]
    dots += _each(study, x_of)
    x = study.teacher_usd_per_1k if priced else study.teacher_parameters
    if x:
        t = study.teacher
        dots.append(Dot(float(x), t.estimate, t.low, t.high, "teacher", "big"))
    t = study.teacher
    dots += [
        Dot(
            one.usd_per_1k,
            t.estimate,
            t.low,
            t.high,
            one.name,
            "big",
            f"{one.name}: the teacher's answers, {summary.times(_speedup(one))} as fast, one at a "
            "time",
        )
        for one in study.drafted
        if priced and one.lossless and one.usd_per_1k
    ]
    metric = summary.METRIC_NAMES.get(study.metric, study.metric)
    return study_chart(
        f"{metric} against {'cost' if priced else 'parameters'}",
        dots,
        Axes("USD per 1,000 queries (log scale)", metric, _usd_tick)
        if priced
        else Axes("parameters (log scale)", metric, summary.count),
        levels=[Level("teacher less margin", study.teacher.estimate - study.margin, "gate")],
    )


def size_chart(study: FrontierStudy) -> Markup | None:
    """Score against parameters with the fitted curve; `None` where there is none."""
    fit = study.fit
    if fit is None:
        return None
    dots = [
        Dot(
            float(one.parameters or 1),
            one.score.estimate,
            one.score.low,
            one.score.high,
            one.name,
            _style(study, one),
            f"{one.name}: {summary.share(one.score)}",
        )
        for one in study.students
    ]
    dots += _each(study, lambda one: float(one.parameters or 1))
    metric = summary.METRIC_NAMES.get(study.metric, study.metric)
    return study_chart(
        f"{metric} against parameters",
        dots,
        Axes("parameters (log scale)", metric, summary.count),
        line=[
            Bend(p.parameters, p.score.estimate, p.score.low, p.score.high, p.beyond)
            for p in fit.drawn
        ],
        levels=[
            Level("teacher", study.teacher.estimate, "teacher"),
            Level("ceiling, by the fit", fit.ceiling.estimate, "ceiling"),
        ],
    )


def _each(study: FrontierStudy, x_of: Callable[[SizedStudent], float]) -> list[Dot]:
    """The single trainings of students that are means of several."""
    return [
        Dot(x_of(one), y := made.score.estimate, y, y, "", "each", f"{made.folder}: {100 * y:.1f}%")
        for one in study.students
        for made in one.trainings
    ]


def _speedup(one: DraftedTeacher) -> float | None:
    return None if one.speedup is None else one.speedup.estimate


def _style(study: FrontierStudy, one: SizedStudent) -> Literal["", "fail", "chosen"]:
    if one.name == study.chosen:
        return "chosen"
    return "" if one.verdict == "pass" else "fail"


def _usd_tick(value: float) -> str:
    digits = max(0, 1 - math.floor(math.log10(value) + 1e-9))
    text = f"{value:.{digits}f}"
    return "$" + (text.rstrip("0").rstrip(".") if "." in text else text)


def render_frontier(study: FrontierStudy) -> str:
    """The whole page as HTML text."""
    chosen = next((one for one in study.students if one.name == study.chosen), None)
    return (
        environment()
        .get_template("frontier.html")
        .render(
            c=study,
            chosen=chosen,
            metric=summary.METRIC_NAMES.get(study.metric, study.metric),
            chart=frontier_chart(study),
            sizes=size_chart(study),
            repeats=max((len(one.trainings) for one in study.students), default=0),
            bigger=_sentence(study.bigger) if study.bigger else "",
            verdict=[_sentence(line) for line in study.verdict],
            notes=[_sentence(line) for line in (study.over, *study.notes) if line],
            versions=sorted(study.versions.items()),
        )
    )


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def frontier_rows(study: FrontierStudy) -> Iterator[FrontierRow]:
    """The teacher, then the students, largest first."""
    yield FrontierRow(
        "teacher",
        summary.count(study.teacher_parameters),
        summary.share(study.teacher),
        "",
        "",
        "",
        summary.usd(study.teacher_usd_per_1k),
        "",
    )
    for one in study.students:
        yield FrontierRow(
            one.name + (" *" if one.name == study.chosen else ""),
            summary.count(one.parameters)
            + ("" if one.share is None else f" ({100 * one.share:.1f}%)"),
            summary.share(one.score),
            "undefined" if one.retention is None else summary.share(one.retention),
            f"{one.verdict} ({100 * one.difference.low:+.1f})",
            summary.times(one.speedup),
            summary.usd(one.usd_per_1k),
            "unknown" if one.size_bytes is None else f"{one.size_bytes / 1e6:,.1f} MB",
        )


def frontier_lines(study: FrontierStudy) -> Iterator[str]:
    """What stands below the table."""
    for step in study.steps:
        yield f"{step.larger} over {step.smaller}: {summary.points(step.difference)}"
    for one in study.students:
        if one.trainings:
            yield (
                f"{one.name}: {len(one.trainings)} trainings, "
                + ", ".join(f"{100 * made.score.estimate:.1f}%" for made in one.trainings)
                + f"; standard deviation {100 * (one.deviation or 0):.1f} points"
            )
    for draft in study.drafted:
        gain = "unknown" if draft.speedup is None else f"{draft.speedup.estimate:.2f} times"
        kept = "" if draft.lossless else ", but its answers are not the teacher's"
        yield (
            f"{draft.name}: {gain} the teacher's speed in {draft.runtime}, one at a time, at "
            f"{summary.usd(draft.usd_per_1k)} per 1,000 queries{kept}"
        )
    if study.bigger:
        yield study.bigger
    yield from (f"left out: {name}: {why}" for name, why in study.left_out.items())
    if study.over:
        yield f"note: {study.over}"
    yield from (f"note: {note}" for note in study.notes)
    first, *rest = study.verdict
    yield _sentence(first)
    yield from (f"- {line}" for line in rest)
