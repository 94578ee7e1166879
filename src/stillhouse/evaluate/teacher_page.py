"""compare.html, and the same comparison in a few lines for a terminal.

Chooses what is shown and in which words; the figures come from the comparison. Everything is
inline: the page asks no server for anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import yaml

from stillhouse.core.statistics import Interval
from stillhouse.evaluate import summary
from stillhouse.evaluate.page import environment
from stillhouse.evaluate.plots import Mark, cost_chart
from stillhouse.evaluate.teacher_choice import JUDGED_BY, eligible, score_by
from stillhouse.evaluate.teachers import Difference, TeacherComparison, TeacherResult

PROBES: Final = {"tfidf": "Probe (TF-IDF)", "recipe": "Probe (recipe's student)"}


class Cell(NamedTuple):
    """One cell of a matrix: its text, how dark it is from 0 to 1, and a title for the pointer."""

    text: str
    shade: float
    title: str


class Matrix(NamedTuple):
    """A square table of names by names."""

    caption: str
    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def render_comparison(found: TeacherComparison) -> str:
    """The whole page as HTML text."""
    by = found.recommendation.by
    pairs = found.differences if by == "teacher" else found.probe_differences[by]
    return (
        environment()
        .get_template("compare.html")
        .render(
            c=found,
            r=found.recommendation,
            metric=metric_name(found),
            sentence=sentence(found),
            judged_by=JUDGED_BY[by],
            chart=_chart(found),
            probes=[(kind, PROBES[kind]) for kind in PROBES if kind in found.probe_differences],
            pairs=_against_best(found, pairs),
            families=_families(found),
            matrices=_matrices(found),
            section=section_text(found),
            versions=sorted(found.versions.items()),
        )
    )


def sentence(found: TeacherComparison) -> str:
    """The recommendation in one sentence."""
    r = found.recommendation
    result = found.teachers[r.teacher]
    score = score_by(result, r.by)
    whose = metric_name(found) if r.by == "teacher" else f"its probe student's {metric_name(found)}"
    text = f"Take {r.teacher} ({result.model}): {whose} {summary.share(score)}"
    if result.speed.usd_per_1k is not None:
        text += f", at {summary.usd(result.speed.usd_per_1k)} per 1,000 answers"
    if r.teacher != r.best:
        text += f"; {r.best} scores highest, but not significantly so"
    return text + "."


def metric_name(found: TeacherComparison) -> str:
    """The deciding metric in words."""
    return summary.METRIC_NAMES.get(found.metric, found.metric)


def section_text(found: TeacherComparison) -> str:
    """The recommended teacher section as YAML."""
    text: str = yaml.safe_dump(
        {"teacher": dict(found.recommendation.section)}, sort_keys=False, allow_unicode=True
    )
    return text


class Row(NamedTuple):
    """One teacher in the terminal's table."""

    name: str
    score: str
    against_best: str
    calibration: str
    cost: str
    latency: str
    probe: str


def table_rows(found: TeacherComparison) -> list[Row]:
    """The teachers, best first by the measure that decides."""
    r = found.recommendation
    pairs = found.differences if r.by == "teacher" else found.probe_differences[r.by]
    apart = {name: (interval, pair) for name, interval, pair in _against_best(found, pairs)}
    rows: list[Row] = []
    for name in _order(found):
        result = found.teachers[name]
        probe = result.probes.get("recipe") or result.probes.get("tfidf")
        ece = result.calibration_error
        latency = result.speed.latency_p50_ms
        rows.append(
            Row(
                name=name + (" *" if name == r.teacher else ""),
                score=summary.share(result.score),
                against_best=_apart(name, r.best, apart),
                calibration="" if ece is None else f"{100 * ece.estimate:.1f}%",
                cost=summary.usd(result.speed.usd_per_1k),
                latency="unknown" if latency is None else f"{latency:,.0f} ms",
                probe="" if probe is None else summary.share(probe.score),
            )
        )
    return rows


def _apart(name: str, best: str, apart: Mapping[str, tuple[Interval, Difference]]) -> str:
    if name == best:
        return "best"
    if name not in apart:
        return "no student"
    interval, pair = apart[name]
    return f"{summary.points(interval)} p={pair.p_holm:.2g}"


def closing_lines(found: TeacherComparison) -> list[str]:
    """What stands below the table."""
    lines: list[str] = []
    for one in found.complementarity:
        line = (
            f"at least one of {', '.join(one.of)} right: {summary.share(one.oracle)} "
            f"({summary.points(one.gain)} over {one.best})"
        )
        if one.all_agree is not None and one.score_where_all_agree is not None:
            line += (
                f"; all agree on {summary.share(one.all_agree)}, there "
                f"{summary.share(one.score_where_all_agree)}"
            )
        lines.append(line)
    if found.baseline is not None:
        lines.append(f"a linear model on the labels themselves: {summary.share(found.baseline)}")
    lines += [f"left out: {name}: {why}" for name, why in found.failed.items()]
    lines += [f"note: {note}" for note in found.notes]
    lines.append(sentence(found))
    lines += [f"- {reason}" for reason in found.recommendation.reasons]
    return lines


def _order(found: TeacherComparison) -> list[str]:
    """Best first by the measure that decides; those without it last."""
    by = found.recommendation.by
    named = eligible(found.teachers, by)
    named.sort(key=lambda name: -score_by(found.teachers[name], by).estimate)
    return [*named, *(name for name in found.teachers if name not in named)]


def _chart(found: TeacherComparison) -> object:
    by = found.recommendation.by
    marks = []
    for name in eligible(found.teachers, by):
        result = found.teachers[name]
        score = score_by(result, by)
        marks.append(
            Mark(
                name, _style(result), result.speed.usd_per_1k, score.estimate, score.low, score.high
            )
        )
    whose = metric_name(found) if by == "teacher" else f"probe student's {metric_name(found)}"
    return cost_chart("Quality against cost", marks, "USD per 1,000 answers (log scale)", whose)


def _style(result: TeacherResult) -> str:
    return "student" if result.members else "teacher"


def _against_best(
    found: TeacherComparison, pairs: Sequence[Difference]
) -> list[tuple[str, Interval, Difference]]:
    """Each teacher minus the best, of the measure that decides."""
    best = found.recommendation.best
    lines: list[tuple[str, Interval, Difference]] = []
    for name in _order(found):
        for pair in pairs:
            if {pair.a, pair.b} == {name, best} and name != best:
                d = pair.difference
                if pair.a == best:
                    d = Interval(estimate=-d.estimate, low=-d.high, high=-d.low, n=d.n)
                lines.append((name, d, pair))
    return lines


def _families(found: TeacherComparison) -> list[tuple[str, tuple[Difference, ...]]]:
    named = [("Their own answers", found.differences)]
    named += [(PROBES[kind], pairs) for kind, pairs in found.probe_differences.items()]
    return [(title, pairs) for title, pairs in named if pairs]


def _matrices(found: TeacherComparison) -> list[Matrix]:
    a = found.agreement
    if len(a.names) < 2:
        return []
    made = [Matrix("Agreement", a.names, _cells(a.agreement))]
    if a.kappa is not None:
        made.append(Matrix("Cohen's kappa", a.names, _cells(a.kappa, percent=False)))
    if a.both_wrong is not None:
        made.append(Matrix("Both wrong", a.names, _cells(a.both_wrong)))
    return made


def _cells(
    rows: Sequence[Sequence[float | None]], *, percent: bool = True
) -> tuple[tuple[Cell, ...], ...]:
    def cell(value: float | None) -> Cell:
        if value is None:
            return Cell("–", 0.0, "not defined")
        text = f"{100 * value:.1f}%" if percent else f"{value:.2f}"
        return Cell(text, min(1.0, max(0.0, value)), f"{value:.4f}")

    return tuple(tuple(cell(value) for value in row) for row in rows)
