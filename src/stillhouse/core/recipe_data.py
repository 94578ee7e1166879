"""Recipe sections of the data: where queries come from, which answers are kept.

Knows no stage.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillhouse.core.recipe_quality import JudgeSection, ValidatorsSection
from stillhouse.core.recipe_section import Section


class TrafficSection(Section):
    """Where queries come from."""

    path: str = Field(description="JSONL of queries: {'text': ...} or {'messages': [...]} a line.")
    labelled: str | None = Field(
        default=None,
        description="Small JSONL with true answers in 'label': checks and tunes the teacher.",
    )
    use_labelled: bool = Field(
        default=True,
        description="The labelled queries join the traffic; the student learns their true answers.",
    )
    golden: str | None = Field(
        default=None, description="Your curated test set with true answers; never trained on."
    )
    limit: int | None = Field(default=None, ge=1, description="Use at most this many queries.")


class DatasetSection(Section):
    """Which answers are kept, and how they are split."""

    min_chars: int = Field(default=1, ge=0, description="Shortest answer kept.")
    max_chars: int = Field(default=20_000, ge=1, description="Longest answer kept.")
    near_duplicate: float = Field(
        default=0.85,
        gt=0,
        le=1,
        description="Jaccard similarity of word 3-shingles; 1 turns it off.",
    )
    held_out: float = Field(default=0.1, gt=0, lt=0.9, description="Share held out, by group.")
    min_examples: int = Field(
        default=50, ge=2, description="Fewer accepted examples than this stop the run."
    )
    validators: ValidatorsSection = Field(default_factory=ValidatorsSection)
    consistency: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Least agreement among a query's samples: share of equal labels, of equal "
        "values in the least agreed field, or mean similarity of free texts.",
    )
    agreement: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Several teachers: least share of them that must give the kept answer.",
    )
    best_of: Literal["none", "likelihood", "judge"] = Field(
        default="none",
        description="Which of a query's samples is kept: the most agreed (none), the teacher's "
        "likeliest, or the judge's best.",
    )
    judge: JudgeSection | None = Field(
        default=None, description="A model that judges the answers first."
    )
    floor: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Least share of a cluster's queries that stay: below it, the best answers that "
        "only agreement or the judge rejected come back, marked.",
    )

    @model_validator(mode="after")
    def _selection_fits(self) -> DatasetSection:
        if self.min_chars > self.max_chars:
            raise ValueError("min_chars must not be above max_chars")
        if self.best_of == "judge" and self.judge is None:
            raise ValueError("best_of: judge needs the section dataset.judge")
        if self.judge is not None and self.judge.mode == "pairwise" and self.best_of != "judge":
            raise ValueError("judge.mode: pairwise only ranks samples: it needs best_of: judge")
        return self
