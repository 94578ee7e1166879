"""A client's connection: who takes too long to say what is wanted, or to read, is cut off.

uvicorn's protocol has no limit for the head of a request and none for a client that reads nothing.
Knows no path and no key.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stillhouse.serve.api_errors import ApiError

HEAD_BYTES: Final = 65_536
HEAD_S: Final = 30.0
# For the write buffer to fall by 48 KiB, from its high to its low mark: who reads less than 1 kB/s
# reads nothing.
STALL_S: Final = 60.0
# Of an idle connection: longer than clients and load balancers keep one (5 s to 60 s). Who closes
# first must not be the server, which would cut a request off that is on its way.
KEEP_S: Final = 75


class Connection(HttpToolsProtocol):
    """One connection. Subclasses set the limits.

    Attributes:
        most: connections of the process; those beyond it are closed at once.
    """

    most = 4096
    head_s = HEAD_S
    stall_s = STALL_S

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._head: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_bytes = 0
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._head_done()
        self._unstall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self._cut()
        elif self._head is None:
            self._await_head()

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """The head of a request has come."""
        self._in_head = False
        self._head_done()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP at all is refused in OpenAI's shape as well."""
        body = ApiError(400, msg, code="invalid_http").body()
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer comes."""
        super().pause_writing()
        self._unstall()
        self._stall = self.loop.call_later(self.stall_s, self._cut)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._unstall()

    def _await_head(self) -> None:
        self._head = self.loop.call_later(self.head_s, self._late)

    def _late(self) -> None:
        self._head = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()  # the next request's head may wait for this one's answer
        else:
            self._cut()

    def _head_done(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _unstall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _cut(self) -> None:
        self.transport.abort()


def limited(most: int) -> type[Connection]:
    """Connections of a process that may have so many."""
    return type("LimitedConnection", (Connection,), {"most": most})
