"""The train stage: from accepted examples to a student on disk, and its hard-label twin.

The twin is the same student, from the same seed and schedule, trained on the teacher's answers
alone: the difference is what the soft targets were worth. Knows the recipe, the dataset's files and
its own folder, in which a killed run goes on from `checkpoints/`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from stillhouse.core.jsonl import write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.rights import require_may_train
from stillhouse.core.runfolder import Outcome
from stillhouse.core.tasks import ExtractionTask
from stillhouse.train.distil import CHECKPOINTS, FACTS, STUDENT, Job, distil, read_data
from stillhouse.train.extractive import Answered, check_extractive
from stillhouse.train.launch import train_in_processes
from stillhouse.train.looks import LOOKS
from stillhouse.train.objectives import check_beliefs, check_finite
from stillhouse.train.planning import check_recipe
from stillhouse.train.wiring import divergence_in

TWIN: Final = "twin"
REFERENCE: Final = "reference"  # of a selection of tokens


def run_train(
    recipe: Recipe,
    dataset_dir: Path,
    tuned: Path | None,
    work: Path,
    progress: Progress,
    *,
    signals: Path | None = None,
) -> Outcome:
    """Train the recipe's student.

    Args:
        recipe: its `student` and `train` sections, task and seed.
        dataset_dir: holds `train.jsonl` and `held_out.jsonl`.
        tuned: folder of the tuned teacher, if it was tuned.
        work: gets `student/`, `adapter/` (LoRA), `history.json`, `convergence.json`, `train.json`,
            and `twin/` and `reference/` with the same layout.
        progress: bars.
        signals: what the capture stage wrote, where `train.signals` is cache.

    Raises:
        UserError: a student, label, belief or tokenizer that does not fit.
        StillhouseError: training went off.
    """
    require_may_train(recipe.teacher)
    check_recipe(recipe)
    recipe = recipe.model_copy(update={"seed": recipe.training_seed})
    data = read_data(dataset_dir, recipe)
    if recipe.student.head == "label":
        check_beliefs([*data.train, *data.held_out], recipe.train.alpha)
        check_finite(data.train, recipe.train.alpha, divergence_in(recipe.train))
    if isinstance(recipe.task, ExtractionTask) and recipe.student.head == "tags":
        said = [Answered(recipe.task.input_text(e.to_query()), e.completion) for e in data.train]
        check_extractive(recipe.task, said, "the training examples")
    job = Job(recipe, data, tuned, recipe.train.alpha, "train student", signals)
    selective = recipe.train.selective
    if selective is not None:
        job = replace(job, reference=selective.reference)
        if selective.reference == "distil":
            _distil(_unselected(job, "train reference"), dataset_dir, work / REFERENCE, progress)
            job = replace(job, reference=str(work / REFERENCE / STUDENT))
    result = _distil(job, dataset_dir, work, progress)
    twin: dict[str, Any] | None = None
    if recipe.train.hard_label_twin:
        bare = {"terms": None, "balance": "fixed", "progressive": None, "selective": None}
        alone = recipe.model_copy(update={"train": recipe.train.model_copy(update=bare)})
        hard = Job(alone, data, tuned, 0.0, "train hard-label twin")
        twin = _distil(hard, dataset_dir, work / TWIN, progress)
    write_json(work / FACTS, {**result, "twin": twin})
    for folder in (work, work / TWIN, work / REFERENCE):
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        (folder / LOOKS).unlink(missing_ok=True)
    return Outcome(
        summary={
            "parameters": result["student"]["parameters"],
            "size_bytes": result["student"]["size_bytes"],
            **{
                name: result[name]
                for name in ("steps", "best_step", "stopped_early", "convergence")
            },
        }
    )


def _unselected(job: Job, title: str) -> Job:
    """The same student, from all tokens."""
    train = job.recipe.train.model_copy(update={"selective": None})
    return replace(job, recipe=job.recipe.model_copy(update={"train": train}), title=title)


def _distil(job: Job, dataset_dir: Path, folder: Path, progress: Progress) -> dict[str, Any]:
    """`distil`, in this process or in as many as the recipe says."""
    section = job.recipe.train.distributed
    if section is not None and section.world_size > 1 and not (folder / FACTS).exists():
        said = {
            "recipe": job.recipe.model_dump(mode="json", by_alias=True),
            "dataset": str(dataset_dir.resolve()),
            "tuned": None if job.tuned is None else str(job.tuned.resolve()),
            "alpha": job.alpha,
            "title": job.title,
            "signals": None if job.signals is None else str(job.signals.resolve()),
        }
        train_in_processes(section, said, folder, progress)
    return distil(job, folder, progress)
