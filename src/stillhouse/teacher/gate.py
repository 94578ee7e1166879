"""Where requests wait until the limiter and the breaker let them go, in their order.

The one place that holds a request back; decides nothing itself. Knows the event loop's clock; does
not know what a request is.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import NamedTuple

from stillhouse.teacher.breaker import Breaker
from stillhouse.teacher.limiter import Limiter, Outcome, Ticket
from stillhouse.teacher.limits import Cost


class StoppedError(Exception):
    """The run has ended: nothing more is sent."""


class Pass(NamedTuple):
    """Leave to send one request; to be handed back."""

    ticket: Ticket
    probe: bool


class _Waiting(NamedTuple):
    cost: Cost
    future: asyncio.Future[Pass]


class Gate:
    """See the module. Must be made inside a running event loop."""

    def __init__(self, limiter: Limiter, breaker: Breaker) -> None:
        self.limiter = limiter
        self.breaker = breaker
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped: asyncio.Future[None] = self._loop.create_future()

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be sent."""
        return self._stopped.done()

    def now(self) -> float:
        """Seconds on the event loop's clock."""
        return self._loop.time()

    async def enter(self, cost: Cost, until: float | None = None) -> Pass:
        """Wait for leave to send.

        Args:
            cost: of the request.
            until: on the clock of `now`.

        Raises:
            StoppedError: the gate was stopped.
            TimeoutError: no leave came until then.
        """
        if self.stopped:
            raise StoppedError
        if not self._waiting and self._wait_s(cost) <= 0:
            return self._let_go(cost)
        future: asyncio.Future[Pass] = self._loop.create_future()
        self._waiting.append(_Waiting(cost, future))
        self._pump()
        try:
            async with asyncio.timeout_at(until):
                let = await future
            if self.stopped:  # between the leave and the waking
                raise StoppedError
            return let
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.leave(future.result(), Outcome("dropped"))
            raise

    def leave(self, let: Pass, outcome: Outcome) -> None:
        """A request came back."""
        now = self.now()
        self.limiter.done(let.ticket, now, outcome)
        if outcome.kind == "failed":
            self.breaker.failed(now, let.probe)
        elif outcome.kind == "dropped":
            self.breaker.dropped(let.probe)
        else:
            self.breaker.worked()
        if self._waiting:
            self._pump()

    async def rest(self, seconds: float) -> None:
        """Wait so long.

        Raises:
            StoppedError: the gate was stopped meanwhile.
        """
        if seconds > 0:
            await asyncio.wait({self._stopped}, timeout=seconds)
        if self.stopped:
            raise StoppedError

    def stop(self) -> None:
        """Send all that wait, and all that come, away."""
        if not self.stopped:
            self._stopped.set_result(None)
        for waiting in self._waiting:
            if not waiting.future.done():
                waiting.future.set_exception(StoppedError())
        self._waiting.clear()

    def close(self) -> None:
        """Stop, and set no timer any more."""
        self.stop()
        if self._timer is not None:
            self._timer.cancel()

    def _wait_s(self, cost: Cost) -> float:
        now = self.now()
        return max(self.breaker.wait_s(now), self.limiter.wait_s(now, cost))

    def _let_go(self, cost: Cost) -> Pass:
        return Pass(self.limiter.start(cost), self.breaker.start())

    def _pump(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            first = self._waiting[0]
            if first.future.done():  # its caller went away
                self._waiting.popleft()
                continue
            wait = self._wait_s(first.cost)
            if wait <= 0:
                self._waiting.popleft()
                first.future.set_result(self._let_go(first.cost))
                continue
            if wait < math.inf:
                self._timer = self._loop.call_later(wait, self._pump)
            return
