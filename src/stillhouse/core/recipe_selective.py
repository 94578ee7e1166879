"""Recipe section of selective distillation. Knows no stage."""

from __future__ import annotations

from pydantic import Field, field_validator

from stillhouse.core.recipe_section import Section


class SelectiveSection(Section):
    """Train on the tokens with most to gain on a reference of the same size (Hu et al. 2025)."""

    keep: float = Field(
        default=0.4, gt=0, le=1, description="Share k of the target tokens of a forward pass."
    )
    reference: str = Field(
        default="distil",
        description="distil: the same student, distilled first without a selection; or "
        "hf:ID_OR_PATH of such a one.",
    )

    @field_validator("reference")
    @classmethod
    def _known(cls, source: str) -> str:
        if source == "distil" or (source.startswith("hf:") and len(source) > 3):
            return source
        raise ValueError("must be distil or hf:ID_OR_PATH")
