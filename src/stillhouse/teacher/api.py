"""What the two API teachers share: settings, the key, safe error lines, parameters models refuse.

Keys come from the environment alone; they are never stored, and cut out of every text that leaves
here. Knows providers' addresses,
and no request form.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, runtime_checkable
from urllib.parse import urlsplit

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import Completer, Sampling
from stillhouse.teacher.retry import Retrying, Verdict, chain

_KEY_LIKE: Final = re.compile(r"\b(sk|pk|key)-[A-Za-z0-9*_.\-]{4,}")
_REFUSING: Final = re.compile(
    r"unsupported|not support|does not accept|unrecogni[sz]ed|unknown|unexpected|not permitted|"
    r"not allowed|deprecated|not available|extra inputs|invalid|cannot be|may only|must be",
    re.IGNORECASE,
)
# A value out of its range is the caller's to mend; leaving the parameter out would hide it.
_OUT_OF_RANGE: Final = re.compile(
    r"\b(between|at most|at least|less than|greater than|maximum|minimum|out of range)\b",
    re.IGNORECASE,
)
SHOWN_CHARS: Final = 300
OPENAI_URL: Final = "https://api.openai.com/v1"
ANTHROPIC_URL: Final = "https://api.anthropic.com"
MOST_TOP_LOGPROBS: Final = 20  # that OpenAI's API gives of a token


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """How an API teacher is reached. `key` is left out of `repr`."""

    model: str  # as recipes name it: openai:gpt-4.1
    base_url: str
    timeout_s: float
    retrying: Retrying
    prices: PricesSection
    key_variable: str
    key: str | None = field(repr=False, default=None)

    @property
    def name(self) -> str:
        """The provider's own name of the model."""
        return self.model.partition(":")[2]

    @property
    def revision(self) -> str:
        """What names the model before it answers: its name, and the server it is asked at."""
        parts = urlsplit(self.base_url)
        port = f":{parts.port}" if parts.port else ""
        return f"{self.name}@{parts.hostname}{port}{parts.path.rstrip('/')}"


class Attempt(NamedTuple):
    """What one request brought, and the headers it came with."""

    completions: tuple[Completion, ...]
    headers: Mapping[str, str]


@runtime_checkable
class ApiTeacher(Completer, Protocol):
    """A completer that can be asked one request at a time, without retries of its own.

    `samples_per_request` is how many samples one request brings.
    """

    samples_per_request: int

    @property
    def retrying(self) -> Retrying:
        """How often a try that failed is made again."""

    async def attempt(self, query: Query, sampling: Sampling, timeout_s: float) -> Attempt:
        """One request.

        Raises:
            Exception: one of `wire.EXPECTED`; `retry.judge` says what it means.
        """

    def describe(self, error: Exception, verdict: Verdict) -> str:
        """A failed try on one line, with what to do."""


def api_settings(
    section: TeacherSection,
    prices: PricesSection,
    *,
    default_url: str,
    key_variable: str,
    key_required: bool,
) -> ApiSettings:
    """Read the recipe's teacher and the environment.

    Raises:
        UserError: no key in the environment, or a base URL that is none. Nothing was sent yet.
    """
    variable = section.api_key_env or key_variable
    key = os.environ.get(variable, "").strip() or None
    if key is None and (key_required or section.api_key_env is not None):
        raise UserError(
            variable,
            f"is not set in the environment and {section.model} needs a key",
            action=f"run: export {variable}=YOUR_KEY",
        )
    base_url = section.base_url or default_url
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(
            "teacher.base_url",
            "is not an http or https URL",
            action="write it as http://HOST:PORT/v1",
        )
    return ApiSettings(
        model=section.model,
        base_url=base_url,
        timeout_s=section.timeout_s,
        retrying=Retrying(section.retries),
        prices=prices,
        key_variable=variable,
        key=key,
    )


def safe_text(settings: ApiSettings, text: str) -> str:
    """One line of a server's message, without anything that looks like a key."""
    if settings.key:
        text = text.replace(settings.key, "[key]")
    text = " ".join(_KEY_LIKE.sub("[key]", text).split())
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."


def failure_line(settings: ApiSettings, error: Exception, verdict: Verdict) -> str:
    """What went wrong and what to do, on one line."""
    told = chain(error)[-1] if verdict.reason == "connection" else error
    said = safe_text(settings, str(told) or type(told).__name__)
    actions = {
        "auth": f"check the key in {settings.key_variable}"
        if settings.key_variable
        else "set teacher.api_key_env to the environment variable that holds the key",
        "quota": "the account is out of credit",
        "not_found": f"check teacher.model {settings.name!r} and teacher.base_url",
        "rate_limit": "lower teacher.concurrency or raise teacher.retries",
        "timeout": f"raise teacher.timeout_s (now {settings.timeout_s:g})",
        "connection": f"check that {settings.revision.partition('@')[2]} can be reached",
    }
    action = actions.get(verdict.reason)
    return f"{settings.model}: {said}" + (f"; {action}" if action else "")


def refused_parameter(
    error: Exception, status: int, sent: Mapping[str, object], optional: tuple[str, ...]
) -> str | None:
    """Which of the `optional` parameters in `sent` a 400 or 422 refuses, or `None`.

    Models differ in what they accept (reasoning models take no temperature, some servers no
    logprobs), and change: asking them is surer than a table of model names.
    """
    if status not in (400, 422):
        return None
    text = str(error)
    if _OUT_OF_RANGE.search(text):
        return None
    named = getattr(error, "param", None)
    if isinstance(named, str):
        first = re.split(r"[.\[]", named)[0]
        if first in optional and first in sent:
            return first
    if not _REFUSING.search(text):
        return None
    for name in sorted(optional, key=len, reverse=True):
        if name in sent and re.search(rf"(?<![A-Za-z_]){re.escape(name)}(?![A-Za-z_])", text):
            return name
    return None


def is_closed(schema: object, *, all_required: bool) -> bool:
    """Whether every object of a JSON Schema forbids unknown keys (and requires all it knows)."""
    if isinstance(schema, list):
        return all(is_closed(item, all_required=all_required) for item in schema)
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        if schema.get("additionalProperties") is not False:
            return False
        known = set(schema.get("properties") or {})
        if all_required and set(schema.get("required") or ()) != known:
            return False
    return all(is_closed(item, all_required=all_required) for item in schema.values())


def utf8(text: str) -> str:
    """Text that can be written as UTF-8: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def numbered(completions: list[Completion]) -> list[Completion]:
    """The samples of one query, numbered from 0."""
    return [
        completion.model_copy(update={"sample": sample})
        for sample, completion in enumerate(completions)
    ]
