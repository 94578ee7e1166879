"""The recipe of a model trained on a corpus (`stillhouse pretrain`): no task, no traffic.

A recipe of this kind has a section `corpus`; one of a task has `traffic`. Knows no model: what a
teacher and a student have is checked where they are read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from stillhouse.core.divergence_names import DivergenceKind
from stillhouse.core.recipe_cut import CutSection, Size
from stillhouse.core.recipe_features import (
    BalanceSection,
    ProgressiveSection,
    SampleTerm,
    Terms,
)
from stillhouse.core.recipe_section import Section
from stillhouse.core.recipe_train import StudentSection, TrainSection

FROM_SCRATCH = "scratch"


class CorpusSection(Section):
    """The text, and how it is divided."""

    path: str = Field(
        description=".jsonl, a text on each line; or any other file, paragraphs of plain text."
    )
    text: str = Field(default="text", description="Key of the text in .jsonl.")
    language: str | None = Field(
        default=None, description="Key of the text's language: scores are then also given by it."
    )
    group: str | None = Field(
        default=None,
        description="Key of what stays together in the split (a document, an author); null: texts "
        "that are nearly the same.",
    )
    near_duplicate: float = Field(
        default=0.8, gt=0, le=1, description="Jaccard similarity that makes texts nearly the same."
    )
    limit: int | None = Field(default=None, ge=1, description="Use this many texts, drawn by hash.")
    min_chars: int = Field(default=1, ge=1, description="Shorter texts are left out.")
    validation: float = Field(default=0.05, gt=0, lt=0.5, description="Share that is watched.")
    test: float = Field(default=0.1, gt=0, lt=0.5, description="Share that is scored at the end.")
    max_tokens: int = Field(default=128, ge=8, description="Tokens of a row, or of a block.")


class AdaptSection(Section):
    """The teacher is first trained on the corpus, where it has no language head or another text."""

    weights: Literal["all", "head"] = Field(
        default="all", description="head: the language head alone, over a frozen body."
    )
    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    evals: int = Field(default=4, ge=1)
    patience: int | None = Field(default=3, ge=1)


class CorpusTeacherSection(Section):
    """Who teaches."""

    model: str = Field(description="hf:ID_OR_PATH, embedded (SmolLM2) or embedded-encoder.")
    adapt: AdaptSection | None = Field(
        default=None, description="Train it on the corpus first; null: as it is."
    )

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        kind, _, rest = model.partition(":")
        if model in ("embedded", "embedded-encoder") or (kind == "hf" and rest):
            return model
        raise ValueError("must be hf:ID_OR_PATH, embedded or embedded-encoder")


class CorpusStudentSection(Section):
    """What is trained. It reads what the teacher reads, by all or some of the teacher's pieces."""

    source: str = Field(
        default="teacher", alias="from", description="teacher, hf:ID_OR_PATH, or scratch."
    )
    layers: int | tuple[int, ...] | None = Field(
        default=None, description="Keep N layers, evenly spaced, or exactly these; null keeps all."
    )
    size: Size | None = Field(
        default=None,
        description="Cut to a share of the source's parameters, within 2%: light (0.10), medium "
        "(0.25), heavy (0.50), or a number; null: as it is.",
    )
    cut: CutSection = Field(default_factory=CutSection, description="By which means, with size.")
    vocabulary: Literal["full", "corpus"] | Annotated[int, Field(ge=256)] = Field(
        default="full",
        description="full, corpus (pieces that the training texts use), or at most N pieces: the "
        "corpus' first, then the teacher's others. Soft targets are then the teacher's belief over "
        "these pieces alone.",
    )
    config: dict[str, JsonValue] | None = Field(
        default=None,
        description="scratch: what differs from the teacher's configuration; with model_type, of "
        "another family.",
    )

    @field_validator("layers")
    @classmethod
    def _layers(cls, layers: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        StudentSection.model_validate({"head": "text", "from": "teacher", "layers": layers})
        return layers

    @model_validator(mode="after")
    def _fits(self) -> CorpusStudentSection:
        kind, _, rest = self.source.partition(":")
        if self.source not in ("teacher", FROM_SCRATCH) and not (kind == "hf" and rest):
            raise ValueError("from: must be teacher, hf:ID_OR_PATH or scratch")
        if self.config is not None and self.source != FROM_SCRATCH:
            raise ValueError("config: is for from: scratch; a cut student has its source's")
        if self.source == FROM_SCRATCH and self.layers is not None:
            raise ValueError("layers: cuts a source; from: scratch has its depth in config")
        if self.source == FROM_SCRATCH and self.size is not None:
            raise ValueError("size: cuts a source; from: scratch has its shape in config")
        if self.size is None and self.cut != CutSection():
            raise ValueError("cut: is read with size; set one")
        return self


class CorpusObjective(Section):
    """soft * T^2 * D(teacher_T, student_T) + hard * CE + weighted terms, in nats."""

    kind: Literal["causal_lm", "masked_lm"]
    soft: float = Field(default=0.5, ge=0, description="Weight of the soft targets.")
    hard: float = Field(default=0.5, ge=0, description="Weight of the text's own tokens.")
    distillation_temperature: float = Field(default=2.0, gt=0, description="T of the soft targets.")
    divergence: DivergenceKind = Field(default="forward_kl", description="See docs/divergences.md.")
    divergence_beta: float | None = Field(default=None, ge=0, le=1)
    mask_share: float = Field(
        default=0.15, gt=0, le=1, description="masked_lm: share of the tokens that are hidden."
    )
    terms: tuple[Terms, ...] = Field(
        default=(), description="What is compared beside tokens (docs/objectives.md)."
    )
    balance: Literal["fixed", "uncertainty", "gradient_norm"] = "fixed"
    balancing: BalanceSection = Field(default_factory=BalanceSection)
    progressive: ProgressiveSection | None = Field(
        default=None, description="Layers learn one after another; null: all at once."
    )

    @model_validator(mode="after")
    def _fits(self) -> CorpusObjective:
        if self.soft + self.hard == 0:
            raise ValueError("soft and hard: one of them must be above 0")
        if any(term.kind == "response" for term in self.terms):
            raise ValueError("terms: the response is weighed by soft and hard, not listed")
        if self.kind == "causal_lm":
            for number, term in enumerate(self.terms):
                if isinstance(term, SampleTerm) and term.pool == "first":
                    raise ValueError(
                        f"terms.{number}.pool: the first token of a causal_lm sees no other, so it "
                        "says nothing of its text; use mean or last"
                    )
        if self.progressive is not None and not any(hasattr(one, "count") for one in self.terms):
            raise ValueError("progressive needs a term over layers (hidden, attention, relation)")
        return self


class CorpusTrainSection(Section):
    """How the student is trained, as in the `train` section of other recipes."""

    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=5e-4, gt=0)
    batch_size: int = Field(default=32, ge=1, description="Rows of an optimizer step.")
    micro_batch_size: int | None = Field(default=None, ge=1, description="Rows of a forward pass.")
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=5.0, gt=0)
    evals: int = Field(default=6, ge=1, description="Looks at the validation texts.")
    patience: int | None = Field(default=3, ge=1, description="Looks without a better one.")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    untaught_twin: bool = Field(
        default=False, description="Also train the same student without a teacher, to compare."
    )


class CorpusEvaluateSection(Section):
    """How the student is judged."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=2000, ge=100)
    zero_shot: str | None = Field(
        default=None,
        description="causal_lm: .jsonl of {prompt, choices, answer}; the likeliest choice counts.",
    )
    zero_shot_limit: int | None = Field(default=None, ge=1)
    speed_rows: int = Field(default=64, ge=1, description="Rows of a speed measurement.")
    speed_repeats: int = Field(default=5, ge=1)


class CorpusRecipe(Section):
    """A whole recipe of a model trained on a corpus."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run folder.")
    seed: int = Field(default=0, ge=0, lt=2**32)
    corpus: CorpusSection
    teacher: CorpusTeacherSection
    student: CorpusStudentSection = Field(default_factory=CorpusStudentSection)
    objective: CorpusObjective
    train: CorpusTrainSection = Field(default_factory=CorpusTrainSection)
    evaluate: CorpusEvaluateSection = Field(default_factory=CorpusEvaluateSection)

    @model_validator(mode="after")
    def _fits(self) -> CorpusRecipe:
        if self.corpus.validation + self.corpus.test >= 0.8:
            raise ValueError("corpus.validation and corpus.test leave too little to train on")
        if self.evaluate.zero_shot is not None and self.objective.kind != "causal_lm":
            raise ValueError(
                "evaluate.zero_shot asks for the likelihood of a text, which objective.kind: "
                "masked_lm does not give"
            )
        if self.objective.kind == "causal_lm" and self.teacher.model == "embedded-encoder":
            raise ValueError("teacher.model: embedded-encoder writes no text; use masked_lm")
        if self.objective.kind == "masked_lm" and self.teacher.model == "embedded":
            raise ValueError("teacher.model: embedded (SmolLM2) finds no hidden tokens")
        micro = self.train.micro_batch_size
        if micro is not None and self.train.batch_size % micro:
            raise ValueError("train.batch_size must be a multiple of micro_batch_size")
        return self

    def section(self, *, taught: bool = True) -> TrainSection:
        """The same as a `train` section: what the trainer and the terms read.

        alpha is soft / (soft + hard), and the response weighs soft + hard. Without a teacher the
        text's own tokens weigh the same, and nothing else counts.
        """
        goal = self.objective
        weight = goal.soft + goal.hard if taught else max(goal.hard, 1.0)
        response: dict[str, Any] = {"kind": "response", "weight": weight}
        terms = [term.model_dump(mode="json") for term in goal.terms] if taught else []
        more: dict[str, Any] = {}
        if taught:
            more = goal.model_dump(
                mode="json",
                include={"divergence", "divergence_beta", "balance", "balancing", "progressive"},
            )
        return TrainSection.model_validate(
            {
                **self.train.model_dump(mode="json", exclude={"untaught_twin"}),
                "alpha": goal.soft / (goal.soft + goal.hard) if taught else 0.0,
                "distillation_temperature": goal.distillation_temperature,
                "terms": [response, *terms],
                **more,
            }
        )

    def adapting(self) -> TrainSection:
        """How the teacher is trained on the corpus before it teaches."""
        assert self.teacher.adapt is not None
        adapt = self.teacher.adapt.model_dump(mode="json", exclude={"weights"})
        train = self.train.model_dump(mode="json", exclude={"untaught_twin"})
        response = {"kind": "response"}
        return TrainSection.model_validate({**train, **adapt, "alpha": 0.0, "terms": [response]})
