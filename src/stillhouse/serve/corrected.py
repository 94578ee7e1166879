"""Scores by corrected answers: what clients sent as right, against what both models had said.

The texts are those of the database, redacted alike. Runs where the controller reads outcomes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from stillhouse.core.scorers import scorers_for
from stillhouse.core.tasks import Task
from stillhouse.serve.answer_text import answer_text
from stillhouse.serve.records import Outcome, Scored
from stillhouse.serve.seams import Log
from stillhouse.serve.stored_records import NO_CALL
from stillhouse.serve.tables import CALLS

_LOG: Final = logging.getLogger("stillhouse.serve")


class CorrectedScoring:
    """Of one task. Requests that have a score already are left alone."""

    def __init__(self, engine: Engine, log: Log, task: Task) -> None:
        self._engine, self._log = engine, log
        self._scorer = scorers_for(task)[0]
        self._done: set[str] = set()

    def __call__(self, rows: Sequence[Scored]) -> None:
        """Score the requests that these outcomes correct, and store the scores; blocks."""
        for row in rows:
            if row.outcome.kind == "scorer":
                self._done.add(row.served.shadow_of or row.served.id)
        wanted = {
            row.served.id: row.outcome.corrected
            for row in rows
            if row.outcome.corrected is not None
            and row.served.shadow_of is None
            and row.served.id not in self._done
        }
        found: list[Outcome] = []
        for request, corrected in wanted.items():
            self._done.add(request)
            for answer, text in self._texts(request).items():
                score = 0.0 if text is None else self._scorer.score(text, corrected)
                found.append(Outcome(request=answer, kind="scorer", score=score, at=time.time()))
        if found:
            self._log.scores(found)

    def _texts(self, request: str) -> Mapping[str, str | None]:
        """The texts of a request's answer and its shadow answer, by id; without those whose texts
        were not kept."""
        query = sa.select(CALLS.c.id, CALLS.c.call).where(
            sa.or_(CALLS.c.id == request, CALLS.c.shadow_of == request), CALLS.c.call.is_not(None)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found: dict[str, str | None] = {}
        for identity, call in rows:
            try:
                found[identity] = answer_text(json.loads(call)["response"])
            except NO_CALL:
                _LOG.warning("the stored texts of request %s cannot be read", identity)
        return found
