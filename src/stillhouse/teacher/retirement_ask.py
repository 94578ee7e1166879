"""Asks a provider's models endpoint whether the teacher still exists, through its own client.

Imported when a provider is asked. Knows how to ask; `lifecycle` knows how to read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import anthropic
import openai

from stillhouse.core.errors import TeacherError
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.teacher.api import (
    ANTHROPIC_URL,
    OPENAI_URL,
    ApiSettings,
    api_settings,
    failure_line,
)
from stillhouse.teacher.lifecycle import Lifecycle, from_headers, from_model_object
from stillhouse.teacher.retry import judge

TIMEOUT_S: Final = 20.0


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
