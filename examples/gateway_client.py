"""Ask through the gateway with the official openai client: only the base URL changes.

stillhouse serve gateway.yaml
python examples/gateway_client.py http://127.0.0.1:8080/v1 reviews
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import openai
from aiohttp import web

from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.server import Gateway, memory_parts


class Answers(NamedTuple):
    """One question, asked four ways; and who answered."""

    plain: str
    streamed: str
    awaited: str
    awaited_stream: str
    variant: str
    request_id: str


def ask(base_url: str, task: str, question: str, key: str = "none") -> Answers:
    """Ask a task's question: plain and streamed, blocking and awaited."""
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": question}
    ]
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        raw = client.chat.completions.with_raw_response.create(model=task, messages=messages)
        plain = raw.parse().choices[0].message.content or ""
        with client.chat.completions.create(model=task, messages=messages, stream=True) as stream:
            streamed = "".join(c.choices[0].delta.content or "" for c in stream)
    awaited, awaited_stream = asyncio.run(_await(base_url, task, messages, key))
    return Answers(
        plain,
        streamed,
        awaited,
        awaited_stream,
        raw.headers["x-stillhouse-variant"],
        raw.headers["x-request-id"],
    )


async def _await(
    base_url: str,
    task: str,
    messages: list[openai.types.chat.ChatCompletionMessageParam],
    key: str,
) -> tuple[str, str]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key) as client:
        answer = await client.chat.completions.create(model=task, messages=messages)
        parts: list[str] = []
        async with await client.chat.completions.create(
            model=task, messages=messages, stream=True
        ) as stream:
            async for chunk in stream:
                parts.append(chunk.choices[0].delta.content or "")
    return answer.choices[0].message.content or "", "".join(parts)


async def _always(request: web.Request) -> web.StreamResponse:
    """A model's server: chat completions, plain or streamed, with one fixed answer."""
    asked = await request.json()
    named = {"id": "chatcmpl-1", "created": 1, "model": asked["model"]}
    said = {"role": "assistant", "content": "positive"}
    choice = {"index": 0, "finish_reason": "stop"}
    if not asked.get("stream"):
        whole = {**choice, "message": said, "logprobs": None}
        return web.json_response({**named, "object": "chat.completion", "choices": [whole]})
    piece = {**named, "object": "chat.completion.chunk", "choices": [{**choice, "delta": said}]}
    text = f"data: {json.dumps(piece)}\n\ndata: [DONE]\n\n"
    return web.Response(text=text, content_type="text/event-stream")


T = TypeVar("T")
Asking = Callable[[str, str, str], T]


async def _alone(asking: Asking[T]) -> T:
    """Model, gateway and client in one process."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _always)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    file = GatewayFile.model_validate(
        {
            "listen": {"port": 0},
            "upstreams": {"model": {"base_url": f"http://127.0.0.1:{port}/v1", "model": "m"}},
            "tasks": {"reviews": {"teacher": "model"}},
        }
    )
    gateway = Gateway(file, memory_parts(file), secrets={})
    opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(gateway.run(lambda at, _: opened.set_result(at.url)))
    try:
        url = f"{await opened}/v1"
        return await asyncio.to_thread(asking, url, "reviews", "A gem of a film.")
    finally:
        gateway.stop()
        await serving
        await runner.cleanup()


def served_alone(asking: Asking[T]) -> T:
    """What a client is told by a gateway and a model that are made for it."""
    return asyncio.run(_alone(asking))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        answers = ask(sys.argv[1], sys.argv[2], "A gem of a film.")
    else:
        answers = served_alone(ask)
    for name, value in answers._asdict().items():
        print(f"{name}: {value}")
