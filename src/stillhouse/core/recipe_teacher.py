"""Recipe sections of the teacher and of what it costs. Knows no provider and no stage."""

from __future__ import annotations

import re
from datetime import date
from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from stillhouse.core.recipe_section import Section
from stillhouse.core.recipe_terms import TermsSection

TEACHER_FORMS = (
    "openai:MODEL, anthropic:MODEL, openai-compatible:MODEL (with base_url), hf:ID_OR_PATH, "
    "gguf:PATH or embedded"
)


class TuneSection(Section):
    """Fine-tuning of a local teacher on the labelled set before distilling."""

    layers: int | None = Field(
        default=None, ge=1, description="Train only the last N layers; null trains all."
    )
    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    batch_size: int = Field(default=16, ge=1)
    check_fraction: float = Field(
        default=0.25, gt=0, lt=1, description="Share of the labelled set held back for the check."
    )


class TeacherSection(Section):
    """Who answers."""

    # What is refused is not repeated: a key may have been pasted in its place.
    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = Field(description=f"One of: {TEACHER_FORMS}.")
    base_url: str | None = Field(
        default=None, description="Server of an openai-compatible teacher."
    )
    api_key_env: str | None = Field(
        default=None, description="Environment variable that holds the key (never the key itself)."
    )
    sampling_temperature: float = Field(
        default=0.0, ge=0, le=2, description="Up to 2; Anthropic's models take up to 1."
    )
    max_tokens: int = Field(default=256, ge=1)
    samples: int = Field(
        default=1,
        ge=1,
        description="Answers per query; class probabilities from votes need several.",
    )
    signals: Literal["auto", "none", "logprobs", "samples"] = Field(
        default="auto",
        description="How beliefs are read: from likelihoods or logprobs where the model gives them "
        "(auto, logprobs), from votes of several samples (samples), or not at all (none).",
    )
    chat_template: bool = Field(
        default=True,
        description="false: a local teacher reads the bare prompt, as a base model does.",
    )
    concurrency: int = Field(default=16, ge=1, description="Requests in flight to an API teacher.")
    batch_size: int = Field(default=32, ge=1, description="Queries per batch of a local teacher.")
    retries: int = Field(default=6, ge=0)
    timeout_s: float = Field(default=120.0, gt=0)
    budget_usd: float | None = Field(default=None, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tune: TuneSection | None = Field(
        default=None, description="Tune a local teacher on the labelled set first."
    )
    terms: TermsSection | None = Field(
        default=None,
        description="May its outputs train a model? Set or waived before anything is asked "
        "(embedded needs none); see docs/rights.md.",
    )
    retires_on: date | None = Field(
        default=None,
        description="When the provider retires the model, where you know better than the table.",
    )

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_url(cls, url: str | None) -> str | None:
        # The URL is stored with the run; a password or a key in it would be too.
        if url is not None and any(mark in url for mark in "@?#"):
            raise ValueError(
                "must hold no user, password, query or fragment; name the key's environment "
                "variable in api_key_env"
            )
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("is not an http or https URL; write it as http://HOST:PORT/v1")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str | None) -> str | None:
        if name is not None and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
            raise ValueError(
                "must be the name of an environment variable, as OPENAI_API_KEY is, never the key"
            )
        return name

    @field_validator("model")
    @classmethod
    def _known_form(cls, model: str) -> str:
        kind, _, rest = model.partition(":")
        if kind == "embedded" and not rest:
            return model
        if kind in ("openai", "anthropic", "openai-compatible", "hf", "gguf") and rest:
            return model
        raise ValueError(f"must be {TEACHER_FORMS}")

    @model_validator(mode="after")
    def _fits(self) -> TeacherSection:
        if self.kind == "openai-compatible" and self.base_url is None:
            raise ValueError("base_url is required for an openai-compatible teacher")
        if self.tune is not None and not self.trainable:
            raise ValueError(
                f"tune needs a teacher with trainable weights (hf: or embedded), not {self.kind}"
            )
        if not self.chat_template and not self.trainable:
            raise ValueError(
                f"chat_template: false is for hf: and embedded teachers, not {self.kind}"
            )
        if self.kind == "anthropic" and self.sampling_temperature > 1:
            raise ValueError("sampling_temperature must be at most 1 for an anthropic teacher")
        of_servers = {"base_url": self.base_url, "api_key_env": self.api_key_env}
        for key, value in of_servers.items():
            if self.local and value is not None:
                raise ValueError(f"{key} is for teachers behind an API, not {self.kind}")
        if not self.local and self.device != "auto":
            raise ValueError(f"device is for teachers of this machine, not {self.kind}")
        if self.signals == "samples" and (self.samples < 2 or self.sampling_temperature == 0):
            raise ValueError("signals: samples needs samples > 1 and sampling_temperature > 0")
        return self

    @property
    def kind(self) -> str:
        """The part before the colon."""
        return self.model.partition(":")[0]

    @property
    def name(self) -> str:
        """The part after the colon, or the kind itself."""
        return self.model.partition(":")[2] or self.model

    @property
    def trainable(self) -> bool:
        """Whether its weights are loaded as trainable tensors."""
        return self.kind in ("hf", "embedded")

    @property
    def local(self) -> bool:
        """Whether it runs in this process."""
        return self.kind in ("hf", "embedded", "gguf")


class Price(Section):
    """USD per million tokens."""

    input_usd_per_mtok: float = Field(ge=0)
    output_usd_per_mtok: float = Field(ge=0)
    batch_discount: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Off the price in the provider's batches: 0.5 is half.",
    )


class PricesSection(Section):
    """Overrides of the dated price table."""

    models: dict[str, Price] = Field(default_factory=dict, description="Per model name.")
    machine_usd_per_hour: float | None = Field(
        default=None, ge=0, description="What the machine that runs local models costs."
    )
