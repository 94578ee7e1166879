"""Requests to an HTTP server on loopback, many at a time, at little cost: closed or open loop.

    python benchmarks/load_generator.py http://127.0.0.1:8080/v1/chat/completions \
        --connections 64 --seconds 10            closed loop: each connection asks again at once
    python benchmarks/load_generator.py URL --rate 200 --seconds 10
                                                 open loop: so many a second, whatever happens

Prints one JSON object. As a module it offers `load(Plan(...))`, to be awaited, which returns a
`Load`: every latency in seconds in the order of the answers, statuses by count, what failed, and
the seconds from the first request to the last answer. A plan's `body` makes the body of request
number n, so that no two requests need be alike; `chat(model)` is one for chat completions.

- A latency runs to the last byte of the answer: in a closed loop from when the request was written,
  in an open loop from when it was due, so that a server that stalls is not asked less.
- Open loop: requests are due evenly spaced, or by a Poisson process of that rate (`seed`). One
  that finds no free connection opens one, up to `connections`; beyond that it waits, which counts.
- One request at a time on a connection, HTTP/1.1 with keep-alive; whole answers, chunked ones, and
  ones that end with the connection. A connection that breaks counts as `failed` and is opened anew.
- By count (`requests`) or by time (`seconds`). `ramp` requests at the start are not counted.
- Raw protocols, on uvloop where it is installed (~30 us a request). No TLS, no redirects, no
  retries.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from echo_server import run

TEXT = (
    "a quietly moving film that trusts its actors and never once raises its voice although the "
    "second half loses some of the patience that made the first so good and the ending is rushed"
)


def chat(model: str, *, stream: bool = False, words: int = 30) -> Callable[[int], bytes]:
    """Bodies of chat completions: request number n holds its number and some words."""
    known = TEXT.split()
    text = " ".join(known[i % len(known)] for i in range(words))

    def body(number: int) -> bytes:
        asked: dict[str, Any] = {
            "model": model,
            "messages": [
                {"role": "system", "content": "Say whether the review is good or bad."},
                {"role": "user", "content": f"Review {number}: {text}"},
            ],
            "user": f"user-{number % 1000}",
        }
        if stream:
            asked["stream"] = True
        return json.dumps(asked).encode()

    return body


@dataclass(frozen=True)
class Plan:
    """What is asked, of whom, how often. `rate`: an open loop of so many a second."""

    url: str
    body: Callable[[int], bytes]
    connections: int = 64
    seconds: float | None = None
    requests: int | None = None
    rate: float | None = None
    poisson: bool = False
    seed: int = 0
    ramp: int = 0
    timeout_s: float = 30.0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Load:
    """What came of it."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    seconds: float = 0.0
    asked: int = 0

    @property
    def per_second(self) -> float:
        """Answers with status 2xx a second."""
        good = sum(count for status, count in self.statuses.items() if 200 <= status < 300)
        return good / self.seconds if self.seconds else 0.0

    def quantile_ms(self, share: float) -> float:
        """Of the latencies, by rank; there must be some."""
        ranked = sorted(self.latencies_s)
        return 1000 * ranked[min(len(ranked) - 1, int(share * len(ranked)))]

    def summary(self) -> dict[str, Any]:
        """For a result."""
        shown: dict[str, Any] = {
            "requests_per_second": round(self.per_second, 1),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
        }
        if self.latencies_s:
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                shown[f"{name}_ms"] = round(self.quantile_ms(share), 2)
        return shown


class _Connection(asyncio.Protocol):
    """One connection; tells its owner of each answer's end."""

    def __init__(self, done: Callable[[_Connection, int | None], None]) -> None:
        self._done = done
        self._buffer = b""
        self._head_end = 0
        self._needs: int | None = None  # bytes of the whole answer; None: not known yet
        self._chunked = False
        self._status = 0
        self.began = 0.0
        self.busy = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, raw: bytes, began: float) -> None:
        assert self.transport is not None
        self.began = began
        self.busy = True
        self._buffer, self._head_end, self._needs, self._chunked = b"", 0, None, False
        self.transport.write(raw)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._head_end:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head_end = end + 4
            self._status = int(self._buffer[9:12])
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            if at >= 0:
                self._needs = self._head_end + int(head[at + 15 :].split(b"\r\n", 1)[0])
            else:
                self._chunked = b"transfer-encoding: chunked" in head
        if self._needs is not None:
            if len(self._buffer) >= self._needs:
                self._end(self._status)
        elif self._chunked and self._buffer.endswith(b"0\r\n\r\n"):
            self._end(self._status)

    def connection_lost(self, _error: Exception | None) -> None:
        self.transport = None
        if self.busy:
            whole = self._head_end and self._needs is None and not self._chunked
            self._end(self._status if whole else None)

    def _end(self, status: int | None) -> None:
        self.busy = False
        self._done(self, status)


class _Run:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        parts = urlsplit(plan.url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        extra = "".join(f"{name}: {value}\r\n" for name, value in plan.headers.items())
        self._head = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"content-type: application/json\r\n{extra}content-length: "
        ).encode()
        self._loop = asyncio.get_running_loop()
        self.load = Load()
        self._answered = 0
        self._first = 0.0
        self._finished = self._loop.create_future()
        self._free: list[_Connection] = []
        self._due: deque[float] = deque()  # when waiting requests were due
        self._opened = 0
        self._opening: set[asyncio.Task[None]] = set()
        self._sending = True

    async def run(self) -> Load:
        plan = self._plan
        pacing: asyncio.Task[None] | None = None
        if plan.rate is None:
            await asyncio.gather(*(self._open(ask=False) for _ in range(plan.connections)))
            waiting, self._free = self._free, []
            self._first = time.perf_counter()
            if plan.seconds is not None:
                self._loop.call_later(plan.seconds, self._stop)
            for connection in waiting:
                self._next(connection)
        else:
            self._first = time.perf_counter()
            pacing = asyncio.create_task(self._pace(plan.rate))
        limit = (plan.seconds or 3600) + plan.timeout_s
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._finished), limit)
        if pacing is not None:
            pacing.cancel()
        self.load.failed += self.load.asked - self._answered
        return self.load

    async def _pace(self, rate: float) -> None:
        """Say when requests are due, and send those that are."""
        plan, draw = self._plan, random.Random(self._plan.seed)
        due = self._first
        while self._sending:
            due += draw.expovariate(rate) if plan.poisson else 1 / rate
            over = plan.seconds is not None and due - self._first > plan.seconds
            if over or self.load.asked + len(self._due) == plan.requests:
                break
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            self._due.append(due)
            self._send_due()
        self._stop()

    def _send_due(self) -> None:
        while self._due and self._free:
            connection = self._free.pop()
            if connection.transport is None or connection.transport.is_closing():
                self._opened -= 1  # it was idle for longer than the server keeps such ones
            else:
                self._send(connection, self._due.popleft())
        if self._due and self._opened + len(self._opening) < self._plan.connections:
            task = asyncio.create_task(self._open(ask=True))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, *, ask: bool) -> None:
        try:
            _, made = await self._loop.create_connection(
                lambda: _Connection(self._done), self._host, self._port
            )
        except OSError:
            if self._due and ask:
                self._due.popleft()
                self.load.asked += 1
                self._count(None, 0.0)
            return
        self._opened += 1
        self._free.append(made)
        if ask:
            self._send_due()

    def _send(self, connection: _Connection, began: float) -> None:
        body = self._plan.body(self.load.asked)
        self.load.asked += 1
        connection.ask(b"%b%d\r\n\r\n%b" % (self._head, len(body), body), began)

    def _next(self, connection: _Connection) -> None:
        if self._plan.requests is not None and self.load.asked >= self._plan.requests:
            self._sending = False
        if self._sending:
            self._send(connection, time.perf_counter())

    def _done(self, connection: _Connection, status: int | None) -> None:
        self._count(status, time.perf_counter() - connection.began)
        if connection.transport is None or connection.transport.is_closing():
            self._opened -= 1
            if self._sending and self._plan.rate is None:
                task = asyncio.create_task(self._again())
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
        elif self._plan.rate is None:
            self._next(connection)
        else:
            self._free.append(connection)
            self._send_due()
        self._look()

    async def _again(self) -> None:
        await self._open(ask=False)
        if self._free:
            self._next(self._free.pop())
        self._look()

    def _count(self, status: int | None, took: float) -> None:
        self._answered += 1
        if self._answered == self._plan.ramp:
            self._first = time.perf_counter()
        if self._answered <= self._plan.ramp:
            return
        if status is None:
            self.load.failed += 1
        else:
            self.load.statuses[status] += 1
            self.load.latencies_s.append(took)
        self.load.seconds = time.perf_counter() - self._first

    def _stop(self) -> None:
        self._sending = False
        self._look()

    def _look(self) -> None:
        ended = not self._sending and not self._due and self._answered >= self.load.asked
        if ended and not self._finished.done():
            self._finished.set_result(None)


async def load(plan: Plan) -> Load:
    """Carry a plan out."""
    if plan.seconds is None and plan.requests is None:
        raise ValueError("a plan ends: give seconds or requests")
    return await _Run(plan).run()


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--model", default="reviews")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--words", type=int, default=30)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--poisson", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ramp", type=int, default=0)
    parser.add_argument("--key", help="for the Authorization header")
    parser.add_argument("--latencies", action="store_true", help="print every latency too")
    asked = parser.parse_args()
    headers = {"authorization": f"Bearer {asked.key}"} if asked.key else {}
    plan = Plan(
        url=asked.url,
        body=chat(asked.model, stream=asked.stream, words=asked.words),
        connections=asked.connections,
        seconds=asked.seconds,
        requests=asked.requests,
        rate=asked.rate,
        poisson=asked.poisson,
        seed=asked.seed,
        ramp=asked.ramp,
        headers=headers,
    )
    found: Load = run(load(plan))
    shown = found.summary()
    if asked.latencies:
        shown["latencies_ms"] = [round(1000 * one, 3) for one in found.latencies_s]
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
