"""A report in a dozen lines for a terminal. Knows the report; prints nothing itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stillhouse.core.statistics import Interval
from stillhouse.evaluate.compressed import CompressedTable
from stillhouse.evaluate.drafted import Drafted
from stillhouse.evaluate.report import Report

METRIC_NAMES = {"accuracy": "accuracy", "field_f1": "field F1", "rouge_l": "ROUGE-L"}


def share(interval: Interval) -> str:
    """`97.1% [94.0, 99.3]`."""
    return f"{100 * interval.estimate:.1f}% [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(interval: Interval) -> str:
    """`-1.2 points [-3.0, +0.6]`."""
    # Adding 0 to a rounded -0.0 takes its sign away.
    estimate, low, high = (
        round(100 * value, 1) + 0.0 for value in (interval.estimate, interval.low, interval.high)
    )
    return f"{estimate:+.1f} points [{low:+.1f}, {high:+.1f}]"


def usd(value: float | None) -> str:
    """USD with enough digits to tell small costs apart; `unknown` for `None`."""
    if value is None:
        return "unknown"
    if value == 0:
        return "$0"
    if value >= 1:
        return f"${value:,.2f}"
    digits = 1 - math.floor(math.log10(value))  # two significant digits, never an exponent
    return f"${value:.{digits}f}"


def count(value: float | None) -> str:
    """`22.7M`, `135M`, `1,234`; `unknown` for `None`."""
    if value is None:
        return "unknown"
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}"


def times(value: float | None) -> str:
    """`12.3x`, `1,234x`; `unknown` for `None`."""
    if value is None:
        return "unknown"
    return f"{value:,.0f}x" if value >= 100 else f"{value:.3g}x"


def summary_rows(report: Report) -> Iterator[tuple[str, str]]:
    """(name, value) lines, most important first."""
    metric = METRIC_NAMES.get(report.metric, report.metric)
    against = "true answers" if report.reference == "golden" else "the teacher's answers"
    gate = report.gate
    yield "verdict", f"{gate.verdict} at a margin of {100 * gate.margin:g} points"
    yield "judged on", f"{report.n:,} samples against {against} ({metric})"
    yield "teacher", f"{share(report.teacher.score)}  {report.teacher.name}"
    yield "student", f"{share(report.student.score)}  {report.student.name}"
    if report.twin is not None:
        yield "hard-label twin", share(report.twin.score)
        yield "soft-target gain", points(report.twin.soft_target_gain)
    if report.baselines.tfidf is not None:
        yield "TF-IDF baseline", share(report.baselines.tfidf.score)
    if report.baselines.majority is not None:
        yield "majority", share(report.baselines.majority.score)
    yield "retention", "undefined" if report.retention is None else share(report.retention)
    yield "agreement", share(report.fidelity.agreement)
    if report.fidelity.divergence is not None:
        d = report.fidelity.divergence
        yield "divergence", f"{d.estimate:.3f} nats [{d.low:.3f}, {d.high:.3f}]"
    size = report.size.ratio
    yield (
        "parameters",
        f"{count(report.student.parameters)} of {count(report.teacher.parameters)}"
        + (f" ({100 * size:.1f}%)" if size is not None else ""),
    )
    yield (
        "speed",
        f"{count(report.speed.student_qps)} against {count(report.speed.teacher_qps)} queries/s "
        f"({times(report.speed.ratio)})",
    )
    yield (
        "cost per 1,000",
        f"{usd(report.cost.student_usd_per_1k)} against {usd(report.cost.teacher_usd_per_1k)}",
    )
    yield from compressed_rows(report.compress)
    yield from drafted_rows(report.speculate)
    yield "time and memory", f"{report.seconds['total']:,.0f} s, {report.peak_rss_mb:,.0f} MiB"
    for warning in report.warnings:
        yield "warning", warning


def compressed_rows(table: CompressedTable | None) -> Iterator[tuple[str, str]]:
    """A line an artefact, then the choice and what it is of the teacher."""
    if table is None:
        return
    for row in table.artefacts:
        yield "compressed", row.sentence
    for name, why in table.left_out.items():
        yield "left out", f"{name}: {why}"
    chosen = table.chosen
    if chosen is None:
        yield "smallest that passes", "none: the float student stays"
        return
    faster, smaller = table.chain
    against = [f"{times(chosen.size_ratio)} the float student's size"]
    if faster is not None:
        against.append(f"{times(faster)} the teacher's queries/s")
    if smaller is not None:
        against.append(
            f"{times(smaller)} smaller than the teacher"
            if smaller >= 1
            else f"{times(1 / smaller)} bigger than the teacher"
        )
    yield "smallest that passes", f"{chosen.name}, {', '.join(against)}"


def drafted_rows(found: Drafted | None) -> Iterator[tuple[str, str]]:
    """The student as a draft, in a line."""
    if found is None:
        return
    if not found.lossless:
        yield "as a draft", f"answers are not those of {found.target}: do not serve it"
        return
    gain = found.speedup
    speed = "at an unknown speed"
    if gain is not None:
        speed = f"{gain.estimate:.2f} [{gain.low:.2f}, {gain.high:.2f}] times as fast"
    yield (
        "as a draft",
        f"{found.target} answers {speed} in {found.runtime}, "
        f"{found.identical:,} of {found.compared:,} greedy answers identical"
        + ("" if found.faster else "; not shown to be faster"),
    )
