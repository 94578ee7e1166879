"""The recipe: what the user wants, as strict typed sections, one per stage.

Reading YAML, overrides and error lines are in `recipe_file`. Knows no stage: each stage reads its
own section and nothing else.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from stillhouse.core.recipe_compare import CompareSection
from stillhouse.core.recipe_compress import CompressSection
from stillhouse.core.recipe_data import DatasetSection, TrafficSection
from stillhouse.core.recipe_ensemble import ENSEMBLE
from stillhouse.core.recipe_prune import PruneSection
from stillhouse.core.recipe_section import Section
from stillhouse.core.recipe_signals import CaptureSection
from stillhouse.core.recipe_speculate import SpeculateSection
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection, ensemble_problem
from stillhouse.core.recipe_train import StudentSection, TrainSection
from stillhouse.core.recipe_tune import SearchSection
from stillhouse.core.tagging import tagging_problem
from stillhouse.core.tasks import ExtractionTask, Task


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


class Recipe(Section):
    """A whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run folder.")
    seed: int = Field(default=0, ge=0, lt=2**32)
    task: Task
    traffic: TrafficSection
    teacher: TeacherSection
    dataset: DatasetSection = Field(default_factory=DatasetSection)
    student: StudentSection
    capture: CaptureSection | None = Field(
        default=None,
        description="Write the teacher's beliefs once, for train.signals: cache; null: defaults.",
    )
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    prune: PruneSection | None = Field(
        default=None,
        description="Prune the trained student and heal it, as a second student beside it; null: "
        "none.",
    )
    compress: CompressSection | None = Field(
        default=None,
        description="Bring the student into smaller forms after it is evaluated, each gated again; "
        "null: not. `stillhouse compress` takes the defaults then.",
    )
    prices: PricesSection = Field(default_factory=PricesSection)
    compare: CompareSection | None = Field(
        default=None, description="What `stillhouse teacher compare` compares."
    )
    tune: SearchSection | None = Field(
        default=None, description="What `stillhouse tune` searches; null: its defaults."
    )
    speculate: SpeculateSection | None = Field(
        default=None,
        description="After evaluation: the student as a draft of its teacher (docs/speculate.md); "
        "null: not measured.",
    )

    @property
    def needs_beliefs(self) -> bool:
        """Whether the student's training needs the teacher's class probabilities."""
        return self.train.alpha > 0 and self.student.head == "label"

    @property
    def training_seed(self) -> int:
        """`train.seed`, else the recipe's own."""
        return self.seed if self.train.seed is None else self.train.seed

    @model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        if self.student.head == "label" and self.task.kind != "classification":
            raise ValueError(
                f"student.head: label needs a classification task, not {self.task.kind}; "
                "use head: text"
            )
        if self.student.head == "tags":
            self._tags_fit()
        if self.teacher.tune is not None and self.traffic.labelled is None:
            raise ValueError("teacher.tune needs traffic.labelled")
        expand = self.traffic.expand
        if expand and expand.sampling_temperature > 1 and self.teacher.kind == "anthropic":
            raise ValueError(
                "traffic.expand.sampling_temperature must be at most 1 for an anthropic teacher"
            )
        if expand and self.teacher.members:
            raise ValueError(
                "traffic.expand needs one teacher that writes, not an ensemble: expand in a run of "
                "its own, and give its queries as traffic"
            )
        if self.student.source == "teacher" and not self.teacher.trainable:
            raise ValueError(
                "student.from: teacher needs a teacher with trainable weights (hf: or embedded), "
                f"not {self.teacher.kind}"
            )
        if self.student.source == "embedded-encoder" and self.student.head == "text":
            raise ValueError(
                "student.from: embedded-encoder cannot write text; use head: label, or head: tags "
                "for an extraction"
            )
        if self.speculate is not None:
            problem = self.speculate.problem(self.student.head, self.teacher.trainable)
            if problem is not None:
                raise ValueError(problem)
        self._answers_can_agree()
        problem = self.compress.problem(self.student.head) if self.compress is not None else None
        if problem is not None:
            raise ValueError(f"compress.{problem}")
        if self.teacher.members:
            members = {
                f"members.{number}": section
                for number, section in enumerate(self.teacher.member_sections)
            }
            problem = ensemble_problem(
                self.task.kind, self.teacher.combine, members, self.teacher.weights
            )
            if problem is not None:
                raise ValueError(f"teacher.{problem}")
        if self.compare is not None:
            if self.traffic.labelled is None:
                raise ValueError("compare needs traffic.labelled")
            problem = self.compare.problem(self.task.kind, self.teacher)
            if problem is not None:
                raise ValueError(f"compare.{problem}")
        return self

    def _tags_fit(self) -> None:
        if not isinstance(self.task, ExtractionTask):
            raise ValueError(
                f"student.head: tags needs an extraction task, not {self.task.kind}; use head: "
                + ("label" if self.task.kind == "classification" else "text")
            )
        problem = tagging_problem(self.task.json_schema)
        if problem is not None:
            raise ValueError(
                f"student.head: tags copies strings, and lists of strings, from the text, but "
                f"{problem}; use head: text, or change the schema"
            )
        if self.student.source in ("teacher", "embedded"):
            raise ValueError(
                "student.from: a tag student reads both sides of a word, and "
                f"{self.student.source} is a language model; use embedded-encoder, or hf: or "
                "scratch: of an encoder"
            )

    def _answers_can_agree(self) -> None:
        dataset, teacher = self.dataset, self.teacher
        together = teacher.kind == ENSEMBLE
        if dataset.agreement is not None and not together:
            raise ValueError(
                "dataset.agreement needs several teachers (teacher.members); for several answers "
                "of one, use dataset.consistency"
            )
        if together and (dataset.consistency is not None or dataset.best_of != "none"):
            key = "consistency" if dataset.consistency is not None else "best_of"
            raise ValueError(
                f"dataset.{key} chooses among several answers to a query, and an ensemble gives "
                "one; use dataset.agreement, or leave it out"
            )
        if dataset.best_of != "none" and (teacher.samples < 2 or teacher.sampling_temperature == 0):
            raise ValueError(
                f"dataset.best_of: {dataset.best_of} chooses among differing answers to a query: "
                "teacher.samples of 2 or more and teacher.sampling_temperature above 0"
            )
        if dataset.consistency is not None:
            if teacher.samples < 2 or teacher.sampling_temperature == 0:
                raise ValueError(
                    "dataset.consistency needs several differing answers a query: teacher.samples "
                    "of 2 or more and teacher.sampling_temperature above 0"
                )
        if dataset.validators.json_schema is not None and self.task.kind != "generation":
            raise ValueError(
                "dataset.validators.json_schema is for generation tasks; an extraction task has "
                "its own task.json_schema"
            )
