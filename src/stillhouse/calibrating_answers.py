"""A student asked about samples as the gateway asks it: what its gate is fitted to.

Each answer with its features, judged by the task's scorer. Knows students and samples; fits
nothing and writes no gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.scorers import scorers_for
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.evaluate.candidates import EvaluationSet
from stillhouse.models.confidence import agreement
from stillhouse.models.novelty import FAMILIARITY, Novelty, load_novelty
from stillhouse.serve.answer_text import said
from stillhouse.serve.calibrator import Judged
from stillhouse.serve.features import answer_features, first_text
from stillhouse.serve.gate_file import Consistency
from stillhouse.serve.student_brains import open_brain
from stillhouse.serve.student_folder import notes_of
from stillhouse.serve.student_labels import Brain, LabelReading, Opening
from stillhouse.serve.student_local import ask_all

BATCH: Final = 32
OF_LABELS: Final = ("logit", "margin", "certainty")
OF_TEXTS: Final = ("logit", "min_logprob", "min_margin", "tokens")


class Scored(NamedTuple):
    """One held-out sample: what the gate is fitted on, and both variants' scores."""

    judged: Judged
    student: float
    teacher: float


class Looks(NamedTuple):
    """How a gate looks: the score from which an answer is acceptable, tokens of a stream's head,
    further answers that must agree, and the training texts that a request is compared with."""

    level: float
    window: int | None = None
    consistency: Consistency | None = None
    novelty: Novelty | None = None


def opened_brain(recipe: Recipe, folder: Path, field: str) -> Brain:
    """A student of a folder, opened as the gateway opens it.

    Raises:
        UserError: it cannot be, or there is none; `field` is named.
    """
    head = notes_of(folder, field).head
    return open_brain(
        Opening(folder, str(head), recipe.task, "student", BATCH, recipe.teacher.max_tokens)
    )


def novelty_of(recipe: Recipe, root: Path, place: Path) -> Novelty:
    """The training texts' vectors as they are kept: what is fitted must be what is served.

    Args:
        root: the run.
        place: file that they are written to.

    Raises:
        DataError: the run holds no training texts.
    """
    path = RunFolder(root).stage("dataset") / "train.jsonl"
    texts = [recipe.task.input_text(one.to_query()) for one in read_records(path, Example)]
    if not texts:
        raise DataError(str(path), "holds no training texts")
    Novelty.of_texts(texts, recipe.seed).save(place)
    return load_novelty(place)


def scored(
    recipe: Recipe, brain: Brain, held_out: EvaluationSet, looks: Looks, progress: Progress
) -> list[Scored]:
    """The samples that the student answered, in their order."""
    task, score = recipe.task, scorers_for(recipe.task)[0].score
    classes = len(task.labels) if isinstance(task, ClassificationTask) else 2
    asked: list[Mapping[str, Any]] = [
        {
            "messages": [{"role": m.role, "content": m.content} for m in query.messages],
            "logprobs": True,
            "top_logprobs": classes,
        }
        for query in held_out.queries
    ]
    often = looks.consistency
    with progress.bar("calibrate", len(asked) * (1 if often is None else 2), "answers") as bar:
        answers = ask_all(brain, asked, BATCH, bar.advance)
        others: list[list[str]] = [[] for _ in asked]
        if often is not None:
            drawn = {
                "n": often.samples,
                "temperature": often.sampling_temperature,
                "seed": recipe.seed,
                "logprobs": None,
                "top_logprobs": None,
            }
            more = ask_all(brain, [{**one, **drawn} for one in asked], BATCH, bar.advance)
            others = [_texts(one.body) for one in more]
    names = OF_LABELS if _gives_beliefs(brain, task) else OF_TEXTS
    texts = [task.input_text(query) for query in held_out.queries]
    near: list[float | None] = [None] * len(texts)
    if looks.novelty is not None:
        near = list(looks.novelty.familiarity(texts))
    found = []
    for number, (status, body) in enumerate(answers):
        if status >= 400:
            continue
        features = _used(answer_features(body), names)
        familiar = near[number]
        if familiar is not None:
            features[FAMILIARITY] = float(familiar)
        text = first_text(body)
        if others[number]:
            features |= agreement([said(task, one) for one in (text, *others[number])])
        window: dict[str, float] | None = None
        if looks.window is not None and often is None:
            window = {**features, **_used(answer_features(body, looks.window), names)}
        own = score(text, held_out.references[number])
        query = held_out.queries[number]
        group = query.id if held_out.groups is None else held_out.groups[number]
        judged = Judged(query.id, features, own >= looks.level, str(group), window)
        teacher = score(held_out.teacher.texts[number], held_out.references[number])
        found.append(Scored(judged, own, teacher))
    return found


def _gives_beliefs(brain: Brain, task: Task) -> bool:
    """Whether every answer of the student comes with a belief over all classes.

    A text of one token may look like such an answer, where its alternatives are as good as all.
    """
    return isinstance(brain, LabelReading) and isinstance(task, ClassificationTask)


def _used(features: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Of a label, what all classes say; of a text, what its tokens do. The others say it again."""
    return {name: features[name] for name in names if name in features}


def _texts(body: Mapping[str, Any]) -> list[str]:
    return [str(one["message"]["content"]) for one in body.get("choices") or ()]
