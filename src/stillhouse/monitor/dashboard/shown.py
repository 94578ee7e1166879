"""What pages show of experiments, windows, alerts and runs, read leniently.

Files of another version may lack a key or have one more: what is missing is not shown, and a page
is still a page. Knows no file and no HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from stillhouse.core.statistics import Interval
from stillhouse.evaluate.course import Course


class Shown(BaseModel):
    """Base: frozen, and deaf to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class AlertShown(Shown):
    """An alert (`monitor.records.Alert`)."""

    id: str = ""
    at: float = 0
    task: str = ""
    kind: str = ""
    cause: str = ""
    severity: str = "warning"
    summary: str = ""
    evidence: Mapping[str, JsonValue] = Field(default_factory=dict)
    examples: tuple[Mapping[str, JsonValue], ...] = ()
    action: str = ""
    window: tuple[float, float] = (0.0, 0.0)
    key: str = ""


class FigureShown(Shown):
    """One number of a window."""

    name: str = ""
    population: str = ""
    interval: Interval | None = None
    n: int = 0
    unit: str = "share"
    note: str = ""


class FindingShown(Shown):
    """One thing that was tested in a window."""

    key: str = ""
    kind: str = ""
    cause: str = ""
    severity: str = "warning"
    flagged: bool = False
    summary: str = ""
    effect: float | None = None
    bound: float | None = None
    p_adjusted: float | None = None
    action: str = ""


class DriftTestShown(Shown):
    """One test of a window against its reference."""

    name: str = ""
    family: str = ""
    measure: str = ""
    p_corrected: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    least: float | None = None
    signal: bool = False
    persists: bool = False


class DriftCauseShown(Shown):
    """A cause and what speaks for it."""

    cause: str = ""
    strength: float | None = None
    tests: tuple[str, ...] = ()
    summary: str = ""
    action: str = ""
    examples: tuple[Mapping[str, JsonValue], ...] = ()


class DriftShown(Shown):
    """What is known of a window's drift."""

    alarm: bool = False
    cause: str = "none"
    summary: str = ""
    action: str = ""
    examples: tuple[Mapping[str, JsonValue], ...] = ()
    causes: tuple[DriftCauseShown, ...] = ()
    suspected: tuple[DriftCauseShown, ...] = ()
    tests: tuple[DriftTestShown, ...] = ()


class WindowShown(Shown):
    """A window (`monitor.records.WindowReport`)."""

    task: str = ""
    number: int = 0
    since: float = 0
    until: float = 0
    requests: int = 0
    pairs: int = 0
    outcomes: int = 0
    student: str | None = None
    figures: tuple[FigureShown, ...] = ()
    findings: tuple[FindingShown, ...] = ()
    drift: DriftShown | None = None
    notes: tuple[str, ...] = ()

    def figure(self, name: str) -> FigureShown | None:
        """The first with an interval."""
        for one in self.figures:
            if one.name == name and one.interval is not None:
                return one
        return None


class StageShown(Shown):
    """A stage of an experiment's plan."""

    kind: str
    share: float = 0


class GuardrailShown(Shown):
    """One guardrail as it stands."""

    name: str
    limit: float
    student: float | None = None
    teacher: float | None = None
    n: int = 0
    tripped: bool = False


class NumbersShown(Shown):
    """One look at a stage."""

    at: float = 0
    stage: int = 0
    since: float = 0
    requests: int = 0
    values: int = 0
    student: float | None = None
    teacher: float | None = None
    bare: float | None = None
    slack: float | None = None
    low: float | None = None
    high: float | None = None
    equal: float | None = None
    better: bool = False
    worse: bool = False
    guardrails: tuple[GuardrailShown, ...] = ()


class DecisionShown(Shown):
    """One line of the audit log."""

    at: float
    action: str
    from_stage: int
    to_stage: int
    reason: str
    by: str = "policy"
    student: str | None = Field(default=None, description="A new student that it was about.")


class ExperimentShown(Shown):
    """One task's experiment."""

    task: str
    has_student: bool = True
    version: int = 0
    stage: int = 0
    kind: str = "off"
    share: float = 0
    since: float = 0
    killed: bool = False
    waiting: bool = False
    held: bool = False
    threshold: float | None = None
    student: str | None = None
    candidate: str | None = Field(default=None, description="A student beside the running one.")
    margin: float | None = None
    margin_kind: str = "relative"
    plan: tuple[StageShown, ...] = ()
    words: str = ""
    numbers: NumbersShown | None = None
    course: tuple[NumbersShown, ...] = ()
    decisions: tuple[DecisionShown, ...] = Field(default=(), description="Newest first.")


class CurveRowShown(Shown):
    """One step of history.json."""

    step: int
    epoch: float | None = None
    loss: float | None = None
    held_out_divergence: float | None = None
    held_out_cross_entropy: float | None = None
    held_out_agreement: float | None = None


class RunShown(Shown):
    """A run folder."""

    name: str = Field(description="As it is addressed: TASK/run or TASK/cycles/N.")
    task: str
    folder: str = Field(description="Seen from loop.yaml, for people.")
    created: str = ""
    verdict: str = Field(default="", description="Of its gate; empty: it has no report yet.")
    student: Interval | None = None
    teacher: Interval | None = None
    retention: Interval | None = None
    agreement: Interval | None = None
    metric: str = ""
    n: int = 0
    reasons: tuple[str, ...] = ()
    cost: Mapping[str, Any] = Field(default_factory=dict)
    history: tuple[CurveRowShown, ...] = ()
    course: Course | None = None
    problems: tuple[str, ...] = ()
