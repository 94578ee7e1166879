"""The texts by which static INT8 sets its ranges: taken from the training examples or from a file,
and looked at before they are used.

Ranges set by texts of another task cut off what this task's texts bring, and the score falls
without a word. So a file of the user's is compared with the training examples, by the words both
use. Knows texts; not what is calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError
from sklearn.feature_extraction.text import TfidfVectorizer

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_objects, read_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, Query
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.split import unit_hash
from stillhouse.core.tasks import Task

FIELD: Final = "compress.calibration"
LEAST_SHARE: Final = 0.5  # of the likeness that held-out texts of the task itself have
LEAST_KNOWN: Final = 0.1  # below it, words do not tell: texts without spaces, or all different
COMPARED: Final = 500


def calibration_texts(recipe: Recipe, run: RunFolder, path: str | None, count: int) -> list[str]:
    """At most `count` texts as the student reads them, chosen by the recipe's seed.

    Args:
        recipe: gives the task and the seed.
        run: its dataset stage is finished.
        path: the user's file; `None`: the training examples.
        count: how many.

    Raises:
        DataError: the file cannot be read, is empty, or its texts are of another task; or there
            are no training examples.
    """
    task = recipe.task
    train = _of_examples(task, run.stage("dataset") / "train.jsonl")
    if path is None:
        if not train:
            raise DataError(
                str(run.stage("dataset") / "train.jsonl"),
                "holds no example to calibrate on",
                action=f"give queries with {FIELD}",
            )
        return _chosen(train, count, recipe.seed)
    texts = texts_of_file(task, Path(path))
    held_out = _of_examples(task, run.stage("dataset") / "held_out.jsonl")
    check_on_task(texts, train, held_out, path)
    return _chosen(texts, count, recipe.seed)


def check_on_task(
    texts: Sequence[str], train: Sequence[str], held_out: Sequence[str], path: str
) -> None:
    """Refuse texts that are far less like the training texts than the held-out ones are.

    Likeness is the cosine of two centroids of TF-IDF vectors (words, document frequencies of the
    training texts), of as many texts on either side.

    Raises:
        DataError: it is below half of what held-out texts reach.
    """
    if not train or not held_out:
        return
    size = min(len(texts), len(held_out), COMPARED)
    vectors = TfidfVectorizer(sublinear_tf=True)
    try:
        known = vectors.fit_transform(list(train[: 4 * COMPARED]))
    except ValueError:  # no words at all: nothing can be said
        return
    # Words that nearly every text has say nothing of a task.
    weight = np.asarray(vectors.idf_ - vectors.idf_.min())
    centre = np.asarray(known.mean(axis=0)).ravel() * weight

    def likeness(some: Sequence[str]) -> float:
        other = np.asarray(vectors.transform(list(some)).mean(axis=0)).ravel() * weight
        norm = float(np.linalg.norm(centre) * np.linalg.norm(other))
        return float(centre @ other) / norm if norm > 0 else 0.0

    own, theirs = likeness(held_out[:size]), likeness(texts[:size])
    if own >= LEAST_KNOWN and theirs < LEAST_SHARE * own:
        raise DataError(
            f"{FIELD} {path}",
            f"is off the task: its words are {100 * theirs / own:.0f}% as like the training "
            f"examples as held-out ones are, and {100 * LEAST_SHARE:.0f}% are needed",
            action="give queries of this task, or leave the key out to take the training examples",
        )


def _of_examples(task: Task, path: Path) -> list[str]:
    if not path.exists():
        return []
    return [task.input_text(example.to_query()) for example in read_records(path, Example)]


def texts_of_file(task: Task, path: Path) -> list[str]:
    """Lines of `{"text": ...}` or of chats, as traffic has them; as the student reads them.

    Raises:
        DataError: the file cannot be read, is empty, or a line has neither; names the line.
    """
    texts: list[str] = []
    for number, raw in read_objects(path):
        text = raw.get("text")
        if isinstance(text, str):
            messages = task.messages_for(text)
        elif isinstance(raw.get("messages"), list):
            try:
                query = Query.model_validate({"id": str(number), "messages": raw["messages"]})
            except ValidationError as error:
                raise DataError(
                    f"{path} line {number}", f"messages: {error.errors()[0]['msg']}"
                ) from None
            messages = query.messages
        else:
            raise DataError(
                f"{path} line {number}",
                "has neither text nor messages",
                action='write {"text": "..."} on each line',
            )
        texts.append(task.input_text(Query(id=str(number), messages=messages)))
    if not texts:
        raise DataError(f"{FIELD} {path}", "holds no query", action="give at least one")
    return texts


def _chosen(texts: Sequence[str], count: int, seed: int) -> list[str]:
    distinct = list(dict.fromkeys(texts))
    if len(distinct) <= count:
        return distinct
    kept = set(sorted(distinct, key=lambda text: (unit_hash(text, seed), text))[:count])
    return [text for text in distinct if text in kept]
