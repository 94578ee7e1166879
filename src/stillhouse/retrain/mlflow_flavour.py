"""What MLflow calls to open an exported student: `_load_pyfunc`, and `predict` on what it returns.

Input: a table with a column `text`, or a list of texts or of chats (lists of role and content).
Output: a table with `answer` and `confidence` (probability of the answer, for label students; else
empty). Imports no MLflow.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_json
from stillhouse.core.optional import require
from stillhouse.core.records import Completion, Message, Query
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask, Task
from stillhouse.models.artefact_student import open_any
from stillhouse.models.completer import Completer, Sampling

AnyTask = ClassificationTask | ExtractionTask | GenerationTask
BATCH = 32


class MlflowStudent:
    """A student that answers tables."""

    def __init__(self, student: Completer, task: AnyTask) -> None:
        self._student, self._task = student, task

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """A table of answers, a row for each of the input. `params.max_tokens` cuts texts.

        Raises:
            UserError: a table without `text`, or an entry that is neither text nor chat.
        """
        queries = [
            Query(id=str(number), messages=self._messages(entry))
            for number, entry in enumerate(_entries(model_input))
        ]
        task = self._task
        sampling = Sampling(
            max_tokens=int((params or {}).get("max_tokens", 256)),
            labels=task.labels if isinstance(task, ClassificationTask) else (),
            json_schema=task.json_schema if isinstance(task, ExtractionTask) else None,
        )
        # In a thread of its own: notebooks, where MLflow is at home, have a loop running already.
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(asyncio.run, self._ask(queries, sampling)).result()
        pandas = require("pandas", "mlflow", "an MLflow model's answer")
        table = {"answer": [c.text for c in found], "confidence": [_confidence(c) for c in found]}
        return pandas.DataFrame(table)

    async def _ask(self, queries: Sequence[Query], sampling: Sampling) -> list[Completion]:
        answers = await asyncio.gather(*(self._student.complete(q, sampling) for q in queries))
        return [answer[0] for answer in answers]

    def _messages(self, entry: object) -> tuple[Message, ...]:
        if isinstance(entry, str):
            return self._task.messages_for(entry)
        try:
            return TypeAdapter(tuple[Message, ...]).validate_python(entry)
        except ValidationError:
            raise UserError(
                "text", "is neither a text nor a chat of role and content", value=entry
            ) from None


def _load_pyfunc(data_path: str) -> MlflowStudent:
    """Open what `export_mlflow` wrote."""
    folder = Path(data_path)
    notes = read_json(folder / "stillhouse.json")
    task: AnyTask = TypeAdapter(Task).validate_python(notes["task"])
    return MlflowStudent(open_any(folder / "student", task, str(notes["head"]), BATCH), task)


def _entries(model_input: Any) -> list[object]:
    if hasattr(model_input, "columns"):
        if "text" not in model_input.columns:
            raise UserError("text", "is no column of the table", value=list(model_input.columns))
        return list(model_input["text"])
    if isinstance(model_input, str):
        return [model_input]
    return list(model_input)


def _confidence(answer: Completion) -> float:
    beliefs = answer.label_logprobs
    if beliefs is None or answer.text not in beliefs:
        return math.nan
    return math.exp(beliefs[answer.text])
