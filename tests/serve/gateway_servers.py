"""Real servers on loopback: models with faults, and the gateway before them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from aiohttp import web

from stillhouse.core.recipe_file import parse_as
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.in_memory import MemoryLog, MemoryStates
from stillhouse.serve.seams import Parts
from stillhouse.serve.server import Address, Gateway, memory_parts

ADMIN = "admin-0123456789"
Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def chat_body(text: str = "good", logprob: float = -0.01) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "model-there",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": "stop",
                "logprobs": {
                    "content": [
                        {"token": text, "logprob": logprob, "bytes": None, "top_logprobs": []}
                    ]
                },
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }


def chunk(text: str, finish: str | None = None, logprob: float = -0.01) -> dict[str, Any]:
    logprobs = {"content": [{"token": text, "logprob": logprob, "top_logprobs": []}]}
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "model-there",
        "choices": [{**choice, "logprobs": logprobs}],
        "usage": None,
    }


USAGE = {
    **chunk(""),
    "choices": [],
    "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
}


def sse(*data: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in data)


def says(text: str, logprob: float = -0.01) -> Answer:
    """A model that answers as OpenAI's API does, plain or streamed."""

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            return web.json_response(chat_body(text, logprob))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for letter in text:
            await response.write(sse(chunk(letter, logprob=logprob)))
        await response.write(sse(chunk("", "stop", logprob)))
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(sse(USAGE))
        await response.write(b"data: [DONE]\n\n")
        return response

    return answer


def status(code: int, headers: dict[str, str] | None = None) -> Answer:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        shown = {"error": {"message": "no", "type": "t", "param": None, "code": None}}
        return web.json_response(shown, status=code, headers=headers)

    return answer


async def hang(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError


async def garbage(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    kind = "text/event-stream" if body.get("stream") else "application/json"
    return web.Response(body=b"data: {{{\n\n\xff", headers={"content-type": kind})


def _reset(request: web.Request) -> None:
    assert request.transport is not None
    sock = request.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


async def reset(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    _reset(request)
    return web.Response()


def breaks_off(after: str, end: str = "reset") -> Answer:
    """A stream that says something and is then reset, ended, or silent."""

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(sse(chunk(after)))
        await asyncio.sleep(0.05)
        if end == "reset":
            _reset(request)
        elif end == "silent":
            await asyncio.sleep(60)
        return response

    return answer


class Model:
    """A model's server. `answer` may be changed at any time."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.cancelled = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.paths.append(request.path)
        try:
            return await self.answer(request, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Loop(contextlib.AbstractContextManager["Loop"]):
    """An event loop in a thread."""

    def __enter__(self) -> Loop:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)


@contextlib.contextmanager
def models(*served: Model) -> Iterator[None]:
    with Loop() as loop:
        runners = []

        async def start(model: Model) -> None:
            app = web.Application(client_max_size=50_000_000)
            app.router.add_post("/{path:.*}", model.handle)
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            runners.append(runner)
            port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            model.url = f"http://127.0.0.1:{port}/v1"

        for model in served:
            loop.do(start(model))
        try:
            yield
        finally:
            for runner in runners:
                loop.do(runner.cleanup())


class Running(NamedTuple):
    """A gateway under test."""

    url: str
    admin: str
    log: MemoryLog
    states: MemoryStates
    gateway: Gateway

    def wait_for(self, number: int) -> list[Any]:
        """The log's records once there are so many."""
        ends = time.monotonic() + 5
        while len(self.log.calls) < number and time.monotonic() < ends:
            time.sleep(0.01)
        return list(self.log.calls)


@contextlib.contextmanager
def gateway(raw: dict[str, Any], **replaced: Any) -> Iterator[Running]:
    raw = {"listen": {"port": 0, "drain_s": 2}, "admin": {"port": 0}, **raw}
    file = parse_as(GatewayFile, raw, "test")
    made = memory_parts(file)
    parts = Parts(
        assigner=replaced.get("assigner", made.assigner),
        states=replaced.get("states", made.states),
        log=replaced.get("log", made.log),
        keys=replaced.get("keys", made.keys),
        gate=replaced.get("gate", made.gate),
        key_store=replaced.get("key_store"),
        batches=replaced.get("batches"),
        scores=made.scores,
        experiments=made.experiments,
        presence=made.presence,
        last=made.last,
    )
    secrets = {name: f"sk-of-{name}" for name in file.upstreams} | {"": ADMIN}
    running = Gateway(file, parts, secrets)
    opened: list[tuple[Address, Address | None]] = []
    ready = threading.Event()

    def told(listen: Address, admin: Address | None) -> None:
        opened.append((listen, admin))
        ready.set()

    with Loop() as loop:
        done = asyncio.run_coroutine_threadsafe(running.run(told), loop.loop)
        while not ready.wait(0.02):
            if done.done():
                done.result()
        listen, admin = opened[0]
        assert admin is not None
        try:
            log, states = parts.log, parts.states
            yield Running(listen.url, admin.url, log, states, running)  # type: ignore[arg-type]
        finally:
            running.stop()
            done.result(20)


def two(teacher: Model, student: Model | None, **task: Any) -> dict[str, Any]:
    """gateway.yaml of a task `t` with a teacher and perhaps a student."""
    quick = {
        "retry": {"attempts": 2, "pause_s": 0.01},
        "deadlines": {"connect_s": 1, "first_token_s": 1, "between_tokens_s": 0.5, "total_s": 2},
    }
    ups = {
        "big": {
            "base_url": teacher.url,
            "model": "big-1",
            "api_key_env": "A",
            "price": {"input": 10, "output": 20},
            **quick,
        }
    }
    one: dict[str, Any] = {"teacher": "big", **task}
    if student is not None:
        ups["small"] = {"base_url": student.url, "model": "small-1", **quick}
        one["student"] = "small"
    return {"upstreams": ups, "tasks": {"t": one}}


FULL = {"experiment": {"stages": [{"kind": "full", "share": 1}], "teacher_only": 0}}
OFF = {"experiment": {"stages": [{"kind": "off"}], "teacher_only": 0}}
SHADOW = {"experiment": {"stages": [{"kind": "shadow"}, {"kind": "full"}], "teacher_only": 0}}
