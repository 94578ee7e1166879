"""The recipe: what the user wants, as strict typed sections, one per stage.

Reading YAML, overrides and error lines are in `recipe_file`. Knows no stage: each stage reads its
own section and nothing else.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stillhouse.core.tasks import Task

TEACHER_FORMS = (
    "openai:MODEL, anthropic:MODEL, openai-compatible:MODEL (with base_url), hf:ID_OR_PATH, "
    "gguf:PATH or embedded"
)


class Section(BaseModel):
    """Base of recipe sections: no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrafficSection(Section):
    """Where queries come from."""

    path: str = Field(description="JSONL of queries: {'text': ...} or {'messages': [...]} a line.")
    labelled: str | None = Field(
        default=None,
        description="Small JSONL with true answers in 'label': checks and tunes the teacher.",
    )
    use_labelled: bool = Field(
        default=True,
        description="The labelled queries join the traffic; the student learns their true answers.",
    )
    golden: str | None = Field(
        default=None, description="Your curated test set with true answers; never trained on."
    )
    limit: int | None = Field(default=None, ge=1, description="Use at most this many queries.")


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


class DatasetSection(Section):
    """Which answers are kept, and how they are split."""

    min_chars: int = Field(default=1, ge=0, description="Shortest answer kept.")
    max_chars: int = Field(default=20_000, ge=1, description="Longest answer kept.")
    near_duplicate: float = Field(
        default=0.85,
        gt=0,
        le=1,
        description="Jaccard similarity of word 3-shingles; 1 turns it off.",
    )
    held_out: float = Field(default=0.1, gt=0, lt=0.9, description="Share held out, by group.")
    min_examples: int = Field(
        default=50, ge=2, description="Fewer accepted examples than this stop the run."
    )


class StudentSection(Section):
    """What is trained."""

    head: Literal["label", "text"] = Field(
        description="label: a classifier; text: a language model."
    )
    source: str = Field(
        alias="from",
        description="hf:ID_OR_PATH, teacher (cut from it), or embedded-encoder (MiniLM, 22.7M).",
    )
    layers: int | tuple[int, ...] | None = Field(
        default=None, description="Keep N layers, evenly spaced, or exactly these; null keeps all."
    )
    vocabulary: Literal["full", "task"] | Annotated[int, Field(ge=256)] = Field(
        default="full", description="full, task (tokens the task's text uses), or at most N tokens."
    )
    max_tokens: int = Field(default=2048, ge=8, description="Longer inputs are cut.")

    @field_validator("layers")
    @classmethod
    def _layers_make_sense(
        cls, layers: int | tuple[int, ...] | None
    ) -> int | tuple[int, ...] | None:
        if isinstance(layers, int) and layers < 1:
            raise ValueError("must be at least 1")
        if isinstance(layers, tuple) and (not layers or list(layers) != sorted(set(layers))):
            raise ValueError("must be distinct layer indices in rising order, from 0")
        return layers

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        kind, _, rest = source.partition(":")
        if source in ("teacher", "embedded-encoder", "embedded") or (kind == "hf" and rest):
            return source
        raise ValueError("must be hf:ID_OR_PATH, teacher, embedded or embedded-encoder")


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021)."""

    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")


class TrainSection(Section):
    """How the student is trained."""

    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of the soft-target term; 0 trains on hard labels.",
    )
    distillation_temperature: float = Field(default=2.0, gt=0, description="T of the soft targets.")
    epochs: float = Field(default=3.0, gt=0)
    learning_rate: float | None = Field(
        default=None, gt=0, description="null: 2e-5 for full fine-tuning, 2e-4 for LoRA."
    )
    head_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Rate of a label student's new head, which starts at random; null: the same.",
    )
    lora: LoraSection | None = Field(default=None, description="Adapters instead of full training.")
    batch_size: int = Field(default=32, ge=1, description="Examples per optimizer step.")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="Examples per forward pass; null: the whole batch."
    )
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    evals: int = Field(default=6, ge=1, description="Held-out evaluations over the run.")
    patience: int | None = Field(
        default=3, ge=1, description="Stop after N evaluations without lower held-out divergence."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 on a GPU that has it, fp32 elsewhere."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    hard_label_twin: bool = Field(
        default=False,
        description="Also train the same student on hard teacher labels alone, for comparison.",
    )

    @model_validator(mode="after")
    def _micro_divides(self) -> TrainSection:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self

    @property
    def effective_learning_rate(self) -> float:
        """The given rate, else 2e-5 (full) or 2e-4 (LoRA)."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-5 if self.lora is None else 2e-4


class EvaluateSection(Section):
    """How the student is judged."""

    margin: float = Field(
        default=0.05, gt=0, lt=1, description="Non-inferiority margin, absolute: 0.05 is 5 points."
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples.")
    speed_queries: int = Field(default=200, ge=1, description="Queries timed for speed.")
    speed_repeats: int = Field(default=3, ge=1)
    batch_size: int = Field(default=32, ge=1)
    max_queries: int | None = Field(
        default=None, ge=1, description="Evaluate on at most this many queries of each set."
    )


class Price(Section):
    """USD per million tokens."""

    input_usd_per_mtok: float = Field(ge=0)
    output_usd_per_mtok: float = Field(ge=0)


class PricesSection(Section):
    """Overrides of the dated price table."""

    models: dict[str, Price] = Field(default_factory=dict, description="Per model name.")
    machine_usd_per_hour: float | None = Field(
        default=None, ge=0, description="What the machine that runs local models costs."
    )


class Recipe(Section):
    """A whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run folder.")
    seed: int = Field(default=0, ge=0, lt=2**32)
    task: Task
    traffic: TrafficSection
    teacher: TeacherSection
    dataset: DatasetSection = Field(default_factory=DatasetSection)
    student: StudentSection
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    prices: PricesSection = Field(default_factory=PricesSection)

    @model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        if self.student.head == "label" and self.task.kind != "classification":
            raise ValueError(
                f"student.head: label needs a classification task, not {self.task.kind}; "
                "use head: text"
            )
        if self.teacher.tune is not None and self.traffic.labelled is None:
            raise ValueError("teacher.tune needs traffic.labelled")
        if self.student.source == "teacher" and not self.teacher.trainable:
            raise ValueError(
                "student.from: teacher needs a teacher with trainable weights (hf: or embedded), "
                f"not {self.teacher.kind}"
            )
        if self.student.source == "embedded-encoder" and self.student.head == "text":
            raise ValueError("student.from: embedded-encoder cannot write text; use head: label")
        return self
