"""The error tree. Knows how to say one clear line; does not know who shows it.

A user's mistake is a `UserError`: it names the field, the value and the next action, and the CLI
prints it as one line with exit code 2. Everything else that goes wrong in a foreseen way (a server
that stays down, a disk that fills up) is another `StillhouseError`, exit code 1. A programmer's
mistake is neither: it keeps its traceback.
"""

from __future__ import annotations

import re
from typing import Final

SHOWN_VALUE_CHARS: Final = 120
# scheme://user:password@host, as databases are named.
_PASSWORD: Final = re.compile(r"(://[^:/@\s]*:)[^/\s]*@")


class StillhouseError(Exception):
    """Base of all errors this package raises on purpose. Its text is one line."""


class UserError(StillhouseError, ValueError):
    """Something the user wrote or supplied cannot be used.

    Args:
        field: what is wrong, as the user knows it (`teacher.model`, `traffic.jsonl line 12`).
        problem: what is wrong with it.
        value: the offending value; shown shortened. `None` when there is none to show.
        action: what to do next.
    """

    def __init__(self, field: str, problem: str, *, value: object = None, action: str = "") -> None:
        self.field = field
        self.problem = problem
        self.value = value
        self.action = action
        super().__init__(one_line(field, problem, value, action))


class RecipeError(UserError):
    """The recipe does not say something that can be run."""


class DataError(UserError):
    """A file of queries, labels or answers cannot be used; names the line."""


class MissingExtraError(UserError):
    """An optional dependency is not installed; the action is the pip line."""


class TeacherError(StillhouseError):
    """A teacher could not answer, after all retries."""


class UnanswerableQueryError(TeacherError):
    """A query's own input is at fault (too long for the model): says nothing of other queries."""


class BudgetError(StillhouseError):
    """Asking on would cross the budget in USD."""


class RunFolderError(StillhouseError):
    """The run folder cannot be read or written (full disk, another process, a damaged manifest)."""


def one_line(field: str, problem: str, value: object = None, action: str = "") -> str:
    """`field: problem (got VALUE); action`, on one line whatever the value holds."""
    text = f"{field}: {problem}"
    if value is not None:
        shown = _PASSWORD.sub(r"\1***@", repr(value))
        if len(shown) > SHOWN_VALUE_CHARS:
            shown = shown[: SHOWN_VALUE_CHARS - 3] + "..."
        text += f" (got {shown})"
    if action:
        text += f"; {action}"
    return " ".join(text.split())
