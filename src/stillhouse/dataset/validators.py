"""The recipe's own demands on an answer: lengths, patterns, JSON, language, the user's function.

They run after the built-in checks, in a fixed order; the first that finds something names the
rejection. Built once a run, since a language model and the user's module are loaded. Knows one
answer at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_quality import ValidatorsSection
from stillhouse.core.records import Query
from stillhouse.core.tasks import json_value, schema_problem
from stillhouse.core.user_function import load_function
from stillhouse.dataset.language import LanguageCheck

FUNCTION_FIELD: Final = "dataset.validators.function"
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)


class Problem(NamedTuple):
    """Why an answer is rejected: the stable reason, and what people read."""

    reason: str
    detail: str


class UserFunction:
    """The user's check, called safely: what it raises is a rejection, and is counted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._call: Callable[[Query, str], Any] = load_function(FUNCTION_FIELD, name)
        self.calls = 0
        self.errors = 0
        self._first_error = ""

    def problem(self, query: Query, text: str) -> Problem | None:
        """What it says of an answer: `None` or true keeps it, false or a text rejects it."""
        self.calls += 1
        try:
            said = self._call(query, text)
        except Exception as error:  # the user's code may raise anything
            return self._failed(f"{type(error).__name__}: {error}")
        if said is None or said is True:
            return None
        if said is False:
            return Problem("validator", f"{self.name} says no")
        if isinstance(said, str):
            return Problem("validator", said or f"{self.name} says no")
        return self._failed(f"answered {said!r}, not None, true, false or a text")

    def _failed(self, what: str) -> Problem:
        self.errors += 1
        self._first_error = self._first_error or what
        return Problem("validator_error", f"{self.name}: {what}")

    def require_working(self) -> None:
        """Refuse a function that failed on every answer.

        Raises:
            UserError: names the first failure.
        """
        if self.calls and self.errors == self.calls:
            raise UserError(
                FUNCTION_FIELD,
                f"failed on all {self.calls} answers; the first: {self._first_error}",
                value=self.name,
                action="mend the function; no answer is lost",
            )


class Validators:
    """The demands of one recipe.

    Raises:
        UserError: the function or the language is not to be had.
        MissingExtraError: the language needs an extra that is not installed.
    """

    def __init__(self, section: ValidatorsSection) -> None:
        self._section = section
        self._must = [re.compile(pattern) for pattern in section.must_match]
        self._must_not = [re.compile(pattern) for pattern in section.must_not_match]
        self._language = LanguageCheck(section.language) if section.language else None
        self.function = UserFunction(section.function) if section.function else None

    def problem(self, query: Query, text: str) -> Problem | None:
        """The first thing wrong with an answer, or `None`."""
        section = self._section
        words = len(text.split())
        if section.min_words is not None and words < section.min_words:
            return Problem("too_short", f"{words} words, fewer than {section.min_words}")
        if section.max_words is not None and words > section.max_words:
            return Problem("too_long", f"{words} words, more than {section.max_words}")
        for pattern in self._must:
            if pattern.search(text) is None:
                return Problem("must_match", f"holds no match of {pattern.pattern!r}")
        for pattern in self._must_not:
            found = pattern.search(text)
            if found is not None:
                return Problem(
                    "must_not_match", f"{pattern.pattern!r} matches {found.group()[:60]!r}"
                )
        if section.json_schema is not None:
            detail = _json_problem(text, section.json_schema)
            if detail is not None:
                return Problem("schema", detail)
        if self._language is not None:
            detail = self._language.problem(text)
            if detail is not None:
                return Problem("language", detail)
        return None if self.function is None else self.function.problem(query, text)


def validator_names(section: ValidatorsSection) -> tuple[str, ...]:
    """The reasons under which a recipe's own demands reject, beside the built-in checks' own."""
    used = {
        "must_match": bool(section.must_match),
        "must_not_match": bool(section.must_not_match),
        "language": section.language is not None,
        "validator": section.function is not None,
    }
    return tuple(name for name, demanded in used.items() if demanded)


def bare_json(text: str) -> str:
    """The text without the code fence around it."""
    fenced = _FENCED.match(text.strip())
    return fenced.group(1).strip() if fenced else text.strip()


def _json_problem(text: str, schema: dict[str, Any]) -> str | None:
    try:
        value = json_value(bare_json(text))
    except ValueError as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return f"not JSON ({what}): {text[:60]!r}"
    return schema_problem(value, schema, "")
