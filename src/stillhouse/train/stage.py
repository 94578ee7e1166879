"""The train stage: from accepted examples to a student on disk, and its hard-label twin.

The twin is the same student, from the same seed and schedule, trained on the teacher's answers
alone: the difference is what the soft targets were worth. Knows the recipe, the dataset's files and
its own folder, in which a killed run goes on from `checkpoints/`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_records, write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.core.rights import require_may_train
from stillhouse.core.runfolder import Outcome
from stillhouse.train.distil import CHECKPOINTS, FACTS, Data, Job, distil
from stillhouse.train.objectives import check_beliefs
from stillhouse.train.planning import check_recipe

TWIN: Final = "twin"


def run_train(
    recipe: Recipe, dataset_dir: Path, tuned: Path | None, work: Path, progress: Progress
) -> Outcome:
    """Train the recipe's student.

    Args:
        recipe: its `student` and `train` sections, task and seed.
        dataset_dir: holds `train.jsonl` and `held_out.jsonl`.
        tuned: folder of the tuned teacher, if it was tuned.
        work: gets `student/`, `adapter/` (LoRA), `history.json`, `train.json`, and `twin/` with the
            same layout.
        progress: bars.

    Raises:
        UserError: a student, label, belief or tokenizer that does not fit.
        StillhouseError: training went off.
    """
    require_may_train(recipe.teacher)
    check_recipe(recipe)
    data = Data(_examples(dataset_dir / "train.jsonl"), _examples(dataset_dir / "held_out.jsonl"))
    if recipe.student.head == "label":
        check_beliefs([*data.train, *data.held_out], recipe.train.alpha)
    job = Job(recipe, data, tuned, recipe.train.alpha, "train student")
    result = distil(job, work, progress)
    twin: dict[str, Any] | None = None
    if recipe.train.hard_label_twin:
        bare = {"terms": None, "balance": "fixed", "progressive": None}
        alone = recipe.model_copy(update={"train": recipe.train.model_copy(update=bare)})
        hard = Job(alone, data, tuned, 0.0, "train hard-label twin")
        twin = distil(hard, work / TWIN, progress)
    write_json(work / FACTS, {**result, "twin": twin})
    for folder in (work, work / TWIN):
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return Outcome(
        summary={
            "parameters": result["student"]["parameters"],
            "size_bytes": result["student"]["size_bytes"],
            **{name: result[name] for name in ("steps", "best_step", "stopped_early")},
        }
    )


def _examples(path: Path) -> list[Example]:
    found = list(read_records(path, Example))
    if not found:
        raise DataError(str(path), "holds no examples", action="run the dataset stage again")
    return found
