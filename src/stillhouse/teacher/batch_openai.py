"""OpenAI's Batch API, of OpenAI itself or of a server that speaks the same.

A JSONL file of requests is uploaded, a batch is made of it, and its output and error files are read
once it ends. A batch is found again by the name in its metadata, or by its file. Requests and
answers are the live client's own. Knows one batch at a time: when to ask is the caller's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import openai
from openai.types import Batch, FileObject

from stillhouse.core.jsonl import disk_errors
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import Completer, Sampling
from stillhouse.teacher.api import ApiSettings, safe_text
from stillhouse.teacher.batch import MB, Limits, Row
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
from stillhouse.teacher.openai_client import OpenAICompleter
from stillhouse.teacher.retry import UnreadableAnswerError

LIMITS: Final = Limits(50_000, 200 * MB)
METADATA: Final = "stillhouse_batch"
# A batch made after this many others, between two starts, is not found.
MOST_LISTED: Final = 5_000
_PAGE: Final = 100
_URL: Final = "/v1/chat/completions"
# Refused for what else is queued now, not for what it holds.
_LATER: Final = frozenset({"token_limit_exceeded", "request_limit_exceeded", "rate_limit_exceeded"})
_EXPECTED: Final = (openai.APIError, UnreadableAnswerError, TimeoutError, ValueError, OSError)


class OpenAIBatches:
    """See `BatchProvider`."""

    limits: Limits = LIMITS

    def __init__(self, completer: OpenAICompleter, settings: ApiSettings) -> None:
        self._live = completer
        self._settings = settings

    @property
    def completer(self) -> Completer:
        """The live client."""
        return self._live

    @property
    def samples_per_request(self) -> int:
        """All of them, but for a server that turned out to send one."""
        return self._live.samples_per_request

    def body(self, query: Query, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        """The live client's request."""
        return self._live.body(query, sampling, n, seed)

    def line(self, custom_id: str, body: Mapping[str, Any]) -> bytes:
        """One line of the input file."""
        whole = {"custom_id": custom_id, "method": "POST", "url": _URL, "body": body}
        return compact(whole).encode("utf-8", "replace") + b"\n"

    def read(self, query: Query, body: Mapping[str, Any]) -> Sequence[Completion]:
        """The live client's reading."""
        return self._live.read(query, body)

    async def marker(self) -> str:
        """Nothing: batches are found by name."""

        async def attempt() -> str:
            await self._live.client.batches.list(limit=1)
            return ""

        return await listed(self._settings, _EXPECTED, attempt)

    async def upload(self, name: str, requests: Path) -> str:
        """Upload the input file."""

        async def attempt() -> str:
            with requests.open("rb") as handle:
                # A large file takes its time: the time-out is for each part, not for all of it.
                made = await self._live.client.files.create(
                    file=(_filename(name), handle), purpose="batch"
                )
            if not isinstance(made, FileObject) or not made.id:
                raise UnreadableAnswerError(f"the server answered with no file: {str(made)[:80]!r}")
            return made.id

        return await calling(self._settings, _EXPECTED, attempt)

    async def create(self, name: str, file: str, requests: Path) -> str:
        """Make a batch of the uploaded file."""

        async def attempt() -> str:
            made = await self._live.client.batches.create(
                completion_window="24h",
                endpoint="/v1/chat/completions",
                input_file_id=file,
                metadata={METADATA: name},
            )
            return _checked(made).id

        return await creating(self._settings, _EXPECTED, attempt)

    async def find(self, name: str, file: str, requests: int, marker: str) -> list[Found]:
        """The batch with this name, or of this file."""

        async def attempt() -> list[Found]:
            seen = 0
            async for batch in self._live.client.batches.list(limit=_PAGE):
                named = (batch.metadata or {}).get(METADATA) == name
                if named or (file and batch.input_file_id == file):
                    return [Found(batch.id, True)]
                seen += 1
                if seen >= MOST_LISTED:
                    break
            return []

        return await calling(self._settings, _EXPECTED, attempt)

    async def is_ours(self, batch_id: str, name: str) -> bool:
        """Always: it was found by its name."""
        return True

    async def look(self, batch_id: str) -> Look:
        """The batch's status and counts."""

        async def attempt() -> Look:
            try:
                batch = _checked(await self._live.client.batches.retrieve(batch_id))
            except openai.NotFoundError:
                return Look("gone", "not found")
            return self._look(batch)

        return await calling(self._settings, _EXPECTED, attempt)

    def _look(self, batch: Batch) -> Look:
        counts = batch.request_counts
        done = counts.completed + counts.failed if counts else 0
        look = Look(
            "waiting",
            batch.status,
            finished=done,
            total=counts.total if counts else 0,
            answers=counts.completed if counts else 0,
        )
        if batch.status == "failed":
            errors = (batch.errors.data if batch.errors else None) or []
            reasons = [
                f"line {error.line}: {error.message}" if error.line else str(error.message)
                for error in errors
            ]
            return look._replace(
                state="refused",
                later=bool(errors) and all(error.code in _LATER for error in errors),
                reason=safe_text(self._settings, "; ".join(reasons[:3]) or "no reason given"),
            )
        if batch.status in ("completed", "expired", "cancelled"):
            return look._replace(state="ended", cancelled=batch.status == "cancelled")
        return look

    async def fetch(self, batch_id: str, path: Path, answers: int) -> bool:
        """Download the output and the error file."""
        partial = path.with_name(path.name + ".tmp")
        # Twice where the files were behind the counts.
        for _ in range(2):
            batch = await calling(self._settings, _EXPECTED, lambda: self._retrieve(batch_id))
            with disk_errors(partial):
                partial.write_bytes(b"")
            end = 0
            for file in (batch.output_file_id, batch.error_file_id):
                if file:
                    end = await self._download(file, partial, end)
            whole = sum(row.body is not None for row in self.rows(partial)) >= answers
            if whole:
                break
        with disk_errors(path):
            os.replace(partial, path)
        return whole

    async def _retrieve(self, batch_id: str) -> Batch:
        return _checked(await self._live.client.batches.retrieve(batch_id))

    async def _download(self, file: str, path: Path, start: int) -> int:
        async def attempt() -> int:
            async with self._live.client.files.with_streaming_response.content(file) as answer:
                return await save(answer.iter_bytes(), path, start)

        return await calling(self._settings, _EXPECTED, attempt)

    def rows(self, path: Path) -> Iterator[Row]:
        """Rows of both files: a response with its status, or an error without one."""
        for value in objects(path):
            response, error = value.get("response"), value.get("error")
            the_id = str(value.get("custom_id"))
            if isinstance(response, dict) and isinstance(response.get("status_code"), int):
                status, body = response["status_code"], response.get("body")
                if status == 200 and isinstance(body, dict):
                    yield Row(the_id, 200, body)
                    continue
                said = body.get("error") if isinstance(body, dict) else None
                error = said if isinstance(said, dict) else error
            else:
                status = 0
            error = error if isinstance(error, dict) else {}
            message = safe_text(self._settings, str(error.get("message") or ""))
            yield Row(the_id, status, None, str(error.get("code") or ""), message)

    async def tidy(self, name: str, file: str) -> None:
        """Delete the input file; without its id, the one that bears the name."""
        try:
            if not file:
                async for one in self._live.client.files.list(purpose="batch", order="desc"):
                    if one.filename == _filename(name):
                        file = one.id
                        break
            if file:
                await self._live.client.files.delete(file)
        except _EXPECTED:
            pass


def _filename(name: str) -> str:
    return f"stillhouse-{name}.jsonl"


def _checked(batch: object) -> Batch:
    if not isinstance(batch, Batch) or not batch.id or not batch.status:
        raise UnreadableAnswerError(f"the server answered with no batch: {str(batch)[:80]!r}")
    return batch
