"""What `stillhouse tune` finds, as a strict record: tune.json.

Knows the shape of results; does not compute them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue

from stillhouse.core.statistics import Interval
from stillhouse.evaluate.results import Result, SetName


class TrialResult(Result):
    """One student that was tried."""

    number: int
    state: Literal["complete", "pruned", "failed", "unfinished"]
    own: bool = Field(description="The recipe as it is.")
    values: Mapping[str, JsonValue]
    value: float | None = Field(description="The deciding measure on the tuning split.")
    looks: tuple[tuple[int, float], ...] = Field(description="[look, measure] pairs.")
    seconds: float
    why: str | None = Field(description="Of pruned and failed ones.")
    facts: Mapping[str, Any] = Field(default_factory=dict)


class Spread(Result):
    """An estimate with a 5th and a 95th percentile over resampled trials."""

    estimate: float
    low: float
    high: float


class ParameterResult(Result):
    """One key that was searched."""

    key: str
    own: JsonValue
    best: JsonValue
    low: float | None = Field(description="Of a range; null for choices.")
    high: float | None
    log: bool
    choices: tuple[JsonValue, ...]
    importance: Spread | None = Field(
        description="Share of the variance of the finished trials' measures that it alone explains "
        "(fANOVA); null with too few finished trials."
    )
    good: tuple[JsonValue, ...] = Field(
        description="Among the best quarter of the finished trials: lowest and highest value of a "
        "range, or the choices by how often they occur."
    )
    at_edge: bool = Field(description="The best value lies at an end of its range.")


class HeldOutResult(Result):
    """The recipe as it is and the best trial on one set that no trial saw, paired."""

    name: SetName
    reference: Literal["truth", "teacher"]
    metric: str
    n: int
    teacher: Interval
    own: Interval | None
    best: Interval
    gain: Interval | None = Field(description="Best minus own, paired.")
    own_agreement: Interval | None
    best_agreement: Interval
    own_divergence: Interval | None
    best_divergence: Interval | None


class TuneResult(Result):
    """tune.json."""

    name: str
    task: str
    study: str
    created: str
    measure: str = Field(description="What decided; lower divergence or higher agreement.")
    train: int = Field(description="Examples a trial trains on.")
    tuning: int = Field(description="Examples that decide.")
    tuning_groups: int
    best: int
    own: int | None
    trials: tuple[TrialResult, ...]
    parameters: tuple[ParameterResult, ...]
    sets: tuple[HeldOutResult, ...]
    held_out_looks: int = Field(description="Best trials judged on the held-out sets so far.")
    seconds: float
    budget_seconds: float | None
    usd: float
    usd_per_hour: float
    stopped_by: Literal["trials", "budget"]
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    def trial(self, number: int) -> TrialResult:
        """One trial by its number."""
        return self.trials[number]
