"""The brain that answers extractions with a tag student, a batch of texts at a time.

Imports no runtime. Knows requests and answers; no socket.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillhouse.core.records import Completion, Query
from stillhouse.core.tasks import schema_problem, unread_keyword
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.student_answers import Voice, label_answer, refusal
from stillhouse.serve.student_labels import SPREAD, LabelReading, Opening
from stillhouse.serve.student_requests import Asked, Runtime

Extract = Callable[[Sequence[Query], int], Sequence[Completion]]


class TagBrain(LabelReading):
    """Answers with JSON; nothing is drawn.

    Args:
        extract: its answers to a batch of queries, with so many alternatives a tag (0: without
            log-probabilities).
        spread: see `LabelReading`.
    """

    def __init__(
        self, opening: Opening, voice: Voice, extract: Extract, spread: float = SPREAD
    ) -> None:
        super().__init__(opening, voice, spread, Runtime(writes=False, schemas=True))
        self._extract = extract

    def _said(self, asked: Sequence[Asked]) -> Sequence[Completion]:
        wanted = [max(1, one.logprobs) for one in asked if one.logprobs is not None]
        return self._extract([one.query for one in asked], max(wanted, default=0))

    def _frames(self, number: int, asked: Asked, said: Completion) -> bytes:
        if asked.json_schema is not None:
            problem = _misfit(said.text, asked.json_schema)
            if problem is not None:
                error = ApiError(422, f"The student's answer does not fit: {problem}.")
                return refusal(number, error)
        return label_answer(number, asked, said, self.voice)


def _misfit(answer: str, schema: Mapping[str, Any]) -> str | None:
    """Why an answer may not be what a request's schema asks for, or `None`."""
    try:
        unread = unread_keyword(dict(schema))
        if unread is not None:
            return f"the schema's {unread} is not checked here"
        return schema_problem(json.loads(answer), schema, "")
    except (TypeError, ValueError, RecursionError):  # of a schema that is none
        return "the schema cannot be read"
