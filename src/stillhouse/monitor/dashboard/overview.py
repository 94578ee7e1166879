"""The first page's figures: money, the student's share, quality against the margin, health, alerts.

Reads sums, never the requests themselves. Knows no HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from stillhouse.core.live_pages import Hour
from stillhouse.monitor.dashboard.shown import AlertShown, ExperimentShown, WindowShown
from stillhouse.monitor.dashboard.sources import Sources

HOUR_S: Final = 3600.0
DAY_H: Final = 24
RECENT_S: Final = 7 * 24 * HOUR_S
LATENCIES: Final = 200
SHOWN: Final = 12  # alerts
SICK: Final = 0.05  # of requests that failed
IDLE: Final = "no requests in the last day"
_RANK: Final = {"critical": 0, "warning": 1, "info": 2}
State = Literal["good", "note", "bad"]


class Money(NamedTuple):
    """What the clients' requests would have cost with the teacher alone, and what they cost."""

    requests: int
    teacher_usd: float
    spent_usd: float

    @property
    def saved_usd(self) -> float:
        """Shadow answers are paid too: before the student answers anybody it is below zero."""
        return self.teacher_usd - self.spent_usd


class Health(NamedTuple):
    """Whether requests are answered."""

    state: State
    words: str
    failed: float | None
    p95_ms: float | None


class TaskLine(NamedTuple):
    """One task."""

    task: str
    money: Money
    share: float | None
    fell_back: float | None
    quality: str
    quality_state: State
    experiment: ExperimentShown | None
    health: Health
    alerts: int


class Overview(NamedTuple):
    """All of it. `more`: alerts that are open beside the gravest, which are shown."""

    money: Money
    share: float | None
    lines: tuple[TaskLine, ...]
    alerts: tuple[AlertShown, ...]
    more: int
    health: Health


def overview(sources: Sources, now: float) -> Overview:
    """Everything, now; blocks.

    Args:
        now: Unix seconds.
    """
    totals = sources.usage.totals()
    day = sources.usage.hours(None, int(now // HOUR_S) - DAY_H + 1)
    experiments = sources.experiments.now()
    alerts: list[AlertShown] = []
    lines = []
    for task in sources.tasks:
        own = open_alerts(sources, task, now)
        alerts += own
        recent = [one for one in day if one.task == task]
        experiment = experiments.get(task)
        quality, state = quality_of(experiment)
        lines.append(
            TaskLine(
                task=task,
                money=money_of([one for one in totals if one.task == task]),
                share=share_of(recent),
                fell_back=fallback_of(recent),
                quality=quality,
                quality_state=state,
                experiment=experiment,
                health=health_of(recent, sources.usage.latencies(task, LATENCIES), experiment),
                alerts=len(own),
            )
        )
    known = [one for one in totals if one.task in sources.tasks]
    shown = [one for one in day if one.task in sources.tasks]
    alerts.sort(key=lambda one: (_RANK.get(one.severity, 1), -one.at))
    return Overview(
        money=money_of(known),
        share=share_of(shown),
        lines=tuple(lines),
        alerts=tuple(alerts[:SHOWN]),
        more=max(0, len(alerts) - SHOWN),
        health=together(lines, shown),
    )


def money_of(hours: Sequence[Hour]) -> Money:
    """Sums of money."""
    seen = [one for one in hours if not one.shadow]
    return Money(
        sum(one.requests for one in seen),
        sum(one.teacher_cost_usd for one in seen),
        sum(one.cost_usd for one in hours),
    )


def share_of(hours: Sequence[Hour]) -> float | None:
    """Of the clients' requests, those that the student answered."""
    seen = [one for one in hours if not one.shadow]
    whole = sum(one.requests for one in seen)
    return sum(one.requests for one in seen if one.variant == "student") / whole if whole else None


def fallback_of(hours: Sequence[Hour]) -> float | None:
    """Of the requests that the student was to answer, those that another answered instead."""
    seen = [one for one in hours if not one.shadow]
    fell = sum(one.fell_back for one in seen)
    students = sum(one.requests - one.fell_back for one in seen if one.variant == "student")
    return fell / (fell + students) if fell + students else None


def health_of(
    hours: Sequence[Hour], latencies: Sequence[float], experiment: ExperimentShown | None
) -> Health:
    """From the last day's sums and the newest latencies."""
    seen = [one for one in hours if not one.shadow]
    whole = sum(one.requests for one in seen)
    failed = sum(one.failed for one in seen) / whole if whole else None
    ordered = sorted(latencies)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))] if ordered else None
    if failed is not None and failed > SICK:
        return Health("bad", "requests fail", failed, p95)
    if experiment is not None and experiment.killed:
        return Health("note", "kill switch on: the teacher answers all", failed, p95)
    if failed is None:
        return Health("note", IDLE, failed, p95)
    return Health("good", "answering", failed, p95)


def together(lines: Sequence[TaskLine], hours: Sequence[Hour]) -> Health:
    """Of all tasks: a task that nobody asked does not count."""
    asked = [one.health for one in lines if one.health.failed is not None]
    if not asked:
        return Health("note", IDLE, None, None)
    order = {"bad": 0, "note": 1, "good": 2}
    worst = min(asked, key=lambda one: order[one.state])
    seen = [one for one in hours if not one.shadow]
    failed = sum(one.failed for one in seen) / sum(one.requests for one in seen)
    slowest = max(one.p95_ms or 0.0 for one in asked)
    return Health(worst.state, worst.words, failed, slowest)


def quality_of(experiment: ExperimentShown | None) -> tuple[str, State]:
    """Quality against the margin, in words."""
    if experiment is None or not experiment.has_student:
        return "no student", "note"
    numbers = experiment.numbers
    if numbers is None or numbers.student is None or numbers.teacher is None:
        return "not known yet", "note"
    said = f"student {100 * numbers.student:.1f}%, teacher {100 * numbers.teacher:.1f}%"
    if numbers.worse or any(one.tripped for one in numbers.guardrails):
        return f"{said}: worse than allowed", "bad"
    if numbers.better:
        return f"{said}: within the margin", "good"
    return f"{said}: not shown yet", "note"


def open_alerts(sources: Sources, task: str, now: float) -> list[AlertShown]:
    """Alerts of the last week that the newest window does not contradict, newest of each cause."""
    if sources.watch is None:
        return []
    found: dict[str, AlertShown] = {}
    for one in sources.watch.alerts(task):
        if now - one.at <= RECENT_S:
            found[one.key or f"{one.kind} {one.cause}"] = one
    if not found:
        return []
    windows = sources.watch.windows(task)
    newest = windows[-1] if windows else None
    return [one for one in found.values() if newest is None or is_open(one, newest)]


def is_open(alert: AlertShown, newest: WindowShown) -> bool:
    """Whether what was alerted is still seen, or nothing was judged since."""
    if newest.until <= alert.window[1]:
        return True
    flagged = {name for one in newest.findings if one.flagged for name in (one.key, one.cause)}
    drift = newest.drift
    if drift is not None:
        flagged |= {one.cause for one in (*drift.causes, *drift.suspected)} | {drift.cause}
    return not flagged.isdisjoint({alert.key, alert.cause} - {""})
