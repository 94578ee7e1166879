"""Server-sent events of streamed answers: splitting, stripping the usage, joining to one answer.

Bytes go through as they came wherever nothing must be taken out. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from stillhouse.serve.quick_json import json_bytes, read_json

DONE: Final = b"data: [DONE]\n\n"
_NULLS: Final = (b',"usage":null', b', "usage": null')


class EventTooLongError(Exception):
    """No end of an event within the limit: this is no stream of events."""


class Events:
    """Cuts a stream of bytes into whole events, each with its blank line."""

    def __init__(self, longest: int = 4_000_000) -> None:
        self._rest = b""
        self._longest = longest

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that a piece completes.

        Raises:
            EventTooLongError: an event grows past the limit.
        """
        data = self._rest + piece if self._rest else piece
        if b"\r" in data:
            # A lone \r at the end may be half of \r\n.
            keep = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(keep)].replace(b"\r\n", b"\n") + keep
        *whole, self._rest = data.split(b"\n\n")
        if len(self._rest) > self._longest:
            raise EventTooLongError
        return [event + b"\n\n" for event in whole if event]

    def end(self) -> list[bytes]:
        """What is left when the stream ends: an event without its blank line."""
        rest, self._rest = self._rest.strip(b"\r\n"), b""
        return [rest + b"\n\n"] if rest else []


def data_of(event: bytes) -> bytes:
    """The data of an event; empty for a comment."""
    if event.startswith(b"data:") and event.count(b"\n") == 2:
        return event[5:].strip()
    lines = (line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(lines)


def parsed(event: bytes) -> dict[str, Any] | None:
    """An event's data as an object; None for `[DONE]`, comments and what is no object.

    Raises:
        ValueError: data that is no JSON.
    """
    data = data_of(event)
    if not data or data == b"[DONE]":
        return None
    try:
        found = read_json(data)
    except RecursionError:
        raise ValueError("too deep") from None
    return found if isinstance(found, dict) else None


def without_usage(event: bytes) -> bytes:
    """The event as a client that did not ask for usage gets it; empty if nothing is left.

    Raises:
        ValueError: data that is no JSON.
    """
    if b'"usage"' not in event:
        return event
    # Inside a JSON string the quotes would be escaped, so this is the chunk's own key.
    for null in _NULLS:
        if null in event:
            return event.replace(null, b"")
    chunk = parsed(event)
    if chunk is None or "usage" not in chunk:
        return event
    if not chunk.get("choices"):
        return b""
    del chunk["usage"]
    return b"data: " + json_bytes(chunk) + b"\n\n"


def tokens_in(event: bytes) -> int:
    """How many tokens with their log-probabilities an event holds.

    Raises:
        ValueError: data that is no JSON.
    """
    count = 0
    for choice in _objects((parsed(event) or {}).get("choices")):
        told = choice.get("logprobs")
        count += len(_objects(told.get("content") if isinstance(told, dict) else None))
    return count


def own_logprobs(answer: dict[str, Any], alternatives: int | None) -> None:
    """Leave of an answer's log-probabilities what the client asked for: so many alternatives a
    token; `None`: no log-probabilities at all."""
    for choice in _objects(answer.get("choices")):
        if alternatives is None:
            choice.pop("logprobs", None)
            continue
        told = choice.get("logprobs")
        for token in _objects(told.get("content") if isinstance(told, dict) else None):
            top = token.get("top_logprobs")
            token["top_logprobs"] = top[:alternatives] if isinstance(top, list) else []


def _objects(value: object) -> list[dict[str, Any]]:
    """The objects of an array; an upstream may send anything."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def without_logprobs(event: bytes, alternatives: int | None = None) -> bytes:
    """The event without the log-probabilities that the gateway itself asked for.

    Raises:
        ValueError: data that is no JSON.
    """
    if b'"logprobs"' not in event:
        return event
    chunk = parsed(event)
    if chunk is None:
        return event
    own_logprobs(chunk, alternatives)
    return b"data: " + json_bytes(chunk) + b"\n\n"


def joined(events: Iterable[bytes]) -> dict[str, Any]:
    """One chat answer out of the events of its stream: texts, tool calls, logprobs, usage.

    Events that are no JSON, or of another shape, are left out.
    """
    answer: dict[str, Any] = {"object": "chat.completion"}
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        try:
            _join(answer, choices, parsed(event) or {})
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    answer["choices"] = [choices[index] for index in sorted(choices)]
    for choice in answer["choices"]:
        calls = choice["message"].get("tool_calls")
        if calls is not None:
            choice["message"]["tool_calls"] = [calls[place] for place in sorted(calls)]
    return answer


def _join(
    answer: dict[str, Any], choices: dict[int, dict[str, Any]], chunk: dict[str, Any]
) -> None:
    for name in ("id", "created", "model", "system_fingerprint", "service_tier", "usage"):
        if chunk.get(name) is not None:
            answer[name] = chunk[name]
    for piece in chunk.get("choices") or ():
        index = int(piece.get("index", 0))
        choice = choices.setdefault(
            index, {"index": index, "message": {"role": "assistant", "content": None}}
        )
        _add(choice, piece)


def _add(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    message = choice["message"]
    delta = piece.get("delta") or {"content": piece.get("text")}
    for name in ("content", "refusal", "reasoning_content"):
        if delta.get(name) is not None:
            message[name] = (message.get(name) or "") + delta[name]
    for call in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", {})
        known = calls.setdefault(
            int(call.get("index", 0)),
            {"type": "function", "function": {"name": "", "arguments": ""}},
        )
        if call.get("id"):
            known["id"] = call["id"]
        for name, text in (call.get("function") or {}).items():
            known["function"][name] = known["function"].get(name, "") + (text or "")
    content = (piece.get("logprobs") or {}).get("content")
    if content:
        choice.setdefault("logprobs", {"content": []})["content"].extend(content)
    if piece.get("finish_reason") is not None:
        choice["finish_reason"] = piece["finish_reason"]
