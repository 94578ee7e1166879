"""What asking by batch needs of a provider, and what its two implementations share.

Knows no provider's request form; does not decide what goes into a batch.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import Completer, Sampling
from stillhouse.teacher.api import ApiSettings, failure_line
from stillhouse.teacher.batch import Limits, Row
from stillhouse.teacher.retry import UnreadableAnswerError, judge, with_retries

T = TypeVar("T")
# Statuses of a request that may have been taken all the same, as every 5xx may.
UNSURE: Final = frozenset({408, 409})
NO_BATCHES: Final = frozenset({404, 405, 501})


class UnsureError(Exception):
    """A batch was sent and no answer came: it may exist, so it is looked for, not sent again."""


class Look(NamedTuple):
    """How a batch stands.

    `finished` of `total` requests are through; `answers` is how many the results must hold once it
    has `ended`. `refused`: not run at all, for `reason`; `later` says that it would be run another
    time. `cancelled` says that somebody stopped it. `gone`: the provider does not know it.
    """

    state: Literal["waiting", "ended", "refused", "gone"]
    status: str
    finished: int = 0
    total: int = 0
    answers: int = 0
    cancelled: bool = False
    later: bool = False
    reason: str = ""


class Found(NamedTuple):
    """A batch at the provider that may be the one looked for, or surely is."""

    id: str
    sure: bool


class BatchProvider(Protocol):
    """One provider's batches. Errors after all retries are `TeacherFailure`."""

    @property
    def completer(self) -> Completer:
        """The same teacher, asked live."""

    @property
    def limits(self) -> Limits:
        """The most that the provider takes in one batch."""

    @property
    def samples_per_request(self) -> int:
        """How many samples one request can bring."""

    def body(self, query: Query, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        """The request that live asking would send."""

    def line(self, custom_id: str, body: Mapping[str, Any]) -> bytes:
        """The request as it stands in a batch, with the newline."""

    def read(self, query: Query, body: Mapping[str, Any]) -> Sequence[Completion]:
        """The answers in a row's body, priced at list."""

    async def marker(self) -> str:
        """What tells later batches from earlier ones.

        Raises:
            UserError: the server has no batches.
        """

    async def upload(self, name: str, requests: Path) -> str:
        """Bring the requests to the provider without running them; the file's id, or nothing."""

    async def create(self, name: str, file: str, requests: Path) -> str:
        """Run the batch; its id. Tried again only where it surely does not exist.

        Raises:
            UnsureError: it may exist.
        """

    async def find(self, name: str, file: str, requests: int, marker: str) -> list[Found]:
        """Batches that may be the one of this name."""

    async def is_ours(self, batch_id: str, name: str) -> bool:
        """Whether the results of an ended batch bear this name."""

    async def look(self, batch_id: str) -> Look:
        """How a batch stands."""

    async def fetch(self, batch_id: str, path: Path, answers: int) -> bool:
        """Bring all results to a file, whole or not at all.

        Returns whether they hold as many answers as the provider says there are.
        """

    def rows(self, path: Path) -> Iterator[Row]:
        """Read the fetched results."""

    async def tidy(self, name: str, file: str) -> None:
        """Remove the uploaded requests; what cannot be removed is left."""


async def calling(
    settings: ApiSettings,
    expected: tuple[type[Exception], ...],
    attempt: Callable[[], Awaitable[T]],
) -> T:
    """Await one call to a provider, tried again as live requests are.

    Raises:
        TeacherFailure: no try succeeded.
    """
    return await with_retries(
        attempt,
        settings.retrying,
        expected,
        lambda error, verdict: failure_line(settings, error, verdict),
    )


async def creating(
    settings: ApiSettings,
    expected: tuple[type[Exception], ...],
    attempt: Callable[[], Awaitable[T]],
) -> T:
    """As `calling`, but only a refusal is tried again.

    Raises:
        TeacherFailure: it was refused.
        UnsureError: the request may have been taken.
    """

    async def once() -> T:
        try:
            return await attempt()
        except expected as error:
            verdict = judge(error, settings.retrying.now())
            refused = verdict.status is not None and 400 <= verdict.status < 500
            if not refused or verdict.status in UNSURE:
                raise UnsureError(failure_line(settings, error, verdict)) from None
            raise

    return await calling(settings, expected, once)


async def listed(
    settings: ApiSettings,
    expected: tuple[type[Exception], ...],
    attempt: Callable[[], Awaitable[T]],
) -> T:
    """As `calling`, for the first look at a server's batches.

    Raises:
        UserError: the server has none.
    """

    async def once() -> T | None:
        try:
            return await attempt()
        except expected as error:
            if judge(error, settings.retrying.now()).status in NO_BATCHES:
                return None
            raise

    found = await calling(settings, expected, once)
    if found is None:
        raise UserError(
            "teacher.batch",
            f"{settings.revision} has no batches",
            action="leave teacher.batch out: the queries are then asked live",
        )
    return found


async def save(chunks: AsyncIterator[bytes], path: Path, start: int = 0) -> int:
    """Write a download into a file from byte `start` on, one JSON object a line; its end.

    Raises:
        UnreadableAnswerError: the connection broke, or the last line is not whole.
    """
    last = b""
    with disk_errors(path), path.open("r+b" if path.exists() else "w+b") as handle:
        handle.seek(start)
        handle.truncate()
        while (chunk := await _next(chunks)) is not None:
            handle.write(chunk)
            last = (last + chunk).rpartition(b"\n")[2] if b"\n" in chunk else last + chunk
        if last:
            handle.write(b"\n")
        end = handle.tell()
    if last.strip():
        try:
            json.loads(last)
        except ValueError:
            raise UnreadableAnswerError("the download broke off within a line") from None
    return end


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    """The next part of a download; `None` at its end."""
    try:
        return await anext(chunks, None)
    except Exception as error:  # the clients do not wrap what their HTTP library raises here
        raise UnreadableAnswerError(f"the download broke off: {error}") from None


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of results; a line that is none is passed over.

    The request of such a line has no row then, and is asked again.
    """
    with path.open("rb") as handle:
        for raw in handle:
            try:
                value = json.loads(raw)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def compact(value: object) -> str:
    """JSON without blanks and without escapes, as the clients send it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
