"""Serves the dashboard on a port of its own until SIGTERM or SIGINT. Knows no page."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, Protocol

import uvicorn
from starlette.types import Receive, Scope, Send

from stillhouse.core.errors import StillhouseError

DRAIN_S: Final = 5


class Served(Protocol):
    """An application with streams to end and something to let go."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

    def stop(self) -> None:
        """End the open streams."""

    def close(self) -> None:
        """Let go what it reads."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: Served) -> None:
        super().__init__(config)
        self._served = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Streams never end by themselves, and connections are waited for.
        self._served.stop()
        await super().shutdown(sockets)


def serve(app: Served, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until stopped.

    Raises:
        StillhouseError: the port cannot be opened.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host, port))
        except OSError as error:
            raise StillhouseError(f"{host}:{port} cannot be opened: {error.strerror}") from None
        name, number = opened.getsockname()[:2]
        say(f"dashboard on http://{f'[{name}]' if ':' in name else name}:{number}/")
        config = uvicorn.Config(
            app,
            ws="none",
            log_level="error",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=DRAIN_S,
            proxy_headers=False,
        )
        try:
            _Server(config, app).run(sockets=[opened])
        finally:
            app.close()
