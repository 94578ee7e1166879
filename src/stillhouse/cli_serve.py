"""`stillhouse serve`: the gateway of a gateway.yaml. Thin; knows no request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.core.optional import require


def serve(
    file: Annotated[Path, typer.Argument(metavar="GATEWAY_YAML", help="See docs/gateway.md.")],
) -> None:
    """Answer requests for teacher and student: an OpenAI-compatible server."""
    server = require("stillhouse.serve.server", extra="serve", needed_for="the gateway")
    server.serve_file(file, typer.echo)
