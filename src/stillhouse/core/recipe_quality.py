"""Recipe sections of what makes an answer good enough: validators and the judge. Knows no stage."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from stillhouse.core.recipe_section import Section
from stillhouse.core.recipe_teacher import TEACHER_FORMS, TeacherSection
from stillhouse.core.tasks import unread_keyword

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class ValidatorsSection(Section):
    """What every answer must satisfy, beyond the built-in checks."""

    refusals: bool = Field(
        default=True,
        description="Reject answers that open like a refusal; false where the task writes such.",
    )
    unfinished: bool = Field(
        default=True,
        description="Reject free texts that stop in the middle, whatever the server says.",
    )
    echo: bool = Field(
        default=True,
        description="Reject free texts that repeat their input; false where a text that needs no "
        "change rightly stays as it is (corrections, clean-up).",
    )
    must_match: tuple[str, ...] = Field(
        default=(), description="Regular expressions that must each be found in the answer."
    )
    must_not_match: tuple[str, ...] = Field(
        default=(), description="Regular expressions that must not be found in the answer."
    )
    min_words: int | None = Field(default=None, ge=1, description="Fewest words of an answer.")
    max_words: int | None = Field(default=None, ge=1, description="Most words of an answer.")
    json_schema: dict[str, JsonValue] | None = Field(
        default=None,
        description="A generation task whose answers must be JSON of this schema ({}: any JSON).",
    )
    language: str | None = Field(
        default=None,
        pattern=r"^[a-z]{2}$",
        description="ISO 639-1 code of the language the answers must be in (extra: language).",
    )
    function: str | None = Field(
        default=None,
        description="Your own check, package.module:name. Called with (query, text); answers None "
        "or true to keep, false or a reason to reject.",
    )

    @field_validator("must_match", "must_not_match")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @field_validator("json_schema")
    @classmethod
    def _is_checked(cls, schema: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        unread = unread_keyword(schema)
        if unread is not None:
            raise ValueError(f"uses {unread}, which is not checked here; leave it out")
        return schema

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, name: str | None) -> str | None:
        if name is not None and _FUNCTION.fullmatch(name) is None:
            raise ValueError("must be written package.module:name")
        return name

    @model_validator(mode="after")
    def _lengths_fit(self) -> ValidatorsSection:
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError("min_words must not be above max_words")
        return self


class JudgeSection(Section):
    """A model that judges the teacher's answers, once it is shown to tell good from bad."""

    # What is refused is not repeated: a key may have been pasted in its place.
    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = Field(description=f"One of: {TEACHER_FORMS}.")
    base_url: str | None = Field(default=None, description="Server of an openai-compatible judge.")
    api_key_env: str | None = Field(
        default=None, description="Environment variable that holds the key (never the key itself)."
    )
    gold: str = Field(
        description="JSONL of real answers that a person labelled: {'text' or 'messages', "
        "'answer', 'good': true or false} a line. What the judge is tested on."
    )
    mode: Literal["pointwise", "pairwise"] = Field(
        default="pointwise",
        description="pointwise: a score from 1 to 5 for each answer. pairwise: the answers to one "
        "query against each other, in both orders.",
    )
    min_score: float = Field(
        default=3.5,
        ge=1,
        le=5,
        description="pointwise: an answer is good from this score on. A judge whose logprobs are "
        "read gives fractions: one that says 4 and means it may come to 3.9.",
    )
    criteria: str | None = Field(
        default=None, description="What makes an answer good, in your words; put to the judge."
    )
    explain: bool = Field(
        default=False, description="The judge reasons before its verdict: dearer, often better."
    )
    noise_pairs: int = Field(
        default=100,
        ge=0,
        description="Pairs of answers of one teacher to one query, compared for the noise floor.",
    )
    sampling_temperature: float = Field(default=0.0, ge=0, le=2)
    max_tokens: int | None = Field(
        default=None, ge=1, description="Default: 16, or 1024 with explain."
    )
    concurrency: int = Field(default=16, ge=1, description="Requests in flight to an API judge.")
    batch_size: int = Field(default=32, ge=1, description="Queries per batch of a local judge.")
    retries: int = Field(default=6, ge=0)
    timeout_s: float = Field(default=120.0, gt=0)
    budget_usd: float | None = Field(
        default=None, gt=0, description="The judge's own budget, beside the teacher's."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _fits(self) -> JudgeSection:
        try:
            self.as_teacher()
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ").replace(" teacher", " judge")
            raise ValueError(f"{field}: {message}" if field else message) from None
        return self

    def as_teacher(self) -> TeacherSection:
        """The judge as a model that is asked like a teacher."""
        shared = self.model_dump(
            include={
                "model",
                "base_url",
                "api_key_env",
                "sampling_temperature",
                "concurrency",
                "batch_size",
                "retries",
                "timeout_s",
                "budget_usd",
                "device",
            }
        )
        return TeacherSection(**shared, max_tokens=self.answer_tokens)

    @property
    def answer_tokens(self) -> int:
        """Most tokens of one verdict."""
        return self.max_tokens or (1024 if self.explain else 16)
