"""A stream on its way to the client: held back until it is decided, stripped, ended properly.

Before the first byte everything can still go elsewhere, so failures are raised; afterwards they
become an error event. Knows no upstream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from time import perf_counter
from typing import Any, Protocol

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.ask import Ask
from stillhouse.serve.sse import (
    DONE,
    Events,
    EventTooLongError,
    joined,
    parsed,
    tokens_in,
    without_logprobs,
    without_usage,
)
from stillhouse.serve.upstream import UpstreamFailed

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Judge(Protocol):
    """Decides whether an answer, or the head of one, may be shown."""

    def __call__(self, ask: Ask, answer: Mapping[str, Any], *, whole: bool) -> None:
        """Raises Unsure: it may not."""


class Unsure(Exception):
    """A student's answer is not sure enough to be shown."""


class Relay:
    """Passes one stream on. `events` are those that came, for the log.

    Args:
        hold: tokens that are held back until the judge has decided by them; 0 where there is no
            judge, `None`: all of them.
    """

    def __init__(
        self, ask: Ask, send: Send, headers: list[tuple[bytes, bytes]], hold: int | None
    ) -> None:
        self.events: list[bytes] = []
        self._ask = ask
        self._send = send
        self._headers = headers
        self._hold = hold
        self._started = False
        self._finished = False
        self._strip_logprobs = hold != 0

    async def run(self, pieces: AsyncIterator[bytes], judge: Judge | None) -> str | None:
        """Pass all pieces on. Returns what went wrong after the first byte, if something did.

        Raises:
            UpstreamFailed, Unsure: before the first byte.
        """
        events = Events()
        waiting: list[bytes] = []
        try:
            async for piece in pieces:
                waiting += self._take(events.feed(piece))
                if judge is not None and self._enough(waiting):
                    judge(self._ask, joined(self.events), whole=False)
                    judge = None
                if waiting and judge is None:
                    await self._pass(waiting)
                    waiting = []
            waiting += self._take(events.end())
            if not self._finished:
                raise UpstreamFailed("broke_off")
            if judge is not None:
                judge(self._ask, joined(self.events), whole=self._hold is None)
            await self._pass(waiting)
        except (UpstreamFailed, EventTooLongError, ValueError) as error:
            why = error.why if isinstance(error, UpstreamFailed) else "garbage"
            if not self._started:
                raise UpstreamFailed(why) from None
            await self._send({"type": "http.response.body", "body": self._error(why)})
            return why
        if self._ask.route != "messages" and (not self.events or self.events[-1] != DONE):
            await self._pass([DONE])
        await self._send({"type": "http.response.body", "body": b""})
        return None

    def _enough(self, waiting: Sequence[bytes]) -> bool:
        """Whether there are tokens to judge by: what decides must not depend on how they came."""
        return self._hold is not None and sum(map(tokens_in, waiting)) >= self._hold

    def _take(self, events: list[bytes]) -> list[bytes]:
        """Note what came. The first event tells whether it is a stream of answers at all."""
        for event in events:
            if not self.events and (parsed(event) or {}).get("error"):
                raise UpstreamFailed("stream_error")
            if (
                event == DONE
                or b'"finish_reason":"' in event
                or b'"finish_reason": "' in event
                or b"message_stop" in event
            ):
                self._finished = True
        self.events += events
        return events

    async def _pass(self, events: list[bytes]) -> None:
        if self._ask.route != "messages":
            if not self._ask.wants_usage:
                events = [without_usage(event) for event in events]
            if self._strip_logprobs:
                own = self._ask.own_alternatives
                events = [without_logprobs(event, own) for event in events]
        body = b"".join(events)
        if not body:
            return
        if not self._started:
            self._started = True
            self._ask.first_byte_s = perf_counter() - self._ask.started
            start = {"type": "http.response.start", "status": 200, "headers": self._headers}
            await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    def _error(self, why: str) -> bytes:
        anthropic = self._ask.route == "messages"
        told = ApiError(502, "The model broke off its answer.", code=why).body(anthropic=anthropic)
        return (b"event: error\n" if anthropic else b"") + b"data: " + told + b"\n\n"
