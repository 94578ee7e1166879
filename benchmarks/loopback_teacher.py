"""An OpenAI-like server on loopback, with latency and faults, in a process of its own.

    python benchmarks/loopback_teacher.py [--latency-ms 200] [--faults] [--seed 0]

Prints its port. Keeps count of what it billed, which `GET /stats` tells: a query is billed whenever
its answer was made, whether or not it arrived. With `--faults` some requests meet a burst of 429s,
a 500, a connection reset after the answer was made, an answer that drips for minutes, or JSON that
is cut off. The protocol is written by hand, so that the server takes little of the machine's time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import Counter
from typing import Any

PROMPT_TOKENS, ANSWER_TOKENS = 20, 5
MODEL = "loopback-1"
BURST_EVERY_S, BURST_S, RETRY_AFTER_S = 4.0, 0.4, 0.2
P_RESET, P_DRIP, P_TRUNCATED, P_500 = 0.004, 0.002, 0.004, 0.01


class Server:
    """What all connections share."""

    def __init__(self, latency_s: float, faults: bool, seed: int) -> None:
        self.latency_s = latency_s
        self.faults = faults
        self.random = random.Random(seed)
        self.billed: Counter[str] = Counter()
        self.requests = self.refused = self.in_flight = self.most_in_flight = 0
        self.by_fault: Counter[str] = Counter()
        self.first_at = self.last_at = 0.0

    def stats(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "answers billed": sum(self.billed.values()),
            "chats billed": len(self.billed),
            "in flight": self.in_flight,
            "most in flight": self.most_in_flight,
            "faults": dict(self.by_fault),
            "seconds": self.last_at - self.first_at,
        }

    def fault(self, now: float) -> str:
        """What befalls a request: decided before it is answered."""
        if not self.faults:
            return ""
        if now % BURST_EVERY_S < BURST_S:
            return "429"
        at = self.random.random()
        for name, share in (
            ("500", P_500),
            ("reset", P_RESET),
            ("drip", P_DRIP),
            ("truncated", P_TRUNCATED),
        ):
            if at < share:
                return name
            at -= share
        return ""


def response(status: str, body: bytes, extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{extra}\r\n".encode() + body


def answer(chat: str) -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": f"answer to {chat[-12:]}"},
                    "finish_reason": "stop",
                    "logprobs": None,
                }
            ],
            "usage": {
                "prompt_tokens": PROMPT_TOKENS,
                "completion_tokens": ANSWER_TOKENS,
                "total_tokens": PROMPT_TOKENS + ANSWER_TOKENS,
            },
        }
    ).encode()


class Connection(asyncio.Protocol):
    """One client's connection: a request at a time."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = b""
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        if head.startswith(b"GET"):
            self.transport.write(response("200 OK", json.dumps(self.server.stats()).encode()))
            return
        messages = json.loads(rest[:length]).get("messages")
        if messages:
            self.asked(messages[-1]["content"])
        else:  # a question after the rate limits, of which there are none
            self.transport.write(response("200 OK", answer("")))

    def asked(self, chat: str) -> None:
        server = self.server
        server.requests += 1
        server.first_at = server.first_at or self.loop.time()
        server.in_flight += 1
        server.most_in_flight = max(server.most_in_flight, server.in_flight)
        fault = server.fault(self.loop.time())
        if fault:
            server.by_fault[fault] += 1
        delay = 0.0 if fault == "429" else server.latency_s
        self.loop.call_later(delay, self.answered, chat, fault)

    def answered(self, chat: str, fault: str) -> None:
        server, transport = self.server, self.transport
        server.in_flight -= 1
        if fault == "429":
            extra = f"Retry-After: {RETRY_AFTER_S}\r\n"
            transport.write(response("429 Too Many Requests", b'{"error":{}}', extra))
            return
        if fault == "500":
            transport.write(response("500 Internal Server Error", b'{"error":{}}'))
            return
        server.last_at = self.loop.time()
        server.billed[chat] += 1  # also where the client is gone by now
        body = answer(chat)
        if fault == "reset":
            transport.abort()
        elif fault == "truncated":
            transport.write(response("200 OK", body[: len(body) // 2]))
        elif fault == "drip":
            self.drip(response("200 OK", body))
        else:
            transport.write(response("200 OK", body))

    def drip(self, left: bytes) -> None:
        if left and not self.transport.is_closing():
            self.transport.write(left[:1])
            self.loop.call_later(0.5, self.drip, left[1:])


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=200.0)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    server = Server(arguments.latency_ms / 1e3, arguments.faults, arguments.seed)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=4096)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
