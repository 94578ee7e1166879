"""One logged request in one form, whatever the log it comes from; and how its parts are read.

Knows the wire forms of chat APIs (OpenAI chat completions and Responses, Anthropic messages): the
bodies with messages, answers, usage, times. Knows no file and no log format: those are in
`formats`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, get_args

from stillhouse.core.records import Role, well_formed

Object = Mapping[str, Any]

ROLES: Final = frozenset(get_args(Role))
_ROLE_NAMES: Final = {"function": "tool", "human": "user", "ai": "assistant", "model": "assistant"}
TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
# Seconds, milliseconds, microseconds since 1970: told apart by size.
_MAX_EPOCH_S: Final = 1e11
_MIN_EPOCH_S: Final = 1e8


class LineProblem(Exception):
    """A line that is no usable request. `reason` is a short stable word, `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class NotAChat(LineProblem):
    """A sound line that is of another kind (an embedding, a span): counted, not rejected."""


class Turn(NamedTuple):
    """One message. `role` is one of the roles of `core.records`."""

    role: str
    content: str


class Call(NamedTuple):
    """One request and its answer.

    `at` is seconds since 1970 (UTC); `schema` is the JSON text of a requested answer format;
    `tools` are the names of offered tools. `text_only` is false where an image, a file or a tool
    call is part of it. `cached`: a cache answered, no model. Numbers that a log lacks are `None`.
    """

    id: str
    turns: tuple[Turn, ...]
    answer: str | None
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    user: str | None = None
    at: float | None = None
    schema: str | None = None
    tools: tuple[str, ...] = ()
    text_only: bool = True
    cached: bool = False
    failed: bool = False
    api_base: str | None = None


class Chat(NamedTuple):
    """Messages as read, and whether they are text alone."""

    turns: tuple[Turn, ...]
    text_only: bool


class Answer(NamedTuple):
    """An answer as read; `text` is `None` where there is none."""

    text: str | None
    text_only: bool
    body: Object


class Tokens(NamedTuple):
    """Token counts; `None` where not logged."""

    prompt: int | None
    completion: int | None


def unpacked(value: object) -> Any:
    """The value, or what it says where it is the JSON text of an object or a list."""
    if isinstance(value, str) and value[:1] in ("{", "[") and value[-1:] in ("}", "]"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def content_text(raw: object) -> Chat:
    """The text of a message's content: a string, or a list of parts joined with newlines."""
    if raw is None:
        return Chat((), True)
    if isinstance(raw, str):
        return Chat((Turn("user", well_formed(raw)),), True)
    if isinstance(raw, Mapping):
        raw = [raw]
    if not isinstance(raw, list):
        raise LineProblem("shape", f"content is {type(raw).__name__}, not text")
    texts: list[str] = []
    text_only = True
    for part in raw:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
            text_only &= part.get("type", "text") in TEXT_PARTS
        elif isinstance(part, Mapping) and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        else:
            text_only = False
    return Chat((Turn("user", well_formed("\n".join(texts))),), text_only)


def chat_of(raw: object) -> Chat:
    """The messages of a request: a string, a list, or an object that holds them.

    Raises:
        LineProblem: not of such a form, or no message in it.
    """
    raw = unpacked(raw)
    if isinstance(raw, str):
        if not raw.strip():
            raise LineProblem("empty", "the request has no text")
        return content_text(raw)
    if isinstance(raw, Mapping):
        return body_chat(raw)
    if not isinstance(raw, list):
        raise LineProblem("shape", f"messages are {type(raw).__name__}, not a list")
    turns: list[Turn] = []
    text_only = True
    for item in raw:
        if isinstance(item, str):
            turns.append(Turn("user", well_formed(item)))
            continue
        if not isinstance(item, Mapping):
            raise LineProblem("shape", f"a message is {type(item).__name__}, not an object")
        kind = item.get("type", "message")
        if "role" not in item:
            if kind == "reasoning":
                continue
            if not str(kind).startswith(("function_call", "item_reference")) and not str(
                kind
            ).endswith("_call"):
                raise LineProblem("shape", "a message has no role")
            text_only = False
            continue
        role = str(item["role"])
        role = _ROLE_NAMES.get(role, role)
        if role not in ROLES:
            raise LineProblem("shape", f"a message has the unknown role {role[:40]!r}")
        content = content_text(item.get("content"))
        text = content.turns[0].content if content.turns else ""
        text_only &= content.text_only and not item.get("tool_calls") and role != "tool"
        text_only &= not item.get("function_call") and not item.get("audio")
        turns.append(Turn(role, text))
    if not turns:
        raise LineProblem("empty", "the request has no message")
    return Chat(tuple(turns), text_only)


def body_chat(body: Object) -> Chat:
    """The messages of a request body: `messages`, `input` with `instructions`, or `prompt`.

    Raises:
        LineProblem: it holds none of them, or they cannot be read.
    """
    for key in ("messages", "input", "prompt", "contents"):
        if body.get(key) not in (None, "", [], {}):
            chat = chat_of(body[key])
            break
    else:
        if "role" in body:
            return chat_of([body])
        raise LineProblem("shape", "there are no messages")
    for key in ("system", "instructions"):
        head = content_text(body.get(key))
        if head.turns and head.turns[0].content:
            return Chat(
                (Turn("system", head.turns[0].content), *chat.turns),
                chat.text_only and head.text_only,
            )
    return chat


def answer_of(raw: object) -> Answer:
    """The answer in a response body, a message, a text, or a list of messages.

    An object of none of the known forms is an answer that the log has parsed: its JSON text.
    """
    body = unpacked(raw)
    if not isinstance(body, Mapping):
        if isinstance(body, list) and body and _is_message(body[-1]):
            return _message_answer(body[-1])
        if isinstance(raw, str):
            return Answer(well_formed(raw), True, {})
        return Answer(None if raw is None else _json_text(body), True, {})
    choices = body.get("choices")
    if isinstance(choices, list):
        first = choices[0] if choices and isinstance(choices[0], Mapping) else {}
        message = first.get("message")
        if isinstance(message, Mapping):
            return _message_answer(message)._replace(body=body)
        text = first.get("text")
        return Answer(well_formed(text) if isinstance(text, str) else None, True, body)
    if isinstance(body.get("output_text"), str):
        return Answer(well_formed(body["output_text"]), True, body)
    if isinstance(body.get("output"), list) and "role" not in body:
        return _responses_answer(body)
    if _is_message(body):
        return _message_answer(body)
    if isinstance(raw, str):
        return Answer(well_formed(raw), True, {})  # an answer that is itself JSON
    return Answer(_json_text(body) if body else None, True, {})


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and (
        ("role" in value and ("content" in value or "tool_calls" in value))
        or (value.get("type") == "message" and "content" in value)
    )


def _message_answer(message: Object) -> Answer:
    content = content_text(message.get("content"))
    text = content.turns[0].content if content.turns else None
    if text is None and isinstance(message.get("refusal"), str):
        text = well_formed(message["refusal"])
    called = bool(message.get("tool_calls") or message.get("function_call"))
    return Answer(text, content.text_only and not called, message)


def _responses_answer(body: Object) -> Answer:
    texts: list[str] = []
    text_only = True
    for item in body["output"]:
        if not isinstance(item, Mapping) or item.get("type") == "reasoning":
            continue
        if "content" not in item:
            text_only = False
            continue
        content = content_text(item["content"])
        text_only &= content.text_only
        texts.extend(turn.content for turn in content.turns)
    return Answer("\n".join(texts) if texts else None, text_only, body)


def _json_text(value: object) -> str:
    try:
        return well_formed(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError):
        raise LineProblem("shape", "the answer is nested too deeply") from None


_PROMPT_KEYS: Final = ("prompt_tokens", "input_tokens", "promptTokens", "inputTokens", "input")
_COMPLETION_KEYS: Final = (
    "completion_tokens",
    "output_tokens",
    "completionTokens",
    "outputTokens",
    "output",
)


def tokens_of(*places: object) -> Tokens:
    """Token counts from the first of the places that has each."""
    prompt = completion = None
    for place in places:
        if not isinstance(place, Mapping):
            continue
        if prompt is None:
            prompt = first_count(place, _PROMPT_KEYS)
            if prompt is not None and "prompt_tokens" not in place:
                # Anthropic counts what it read from or wrote to its cache apart.
                for key in ("cache_read_input_tokens", "cache_creation_input_tokens"):
                    prompt += as_count(place.get(key)) or 0
        if completion is None:
            completion = first_count(place, _COMPLETION_KEYS)
    return Tokens(prompt, completion)


def first_count(place: Object, keys: Sequence[str]) -> int | None:
    """The first key's value that is a count."""
    return next((n for key in keys if (n := as_count(place.get(key))) is not None), None)


def as_number(value: object) -> float | None:
    """A finite number that is not negative, also from its text; else `None`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def as_count(value: object) -> int | None:
    """A whole number that is not negative and below 2^53, also from its text; else `None`."""
    number = as_number(value)
    return int(number) if number is not None and number < 2**53 else None


def as_text(value: object) -> str | None:
    """A text or a number as a text; `None` for anything else and for an empty text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    return well_formed(str(value)).strip() or None


def seconds_of(value: object) -> float | None:
    """Seconds since 1970 of an ISO time (UTC where it names no zone) or an epoch in s, ms, us."""
    number = as_number(value)
    if number is not None:
        while number > _MAX_EPOCH_S:
            number /= 1000.0
        return number if number > _MIN_EPOCH_S else None
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.strip().removesuffix(" UTC"))
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp())
    except (ValueError, OverflowError):
        return None


def iso_time(at: float | None) -> str | None:
    """ISO 8601 in UTC, to the second."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def tools_of(body: Object) -> tuple[str, ...]:
    """Sorted names of the tools a request offers."""
    names: set[str] = set()
    for key in ("tools", "functions"):
        listed = body.get(key)
        for tool in listed if isinstance(listed, list) else ():
            inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
            if isinstance(inner, Mapping):
                names.add(as_text(inner.get("name")) or as_text(inner.get("type")) or "tool")
    return tuple(sorted(names))


def schema_of(body: Object) -> str | None:
    """Canonical JSON text of the answer format a request asks for; `None` for plain text."""
    wanted = unpacked(body.get("response_format"))
    text = body.get("text")
    if wanted is None and isinstance(text, Mapping):
        wanted = text.get("format")
    if not isinstance(wanted, Mapping) or wanted.get("type") in (None, "text"):
        return None
    inner = wanted.get("json_schema", wanted)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    value = schema if isinstance(schema, Mapping) else {}
    try:
        return well_formed(json.dumps(value, ensure_ascii=False, sort_keys=True))
    except (ValueError, RecursionError):
        return None
