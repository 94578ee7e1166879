"""Distil a trained student again, held to a shape.

By the recipe's own objectives, teacher and examples, in one process, on the recipe's device. A
folder with `train.json` is finished; a killed one goes on from its checkpoints. Knows the recipe
and folders; `prune` and `quantize` bring the shapes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.jsonl import read_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.rights import require_may_train
from stillhouse.train.distil import CHECKPOINTS, FACTS, Job, distil, read_data
from stillhouse.train.further import Further, Shaping
from stillhouse.train.looks import LOOKS

FULL_RATE: Final = 2e-5  # where the student was trained with adapters, whose rate is too high


class Place(NamedTuple):
    """Where things lie: the trained student, the dataset stage's folder, the tuned teacher's, the
    folder that is written to, and the capture stage's, read where `train.signals` is cache."""

    student: Path
    dataset: Path
    tuned: Path | None
    work: Path
    signals: Path | None = None


def go_on(
    recipe: Recipe,
    place: Place,
    shaping: Shaping,
    progress: Progress,
    *,
    title: str,
    epochs: float,
    learning_rate: float | None,
    terms: bool = True,
) -> dict[str, Any]:
    """Train a trained student further; writes what `distil` writes and returns what it returns.

    Args:
        recipe: all that the student was trained with.
        place: folders.
        shaping: what it is held to.
        progress: bars.
        title: of the bar.
        epochs: of training.
        learning_rate: `None`: the rate that the student was trained at (LoRA: 2e-5).
        terms: keep the terms beyond the response; those that name layers are of a student of the
            same layers.

    Raises:
        UserError: a student that does not fit.
        StillhouseError: training went off.
    """
    require_may_train(recipe.teacher)
    if (place.work / FACTS).exists():
        found: dict[str, Any] = read_json(place.work / FACTS)
        return found
    train = recipe.train
    rate = FULL_RATE if train.lora is not None else train.effective_learning_rate
    settings: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": rate if learning_rate is None else learning_rate,
        "head_learning_rate": None,  # the head is no longer new
        "lora": None,
        "distributed": None,
        "hard_label_twin": False,
        "progressive": None,
    }
    if not terms:
        settings |= {"terms": None, "balance": "fixed"}
    recipe = recipe.model_copy(
        update={"seed": recipe.training_seed, "train": train.model_copy(update=settings)}
    )
    job = Job(
        recipe,
        read_data(place.dataset, recipe),
        place.tuned,
        recipe.train.alpha,
        title,
        place.signals if train.signals == "cache" else None,
        further=Further(place.student, shaping),
    )
    facts = distil(job, place.work, progress)
    shutil.rmtree(place.work / CHECKPOINTS, ignore_errors=True)
    (place.work / LOOKS).unlink(missing_ok=True)
    return facts
