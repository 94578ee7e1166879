"""The newest window as Prometheus gauges, for the node exporter's textfile collector.

Knows a report and the exposition format; no server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from stillhouse.core.jsonl import void, write_atomic
from stillhouse.monitor.records import SEVERITIES, Severity, WindowReport

FILE: Final = "metrics.prom"
PREFIX: Final = "stillhouse_monitor_"
_HELP: Final = {
    "figure": "A figure of the newest window.",
    "figure_low": "Low end of its 95% interval.",
    "figure_high": "High end of its 95% interval.",
    "figure_samples": "Samples behind it.",
    "segment_figure": "A figure of a part of the newest window.",
    "segment_requests": "Requests of a part of the newest window.",
    "window_number": "Number of the newest window.",
    "window_since_seconds": "Begin of the newest window, Unix seconds.",
    "window_until_seconds": "End of the newest window, Unix seconds.",
    "window_requests": "Requests of the newest window.",
    "window_pairs": "Requests of the newest window that student and teacher both answered.",
    "cost_usd": "What the newest window's answers cost.",
    "teacher_cost_usd": "What the teacher alone would have cost for them.",
    "drift_alarm": "1: drift was found in the newest window.",
    "severity": "What holds now: 0 fine, 1 info, 2 warning, 3 critical.",
    "checked_at_seconds": "Time of the last check, Unix seconds.",
    "undelivered_alerts": "Alerts that a channel has not taken yet.",
}
Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]


def gauges(
    task: str,
    report: WindowReport | None,
    *,
    severity: Severity | None,
    checked_at: float,
    undelivered: int,
) -> str:
    """The text of the file."""
    own = {"task": task}
    samples: list[Sample] = [
        ("severity", own, 0 if severity is None else 1 + SEVERITIES.index(severity)),
        ("checked_at_seconds", own, checked_at),
        ("undelivered_alerts", own, undelivered),
    ]
    if report is not None:
        samples += _of_report(own, report)
    return "".join(_lines(samples))


def write_gauges(folder: Path, text: str) -> None:
    """Replace FOLDER/metrics.prom: a collector never reads half of it."""
    write_atomic(folder / FILE, lambda handle: void(handle.write(text)))


def _of_report(own: Labels, report: WindowReport) -> Iterator[Sample]:
    yield "window_number", own, report.number
    yield "window_since_seconds", own, report.since
    yield "window_until_seconds", own, report.until
    yield "window_requests", own, report.requests
    yield "window_pairs", own, report.pairs
    yield "cost_usd", own, report.cost_usd
    yield "teacher_cost_usd", own, report.teacher_cost_usd
    if report.drift is not None:
        yield "drift_alarm", own, float(report.drift.alarm)
    for figure in report.figures:
        labels = {**own, "name": figure.name, "population": figure.population}
        yield "figure_samples", labels, figure.n
        if figure.interval is not None:
            yield "figure", labels, figure.interval.estimate
            yield "figure_low", labels, figure.interval.low
            yield "figure_high", labels, figure.interval.high
    for segment in report.segments:
        labels = {**own, "by": segment.by, "segment": segment.name}
        yield "segment_requests", labels, segment.requests
        for figure in segment.figures:
            if figure.interval is not None:
                more = {**labels, "name": figure.name}
                yield "segment_figure", more, figure.interval.estimate


def _lines(samples: Iterable[Sample]) -> Iterator[str]:
    by_name: dict[str, list[tuple[Labels, float]]] = {}
    for name, labels, value in samples:
        by_name.setdefault(name, []).append((labels, value))
    for name, found in by_name.items():
        yield f"# HELP {PREFIX}{name} {_HELP[name]}\n# TYPE {PREFIX}{name} gauge\n"
        for labels, value in found:
            inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            yield f"{PREFIX}{name}{{{inside}}} {float(value)!r}\n"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
