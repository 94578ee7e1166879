"""A student in processes of the gateway's own, as an upstream like any other.

Bounded queue, deadlines and cancellation as for a model server; no retries and no breaker: a
request that a process could not answer goes to the teacher, and processes are looked after by their
pool. Knows no experiment and no client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.gateway_sections import StudentSection
from stillhouse.serve.guards import QueueFullError, QueueWaitError, Slots
from stillhouse.serve.student_folder import setup_of
from stillhouse.serve.student_pool import StudentPool
from stillhouse.serve.student_process import Pending, StudentGoneError
from stillhouse.serve.upstream import ASKER, Reply, Stream, UpstreamFailed

CHAT: Final = "/chat/completions"
JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
_GONE: Final = "student_gone"


class StudentHealth:
    """Up while any process is open."""

    def __init__(self, pool: StudentPool) -> None:
        self._pool = pool

    @property
    def state(self) -> str:
        """`closed` or `open`, as of a breaker."""
        return "open" if self._pool.pick() is None else "closed"


class StudentUpstream:
    """See the module; `start` it before it is asked, `close` it at the end.

    Raises:
        UserError: nothing says what the student's task is, or there is no such folder.
    """

    def __init__(self, name: str, section: StudentSection, answer_bytes: int) -> None:
        self.name = name
        self.section = section
        self.answer_bytes = answer_bytes
        self.slots = Slots(section.queue.concurrent, section.queue.waiting, section.queue.wait_s)
        self.pool = StudentPool(name, section, setup_of(name, section))
        self.breaker = StudentHealth(self.pool)

    async def start(self) -> None:
        """Start the processes.

        Raises:
            UserError: the student cannot be opened.
        """
        await self.pool.start()

    async def close(self) -> None:
        """End the processes."""
        await self.pool.close()

    @property
    def fingerprint(self) -> str | None:
        """Of the student's files, once a process has opened them."""
        return self.pool.fingerprint

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of one request, by the configured price."""
        price = self.section.price
        return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6

    async def ask(
        self, path: str, body: bytes, ends: float, extra: Mapping[str, str] | None = None
    ) -> Reply:
        """See `Upstream`."""
        if path != CHAT:
            return _elsewhere(path)
        await self._take(ends)
        pending: Pending | None = None
        try:
            pending = self._give(body, extra)
            async with asyncio.timeout_at(ends):
                content = await pending.part()
                while more := await pending.part():
                    content += more
            return self._reply(pending, content)
        except TimeoutError:
            raise UpstreamFailed("total_deadline", 504) from None
        except StudentGoneError:
            raise UpstreamFailed(_GONE, 503, 1) from None
        finally:
            if pending is not None:
                pending.drop()
            self.slots.free()

    async def stream(
        self, path: str, body: bytes, ends: float, extra: Mapping[str, str] | None = None
    ) -> Stream:
        """See `Upstream`."""
        if path != CHAT:
            return RefusedStream(_elsewhere(path))
        first_by = asyncio.get_running_loop().time() + self.section.deadlines.first_token_s
        await self._take(min(ends, first_by))
        pending: Pending | None = None
        try:
            pending = self._give(body, extra)
            async with asyncio.timeout_at(min(ends, first_by)):
                first = await pending.part()
            status = pending.status or 200
            if status >= 400:
                first = self._reply(pending, first).body
            return StudentStream(self, pending, first, ends)
        except BaseException as error:
            if pending is not None:
                pending.drop()
            self.slots.free()
            if isinstance(error, TimeoutError):
                raise UpstreamFailed("first_token_deadline", 504) from None
            if isinstance(error, StudentGoneError):
                raise UpstreamFailed(_GONE, 503, 1) from None
            raise

    async def _take(self, ends: float) -> None:
        try:
            async with asyncio.timeout_at(ends):
                await self.slots.take()
        except QueueFullError:
            raise UpstreamFailed("queue_full", 429, 1) from None
        except (QueueWaitError, TimeoutError):
            raise UpstreamFailed("queue_wait", 503, 1) from None

    def _give(self, body: bytes, extra: Mapping[str, str] | None) -> Pending:
        process = self.pool.pick()
        if process is None:
            raise UpstreamFailed("student_starting", 503, 1)
        return process.ask(body, None if extra is None else extra.get(ASKER))

    def _reply(self, pending: Pending, content: bytes) -> Reply:
        status = pending.status or 200
        if status >= 500:
            raise UpstreamFailed("student_error")
        if len(content) > self.answer_bytes:
            raise UpstreamFailed("answer_too_long")
        return Reply(status, JSON, content, pending.adapter)


class StudentStream:
    """See `Stream`."""

    def __init__(self, owner: StudentUpstream, pending: Pending, first: bytes, ends: float) -> None:
        self.status = pending.status or 200
        self.content_type = EVENTS if self.status < 400 else JSON
        self.adapter = pending.adapter
        self._owner, self._pending, self._first, self._ends = owner, pending, first, ends

    async def pieces(self) -> AsyncIterator[bytes]:
        """See `Stream`."""
        between = self._owner.section.deadlines.between_tokens_s
        clock = asyncio.get_running_loop().time
        piece = self._first
        try:
            while piece:
                if self._pending.size > self._owner.answer_bytes:
                    raise UpstreamFailed("answer_too_long")
                yield piece
                async with asyncio.timeout_at(min(clock() + between, self._ends)):
                    piece = await self._pending.part()
        except TimeoutError:
            raise UpstreamFailed("between_tokens_deadline", 504) from None
        except StudentGoneError:
            raise UpstreamFailed("broke_off") from None

    def close(self) -> None:
        """See `Stream`."""
        self._pending.drop()
        self._owner.slots.free()


class RefusedStream:
    """A refusal in place of a stream."""

    def __init__(self, reply: Reply) -> None:
        self.status, self.content_type, self._body, self.adapter = reply

    async def pieces(self) -> AsyncIterator[bytes]:
        """See `Stream`."""
        yield self._body

    def close(self) -> None:
        """Nothing is held."""


def _elsewhere(path: str) -> Reply:
    """A path that students do not serve."""
    error = ApiError(400, f"The student answers {CHAT} alone, not {path}.", code="not_served")
    return Reply(error.status, JSON, error.body())
