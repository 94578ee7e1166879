"""Section `experiment.evidence` of gateway.yaml: what tells whether the student is good enough.

Strict like the rest. Knows no file and no server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from stillhouse.core.anytime_compare import Design
from stillhouse.core.recipe_section import Section
from stillhouse.core.tasks import Task
from stillhouse.serve.records import OutcomeKind

Source = Literal["scorer", "judge", "feedback"]
SAID: tuple[OutcomeKind, ...] = ("feedback", "corrected", "delayed")


class JudgeSection(Section):
    """A model that compares student and teacher, both orders asked."""

    upstream: str = Field(description="Name of an upstream; neither teacher nor student is best.")
    criteria: str | None = Field(default=None, description="What counts, in your own words.")
    explain: bool = Field(default=False, description="It reasons before its verdict.")
    share: float = Field(default=1, gt=0, le=1, description="Of the pairs that it is asked about.")
    concurrent: int = Field(default=4, ge=1, description="Questions at a time.")
    max_tokens: int = Field(default=16, ge=1)
    gold: Path | None = Field(
        default=None,
        description="JSONL of text (or messages), answer and good: its error is measured there.",
    )


class EvidenceSection(Section):
    """Scores of answers. With it stages advance and are rolled back; without it admins decide."""

    source: Source = Field(description="A task's scorer, a judge, or what clients say.")
    task: Task | None = Field(default=None, description="As in a recipe; for scorer and judge.")
    reference: Literal["teacher", "corrected"] = Field(
        default="teacher",
        description="What a scorer compares with: the teacher's answer, or one that clients sent.",
    )
    judge: JudgeSection | None = None
    outcomes: tuple[OutcomeKind, ...] = Field(
        default=SAID, min_length=1, description="What of clients counts, for source: feedback."
    )
    canary: Design | None = Field(
        default=None,
        description="pairs: the student is asked unseen beside the teacher at canary and full too; "
        "arms: seen answers of both are compared. None: arms for feedback, else pairs.",
    )
    unit_hours: float = Field(
        default=1,
        ge=0,
        description="A user counts once a stage: with the mean of their first so many hours.",
    )
    attempts: int = Field(
        default=1,
        ge=1,
        le=10,
        description="Times that it goes from the first stage on by itself; they share alpha.",
    )

    @model_validator(mode="after")
    def _fits(self) -> EvidenceSection:
        if self.source in ("scorer", "judge") and self.task is None:
            raise ValueError(f"source: {self.source} needs task: its kind, and labels or schema")
        if (self.source == "judge") != (self.judge is not None):
            raise ValueError("judge is given exactly where source is judge")
        if self.source == "feedback" and self.canary == "pairs":
            raise ValueError("nobody gives feedback on unseen answers: use canary: arms")
        if self.source != "feedback" and self.canary == "arms" and self.reference == "teacher":
            raise ValueError("canary: arms needs source: feedback, or reference: corrected")
        if self.source == "judge" and self.canary == "arms":
            raise ValueError("a judge compares two answers to one request: use canary: pairs")
        if self.source != "scorer" and self.reference != "teacher":
            raise ValueError("reference is a scorer's: leave it out")
        if not set(self.outcomes) <= set(SAID):
            raise ValueError(f"outcomes are of {', '.join(SAID)}")
        return self

    @property
    def seen(self) -> Design:
        """How canary and full are compared."""
        return self.canary or ("arms" if self.source == "feedback" else "pairs")
