"""A trained student as a completer: a classifier that answers with a label, or a language model.

Its answers come with its belief over the labels, so that fidelity and calibration are measured as
for any white-box model. Knows model folders and tasks; does not know how the student was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillhouse.core.artefact import is_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.records import Completion, Query
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.models.artefact_student import open_artefact
from stillhouse.models.batching import BatchingCompleter, Call
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.completer import Completer, ModelInfo
from stillhouse.models.hf_completer import HfCompleter
from stillhouse.models.loading import Loaded, load_causal_lm, load_classifier

ROUND = 6  # decimals of log-probabilities on the wire


def open_student(
    folder: Path,
    task: ClassificationTask | ExtractionTask | GenerationTask,
    head: str,
    batch_size: int,
    device: str = "auto",
) -> Completer:
    """Open a student folder: head `label` is a sequence classifier, `text` a language model.

    A folder with an `artefact.json` (`core.artefact`) is opened by its own runtime.

    Raises:
        UserError: the folder cannot be loaded, or its labels are not the task's, in order.
        MissingExtraError: an artefact's runtime is not installed.
    """
    if is_artefact(folder):
        return open_artefact(folder, task, head, batch_size, device)
    return open_weights(folder, task, head, batch_size, device)


def open_weights(
    folder: Path,
    task: ClassificationTask | ExtractionTask | GenerationTask,
    head: str,
    batch_size: int,
    device: str = "auto",
) -> Completer:
    """Open a folder of transformers' own weights, whatever else lies in it.

    Raises:
        UserError: as `open_student`.
    """
    if head == "text":
        return HfCompleter(load_causal_lm(str(folder), device=device), batch_size, cuts=True)
    if not isinstance(task, ClassificationTask):
        raise UserError(
            "student.head", "label needs a classification task", value=task.kind, action="use text"
        )
    return LabelStudent(load_classifier(str(folder), device=device), task, batch_size)


class LabelStudent(BatchingCompleter):
    """A sequence classifier that reads `task.input_text(query)`.

    Inputs longer than the tokenizer's `model_max_length` or the model's positions are cut, as they
    were in training.

    Raises:
        UserError: `id2label` of the model is not the task's labels in the task's order.
    """

    def __init__(self, loaded: Loaded, task: ClassificationTask, batch_size: int) -> None:
        super().__init__(batch_size)
        self._loaded, self._task = loaded, task
        self._reader = ClassifierReader(loaded)
        if self._reader.classes != task.labels:
            raise UserError(
                f"{loaded.name} id2label",
                f"holds {list(self._reader.classes)}, the task's labels are {list(task.labels)}",
                action="train the student again for this task",
            )

    @property
    def info(self) -> ModelInfo:
        """A local model that gives its belief over the labels."""
        return self._loaded.info("label")

    def length_of(self, query: Query) -> int:
        """Tokens of the varying text."""
        return self._reader.measure(self._task.input_text(query))

    def run_batch(self, calls: Sequence[Call]) -> list[Sequence[Completion]]:
        """One forward pass; `n` samples of a query are the same answer n times."""
        log_p, lengths = self._reader.read([self._task.input_text(call.query) for call in calls])
        best, rows = log_p.argmax(-1).tolist(), log_p.tolist()
        return [self._answers(call, rows[i], best[i], lengths[i]) for i, call in enumerate(calls)]

    def _answers(
        self, call: Call, row: list[float], best: int, tokens: int
    ) -> Sequence[Completion]:
        labels = self._task.labels
        belief = {label: round(value, ROUND) for label, value in zip(labels, row, strict=True)}
        return [
            Completion(
                query_id=call.query.id,
                text=labels[best],
                model=self._loaded.name,
                revision=self._loaded.revision,
                sample=sample,
                prompt_tokens=tokens,
                completion_tokens=1,
                label_logprobs=belief,
            )
            for sample in range(call.sampling.n)
        ]
