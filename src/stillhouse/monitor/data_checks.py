"""Problems of the data: what makes figures say less than they seem to.

Each becomes a finding that is alerted at once, with what to do. Knows times and counts; reads no
log.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from stillhouse.core.live import LiveRow
from stillhouse.monitor.records import Finding, Severity
from stillhouse.monitor.samples import Samples

CLOCK_SLACK_S: Final = 60.0
TEXTLESS_SHARE: Final = 0.5
HOUR_S: Final = 3600.0

_ACTIONS: Final = {
    "no_traffic": "check that the gateway runs, that clients reach it, and that log.url is the "
    "database it writes",
    "empty_windows": "check the gateway, or make window.hours longer",
    "clock_backwards": "keep clocks by NTP on every machine that runs a gateway or this check",
    "clock_ahead": "correct the clock of the gateway that wrote them; they are judged once their "
    "time has come",
    "late_requests": "their windows were judged without them: check the gateways' clocks, and "
    "raise window.settle_s where answers take longer",
    "no_texts": "set log.sample: 1 in gateway.yaml, and see redactor_failed in the log's counts",
    "no_pairs": "let the gateway ask both: an experiment with evidence (seen: pairs) shadows the "
    "teacher-only slice; or raise experiment.teacher_only",
    "teacher_unreachable": "check the teacher's server, key and budget; canaries are asked again "
    "at the next check",
    "student_unopened": "check the student's path in gateway.yaml, and its runtime: stillhouse "
    "doctor",
    "canaries_budget": "raise monitor.canaries.budget_usd, or freeze fewer canaries",
    "reference_gone": "the log no longer holds the first windows: the next ones become the "
    "reference; name the student's run in loop.yaml to have one that stays",
    "undelivered": "check the URL in the variable that monitor.alerts names, and the receiver",
}


def problem(
    cause: str, summary: str, *, severity: Severity = "warning", effect: float | None = None
) -> Finding:
    """A problem of the data."""
    return Finding(
        key=f"data:{cause}",
        kind="data",
        cause=cause,
        severity=severity,
        flagged=True,
        at_once=True,
        summary=summary,
        effect=effect,
        action=_ACTIONS[cause],
    )


def of_clocks(now: float, checked_at: float, ahead: int, late: int) -> list[Finding]:
    """Clocks that disagree.

    Args:
        checked_at: by this machine's clock, of the last check.
        ahead: requests from the future.
        late: requests that came into windows after these were judged.
    """
    found = []
    if now < checked_at - CLOCK_SLACK_S:
        text = f"the last check was at {told(checked_at)}, which is {_long(checked_at - now)} ahead"
        found.append(problem("clock_backwards", f"{text}: this machine's clock went backwards"))
    if ahead:
        text = f"{ahead:,} requests are of the future, by this machine's clock"
        found.append(problem("clock_ahead", text, effect=float(ahead)))
    if late:
        text = f"{late:,} requests came into windows that were judged already"
        found.append(problem("late_requests", text, effect=float(late)))
    return found


def of_silence(now: float, newest: float | None, silent_hours: float) -> list[Finding]:
    """No request for too long. `newest`: of the last one, `None` where there is none at all."""
    if newest is None:
        return [problem("no_traffic", "the log holds no request of this task")]
    if now - newest <= silent_hours * HOUR_S:
        return []
    text = f"the last request came at {told(newest)}, {_long(now - newest)} ago"
    return [problem("no_traffic", text)]


def of_window(rows: Sequence[LiveRow], empties: int, samples: Samples) -> list[Finding]:
    """What a window lacks."""
    if not rows:
        many = f"{empties} windows" if empties > 1 else "a window"
        return [problem("empty_windows", f"{many} without a request")]
    found = []
    textless = samples.textless
    pairs = len(samples.pairs)
    if textless and textless >= TEXTLESS_SHARE * (textless + pairs):
        text = f"of {textless + pairs:,} pairs, {textless:,} have no texts to compare"
        found.append(problem("no_texts", text))
    elif not any(row.messages for row in rows):
        found.append(problem("no_texts", f"none of {len(rows):,} requests was kept with its text"))
    return found


def told(at: float) -> str:
    """A time for people, UTC."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return f"second {at:g}"


def _long(seconds: float) -> str:
    if seconds < 2 * HOUR_S:
        return f"{seconds / 60:.0f} minutes"
    return (
        f"{seconds / HOUR_S:.0f} hours" if seconds < 48 * HOUR_S else f"{seconds / 86_400:.0f} days"
    )
