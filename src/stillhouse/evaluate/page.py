"""report.html: one self-contained page that a manager understands and an engineer can check.

Chooses what is shown and in which words; numbers come from the report, plots from `plots`, layout
from the template. Everything is inline: the page asks no server for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from stillhouse.core.page import page_environment
from stillhouse.evaluate import summary
from stillhouse.evaluate.build import HistoryPoint, PageData
from stillhouse.evaluate.course import course_charts
from stillhouse.evaluate.plots import (
    Mark,
    Series,
    cost_chart,
    gate_chart,
    heat_map,
    line_chart,
)
from stillhouse.evaluate.report import Report
from stillhouse.evaluate.results import (
    STUDENT,
    TEACHER,
    Bin,
    CandidateResult,
    Prediction,
    SetResult,
)

MAX_EXAMPLES: Final = 15
MAX_TEXT: Final = 320
MAX_CLASSES: Final = 8  # a wider confusion matrix cannot be read; its worst pairs are listed
NAMES: Final = {
    "teacher": "Teacher",
    "student": "Student",
    "twin": "Hard-label twin",
    "tfidf": "TF-IDF baseline",
    "majority": "Majority",
}
CONFUSIONS: Final = (
    ("teacher_by_student", "teacher", "student"),
    ("truth_by_student", "truth", "student"),
    ("truth_by_teacher", "truth", "teacher"),
)


class Confusion(NamedTuple):
    """A confusion matrix: drawn where it is small enough, else its most frequent mistakes."""

    title: str
    svg: Markup | None
    worst: tuple[tuple[str, str, int], ...]


class Disagreement(NamedTuple):
    """A query on which teacher and student differ."""

    text: str
    reference: str
    teacher: str
    student: str


@cache
def environment() -> Environment:
    """Templates of this folder, with the filters that all pages use."""
    environment = page_environment("stillhouse.evaluate")
    environment.filters.update(
        share=summary.share,
        points=summary.points,
        usd=summary.usd,
        count=summary.count,
        times=summary.times,
        bytes=_bytes,
        ms=_ms,
    )
    return environment


def render_page(report: Report, data: PageData) -> str:
    """The whole page as HTML text."""
    main = report.sets["golden"] or report.sets["held_out"]
    assert main is not None, "a report has at least one set"
    return (
        environment()
        .get_template("report.html")
        .render(
            r=report,
            main=main,
            metric=summary.METRIC_NAMES.get(report.metric, report.metric),
            names=NAMES,
            verdict=verdict_sentence(report),
            gate=gate_chart(
                "Student against teacher",
                report.gate.difference.estimate,
                report.gate.difference.low,
                report.gate.difference.high,
                report.gate.margin,
            ),
            cost=_cost(report),
            curves=[*_curves(data.history), *course_charts(data.course)],
            course=data.course,
            calibration=_calibration(main),
            confusions=_confusions(main),
            disagreements=disagreements(data.predictions, main.labels),
            differing=sum(line.agreement < 1 for line in data.predictions),
            seconds=[(k, v) for k, v in report.seconds.items() if k != "total"],
            versions=sorted(report.versions.items()),
        )
    )


def verdict_sentence(report: Report) -> str:
    """The result in one or two sentences."""
    metric = summary.METRIC_NAMES.get(report.metric, report.metric)
    if report.reference == "teacher":
        agrees = summary.share(report.student.score)
        first = f"The student agrees with the teacher on {agrees} of queries"
    elif report.retention is None:
        first = f"The teacher's {metric} is 0, so nothing can be said of what the student keeps"
    else:
        first = f"The student keeps {summary.share(report.retention)} of the teacher's {metric}"
    parts = [first]
    if report.speed.ratio is not None:
        parts.append(_ratio_words(report.speed.ratio, "faster", "slower"))
    if report.cost.ratio is not None and report.cost.ratio > 0:
        parts.append("costs " + _share_words(report.cost.ratio) + " as much per query")
    if report.size.ratio is not None:
        parts.append(f"has {100 * report.size.ratio:.3g}% of its parameters")
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    may = "may" if report.gate.verdict == "pass" else "may not"
    return (
        f"{text}. It {may} replace the teacher at a margin of {100 * report.gate.margin:g} points."
    )


def _ratio_words(ratio: float, more: str, less: str) -> str:
    if ratio >= 1:
        return f"is {summary.times(ratio)} {more}"
    return f"is {summary.times(1 / ratio)} {less}"


def _share_words(ratio: float) -> str:
    return f"{100 * ratio:.2g}%" if ratio < 1 else summary.times(ratio)


def _cost(report: Report) -> Markup:
    metric = summary.METRIC_NAMES.get(report.metric, report.metric)
    marks = [
        Mark(NAMES[p.name], p.name, p.usd_per_1k, p.score.estimate, p.score.low, p.score.high)
        for p in report.candidates
    ]
    return cost_chart("Quality against cost", marks, "USD per 1,000 queries (log scale)", metric)


def _curves(history: Sequence[HistoryPoint]) -> list[tuple[str, Markup]]:
    wanted = (
        ("Training loss", "loss", "loss", "other"),
        ("Held-out divergence from the teacher", "held_out_divergence", "nats", "student"),
        ("Held-out cross-entropy", "held_out_cross_entropy", "nats", "student"),
        ("Held-out agreement with the teacher", "held_out_agreement", "share", "student"),
    )
    charts: list[tuple[str, Markup]] = []
    for title, field, unit, style in wanted:
        points = [(float(h.step), y) for h in history if (y := getattr(h, field)) is not None]
        if points:
            charts.append(
                (title, line_chart(title, [Series(title, style, points)], "optimizer step", unit))
            )
    return charts


def _calibration(main: SetResult) -> Markup | None:
    series = [
        Series(NAMES[name], name, [(b.confidence, b.accuracy) for b in curve])
        for name in (TEACHER, STUDENT)
        if (curve := _curve(main.candidates.get(name)))
    ]
    if not series:
        return None
    right = "share right" if main.reference == "truth" else "share that agree"
    return line_chart("Calibration", series, "confidence", right, diagonal=True, unit_square=True)


def _curve(result: CandidateResult | None) -> tuple[Bin, ...]:
    return () if result is None else result.reliability


def _confusions(main: SetResult) -> list[Confusion]:
    found: list[Confusion] = []
    for key, row_name, column_name in CONFUSIONS:
        rows = main.confusions.get(key)
        if rows is None:
            continue
        title = f"{row_name.capitalize()} against {column_name}"
        columns = [*main.labels, "unreadable"]
        mistakes = sorted(
            (
                (main.labels[i], columns[j], n)
                for i, row in enumerate(rows)
                for j, n in enumerate(row)
                if i != j and n
            ),
            key=lambda mistake: -mistake[2],
        )
        small = len(main.labels) <= MAX_CLASSES
        svg = heat_map(title, rows, main.labels, row_name, column_name) if small else None
        found.append(Confusion(title, svg, tuple(mistakes[:10])))
    return found


def disagreements(lines: Sequence[Prediction], labels: Sequence[str]) -> list[Disagreement]:
    """Queries on which teacher and student differ most; the surest of each other's errors first."""
    differing = [line for line in lines if line.agreement < 1]
    differing.sort(key=lambda line: (line.agreement, -_sureness(line), line.id))
    return [
        Disagreement(
            text=_cut(line.text),
            reference=_cut(line.reference),
            teacher=_said(line, TEACHER, labels),
            student=_said(line, STUDENT, labels),
        )
        for line in differing[:MAX_EXAMPLES]
    ]


def _sureness(line: Prediction) -> float:
    return sum(max(line.probabilities.get(name, (0.0,))) for name in (TEACHER, STUDENT))


def _said(line: Prediction, name: str, labels: Sequence[str]) -> str:
    """The answer, with the probability the model gave it."""
    answer = line.answers[name]
    belief = line.probabilities.get(name)
    if belief is None or answer not in labels:
        return _cut(answer)
    return f"{answer} ({100 * belief[list(labels).index(answer)]:.0f}%)"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _bytes(value: int | None) -> str:
    if value is None:
        return "unknown"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.3g} ms"
