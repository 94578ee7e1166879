"""Recipe sections of the data: where queries come from, which answers are kept.

Knows no stage.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.core.recipe_section import Section

# In the order in which they are looked for.
RedactKind = Literal["key", "email", "iban", "card", "ip", "phone", "name"]


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
    redact: tuple[RedactKind, ...] = Field(
        default=(),
        description="Personal data to replace by placeholders before anything is written; name "
        "needs the extra presidio.",
    )


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
