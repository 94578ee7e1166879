"""Anthropic's streams: joining one to an answer, and a whole answer as a stream of either API.

A whole answer becomes a few events: where the upstream speaks the other API, the client of a stream
gets the answer in one piece when it is there. Knows no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from stillhouse.serve.sse import DONE, parsed


def joined_messages(events: Iterable[bytes]) -> dict[str, Any]:
    """One answer out of the events of Anthropic's stream. Events that are no JSON, or of another
    shape, are left out."""
    answer: dict[str, Any] = {"type": "message", "content": [], "usage": {}}
    blocks: dict[int, dict[str, Any]] = {}
    inputs: dict[int, str] = {}
    for event in events:
        try:
            _join(answer, blocks, inputs, parsed(event) or {})
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    for index, text in inputs.items():
        if blocks[index].get("type") == "tool_use" and text:
            try:
                blocks[index]["input"] = json.loads(text)
            except (ValueError, RecursionError):
                blocks[index]["input"] = {"text": text}
    answer["content"] = [blocks[index] for index in sorted(blocks)]
    return answer


def _join(
    answer: dict[str, Any],
    blocks: dict[int, dict[str, Any]],
    inputs: dict[int, str],
    found: Mapping[str, Any],
) -> None:
    kind = found.get("type")
    if kind == "message_start":
        message = found.get("message") or {}
        answer |= {name: value for name, value in message.items() if name != "content"}
    elif kind == "content_block_start":
        blocks[int(found.get("index", 0))] = dict(found.get("content_block") or {})
    elif kind == "content_block_delta":
        index, delta = int(found.get("index", 0)), found.get("delta") or {}
        block = blocks.setdefault(index, {"type": "text", "text": ""})
        if "text" in delta:
            block["text"] = block.get("text", "") + delta["text"]
        inputs[index] = inputs.get(index, "") + (delta.get("partial_json") or "")
    elif kind == "message_delta":
        answer |= found.get("delta") or {}
        answer["usage"] = {**(answer.get("usage") or {}), **(found.get("usage") or {})}


def _event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    head = b"" if name is None else b"event: " + name.encode("ascii") + b"\n"
    return head + b"data: " + json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n\n"


def openai_stream(answer: Mapping[str, Any], *, with_usage: bool) -> bytes:
    """A whole OpenAI chat answer as its stream."""
    head = {name: answer[name] for name in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk"
    made: list[bytes] = []
    for choice in answer["choices"]:
        delta = {name: value for name, value in choice["message"].items() if value is not None}
        if "tool_calls" in delta:
            delta["tool_calls"] = [
                {"index": place, **call} for place, call in enumerate(delta["tool_calls"])
            ]
        first = {"index": choice["index"], "delta": delta, "finish_reason": None}
        last = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}
        made += [_event({**head, "choices": [one]}) for one in (first, last)]
    if with_usage:
        made.append(_event({**head, "choices": [], "usage": answer["usage"]}))
    return b"".join(made) + DONE


def anthropic_stream(answer: Mapping[str, Any]) -> bytes:
    """A whole Anthropic answer as its stream."""
    start = {**answer, "content": [], "stop_reason": None}
    made = [_event({"type": "message_start", "message": start}, "message_start")]
    for index, block in enumerate(answer["content"]):
        if block["type"] == "text":
            empty: dict[str, Any] = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": block["text"]}
        else:
            empty = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        at = {"index": index}
        for name, more in (
            ("content_block_start", {"content_block": empty}),
            ("content_block_delta", {"delta": delta}),
            ("content_block_stop", {}),
        ):
            made.append(_event({"type": name, **at, **more}, name))
    stop = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    usage = {"output_tokens": answer["usage"]["output_tokens"]}
    made.append(_event({"type": "message_delta", "delta": stop, "usage": usage}, "message_delta"))
    made.append(_event({"type": "message_stop"}, "message_stop"))
    return b"".join(made)
