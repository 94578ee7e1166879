"""Recipe section of speculative decoding: the student as a draft of its teacher. Knows no stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.core.recipe_section import Section

Runtime = Literal["transformers", "llama.cpp"]


class SamplingTestSection(Section):
    """How it is tested that sampled answers follow the target's distribution (docs/speculate.md).

    The cost is about `prompts` answers, and `fixed_prompts` * `seeds` short ones twice.
    """

    sampling_temperature: float = Field(default=1.0, gt=0)
    prompts: int = Field(default=64, ge=1, description="Answers sampled, one a prompt.")
    fixed_prompts: int = Field(default=3, ge=0, description="Prompts answered under many seeds.")
    seeds: int = Field(default=200, ge=20, description="Answers of each, with and without draft.")
    tokens: int = Field(default=3, ge=1, description="Length of those answers.")
    significance: float = Field(
        default=0.01, gt=0, lt=0.5, description="Chance of a false alarm, over all tests together."
    )


class ServeSection(Section):
    """Names for the configurations that are written out: the real target and draft."""

    target: str | None = Field(default=None, description="Hub id; null: the recipe's teacher.")
    draft: str | None = Field(default=None, description="Hub id or folder; null: the student.")
    max_model_len: int = Field(default=4096, ge=128)


class SpeculateSection(Section):
    """What is drafted for whom, and how it is measured."""

    target: str = Field(
        default="teacher", description="teacher, or hf:ID_OR_PATH of a language model."
    )
    draft: str = Field(
        default="student", description="student (of this run), or hf:ID_OR_PATH of a model."
    )
    undistilled: str | None = Field(
        default="untrained",
        description="What the draft is compared with: untrained (the student as it was before "
        "training), hf:ID_OR_PATH, or null: nothing.",
    )
    others: dict[str, str] = Field(
        default_factory=dict, description="More drafts by name (hf:ID_OR_PATH), for comparison."
    )
    prompts: int = Field(default=200, ge=2, description="Held-out prompts, each answered greedily.")
    choose_prompts: int = Field(
        default=12, ge=2, description="Further held-out prompts, to choose draft lengths on."
    )
    max_tokens: int = Field(default=96, ge=2, description="Longest answer.")
    draft_lengths: tuple[int, ...] = Field(default=(1, 2, 3, 4, 6, 8))
    draft_confidence: float = Field(
        default=0.0, ge=0, lt=1, description="A draft ends after a token less likely than this."
    )
    lookup_lengths: tuple[int, ...] = Field(
        default=(2, 4, 10), description="Tokens that prompt lookup proposes; the best is shown."
    )
    speed_prompts: int = Field(default=40, ge=2, description="Prompts timed, of those above.")
    speed_repeats: int = Field(default=2, ge=1)
    segment: str | None = Field(
        default=None, description="Key of the queries' metadata to tell acceptance apart by."
    )
    runtimes: tuple[Runtime, ...] = Field(default=("transformers",), min_length=1)
    gguf: str = Field(
        default="q8_0", description="For llama.cpp: precision of files that are not given."
    )
    target_gguf: str | None = Field(
        default=None, description="For llama.cpp: the target's file; null: it is written."
    )
    draft_gguf: str | None = Field(default=None, description="For llama.cpp: the draft's file.")
    undistilled_gguf: str | None = Field(default=None, description="And of what it is held to.")
    sampling_test: SamplingTestSection | None = Field(
        default_factory=SamplingTestSection, description="null: sampled answers are not tested."
    )
    serve: ServeSection = Field(default_factory=ServeSection)

    def problem(self, head: str, teacher_here: bool) -> str | None:
        """What in the rest of the recipe does not go with this section."""
        if self.draft == "student" and head != "text":
            return "speculate.draft: student needs student.head: text; a classifier drafts nothing"
        if self.undistilled == "untrained" and self.draft != "student":
            return "speculate.undistilled: untrained is of the student; name a model, or null"
        if "student" in (self.target, self.undistilled):
            return "speculate.target cannot be the student, which drafts"
        if self.target == "teacher" and not teacher_here:
            return (
                "speculate.target: teacher needs a teacher whose weights are here (hf: or "
                "embedded); name one with hf:ID_OR_PATH"
            )
        return None

    @property
    def files(self) -> dict[str, str]:
        """Models that the section names itself, by field."""
        named = {
            "target": self.target,
            "draft": self.draft,
            "undistilled": self.undistilled,
            "target_gguf": self.target_gguf and f"gguf:{self.target_gguf}",
            "draft_gguf": self.draft_gguf and f"gguf:{self.draft_gguf}",
            "undistilled_gguf": self.undistilled_gguf and f"gguf:{self.undistilled_gguf}",
            **{f"others.{name}": source for name, source in self.others.items()},
        }
        return {
            name: source
            for name, source in named.items()
            if source is not None and source.startswith(("hf:", "gguf:"))
        }

    @field_validator("target", "draft")
    @classmethod
    def _known_model(cls, source: str) -> str:
        if source in ("teacher", "student", "embedded") or source.startswith("hf:"):
            return source
        raise ValueError("must be teacher, student, embedded or hf:ID_OR_PATH")

    @field_validator("undistilled")
    @classmethod
    def _known_reference(cls, source: str | None) -> str | None:
        if source is None or source in ("untrained", "embedded") or source.startswith("hf:"):
            return source
        raise ValueError("must be untrained, hf:ID_OR_PATH or null")

    @field_validator("draft_lengths", "lookup_lengths")
    @classmethod
    def _rising(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if not lengths or lengths[0] < 1 or list(lengths) != sorted(set(lengths)):
            raise ValueError("must be distinct numbers from 1, in rising order")
        return lengths

    @model_validator(mode="after")
    def _fits(self) -> SpeculateSection:
        if self.speed_prompts > self.prompts:
            raise ValueError("speed_prompts must not be more than prompts")
        for name, source in self.others.items():
            if not source.startswith("hf:"):
                raise ValueError(f"others.{name} must be hf:ID_OR_PATH")
        return self
