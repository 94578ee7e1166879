"""A label student that answers each asker with the asker's own adapter, others with the shared one.

One forward pass for all; only the last layer differs. Knows a head and a function that finds
adapters; not how they were trained, nor how a request names its asker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stillhouse.core.records import Completion, Query
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.batching import BatchingCompleter, Call
from stillhouse.models.completer import ModelInfo
from stillhouse.models.head_weights import HeadStudent, HeadWeights

ROUND = 6  # decimals of log-probabilities on the wire


class PersonalStudent(BatchingCompleter):
    """See the module.

    Args:
        delta_of: the adapter for whoever asked a query; `None`: there is none that passed.
    """

    def __init__(
        self,
        student: HeadStudent,
        task: ClassificationTask,
        info: ModelInfo,
        delta_of: Callable[[Query], HeadWeights | None],
        batch_size: int = 32,
    ) -> None:
        super().__init__(batch_size)
        self._student, self._task, self._info, self._delta_of = student, task, info, delta_of

    @property
    def info(self) -> ModelInfo:
        """The shared student's."""
        return self._info

    def run_batch(self, calls: Sequence[Call]) -> list[Sequence[Completion]]:
        """See `BatchingCompleter`."""
        features = self._student.features([self._task.input_text(one.query) for one in calls])
        logits = self._student.head.logits(features).astype(np.float64)
        for row, call in enumerate(calls):
            delta = self._delta_of(call.query)
            if delta is not None:
                logits[row] += delta.logits(features[row : row + 1])[0]
        top = logits.max(-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        return [self._said(call, row) for call, row in zip(calls, log_p.tolist(), strict=True)]

    def _said(self, call: Call, row: list[float]) -> Sequence[Completion]:
        labels = self._task.labels
        belief = {label: round(value, ROUND) for label, value in zip(labels, row, strict=True)}
        return [
            Completion(
                query_id=call.query.id,
                text=labels[row.index(max(row))],
                model=self._info.name,
                revision=self._info.revision,
                sample=sample,
                completion_tokens=1,
                label_logprobs=belief,
            )
            for sample in range(call.sampling.n)
        ]
