"""Prune a trained student and heal it by a short distillation.

Single weights become 0 and stay 0 (`prune_weights`), or layers, channels, heads and neurons are cut
away (`cut_student`). How many zeros there are is counted in the files that were saved. Knows the
recipe's `prune` section and folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    TrainerCallback,
)

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_prune import PruneSection
from stillhouse.core.runfolder import Outcome
from stillhouse.models.loading import count_parameters
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.cut_plan import plan_cut
from stillhouse.train.cut_student import cut_model
from stillhouse.train.distil import STUDENT
from stillhouse.train.heads import classes_of
from stillhouse.train.heal import Place, go_on
from stillhouse.train.prune_weights import KeepZeros, input_norms, prunable, prune_weights
from stillhouse.train.sparsity import HONEST, follows_pattern, measure_sparsity
from stillhouse.train.students import Student

PRUNED: Final = "prune.json"


@dataclass(frozen=True, slots=True)
class Pruning:
    """Fewer weights: set to 0 and kept there, or cut away."""

    section: PruneSection
    classes: int

    def shape(self, student: Student, texts: Sequence[str]) -> Student:
        """See `Shaping`."""
        section = self.section
        if section.kind == "structured":
            return self._cut(student, texts)
        norms = None
        if section.importance == "activation":
            norms = input_norms(student.model, student.tokenizer, texts, section.samples)
        prune_weights(student.model, share=section.taken, pattern=section.pattern, norms=norms)
        return student

    def callbacks(self, model: Any) -> Sequence[TrainerCallback]:
        """See `Shaping`."""
        return () if self.section.kind == "structured" else (KeepZeros(model),)

    def release(self, model: Any) -> None:
        """See `Shaping`: it is plain already."""

    def as_json(self) -> dict[str, object]:
        """See `Shaping`."""
        return {"kind": self.section.kind, "share": self.section.taken}

    def _cut(self, student: Student, texts: Sequence[str]) -> Student:
        section = self.section
        try:
            plan = plan_cut(
                student.model.config,
                1 - section.taken,
                form=student.head,
                classes=self.classes,
                cut=section.cut,
            )
        except UserError as error:
            if error.field != "student.size":
                raise
            raise UserError(
                "prune.share",
                f"what is left, {error.value or 1 - section.taken}: {error.problem}",
                value=section.taken,
                action="take less away, or use kind: unstructured or 2:4",
            ) from None
        cut = cut_model(
            student.model, student.tokenizer, plan, student.head, texts, samples=section.samples
        )
        return student._replace(
            model=cut.model,
            plan=replace(
                student.plan,
                layers_kept=cut.layers_kept,
                parameters=count_parameters(cut.model),
                cut=plan.as_json(),
                said=tuple(plan.lines()),
            ),
        )


def run_prune(
    recipe: Recipe,
    student: Path,
    dataset_dir: Path,
    tuned: Path | None,
    *,
    work: Path,
    progress: Progress,
    signals: Path | None = None,
) -> Outcome:
    """Prune the recipe's trained student, heal it, and write `student/` and `prune.json`.

    Args:
        recipe: its `prune` section, and all that the student was trained with.
        student: the trained student's folder.
        dataset_dir: holds `train.jsonl` and `held_out.jsonl`.
        tuned: folder of the tuned teacher, if it was tuned.
        work: gets what `distil` writes, and `prune.json`.
        progress: bars.
        signals: the capture stage's folder, where `train.signals` is cache.

    Raises:
        UserError: a shape that cannot be met, or a student that cannot be pruned.
        StillhouseError: training went off.
    """
    section = recipe.prune or PruneSection()
    facts = go_on(
        recipe,
        Place(student, dataset_dir, tuned, work, signals),
        Pruning(section, len(classes_of(recipe.student.head, recipe.task))),
        progress,
        title="heal",
        epochs=section.epochs,
        learning_rate=section.learning_rate,
        terms=section.kind != "structured",
    )
    found = _report(section, student, work / STUDENT, facts)
    write_json(work / PRUNED, found)
    if section.kind != "structured":
        progress.say(f"      {HONEST}")
    return Outcome(
        summary={
            "parameters": facts["student"]["parameters"],
            "size_bytes": found["after"]["size_bytes"],
            "sparsity": found["after"]["sparsity"],
        }
    )


def prunable_names(folder: Path, head: str) -> set[str]:
    """The matrices of a saved student that pruning is about, as its files name them."""
    auto: Any = AutoModelForSequenceClassification if head == "label" else AutoModelForCausalLM
    with quiet_transformers(), torch.device("meta"):
        model = auto.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    return {f"{name}.weight" for name, _ in prunable(model)}


def _report(
    section: PruneSection, before: Path, after: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """What `prune.json` says, its zeros counted in the saved files."""
    names = prunable_names(after, facts["student"]["head"])
    measured = measure_sparsity(after, names)
    found: dict[str, Any] = {
        "kind": section.kind,
        "share": section.taken,
        "importance": None if section.kind == "structured" else section.importance,
        "parameters": {
            "before": facts["student"]["plan"]["parameters_before"],
            "after": facts["student"]["parameters"],
        },
        "before": measure_sparsity(before, names).as_json(),
        "after": measured.as_json(),
        "held_out": facts["further"]["held_out"],
        "healing_helped": facts["further"]["training_helped"],
        "steps": facts["steps"],
    }
    if section.pattern is not None:
        found["pattern_holds"] = follows_pattern(after, names, *section.pattern)
    if section.kind != "structured":
        found["note"] = HONEST
    return found
