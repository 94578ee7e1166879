"""A gateway process: both ports in one event loop, connections to upstreams, drain on SIGTERM.

Knows how the parts are put together; decides nothing about a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import aiohttp
import uvicorn
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from stillhouse import __version__
from stillhouse.core.errors import StillhouseError
from stillhouse.serve.app import admin_app, client_app
from stillhouse.serve.batch_job import Tools
from stillhouse.serve.batch_runner import BatchRunner
from stillhouse.serve.connections import KEEP_S, limited
from stillhouse.serve.exchange import Exchange
from stillhouse.serve.front import Asks
from stillhouse.serve.gates import check_student, gate_of, threshold_of
from stillhouse.serve.gateway_file import GatewayFile, secrets_of
from stillhouse.serve.gateway_sections import StudentSection
from stillhouse.serve.in_memory import REMEMBERED, HashAssigner, ListedKeys, MemoryLog, MemoryStates
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.migration import first_state
from stillhouse.serve.presence import MemoryPresence
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.roster import Roster
from stillhouse.serve.seams import Beside, Parts
from stillhouse.serve.stored_parts import Redactors, StoredParts
from stillhouse.serve.student_upstream import StudentUpstream
from stillhouse.serve.telemetry import Sender
from stillhouse.serve.traffic_log import LogCounts
from stillhouse.serve.turns import settle, short_turns
from stillhouse.serve.upstream import HttpUpstream, Upstream
from stillhouse.serve.watching import feeds_of, watch_memory

REFRESH_S: Final = 1.0
_LOG: Final = logging.getLogger("stillhouse.serve")


class Address(NamedTuple):
    """Where a port was opened."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


Told = Callable[[Address, Address | None], None]
# Of a gateway.yaml and the admin key; None: there is none.
Dashboards = Callable[[GatewayFile, str], Beside | None]


class _Server(uvicorn.Server):
    """Leaves signals to the gateway, which has two of these."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def memory_parts(file: GatewayFile, kept: int = REMEMBERED) -> Parts:
    """Seams without a database: states, and a log of `kept` requests, are lost with the process."""
    now = time.time()
    states = [
        first_state(
            name,
            task.experiment.stages,
            now,
            student=task.student is not None,
            threshold=threshold_of(task),
        )
        for name, task in file.tasks.items()
    ]
    feeds = feeds_of(file)
    held, log, presence = MemoryStates(states), MemoryLog(kept, feeds), MemoryPresence()
    watched = watch_memory(file, held, log, feeds, presence)
    return Parts(
        assigner=HashAssigner(file.tasks),
        states=held,
        log=watched.log,
        keys=ListedKeys(file.clients) if file.clients else None,
        gate=gate_of(file),
        scores=watched.scores,
        experiments=watched.controller,
        presence=presence,
        last=held.last,
    )


class Gateway:
    """One gateway process.

    Args:
        secrets: keys of the upstreams by name, and the admin's under an empty name.
        refresh: called about once a second, in a thread, with Unix seconds; None: the experiments'.
    """

    def __init__(
        self,
        file: GatewayFile,
        parts: Parts,
        secrets: Mapping[str, str],
        refresh: Callable[[float], object] | None = None,
    ) -> None:
        if refresh is None and parts.experiments is not None:
            refresh = parts.experiments.tick
        self._refresh = refresh
        self._file = file
        self._parts = parts
        self._secrets = secrets
        self._servers: list[_Server] = []
        self.students: list[StudentUpstream] = []
        self._batches: BatchRunner | None = None
        self._stopping = False
        self.sends = True  # of several workers one does
        self.dashboard: Beside | None = None
        self.metrics = Metrics()

    def stop(self) -> None:
        """Take no more requests, finish those that are open, and end; also before `run`."""
        self._stopping = True
        for server in self._servers:
            server.should_exit = True
        if self._batches is not None:
            self._batches.stop()
        if self.dashboard is not None:
            self.dashboard.stop()

    async def run(self, told: Told, sockets: Sequence[socket.socket] | None = None) -> None:
        """Serve until stopped; `told` hears the addresses once both ports are open.

        Args:
            sockets: of the ports, where they are open already (`open_ports`).

        Raises:
            StillhouseError: a port cannot be opened.
        """
        file = self._file
        sockets = sockets or open_ports(file)
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
        async with (
            aiohttp.ClientSession(
                connector=connector, auto_decompress=True, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            contextlib.AsyncExitStack() as closing,
        ):
            for one in sockets:
                closing.callback(one.close)
            upstreams = self._upstreams(session)
            sender: Sender | None = None
            if file.telemetry is not None and self.sends:
                sender = Sender(file.telemetry, self.metrics, session, __version__)
            roster = await self._roster(upstreams, closing)
            exchange = Exchange(roster, self._parts, self.metrics)
            self._batches = self._runner(exchange, roster)
            apps = [client_app(file, self._parts, exchange, roster, self.metrics)]
            if file.admin is not None:
                key = self._secrets[""]
                beside = self.dashboard
                admin = (file, self._parts, roster, self.metrics, key)
                apps.append(admin_app(*admin, dashboard=beside))
            self._servers = [self._server(app) for app in apps]
            if self._stopping:
                self.stop()
            with _signals(self.stop):
                told(*addresses_of(sockets))
                others = [asyncio.create_task(self._keep_fresh(roster))]
                if sender is not None:
                    others.append(asyncio.create_task(sender.run()))
                if self._batches is not None:
                    others.append(asyncio.create_task(self._batches.run()))
                if self._parts.scores is not None:
                    others.append(asyncio.create_task(self._parts.scores.run(upstreams)))
                try:
                    await asyncio.gather(
                        *(
                            server.serve(sockets=[one])
                            for server, one in zip(self._servers, sockets, strict=True)
                        )
                    )
                finally:
                    if self._batches is not None:
                        await self._batches.drain(file.listen.drain_s)
                    for task in others:
                        task.cancel()
                    await asyncio.gather(*others, return_exceptions=True)
            await exchange.drain(file.listen.drain_s)
            if self._parts.scores is not None:
                await self._parts.scores.flush()

    def _runner(self, exchange: Exchange, roster: Roster) -> BatchRunner | None:
        """Who runs batches, where there are any."""
        section, work = self._file.batches, self._parts.batches
        if section is None or work is None:
            return None
        asks = Asks(self._file, self._parts, roster)
        tools = Tools(self._file, section, exchange, roster, asks, work, self.metrics)
        return BatchRunner(tools)

    def _upstreams(self, session: aiohttp.ClientSession) -> dict[str, Upstream]:
        """Model servers, and students that are not started yet."""
        most = self._file.limits.answer_bytes
        found: dict[str, Upstream] = {}
        for name, one in self._file.upstreams.items():
            if isinstance(one, StudentSection):
                self.students.append(StudentUpstream(name, one, most))
                found[name] = self.students[-1]
            else:
                found[name] = HttpUpstream(name, one, session, self._secrets.get(name), most)
        return found

    async def _roster(
        self, upstreams: Mapping[str, Upstream], closing: contextlib.AsyncExitStack
    ) -> Roster:
        """Students whose processes are ready."""
        roster = Roster(self._file, self._parts, upstreams)
        closing.push_async_callback(roster.close)
        own = await roster.start()
        fingerprints = {one.name: one.pool.fingerprint for one in self.students}
        for name, task in self._file.tasks.items():
            if name in own:
                check_student(name, task, fingerprints[task.student or ""])
        if self._parts.experiments is not None:
            await asyncio.to_thread(self._parts.experiments.students, own, time.time())
        roster.follow()
        await self._tell(roster)
        return roster

    async def _tell(self, roster: Roster) -> None:
        """What is open here, where students may be brought or were."""
        presence = self._parts.presence
        if presence is not None and (self._file.students is not None or roster.brought):
            await asyncio.to_thread(presence.tell, roster.report(), time.time())

    async def _keep_fresh(self, roster: Roster) -> None:
        """What other gateways did, until cancelled; what cannot be read is tried again."""
        told = ""
        while True:
            await asyncio.sleep(REFRESH_S)
            self.metrics.tell_breakers(roster.breakers())
            try:
                if self._refresh is not None:
                    await asyncio.to_thread(self._refresh, time.time())
                self.metrics.tell_unreadable(self._parts.unreadable())
                roster.follow()
                await self._tell(roster)
            except Exception as error:  # else no roll back, no revoked key would be heard of again
                self.metrics.refresh_failures.inc()
                if not isinstance(error, SQLAlchemyError) and str(error) != told:
                    told = str(error)
                    _LOG.error("cannot be kept up to date: %s: %s", type(error).__name__, error)

    def _server(self, app: ASGIApp) -> _Server:
        return _Server(
            uvicorn.Config(
                app,
                http=limited(self._file.limits.connections),
                ws="none",
                log_level="error",
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_keep_alive=KEEP_S,
                timeout_graceful_shutdown=max(1, round(self._file.listen.drain_s)),
                proxy_headers=False,
            )
        )


def open_ports(file: GatewayFile) -> list[socket.socket]:
    """Listening sockets: the clients', and the admin's where there is one.

    Raises:
        StillhouseError: a port cannot be opened.
    """
    opened = [_open(file.listen.host, file.listen.port)]
    if file.admin is not None:
        try:
            opened.append(_open(file.admin.host, file.admin.port))
        except StillhouseError:
            opened[0].close()
            raise
    return opened


def addresses_of(sockets: Sequence[socket.socket]) -> tuple[Address, Address | None]:
    """Where `open_ports` opened them."""
    found = [Address(*one.getsockname()[:2]) for one in sockets]
    return found[0], found[1] if len(found) > 1 else None


def _open(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(2048)
    except OSError as error:
        opened.close()
        raise StillhouseError(f"{host}:{port} cannot be opened: {error.strerror}") from None
    opened.setblocking(False)
    return opened


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT stop it; off the main thread there are no signals to hear."""
    loop = asyncio.get_running_loop()
    heard: list[signal.Signals] = []
    with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(one, stop)
            heard.append(one)
    try:
        yield
    finally:
        for one in heard:
            loop.remove_signal_handler(one)


def serve_here(
    file: GatewayFile,
    redact: Redactors,
    told: Told,
    sockets: Sequence[socket.socket] | None = None,
    prepare: Callable[[Gateway], None] = lambda _: None,
    *,
    dashboard: Dashboards = lambda file, key: None,
) -> LogCounts | None:
    """Serve in this process until SIGTERM or SIGINT; what became of the log, if there is one.

    Args:
        redact: gives the redactor of some kinds of personal data; `None`: of the usual ones.
        told, sockets: see `Gateway.run`. `told` is called when all that serves has been loaded.
        prepare: is given the gateway on its event loop before it serves.
        dashboard: gives what is served at /dashboard on the admin port.

    Raises:
        UserError: a variable with a key is not set.
        StillhouseError: a port cannot be opened, or the database not be reached.
    """
    secrets = secrets_of(file)
    beside = dashboard(file, secrets[""]) if file.admin is not None else None
    stored: StoredParts | None = None
    if file.log.url is not None:
        stored = StoredParts(file, Pseudonyms.from_environment(), redact, time.time())
    parts = memory_parts(file, kept=0) if stored is None else stored.parts
    gateway = Gateway(file, parts, secrets, None if stored is None else stored.refresh)
    gateway.dashboard = beside

    def ready(listen: Address, admin: Address | None) -> None:
        settle()
        told(listen, admin)

    async def run() -> None:
        prepare(gateway)
        await gateway.run(ready, sockets)

    try:
        # uvloop where it is installed.
        factory = uvicorn.Config(app="").get_loop_factory()
        with short_turns(), asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run())
    finally:
        if beside is not None:
            beside.close()
        counts = None if stored is None else stored.close()
    return counts


def greeting(file: GatewayFile, say: Callable[[str], None]) -> Told:
    """Says where a gateway serves."""

    def told(listen: Address, admin: Address | None) -> None:
        say(f"serving {', '.join(file.tasks)} on {listen.url}/v1")
        if admin is not None:
            say(f"admin and metrics on {admin.url}")
        if not file.needs_key:
            say("no client keys: whoever reaches the port is answered")

    return told
