"""Recipe section of a trained student that is pruned, and healed by a short distillation."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, model_validator

from stillhouse.core.recipe_cut import CutSection
from stillhouse.core.recipe_section import Section

Pattern = Annotated[str, StringConstraints(pattern=r"^[1-9]\d?:[1-9]\d?$")]
_PATTERN: Final = re.compile(r"(\d+):(\d+)")


class PruneSection(Section):
    """What is taken from a trained student, and how it heals (docs/pruning.md)."""

    kind: Literal["unstructured", "structured"] | Pattern = Field(
        default="structured",
        description="structured: fewer layers, channels, heads and neurons, a smaller and faster "
        "model; unstructured: single weights become 0; 2:4 (or any N:M): of each M weights in a "
        "row N stay, which sparse tensor cores of a GPU can use.",
    )
    share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="How much is taken away: of the parameters (structured) or of the weights in "
        "the layers' matrices; null: 0.5, or what N:M says.",
    )
    importance: Literal["magnitude", "activation"] = Field(
        default="magnitude",
        description="Which single weights stay: the largest of a matrix, or the largest products "
        "with the norm of their input, output by output (Wanda, Sun et al. 2023).",
    )
    samples: int = Field(
        default=128, ge=1, description="Texts on which importance is measured, 128 tokens of each."
    )
    epochs: float = Field(
        default=1.0, gt=0, description="Of healing, under the student's own objectives."
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Of healing; null: the rate that the student was trained at (LoRA: 2e-5).",
    )
    cut: CutSection = Field(
        default_factory=lambda: CutSection(depth="importance"),
        description="structured: by which means, as student.cut.",
    )

    @model_validator(mode="after")
    def _agrees(self) -> PruneSection:
        pattern = self.pattern
        if pattern is not None:
            kept, of = pattern
            if kept >= of:
                raise ValueError(f"prune.kind: {self.kind} keeps all weights; use 2:4, say")
            if self.share is not None and abs(self.share - (1 - kept / of)) > 1e-9:
                raise ValueError(
                    f"prune.share: {self.kind} takes {1 - kept / of:g} away; leave share out"
                )
        if self.kind == "structured" and self.importance != "magnitude":
            raise ValueError("prune.importance is of single weights; leave it out for structured")
        return self

    @property
    def pattern(self) -> tuple[int, int] | None:
        """N and M of N:M."""
        found = _PATTERN.fullmatch(self.kind)
        return None if found is None else (int(found[1]), int(found[2]))

    @property
    def taken(self) -> float:
        """The share that is taken away."""
        if self.pattern is not None:
            kept, of = self.pattern
            return 1 - kept / of
        return 0.5 if self.share is None else self.share
