"""The admin's routes to what is kept: the traffic log as lines, and a user's deletion from it.

Knows no database: asks the one it is given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.front import read_body
from stillhouse.serve.request_checks import parse_json
from stillhouse.serve.seams import KeptCalls, Parts

Kept = Callable[..., Awaitable[Any]]
_BODY: Final = 10_000
_LINES: Final = 200


def log_routes(parts: Parts, check: Callable[[Request], None], kept: Kept) -> list[Route]:
    """Routes of the admin's application.

    Args:
        check: refuses a request that shows no admin key.
        kept: calls what blocks, off the event loop.
    """

    def calls() -> KeptCalls:
        if parts.calls is None:
            raise ApiError(404, "Nothing is kept: there is no log.url.", code="no_log")
        return parts.calls

    async def export(request: Request) -> Response:
        check(request)
        since = request.query_params.get("since")
        try:
            at = None if since is None else float(since)
        except ValueError:
            at = math.nan
        if at is not None and not math.isfinite(at):
            raise ApiError(400, "since must be Unix seconds.", param="since")
        lines = calls().lines(request.query_params.get("task"), at)
        # The first lines are read before anything is sent: a database that is away is an error.
        first = await kept(partial(_some, lines))
        return StreamingResponse(_all(first, lines), media_type="application/x-ndjson")

    async def forget(request: Request) -> Response:
        check(request)
        body = parse_json(await read_body(request.scope, request.receive, _BODY), 8)
        for name in ("tenant", "user"):
            if not isinstance(body.get(name), str):
                raise ApiError(400, f"{name} must be a string.", param=name)
        gone = await kept(calls().forget, body["tenant"], body["user"])
        return JSONResponse({"requests": gone[0], "outcomes": gone[1]})

    return [
        Route("/log", export, methods=["GET"]),
        Route("/users/forget", forget, methods=["POST"]),
    ]


def _some(lines: Iterator[str]) -> str:
    """The next lines as one text; empty: there are no more."""
    return "".join(f"{line}\n" for line in itertools.islice(lines, _LINES))


async def _all(first: str, lines: Iterator[str]) -> AsyncIterator[str]:
    yield first
    async for text in iterate_in_threadpool(iter(partial(_some, lines), "")):
        yield text
