"""`stillhouse serve`: the gateway of a gateway.yaml. Thin; knows no request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli_dashboard import beside
from stillhouse.core.optional import require
from stillhouse.traffic.redact import DEFAULT_KINDS, Redactor


def serve(
    file: Annotated[Path, typer.Argument(metavar="GATEWAY_YAML", help="See docs/gateway.md.")],
) -> None:
    """Answer requests for teacher and student: an OpenAI-compatible server."""
    workers = require("stillhouse.serve.workers", extra="serve", needed_for="the gateway")
    workers.serve_file(file, typer.echo, redactor, beside)


def work() -> None:
    """A worker of `serve`, in a process that it starts."""
    workers = require("stillhouse.serve.workers", extra="serve", needed_for="the gateway")
    workers.work(redactor, beside)


def redactor(kinds: Sequence[str] | None) -> Callable[[str], str]:
    """Takes personal data of some kinds out of a text; `None`: of the usual kinds."""
    return Redactor(DEFAULT_KINDS if kinds is None else kinds).text
