"""Whether the teacher still exists, and when its provider switches it off.

Asked is the provider's models endpoint: OpenAI's models carry `shutdown_date`, Anthropic's
`lifecycle` and `retires_at`. The response headers Deprecation (RFC 9745) and Sunset (RFC 8594) are
read on any answer. Behind these stands a dated table (retirements.yaml), before them the recipe's
`teacher.retires_on`. Knows no answers: these outlive the teacher in the store.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from importlib import resources
from typing import Any, Final, Literal

import anthropic
import openai
import yaml
from pydantic import BaseModel, ConfigDict

from stillhouse.core.errors import StillhouseError, TeacherError
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Record
from stillhouse.teacher.anthropic_client import ANTHROPIC_URL
from stillhouse.teacher.api import ApiSettings, api_settings, failure_line
from stillhouse.teacher.openai_client import OPENAI_URL
from stillhouse.teacher.retry import judge

TIMEOUT_S: Final = 20.0
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


async def ask_provider(section: TeacherSection) -> Lifecycle:
    """Ask the provider's models endpoint about the teacher.

    Raises:
        UserError: no key in the environment, or a URL that is none.
        TeacherError: the endpoint cannot be reached, or refuses the key.
    """
    compatible = section.kind == "openai-compatible"
    claude = section.kind == "anthropic"
    settings = api_settings(
        section,
        PricesSection(),
        default_url=ANTHROPIC_URL if claude else OPENAI_URL,
        key_variable="ANTHROPIC_API_KEY" if claude else "" if compatible else "OPENAI_API_KEY",
        key_required=not compatible,
    )
    client: anthropic.AsyncAnthropic | openai.AsyncOpenAI
    if claude:
        client = anthropic.AsyncAnthropic(
            api_key=settings.key,
            base_url=settings.base_url,
            timeout=TIMEOUT_S,
            max_retries=1,
            http_client=anthropic.DefaultAioHttpClient(timeout=TIMEOUT_S),
        )
    else:
        client = openai.AsyncOpenAI(
            api_key=settings.key or "none",
            base_url=settings.base_url,
            timeout=TIMEOUT_S,
            max_retries=1,
            http_client=openai.DefaultAioHttpClient(timeout=TIMEOUT_S),
        )
    try:
        return await _retrieve(client, settings)
    except (openai.APIError, anthropic.APIError, OSError, ValueError) as error:
        raise TeacherError(failure_line(settings, error, judge(error, time.time()))) from None
    finally:
        await client.close()


async def _retrieve(client: Any, settings: ApiSettings) -> Lifecycle:
    try:
        raw = await client.models.with_raw_response.retrieve(settings.name)
    except (openai.NotFoundError, anthropic.NotFoundError) as error:
        # Any other 404 may be a proxy's that knows no such path.
        if "model_not_found" in str(error.body) or "not_found_error" in str(error.body):
            return Lifecycle(
                model=settings.model, exists=False, source="the provider's models endpoint: 404"
            )
        return await _listed(client, settings, error)
    body = raw.http_response.json()
    found = from_model_object(settings.model, body if isinstance(body, Mapping) else {})
    told = from_headers(settings.model, raw.headers)
    if told is None or found.exists is False:
        return found
    return told.model_copy(
        update={
            "exists": found.exists,
            "retires_on": found.retires_on or told.retires_on,
            "source": found.source if found.retires_on else told.source,
        }
    )


async def _listed(client: Any, settings: ApiSettings, refusal: Exception) -> Lifecycle:
    """Many compatible servers list their models but do not tell of one."""
    try:
        raw = await client.models.with_raw_response.list()
    except (openai.NotFoundError, anthropic.NotFoundError):
        return Lifecycle(model=settings.model, source="the server has no models endpoint")
    body = raw.http_response.json()
    data = body.get("data") if isinstance(body, Mapping) else None
    if not isinstance(data, list):
        raise refusal
    for item in data:
        if isinstance(item, Mapping) and item.get("id") == settings.name:
            return from_model_object(settings.model, item)
    if body.get("has_more"):
        return Lifecycle(model=settings.model, source="the server lists its models by pages")
    return Lifecycle(
        model=settings.model, exists=False, source="it is not in the server's list of models"
    )


def lifecycle_of(section: TeacherSection) -> Lifecycle:
    """What is known of a teacher's life: the recipe first, then its provider, then the table.

    Raises:
        UserError: no key in the environment, or a URL that is none.
        TeacherError: the provider cannot be reached, or refuses the key.
    """
    if section.local:
        return Lifecycle(model=section.model, exists=True, source="its weights are on this machine")
    if section.kind == "replay":  # no provider is asked for what lies in a file
        return Lifecycle(model=section.model, exists=True, source="its answers are in a file")
    if section.members:
        return _of_members(section)
    return _merged(section, asyncio.run(ask_provider(section)))


def _of_members(section: TeacherSection) -> Lifecycle:
    """The member that goes first: one that is gone, else the earliest date, else deprecated."""
    if section.retires_on is not None:
        return announced(section)
    found = [lifecycle_of(member) for member in section.member_sections]
    first = min(
        found,
        key=lambda one: (one.exists is not False, one.retires_on or date.max, not one.deprecated),
    )
    if first.exists is False or first.retires_on is not None or first.deprecated:
        return first
    exists = True if all(one.exists for one in found) else None
    return Lifecycle(model=section.model, exists=exists, source="as its members do")


def _merged(section: TeacherSection, asked: Lifecycle) -> Lifecycle:
    known = announced(section)
    if asked.exists is False or known.retires_on is None:
        return asked
    if asked.retires_on is not None and section.retires_on is None:
        return asked
    return asked.model_copy(update={"retires_on": known.retires_on, "source": known.source})


def warn_of_retirement(section: TeacherSection, progress: Progress) -> None:
    """Say before asking what is announced; a provider that does not answer now is no news here."""
    for one in section.member_sections or (section,):
        if one.local:
            continue
        try:
            found = lifecycle_of(one)
        except StillhouseError:  # advice alone: what is wrong with the teacher, asking it will say
            found = announced(one)
        warning = found.warning(datetime.now(UTC).date())
        if warning is not None:
            progress.say(f"WARNING: teacher {warning}")
