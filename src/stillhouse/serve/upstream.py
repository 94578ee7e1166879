"""One model server behind the gateway: deadlines, retries before the first byte, breaker, queue.

Speaks plain HTTP over aiohttp and hands bytes on. No redirect is followed. Knows no experiment and
no client; what it raises says whether another upstream may be asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final, NamedTuple, Protocol

import aiohttp

from stillhouse.serve.gateway_sections import StudentSection, UpstreamSection
from stillhouse.serve.guards import Breaker, QueueFullError, QueueWaitError, RetryBudget, Slots

_RETRIED: Final = frozenset((408, 409, 429, 500, 502, 503, 504, 529))
# Of these an upstream can say what it likes about the request; the others are its own fault.
OWN_FAULT: Final = frozenset((401, 403, 404, 405, 408, 409, 429))
# Not a header: who asks, for students of the gateway's own, which may have an adapter for them.
ASKER: Final = "asker"
_NETWORK: Final = (aiohttp.ClientError, OSError, ValueError)


class UpstreamFailed(Exception):
    """No answer from this upstream; another may be asked. `why` is a word for metrics."""

    def __init__(self, why: str, status: int = 502, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.status = status
        self.retry_after = retry_after


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    content_type: str
    body: bytes
    adapter: str | None = None  # whose last layer answered, of a student that has several


class Health(Protocol):
    """Whether an upstream is up."""

    @property
    def state(self) -> str:
        """`closed` (it answers), `open` (it is left alone) or `half_open`."""


class Stream(Protocol):
    """A streamed answer, from its first piece on; `close` it whatever happens."""

    status: int
    content_type: str
    adapter: str | None

    def pieces(self) -> AsyncIterator[bytes]:
        """The answer's pieces.

        Raises:
            UpstreamFailed: it broke off, fell silent or has no end.
        """

    def close(self) -> None:
        """Give back what it holds; a stream not read to its end is cancelled."""


class Upstream(Protocol):
    """A model that answers requests: a server, or students of the gateway's own."""

    name: str

    @property
    def section(self) -> UpstreamSection | StudentSection:
        """What gateway.yaml says of it."""

    @property
    def breaker(self) -> Health:
        """Whether it is up."""

    @property
    def slots(self) -> Slots:
        """Its queue."""

    @property
    def fingerprint(self) -> str | None:
        """Of the files that answer; `None` where another process knows them."""

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of one request, by the configured price."""

    async def ask(
        self, path: str, body: bytes, ends: float, extra: Mapping[str, str] | None = None
    ) -> Reply:
        """A whole answer by `ends`, a time of the loop's clock.

        Args:
            extra: headers; for a student of the gateway's own, `ASKER` alone means something.

        Raises:
            UpstreamFailed: none came, or it is the upstream's own fault.
        """

    async def stream(
        self, path: str, body: bytes, ends: float, extra: Mapping[str, str] | None = None
    ) -> Stream:
        """A streamed answer whose first piece is there.

        Raises:
            UpstreamFailed: none came, or it is the upstream's own fault.
        """


class HttpStream:
    """See `Stream`."""

    adapter: str | None = None

    def __init__(self, owner: HttpUpstream, reply: aiohttp.ClientResponse, ends: float) -> None:
        self.status = reply.status
        self.content_type = reply.content_type
        self._owner = owner
        self._reply = reply
        self._ends = ends
        self._first = b""

    async def begin(self, first_by: float) -> None:
        """Wait for the first piece, until that time of the loop's clock."""
        async with asyncio.timeout_at(min(first_by, self._ends)):
            self._first = await self._reply.content.readany()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The answer's pieces.

        Raises:
            UpstreamFailed: it broke off, fell silent or has no end.
        """
        between = self._owner.section.deadlines.between_tokens_s
        clock = asyncio.get_running_loop().time
        piece = self._first
        content = self._reply.content
        left = self._owner.answer_bytes
        try:
            while piece:
                left -= len(piece)
                if left < 0:
                    raise UpstreamFailed("answer_too_long")
                yield piece
                async with asyncio.timeout_at(min(clock() + between, self._ends)):
                    piece = await content.readany()
        except TimeoutError:
            self._owner.breaker.failed()
            raise UpstreamFailed("between_tokens_deadline", 504) from None
        except _NETWORK:
            self._owner.breaker.failed()
            raise UpstreamFailed("broke_off") from None

    def close(self) -> None:
        """Give back connection and slot; a stream not read to its end is cancelled upstream."""
        if self._reply.content.at_eof():
            self._reply.release()
        else:
            self._reply.close()
        self._owner.slots.free()


class HttpUpstream:
    """A model server as gateway.yaml has it."""

    fingerprint: str | None = None

    def __init__(
        self,
        name: str,
        section: UpstreamSection,
        session: aiohttp.ClientSession,
        key: str | None,
        answer_bytes: int,
    ) -> None:
        self.name = name
        self.section = section
        self.breaker = Breaker(section.breaker.failures, section.breaker.open_s, time.monotonic)
        self.slots = Slots(section.queue.concurrent, section.queue.waiting, section.queue.wait_s)
        self._budget = RetryBudget(section.retry.budget)
        self._session = session
        self.answer_bytes = answer_bytes
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if section.kind == "anthropic":
            self._headers["anthropic-version"] = "2023-06-01"
            if key is not None:
                self._headers["x-api-key"] = key
        elif key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        limits = section.deadlines
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s)

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of one request, by the configured price."""
        price = self.section.price
        return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6

    async def ask(
        self, path: str, body: bytes, ends: float, extra: Mapping[str, str] | None = None
    ) -> Reply:
        """A whole answer by `ends`, a time of the loop's clock.

        Raises:
            UpstreamFailed: none came, or it is the server's own fault.
        """
        reply = await self._open(path, body, ends, extra)
        done = False
        try:
            if reply.content.is_eof():  # came with its headers: there is nothing to wait for
                read = reply.content.read_nowait()
            else:
                async with asyncio.timeout_at(ends):
                    read = await self._read(reply.content)
            if len(read) > self.answer_bytes:
                raise UpstreamFailed("answer_too_long")
            done = True
            return Reply(reply.status, reply.content_type, read)
        except TimeoutError:
            self.breaker.failed()
            raise UpstreamFailed("total_deadline", 504) from None
        except _NETWORK:
            self.breaker.failed()
            raise UpstreamFailed("broke_off") from None
        finally:
            if done:
                reply.release()
            else:
                reply.close()
            self.slots.free()

    async def _read(self, content: aiohttp.StreamReader) -> bytes:
        """All of it, or a little more than there may be."""
        read = bytearray()
        while len(read) <= self.answer_bytes and (piece := await content.readany()):
            read += piece
        return bytes(read)

    async def stream(
        self, path: str, body: bytes, ends: float, extra: Mapping[str, str] | None = None
    ) -> HttpStream:
        """A streamed answer whose first piece is there.

        Raises:
            UpstreamFailed: none came, or it is the server's own fault.
        """
        first_by = asyncio.get_running_loop().time() + self.section.deadlines.first_token_s
        reply = await self._open(path, body, min(ends, first_by), extra)
        found = HttpStream(self, reply, ends)
        try:
            await found.begin(first_by)
        except BaseException as error:
            found.close()
            if isinstance(error, TimeoutError):
                self.breaker.failed()
                raise UpstreamFailed("first_token_deadline", 504) from None
            if isinstance(error, _NETWORK):
                self.breaker.failed()
                raise UpstreamFailed("broke_off") from None
            raise
        return found

    async def _open(
        self, path: str, body: bytes, ends: float, extra: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        """Status and headers, with a slot taken that the caller gives back."""
        refused = self.breaker.refuse_for()
        if refused > 0:
            raise UpstreamFailed("breaker_open", 503, refused)
        try:
            if not self.slots.take_now():
                async with asyncio.timeout_at(ends):
                    await self.slots.take()
        except QueueFullError:
            self.breaker.abandoned()
            raise UpstreamFailed("queue_full", 429, 1) from None
        except (QueueWaitError, TimeoutError):
            self.breaker.abandoned()
            raise UpstreamFailed("queue_wait", 503, 1) from None
        except BaseException:
            self.breaker.abandoned()
            raise
        try:
            return await self._tries(path, body, ends, extra)
        except UpstreamFailed:
            self.slots.free()
            raise
        except BaseException:
            self.slots.free()
            self.breaker.abandoned()
            raise

    async def _tries(
        self, path: str, body: bytes, ends: float, extra: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        retry = self.section.retry
        self._budget.earn()
        headers = {**self._headers, **extra} if extra else self._headers
        pause = retry.pause_s
        for left in range(retry.attempts - 1, -1, -1):
            try:
                async with asyncio.timeout_at(ends):
                    reply = await self._session.post(
                        self.section.base_url + path,
                        data=body,
                        headers=headers,
                        allow_redirects=False,
                        timeout=self._timeout,
                    )
            except TimeoutError as error:
                self.breaker.failed()
                connecting = isinstance(error, aiohttp.ServerTimeoutError)
                why = "connect_deadline" if connecting else "deadline"
                failed = UpstreamFailed(why, 504)
                if not connecting:
                    raise failed from None
            except _NETWORK:
                self.breaker.failed()
                failed = UpstreamFailed("unreachable")
            else:
                status = reply.status
                if status < 300 or (400 <= status < 500 and status not in OWN_FAULT):
                    self.breaker.succeeded()
                    return reply
                seconds = _seconds(reply.headers.get("retry-after"))
                reply.close()
                if status == 429 or status < 500:
                    self.breaker.succeeded()
                else:
                    self.breaker.failed()
                if status == 429:
                    failed = UpstreamFailed("upstream_429", 429, seconds or 1)
                elif status == 503:
                    failed = UpstreamFailed("upstream_503", 503, seconds or 1)
                else:
                    failed = UpstreamFailed(f"upstream_{status}")
                if status not in _RETRIED or (seconds or 0) > 1:
                    raise failed
            now = asyncio.get_running_loop().time()
            if not left or now + pause >= ends or not self._budget.spend():
                raise failed
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("the last try returns or raises")


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header that gives seconds."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return min(value, 3600.0) if value >= 0 else None
