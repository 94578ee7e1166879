"""A chat request as a student reads it: the query of its training, and how the answer is drawn.

What a student cannot do is refused by name with a 4xx, upon which the gateway asks the teacher.
Knows requests and tasks; no model and no process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

from pydantic import ValidationError

from stillhouse.core.records import Message, Query, Role, well_formed
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.serve.api_errors import ApiError

MOST_ANSWERS: Final = 128
MOST_STOPS: Final = 16
LONGEST_STOP: Final = 1000
_ROLES: Final = frozenset(("system", "developer", "user", "assistant"))
_TEXT_PARTS: Final = frozenset(("text", "input_text"))
# Whatever these hold, it changes what an answer must be.
_UNSERVED: Final = ("tools", "functions", "audio", "web_search_options", "prediction")
_PENALTIES: Final = ("presence_penalty", "frequency_penalty")


class Runtime(NamedTuple):
    """What a student can be asked for. `writes`: free text; else its task's labels, or what its
    task extracts, alone. `schemas`: an answer that fits a schema of the request's."""

    writes: bool
    schemas: bool = False
    top_p: bool = False
    penalties: bool = False


class Asked(NamedTuple):
    """One request. `logprobs`: alternatives a token, `None` where none are wanted."""

    query: Query
    n: int
    streams: bool
    wants_usage: bool
    logprobs: int | None
    max_tokens: int
    sampling_temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    json_schema: Mapping[str, Any] | None
    asker: str | None = None  # whose adapter may answer


def read_request(body: bytes, task: Task, runtime: Runtime, max_tokens: int) -> Asked:
    """A request's body as the gateway sends it.

    Args:
        max_tokens: of an answer, where the client does not say.

    Raises:
        ApiError: 400 or 422: not for this student; says why.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(asked, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    for name in _UNSERVED:
        if asked.get(name) and not (name == "tools" and asked.get("tool_choice") == "none"):
            raise _refused(name)
    modalities = asked.get("modalities")
    if modalities not in (None, ["text"]):
        raise _refused("modalities")
    query = query_of(asked.get("messages"), task)
    options = asked.get("stream_options")
    wants = isinstance(options, dict) and options.get("include_usage") is True
    shown = asked.get("top_logprobs")
    logprobs = max(0, _whole(shown or 0)) if asked.get("logprobs") else None
    seed = asked.get("seed")
    most = asked.get("max_completion_tokens") or asked.get("max_tokens") or max_tokens
    labels = isinstance(task, ClassificationTask)
    closed = not runtime.writes or labels
    if asked.get("logit_bias") and not closed:
        raise _refused("logit_bias")
    return Asked(
        query=query,
        n=min(MOST_ANSWERS, max(1, _whole(asked.get("n") or 1))),
        streams=asked.get("stream") is True,
        wants_usage=wants,
        logprobs=logprobs,
        max_tokens=max(1, _whole(most)),
        # Left out, the answer is the one that was evaluated: the most likely.
        sampling_temperature=max(0.0, _number("temperature", asked.get("temperature") or 0.0)),
        top_p=_top_p(asked, runtime, closed=closed),
        presence_penalty=_penalty(asked, "presence_penalty", runtime, closed=closed),
        frequency_penalty=_penalty(asked, "frequency_penalty", runtime, closed=closed),
        seed=None if seed is None else _whole(seed) % 2**32,
        stop=_stop(asked.get("stop")),
        json_schema=_schema(asked.get("response_format"), runtime, labels=labels),
    )


def query_of(messages: object, task: Task) -> Query:
    """The messages of a request as the query of the student's training.

    Raises:
        ApiError: 400 or 422: not text alone, or not of the task's form.
    """
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be an array of messages.", param="messages")
    read = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role: Any = message.get("role") if isinstance(message, dict) else None
        if not isinstance(message, dict) or not isinstance(role, str) or role not in _ROLES:
            raise ApiError(400, f"{where}.role is none that the student reads.", param=where)
        if message.get("tool_calls") or message.get("function_call"):
            raise ApiError(400, f"{where} calls tools; the student knows none.", param=where)
        known = cast("Role", role)
        read.append(Message.model_construct(role=known, content=_text(message, where)))
    try:
        query = Query(id="request", messages=tuple(read))
    except ValidationError:
        raise ApiError(
            400, "The last message must not be the assistant's.", param="messages"
        ) from None
    problem = task.misfit(query)
    if problem is not None:
        raise ApiError(
            422, f"This is not a request of the task: {problem}.", code="not_of_the_task"
        )
    return query


def _text(message: Mapping[str, Any], where: str) -> str:
    """The text of a message as traffic is read: parts are joined with newlines."""
    content = message.get("content")
    if isinstance(content, str):
        return well_formed(content)
    texts = []
    parts: list[Any] = content if isinstance(content, list) else [None]
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or str(part.get("type", "text")) not in _TEXT_PARTS:
            raise ApiError(400, f"{where}.content is not text alone.", param=where)
        texts.append(text)
    return well_formed("\n".join(texts))


def _top_p(asked: Mapping[str, Any], runtime: Runtime, *, closed: bool) -> float:
    value = asked.get("top_p")
    found = _number("top_p", 1.0 if value is None else value)
    if found < 1 and not closed and not runtime.top_p:
        raise _refused("top_p")
    return found


def _penalty(asked: Mapping[str, Any], name: str, runtime: Runtime, *, closed: bool) -> float:
    found = _number(name, asked.get(name) or 0.0)
    if found and not closed and not runtime.penalties:
        raise _refused(name)
    return found


def _schema(wanted: object, runtime: Runtime, *, labels: bool) -> Mapping[str, Any] | None:
    if wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text"):
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if labels or not runtime.schemas:
        raise _refused(f"response_format of type {kind}", param="response_format")
    if kind == "json_object":
        return {"type": "object"}
    inner: Any = wanted.get("json_schema") if isinstance(wanted, dict) else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        raise ApiError(400, "response_format holds no schema.", param="response_format")
    return schema


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    given = [value] if isinstance(value, str) else value if isinstance(value, list) else [None]
    found = tuple(one for one in given if isinstance(one, str) and 0 < len(one) <= LONGEST_STOP)
    if len(found) < len(given) or len(found) > MOST_STOPS:
        raise ApiError(400, f"stop must be up to {MOST_STOPS} texts.", param="stop")
    return found


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ApiError(400, "A number of the request is not an integer.", code="invalid_value")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -100 < value < 100:
        raise ApiError(400, f"{name} must be a number.", param=name)
    return float(value)


def _refused(name: str, param: str | None = None) -> ApiError:
    return ApiError(
        400, f"The student cannot serve {name}.", code="not_served", param=param or name
    )
