"""`stillhouse dashboard`: pages over a loop.yaml's gateway, on a port of their own. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.core.optional import require


def dashboard(
    loop_yaml: Annotated[Path, typer.Argument(metavar="LOOP_YAML", help="See docs/dashboard.md.")],
    host: Annotated[
        str, typer.Option("--host", help="Any but loopback needs STILLHOUSE_ADMIN_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8090,
) -> None:
    """Show savings, quality, drift, traffic, runs and students in a browser."""
    part = require("stillhouse.dashboard", extra="monitor", needed_for="the dashboard")
    servers = require("stillhouse.dashboard_server", extra="monitor", needed_for="the dashboard")
    app, keyed = part.of_loop(loop_yaml, host)
    if not keyed:
        typer.echo("no STILLHOUSE_ADMIN_KEY: read only, for names of this machine")
    servers.serve(app, host, port, typer.echo)


def beside(file: Any, key: str) -> Any:
    """The dashboard on a gateway's admin port, where it is wanted."""
    part = require("stillhouse.dashboard", extra="monitor", needed_for="the dashboard")
    return part.beside_gateway(file, key)
