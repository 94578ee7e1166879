"""`/v1/files` and `/v1/batches` as clients see them, and what an admin may do to batches.

A tenant sees its own alone: what is another's is not there. Asks no model: who runs batches is
`batch_runner`.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.batch_lines import endpoint_named
from stillhouse.serve.batch_records import Batch
from stillhouse.serve.batches import BatchWork, TooManyBatchesError, WrongStatusError
from stillhouse.serve.files import FileInUseError, UnknownCursorError
from stillhouse.serve.front import admit, new_id, read_body
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.gateway_sections import BatchesSection
from stillhouse.serve.request_checks import parse_json
from stillhouse.serve.seams import Parts, Principal
from stillhouse.serve.upload import expiry_s, receive_file, wrong_expiry

SCOPE: Final = "batches"
_BODY_BYTES: Final = 100_000
_PAIRS: Final = 16
_KEY_CHARS: Final = 64
_VALUE_CHARS: Final = 512
# Nothing else comes near a database: it would take neither a NUL nor half a character.
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_HALF: Final = re.compile(r"[\ud800-\udfff]")
_BATCH_KEYS: Final = frozenset(
    ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")
)


def batch_routes(file: GatewayFile, parts: Parts) -> list[Route]:
    """The routes for clients; where there are no batches each says so."""
    if file.batches is None or parts.batches is None:
        return _absent(parts)
    return _Paths(file, file.batches, parts, parts.batches).routes()


def admin_batch_routes(parts: Parts, check: Callable[[Request], None]) -> list[Route]:
    """The routes for the admin: what is not done, and an end to it."""

    def work(request: Request) -> BatchWork:
        check(request)
        if parts.batches is None:
            raise _no_batches()
        return parts.batches

    async def unfinished(request: Request) -> Response:
        found = await asyncio.to_thread(work(request).batches.unfinished)
        return _json({"batches": [{**one.shown(), "tenant": one.tenant} for one in found]})

    async def cancel(request: Request) -> Response:
        return await _cancel(work(request), None, _id(request))

    return [
        Route("/batches", unfinished),
        Route("/batches/{id}/cancel", cancel, methods=["POST"]),
    ]


def _json(value: Mapping[str, Any]) -> Response:
    return JSONResponse(value, headers={"x-request-id": new_id()})


def _no_batches() -> ApiError:
    text = "This gateway has no files and batches: they need log.url and batches in gateway.yaml."
    return ApiError(404, text, code="no_batches")


def _absent(parts: Parts) -> list[Route]:
    async def say(request: Request) -> Response:
        admit(request.scope, parts)
        raise _no_batches()

    methods = ["GET", "POST", "DELETE"]
    return [
        Route(f"/v1/{name}{rest}", say, methods=methods)
        for name in ("files", "batches")
        for rest in ("", "/{rest:path}")
    ]


def _id(request: Request) -> str:
    """The id in a path; what can be none is not looked for."""
    identity = str(request.path_params["id"])
    return identity if _NAME.fullmatch(identity) else ""


def _named(request: Request, param: str) -> str | None:
    value = request.query_params.get(param)
    if value is not None and not _NAME.fullmatch(value):
        raise _wrong(param, "cannot be that")
    return value


async def _cancel(work: BatchWork, tenant: str | None, identity: str) -> Response:
    try:
        found = await asyncio.to_thread(work.batches.cancel, tenant, identity, time.time())
    except WrongStatusError as error:
        text = f"A batch that is {error.status} cannot be cancelled."
        raise ApiError(409, text, code="conflict") from None
    if found is None:
        raise ApiError(404, "There is no such batch.", code="batch_not_found")
    work.changed.set()
    return _json(found.shown(await asyncio.to_thread(work.batches.counts, found)))


class _Paths:
    def __init__(
        self, file: GatewayFile, section: BatchesSection, parts: Parts, work: BatchWork
    ) -> None:
        self._file = file
        self._section = section
        self._parts = parts
        self._work = work
        self._uploads = 0

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/files", self._guarded(self._list_files)),
            Route("/v1/files", self._guarded(self._upload), methods=["POST"]),
            Route("/v1/files/{id}", self._guarded(self._file_shown)),
            Route("/v1/files/{id}", self._guarded(self._delete), methods=["DELETE"]),
            Route("/v1/files/{id}/content", self._guarded(self._content)),
            Route("/v1/batches", self._guarded(self._list_batches)),
            Route("/v1/batches", self._guarded(self._create), methods=["POST"]),
            Route("/v1/batches/{id}", self._guarded(self._batch)),
            Route("/v1/batches/{id}/cancel", self._guarded(self._stop), methods=["POST"]),
        ]

    def _guarded(
        self, handler: Callable[[Request, Principal], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            principal = admit(request.scope, self._parts)
            if not principal.may(SCOPE):
                text = "The key may not use files and batches."
                raise ApiError(403, text, code="missing_scope")
            return await handler(request, principal)

        return handle

    async def _upload(self, request: Request, principal: Principal) -> Response:
        if self._uploads >= self._section.uploads:
            raise ApiError(429, "Too many uploads at a time.", code="uploads", retry_after=5)
        self._uploads += 1
        try:
            info = await receive_file(
                request.scope, request.receive, self._work.files, principal.tenant, self._section
            )
        finally:
            self._uploads -= 1
        return _json(info.shown())

    async def _list_files(self, request: Request, principal: Principal) -> Response:
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(400, "order must be asc or desc.", param="order", code="invalid_value")
        found, more = await _page(
            self._work.files.listed,
            principal.tenant,
            time.time(),
            purpose=_named(request, "purpose"),
            after=_named(request, "after"),
            limit=_limit(request, 10_000, 10_000),
            newest_first=order == "desc",
        )
        return _json(_list([one.shown() for one in found], more))

    async def _known(self, request: Request, principal: Principal) -> Any:
        identity = _id(request)
        found = await asyncio.to_thread(
            self._work.files.get, principal.tenant, identity, time.time()
        )
        if found is None:
            raise _no_file()
        return found

    async def _file_shown(self, request: Request, principal: Principal) -> Response:
        return _json((await self._known(request, principal)).shown())

    async def _content(self, request: Request, principal: Principal) -> Response:
        found = await self._known(request, principal)
        headers = {
            "x-request-id": new_id(),
            "content-length": str(found.bytes),
            "x-content-type-options": "nosniff",
        }
        pieces = self._pieces(found.id)
        return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)

    async def _pieces(self, identity: str) -> AsyncIterator[bytes]:
        seq = 0
        while (data := await asyncio.to_thread(self._work.files.part, identity, seq)) is not None:
            yield data
            seq += 1

    async def _delete(self, request: Request, principal: Principal) -> Response:
        identity = _id(request)
        try:
            gone = await asyncio.to_thread(
                self._work.files.delete, principal.tenant, identity, time.time()
            )
        except FileInUseError:
            text = "A batch that is not done reads this file; cancel it first."
            raise ApiError(409, text, code="file_in_use") from None
        if not gone:
            raise _no_file()
        return _json({"id": identity, "object": "file", "deleted": True})

    async def _create(self, request: Request, principal: Principal) -> Response:
        raw = await read_body(request.scope, request.receive, _BODY_BYTES)
        batch = _new_batch(
            parse_json(raw, self._file.limits.json_depth), principal, self._section.window_h
        )
        info = await asyncio.to_thread(
            self._work.files.get, principal.tenant, batch.input_file, batch.created_at
        )
        if info is None or info.purpose != "batch":
            text = "input_file_id must be a file of purpose batch."
            raise ApiError(400, text, param="input_file_id", code="file_not_found")
        try:
            await asyncio.to_thread(self._work.batches.create, batch, self._section.unfinished)
        except TooManyBatchesError:
            text = f"{self._section.unfinished} batches are not done yet."
            raise ApiError(429, text, code="too_many_batches", retry_after=60) from None
        self._work.changed.set()
        return _json(batch.shown())

    async def _list_batches(self, request: Request, principal: Principal) -> Response:
        found, more = await _page(
            self._work.batches.listed,
            principal.tenant,
            after=_named(request, "after"),
            limit=_limit(request, 20, 100),
        )
        counts = [await asyncio.to_thread(self._work.batches.counts, one) for one in found]
        shown = [one.shown(count) for one, count in zip(found, counts, strict=True)]
        return _json(_list(shown, more))

    async def _batch(self, request: Request, principal: Principal) -> Response:
        identity = _id(request)
        found = await asyncio.to_thread(self._work.batches.get, principal.tenant, identity)
        if found is None:
            raise ApiError(404, "There is no such batch.", code="batch_not_found")
        return _json(found.shown(await asyncio.to_thread(self._work.batches.counts, found)))

    async def _stop(self, request: Request, principal: Principal) -> Response:
        return await _cancel(self._work, principal.tenant, _id(request))


def _no_file() -> ApiError:
    return ApiError(404, "There is no such file.", code="file_not_found")


async def _page(listed: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return await asyncio.to_thread(listed, *args, **options)
    except UnknownCursorError:
        text = "after must be an id of this list."
        raise ApiError(400, text, param="after", code="invalid_value") from None


def _list(shown: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    # Of an empty list too these are texts, as the published schema has them.
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else ("", "")
    ends = {"first_id": first, "last_id": last}
    return {"object": "list", "data": shown, **ends, "has_more": more}


def _limit(request: Request, usual: int, most: int) -> int:
    text = request.query_params.get("limit")
    if text is None:
        return usual
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= most:
        raise ApiError(400, f"limit must be from 1 to {most}.", param="limit", code="invalid_value")
    return int(text[:9])


def _new_batch(body: dict[str, Any], principal: Principal, window_h: float) -> Batch:
    """A batch as a client asks for it.

    Raises:
        ApiError: 400, with the parameter's name.
    """
    unknown = sorted(body.keys() - _BATCH_KEYS)
    if unknown:
        text = f"The parameters are {', '.join(sorted(_BATCH_KEYS))}."
        raise ApiError(400, text, param=unknown[0][:60], code="unknown_parameter")
    input_file = body.get("input_file_id")
    if not isinstance(input_file, str) or not _NAME.fullmatch(input_file):
        raise _wrong("input_file_id", "must be the id of a file")
    endpoint = endpoint_named(body.get("endpoint"))
    if body.get("completion_window") != "24h":
        raise _wrong("completion_window", "must be 24h")
    metadata = body.get("metadata")
    if metadata is not None and not _are_pairs(metadata):
        text = f"must be at most {_PAIRS} strings of {_VALUE_CHARS} characters by names"
        raise _wrong("metadata", text)
    expires = body.get("output_expires_after")
    kept: float | None = None
    if expires is not None:
        seconds = expires.get("seconds") if isinstance(expires, dict) else None
        if not isinstance(seconds, int) or expires.get("anchor") != "created_at":
            raise wrong_expiry("output_expires_after")
        kept = expiry_s("output_expires_after", seconds)
    now = time.time()
    return Batch(
        id="batch_" + os.urandom(12).hex(),
        tenant=principal.tenant,
        scopes=tuple(sorted(principal.scopes)),
        endpoint=endpoint,
        input_file=input_file,
        status="validating",
        created_at=now,
        expires_at=now + window_h * 3600,
        metadata=metadata,
        output_seconds=kept,
    )


def _are_pairs(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _PAIRS
        and all(
            isinstance(one, str)
            and len(name) <= _KEY_CHARS
            and len(one) <= _VALUE_CHARS
            and not _HALF.search(name + one)
            for name, one in value.items()
        )
    )


def _wrong(param: str, what: str) -> ApiError:
    return ApiError(400, f"{param} {what}.", param=param, code="invalid_value")
