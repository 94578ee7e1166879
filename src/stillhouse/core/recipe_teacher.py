"""Recipe sections of the teacher and of what it costs. Knows no provider and no stage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Final, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from stillhouse.core.recipe_asking import BatchSection, RaySection
from stillhouse.core.recipe_ensemble import (
    COMBINE_HELP,
    ENSEMBLE,
    OF_BELIEFS,
    Combine,
    MemberSection,
    combine_for,
    combine_problem,
)
from stillhouse.core.recipe_section import Section
from stillhouse.core.recipe_terms import TermsSection

TEACHER_FORMS = (
    "openai:MODEL, anthropic:MODEL, openai-compatible:MODEL (with base_url), hf:ID_OR_PATH, "
    "gguf:PATH, embedded, replay:PATH (of a frozen answer store), or ensemble:NAME (with members)"
)
# What a member of an ensemble takes over where it does not say otherwise.
INHERITED: Final = (
    "sampling_temperature",
    "max_tokens",
    "samples",
    "signals",
    "concurrency",
    "batch_size",
    "retries",
    "timeout_s",
    "deadline_s",
    "outage_s",
    "on_revision_change",
    "budget_usd",
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
    timeout_s: float = Field(default=120.0, gt=0, description="How long one request may take.")
    deadline_s: float | None = Field(
        default=None,
        gt=0,
        description="How long a query may take at an API teacher, over all its tries and waits; "
        "null for no limit.",
    )
    outage_s: float = Field(
        default=600.0,
        gt=0,
        description="How long an API teacher may give no answer at all before the run stops.",
    )
    on_revision_change: Literal["split", "stop"] = Field(
        default="split",
        description="What to do where the provider changes the model midway: go on and count the "
        "answers by revision (split), or stop with every answer kept (stop).",
    )
    budget_usd: float | None = Field(default=None, gt=0)
    batch: BatchSection | None = Field(
        default=None,
        description="Ask through the provider's Batch API (`batch: {}`); null asks live.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    token_logprobs: int = Field(
        default=0,
        ge=0,
        description="For text answers: keep so many likeliest alternatives of each token, with "
        "their log-probabilities; 0 keeps none. API teachers give at most 20.",
    )
    ray: RaySection | None = Field(
        default=None, description="Ask a local teacher on a Ray cluster; null: in this process."
    )
    tune: TuneSection | None = Field(
        default=None, description="Tune a local teacher on the labelled set first."
    )
    members: tuple[MemberSection, ...] = Field(
        default=(),
        description="The teachers of an ensemble; each is asked and paid under its own name.",
    )
    combine: Combine | None = Field(
        default=None, description=f"How an ensemble's answers become one. {COMBINE_HELP}"
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
        if model in ("embedded", ENSEMBLE):
            return model
        kinds = ("openai", "anthropic", "openai-compatible", "hf", "gguf", "replay", ENSEMBLE)
        if kind in kinds and rest:
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
            if (self.local or self.kind == "replay") and value is not None:
                raise ValueError(f"{key} is for teachers behind an API, not {self.kind}")
        if self.local and self.batch is not None:
            raise ValueError(
                f"batch is for teachers behind an API, not {self.kind}: it costs nothing here, so "
                "leave it out"
            )
        if not self.local and self.device != "auto" and self.kind != ENSEMBLE:
            raise ValueError(f"device is for teachers of this machine, not {self.kind}")
        if self.ray is not None and not self.local:
            raise ValueError(
                f"ray is for teachers whose weights are here (hf:, embedded, gguf:), not "
                f"{self.kind}: it is asked from one place, under one rate limit and one budget"
            )
        if self.signals == "samples" and (self.samples < 2 or self.sampling_temperature == 0):
            raise ValueError("signals: samples needs samples > 1 and sampling_temperature > 0")
        return self

    @model_validator(mode="after")
    def _ensemble_fits(self) -> TeacherSection:
        if self.kind != ENSEMBLE:
            if self.members or self.combine is not None:
                raise ValueError(f"members and combine are for model: ensemble, not {self.kind}")
            return self
        if len(self.members) < 2:
            raise ValueError("an ensemble needs at least two members")
        if self.base_url is not None or self.api_key_env is not None:
            raise ValueError("base_url and api_key_env are each member's own in an ensemble")
        seen: list[TeacherSection] = []
        for number, member in enumerate(self.members):
            if member.model.partition(":")[0] == ENSEMBLE:
                raise ValueError(f"members.{number}: an ensemble cannot be a member of another")
            try:
                section = self._member(member)
            except ValidationError as error:
                first = error.errors(include_input=False)[0]
                where = ".".join(["members", str(number), *map(str, first["loc"])])
                message = first["msg"].removeprefix("Value error, ")
                raise ValueError(f"{where}: {message}") from None
            if section in seen:
                raise ValueError(f"members.{number} is listed twice; give it a weight instead")
            seen.append(section)
        return self

    def _member(self, member: MemberSection) -> TeacherSection:
        own = member.model_dump(exclude={"weight"}, exclude_none=True)
        values = {name: getattr(self, name) for name in INHERITED} | own
        section = TeacherSection.model_validate(values)
        return section.model_copy(update={"device": self.device}) if section.local else section

    @property
    def member_sections(self) -> tuple[TeacherSection, ...]:
        """The members as teachers of their own; empty for a single teacher."""
        return tuple(self._member(member) for member in self.members)

    @property
    def weights(self) -> tuple[float, ...]:
        """The members' say."""
        return tuple(member.weight for member in self.members)

    @property
    def sources(self) -> tuple[str, ...]:
        """All models that answer: the members', or the one."""
        return tuple(member.model for member in self.members) or (self.model,)

    @property
    def answer_signals(self) -> str:
        """How the beliefs of finished answers are read: those of an ensemble carry their own."""
        return "auto" if self.members and self.signals != "none" else self.signals

    def title(self, task_kind: str) -> str:
        """The model, and for an ensemble what it is made of."""
        if not self.members:
            return self.model
        how = combine_for(task_kind, self.combine)
        return f"{self.model} of {', '.join(self.sources)} ({how})"

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
        if self.members:
            return all(m.model.partition(":")[0] in _LOCAL for m in self.members)
        return self.kind in _LOCAL

    @property
    def belief_problem(self) -> str | None:
        """Why this teacher's answers will show no class probabilities, as far as a recipe tells."""
        votes = self.samples >= 2 and self.sampling_temperature > 0
        if self.signals == "none":
            return "signals: none reads no class probabilities"
        if (
            self.local
            and self.signals != "samples"
            and (self.samples > 1 or self.sampling_temperature > 0)
        ):
            return (
                "a local teacher's likelihoods are read at samples: 1 and sampling_temperature: 0 "
                "(or count votes: signals: samples)"
            )
        if self.kind == "anthropic" and not (votes and self.signals in ("auto", "samples")):
            return (
                "an anthropic teacher shows class probabilities as votes alone: samples: 5 and "
                "sampling_temperature: 1"
            )
        return None


_LOCAL: Final = ("hf", "embedded", "gguf")


def ensemble_problem(
    task_kind: str,
    combine: Combine | None,
    members: Mapping[str, TeacherSection],
    weights: Sequence[float],
) -> str | None:
    """Why these teachers (by the name their recipe gives them) cannot be combined, or `None`."""
    problem = combine_problem(task_kind, combine, weights)
    if problem is not None:
        return problem
    how = combine_for(task_kind, combine)
    for name, section in members.items():
        if how in OF_BELIEFS and section.belief_problem is not None:
            return f"{name} ({section.model}): combine: {how} needs beliefs, and " + (
                f"{section.belief_problem}; or use combine: majority"
            )
    return None


class Price(Section):
    """USD per million tokens."""

    input_usd_per_mtok: float = Field(ge=0)
    output_usd_per_mtok: float = Field(ge=0)
    batch_discount: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the list price that a batch does not cost; null: the provider's "
        "usual discount.",
    )


class PricesSection(Section):
    """Overrides of the dated price table."""

    models: dict[str, Price] = Field(default_factory=dict, description="Per model name.")
    machine_usd_per_hour: float | None = Field(
        default=None, ge=0, description="What the machine that runs local models costs."
    )
