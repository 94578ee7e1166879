"""What changes on the overview, sent as it changes: server-sent events.

The figures are read once for all who look, every two seconds while somebody does. Knows the
overview's templates; knows no source.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from stillhouse.monitor.dashboard.guard import SESSION

EVERY_S: Final = 2.0
BEAT_S: Final = 15.0
MOST: Final = 64
_EMPTY: Final = "data:\n"
Parts = Mapping[str, str]


class Live:
    """The events' route.

    Args:
        parts: HTML by event, for a mount path; blocks.
        holds: whether a session may go on looking; asked as often as the figures are read.
        every_s: how often it is read.
    """

    def __init__(
        self,
        parts: Callable[[str], Parts],
        holds: Callable[[str], Awaitable[bool]],
        every_s: float = EVERY_S,
    ) -> None:
        self._parts, self._holds, self._every_s = parts, holds, every_s
        self._open: set[asyncio.Event] = set()
        self._stopping = False
        self._newest: dict[str, tuple[float, Parts]] = {}
        self._one = asyncio.Lock()

    def stop(self) -> None:
        """End every stream; on the event loop."""
        self._stopping = True
        for one in self._open:
            one.set()

    async def route(self, request: Request) -> Response:
        """One who looks."""
        if len(self._open) >= MOST:
            return PlainTextResponse("too many look at once\n", 503, {"retry-after": "30"})
        headers = {"x-accel-buffering": "no", "cache-control": "no-store"}
        stream = self._stream(request.scope.get("root_path", ""), request.scope.get(SESSION, ""))
        return StreamingResponse(stream, headers=headers, media_type="text/event-stream")

    async def _stream(self, base: str, session: str) -> AsyncIterator[str]:
        """Events until the end.

        Args:
            session: that was let in; empty: a Bearer key, or no key is asked for.
        """
        end = asyncio.Event()
        self._open.add(end)
        told: dict[str, str] = {}
        beat = time.monotonic()
        try:
            yield "retry: 3000\n\n"
            while not self._stopping and (not session or await self._holds(session)):
                for name, text in (await self._read(base)).items():
                    if told.get(name) != text:
                        told[name] = text
                        beat = time.monotonic()
                        yield event(name, text)
                if time.monotonic() - beat >= BEAT_S:
                    beat = time.monotonic()
                    yield ": here\n\n"
                try:
                    await asyncio.wait_for(end.wait(), self._every_s)
                except TimeoutError:
                    continue
        finally:
            self._open.discard(end)

    async def _read(self, base: str) -> Parts:
        async with self._one:
            at, parts = self._newest.get(base, (-1e9, {}))
            if time.monotonic() - at < self._every_s * 0.9:
                return parts
            try:
                parts = await asyncio.to_thread(self._parts, base)
            except Exception:  # a database that is away: what was known stays, and is tried again
                return parts
            self._newest[base] = (time.monotonic(), parts)
            return parts


def event(name: str, text: str) -> str:
    """One event; a text of several lines stays one."""
    lines = "".join(f"data: {line}\n" for line in text.splitlines() if line.strip())
    return f"event: {name}\n{lines or _EMPTY}\n"
