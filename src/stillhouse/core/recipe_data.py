"""Recipe sections of the data: where queries come from, which answers are kept.

Knows no stage.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillhouse.core.recipe_quality import JudgeSection, ValidatorsSection
from stillhouse.core.recipe_section import Section

# In the order in which they are looked for.
RedactKind = Literal["key", "email", "iban", "card", "ip", "phone", "name"]


class SelectSection(Section):
    """Which queries of much traffic are asked: a diverse set instead of all or a random one."""

    n: int = Field(ge=1, description="How many queries to choose; all where there are fewer.")
    method: Literal["k_center", "facility_location", "random"] = Field(
        default="facility_location",
        description="facility_location: nearest to all of the traffic; k_center: farthest points, "
        "for rare inputs; random: by hash. Each within the clusters' quotas.",
    )
    embedder: str = Field(
        default="hashing",
        pattern=r"^(hashing|minilm|hf:.+)$",
        description="hashing (no download), minilm, or hf:ID_OR_PATH of a sentence encoder.",
    )
    clusters: int | None = Field(
        default=None, ge=1, description="Clusters of the traffic; null: sqrt(queries / 2)."
    )
    floor: int = Field(
        default=1,
        ge=0,
        description="Least number chosen of each cluster (all, of a smaller one); the rest in "
        "proportion to size.",
    )
    semantic_duplicate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Cosine from which two queries of a cluster are one; null: not looked for.",
    )
    semantic_keep: Literal["atypical", "typical", "first"] = Field(
        default="atypical",
        description="Which of two such queries stays: farther from the centre, nearer, or first.",
    )


class ExpandSection(Section):
    """New queries that the teacher writes from seeds, where the traffic is thin."""

    method: Literal["self_instruct", "evolve", "persona"] = Field(
        default="self_instruct",
        description="self_instruct: more like several seeds; evolve: a seed made harder, rarer or "
        "otherwise different; persona: a seed's topic as another person would write it.",
    )
    n: int = Field(ge=1, description="At most this many new queries in all.")
    per_cluster: int = Field(
        ge=1, description="Clusters with fewer queries than this are filled up to it."
    )
    clusters: int | None = Field(
        default=None,
        ge=1,
        description="Clusters of the traffic, where traffic.select made none; null: "
        "sqrt(queries / 2).",
    )
    embedder: str = Field(
        default="hashing",
        pattern=r"^(hashing|minilm|hf:.+)$",
        description="hashing (no download), minilm, or hf:ID_OR_PATH of a sentence encoder.",
    )
    rounds: int = Field(default=3, ge=1, le=20, description="Rounds of asking at most.")
    per_request: int = Field(default=5, ge=1, le=50, description="Queries asked for at a time.")
    seeds: int = Field(default=4, ge=1, le=20, description="Seeds shown (evolve, persona: one).")
    semantic_duplicate: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="Cosine from which a new query is one that is there already.",
    )
    max_chars: int = Field(default=4000, ge=1, description="Longest new query kept.")
    sampling_temperature: float = Field(default=1.0, ge=0, le=2)
    max_tokens: int = Field(default=1024, ge=1, description="Of a reply with its queries.")


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
    select: SelectSection | None = Field(
        default=None, description="Choose a diverse part of the traffic; null: use all of it."
    )
    expand: ExpandSection | None = Field(
        default=None,
        description="Let the teacher write queries where the traffic is thin; null: none.",
    )
    redact: tuple[RedactKind, ...] = Field(
        default=(),
        description="Personal data to replace by placeholders before anything is written; name "
        "needs the extra presidio.",
    )

    @model_validator(mode="after")
    def _limit_leaves_a_choice(self) -> TrafficSection:
        if self.select is not None and self.limit is not None and self.select.n > self.limit:
            raise ValueError(
                f"select.n ({self.select.n}) is above limit ({self.limit}): nothing is left to "
                "choose from; lower select.n or raise limit"
            )
        return self


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
    watch: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Label students: share of the labelled examples (at most 200, none below 30) "
        "that training looks at for accuracy and the teacher's mistakes, and never learns from; "
        "0: none.",
    )
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
