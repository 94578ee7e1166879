"""Recipe section of the teachers that read along while a text student trains. Knows no stage."""

from __future__ import annotations

from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stillhouse.core.recipe_section import Section

OWN: Final = "teacher"  # the recipe's teacher, tuned where it was tuned
SERVER: Final = "openai-compatible"


class ReaderSection(Section):
    """One teacher that reads along."""

    model: str = Field(
        default=OWN,
        description="teacher (the recipe's own), hf:ID_OR_PATH, embedded, or "
        "openai-compatible:NAME: a server that returns prompt logprobs (vLLM).",
    )
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Its say, relative.")
    domains: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Reads only examples whose `task` is one of these; null: all.",
    )
    base_url: str | None = Field(default=None, description="Of a server: http://HOST:PORT/v1.")
    api_key_env: str | None = Field(default=None, description="Variable that holds its key.")
    prompt_logprobs: int = Field(default=64, ge=1, description="Entries a token, of a server.")
    timeout_s: float = Field(default=120.0, gt=0, description="Longest wait for a server.")

    @property
    def local(self) -> bool:
        """Whether its weights are loaded here."""
        return not self.model.startswith(f"{SERVER}:")

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        kind, _, rest = model.partition(":")
        if model in (OWN, "embedded") or (kind in ("hf", SERVER) and rest):
            return model
        raise ValueError(f"must be teacher, hf:ID_OR_PATH, embedded or {SERVER}:NAME")

    @model_validator(mode="after")
    def _url(self) -> ReaderSection:
        if self.local:
            if self.base_url is not None or self.api_key_env is not None:
                raise ValueError(f"base_url and api_key_env are for {SERVER}:NAME")
            return self
        if urlsplit(self.base_url or "").scheme not in ("http", "https"):
            raise ValueError(f"{SERVER} needs base_url: http://HOST:PORT/v1")
        return self


class ReadersSection(Section):
    """Teachers that read along, instead of the recipe's teacher alone."""

    members: tuple[ReaderSection, ...] = Field(min_length=1)
    combine: Literal["mean_probabilities", "mean_logits"] = Field(
        default="mean_probabilities",
        description="mean_probabilities: the mixture; mean_logits: the geometric mean.",
    )
    tokenizers: Literal["same", "universal"] = Field(
        default="same",
        description="universal: one local teacher with a tokenizer of its own (ULD).",
    )

    @model_validator(mode="after")
    def _one_for_universal(self) -> ReadersSection:
        if self.tokenizers == "universal" and (
            len(self.members) > 1 or not self.members[0].local or self.members[0].domains
        ):
            raise ValueError("tokenizers: universal takes one local teacher, without domains")
        return self
