"""What watching writes: figures of a window, what was found in them, alerts.

Frozen records, one a line of windows.jsonl and alerts.jsonl. Knows no file and no statistics.

Words: a figure's `population` says which answers it is of. `teacher_only` is the slice that the
teacher always answers: assigned by hash, so the unbiased sample of the traffic. `shadow` are the
other pairs of units that were drawn by hash to be answered by the teacher. `random` is both
together. `fallback` are answers that the student was not sure of, which says nothing of the rest.
`judged` are answers that somebody judged, who chose which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field, JsonValue

from stillhouse.core.records import Record
from stillhouse.core.statistics import Interval
from stillhouse.monitor.drift_records import DriftReport

AlertKind = Literal[
    "input_shift",
    "teacher_drift",
    "student_decay",
    "fidelity",
    "accuracy",
    "calibration",
    "data",
]
Severity = Literal["info", "warning", "critical"]
Population = Literal[
    "teacher_only", "shadow", "random", "fallback", "judged", "student", "teacher", "all"
]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "critical")


class Figure(Record):
    """One number of a window with its interval."""

    name: str = Field(
        description="agreement, similarity, divergence, accuracy, ece, brier, overconfidence, "
        "latency_p50_ms, latency_p95_ms, error_rate, fallback_rate, student_share."
    )
    population: Population
    interval: Interval | None = Field(
        default=None, description="None: too few samples to say anything; `note` says how many."
    )
    n: int = Field(default=0, ge=0, description="Samples.")
    units: int = Field(default=0, ge=0, description="Users, conversations or requests behind them.")
    windows: int = Field(
        default=1, ge=1, description="Windows that were pooled, this one last, to have enough."
    )
    unit: Literal["share", "nats", "ms", "score"] = "share"
    note: str = ""


class SegmentFigures(Record):
    """Figures of one part of the traffic."""

    by: str = Field(description="language, cluster, tenant or label.")
    name: str
    requests: int = Field(ge=0)
    figures: tuple[Figure, ...] = ()
    note: str = Field(default="", description="Said where the segment is too small to be judged.")


class Finding(Record):
    """One thing that was tested in a window, or one problem of its data."""

    key: str = Field(description="Names the test over all windows: kind, cause, segment.")
    kind: AlertKind
    cause: str
    severity: Severity = "warning"
    flagged: bool = Field(description="Beyond the bound, after correction for all tests.")
    summary: str
    effect: float | None = Field(default=None, description="By how much, in the figure's unit.")
    bound: float | None = Field(default=None, description="Effect from which it matters.")
    interval: Interval | None = Field(default=None, description="Of the live figure.")
    reference: Interval | None = None
    p_value: float | None = Field(default=None, ge=0, le=1, description="Before correction.")
    p_adjusted: float | None = Field(default=None, ge=0, le=1)
    at_once: bool = Field(default=False, description="Raised without waiting for more windows.")
    evidence: Mapping[str, JsonValue] = Field(default_factory=dict)
    examples: tuple[Mapping[str, JsonValue], ...] = ()
    action: str = ""


class WindowReport(Record):
    """One window of one task, judged once."""

    task: str
    number: int = Field(ge=1)
    since: float = Field(description="Unix seconds of its first request (or its begin), included.")
    until: float = Field(description="Unix seconds, left out.")
    judged_at: float
    requests: int = Field(ge=0)
    units: int = Field(default=0, ge=0)
    pairs: int = Field(default=0, ge=0, description="Requests that both answered.")
    outcomes: int = Field(default=0, ge=0, description="Answers that somebody judged.")
    student: str | None = Field(
        default=None, description="The student that the figures are of: the most frequent."
    )
    students: Mapping[str, int] = Field(default_factory=dict, description="Requests by student.")
    cost_usd: float = Field(default=0, ge=0)
    teacher_cost_usd: float = Field(
        default=0, ge=0, description="What the teacher alone would have cost."
    )
    figures: tuple[Figure, ...] = ()
    segments: tuple[SegmentFigures, ...] = ()
    findings: tuple[Finding, ...] = ()
    drift: DriftReport | None = Field(default=None, description="None: it was not tested.")
    notes: tuple[str, ...] = ()

    def figure(self, name: str, population: Population) -> Figure | None:
        """One of its figures."""
        for one in self.figures:
            if one.name == name and one.population == population:
                return one
        return None


class Alert(Record):
    """Something that a person, or the retraining, should act on."""

    id: str = Field(description="a- and 12 hex digits, of task, cause and window.")
    at: float = Field(description="Unix seconds at which it was raised.")
    task: str
    kind: AlertKind
    cause: str
    severity: Severity
    summary: str
    evidence: Mapping[str, JsonValue] = Field(
        default_factory=dict, description="Effect, interval, p after correction, windows."
    )
    examples: tuple[Mapping[str, JsonValue], ...] = Field(
        default=(), description="Redacted, truncated texts with their request ids."
    )
    action: str
    window: tuple[float, float] = Field(description="(since, until), Unix seconds.")
    key: str = Field(default="", description="The finding's key: the same cause has the same.")
