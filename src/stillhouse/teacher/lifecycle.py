"""What is known of a teacher's life, and what providers say of it: read, not asked.

OpenAI's models carry `shutdown_date`, Anthropic's `lifecycle` and `retires_at`. The response
headers Deprecation (RFC 9745) and Sunset (RFC 8594) are read on any answer. Behind these stands a
dated table (retirements.yaml), before them the recipe's `teacher.retires_on`. Knows no answers:
these outlive the teacher in the store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from importlib import resources
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.records import Record

_DATED: Final = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")
_LINK: Final = re.compile(r"<([^>]*)>\s*;[^,]*\brel=\"?(sunset|deprecation)\b", re.IGNORECASE)
REPLAY: Final = (
    "the answers it gave are in store/answers.jsonl of the run folder: freeze that store and "
    "replay it in the teacher's place"
)


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: Literal["openai", "anthropic"]
    model: str
    retires_on: date
    as_of: date
    source: str


class Lifecycle(Record):
    """What is known of a teacher's life. `exists` is `None` where nobody could say."""

    model: str
    exists: bool | None = None
    deprecated: bool = False
    retires_on: date | None = None
    source: str = ""
    link: str | None = None

    def warning(self, today: date) -> str | None:
        """One line for people, or `None` where nothing is announced."""
        if self.exists is False:
            return f"{self.model} is gone ({self.source}); {REPLAY}"
        more = f"; see {self.link}" if self.link else ""
        if self.retires_on is not None:
            days = (self.retires_on - today).days
            when = f"in {days} days" if days > 0 else "today" if days == 0 else "already past"
            return (
                f"{self.model} retires on {self.retires_on} ({when}; {self.source}){more}: ask "
                f"what you need before; {REPLAY}"
            )
        if self.deprecated:
            return f"{self.model} is deprecated, without a date so far ({self.source}){more}"
        return None


@cache
def _table() -> tuple[_Row, ...]:
    file = resources.files("stillhouse.teacher").joinpath("retirements.yaml")
    rows = yaml.safe_load(file.read_text(encoding="utf-8"))["models"]
    return tuple(_Row.model_validate(row) for row in rows)


def announced(section: TeacherSection) -> Lifecycle:
    """What the recipe says of the teacher's retirement, else the table. Asks nobody."""
    if section.retires_on is not None:
        return Lifecycle(
            model=section.model,
            retires_on=section.retires_on,
            source="teacher.retires_on of the recipe",
        )
    for name in (section.name, _DATED.sub("", section.name)):
        for row in _table():
            if row.provider == section.kind and row.model == name:
                return Lifecycle(
                    model=section.model,
                    retires_on=row.retires_on,
                    source=f"{row.source}, as of {row.as_of}",
                )
    return Lifecycle(model=section.model, source="nothing is announced that is known here")


def from_headers(model: str, headers: Mapping[str, str]) -> Lifecycle | None:
    """What Deprecation and Sunset headers announce; `None` where there is neither.

    Deprecation is a structured date, `@1688169599` (RFC 9745); older drafts had `true` or an HTTP
    date. Sunset is an HTTP date (RFC 8594). What is unreadable announces nothing.
    """
    folded = {name.lower(): value.strip() for name, value in headers.items()}
    sunset = _http_date(folded.get("sunset", ""))
    deprecation = folded.get("deprecation", "")
    marked = (
        re.fullmatch(r"@-?\d{1,15}", deprecation) is not None
        or deprecation.lower() in ("true", "?1")
        or _http_date(deprecation) is not None
    )
    if sunset is None and not marked:
        return None
    link = _LINK.search(folded.get("link", ""))
    return Lifecycle(
        model=model,
        deprecated=True,
        retires_on=sunset,
        source="the server's Sunset header" if sunset else "the server's Deprecation header",
        link=link.group(1) if link else None,
    )


def _http_date(text: str) -> date | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC).date()
    except (TypeError, ValueError, OverflowError):
        return None


def from_model_object(model: str, body: Mapping[str, Any]) -> Lifecycle:
    """What a model object of a models endpoint says."""
    lifecycle = body.get("lifecycle")
    retires = body.get("shutdown_date") or body.get("retires_at")
    return Lifecycle(
        model=model,
        exists=lifecycle != "retired",
        deprecated=lifecycle == "deprecated" or bool(body.get("deprecated_at")),
        retires_on=_iso_date(retires),
        source="the provider's models endpoint",
    )


def _iso_date(text: object) -> date | None:
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        return None
