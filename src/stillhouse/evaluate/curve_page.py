"""curve.html and curve.svg, and the same study in a few lines for a terminal.

Chooses what is shown and in which words; the figures come from the study. Everything is inline: the
page asks no server for anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from markupsafe import Markup

from stillhouse.evaluate import summary
from stillhouse.evaluate.page import environment
from stillhouse.evaluate.studies import CurveStudy
from stillhouse.evaluate.study_chart import Axes, Bend, Dot, Level, study_chart


class CurveRow(NamedTuple):
    """One student in the terminal's table."""

    examples: str
    seed: str
    score: str
    retention: str
    linear: str
    gate: str
    seconds: str


def curve_chart(study: CurveStudy) -> Markup:
    """Score against training examples: students, the fit with its band, teacher, gate, ceiling."""
    dots = [
        Dot(
            p.examples, p.linear.estimate, p.linear.low, p.linear.high, "", "linear", "linear model"
        )
        for p in study.points
        if p.linear is not None
    ]
    dots += [
        Dot(
            p.examples,
            p.score.estimate,
            p.score.low,
            p.score.high,
            title=f"{p.examples:,} examples: {summary.share(p.score)}",
        )
        for p in study.means or study.points
    ]
    if study.means:
        dots += [
            Dot(p.examples, y := p.score.estimate, y, y, "", "each", f"{p.folder}: {100 * y:.1f}%")
            for p in study.points
        ]
    levels = [
        Level("teacher", study.teacher.estimate, "teacher"),
        Level("teacher less margin", study.teacher.estimate - study.margin, "gate"),
    ]
    line: list[Bend] = []
    if study.fit is not None:
        levels.append(Level("ceiling, by the fit", study.fit.ceiling.estimate, "ceiling"))
        line = [
            Bend(p.examples, p.score.estimate, p.score.low, p.score.high, p.beyond)
            for p in study.fit.drawn
        ]
    metric = metric_name(study)
    return study_chart(
        f"{metric} against training examples",
        dots,
        Axes("training examples (log scale)", metric, lambda n: f"{n:,.0f}"),
        line=line,
        levels=levels,
    )


def metric_name(study: CurveStudy) -> str:
    """The deciding metric in words."""
    return summary.METRIC_NAMES.get(study.metric, study.metric)


def render_curve(study: CurveStudy) -> str:
    """The whole page as HTML text."""
    return (
        environment()
        .get_template("curve.html")
        .render(
            c=study,
            metric=metric_name(study),
            chart=curve_chart(study),
            verdict=[_sentence(line) for line in study.verdict],
            notes=[_sentence(line) for line in (study.over, *study.notes) if line],
            linear=any(point.linear is not None for point in study.points),
            versions=sorted(study.versions.items()),
        )
    )


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def curve_rows(study: CurveStudy) -> Iterator[CurveRow]:
    """The students, fewest examples first."""
    for point in study.points:
        yield CurveRow(
            f"{point.examples:,}",
            str(point.seed),
            summary.share(point.score),
            "undefined" if point.retention is None else summary.share(point.retention),
            "" if point.linear is None else summary.share(point.linear),
            point.verdict,
            f"{point.train_seconds:,.0f} s",
        )


def curve_lines(study: CurveStudy) -> Iterator[str]:
    """What stands below the table."""
    for step in study.more:
        yield (
            f"{step.examples:,} examples: {step.gain:+.1f} points "
            f"({step.gain_low:+.1f} to {step.gain_high:+.1f}), {step.answers:,} more answers"
            + ("" if step.usd is None else f", {summary.usd(step.usd)}")
            + (f", {summary.usd(step.usd_per_point)} a point" if step.usd_per_point else "")
        )
    for mean in study.means:
        yield (
            f"{mean.examples:,} examples, mean of {mean.trainings} trainings: "
            f"{summary.share(mean.score)}; standard deviation between them "
            f"{100 * mean.deviation:.1f} points"
        )
    if study.over:
        yield f"note: {study.over}"
    yield from (f"note: {note}" for note in study.notes)
    first, *rest = study.verdict
    yield _sentence(first)
    yield from (f"- {line}" for line in rest)
