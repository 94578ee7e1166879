"""Recipe section of the teacher-signal cache. Knows no stage.

Formats are those of `models.signal_layout`; what they cost and guarantee is in docs/signals.md.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.core.recipe_section import Section

CaptureFormat = Literal["auto", "sampled", "top_k", "dense", "hidden"]


class CaptureSection(Section):
    """What the teacher believed, written once, for `train.signals: cache`."""

    format: CaptureFormat = Field(
        default="auto",
        description="sampled (unbiased, about 40 bytes a token), top_k (with the mass of the "
        "rest), hidden (last hidden states: exact), dense (everything). auto: dense for a label "
        "student, top_k from stored logprobs, hidden for a text student of a trimmed vocabulary, "
        "sampled otherwise.",
    )
    read_from: Literal["auto", "teacher", "logprobs"] = Field(
        default="auto",
        description="teacher: a local teacher reads the accepted answers; logprobs: what "
        "teacher.token_logprobs stored while asking. auto: teacher where its weights are here.",
    )
    samples: int = Field(
        default=16,
        ge=1,
        le=255,
        description="sampled: draws a token, equal ones stored once.",
    )
    held_out_samples: int = Field(
        default=64, ge=1, le=255, description="sampled: draws a token of the held-out set."
    )
    draws: Literal["systematic", "independent"] = Field(
        default="systematic",
        description="sampled: one random offset and even steps (less variance), or every draw "
        "for itself. Both are unbiased.",
    )
    proposal_temperature: float = Field(
        default=1.0,
        gt=0,
        description="sampled: draw from p^(1/t), weighted back; other than 1 costs 2 bytes more "
        "an entry.",
    )
    distillation_temperature: float | None = Field(
        default=None, gt=0, description="sampled: T of the targets; null: train's."
    )
    k: int = Field(default=64, ge=1, description="top_k: entries kept.")
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        default="auto",
        description="Of stored numbers. auto: float16 for log-probabilities, float32 for classes, "
        "what the teacher computes in for hidden states.",
    )
    most_unaligned: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="logprobs: share of examples that may fall back to hard labels, because their "
        "tokens are not the student's; more is an error.",
    )
    shard_mb: float = Field(default=64.0, gt=0, description="Size of a file of the cache, about.")
