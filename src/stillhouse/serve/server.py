"""The running gateway: both ports in one event loop, connections to upstreams, drain on SIGTERM.

Knows how the parts are put together; decides nothing about a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
import uvicorn
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.serve.app import admin_app, client_app
from stillhouse.serve.exchange import Exchange
from stillhouse.serve.gateway_file import GatewayFile, load_gateway, secrets_of
from stillhouse.serve.in_memory import (
    REMEMBERED,
    HashAssigner,
    ListedKeys,
    MemoryLog,
    MemoryStates,
    ThresholdGate,
)
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.migration import first_state
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.seams import Parts
from stillhouse.serve.stored_parts import Redactors, StoredParts
from stillhouse.serve.upstream import Upstream
from stillhouse.serve.watching import feeds_of, watch_memory

REFRESH_S: Final = 1.0


class Address(NamedTuple):
    """Where a port was opened."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


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
            threshold=task.fallback.threshold,
        )
        for name, task in file.tasks.items()
    ]
    thresholds = {
        name: task.fallback.threshold
        for name, task in file.tasks.items()
        if task.fallback.threshold is not None
    }
    feeds = feeds_of(file)
    held, log = MemoryStates(states), MemoryLog(kept, feeds)
    watched = watch_memory(file, held, log, feeds)
    return Parts(
        assigner=HashAssigner(file.tasks),
        states=held,
        log=watched.log,
        keys=ListedKeys(file.clients) if file.clients else None,
        gate=ThresholdGate(thresholds) if thresholds else None,
        scores=watched.scores,
        experiments=watched.controller,
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
        self.metrics = Metrics()

    def stop(self) -> None:
        """Take no more requests, finish those that are open, and end."""
        for server in self._servers:
            server.should_exit = True

    async def run(self, told: Callable[[Address, Address | None], None]) -> None:
        """Serve until stopped; `told` hears the addresses once both ports are open.

        Raises:
            StillhouseError: a port cannot be opened.
        """
        file = self._file
        sockets = [_open(file.listen.host, file.listen.port)]
        if file.admin is not None:
            sockets.append(_open(file.admin.host, file.admin.port))
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
        async with aiohttp.ClientSession(
            connector=connector, auto_decompress=True, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            upstreams = {
                name: Upstream(
                    name, one, session, self._secrets.get(name), file.limits.answer_bytes
                )
                for name, one in file.upstreams.items()
            }
            exchange = Exchange(upstreams, self._parts, self.metrics)
            apps = [client_app(file, self._parts, exchange, self.metrics)]
            if file.admin is not None:
                key = self._secrets[""]
                apps.append(admin_app(file, self._parts, exchange, self.metrics, key))
            self._servers = [self._server(app) for app in apps]
            addresses = [Address(*one.getsockname()[:2]) for one in sockets]
            with _signals(self.stop):
                told(addresses[0], addresses[1] if len(addresses) > 1 else None)
                beside = [asyncio.create_task(self._keep_fresh())]
                if self._parts.scores is not None:
                    beside.append(asyncio.create_task(self._parts.scores.run(upstreams)))
                try:
                    await asyncio.gather(
                        *(
                            server.serve(sockets=[one])
                            for server, one in zip(self._servers, sockets, strict=True)
                        )
                    )
                finally:
                    for one in beside:
                        one.cancel()
                    await asyncio.gather(*beside, return_exceptions=True)
            await exchange.drain()
            if self._parts.scores is not None:
                await self._parts.scores.flush()

    async def _keep_fresh(self) -> None:
        """What other gateways did, until cancelled; a database that is away is tried again."""
        while self._refresh is not None:
            await asyncio.sleep(REFRESH_S)
            try:
                await asyncio.to_thread(self._refresh, time.time())
            except (StillhouseError, SQLAlchemyError):
                self.metrics.refresh_failures.inc()

    def _server(self, app: Starlette) -> _Server:
        return _Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_graceful_shutdown=max(1, round(self._file.listen.drain_s)),
                proxy_headers=False,
            )
        )


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


def serve_file(path: Path, say: Callable[[str], None], redact: Redactors) -> None:
    """Serve a gateway.yaml until SIGTERM or SIGINT.

    Args:
        path: of the file.
        say: hears the addresses, and at the end what became of the log.
        redact: gives the redactor of some kinds of personal data; `None`: of the usual ones.

    Raises:
        UserError: the file cannot be used, or a variable with a key is not set.
        StillhouseError: a port cannot be opened, or the database not be reached.
    """
    file = load_gateway(path)
    for name, task in file.tasks.items():
        if task.fallback.calibrator is not None:
            raise UserError(
                f"tasks.{name}.fallback.calibrator", "is not read yet", action="use threshold alone"
            )
    secrets = secrets_of(file)
    stored: StoredParts | None = None
    if file.log.url is not None:
        stored = StoredParts(file, Pseudonyms.from_environment(), redact, time.time())
    parts = memory_parts(file, kept=0) if stored is None else stored.parts
    gateway = Gateway(file, parts, secrets, None if stored is None else stored.refresh)

    def told(listen: Address, admin: Address | None) -> None:
        say(f"serving {', '.join(file.tasks)} on {listen.url}/v1")
        if admin is not None:
            say(f"admin and metrics on {admin.url}")
        if not file.needs_key:
            say("no client keys: whoever reaches the port is answered")

    try:
        # uvloop where it is installed.
        with asyncio.Runner(loop_factory=uvicorn.Config(app="").get_loop_factory()) as runner:
            runner.run(gateway.run(told))
    finally:
        if stored is not None:
            counts = stored.close()
            say(
                f"traffic log: {counts.written:,} written, {counts.dropped:,} dropped, "
                f"{counts.lost:,} lost"
            )
