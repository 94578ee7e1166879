"""A model server on loopback that answers what it was asked, after a while, in its own process.

    python benchmarks/echo_server.py [--latency-ms 50]

Prints its port. Chat completions, plain and streamed (a word an event); whatever the path. The
protocol is written by hand and the loop is uvloop's where it is installed: beside a gateway on a
small machine the server must take little of the machine's time. One request at a time on a
connection. Knows no faults: `loopback_teacher` has those.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
from typing import Any, cast

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
NAMED = {"id": "chatcmpl-1", "created": 1, "model": "echo-1"}


def answer(text: str) -> bytes:
    """A whole answer."""
    words = len(text.split())
    body = {
        **NAMED,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": words, "completion_tokens": words, "total_tokens": 2 * words},
    }
    raw = json.dumps(body).encode()
    return HEAD % (len(raw), raw)


def events(text: str, *, usage: bool) -> list[bytes]:
    """A streamed answer: its chunks, each an event."""
    words = text.split()
    said: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}]}
        for word in words
    ]
    said.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage:
        count = {"prompt_tokens": len(words), "completion_tokens": len(words)}
        said.append({"choices": [], "usage": count})
    lines = [json.dumps({**NAMED, "object": "chat.completion.chunk", **one}) for one in said]
    data = [f"data: {line}\n\n".encode() for line in [*lines, "[DONE]"]]
    return [b"%x\r\n%b\r\n" % (len(one), one) for one in data]


class Echo(asyncio.Protocol):
    """One connection."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
        self._buffer = b""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        asked = json.loads(rest[:length])
        text = asked["messages"][-1]["content"]
        if asked.get("stream"):
            usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            self._loop.call_later(self._latency_s, self._stream, events(text, usage=usage))
        else:
            self._loop.call_later(self._latency_s, self._write, answer(text))

    def _write(self, raw: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(raw)

    def _stream(self, chunks: list[bytes]) -> None:
        self._write(STREAM_HEAD)
        for chunk in chunks:
            self._write(chunk)
        self._write(b"0\r\n\r\n")


async def main(latency_ms: float) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(
        lambda: Echo(latency_ms / 1e3), "127.0.0.1", 0, backlog=4096
    )
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


def run(work: Any) -> Any:
    """Run a coroutine, on uvloop where it is installed."""
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=50.0)
    run(main(parser.parse_args().latency_ms))
