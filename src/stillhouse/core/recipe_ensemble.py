"""Recipe sections of an ensemble: its members, and how their answers become one.

Knows no provider: a member is read as a teacher of its own by `recipe_teacher`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from pydantic import ConfigDict, Field

from stillhouse.core.recipe_section import Section

Combine = Literal["majority", "mean_probabilities", "mean_logits", "medoid"]
ENSEMBLE: Final = "ensemble"
# What makes sense for a kind of task; the first is the default.
COMBINES: Final[Mapping[str, tuple[Combine, ...]]] = {
    "classification": ("mean_probabilities", "mean_logits", "majority"),
    "extraction": ("majority",),
    "generation": ("medoid",),
}
OF_BELIEFS: Final[tuple[Combine, ...]] = ("mean_probabilities", "mean_logits")
COMBINE_HELP: Final = (
    "mean_probabilities: the mixture; mean_logits: the geometric mean; majority: of the answers, "
    "field by field for extraction; medoid: the text most like the others. Default by task: "
    "mean_probabilities, majority, medoid."
)


class MemberSection(Section):
    """One teacher of an ensemble. What is left out is as the ensemble has it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = Field(description="As teacher.model.")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Its say, relative.")
    base_url: str | None = Field(default=None, description="As teacher.base_url.")
    api_key_env: str | None = Field(default=None, description="As teacher.api_key_env.")
    chat_template: bool = Field(default=True, description="As teacher.chat_template.")
    sampling_temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    samples: int | None = Field(default=None, ge=1)
    signals: Literal["auto", "none", "logprobs", "samples"] | None = Field(
        default=None, description="How this member's beliefs are read."
    )
    concurrency: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)


def combine_for(kind: str, combine: Combine | None) -> Combine:
    """How an ensemble is combined for a kind of task: as said, else the kind's default."""
    return COMBINES[kind][0] if combine is None else combine


def combine_problem(kind: str, combine: Combine | None, weights: Sequence[float]) -> str | None:
    """Why answers of this kind cannot be combined so, or `None`."""
    how = combine_for(kind, combine)
    if how not in COMBINES[kind]:
        return f"combine: {how} makes no sense for {kind}; use {' or '.join(COMBINES[kind])}"
    heaviest = max(weights)
    if how not in OF_BELIEFS and heaviest >= sum(weights) - heaviest:
        return (
            f"combine: {how} of {len(weights)} members with these weights is always the answer of "
            "one; no weight may reach the sum of the others (three equal members do)"
        )
    return None
