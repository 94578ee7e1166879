"""Recipe section of `stillhouse tune`: what is searched, for how long, and what decides.

Knows keys of a recipe by name only: whether a value fits is found when it is put in its place.
"""

from __future__ import annotations

import json
from typing import Final, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from stillhouse.core.recipe_section import Section

LOG_FROM: Final = 10.0  # a range that spans so many times its low end is searched by factors
SEARCHED: Final = ("train", "student")
# What these decide is where, how and beside what a student is trained, not how good it is.
NOT_SEARCHED: Final = frozenset(
    {
        "student.head",
        "train.device",
        "train.distributed",
        "train.evals",
        "train.gradient_checkpointing",
        "train.hard_label_twin",
        "train.micro_batch_size",
        "train.precision",
        "train.signals",
    }
)


class RangeSection(Section):
    """Numbers from `low` to `high`."""

    low: float
    high: float
    log: bool | None = Field(
        default=None,
        description="Search by factors; null: where high is at least 10 times low, and low is "
        "above 0.",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> RangeSection:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.log and self.low <= 0:
            raise ValueError("log: needs a low above 0")
        return self

    @property
    def by_factors(self) -> bool:
        """Whether the range is searched on a logarithmic scale."""
        if self.log is not None:
            return self.log
        return self.low > 0 and self.high >= LOG_FROM * self.low


class SearchSection(Section):
    """How `stillhouse tune` looks for better settings (docs/tuning.md)."""

    search: dict[str, RangeSection | tuple[JsonValue, ...]] | None = Field(
        default=None,
        description="SECTION.KEY: {low, high} or a list of values, below train or student; a term "
        "is named by its kind (train.terms.hidden.weight). null: rate, T, alpha, and the weights, "
        "layer maps and LoRA rank that the recipe has.",
    )
    trials: int = Field(default=30, ge=1, description="Students to try, pruned ones among them.")
    budget_s: float | None = Field(
        default=None, gt=0, description="Seconds of training at most, over all calls together."
    )
    budget_usd: float | None = Field(
        default=None,
        gt=0,
        description="The same in USD, at prices.machine_usd_per_hour.",
    )
    split: float = Field(
        default=0.2,
        gt=0,
        lt=0.9,
        description="Share of the training examples that trials are judged on, by group; no trial "
        "trains on it.",
    )
    choose_by: Literal["divergence", "agreement"] = Field(
        default="divergence",
        description="Lowest student-teacher divergence (nats, T = 1; without soft targets: "
        "cross-entropy), or highest agreement, on the tuning split; of tag students: agreement.",
    )
    pruning: Literal["median", "none"] = Field(
        default="median",
        description="median: a trial that is worse than the median of finished ones at the same "
        "look stops.",
    )
    startup: int = Field(
        default=8, ge=1, description="Trials drawn at random before the sampler models them."
    )

    @field_validator("search")
    @classmethod
    def _searchable(
        cls, search: dict[str, RangeSection | tuple[JsonValue, ...]] | None
    ) -> dict[str, RangeSection | tuple[JsonValue, ...]] | None:
        if search is not None and not search:
            raise ValueError("names nothing to search; leave it out for the default")
        for key, values in (search or {}).items():
            section, _, rest = key.partition(".")
            if section not in SEARCHED or not rest:
                raise ValueError(f"{key}: must be a key below train or student")
            if any(key == held or key.startswith(f"{held}.") for held in NOT_SEARCHED):
                raise ValueError(f"{key}: is not searched: it does not make a student better")
            if isinstance(values, tuple):
                if len({json.dumps(value, sort_keys=True) for value in values}) < max(
                    2, len(values)
                ):
                    raise ValueError(f"{key}: needs at least two values, none of them twice")
        return search
