"""Settings of drift detection in loop.yaml. Strict; knows no test.

What each number does, and what the defaults were measured to do, is in docs/drift.md.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from stillhouse.core.recipe_section import Section


class LeastEffects(Section):
    """Smaller changes are no alarm, however sure they are."""

    mmd: float = Field(
        default=0.1,
        ge=0,
        description="Distance of the mean inputs, in standard deviations of the reference (MMD).",
    )
    auc: float = Field(
        default=0.55,
        ge=0.5,
        le=1,
        description="How well a classifier tells window and reference apart: area under its ROC.",
    )
    psi: float = Field(
        default=0.1, ge=0, description="Population stability index of lengths and confidence."
    )
    ks: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Greatest gap of two distribution functions: lengths, confidence, latency.",
    )
    share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the requests with another language or answer (total variation), or "
        "of another kind as the classifier sees it.",
    )
    agreement: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Fall of the agreement of student and teacher on inputs like the reference's.",
    )
    divergence: float = Field(
        default=0.05, ge=0, description="Rise of the divergence there, in nats."
    )
    canaries: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Fall of the likeness of canaries' answers to the frozen ones, beyond noise.",
    )


class DriftSection(Section):
    """Whether inputs, teacher or student changed, and which of them."""

    embedder: str = Field(
        default="hashing", description="hashing, minilm or hf:ID_OR_PATH, as in recipes."
    )
    fewest: int = Field(
        default=50, ge=10, description="Rows that a test needs in either sample; fewer: no test."
    )
    most: int = Field(
        default=1000,
        ge=100,
        le=5000,
        description="Rows of either sample whose embeddings are compared; drawn where more.",
    )
    permutations: int = Field(
        default=999, ge=199, le=100_000, description="Of each permutation test."
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="Probability that any test of a window without drift is significant (Holm).",
    )
    least: LeastEffects = LeastEffects()
    needed: int = Field(default=2, ge=1, description="Windows that must signal for an alarm, ...")
    out_of: int = Field(default=3, ge=1, le=100, description="... of so many last ones.")
    streams: bool = Field(
        default=True,
        description="Also say at which request a change began: ADWIN and Page-Hinkley (extra: "
        "monitor).",
    )
    examples: int = Field(default=5, ge=0, le=100, description="Rows shown with an alarm.")
    words: int = Field(default=10, ge=0, le=100, description="Words shown that mark a shift.")

    @model_validator(mode="after")
    def _can_be_met(self) -> DriftSection:
        if self.needed > self.out_of:
            raise ValueError("needed must not be above out_of: no alarm would ever come")
        return self
