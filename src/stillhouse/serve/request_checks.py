"""What a request must be before anybody is asked: JSON, its depth, its types, its size.

Checks what the gateway itself relies on and what would harm it; the rest is the upstream's to
judge. Plain JSON, no models: this runs on every request.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.gateway_sections import LimitsSection
from stillhouse.serve.quick_json import read_json

_ROLES: Final = frozenset(("system", "developer", "user", "assistant", "tool", "function"))


def parse_json(raw: bytes, depth: int) -> dict[str, Any]:
    """A body as an object no deeper than `depth`.

    Raises:
        ApiError: 400: not JSON, not an object, too deep.
    """
    try:
        body = read_json(raw, strict=True)
    except RecursionError:
        raise ApiError(400, f"The body is nested deeper than {depth} levels.") from None
    except ValueError:
        raise ApiError(400, "The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    # As many brackets as there may be levels: nothing can be too deep.
    if raw.count(b"{") + raw.count(b"[") > depth and _deeper(body, depth):
        raise ApiError(400, f"The body is nested deeper than {depth} levels.")
    return body


def _deeper(value: object, depth: int) -> bool:
    level: list[object] = [value]
    for _ in range(depth):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)  # type: ignore[attr-defined]
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _whole(value: object) -> bool:
    # 1.0 is an integer to JSON Schema, and to some clients.
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


_Kind = tuple[Callable[[object], bool], str]
_TEXT: Final[_Kind] = (lambda value: isinstance(value, str), "a string")
_FLAG: Final[_Kind] = (lambda value: isinstance(value, bool), "a boolean")
_NUMBER: Final[_Kind] = (_number, "a number")
_WHOLE: Final[_Kind] = (_whole, "an integer")
_LIST: Final[_Kind] = (lambda value: isinstance(value, list), "an array")
_OBJECT: Final[_Kind] = (lambda value: isinstance(value, dict), "an object")
KINDS: Final[dict[str, _Kind]] = {
    "stream": _FLAG,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "n": _WHOLE,
    "best_of": _WHOLE,
    "seed": _WHOLE,
    "max_tokens": _WHOLE,
    "max_completion_tokens": _WHOLE,
    "top_logprobs": _WHOLE,
    "user": _TEXT,
    "safety_identifier": _TEXT,
    "tools": _LIST,
    "logit_bias": _OBJECT,
    "response_format": _OBJECT,
    "stream_options": _OBJECT,
    "metadata": _OBJECT,
}


def check_common(body: dict[str, Any], limits: LimitsSection) -> None:
    """The parameters that all routes share.

    Raises:
        ApiError: 400, with the parameter's name.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("model", "must be a string: the name of a task")
    for name in body.keys() & KINDS.keys():
        value = body[name]
        fits, called = KINDS[name]
        if value is not None and not fits(value):
            raise _wrong(name, f"must be {called}")
    for name, most in (
        ("max_tokens", limits.max_tokens),
        ("max_completion_tokens", limits.max_tokens),
        ("n", limits.n),
        ("best_of", limits.n),
    ):
        value = body.get(name)
        if value is not None and not 1 <= value <= most:
            raise _wrong(name, f"must be from 1 to {most}")


def check_chat(body: dict[str, Any], limits: LimitsSection) -> None:
    """A chat request, of OpenAI's or Anthropic's kind.

    Raises:
        ApiError: 400, with the parameter's name.
    """
    check_common(body, limits)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "must be an array of at least one message")
    if len(messages) > limits.messages:
        raise _wrong("messages", f"may hold {limits.messages} messages at most")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise _wrong(f"messages[{number}].role", "must be the role of a message")
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) for part in content):
                raise _wrong(f"messages[{number}].content", "must be an array of objects")
        elif content is not None and not isinstance(content, str):
            raise _wrong(f"messages[{number}].content", "must be a string or an array")


def check_completion(body: dict[str, Any], limits: LimitsSection) -> None:
    """A request of the older completions API.

    Raises:
        ApiError: 400, with the parameter's name.
    """
    check_common(body, limits)
    if not isinstance(body.get("prompt", 0), str | list | None):
        raise _wrong("prompt", "must be a string or an array")


def check_embedding(body: dict[str, Any], limits: LimitsSection) -> None:
    """A request for embeddings.

    Raises:
        ApiError: 400, with the parameter's name.
    """
    check_common(body, limits)
    if not isinstance(body.get("input"), str | list) or body["input"] in ("", []):
        raise _wrong("input", "must be a string or an array")


def reason_of(body: dict[str, Any]) -> str:
    """Why an admin acts, as the audit log can keep it; empty where it is not said.

    Raises:
        ApiError: 400.
    """
    reason = body.get("reason", "")
    if not isinstance(reason, str):
        raise ApiError(400, "reason must be a string.", param="reason")
    try:
        reason.encode()
    except UnicodeEncodeError:
        raise ApiError(400, "reason holds half a character.", param="reason") from None
    return reason


def _wrong(param: str, what: str) -> ApiError:
    return ApiError(400, f"{param} {what}.", param=param, code="invalid_value")
