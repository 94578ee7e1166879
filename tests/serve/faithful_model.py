"""A model's server that does what OpenAI's API says of each parameter: tools, schemas, n, usage."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

WORDS = ["good", " ", "film"]
USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}


def _logprob(token: str, tops: int) -> dict[str, Any]:
    one = {"token": token, "logprob": -0.1, "bytes": list(token.encode())}
    return {**one, "top_logprobs": [one] * tops}


def _message(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What is said, and why it ends."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    if body.get("tools") and body.get("tool_choice") != "none":
        tool = body["tools"][0]
        name = tool["function"]["name"] if tool.get("function") else "custom"
        if not isinstance(name, str):
            raise TypeError("no name")
        function = {"name": name, "arguments": '{"city": "Oslo"}'}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        return message, "tool_calls"
    kind = (body.get("response_format") or {}).get("type")
    text = '{"label": "fresh"}' if kind in ("json_schema", "json_object") else "".join(WORDS)
    return {**message, "content": text}, "stop"


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1_700_000_000, "model": body["model"]}


def _logprobs(body: dict[str, Any], text: str | None) -> dict[str, Any] | None:
    if not body.get("logprobs") or not text:
        return None
    words = WORDS if text == "".join(WORDS) else [text]
    content = [_logprob(word, body.get("top_logprobs") or 0) for word in words]
    return {"content": content, "refusal": None}


def _chat(body: dict[str, Any]) -> dict[str, Any]:
    message, why = _message(body)
    logprobs = _logprobs(body, message["content"])
    choices = [
        {"index": index, "message": message, "logprobs": logprobs, "finish_reason": why}
        for index in range(body.get("n") or 1)
    ]
    return {**_head(body, "chat.completion"), "choices": choices, "usage": USAGE}


def _chat_chunks(body: dict[str, Any]) -> list[dict[str, Any]]:
    message, why = _message(body)
    head = _head(body, "chat.completion.chunk")
    with_usage = (body.get("stream_options") or {}).get("include_usage")
    if with_usage:
        head["usage"] = None
    found = []
    for index in range(body.get("n") or 1):
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if "tool_calls" in message:
            call = message["tool_calls"][0]
            begun = {**call, "index": 0, "function": {**call["function"], "arguments": ""}}
            deltas.append({"tool_calls": [begun]})
            for piece in ('{"city": ', '"Oslo"}'):
                deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        else:
            text = message["content"]
            deltas += [{"content": one} for one in (WORDS if text == "".join(WORDS) else [text])]
        for delta in deltas:
            logprobs = _logprobs(body, delta.get("content"))
            choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": logprobs}
            found.append({**head, "choices": [choice]})
        last = {"index": index, "delta": {}, "finish_reason": why, "logprobs": None}
        found.append({**head, "choices": [last]})
    if with_usage:
        found.append({**head, "choices": [], "usage": USAGE})
    return found


def _completion(body: dict[str, Any], text: str, why: str | None) -> dict[str, Any]:
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    count = (len(prompts) if prompts and isinstance(prompts[0], str | list) else 1) * (
        body.get("n") or 1
    )
    choices = [
        {"index": index, "text": text, "logprobs": None, "finish_reason": why}
        for index in range(count)
    ]
    return {**_head(body, "text_completion"), "choices": choices}


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    base64 = body.get("encoding_format") == "base64"
    vector: Any = "AACAPwAAAEA=" if base64 else [1.0, 2.0]
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index in range(len(inputs) if isinstance(inputs[0], str | list) else 1)
    ]
    usage = {"prompt_tokens": 10, "total_tokens": 10}
    return {"object": "list", "model": body["model"], "data": data, "usage": usage}


async def faithful(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Answers as OpenAI's API does, on all three paths."""
    if request.path.endswith("/embeddings"):
        return web.json_response(_embeddings(body))
    if request.path.endswith("/chat/completions"):
        if not body.get("stream"):
            return web.json_response(_chat(body))
        return await _streamed(request, _chat_chunks(body))
    if not body.get("stream"):
        whole = _completion(body, "".join(WORDS), "stop")
        return web.json_response({**whole, "usage": USAGE})
    chunks = [_completion(body, word, None) for word in WORDS] + [_completion(body, "", "stop")]
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks = [{**one, "usage": None} for one in chunks]
        chunks.append({**chunks[0], "choices": [], "usage": USAGE})
    return await _streamed(request, chunks)


async def _streamed(request: web.Request, chunks: list[dict[str, Any]]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for chunk in chunks:
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response
