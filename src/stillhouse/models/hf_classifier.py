"""A sequence classifier as a teacher: it answers with a label and its belief over all of them.

It reads the query's last user message, whole: the recipe's `task.prompt` should be `{text}` alone
unless the classifier was trained with words around it. Knows no task: the labels come with each
call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stillhouse.core.errors import UnanswerableQueryError, UserError
from stillhouse.core.records import Completion, Query
from stillhouse.core.tasks import fold
from stillhouse.models.batching import Answer, BatchingCompleter, Call
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.completer import ModelInfo
from stillhouse.models.loading import Loaded

ROUND: Final = 6  # decimals of log-probabilities on the wire
SINGLE: Final = (None, "single_label_classification")  # kinds whose logits are a softmax's


class ClassifierTeacher(BatchingCompleter):
    """Answers from a sequence classifier of transformers.

    `id2label` must be the call's labels, in any order and any case. There is nothing to draw:
    `n` answers to a query are one answer n times. A query that does not fit fails alone.

    Raises:
        UserError: a model of regression or of several labels at a time.
    """

    def __init__(self, loaded: Loaded, batch_size: int) -> None:
        super().__init__(batch_size)
        kind = getattr(loaded.model.config, "problem_type", None)
        self._loaded, self._reader = loaded, ClassifierReader(loaded)
        self._classes = self._reader.classes
        if kind not in SINGLE or len(self._classes) < 2:
            raise UserError(
                loaded.name,
                "is not a classifier that gives each text one of several labels",
                value=kind,
                action="give one of problem_type single_label_classification",
            )
        self._columns: dict[tuple[str, ...], list[int]] = {}

    @property
    def info(self) -> ModelInfo:
        """A local model that gives its belief over the labels, and no text."""
        return self._loaded.info("label")

    def length_of(self, query: Query) -> int:
        """Tokens of the last user message."""
        return self._reader.measure(query.last_user_text)

    def run_batch(self, calls: Sequence[Call]) -> Sequence[Answer]:
        """One forward pass over all queries that fit."""
        orders = [self._order(call.sampling.labels or self._classes) for call in calls]
        texts = [call.query.last_user_text for call in calls]
        lengths = self._reader.lengths(texts)
        fits = [i for i, length in enumerate(lengths) if length <= self._reader.longest]
        answers: list[Answer] = [
            UnanswerableQueryError(
                f"query {call.query.id}: {length} tokens exceed the model's {self._reader.longest}"
            )
            for call, length in zip(calls, lengths, strict=True)
        ]
        if fits:
            rows = self._reader.read([texts[i] for i in fits]).log_p.tolist()  # [B, C]
            for i, row in zip(fits, rows, strict=True):
                answers[i] = self._answers(calls[i], [row[c] for c in orders[i]], lengths[i])
        return answers

    def _order(self, labels: tuple[str, ...]) -> list[int]:
        """Column of each label.

        Raises:
            UserError: the model's classes are other ones.
        """
        if labels not in self._columns:
            columns = {fold(name): number for number, name in enumerate(self._classes)}
            if len(columns) != len(self._classes) or {fold(x) for x in labels} != set(columns):
                raise UserError(
                    "task.labels",
                    f"are {list(labels)}, the classifier {self._loaded.name} has "
                    f"{list(self._classes)} (id2label)",
                    action="name the classifier's own labels, or mend id2label in its config.json",
                )
            self._columns[labels] = [columns[fold(label)] for label in labels]
        return self._columns[labels]

    def _answers(self, call: Call, row: list[float], tokens: int) -> Sequence[Completion]:
        labels = call.sampling.labels or self._classes
        belief = {label: round(value, ROUND) for label, value in zip(labels, row, strict=True)}
        return [
            Completion(
                query_id=call.query.id,
                text=labels[row.index(max(row))],
                model=self._loaded.name,
                revision=self._loaded.revision,
                sample=sample,
                prompt_tokens=tokens,
                completion_tokens=1,
                label_logprobs=belief,
            )
            for sample in range(call.sampling.n)
        ]
