"""Recipe section of a teacher's terms: may its outputs train a model, who says so, when.

Knows no provider's terms: what they say is for the user to read and to write down.
"""

from __future__ import annotations

from datetime import date

from pydantic import Field, model_validator

from stillhouse.core.recipe_section import Section


class TermsSection(Section):
    """Either `may_train`, `says` and `on` (and `url`), or `waived_by` and `reason`."""

    may_train: bool | None = Field(
        default=None, description="Whether the teacher's answers may train a model."
    )
    says: str | None = Field(
        default=None, min_length=1, description="Who says so, or which clause: what was read."
    )
    on: date | None = Field(default=None, description="When it was read (YYYY-MM-DD).")
    url: str | None = Field(default=None, min_length=1, description="Where it was read.")
    waived_by: str | None = Field(
        default=None, min_length=1, description="Who takes it upon them to go on without."
    )
    reason: str | None = Field(default=None, min_length=1, description="Why it is waived.")

    @model_validator(mode="after")
    def _one_of_two(self) -> TermsSection:
        stated = (self.may_train, self.says, self.on)
        waived = (self.waived_by, self.reason)
        if any(v is not None for v in (*stated, self.url)) and any(v is not None for v in waived):
            raise ValueError(
                "is stated (may_train, says, on) or waived (waived_by, reason), not both"
            )
        if not (all(v is not None for v in stated) or all(v is not None for v in waived)):
            raise ValueError("needs may_train, says and on, or waived_by and reason")
        return self

    @property
    def waived(self) -> bool:
        """Whether the question was set aside instead of answered."""
        return self.waived_by is not None

    def sentence(self) -> str:
        """What the recipe says of the terms, for cards and pages."""
        if self.waived:
            return f"Not looked up: waived by {self.waived_by}. Reason: {self.reason}"
        may = "may" if self.may_train else "may not"
        where = f" ({self.url})" if self.url else ""
        return f"Its outputs {may} train a model, according to {self.says}{where}, read {self.on}."
