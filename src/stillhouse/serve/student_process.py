"""One student process, seen from the gateway: started, asked over a socket, heard, ended.

Knows frames and processes; does not know what is in a request, nor what to do when one fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from stillhouse.serve.student_frames import (
    ADAPTER,
    ANSWER,
    ASK,
    CANCEL,
    END,
    FAILED,
    PIECE,
    READY,
    SETUP,
    TROUBLE,
    FrameError,
    Frames,
    asked_as,
    framed,
    status_of,
)

MODULE: Final = "stillhouse.serve.student_worker"
END_S: Final = 5.0


class StudentGoneError(Exception):
    """The process ended, or was ended, before it answered."""


class StudentRefusedError(Exception):
    """The process says that the student cannot be opened."""


class Pending:
    """A request that a process has. Parts of a stream come one by one, then the end."""

    def __init__(self, number: int, process: StudentProcess) -> None:
        self.number = number
        self.process = process
        self.status: int | None = None
        self.adapter: str | None = None  # whose last layer answers, where the student has several
        self.over = False
        self.size = 0
        self._parts: deque[bytes] = deque()
        self._failed: Exception | None = None
        self._changed: asyncio.Future[None] | None = None

    async def part(self) -> bytes:
        """The next part; empty at the end.

        Raises:
            StudentGoneError: the process is gone, or the student broke off.
        """
        while not self._parts:
            if self._failed is not None:
                raise self._failed
            if self.over:
                return b""
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        return self._parts.popleft()

    def add(self, part: bytes) -> None:
        """One more part has come."""
        self.size += len(part)
        self._parts.append(part)
        self._wake()

    def end(self, status: int) -> None:
        """It is answered."""
        self.status = self.status or status
        self.over = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """There will be no more."""
        self._failed = error
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def drop(self) -> None:
        """Nobody waits for it any more."""
        self.process.drop(self)


class StudentProcess(asyncio.Protocol):
    """One process. `lost` is done once it is gone, `ready` once its student is open.

    Args:
        troubled: hears what the student says that an operator should know.
    """

    def __init__(
        self, clock: Callable[[], float], troubled: Callable[[str], None] = lambda _: None
    ) -> None:
        self._clock, self._troubled = clock, troubled
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.heard = clock()
        self.answered = 0
        self._pending: dict[int, Pending] = {}
        self._next = 0
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, setup: Mapping[str, Any], threads: int) -> None:
        """Start the process and tell it what to open; `ready` says when it has."""
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",
            "TOKENIZERS_PARALLELISM": "false",
        }
        try:
            # -P: what lies in the working folder must not be taken for a module. asyncio's own way
            # to start processes has watchers that differ between loops; a closed socket tells more.
            self._process = subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-P", "-m", MODULE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        self._write(framed(SETUP, 0, json.dumps(setup).encode()))

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return None if self._process is None else self._process.pid

    @property
    def open(self) -> bool:
        """Whether it can be asked."""
        done = self.ready.done() and not self.ready.cancelled() and not self.ready.exception()
        return done and not self.lost.done()

    @property
    def load(self) -> int:
        """Requests that it has."""
        return len(self._pending)

    def ask(self, body: bytes, asker: str | None = None) -> Pending:
        """Hand it a request.

        Args:
            asker: a tenant, or a tenant and a user's pseudonym with a line break between.
        """
        self._next += 1
        pending = Pending(self._next, self)
        if not self._pending:
            self.heard = self._clock()  # what is idle has nothing to say
        self._pending[pending.number] = pending
        if asker is None:
            self._write(framed(ASK, pending.number, body))
        else:
            self._write(asked_as(pending.number, asker, body))
        return pending

    def drop(self, pending: Pending) -> None:
        """Nobody waits for a request any more."""
        if self._pending.pop(pending.number, None) is not None and not pending.over:
            self._write(framed(CANCEL, pending.number))

    def silent_for(self) -> float:
        """Seconds for which it has said nothing though it has work; 0: it has none."""
        return self._clock() - self.heard if self._pending else 0.0

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """End it: it leaves by itself once the socket is closed, else it is killed."""
        if self._transport is not None:
            self._transport.close()
        process = self._process
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def reaped(self) -> int:
        """Its exit code, once it is gone."""
        assert self._process is not None
        try:
            return await asyncio.to_thread(self._process.wait, END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.heard = self._clock()
        try:
            for kind, number, payload in self._frames.feed(data):
                self._heard_of(kind, number, payload)
        except FrameError:
            self.kill()

    def connection_lost(self, _error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        gone = StudentGoneError("the student's process is gone")
        for pending in self._pending.values():
            pending.fail(gone)
        self._pending.clear()
        if not self.ready.done():
            self.ready.set_exception(gone)
            self.ready.exception()  # heard by whoever waits; nobody may
        if not self.lost.done():
            self.lost.set_result(None)

    def _heard_of(self, kind: int, number: int, payload: bytes) -> None:
        if kind == READY and not self.ready.done():
            self.ready.set_result(json.loads(payload))
        elif kind == FAILED and not self.ready.done():
            self.ready.set_exception(StudentRefusedError(payload.decode("utf-8", "replace")))
        elif kind == TROUBLE:
            self._troubled(payload.decode("utf-8", "replace"))
        pending = self._pending.get(number)
        if pending is None:
            return
        if kind == ADAPTER:
            pending.adapter = payload.decode("ascii", "replace")
        elif kind == PIECE:
            pending.status = 200
            pending.add(payload)
        elif kind == ANSWER:
            status, body = status_of(payload)
            if pending.status is not None:  # after parts of a stream: it broke off
                pending.fail(StudentGoneError("the student broke off"))
            else:
                pending.status = status
                pending.add(body)
            self._over(pending)
        elif kind == END:
            self._over(pending)

    def _over(self, pending: Pending) -> None:
        self.answered += 1
        del self._pending[pending.number]
        pending.end(200)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
