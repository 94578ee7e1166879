"""`stillhouse serve`: one gateway process, or several that share its ports, watched over.

The ports are opened once, here, and every worker takes connections from them: one that dies breaks
off the answers that it was giving and no others, and is started again. Workers share states, keys
and log through the database, and metrics through files. Knows no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import StillhouseError
from stillhouse.serve.gateway_file import GatewayFile, load_gateway, secrets_of
from stillhouse.serve.metrics import forget_live, share_metrics
from stillhouse.serve.server import (
    Address,
    Dashboards,
    Gateway,
    addresses_of,
    greeting,
    open_ports,
    serve_here,
)
from stillhouse.serve.stored_parts import Redactors
from stillhouse.serve.traffic_log import LogCounts

PAUSE_S: Final = (0.1, 10.0)  # before a dead worker is started again: first, longest
STEADY_S: Final = 30.0  # a worker that lived so long had not died of what it does at its start
END_S: Final = 20.0  # for log and students, after the drain
# Not the command line again, which takes seconds to import; -P: nothing from the current folder.
WORKER: Final = ("-P", "-c", "from stillhouse.cli_serve import work; work()")
Say = Callable[[str], None]


def serve_file(
    path: Path, say: Say, redact: Redactors, dashboard: Dashboards = lambda file, key: None
) -> None:
    """Serve a gateway.yaml until SIGTERM or SIGINT.

    Args:
        path: of the file.
        say: hears the addresses, workers that died, and at the end what became of the log.
        redact: gives the redactor of some kinds of personal data; `None`: of the usual ones. Of
            several workers each uses the one of `stillhouse.cli_serve`.
        dashboard: see `serve_here`; likewise.

    Raises:
        UserError: the file cannot be used, or a variable with a key is not set.
        StillhouseError: a port cannot be opened, or the database not be reached.
    """
    file = load_gateway(path)
    if file.listen.workers == 1:
        told = serve_here(file, redact, greeting(file, say), dashboard=dashboard)
        counts = [] if told is None else [told]
    else:
        secrets_of(file)  # a mistake is told here once
        with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
            counts = Supervisor(file, say, Path(folder)).run()
    if counts:
        written, dropped, lost = (
            sum(getattr(one, name) for one in counts) for name in ("written", "dropped", "lost")
        )
        say(f"traffic log: {written:,} written, {dropped:,} dropped, {lost:,} lost")


def share_of(file: GatewayFile) -> GatewayFile:
    """The file as one of its workers serves it: what an upstream may get at a time is divided
    among them, at least one each."""
    workers = file.listen.workers
    upstreams = {}
    for name, one in file.upstreams.items():
        queue = one.queue
        part = {
            "concurrent": math.ceil(queue.concurrent / workers),
            "waiting": math.ceil(queue.waiting / workers),
        }
        upstreams[name] = one.model_copy(update={"queue": queue.model_copy(update=part)})
    batches = file.batches
    if batches is not None:
        own = {"concurrent": math.ceil(batches.concurrent / workers)}
        batches = batches.model_copy(
            update={**own, "uploads": math.ceil(batches.uploads / workers)}
        )
    tasks = {
        name: one.model_copy(update={"shadows": math.ceil(one.shadows / workers)})
        for name, one in file.tasks.items()
    }
    return file.model_copy(update={"upstreams": upstreams, "tasks": tasks, "batches": batches})


class _Worker:
    """One worker's place: who works there now, and since when."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pause_s = PAUSE_S[0]
        self.due = 0.0  # when the next is to be started, while there is no process
        self.began = 0.0
        self.ready = False
        self.why = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.wire: socket.socket | None = None
        self._heard = b""

    def start(self, job: dict[str, Any], passed: Sequence[int]) -> None:
        """Start a process that does a job, with some of this one's files."""
        self.wire, there = socket.socketpair()
        passed = [*passed, there.fileno()]
        with there, _ignored(signal.SIGINT):  # a terminal sends it to all; this process tells them
            self.process = subprocess.Popen(
                [sys.executable, *WORKER, str(there.fileno())],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
            )
        self.began, self.ready, self.why, self._heard = time.monotonic(), False, "", b""
        with contextlib.suppress(OSError):  # already dead: the wire will say so
            self.wire.sendall(json.dumps(job).encode() + b"\n")
        self.wire.setblocking(False)

    def hear(self) -> tuple[list[Any], bool]:
        """What it has said, and whether it has ended."""
        assert self.wire is not None
        ended = False
        try:
            while piece := self.wire.recv(65536):
                self._heard += piece
            ended = True
        except BlockingIOError:
            pass
        except OSError:
            ended = True
        *lines, self._heard = self._heard.split(b"\n")
        return [json.loads(line) for line in lines], ended

    def bury(self) -> str:
        """Wait for a process that has closed its wire. How it ended."""
        assert self.process is not None
        assert self.wire is not None
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.wire.close()
        self.process = self.wire = None
        return f"signal {-code}" if code < 0 else f"status {code}"


class Supervisor:
    """Starts workers, starts them again when they die, and ends them together.

    Args:
        file: with more than one worker.
        folder: for the files that their metrics are in.
    """

    def __init__(self, file: GatewayFile, say: Say, folder: Path) -> None:
        self._file = file
        self._say = say
        self._folder = folder
        self._sockets: Sequence[socket.socket] = ()
        self._workers = [_Worker(number) for number in range(file.listen.workers)]
        self._counts: list[LogCounts] = []
        self._greeted = False
        self._stopping = False
        self._failed: str | None = None

    def run(self) -> list[LogCounts]:
        """Serve until SIGTERM or SIGINT; what became of each worker's log.

        Raises:
            StillhouseError: a port cannot be opened, or the workers cannot start.
        """
        self._sockets = open_ports(self._file)
        try:
            with _woken(self._stop) as wake:
                self._watch(wake)
        finally:
            for one in self._sockets:
                one.close()
            for worker in self._workers:
                if worker.process is not None:
                    worker.process.kill()
                    worker.bury()
        if self._failed is not None:
            raise StillhouseError(self._failed)
        return self._counts

    def _stop(self) -> None:
        self._stopping = True

    def _watch(self, wake: socket.socket) -> None:
        ends = math.inf
        while True:
            self._start_due()
            living = [one for one in self._workers if one.process is not None]
            if self._stopping and math.isinf(ends):
                ends = time.monotonic() + self._file.listen.drain_s + END_S
                for one in living:
                    assert one.process is not None
                    one.process.terminate()
            if self._stopping and not living:
                return
            if time.monotonic() >= ends:
                for one in living:
                    assert one.process is not None
                    one.process.kill()
            wires = [one.wire for one in living if one.wire is not None]
            if wake in wait([*wires, wake], self._until_due(ends)):
                wake.recv(1024)
            for one in living:
                self._look_at(one)
            if not self._greeted and all(one.ready for one in self._workers):
                self._greeted = True
                greeting(self._file, self._say)(*addresses_of(self._sockets))

    def _until_due(self, ends: float) -> float | None:
        """Seconds until something is due by itself."""
        due = [one.due for one in self._workers if one.process is None and not self._stopping]
        first = min([*due, ends])
        return None if math.isinf(first) else max(0.05, first - time.monotonic())

    def _start_due(self) -> None:
        for one in self._workers:
            if self._stopping or one.process is not None or one.due > time.monotonic():
                continue
            ports = [socket.fileno() for socket in self._sockets]
            job = {
                "file": share_of(self._file).model_dump(mode="json"),
                "number": one.number,
                "ports": ports,
                "folder": str(self._folder),
            }
            one.start(job, ports)

    def _look_at(self, one: _Worker) -> None:
        """Hear a worker: that it serves, what became of its log, why it cannot start."""
        said, ended = one.hear()
        for what in said:
            if what == "ready":
                one.ready = True
            elif isinstance(what, list):
                self._counts.append(LogCounts(*what))
            else:
                one.why = what["failed"]
        if not ended:
            return
        lived = time.monotonic() - one.began
        how = one.bury()
        forget_live(self._folder, one.number)
        if self._stopping:
            return
        if not self._greeted:
            self._failed = one.why or f"worker {one.number} ended with {how} at its start"
            self._stopping = True
            return
        if lived >= STEADY_S:
            one.pause_s = PAUSE_S[0]
        told = f"worker {one.number} ended with {one.why or how}"
        self._say(f"{told}; another starts in {one.pause_s:g} s")
        one.due = time.monotonic() + one.pause_s
        one.pause_s = min(one.pause_s * 2, PAUSE_S[1])


def work(redact: Redactors, dashboard: Dashboards = lambda file, key: None) -> None:
    """A worker, in a process of its own, until SIGTERM or until its supervisor is gone."""
    number = int(sys.argv[1])
    os.set_inheritable(number, False)  # open in a child, it would hide that this process has ended
    wire = socket.socket(fileno=number)
    with wire.makefile("rb") as lines:
        job = json.loads(lines.readline())
    file = GatewayFile.model_validate(job["file"])
    for one in job["ports"]:
        os.set_inheritable(one, False)
    ports = [socket.socket(fileno=one) for one in job["ports"]]
    share_metrics(Path(job["folder"]), job["number"])

    def tell(said: object) -> None:
        with contextlib.suppress(OSError):  # a supervisor that is gone hears nothing
            wire.sendall(json.dumps(said).encode() + b"\n")

    def told(_listen: Address, _admin: Address | None) -> None:
        tell("ready")

    def prepare(gateway: Gateway) -> None:
        gateway.sends = job["number"] == 0
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(wire)
            gateway.stop()

        # The supervisor says nothing more: what is read there is its end.
        loop.add_reader(wire, gone)

    try:
        counts = serve_here(file, redact, told, ports, prepare, dashboard=dashboard)
    except StillhouseError as error:
        tell({"failed": str(error)})
        raise SystemExit(1) from None
    if counts is not None:
        tell(list(counts))


@contextlib.contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def _woken(stop: Callable[[], None]) -> Iterator[socket.socket]:
    """SIGTERM and SIGINT call `stop`, and wake who waits for this socket."""
    here, there = socket.socketpair()
    wanted = (signal.SIGTERM, signal.SIGINT)
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        before = [signal.signal(one, lambda _number, _frame: stop()) for one in wanted]
        old = signal.set_wakeup_fd(there.fileno())
        try:
            yield here
        finally:
            signal.set_wakeup_fd(old)
            for one, handler in zip(wanted, before, strict=True):
                signal.signal(one, handler)
