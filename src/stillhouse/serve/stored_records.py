"""Stored rows of the log as records, past those that are none.

A row that is no record (of another version, or damaged) is named in the process' log, counted and
passed over: it is no evidence, and keeps none away. Knows no query and no statistics.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from stillhouse.core.records import Message, Record
from stillhouse.serve.answer_text import answer_text, asked

R = TypeVar("R", bound=Record)

MOST_NAMED: Final = 10  # unreadable rows of a task, each time
# What reading a stored call may raise where it is none.
NO_CALL: Final = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_LOG: Final = logging.getLogger("stillhouse.serve")


class Unreadable:
    """Rows that could not be read, by task, until somebody takes the counts. For any thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, task: str, count: int) -> None:
        """So many more."""
        with self._lock:
            self._counts[task] += count

    def take(self) -> Mapping[str, int]:
        """What was added since the last call."""
        with self._lock:
            found, self._counts = self._counts, Counter()
        return found


class Texts(NamedTuple):
    """What was asked and answered; nothing where no texts were kept."""

    asked: tuple[Message, ...] = ()
    answer: str | None = None


class RecordReader:
    """Reads what is stored, and remembers what it could not.

    Args:
        unreadable: counts the rows.
    """

    def __init__(self, unreadable: Unreadable | None = None) -> None:
        self._unreadable = unreadable or Unreadable()
        self._named: set[tuple[str, str]] = set()  # task and row
        self._bad: dict[str, dict[str, str]] = defaultdict(dict)

    def record(self, kind: type[R], text: Any, task: str, row: str) -> R | None:
        """The record; `None` where it is none.

        Args:
            row: what the row is called in the log.
        """
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            self._cannot(task, row, _first(error))
        return None

    def texts(self, call: Any, task: str, row: str) -> Texts | None:
        """The texts of a stored call; `None` where it is none."""
        if call is None:
            return Texts()
        try:
            raw = json.loads(call)
            found = Texts(asked(raw.get("request") or {}), answer_text(raw.get("response")))
            (found.answer or "").encode()  # half of a surrogate pair is no text
        except NO_CALL as error:
            why = _first(error) if isinstance(error, ValidationError) else type(error).__name__
            self._cannot(task, row, f"its texts: {why}")
            return None
        return found

    def told(self) -> None:
        """Name and count what could not be read since the last call, each row once."""
        for task, rows in self._bad.items():
            new = {row: why for row, why in rows.items() if (task, row) not in self._named}
            self._named.update((task, row) for row in new)
            if new:
                self._unreadable.add(task, len(new))
            for row, why in list(new.items())[:MOST_NAMED]:
                _LOG.warning("%s: the stored %s cannot be read: %s", task, row, why)
            if len(new) > MOST_NAMED:
                more = len(new) - MOST_NAMED
                _LOG.warning("%s: %d more stored rows cannot be read", task, more)
        self._bad.clear()

    def _cannot(self, task: str, row: str, why: str) -> None:
        self._bad[task].setdefault(row, why)


def _first(error: ValidationError) -> str:
    """The first reason, without what was given: texts are not logged."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
