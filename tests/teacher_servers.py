"""A real HTTP server on loopback that speaks OpenAI chat completions and Anthropic messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aiohttp import web

KEY = "sk-test-0123456789abcdef"
Answer = Callable[[dict[str, Any], int], web.StreamResponse]


def openai_answer(
    text: str = "good",
    *,
    n: int = 1,
    finish: str = "stop",
    refusal: str | None = None,
    logprobs: list[dict[str, Any]] | None = None,
    usage: tuple[int, int] | None = (10, 2),
    fingerprint: str | None = "fp_1",
) -> web.Response:
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4.1-2025-04-14",
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": refusal},
                "finish_reason": finish,
                "logprobs": {"content": logprobs} if logprobs else None,
            }
            for index in range(n)
        ],
    }
    if usage is not None:
        body["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }
    if fingerprint is not None:
        body["system_fingerprint"] = fingerprint
    return web.json_response(body)


def anthropic_answer(text: str = "good", *, stop: str = "end_turn") -> web.Response:
    return web.json_response(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-haiku-4-5-20251001",
            "content": [
                {"type": "thinking", "thinking": "", "signature": "s"},
                {"type": "text", "text": text},
            ],
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": 100, "output_tokens": 20},
        }
    )


def error(
    status: int,
    message: str = "no",
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    body = {
        "type": "error",
        "error": {"type": "error", "message": message, "param": param, "code": code},
    }
    return web.json_response(body, status=status, headers=headers)


class Loopback:
    """Counts what it is asked; `answer(body, number)` decides what comes back."""

    def __init__(self, answer: Answer, delay_s: float = 0.0) -> None:
        self.answer = answer
        self.delay_s = delay_s
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.url = ""

    @property
    def asked(self) -> Counter[str]:
        """How often each last message was asked."""
        return Counter(body["messages"][-1]["content"] for body in self.bodies)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        number = len(self.bodies) - 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if (sent or request.headers.get("x-api-key", "")) not in (KEY, "none"):
                # Real servers echo part of the key; this one echoes all of it.
                return error(401, f"Incorrect API key provided: {sent}{request.headers}")
            answer = self.answer(body, number)
            if isinstance(answer, Truncated):
                return await answer.send(request)
            return answer
        finally:
            self.in_flight -= 1


class Truncated(web.StreamResponse):
    """Promises more bytes than it sends, then drops the connection."""

    async def send(self, request: web.Request) -> web.StreamResponse:
        self.content_type = "application/json"
        self.content_length = 1000
        await self.prepare(request)
        await self.write(b'{"id": "chatcmpl')
        assert request.transport is not None
        request.transport.close()
        return self


@contextlib.contextmanager
def serve(
    answer: Answer, delay_s: float = 0.0, routes: Sequence[web.RouteDef] = ()
) -> Iterator[Loopback]:
    """Run the server in a thread of its own while the block runs; `routes` are more of it."""
    server = Loopback(answer, delay_s)
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", server.handle)
    app.router.add_post("/v1/messages", server.handle)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        server.url = f"http://127.0.0.1:{port}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
