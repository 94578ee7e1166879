"""Recipe section of on-policy training. Knows no stage."""

from __future__ import annotations

from pydantic import Field, model_validator

from stillhouse.core.recipe_section import Section


class OnPolicySection(Section):
    """Completions that are sampled while the student trains (Agarwal et al. 2024)."""

    student_fraction: float = Field(
        default=0.5, ge=0, le=1, description="Share of micro-batches that the student writes."
    )
    teacher_fraction: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share that the teacher writes afresh (sequence-level); the rest is the data.",
    )
    sampling_temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=128, ge=1, description="Longest completion sampled.")

    @model_validator(mode="after")
    def _shares(self) -> OnPolicySection:
        if self.student_fraction + self.teacher_fraction > 1.0:
            raise ValueError("student_fraction and teacher_fraction must not sum to more than 1")
        if self.student_fraction + self.teacher_fraction == 0.0:
            raise ValueError("a share must be above 0; leave on_policy out for the data alone")
        return self
