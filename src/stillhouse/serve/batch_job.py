"""One batch from its first line to its files, on the gateway that has taken it.

Its lines go the way of live requests: the same assignment, fallback and log. What a line was
answered is in the database before it counts as done. Knows no other batch: when a line may go is
its runner's to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, MutableMapping
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, Protocol

from sqlalchemy.exc import SQLAlchemyError

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.batch_files import fill, write_files
from stillhouse.serve.batch_lines import (
    Answer,
    Asked,
    BadLineError,
    answer_line,
    asked,
    checked,
    split_lines,
)
from stillhouse.serve.batch_records import ENDPOINTS, Batch, Status
from stillhouse.serve.batches import LEASE_S, BatchWork, LineRow
from stillhouse.serve.exchange import Exchange
from stillhouse.serve.front import Asks, new_id
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.gateway_sections import BatchesSection
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.record_calls import tokens_of
from stillhouse.serve.roster import Roster
from stillhouse.serve.seams import Principal

# Why no more lines are asked. `lost`: another gateway has the batch; `stopped`: this one ends.
Halt = Literal["cancelling", "expired", "lost", "stopped"]
# Nobody was asked, or nobody billed it: tried again until the batch expires.
FREE: Final = frozenset(
    (
        "breaker_open",
        "connect_deadline",
        "queue_full",
        "queue_wait",
        "student_gone",
        "student_starting",
        "unreachable",
        "upstream_429",
        "upstream_503",
    )
)
_PAUSE_S: Final = (0.5, 60.0)
_STORE_PAUSE_S: Final = 1.0
_READ_AHEAD: Final = 16
_ANY: Final = 1 << 40  # a file that was looked through is not measured again


class Turns(Protocol):
    """When a line may go, among those of all batches and beside live requests."""

    async def take(self) -> None:
        """Wait for a place; it is given back with `leave`."""

    async def go(self, job: Job, task: str) -> bool:
        """Wait until a line of a task may be asked; `rest` when it was. False: the batch halted."""

    def rest(self) -> None:
        """The line is asked no more, or not for a while."""

    def leave(self) -> None:
        """Give the place back."""


class Tools(NamedTuple):
    """What every batch of a gateway is run with."""

    file: GatewayFile
    section: BatchesSection
    exchange: Exchange
    roster: Roster
    asks: Asks
    work: BatchWork
    metrics: Metrics


class _Caught:
    """An answer that goes into a file instead of to a client."""

    def __init__(self) -> None:
        self.status = 0
        self.variant: str | None = None
        self._parts: list[bytes] = []

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            for name, value in message["headers"]:
                if name == b"x-stillhouse-variant":
                    self.variant = value.decode("ascii")
        else:
            self._parts.append(message.get("body", b""))

    def body(self) -> dict[str, Any]:
        """The answer.

        Raises:
            ValueError: it is no JSON object.
        """
        found = json.loads(b"".join(self._parts))
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found


class Job:
    """One batch that is run here."""

    def __init__(self, tools: Tools, turns: Turns, batch: Batch) -> None:
        self._tools = tools
        self._turns = turns
        self._store = tools.work.batches
        self._batch = batch
        self._principal = Principal(batch.tenant, frozenset(batch.scopes))
        self._rows: asyncio.Queue[LineRow | None] = asyncio.Queue(tools.section.concurrent)
        self._halted = asyncio.Event()
        self._looked = asyncio.Event()
        self._given_up = False
        self.halt: Halt | None = None

    def stop(self, why: Halt) -> None:
        """Ask no more lines."""
        if self.halt is None or why == "lost" or (why == "stopped" and self.halt != "lost"):
            self.halt = why
        self._halted.set()

    def look(self) -> None:
        """Somebody has changed a batch, perhaps this one."""
        self._looked.set()

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the batch halts."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._halted.wait()

    async def run(self) -> None:
        """Go on with the batch until it is done, lost or stopped.

        Raises:
            SQLAlchemyError: the database does not do what it is asked.
        """
        keeping = asyncio.create_task(self._keep())
        try:
            await self._steps()
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        if self.halt == "stopped":
            await asyncio.to_thread(self._store.release, self._batch.id)

    async def _steps(self) -> None:
        if self._batch.status == "validating":
            await self._check()
        if self._batch.status == "in_progress":
            await self._ask_all()
            if self.halt not in ("lost", "stopped", "cancelling"):
                ends: Status = "expired" if self.halt == "expired" else "completed"
                await self._advance(self._batch.at("finalizing", time.time(), ends_as=ends))
            elif self.halt == "cancelling":
                await self._reload()
        if self._batch.status not in ("finalizing", "cancelling") or self.halt == "lost":
            return
        section, work = self._tools.section, self._tools.work
        ends = self._batch.ends_as if self._batch.status == "finalizing" else "cancelled"
        if ends != "completed":
            await asyncio.to_thread(fill, work, self._batch, ends, self._lines(), section.requests)
        await asyncio.to_thread(write_files, work, self._batch, ends, section.retention_days)

    async def _check(self) -> None:
        """Look the file through: nothing of a file with a fault is asked."""
        tasks, limits = self._tools.file.tasks, self._tools.file.limits
        found = await asyncio.to_thread(
            checked,
            self._lines(),
            self._batch.endpoint,
            lambda name: name in tasks and self._principal.may(name),
            self._tools.section.requests,
            limits.json_depth,
        )
        counts = self._batch.counts.model_copy(update={"total": found.total})
        status: Status = "failed" if found.errors else "in_progress"
        await self._advance(
            self._batch.at(
                status, time.time(), errors=found.errors, model=found.model, counts=counts
            )
        )

    async def _advance(self, new: Batch) -> None:
        """Into the next status, or into what somebody else has put the batch in meanwhile."""
        if await asyncio.to_thread(self._store.advance, self._batch.status, new):
            self._batch = new
        else:
            await self._reload()

    async def _reload(self) -> None:
        self._seen(await asyncio.to_thread(self._store.renew, self._batch.id))
        found = await asyncio.to_thread(self._store.get, None, self._batch.id)
        if found is None:
            self.stop("lost")
        else:
            self._batch = found

    async def _keep(self) -> None:
        """Keep the lease, and see what becomes of the batch meanwhile."""
        while True:
            left = self._batch.expires_at - time.time()
            if left <= 0:
                self.stop("expired")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(LEASE_S / 3, left) if left > 0 else LEASE_S / 3):
                    await self._looked.wait()
            self._looked.clear()
            with contextlib.suppress(SQLAlchemyError):
                self._seen(await asyncio.to_thread(self._store.renew, self._batch.id))

    def _seen(self, status: Status | None) -> None:
        if status is None:
            self.stop("lost")
        elif status == "cancelling":
            self.stop("cancelling")

    def _lines(self, longest: int | None = None) -> Iterator[tuple[int, bytes]]:
        parts = self._tools.work.files.parts(self._batch.input_file)
        return split_lines(parts, longest or self._tools.file.limits.body_bytes)

    async def _ask_all(self) -> None:
        """Ask the lines that were not answered before."""
        if time.time() >= self._batch.expires_at:
            self.stop("expired")
        done = await asyncio.to_thread(self._store.answered, self._batch.id)
        writing = asyncio.create_task(self._write())
        running: set[asyncio.Task[None]] = set()
        lines = self._lines(longest=_ANY)
        try:
            while self.halt is None and (
                ahead := await asyncio.to_thread(lambda: list(islice(lines, _READ_AHEAD)))
            ):
                for number, raw in ahead:
                    if number in done:
                        continue
                    await self._turns.take()
                    if self.halt is not None:
                        self._turns.leave()
                        break
                    task = asyncio.create_task(self._line(number, raw))
                    running.add(task)
                    task.add_done_callback(running.discard)
            while running and self.halt != "lost":
                await asyncio.wait(running, timeout=1)
        except asyncio.CancelledError:
            self._given_up = True
            raise
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._rows.put(None)
            await writing

    async def _line(self, number: int, raw: bytes) -> None:
        try:
            row: LineRow | None
            try:
                depth = self._tools.file.limits.json_depth
                row = await self._answered(asked(number, raw, self._batch.endpoint, depth))
            except BadLineError as bad:  # it was well when it was looked through: limits changed
                error = ApiError(400, bad.error.message, code=bad.error.code)
                row = self._refused(Asked(number, "", {"model": ""}), error)
            if row is not None:
                await self._rows.put(row)
        finally:
            self._turns.leave()

    async def _answered(self, line: Asked) -> LineRow | None:
        """What the line's row is; `None`: the batch halted before it was answered."""
        pause, longest = _PAUSE_S
        tries = 0
        while await self._turns.go(self, line.body["model"]):
            try:
                row = await self._once(line)
            finally:
                self._turns.rest()
            if isinstance(row, LineRow):
                return row
            tries += row.code not in FREE
            if tries >= self._tools.section.attempts:
                return self._refused(line, row)
            await self.pause(max(pause, row.retry_after or 0))
            pause = min(pause * 2, longest)
        return None

    async def _once(self, line: Asked) -> LineRow | ApiError:
        """Ask it; an error: another try may do better."""
        route = ENDPOINTS[self._batch.endpoint]
        caught = _Caught()
        request_id = new_id()
        # An answer without user is counted as its line, also when it is asked a second time.
        unit = f"{self._batch.id}:{line.number}"
        try:
            ask = self._tools.asks(route, line.body, self._principal, request_id, unit=unit)
            await self._tools.exchange.answer(ask, caught)
            answer = Answer(caught.status, request_id, caught.body(), caught.variant)
            text = answer_line(self._batch.id, line, answer)
        except ApiError as error:
            if error.status >= 500 or error.status == 429:
                return error
            return self._refused(line, error)
        except ValueError:
            return ApiError(502, "The model's answer could not be kept.", code="garbage")
        except Exception as error:
            told = {"message": "a line of a batch failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(told)
            return ApiError(500, "The gateway failed; the request id says where to look.")
        self._count(line, str(caught.status))
        return LineRow(line.number, caught.status == 200, *tokens_of(answer.body), text)

    def _refused(self, line: Asked, error: ApiError) -> LineRow:
        self._count(line, str(error.status))
        answer = Answer(error.status, new_id(), json.loads(error.body()))
        text = answer_line(self._batch.id, line, answer)
        return LineRow(line.number, False, 0, 0, text)

    def _count(self, line: Asked, result: str) -> None:
        # The model's name is a task's: the file was checked.
        self._tools.metrics.batch_lines.labels(line.body["model"], result).inc()

    async def _write(self) -> None:
        """Keep what was answered: all that came while the last transaction ran, in one."""
        ended = False
        while not ended:
            rows = [await self._rows.get()]
            while not self._rows.empty():
                rows.append(self._rows.get_nowait())
            ended = rows[-1] is None
            kept = [row for row in rows if row is not None]
            while kept and self.halt != "lost":
                try:
                    self._seen(await asyncio.to_thread(self._store.add_lines, self._batch.id, kept))
                    break
                except SQLAlchemyError:  # paid for: kept in memory until the database is back
                    if self._given_up:
                        break
                    await asyncio.sleep(_STORE_PAUSE_S)
