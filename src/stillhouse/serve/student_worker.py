"""The process of one embedded student: `python -m stillhouse.serve.student_worker FD`.

Reads requests from the socket that it was given, answers what waits in batches as large as they
come, and ends when the gateway closes the socket or dies. Knows frames; what answers is a brain.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from stillhouse.core.errors import StillhouseError
from stillhouse.core.tasks import Task
from stillhouse.serve.student_brains import open_brain
from stillhouse.serve.student_frames import (
    ASK,
    ASK_AS,
    BEAT,
    CANCEL,
    FAILED,
    READY,
    SETUP,
    Frame,
    FrameError,
    Frames,
    framed,
)
from stillhouse.serve.student_labels import Around, Brain, Opening

READ: Final = 1 << 18
BEAT_S: Final = 0.5


class GatewayGoneError(Exception):
    """The other end of the socket is closed."""


class Outbox:
    """Sends frames, also from several threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._last = 0.0

    def send(self, data: bytes) -> None:
        """Send frames; the gateway reads at once, so this does not wait for long."""
        with self._lock:
            self._last = time.monotonic()
            self._sock.sendall(data)

    def alive(self) -> None:
        """A sign of life, if none was given lately."""
        if time.monotonic() - self._last > BEAT_S:
            self.send(framed(BEAT))


class Inbox:
    """Requests that wait, in their order, and those that nobody waits for any more."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = Frames()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._waiting: dict[int, Frame] = {}
        self._busy: set[int] = set()
        self._cancelled: set[int] = set()
        self._setup: Frame | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def setup(self) -> dict[str, Any]:
        """The first frame's content; waits for it.

        Raises:
            GatewayGoneError: it never comes.
        """
        while self._setup is None:
            self.read(None)
        return dict(json.loads(self._setup.payload))

    def read(self, wait_s: float | None) -> None:
        """Take in what has come; wait for something at most so long, `None`: for ever.

        Raises:
            GatewayGoneError: the gateway has closed the socket.
        """
        if not self._poll.poll(None if wait_s is None else wait_s * 1000):
            return
        data = self._sock.recv(READ)
        if not data:
            raise GatewayGoneError
        for frame in self._frames.feed(data):
            if frame.kind in (ASK, ASK_AS):
                self._waiting[frame.number] = frame
            elif frame.kind == SETUP:
                self._setup = frame
            elif frame.kind == CANCEL and self._waiting.pop(frame.number, None) is None:
                if frame.number in self._busy:
                    self._cancelled.add(frame.number)

    def gather(self, most: int, wait_s: float) -> None:
        """Read until so many wait, or time is up."""
        ends = time.monotonic() + wait_s
        while len(self._waiting) < most:
            left = ends - time.monotonic()
            if left <= 0:
                return
            self.read(left)

    def take(self, most: int) -> list[Frame]:
        """The oldest of those that wait, to be answered; `done` them afterwards."""
        numbers = list(self._waiting)[:most]
        self._busy.update(numbers)
        return [self._waiting.pop(number) for number in numbers]

    def done(self, jobs: Sequence[Frame]) -> None:
        """They have been answered."""
        for job in jobs:
            self._busy.discard(job.number)
            self._cancelled.discard(job.number)

    def gone(self, number: int) -> bool:
        """Whether nobody waits for a request that is being answered."""
        return number in self._cancelled


def answer_batches(
    brain: Brain, inbox: Inbox, outbox: Outbox, max_batch: int, max_wait_s: float
) -> None:
    """Answer for ever: all that waits, up to `max_batch` at once.

    Only where the last batch was larger than what waits now is more waited for, `max_wait_s` at
    most: a lone request is never held up.

    Raises:
        GatewayGoneError: the gateway has gone.
    """

    def look() -> None:
        inbox.read(0)
        outbox.alive()

    around = Around(outbox.send, look, inbox.gone)
    last = 1
    while True:
        inbox.read(0 if len(inbox) else None)
        if not len(inbox):
            continue
        inbox.gather(min(max_batch, last), max_wait_s)
        jobs = inbox.take(max_batch)
        last = len(jobs)
        brain.answer(jobs, around)
        inbox.done(jobs)


def answer_threads(brain: Brain, inbox: Inbox, outbox: Outbox) -> None:
    """Answer for ever: each request in a thread.

    Raises:
        GatewayGoneError: the gateway has gone.
    """
    free = threading.Semaphore(brain.threads)

    def gone(number: int) -> bool:
        outbox.alive()
        return inbox.gone(number)

    around = Around(outbox.send, lambda: None, gone)

    def work(job: Frame) -> None:
        try:
            brain.answer([job], around)
        finally:
            inbox.done([job])
            free.release()

    with ThreadPoolExecutor(brain.threads, thread_name_prefix="student") as threads:
        while True:
            # They wait here and not in threads, so that a cancelled one is never begun.
            inbox.read(0.02 if len(inbox) else None)
            while len(inbox) and free.acquire(blocking=False):
                threads.submit(work, inbox.take(1)[0])


def _end_with_gateway(sock: socket.socket) -> None:
    """End this process as soon as the gateway has closed its end, whatever runs here."""
    watch = select.poll()
    watch.register(sock, 0)  # errors and hang-ups are always told

    def wait() -> None:
        watch.poll()
        os._exit(0)

    threading.Thread(target=wait, name="gateway-watch", daemon=True).start()


def main(descriptor: int) -> None:
    """Serve one student over an inherited socket."""
    # Signals to the whole group are the gateway's to hear: it drains, then closes the socket.
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_IGN)
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(True)
    _end_with_gateway(sock)
    inbox, outbox = Inbox(sock), Outbox(sock)
    try:
        told = inbox.setup()
        task: Task = TypeAdapter(Task).validate_python(told["task"])
        opening = Opening(
            folder=Path(told["path"]),
            head=told["head"],
            task=task,
            model=told["model"],
            max_batch=told["max_batch"],
            max_tokens=told["max_tokens"],
            device=told["device"],
            adapters=None if told["adapters"] is None else Path(told["adapters"]),
        )
        try:
            brain = open_brain(opening)
        except StillhouseError as error:
            outbox.send(framed(FAILED, 0, str(error).encode()))
            return
        facts = {"fingerprint": brain.voice.fingerprint, "pid": os.getpid()}
        outbox.send(framed(READY, 0, json.dumps(facts).encode()))
        if brain.threads:
            answer_threads(brain, inbox, outbox)
        else:
            answer_batches(brain, inbox, outbox, opening.max_batch, told["max_wait_ms"] / 1000)
    except (GatewayGoneError, FrameError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # threads of a runtime may be at work; nobody waits for them


if __name__ == "__main__":
    main(int(sys.argv[1]))
