"""The log formats: which one an object is of, and the calls that it holds.

`gateway` is Stillhouse's own log (`core.gateway_log`). `openai` is any pair of request and response
bodies of the OpenAI API (chat completions or Responses; Azure's and Anthropic's are like them), one
merged body, a fine-tuning line, or a line of a batch file. `litellm` is a row of LiteLLM's spend
logs or its `standard_logging_object`; `langfuse` an observation or a trace with its observations.
Fields are described in docs/traffic.md. Knows objects; files are read by `logs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

from stillhouse.traffic.call import (
    Call,
    LineProblem,
    NotAChat,
    Object,
    answer_of,
    as_number,
    as_text,
    body_chat,
    chat_of,
    schema_of,
    seconds_of,
    tokens_of,
    tools_of,
    unpacked,
)

LogFormat = Literal["gateway", "openai", "litellm", "langfuse"]
FORMATS: Final[tuple[LogFormat, ...]] = get_args(LogFormat)


class BatchAnswer(NamedTuple):
    """A line of a batch's output: its request is in the batch's input, under the same custom_id."""

    custom_id: str
    call: Call


Found = Call | BatchAnswer
_SAID: Final = ("response", "responseBody", "response_body", "BackendResponseBody", "completion")
_ASKED: Final = ("request", "requestBody", "request_body", "BackendRequestBody", "body", "kwargs")
_TIMES: Final = (
    "at",
    "timestamp",
    "time",
    "created_at",
    "createdAt",
    "created",
    "TimeGenerated",
    "startTime",
    "start_time",
)
_USERS: Final = ("user", "user_id", "userId", "end_user", "safety_identifier")
_NOT_CHATS: Final = ("embed", "image", "speech", "transcri", "moderation", "rerank", "audio")
_TYPES: Final = "GENERATION SPAN EVENT AGENT TOOL CHAIN RETRIEVER EVALUATOR EMBEDDING GUARDRAIL"
_OBSERVATIONS: Final = frozenset(_TYPES.split())


def format_of(row: Object) -> LogFormat | None:
    """The format an object looks like, or `None`."""
    keys = row.keys()
    if row.get("log") == "stillhouse":
        return "gateway"
    if "standard_logging_object" in keys or "litellm_call_id" in keys:
        return "litellm"
    if keys & {"call_type", "request_id"} and keys & {"startTime", "spend", "response_cost"}:
        return "litellm"
    trace_keys = {"traceId", "trace_id", "bookmarked", "sessionId", "session_id", "trace_name"}
    if str(row.get("type", "")).upper() in _OBSERVATIONS and keys & {*trace_keys, "input"}:
        return "langfuse"
    if keys & {"usageDetails", "usage_details", "observations"}:
        return "langfuse"
    if {"input", "output"} <= keys and keys & {*trace_keys, "totalCost", "projectId", "project_id"}:
        return "langfuse"
    if keys & {*_ASKED, *_SAID, "messages", "choices", "custom_id", "RequestMessages", "input"}:
        return "openai"
    return "openai" if {"prompt", "completion"} <= keys else None


def read_gateway(row: Object) -> Iterator[Found]:
    """The call of a line of Stillhouse's own log."""
    if row.get("log") != "stillhouse":
        raise LineProblem("format", "is not a line of Stillhouse's own log")
    yield from read_openai(row)


def read_openai(row: Object) -> Iterator[Found]:
    """The call of a logged pair of bodies, a merged body, or a line of a batch file."""
    asked = _object(row, _ASKED)
    said_raw = next((row[key] for key in _SAID if row.get(key) is not None), None)
    said = unpacked(said_raw)
    failed = bool(row.get("error"))
    if isinstance(said, Mapping) and "body" in said and "choices" not in said:
        status = said.get("status_code", said.get("status", 200))
        failed |= isinstance(status, int) and status >= 400
        said_raw = said = unpacked(said["body"])
    if _kind_of_call(row, asked):
        raise NotAChat("not_a_chat", f"it is a call of {_kind_of_call(row, asked)}")
    body: Object = asked or row
    if "custom_id" in row and asked is None and "messages" not in row and "input" not in row:
        custom = as_text(row["custom_id"])
        if custom is None:
            raise LineProblem("shape", "custom_id is not a text")
        yield BatchAnswer(
            custom,
            _call(
                row, body={}, turns=(), said_raw=said_raw, said=said, failed=failed, text_only=True
            ),
        )
        return
    if row.get("RequestMessages") is not None:
        chat = chat_of(row["RequestMessages"])
        said_raw = said = unpacked(row.get("ResponseMessages"))
    elif asked is None and row.get("messages") is None and isinstance(said, Mapping):
        chat = body_chat(row if "input" in row or "prompt" in row else said)
    else:
        chat = body_chat(body)
    turns = chat.turns
    if said_raw is None and asked is None:
        said_raw = said = row if {"choices", "output"} & row.keys() else None
        if said is None and turns[-1].role == "assistant":
            said_raw = said = turns[-1].content  # a fine-tuning line: the answer is the last turn
            turns = turns[:-1]
    yield _call(
        row,
        body=body,
        turns=turns,
        said_raw=said_raw,
        said=said,
        failed=failed,
        text_only=chat.text_only,
    )


def _call(
    row: Object,
    *,
    body: Object,
    turns: tuple[Any, ...],
    said_raw: object,
    said: object,
    failed: bool,
    text_only: bool,
) -> Call:
    """A call from the parts of an OpenAI-like line."""
    answer = answer_of(said_raw)
    inner = said if isinstance(said, Mapping) else {}
    # A merged body is its own answer, and a parsed answer is none of the API's bodies.
    of_api = answer.body if answer.body else {}
    tokens = tokens_of(
        row.get("usage"),
        of_api.get("usage"),
        {
            "prompt_tokens": row.get("PromptTokens"),
            "completion_tokens": row.get("CompletionTokens"),
        },
        {key: row.get(key) for key in ("prompt_tokens", "completion_tokens")},
    )
    return Call(
        id=_id(row, "id", "custom_id", "request_id", "CorrelationId")
        or as_text(inner.get("id"))
        or "",
        turns=turns,
        answer=answer.text,
        model=_first_text(row, "model", "DeploymentName", "ModelName")
        or as_text(of_api.get("model"))
        or as_text(body.get("model"))
        or "",
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        cost_usd=as_number(row.get("cost_usd")),
        latency_ms=as_number(row.get("latency_ms")),
        user=_first_text(row, *_USERS) or _first_text(body, *_USERS),
        at=_first_time(row) or _first_time(of_api),
        schema=schema_of(body),
        tools=tools_of(body),
        text_only=text_only and answer.text_only,
        cached=row.get("cached") is True,
        failed=failed,
        api_base=_first_text(row, "base_url", "api_base"),
    )


def read_litellm(row: Object) -> Iterator[Found]:
    """The call of a spend log row or a standard logging payload."""
    inner = unpacked(row.get("standard_logging_object"))
    row = inner if isinstance(inner, Mapping) else row
    kind = str(row.get("call_type") or "completion")
    if any(word in kind for word in _NOT_CHATS):
        raise NotAChat("not_a_chat", f"it is a call of {kind[:40]}")
    asked = unpacked(row.get("proxy_server_request"))
    body = asked if isinstance(asked, Mapping) else {}
    messages = next(
        (value for value in (unpacked(row.get("messages")), body or None) if _stored(value)), None
    )
    if messages is None:
        raise LineProblem(
            "not_logged",
            "messages were not stored; set store_prompts_in_spend_logs: true in LiteLLM",
        )
    chat = chat_of(messages)
    response = row.get("response")
    answer = answer_of(response if _stored(unpacked(response)) else None)
    usage = answer.body.get("usage")
    tokens = tokens_of(row, usage)
    start, end = seconds_of(row.get("startTime")), seconds_of(row.get("endTime"))
    parameters = row.get("model_parameters")
    settings = {**body, **(parameters if isinstance(parameters, Mapping) else {})}
    model = _first_text(row, "model", "model_group") or ""
    provider = as_text(row.get("custom_llm_provider"))
    if provider and "/" not in model and model:
        model = f"{provider}/{model}"
    failed = str(row.get("status", "success")).lower() not in ("success", "none", "")
    cost = as_number(row.get("response_cost")) or as_number(row.get("spend"))
    cached = str(row.get("cache_hit")).lower() == "true"
    yield Call(
        id=_id(row, "id", "request_id", "litellm_call_id"),
        turns=chat.turns,
        answer=answer.text,
        model=model,
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        # LiteLLM writes 0 where it knows no price.
        cost_usd=cost if cost or cached else None,
        latency_ms=1000 * (end - start) if start and end and end >= start else None,
        user=_first_text(row, "end_user", "user"),
        at=start,
        schema=schema_of(settings),
        tools=tools_of(settings),
        text_only=chat.text_only and answer.text_only,
        cached=cached,
        failed=failed,
        api_base=_first_text(row, "api_base"),
    )


def _stored(value: object) -> bool:
    return value not in (None, "", [], {}) and "redacted-by-litellm" not in str(value)[:200]


def read_langfuse(row: Object) -> Iterator[Found]:
    """The calls of an observation, a trace, or a trace with its observations."""
    nested = row.get("observations")
    inner = row.get("trace")
    trace: Object = inner if isinstance(inner, Mapping) else row
    if isinstance(nested, list) and nested and not isinstance(nested[0], str):
        user = _first_text(trace, "userId", "user_id")
        for item in nested:
            if isinstance(item, Mapping) and _is_generation(item):
                call = _observation(item)
                yield call if call.user else call._replace(user=user)
        return
    if "type" in row and not _is_generation(row):
        raise NotAChat("not_a_chat", f"it is an observation of type {str(row['type'])[:40]}")
    yield _observation(trace)


def is_bare_trace(row: Object) -> bool:
    """Whether a Langfuse row is a trace without its observations, which repeats what they say."""
    return "type" not in row and not (row.keys() & {"traceId", "trace_id", "trace"})


def _is_generation(row: Object) -> bool:
    return str(row.get("type")).upper() == "GENERATION"


def _observation(row: Object) -> Call:
    asked = unpacked(row.get("input"))
    if asked in (None, "", [], {}):
        raise LineProblem("not_logged", "the observation has no input")
    chat = chat_of(asked)
    answer = answer_of(row.get("output"))
    usage = unpacked(row.get("usageDetails", row.get("usage_details")))
    tokens = tokens_of(usage, row.get("usage"), _without_texts(row))
    costs = unpacked(row.get("costDetails", row.get("cost_details")))
    cost = as_number(costs.get("total")) if isinstance(costs, Mapping) else None
    for key in ("totalCost", "total_cost", "calculatedTotalCost"):
        cost = cost or as_number(row.get(key))
    start = next(
        (t for key in ("startTime", "start_time", "timestamp") if (t := seconds_of(row.get(key)))),
        None,
    )
    end = seconds_of(row.get("endTime", row.get("end_time")))
    parameters = unpacked(row.get("modelParameters", row.get("model_parameters")))
    settings = {
        **(asked if isinstance(asked, Mapping) else {}),
        **(parameters if isinstance(parameters, Mapping) else {}),
    }
    return Call(
        id=_id(row, "id", "span_id"),
        turns=chat.turns,
        answer=answer.text,
        model=_first_text(row, "model", "providedModelName", "provided_model_name") or "",
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        cost_usd=cost or None,
        latency_ms=1000 * (end - start) if start and end and end >= start else None,
        user=_first_text(row, "userId", "user_id"),
        at=start,
        schema=schema_of(settings),
        tools=tools_of(settings),
        text_only=chat.text_only and answer.text_only,
        failed=str(row.get("level")).upper() == "ERROR",
    )


def _without_texts(row: Object) -> dict[str, object]:
    return {key: value for key, value in row.items() if key not in ("input", "output")}


def _object(row: Object, keys: tuple[str, ...]) -> Object | None:
    for key in keys:
        value = unpacked(row.get(key))
        if isinstance(value, Mapping) and value:
            nested = unpacked(value.get("body"))
            return nested if isinstance(nested, Mapping) and nested else value
    return None


def _kind_of_call(row: Object, body: Object | None) -> str | None:
    url = str(row.get("url") or row.get("path") or row.get("endpoint") or "")
    for word in _NOT_CHATS:
        if word in url:
            return url[:60]
    named = {**(body or {}), **row}.get("object")
    return named if named in ("embedding", "list", "image") else None


def _first_text(row: Object, *keys: str) -> str | None:
    return next((text for key in keys if (text := as_text(row.get(key))) is not None), None)


def _first_time(row: Object) -> float | None:
    return next((at for key in _TIMES if (at := seconds_of(row.get(key))) is not None), None)


def _id(row: Object, *keys: str) -> str:
    return _first_text(row, *keys) or ""


READERS: Final[Mapping[LogFormat, Callable[[Object], Iterator[Found]]]] = {
    "gateway": read_gateway,
    "openai": read_openai,
    "litellm": read_litellm,
    "langfuse": read_langfuse,
}
