"""Chat requests and answers in Anthropic's shape and in OpenAI's, and from one to the other.

Texts, tools and tool results, images by URL or base64; what has no counterpart is refused by name.
Knows no HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from stillhouse.core.token_counts import token_count
from stillhouse.serve.api_errors import ApiError

DEFAULT_MAX_TOKENS: Final = 4096
_STOPS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_FINISHES: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_DATA_URL: Final = re.compile(r"data:(image/[a-z.+-]+);base64,(.*)", re.DOTALL)
_UNSAID: Final = ("logprobs", "top_logprobs", "response_format", "logit_bias", "seed")


def _unsayable(param: str) -> ApiError:
    return ApiError(
        400, f"{param} cannot be passed on to this task's model.", param=param, code="unsupported"
    )


def anthropic_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """An OpenAI chat request for Anthropic's API.

    Raises:
        ApiError: 400: a parameter or message that the API has no word for.
    """
    for name in _UNSAID:
        if body.get(name) not in (None, False, {"type": "text"}):
            raise _unsayable(name)
    if (body.get("n") or 1) != 1:
        raise _unsayable("n")
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in body.get("messages") or ():
        if message["role"] in ("system", "developer"):
            system.append(_plain(message.get("content")))
            continue
        role, blocks = _turn(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"].extend(blocks)
        else:
            turns.append({"role": role, "content": blocks})
    most = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS
    sent: dict[str, Any] = {"model": body["model"], "max_tokens": most, "messages": turns}
    if system:
        sent["system"] = "\n\n".join(system)
    for name in ("temperature", "top_p", "stream"):
        if body.get(name) is not None:
            sent[name] = body[name]
    if sent.get("temperature", 0) > 1:
        sent["temperature"] = 1
    stop = body.get("stop")
    if stop:
        sent["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if body.get("tools"):
        sent["tools"] = [_tool(one) for one in body["tools"]]
        choice = body.get("tool_choice")
        if isinstance(choice, dict):
            sent["tool_choice"] = {"type": "tool", "name": choice["function"]["name"]}
        elif choice is not None:
            sent["tool_choice"] = {"type": {"required": "any"}.get(choice, choice)}
    return sent


def _plain(content: object) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    return content if isinstance(content, str) else ""


def _tool(tool: object) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _unsayable("tools")
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    shown = {"name": function["name"], "input_schema": schema}
    if function.get("description"):
        shown["description"] = function["description"]
    return shown


def _turn(message: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    content = message.get("content")
    if message["role"] == "tool":
        result = {
            "type": "tool_result",
            "tool_use_id": message.get("tool_call_id"),
            "content": _plain(content),
        }
        return "user", [result]
    blocks: list[dict[str, Any]] = []
    if isinstance(content, str) and content:
        blocks.append({"type": "text", "text": content})
    elif isinstance(content, list):
        blocks.extend(_block(part) for part in content)
    for call in message.get("tool_calls") or ():
        try:
            given = json.loads(call["function"]["arguments"] or "{}")
            name = call["function"]["name"]
        except (KeyError, TypeError, ValueError):
            raise _unsayable("tool_calls") from None
        blocks.append({"type": "tool_use", "id": call.get("id"), "name": name, "input": given})
    return ("assistant" if message["role"] == "assistant" else "user"), blocks


def _block(part: Mapping[str, Any]) -> dict[str, Any]:
    if part.get("type") == "text":
        return {"type": "text", "text": part.get("text")}
    image = part.get("image_url")
    if part.get("type") != "image_url" or not isinstance(image, dict):
        raise _unsayable(f"content of type {str(part.get('type'))[:40]}")
    found = _DATA_URL.fullmatch(str(image.get("url")))
    if found is None:
        return {"type": "image", "source": {"type": "url", "url": image.get("url")}}
    source = {"type": "base64", "media_type": found[1], "data": found[2]}
    return {"type": "image", "source": source}


def openai_answer(answer: Mapping[str, Any], created: int) -> dict[str, Any]:
    """Anthropic's answer as OpenAI's.

    Raises:
        ValueError, KeyError, TypeError: it is no such answer.
    """
    blocks = answer["content"]
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {"name": block["name"], "arguments": json.dumps(block["input"])},
        }
        for block in blocks
        if block["type"] == "tool_use"
    ]
    message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _STOPS.get(answer.get("stop_reason") or "", "stop"),
    }
    usage = _usage(answer)
    read, written = prompt_tokens(usage), token_count(usage.get("output_tokens")) or 0
    return {
        "id": answer["id"],
        "object": "chat.completion",
        "created": created,
        "model": answer["model"],
        "choices": [choice],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        },
    }


def prompt_tokens(usage: Mapping[str, Any]) -> int:
    """Of Anthropic's usage: cached ones too."""
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return token_count(sum(token_count(usage.get(name)) or 0 for name in names)) or 0


def _usage(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a server says of tokens; nothing where that is no object."""
    usage = answer.get("usage")
    return usage if isinstance(usage, Mapping) else {}


def openai_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """An Anthropic request for an OpenAI-compatible server. Texts and custom tools.

    Raises:
        ApiError: 400: a block that has no counterpart here.
    """
    messages: list[dict[str, Any]] = []
    if body.get("system"):
        messages.append({"role": "system", "content": _plain(body["system"])})
    for message in body["messages"]:
        messages.extend(_messages(message))
    sent: dict[str, Any] = {"model": body["model"], "messages": messages}
    for name in ("max_tokens", "temperature", "top_p", "stream"):
        if body.get(name) is not None:
            sent[name] = body[name]
    if body.get("stop_sequences"):
        sent["stop"] = body["stop_sequences"]
    if body.get("tools"):
        sent["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.get("name"),
                    "description": tool.get("description") or "",
                    "parameters": tool.get("input_schema") or {"type": "object", "properties": {}},
                },
            }
            for tool in body["tools"]
        ]
        choice = body.get("tool_choice") or {}
        if choice.get("type") == "tool":
            named = {"name": choice.get("name")}
            sent["tool_choice"] = {"type": "function", "function": named}
        elif choice:
            sent["tool_choice"] = {"any": "required"}.get(choice["type"], choice["type"])
    return sent


def _messages(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": message["role"], "content": content}]
    found: list[dict[str, Any]] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in content or ():
        kind = block.get("type")
        if kind == "text":
            texts.append(str(block.get("text")))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input"))}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            shown = {"role": "tool", "tool_call_id": block.get("tool_use_id")}
            found.append({**shown, "content": _plain(block.get("content"))})
        elif kind not in ("thinking", "redacted_thinking"):
            raise _unsayable(f"content of type {str(kind)[:40]}")
    if texts or calls:
        turn: dict[str, Any] = {"role": message["role"], "content": "".join(texts) or None}
        if calls:
            turn["tool_calls"] = calls
        found.append(turn)
    return found


def anthropic_answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's answer as Anthropic's.

    Raises:
        ValueError, KeyError, TypeError, IndexError: it is no such answer.
    """
    choice = answer["choices"][0]
    message = choice["message"]
    blocks: list[dict[str, Any]] = []
    if message.get("content"):
        blocks.append({"type": "text", "text": message["content"]})
    for call in message.get("tool_calls") or ():
        given = json.loads(call["function"]["arguments"] or "{}")
        name = call["function"]["name"]
        blocks.append({"type": "tool_use", "id": call["id"], "name": name, "input": given})
    usage = _usage(answer)
    return {
        "id": answer.get("id") or "msg",
        "type": "message",
        "role": "assistant",
        "model": answer.get("model") or "",
        "content": blocks,
        "stop_reason": _FINISHES.get(choice.get("finish_reason"), "end_turn"),
        "stop_sequence": None,
        "usage": {
            "input_tokens": token_count(usage.get("prompt_tokens")) or 0,
            "output_tokens": token_count(usage.get("completion_tokens")) or 0,
        },
    }
