"""From findings to alerts: persistence, quiet time, and storms that become one alert.

A finding of a window is alerted where it was flagged in k of the last m windows in which it was
tested; a problem of the data at once. The same cause is alerted again only after a quiet time, or
where it grew. More alerts than an hour may have become one that counts them. Knows findings and
what was alerted before; knows no statistics, no file and no network.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from pydantic import Field, JsonValue

from stillhouse.core.loop_monitor import AlertsSection
from stillhouse.core.records import Record
from stillhouse.core.statistics import Interval
from stillhouse.monitor.drift_records import CauseFinding, DriftReport
from stillhouse.monitor.records import SEVERITIES, Alert, AlertKind, Finding, Severity

__all__ = ["Alert", "AlertState", "Raised", "Span", "drift_findings", "judge_findings"]

HOUR_S: Final = 3600.0
STORM: Final = "alert_storm"
CRITICAL_STRENGTH: Final = 3.0
SHOWN_KEYS: Final = 20

ACTIONS: Final[Mapping[AlertKind, str]] = {
    "input_shift": "look at the examples; if this traffic is here to stay: stillhouse retrain",
    "teacher_drift": "compare the canaries' answers; pin the teacher's version, or retrain "
    "against the new one",
    "student_decay": "check which student is served, and roll back: stillhouse registry rollback",
    "fidelity": "look at the examples; raise fallback.threshold meanwhile, and retrain",
    "accuracy": "look at the corrected answers; raise fallback.threshold meanwhile, and retrain",
    "calibration": "fit the gate anew with live labels: stillhouse calibrate --log",
    "data": "see docs/monitor.md",
}


class Alerted(Record):
    """The last alert of a cause."""

    at: float
    severity: Severity
    effect: float | None = None


class AlertState(Record):
    """What is remembered between windows and checks."""

    history: Mapping[str, tuple[bool, ...]] = Field(
        default_factory=dict, description="Last verdicts by key, oldest first."
    )
    active: Mapping[str, Severity] = Field(
        default_factory=dict, description="What holds after the newest window."
    )
    problems: Mapping[str, Severity] = Field(
        default_factory=dict, description="What held at the last check, beside its windows."
    )
    canaries: Mapping[str, Severity] = Field(
        default_factory=dict, description="What holds since canaries were last asked again."
    )
    alerted: Mapping[str, Alerted] = Field(default_factory=dict)
    raised: tuple[float, ...] = Field(default=(), description="Alerts of the last hour.")
    storm_at: float | None = None
    held_back: Mapping[str, int] = Field(
        default_factory=dict, description="Kinds of alerts that no summary has counted yet."
    )
    held_severity: Severity = "info"

    @property
    def severity(self) -> Severity | None:
        """The worst of what holds now; `None`: nothing does."""
        held = [*self.active.values(), *self.problems.values(), *self.canaries.values()]
        return max(held, key=SEVERITIES.index) if held else None


Source = Literal["active", "problems", "canaries"]


class Span(NamedTuple):
    """The window that findings are of. `number` 0: of no window."""

    task: str
    number: int
    since: float
    until: float


class Raised(NamedTuple):
    """Alerts, and what is remembered."""

    alerts: list[Alert]
    state: AlertState


def judge_findings(
    span: Span,
    findings: Sequence[Finding],
    state: AlertState,
    *,
    section: AlertsSection,
    persist: tuple[int, int],
    now: float,
    place: Source = "active",
) -> Raised:
    """The alerts that findings give now.

    Args:
        findings: all that there are of one source: a window (`active`), the check itself
            (`problems`), canaries.
        persist: k and m: flagged in k of the last m windows, the newest included.
    """
    needed, out_of = persist
    history = dict(state.history)
    holding: list[tuple[Finding, int, int]] = []
    for finding in findings:
        if finding.at_once:
            if finding.flagged:
                holding.append((finding, 1, 1))
            continue
        row = (*history.get(finding.key, ()), finding.flagged)[-out_of:]
        history[finding.key] = row
        if finding.flagged and sum(row) >= needed:
            holding.append((finding, sum(row), len(row)))
    now_active = {finding.key: finding.severity for finding, _, _ in holding}
    state = state.model_copy(update={"history": history, place: now_active})
    due = [one for one in holding if _is_due(one[0], state.alerted.get(one[0].key), section, now)]
    due.sort(key=lambda one: (-SEVERITIES.index(one[0].severity), one[0].key))
    raised = [at for at in state.raised if now - HOUR_S < at <= now]
    held, worst = Counter(state.held_back), state.held_severity
    quiet = section.quiet_hours * HOUR_S
    alerted = {key: one for key, one in state.alerted.items() if one.at <= now < one.at + quiet}
    alerts: list[Alert] = []
    for finding, flagged, tested in due:
        alerted[finding.key] = Alerted(at=now, severity=finding.severity, effect=finding.effect)
        if len(raised) < section.most_per_hour:
            raised.append(now)
            alerts.append(_alert(span, finding, (flagged, tested), section, now))
        else:
            held[finding.kind] += 1
            worst = max(worst, finding.severity, key=SEVERITIES.index)
    storm_at = state.storm_at
    # A clock that went back must not silence the summary for longer than an hour.
    if held and (storm_at is None or not now - HOUR_S < storm_at <= now):
        alerts.append(_storm(span, held, worst, [one[0].key for one in due], now))
        storm_at, held, worst = now, Counter(), "info"
    update = {
        "alerted": alerted,
        "raised": tuple(raised),
        "storm_at": storm_at,
        "held_back": dict(held),
        "held_severity": worst,
    }
    return Raised(alerts, state.model_copy(update=update))


def drift_findings(report: DriftReport) -> list[Finding]:
    """The causes that persist, as findings: drift has counted its windows itself."""
    if not report.alarm:
        return []
    return [_of_cause(one, report) for one in report.causes if one.cause != "none"]


def _of_cause(found: CauseFinding, report: DriftReport) -> Finding:
    kind: AlertKind = "data" if found.cause == "none" else found.cause
    harmful = kind != "input_shift" and found.strength >= CRITICAL_STRENGTH
    tests = [one for one in report.tests if one.name in found.tests]
    evidence: dict[str, JsonValue] = {
        "tests": [
            {
                "name": one.name,
                "measure": one.measure,
                "effect": one.effect,
                "least": one.least,
                "interval": [one.low, one.high],
                "p_corrected": one.p_corrected,
            }
            for one in tests
        ],
        **(dict(report.evidence) if found.cause == report.cause else {}),
    }
    return Finding(
        key=kind,
        kind=kind,
        cause=found.cause,
        severity="critical" if harmful else "warning",
        flagged=True,
        at_once=True,
        summary=found.summary,
        effect=found.strength,
        bound=1.0,
        p_adjusted=min((one.p_corrected for one in tests), default=None),
        evidence=evidence,
        examples=tuple(one.model_dump(mode="json", exclude_none=True) for one in found.examples),
        action=found.action,
    )


def shortened(
    examples: Iterable[Mapping[str, JsonValue]], section: AlertsSection
) -> tuple[Mapping[str, JsonValue], ...]:
    """So many examples as an alert may have, each text cut to its length."""
    return tuple(
        {
            name: _cut(value, section.example_chars) if isinstance(value, str) else value
            for name, value in example.items()
        }
        for example in list(examples)[: section.examples]
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _is_due(finding: Finding, last: Alerted | None, section: AlertsSection, now: float) -> bool:
    if last is None or not last.at <= now < last.at + section.quiet_hours * HOUR_S:
        return True
    if SEVERITIES.index(finding.severity) > SEVERITIES.index(last.severity):
        return True
    if finding.effect is None or last.effect is None:
        return False
    return abs(finding.effect) >= section.grew * abs(last.effect) > 0


def _alert(
    span: Span, finding: Finding, counts: tuple[int, int], section: AlertsSection, now: float
) -> Alert:
    evidence: dict[str, JsonValue] = {
        "effect": finding.effect,
        "bound": finding.bound,
        "interval": _ends(finding.interval),
        "reference": _ends(finding.reference),
        "p_adjusted": finding.p_adjusted,
        "windows": list(counts),
        "window": span.number,
        **finding.evidence,
    }
    return Alert(
        id=alert_id(span, finding.key, now),
        at=now,
        task=span.task,
        kind=finding.kind,
        cause=finding.cause,
        severity=finding.severity,
        summary=finding.summary,
        evidence={name: value for name, value in evidence.items() if value is not None},
        examples=shortened(finding.examples, section),
        action=finding.action or ACTIONS[finding.kind],
        window=(span.since, span.until),
        key=finding.key,
    )


def _storm(
    span: Span, held: Counter[str], worst: Severity, keys: Sequence[str], now: float
) -> Alert:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(held.items()))
    return Alert(
        id=alert_id(span, STORM, now),
        at=now,
        task=span.task,
        kind="data",
        cause=STORM,
        severity=worst,
        summary=f"{held.total()} more alerts within an hour: {counts}",
        evidence={
            "held_back": dict(held),
            "causes": list(keys[-SHOWN_KEYS:]),
            "window": span.number,
        },
        action="see the findings of the newest windows in windows.jsonl; one cause, such as an "
        "outage or another student, may be behind all of them",
        window=(span.since, span.until),
        key=STORM,
    )


def alert_id(span: Span, key: str, now: float) -> str:
    """The same for the same cause in the same window; of a check's own problems, by its time."""
    when = str(span.number) if span.number else repr(now)
    text = f"{span.task}\n{key}\n{when}"
    return "a-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _ends(interval: Interval | None) -> JsonValue:
    return None if interval is None else dict(interval.to_json())
