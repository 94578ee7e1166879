"""What every classifier that answers with a label does the same, whatever runs it.

A reader cuts texts and gives log-probabilities over the task's labels; torch, onnxruntime and
others each have one. Knows no weights and imports no runtime.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from stillhouse.core.errors import UserError
from stillhouse.core.records import Completion, Query
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.models.batching import BatchingCompleter, Call
from stillhouse.models.completer import ModelInfo

ROUND: Final = 6  # decimals of log-probabilities on the wire


def classification(task: Task) -> ClassificationTask:
    """The task of a label student.

    Raises:
        UserError: it is of another kind.
    """
    if not isinstance(task, ClassificationTask):
        raise UserError(
            "student.head", "label needs a classification task", value=task.kind, action="use text"
        )
    return task


class LabelReader(Protocol):
    """Reads texts."""

    def measure(self, text: str) -> int:
        """Tokens of a text, not cut. May be called while another thread reads."""

    def read(self, texts: Sequence[str]) -> tuple[Any, Sequence[int]]:
        """Log-probabilities [B, C], a tensor or an array, and how many tokens each text had."""


class LabelCompleter(BatchingCompleter):
    """Answers `task.input_text(query)` with the likeliest label and the belief over all."""

    def __init__(
        self, reader: LabelReader, task: ClassificationTask, info: ModelInfo, batch_size: int
    ) -> None:
        super().__init__(batch_size)
        self._reader, self._task, self._info = reader, task, info

    @property
    def info(self) -> ModelInfo:
        """A local model that gives its belief over the labels."""
        return self._info

    def length_of(self, query: Query) -> int:
        """Tokens of the varying text."""
        return self._reader.measure(self._task.input_text(query))

    def run_batch(self, calls: Sequence[Call]) -> list[Sequence[Completion]]:
        """One reading; `n` samples of a query are the same answer n times."""
        log_p, lengths = self._reader.read([self._task.input_text(call.query) for call in calls])
        rows = log_p.tolist()
        return [self._answers(call, rows[i], lengths[i]) for i, call in enumerate(calls)]

    def _answers(self, call: Call, row: list[float], tokens: int) -> Sequence[Completion]:
        said = label_completion(call.query, self._task.labels, row, tokens, self._info)
        return [
            said if sample == 0 else said.model_copy(update={"sample": sample})
            for sample in range(call.sampling.n)
        ]


def label_completion(
    query: Query,
    labels: Sequence[str],
    row: Sequence[float],
    tokens: int,
    info: ModelInfo,
) -> Completion:
    """A belief over labels as an answer.

    Args:
        row: log-probabilities of the labels, nats.
        tokens: of the text, after cutting.
        info: who says so.
    """
    return Completion(
        query_id=query.id,
        text=labels[row.index(max(row))],
        model=info.name,
        revision=info.revision,
        prompt_tokens=tokens,
        completion_tokens=1,
        label_logprobs={
            label: round(value, ROUND) for label, value in zip(labels, row, strict=True)
        },
    )
