"""Texts leave alerts and canaries when their request left the log: for its user, or for its age.

Knows alerts, canaries and rows; what is deleted from the log is not decided here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import JsonValue

from stillhouse.core.live import LiveRows
from stillhouse.monitor.canaries import read_canaries, write_canaries
from stillhouse.monitor.drift_records import CauseFinding, DriftReport
from stillhouse.monitor.records import Alert


def gone(task: str, rows: LiveRows, alerts: Iterable[Alert]) -> dict[str, frozenset[str]]:
    """By alert, the requests of its examples that the log does not hold any more."""
    known: dict[tuple[float, str], bool] = {}
    found: dict[str, frozenset[str]] = {}
    for alert in alerts:
        lost = set()
        for example in alert.examples:
            request, at = example.get("request"), example.get("at")
            if not isinstance(request, str) or not isinstance(at, int | float):
                continue
            key = float(at), request
            if key not in known:
                known[key] = _is_held(rows, task, request, key[0])
            if not known[key]:
                lost.add(request)
        if lost:
            found[alert.id] = frozenset(lost)
    return found


def strike_canaries(folder: Path, task: str, rows: LiveRows, held: frozenset[str] | None) -> int:
    """Remove the canaries whose request left the log, or whose sample left the run; how many.

    Args:
        held: ids of the run's held-out samples; `None`: there is no run to ask.
    """
    frozen = read_canaries(folder)
    kept = []
    for one in frozen:
        if one.request is not None and one.request_at is not None:
            if _is_held(rows, task, one.request, one.request_at):
                kept.append(one)
        elif held is None or one.id in held:
            kept.append(one)
    if len(kept) < len(frozen):
        write_canaries(folder, kept)
    return len(frozen) - len(kept)


def _is_held(rows: LiveRows, task: str, request: str, at: float) -> bool:
    return request in rows.ids(task, since=at, until=math.nextafter(at, math.inf))


def without_texts(report: DriftReport) -> DriftReport:
    """A drift report as it is kept with its window: examples stand in alerts alone."""

    def bare(causes: tuple[CauseFinding, ...]) -> tuple[CauseFinding, ...]:
        return tuple(one.model_copy(update={"examples": ()}) for one in causes)

    return report.model_copy(
        update={
            "examples": (),
            "causes": bare(report.causes),
            "suspected": bare(report.suspected),
        }
    )


def placed(
    examples: Iterable[Mapping[str, JsonValue]], times: Mapping[str, float]
) -> tuple[Mapping[str, JsonValue], ...]:
    """Drift's examples under the names that alerts' have: a request with its time, or a canary.

    Args:
        times: `at` of the window's requests.
    """
    found = []
    for example in examples:
        rest = {name: value for name, value in example.items() if name != "id"}
        name = str(example.get("id", ""))
        if name in times:
            found.append({"request": name, "at": times[name], **rest})
        else:
            found.append({"canary": name, **rest})
    return tuple(found)
