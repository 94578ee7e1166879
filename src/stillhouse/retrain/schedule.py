"""When a cycle is due: by the clock, or by an alert whose remedy is to distil again.

A teacher that drifts is no such alert: to learn from it would be to learn the drift. Alerts are
read as JSON lines; one that cannot be read is passed over. Knows times and alerts; starts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.retrain.cycle_records import CycleLine

ALERTS: Final = "alerts.jsonl"
# What a new student mends, of monitor/alerts.py's kinds.
REMEDIED: Final = frozenset({"input_shift", "student_decay", "fidelity", "accuracy"})


class Alarm(NamedTuple):
    """An alert as far as it matters here."""

    id: str
    at: float
    kind: str
    summary: str


class Due(NamedTuple):
    """When the next cycle may begin (Unix seconds, `None`: nothing asks for one) and why."""

    at: float | None
    reason: str


def due(
    lines: Sequence[CycleLine],
    alarms: Sequence[Alarm],
    *,
    now: float,
    every_s: float | None,
    min_interval_s: float,
) -> Due:
    """When the next cycle may begin.

    Args:
        lines: the finished cycles, oldest first.
        alarms: of the task, oldest first; those from before the last cycle began are settled, those
            that are dated later than now are not heard yet.
        now: Unix seconds.
        every_s: time between starts; `None`: by alerts alone.
        min_interval_s: least time between two starts.
    """
    last = lines[-1].started_at if lines else None
    earliest = now if last is None else max(now, last + min_interval_s)
    new = [alarm for alarm in alarms if alarm.at <= now and (last is None or alarm.at > last)]
    if new:
        return Due(earliest, f"alert {new[-1].id} ({new[-1].kind})")
    if every_s is None:
        return Due(None, "no alert")
    return Due(earliest if last is None else max(earliest, last + every_s), "every")


def read_alarms(folder: Path) -> list[Alarm]:
    """The alerts of a task's folder that a new student would mend, oldest first."""
    path = folder / ALERTS
    if not path.exists():
        return []
    found: list[Alarm] = []
    with path.open("rb") as handle:
        for raw in handle:
            try:
                value = json.loads(raw)
                alarm = Alarm(
                    str(value["id"]),
                    float(value["at"]),
                    str(value["kind"]),
                    str(value.get("summary", "")),
                )
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a line that is being written
            if alarm.kind in REMEDIED:
                found.append(alarm)
    return sorted(found, key=lambda alarm: alarm.at)
