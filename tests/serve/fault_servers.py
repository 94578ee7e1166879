"""A model server of raw bytes: what it is asked tells it which fault to have."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal

from gateway_servers import Loop, chat_body, chunk, sse

Step = bytes | float | Literal["reset", "half", "for ever"] | Callable[[], Iterator[bytes]]

GOOD: Final = json.dumps(chat_body("good")).encode()
STREAM: Final = sse(chunk("go"), chunk("od", "stop")) + b"data: [DONE]\n\n"


def whole(body: bytes, length: int | None = None, extra: str = "") -> bytes:
    size = len(body) if length is None else length
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{extra}content-length: {size}"
    return head.encode() + b"\r\n\r\n" + body


def stream(body: bytes, *, end: bool = False) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    return head + b"transfer-encoding: chunked\r\n\r\n" + part(body) + b"0\r\n\r\n" * end


def part(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def dripped(body: bytes) -> tuple[Step, ...]:
    return tuple(step for at in range(len(body)) for step in (body[at : at + 1], 0.05))


def again(piece: bytes) -> Callable[[], Iterator[bytes]]:
    """A piece for ever."""
    return lambda: itertools.repeat(piece)


def _endless(body: bytes) -> Callable[[], Iterator[bytes]]:
    return again(part(body))


BOMB: Final = gzip.compress(b" " * 40_000_000)

# Before any byte of an answer, so that another model may be asked.
BEFORE: Final[Mapping[str, tuple[Step, ...]]] = {
    "closes": (),
    "resets": ("reset",),
    "says nothing": ("for ever",),
    "resets in the status line": (b"HTTP/1.1 2", "reset"),
    "hangs in the headers": (b"HTTP/1.1 200 OK\r\ncontent-type: app", "for ever"),
    "resets in the body": (whole(GOOD[:40], len(GOOD)), 0.05, "reset"),
    "closes in the body": (whole(GOOD[:40], len(GOOD)),),
    "half-closes in the body": (whole(GOOD[:40], len(GOOD)), "half", "for ever"),
    "hangs in the body": (whole(GOOD[:40], len(GOOD)), "for ever"),
    "drips": dripped(whole(GOOD)),
    "is no HTTP": (b"\x16\x03\x01 this is not HTTP\r\n\r\n\x00\xff" * 20,),
    "is of a strange status": (b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",),
    "has a status of no number": (b"HTTP/1.1 two OK\r\n\r\n",),
    "continues for ever": (again(b"HTTP/1.1 100 Continue\r\n\r\n"),),
    "has headers without end": (b"HTTP/1.1 200 OK\r\n", again(b"x-many: " + b"y" * 4096 + b"\r\n")),
    "lies of its length": (whole(GOOD, 10),),
    "has a length of no number": (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n" + GOOD,),
    "is chunked by no number": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        b"zz\r\n" + GOOD,
    ),
    "is no JSON": (whole(b"<html>busy</html>"),),
    "is JSON of another kind": (whole(b'["choices"]'),),
    "is deeper than any JSON": (whole(b'{"choices":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),),
    "is not of its encoding": (whole(b"not gzip", extra="content-encoding: gzip\r\n"),),
    "grows when it is unpacked": (whole(BOMB, extra="content-encoding: gzip\r\n"),),
    "has no end": (whole(b"", 10**12), again(b"x" * 65_536)),
}
# After the first event of a stream.
AFTER: Final[Mapping[str, tuple[Step, ...]]] = {
    "resets": (stream(sse(chunk("go"))), 0.05, "reset"),
    "closes": (stream(sse(chunk("go"))), 0.05),
    "ends too soon": (stream(sse(chunk("go")), end=True),),
    "half-closes": (stream(sse(chunk("go"))), "half", "for ever"),
    "falls silent": (stream(sse(chunk("go"))), "for ever"),
    "falls silent in an event": (stream(sse(chunk("go")) + b'data: {"cho'), "for ever"),
    "drips": (stream(sse(chunk("go"))), *dripped(part(STREAM) + b"0\r\n\r\n")),
    "is cut by no number": (stream(sse(chunk("go"))), 0.05, b"zz\r\n\r\n"),
    "turns to garbage": (stream(sse(chunk("go"))), 0.05, part(b"data: {{{\n\n\xff\n\n"), 0.05),
    "has an event without end": (stream(sse(chunk("go")) + b"data: "), _endless(b"x" * 65_536)),
    "has events without end": (stream(sse(chunk("go"))), _endless(sse(chunk("on and on")))),
}


class FaultyModel:
    """Has the fault that the last message names; else it answers well."""

    def __init__(self, faults: Mapping[str, tuple[Step, ...]]) -> None:
        self._faults = faults
        self.url = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyModel]:
        """On loopback, in a thread."""
        with Loop() as loop:
            server = loop.do(asyncio.start_server(self._serve, "127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            try:
                yield self
            finally:
                loop.do(self._end(server))

    async def _end(self, server: asyncio.Server) -> None:
        server.close()
        mine = asyncio.current_task()
        others = [one for one in asyncio.all_tasks() if one is not mine]
        for one in others:
            one.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of a server's own that is cancelled is an error to its library.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._answer(reader, writer):
                pass
        writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        asked = json.loads(await reader.readexactly(length))
        fault = self._faults.get(asked["messages"][-1]["content"])
        if fault is None:
            writer.write(stream(STREAM, end=True) if asked.get("stream") else whole(GOOD))
            return True
        for step in fault:
            await self._do(step, writer)
        return False

    async def _do(self, step: Step, writer: asyncio.StreamWriter) -> None:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
        elif isinstance(step, float):
            await asyncio.sleep(step)
        elif step == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif step == "half":
            writer.write_eof()
        elif step == "for ever":
            await asyncio.sleep(60)
        else:
            for piece in step():
                writer.write(piece)
                await writer.drain()
