"""Recipe section of a student that is cut to a size: how large, by which means."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from stillhouse.core.recipe_section import Section

SizeName = Literal["light", "medium", "heavy"]
Size = SizeName | Annotated[float, Field(gt=0, lt=1)]

# Shares of the source's parameters.
SIZES: Final[dict[SizeName, float]] = {"light": 0.10, "medium": 0.25, "heavy": 0.50}


class CutSection(Section):
    """How a student of a given size is cut from its source."""

    depth: Literal["even", "first", "last", "first_last", "importance", "greedy"] = Field(
        default="even",
        description="Which layers stay: evenly spaced, the first, the last, half from either end, "
        "those that change their input most, or those that are missed most when layers are left "
        "out one after another. Also with student.layers: N.",
    )
    prefer: Literal["balanced", "depth", "width"] = Field(
        default="balanced",
        description="What is cut first: depth and width alike, layers, or channels, heads and "
        "neurons.",
    )
    hidden: int | None = Field(
        default=None, ge=1, description="Exactly this hidden size; null: chosen to fit."
    )
    heads: int | None = Field(
        default=None, ge=1, description="Exactly so many query heads; null: chosen to fit."
    )
    tie: bool | None = Field(
        default=None,
        description="One table for embedding and output of a text student; null: where it helps.",
    )
    embedding_rank: int | None = Field(
        default=None,
        ge=4,
        description="BERT students: embeddings of so many channels, projected (an ELECTRA).",
    )
    samples: int = Field(
        default=128,
        ge=1,
        description="Texts on which importance is measured, 128 tokens of each; of greedy, at "
        "most 8.",
    )


def share_of(size: Size) -> float:
    """A size as a share of the source's parameters."""
    return SIZES[size] if isinstance(size, str) else size
