"""Anthropic's Message Batches API.

All requests are sent in one call, and the results are one stream of lines once the batch has ended.
A batch bears no name: one that was sent and whose id was lost is looked for among those made since,
by its number of requests, and known by the custom ids of its results. Requests and answers are the
live client's own. Knows one batch at a time: when to ask is the caller's.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import anthropic
from anthropic.types.messages import MessageBatch

from stillhouse.core.jsonl import disk_errors
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import Completer, Sampling
from stillhouse.teacher.anthropic_client import AnthropicCompleter
from stillhouse.teacher.api import ApiSettings, safe_text
from stillhouse.teacher.batch import MB, Limits, Row, belongs
from stillhouse.teacher.batch_provider import (
    Found,
    Look,
    calling,
    compact,
    creating,
    listed,
    objects,
    save,
)
from stillhouse.teacher.retry import UnreadableAnswerError

# The call's own frame around the requests is kept out of the 256 MB.
LIMITS: Final = Limits(100_000, 256 * MB - 1_000)
_PAGE: Final = 100
_OPENING: Final = b'{"requests":['
_CLOSING: Final = b"]}"
_BLOCK: Final = 1 << 20
_STATUS: Final[Mapping[str, int]] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
    "api_error": 500,
}
_EXPECTED: Final = (
    anthropic.APIError,
    UnreadableAnswerError,
    TimeoutError,
    ValueError,
    OSError,
)


class AnthropicBatches:
    """See `BatchProvider`."""

    limits: Limits = LIMITS
    samples_per_request: int = 1

    def __init__(self, completer: AnthropicCompleter, settings: ApiSettings) -> None:
        self._live = completer
        self._settings = settings

    @property
    def completer(self) -> Completer:
        """The live client."""
        return self._live

    def body(self, query: Query, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        """The live client's request."""
        return self._live.body(query, sampling, n, seed)

    def line(self, custom_id: str, body: Mapping[str, Any]) -> bytes:
        """One request of the call's list."""
        whole = {"custom_id": custom_id, "params": body}
        return compact(whole).encode("utf-8", "replace") + b"\n"

    def read(self, query: Query, body: Mapping[str, Any]) -> Sequence[Completion]:
        """The live client's reading."""
        return self._live.read(query, body)

    async def marker(self) -> str:
        """When the newest batch was made, by the server's clock."""

        async def attempt() -> str:
            page = await self._live.client.messages.batches.list(limit=1)
            return _when(page.data[0]).isoformat() if page.data else ""

        return await listed(self._settings, _EXPECTED, attempt)

    async def upload(self, name: str, requests: Path) -> str:
        """Nothing: requests and batch are one call."""
        return ""

    async def create(self, name: str, file: str, requests: Path) -> str:
        """Send all requests."""
        with disk_errors(requests):
            size = requests.stat().st_size
        length = str(len(_OPENING) + size - 1 + len(_CLOSING))

        async def attempt() -> str:
            # The lines as they were weighed, a block at a time: 256 MB are not held at once.
            made = await self._live.client.post(
                "/v1/messages/batches",
                cast_to=MessageBatch,
                content=_call(requests),
                options={"headers": {"Content-Type": "application/json", "Content-Length": length}},
            )
            return _checked(made).id

        return await creating(self._settings, _EXPECTED, attempt)

    async def find(self, name: str, file: str, requests: int, marker: str) -> list[Found]:
        """Batches of as many requests that are no older than the marker."""

        async def attempt() -> list[Found]:
            since = datetime.fromisoformat(marker) if marker else datetime.min.replace(tzinfo=UTC)
            found = []
            async for batch in self._live.client.messages.batches.list(limit=_PAGE):
                if _when(batch) < since:
                    break
                if _total(batch) == requests:
                    found.append(Found(batch.id, False))
            return found

        return await calling(self._settings, _EXPECTED, attempt)

    async def is_ours(self, batch_id: str, name: str) -> bool:
        """Whether the first result bears the name."""

        async def attempt() -> bool:
            results = await self._live.client.messages.batches.results(batch_id)
            try:
                first = await anext(aiter(results), None)
            except Exception as error:  # the client does not wrap what breaks a stream
                raise UnreadableAnswerError(f"the download broke off: {error}") from None
            finally:
                await results.close()
            return first is not None and belongs(name, str(first.custom_id))

        return await calling(self._settings, _EXPECTED, attempt)

    async def look(self, batch_id: str) -> Look:
        """The batch's status and counts."""

        async def attempt() -> Look:
            try:
                batch = _checked(await self._live.client.messages.batches.retrieve(batch_id))
            except anthropic.NotFoundError:
                return Look("gone", "not found")
            if batch.archived_at is not None:
                return Look("gone", "archived: its results are no longer there")
            counts = batch.request_counts
            return Look(
                "ended" if batch.processing_status == "ended" else "waiting",
                batch.processing_status,
                finished=_total(batch) - counts.processing,
                total=_total(batch),
                answers=counts.succeeded,
                cancelled=batch.cancel_initiated_at is not None,
            )

        return await calling(self._settings, _EXPECTED, attempt)

    async def fetch(self, batch_id: str, path: Path, answers: int) -> bool:
        """Download the stream of results."""
        partial = path.with_name(path.name + ".tmp")
        batches = self._live.client.messages.batches

        async def attempt() -> bool:
            async with batches.with_streaming_response.results(batch_id) as answer:
                await save(answer.iter_bytes(), partial)
            return sum(row.body is not None for row in self.rows(partial)) >= answers

        whole = await calling(self._settings, _EXPECTED, attempt)
        if not whole:
            whole = await calling(self._settings, _EXPECTED, attempt)
        with disk_errors(path):
            os.replace(partial, path)
        return whole

    def rows(self, path: Path) -> Iterator[Row]:
        """Rows that succeeded, errored, were cancelled or expired."""
        for value in objects(path):
            the_id, result = str(value.get("custom_id")), value.get("result")
            result = result if isinstance(result, dict) else {}
            kind, message = result.get("type"), result.get("message")
            if kind == "succeeded" and isinstance(message, dict):
                yield Row(the_id, 200, message)
                continue
            if kind in ("expired", "canceled"):
                yield Row(the_id, 0, None, str(kind))
                continue
            # An error inside the error response: {"type": "error", "error": {"type", "message"}}.
            error = result.get("error")
            while isinstance(error, dict) and isinstance(error.get("error"), dict):
                error = error["error"]
            error = error if isinstance(error, dict) else {}
            code = str(error.get("type") or "")
            said = safe_text(self._settings, str(error.get("message") or ""))
            yield Row(the_id, _STATUS.get(code, 0), None, code, said)

    async def tidy(self, name: str, file: str) -> None:
        """Nothing was uploaded apart."""


async def _call(requests: Path) -> AsyncIterator[bytes]:
    """The lines of a file as one JSON object; each ends with a newline, and is free of others."""
    yield _OPENING
    with requests.open("rb") as handle:
        block = handle.read(_BLOCK)
        while block:
            following = handle.read(_BLOCK)
            yield (block if following else block.removesuffix(b"\n")).replace(b"\n", b",")
            block = following
    yield _CLOSING


def _when(batch: MessageBatch) -> datetime:
    when: object = batch.created_at  # the client takes a server's word for the type
    return when if isinstance(when, datetime) else datetime.fromisoformat(str(when))


def _total(batch: MessageBatch) -> int:
    counts = batch.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired


def _checked(batch: object) -> MessageBatch:
    if not isinstance(batch, MessageBatch) or not batch.id or not batch.processing_status:
        raise UnreadableAnswerError(f"the server answered with no batch: {str(batch)[:80]!r}")
    return batch
