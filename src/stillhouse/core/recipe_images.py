"""The recipe of a net for images (`stillhouse images`): no task, no traffic.

A recipe of this kind has a section `images`. Knows no net and no file.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.core.divergence_names import DivergenceKind
from stillhouse.core.recipe_section import Section


class ImagesSection(Section):
    """The images, as .npz files of `images` [N, H, W] or [N, H, W, C] (uint8) and `labels` [N]."""

    train: str = Field(description="What teacher and student learn from.")
    test: str = Field(description="What both are scored on; nothing is chosen by it.")
    validation: float = Field(
        default=0.1,
        gt=0,
        lt=0.5,
        description="Share of train that nobody learns, to choose by.",
    )
    limit: int | None = Field(default=None, ge=20, description="Use so many of train, at random.")


class NetSection(Section):
    """A net, and how long it learns."""

    source: str = Field(
        alias="from",
        description="conv, mlp (new nets), or hf:ID_OR_PATH of an image classifier.",
    )
    widths: tuple[int, ...] = Field(
        default=(), description="conv: channels of its layers, each of stride 2; mlp: its layers."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)
    epochs: float = Field(
        default=10.0,
        ge=0,
        description="teacher: 0 takes it as it is, its labels in the order of the images' classes.",
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="null: 1e-3 for new nets, 2e-5 for hf:."
    )

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        kind, _, rest = source.partition(":")
        if source in ("conv", "mlp") or (kind == "hf" and rest):
            return source
        raise ValueError("must be conv, mlp or hf:ID_OR_PATH")

    @model_validator(mode="after")
    def _widths_fit(self) -> NetSection:
        if self.source.startswith("hf:"):
            if self.widths or self.dropout:
                raise ValueError("widths and dropout are for conv and mlp; hf: has its own")
        elif not self.widths or any(width < 1 for width in self.widths):
            raise ValueError(f"widths: {self.source} needs the width of each layer")
        return self


class ImageTrainSection(Section):
    """How the student is taught."""

    alpha: float = Field(default=0.9, gt=0, le=1, description="Weight of the soft targets.")
    temperatures: tuple[float, ...] = Field(
        default=(1.0, 2.0, 3.0),
        min_length=1,
        description="Each T is tried; the one best on validation is kept.",
    )
    seeds: int = Field(default=3, ge=1, le=50, description="Students trained for each T.")
    divergence: DivergenceKind = "forward_kl"
    divergence_beta: float | None = Field(default=None, ge=0, le=1)
    alone: bool = Field(
        default=True, description="Also train the same students on labels alone, for comparison."
    )
    batch_size: int = Field(default=64, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("temperatures")
    @classmethod
    def _above_zero(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        if any(t <= 0 for t in temperatures) or len(set(temperatures)) < len(temperatures):
            raise ValueError("must be distinct numbers above 0")
        return temperatures

    @model_validator(mode="after")
    def _micro_divides(self) -> ImageTrainSection:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self


class ImageEvaluateSection(Section):
    """How teacher and student are scored."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=2000, ge=100)
    speed_images: int = Field(default=256, ge=1, description="Images of a speed measurement.")
    speed_repeats: int = Field(default=5, ge=1)


class ImageRecipe(Section):
    """A whole recipe of a net for images."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run folder.")
    seed: int = Field(default=0, ge=0, lt=2**32)
    images: ImagesSection
    teacher: NetSection
    student: NetSection
    train: ImageTrainSection = Field(default_factory=ImageTrainSection)
    evaluate: ImageEvaluateSection = Field(default_factory=ImageEvaluateSection)

    @model_validator(mode="after")
    def _fits(self) -> ImageRecipe:
        if self.student.epochs == 0:
            raise ValueError("student.epochs must be above 0")
        if self.teacher.epochs == 0 and not self.teacher.source.startswith("hf:"):
            raise ValueError("teacher.epochs: 0 is for an hf: classifier; a new net knows nothing")
        return self
