"""Watching one task: windows, bounds, segments, canaries, alerts. Strict; knows no file."""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.core.loop_drift import DriftSection
from stillhouse.core.recipe_section import Section

SegmentKind = Literal["language", "cluster", "tenant", "label"]
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class WindowSection(Section):
    """What is judged at a time. With both, a window ends at whichever comes first."""

    requests: int | None = Field(default=250, ge=20, description="Of one window.")
    hours: float | None = Field(default=None, gt=0, description="Of one window.")
    least: int = Field(
        default=100,
        ge=10,
        description="Samples that a figure is judged on; where a window has fewer, it is pooled "
        "with those before it.",
    )
    lookback: int = Field(default=20, ge=0, le=500, description="Windows pooled, at most.")
    settle_s: float = Field(
        default=300, ge=0, description="Requests younger than this may not be stored yet."
    )
    silent_hours: float = Field(default=24, gt=0, description="Without requests: a data problem.")
    first_days: float = Field(default=30, gt=0, description="That the first check looks back.")
    most: int = Field(
        default=20_000, ge=100, description="Requests held of a window; units are thinned by hash."
    )
    per_check: int = Field(default=200, ge=1, description="Windows of one check, at most.")

    @model_validator(mode="after")
    def _ends(self) -> WindowSection:
        if self.requests is None and self.hours is None:
            raise ValueError("give requests, hours or both")
        return self


class BoundsSection(Section):
    """What counts as worse. An interval must lie beyond the bound, not the estimate alone."""

    agreement_drop: float = Field(
        default=0.05, gt=0, lt=1, description="Below the reference's agreement, absolute."
    )
    accuracy_drop: float = Field(default=0.05, gt=0, lt=1, description="Likewise, of accuracy.")
    agreement_least: float | None = Field(
        default=None, gt=0, lt=1, description="Agreement it must have, whatever the reference had."
    )
    accuracy_least: float | None = Field(default=None, gt=0, lt=1)
    overconfidence: float = Field(
        default=0.05, gt=0, lt=1, description="Mean confidence above the share that is right."
    )
    alpha: float = Field(
        default=0.01, gt=0, lt=0.5, description="Chance that a window is flagged wrongly."
    )
    persist: tuple[int, int] = Field(
        default=(2, 3), description="Alert where so many of the last so many windows are flagged."
    )
    acceptable: float = Field(
        default=0.5, gt=0, le=1, description="Score from which a free text counts as right."
    )

    @model_validator(mode="after")
    def _k_of_m(self) -> BoundsSection:
        k, m = self.persist
        if not 1 <= k <= m <= 50:
            raise ValueError("persist must be [k, m] with 1 <= k <= m <= 50")
        return self


class SegmentsSection(Section):
    """Parts of the traffic that are judged on their own."""

    by: tuple[SegmentKind, ...] = Field(
        default=("tenant", "label"),
        description="language needs the extra of that name, cluster the task's run.",
    )
    least: int = Field(default=30, ge=10, description="Pairs; smaller ones are not judged.")
    most: int = Field(default=20, ge=1, le=200, description="Of a kind, the largest.")
    clusters: int = Field(default=8, ge=2, le=100)


class ReferenceSection(Section):
    """What windows are compared with."""

    source: Literal["auto", "run", "windows"] = Field(
        default="auto",
        description="The run's held-out set, or the first windows; auto: the run's where the task "
        "names one, for the student that is served then.",
    )
    windows: int = Field(default=4, ge=1, le=100, description="The first so many, of a student.")


class CanariesSection(Section):
    """Prompts whose answers were kept, asked again."""

    count: int = Field(default=100, ge=10, le=10_000)
    every_hours: float = Field(default=24, gt=0)
    budget_usd: float = Field(default=1, gt=0, description="Of one replay; also of freezing.")
    drop: float = Field(
        default=0.05, gt=0, lt=1, description="Change beyond the noise floor that matters."
    )
    student: bool = Field(default=True, description="The student answers them too.")


class AlertsSection(Section):
    """Where alerts go, and how many."""

    webhook_env: str | None = Field(
        default=None, description="Environment variable with the URL that gets alerts as JSON."
    )
    slack_env: str | None = Field(
        default=None, description="Environment variable with a URL that takes Slack's JSON."
    )
    timeout_s: float = Field(default=10, gt=0, le=120)
    quiet_hours: float = Field(
        default=24, ge=0, description="The same cause is alerted again after it, or if it grew."
    )
    grew: float = Field(default=1.5, gt=1, description="Times the effect that was alerted.")
    most_per_hour: int = Field(
        default=5, ge=1, le=1000, description="More become one alert that counts them."
    )
    examples: int = Field(default=3, ge=0, le=20, description="Texts with an alert.")
    example_chars: int = Field(default=200, ge=20, le=2000)

    @field_validator("webhook_env", "slack_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise ValueError("must be the name of a variable: put the URL in one, name it here")
        return value


class MonitorSection(Section):
    """Watching one task: windows, tests, canaries, alerts."""

    window: WindowSection = WindowSection()
    bounds: BoundsSection = BoundsSection()
    segments: SegmentsSection = SegmentsSection()
    reference: ReferenceSection = ReferenceSection()
    canaries: CanariesSection | None = CanariesSection()
    alerts: AlertsSection = AlertsSection()
    drift: DriftSection | None = Field(default=DriftSection(), description="null: not tested.")
