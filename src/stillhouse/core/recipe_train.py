"""Recipe sections of the student and its training. Knows no stage."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.core.divergence_names import DivergenceKind
from stillhouse.core.heads import Head
from stillhouse.core.recipe_cut import CutSection, Size
from stillhouse.core.recipe_distributed import DistributedSection
from stillhouse.core.recipe_features import BalanceSection, ProgressiveSection, Terms
from stillhouse.core.recipe_on_policy import OnPolicySection
from stillhouse.core.recipe_readers import ReadersSection
from stillhouse.core.recipe_section import Section
from stillhouse.core.recipe_selective import SelectiveSection

SCRATCH: Final = "scratch:"


class StudentSection(Section):
    """What is trained."""

    head: Head = Field(
        description="label: a classifier; text: a language model; tags: a token classifier that "
        "copies the values of an extraction from its text (docs/tagging.md)."
    )
    source: str = Field(
        alias="from",
        description="hf:ID_OR_PATH, teacher (cut from it), embedded-encoder (MiniLM, 22.7M), or "
        "scratch:ID_OR_PATH (that model's shape and tokenizer, random weights).",
    )
    size: Size | None = Field(
        default=None,
        description="Cut to a share of the source's parameters, within 2%: light (0.10), medium "
        "(0.25), heavy (0.50), or a number; null: as it is. Where vocabulary is left out, that of "
        "a label or tag student is then task.",
    )
    cut: CutSection = Field(default_factory=CutSection, description="By which means, with size.")
    layers: int | tuple[int, ...] | None = Field(
        default=None,
        description="Keep N layers, evenly spaced or as cut.depth says, or exactly these; null "
        "keeps all.",
    )
    vocabulary: Literal["full", "task"] | Annotated[int, Field(ge=256)] = Field(
        default="full",
        description="full, task (tokens the task's text uses), or at most N tokens. A text "
        "student's soft targets are then its teacher's belief over these tokens alone.",
    )
    max_tokens: int = Field(default=2048, ge=8, description="Longer inputs are cut.")
    keep_head: bool = Field(
        default=False,
        description="Label and tag students: go on from the source's own head, a classifier of "
        "these labels or tags in this order; false: a new one.",
    )

    @model_validator(mode="before")
    @classmethod
    def _rows_of_a_size(cls, given: Any) -> Any:
        # Most of a small classifier would be rows of an embedding that its task never reads.
        if isinstance(given, dict) and given.get("size") is not None:
            if given.get("head") in ("label", "tags") and "vocabulary" not in given:
                return given | {"vocabulary": "task"}
        return given

    @model_validator(mode="after")
    def _cut_has_a_size(self) -> StudentSection:
        plain = CutSection()
        asked = {name for name, given in self.cut if given != getattr(plain, name)}
        by_count = {"depth", "samples"} if isinstance(self.layers, int) else set()
        if self.size is None and asked - by_count:
            raise ValueError(
                "student.cut is read with student.size (depth also with layers: N); set one"
            )
        if self.source.startswith(SCRATCH) and self.cut.depth != CutSection().depth:
            raise ValueError(
                "student.cut.depth chooses among a source's layers; from: scratch draws all anew"
            )
        return self

    @model_validator(mode="after")
    def _head_can_be_kept(self) -> StudentSection:
        if self.keep_head and (self.head == "text" or not self.source.startswith("hf:")):
            raise ValueError("student.keep_head is for label and tag students from hf:")
        if self.keep_head and not self.as_it_stands:
            raise ValueError(
                "student.keep_head needs the source as it stands: no size, layers or vocabulary"
            )
        return self

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
        if kind == "scratch" and rest and rest != "teacher":
            return source
        raise ValueError(
            "must be hf:ID_OR_PATH, teacher, embedded, embedded-encoder or scratch:ID_OR_PATH"
        )

    @property
    def as_it_stands(self) -> bool:
        """Whether the source is trained with its own layers, width, rows and weights."""
        uncut = self.size is None and self.layers is None and self.vocabulary == "full"
        return uncut and not self.source.startswith(SCRATCH)


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
    divergence: DivergenceKind = Field(
        default="forward_kl",
        description="What the soft targets minimise between teacher and student "
        "(docs/divergences.md).",
    )
    divergence_beta: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="beta of jsd (null: 0.5) and of the skewed kinds (null: 0.1).",
    )
    epochs: float = Field(default=3.0, gt=0)
    learning_rate: float | None = Field(
        default=None, gt=0, description="null: 2e-5 for full fine-tuning, 2e-4 for LoRA."
    )
    head_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Rate of the new head of a label or tag student, which starts at random; "
        "null: the same.",
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
    signals: Literal["live", "cache"] = Field(
        default="live",
        description="live: the teacher reads along; cache: what the capture stage wrote.",
    )
    on_policy: OnPolicySection | None = Field(
        default=None, description="Text students: also train on completions sampled on the way."
    )
    selective: SelectiveSection | None = Field(
        default=None,
        description="Text students: learn from the tokens alone that a reference of the same size "
        "shows to be learnable (docs/speculate.md); null: from all.",
    )
    teachers: ReadersSection | None = Field(
        default=None,
        description="Text students: who reads along; null: the recipe's teacher.",
    )
    packing: bool = Field(
        default=False, description="Text students: several short examples to a row."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Keep fewer activations and compute them again: less memory."
    )
    distributed: DistributedSection | None = Field(
        default=None, description="Several training processes; batch_size is of all together."
    )
    examples: int | None = Field(
        default=None,
        ge=2,
        description="Train on so many of the training examples, chosen by hash: more hold all of "
        "fewer. What is held out stays whole; null: all.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**32,
        description="Of the training alone (weights, order, choice of examples); null: the "
        "recipe's, which draws the split and the samples too.",
    )
    hard_label_twin: bool = Field(
        default=False,
        description="Also train the same student on hard teacher labels alone, for comparison.",
    )

    terms: tuple[Terms, ...] | None = Field(
        default=None,
        min_length=1,
        description="What is compared beyond answers: a local teacher's insides (docs/objectives.md"
        "); null: the response alone.",
    )
    balance: Literal["fixed", "uncertainty", "gradient_norm"] = Field(
        default="fixed",
        description="Weights of the terms: as they are given, or learned beside the student by "
        "uncertainty (Kendall et al. 2018) or gradient_norm (Chen et al. 2018).",
    )
    balancing: BalanceSection = Field(default_factory=BalanceSection)
    progressive: ProgressiveSection | None = Field(
        default=None, description="Layers learn one after another; null: all at once."
    )

    @model_validator(mode="after")
    def _micro_divides(self) -> TrainSection:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self

    @property
    def insides(self) -> bool:
        """Whether a term reads the teacher's insides."""
        return any(term.kind != "response" for term in self.terms or ())

    @property
    def effective_learning_rate(self) -> float:
        """The given rate, else 2e-5 (full) or 2e-4 (LoRA)."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-5 if self.lora is None else 2e-4
