"""The text of an answer and of the chat it answers, in whichever API's shape; what a text says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from stillhouse.core.records import Message, Role
from stillhouse.core.tasks import Task, canonical_json

_ROLES: Final = frozenset(get_args(Role))


def answer_text(response: Mapping[str, Any] | None) -> str | None:
    """The first choice's text, or the arguments of its tool call; `None` where there is neither."""
    if response is None:
        return None
    choices = response.get("choices")
    if isinstance(choices, Sequence) and choices and isinstance(choices[0], Mapping):
        if isinstance(choices[0].get("text"), str):
            return str(choices[0]["text"])
        message = choices[0].get("message")
        if not isinstance(message, Mapping):
            return None
        content = message.get("content")
        return content if isinstance(content, str) and content else _call_text(message)
    blocks = response.get("content")
    if not isinstance(blocks, Sequence) or isinstance(blocks, str):
        return None
    texts = [block.get("text") for block in blocks if isinstance(block, Mapping)]
    found = "".join(text for text in texts if isinstance(text, str))
    if found:
        return found
    inputs = [b["input"] for b in blocks if isinstance(b, Mapping) and "input" in b]
    return canonical_json(inputs[0] if len(inputs) == 1 else inputs) if inputs else None


def asked(body: Mapping[str, Any]) -> tuple[Message, ...]:
    """The chat of a request, texts alone; empty where it has none that ends before an answer."""
    turns = [Message(role="system", content=text) for text in [_plain(body.get("system"))] if text]
    prompt = body.get("prompt")
    if isinstance(prompt, str) and prompt:
        return (Message(role="user", content=prompt),)
    messages = body.get("messages")
    for message in messages if isinstance(messages, Sequence) else ():
        role = message.get("role")
        turns.append(
            Message(role=role if role in _ROLES else "user", content=_plain(message.get("content")))
        )
    if not turns or turns[-1].role == "assistant":
        return ()
    return tuple(turns)


def said(task: Task | None, text: str) -> str:
    """What a text says, as texts are compared: its value where the task can read it."""
    value = None if task is None else task.parse(text).value
    return text.strip() if value is None else canonical_json(value)


def _call_text(message: Mapping[str, Any]) -> str | None:
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence):
        return None
    found = [
        call["function"]["arguments"]
        for call in calls
        if isinstance(call, Mapping)
        and isinstance(call.get("function"), Mapping)
        and isinstance(call["function"].get("arguments"), str)
    ]
    if not found:
        return None
    return str(found[0]) if len(found) == 1 else canonical_json(found)


def _plain(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    parts = [part.get("text") for part in content if isinstance(part, Mapping)]
    return "\n".join(part for part in parts if isinstance(part, str))
