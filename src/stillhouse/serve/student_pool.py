"""The processes of one student: started together, asked in turn, started again when they fail.

A process that ends, cannot be opened in time, or says nothing while it has work is killed; what it
had fails over, and a new one is started after a pause that doubles. Knows no request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from stillhouse.core.errors import UserError
from stillhouse.serve.gateway_sections import StudentSection
from stillhouse.serve.student_process import (
    StudentGoneError,
    StudentProcess,
    StudentRefusedError,
)

PAUSE_S: Final = (0.5, 30.0)
LOOK_S: Final = 1.0
# After so many answers a process counts as well, and the next pause is short again.
WELL: Final = 100
_LOG = logging.getLogger(__name__)


class StudentPool:
    """`workers` processes with one student.

    Args:
        name: of the upstream.
        section: its part of gateway.yaml.
        setup: what a process is told to open.
    """

    def __init__(
        self,
        name: str,
        section: StudentSection,
        setup: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._section, self._setup, self._clock = name, section, setup, clock
        self._processes: list[StudentProcess | None] = [None] * section.workers
        self._tasks: list[asyncio.Task[None]] = []
        self._first: list[asyncio.Future[None]] = []
        self._closing = False
        self._troubles: set[str] = set()
        self.fingerprint: str | None = None
        self.restarts = 0

    async def start(self) -> None:
        """Start all; wait until each is open.

        Raises:
            UserError: the student cannot be opened.
        """
        loop = asyncio.get_running_loop()
        self._first = [loop.create_future() for _ in self._processes]
        self._tasks = [asyncio.create_task(self._keep(slot)) for slot in range(len(self._first))]
        self._tasks.append(asyncio.create_task(self._look()))
        try:
            await asyncio.gather(*self._first)
        except BaseException:
            await self.close()
            raise

    @property
    def processes(self) -> list[StudentProcess]:
        """Those that there are, open or not."""
        return [one for one in self._processes if one is not None]

    @property
    def pids(self) -> list[int]:
        """Of the processes that there are."""
        return [one.pid for one in self.processes if one.pid is not None]

    def pick(self) -> StudentProcess | None:
        """The open process with the least to do."""
        best: StudentProcess | None = None
        for one in self._processes:
            if one is not None and one.open and (best is None or one.load < best.load):
                best = one
        return best

    async def close(self) -> None:
        """End all. What they have is lost: wait for it before."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(one.close() for one in self._processes if one is not None))
        for future in self._first:
            if not future.done():
                future.cancel()
            elif not future.cancelled():
                future.exception()

    async def _keep(self, slot: int) -> None:
        """Keep one process running, until cancelled."""
        pause, longest = PAUSE_S
        while True:
            process = StudentProcess(self._clock, self._troubled)
            self._processes[slot] = process
            problem = await self._open(process)
            first = self._first[slot]
            if problem is None:
                if not first.done():
                    first.set_result(None)
                await asyncio.shield(process.lost)
                problem = "its process ended"
            process.kill()
            code = await process.reaped()
            if not first.done():
                field = f"upstreams.{self._name}"
                first.set_exception(UserError(field, f"the student cannot be opened: {problem}"))
                return
            if process.answered >= WELL:
                pause = PAUSE_S[0]
            self.restarts += 1
            _LOG.warning(
                "student %s: %s (exit code %s); started again in %.1f s",
                self._name,
                problem,
                code,
                pause,
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def _troubled(self, text: str) -> None:
        """Say what a student says, once for all its processes."""
        if text not in self._troubles:
            self._troubles.add(text)
            _LOG.warning("student %s: %s", self._name, text)

    async def _open(self, process: StudentProcess) -> str | None:
        """Why a process has no open student, or `None`."""
        try:
            await process.start(self._setup, self._section.threads)
            async with asyncio.timeout(self._section.start_s):
                facts = await asyncio.shield(process.ready)
        except StudentRefusedError as error:
            return str(error)
        except StudentGoneError:
            return "its process ended before it was open"
        except TimeoutError:
            return f"it was not open after {self._section.start_s:g} seconds"
        except OSError as error:
            return f"no process could be started: {error.strerror}"
        found = str(facts["fingerprint"])
        if self.fingerprint is None:
            self.fingerprint = found
        # Two students under one name would be two variants in one arm of an experiment.
        if found != self.fingerprint:
            return "its files were changed; start the gateway again to serve them"
        return None

    async def _look(self) -> None:
        """Kill processes that hang, until cancelled."""
        limit = self._section.hang_s
        while True:
            await asyncio.sleep(min(LOOK_S, limit / 4))
            for one in self._processes:
                if one is not None and one.open and one.silent_for() > limit:
                    _LOG.warning("student %s: process %s hangs", self._name, one.pid)
                    one.kill()
