"""Runs batches on one gateway: takes them, shares places among them, and gives way to live traffic.

A line goes where an upstream of its task has at least half of its slots free, and while more live
requests than `batches.live_most` are open only one line goes at a time. Knows no line's content.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from stillhouse.serve.batch_job import Job, Tools

POLL_S: Final = 1.0
_LOOK_S: Final = 0.05


class BatchRunner:
    """The batches of one gateway process."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._places = asyncio.Semaphore(tools.section.concurrent)
        self._working = 0
        self._jobs: dict[asyncio.Task[None], Job] = {}
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> None:
        """Take batches until stopped."""
        work = self._tools.work
        self._loop = asyncio.get_running_loop()
        while not self._stopping:
            try:
                await self._take_some()
            except SQLAlchemyError:
                pass
            except Exception as error:  # a damaged row: its lease keeps it from the others' way
                self._failed(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await work.changed.wait()
                work.changed.clear()
                for job in self._jobs.values():
                    job.look()

    def stop(self) -> None:
        """Take no more batches and ask no more lines; may be called from another thread."""
        self._stopping = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._halt_all)

    def _halt_all(self) -> None:
        for job in self._jobs.values():
            job.stop("stopped")
        self._tools.work.changed.set()

    async def drain(self, seconds: float) -> None:
        """Let the lines that are in work end; after so many seconds they are given up."""
        self._stopping = True
        self._halt_all()
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=seconds)
        left = list(self._jobs)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def take(self) -> None:
        """See `Turns`."""
        await self._places.acquire()

    async def go(self, job: Job, task: str) -> bool:
        """See `Turns`."""
        while job.halt is None:
            if self._may_go(task):
                self._working += 1
                return True
            await job.pause(_LOOK_S)
        return False

    def rest(self) -> None:
        """See `Turns`."""
        self._working -= 1

    def leave(self) -> None:
        """See `Turns`."""
        self._places.release()

    def _may_go(self, task: str) -> bool:
        exchange = self._tools.exchange
        if task in self._tools.file.tasks and not self._tools.roster.spare(task):
            return False
        return exchange.live <= self._tools.section.live_most or self._working == 0

    async def _take_some(self) -> None:
        while not self._stopping and len(self._jobs) < self._tools.section.running:
            batch = await asyncio.to_thread(self._tools.work.batches.claim)
            if batch is None:
                return
            job = Job(self._tools, self, batch)
            task = asyncio.create_task(self._run(job))
            self._jobs[task] = job
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._jobs[task]
        self._tools.work.changed.set()

    async def _run(self, job: Job) -> None:
        # Where it fails its lease ends by itself; whoever takes it then goes on with what was kept.
        try:
            await job.run()
        except SQLAlchemyError:
            self._tools.metrics.batch_failures.inc()
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._tools.metrics.batch_failures.inc()
        told = {"message": "a batch failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(told)
