"""What protects an upstream and its clients: circuit breaker, retry budget, bounded queue.

The clock is passed in. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Clock = Callable[[], float]


class Breaker:
    """Opens after so many failures one after another; after a while one request may try."""

    def __init__(self, failures: int, open_s: float, clock: Clock) -> None:
        self._limit = failures
        self._open_s = open_s
        self._clock = clock
        self._failed = 0
        self._until = 0.0
        self._probing = False

    @property
    def state(self) -> str:
        """`closed`, `open`, or `half_open` once a request may try."""
        if self._failed < self._limit:
            return "closed"
        return "open" if self._clock() < self._until else "half_open"

    def refuse_for(self) -> float:
        """Seconds for which requests are refused; 0: this one may go, and must report back."""
        if self._failed < self._limit:
            return 0.0
        left = self._until - self._clock()
        if left > 0:
            return left
        if self._probing:
            return min(1.0, self._open_s)
        self._probing = True
        return 0.0

    def succeeded(self) -> None:
        """The upstream answered."""
        self._failed = 0
        self._probing = False

    def failed(self) -> None:
        """It did not."""
        self._failed += 1
        self._probing = False
        if self._failed >= self._limit:
            self._until = self._clock() + self._open_s

    def abandoned(self) -> None:
        """The request ended before anything was known of the upstream."""
        self._probing = False


class RetryBudget:
    """Retries as a share of requests: each request earns a share of one, each retry costs one."""

    def __init__(self, share: float, most: float = 10.0) -> None:
        self._share = share
        self._most = most
        self._left = most if share > 0 else 0.0

    def earn(self) -> None:
        """Count a request."""
        self._left = min(self._most, self._left + self._share)

    def spend(self) -> bool:
        """Whether a retry is allowed; it is counted."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class QueueFullError(Exception):
    """More wait than may."""


class QueueWaitError(Exception):
    """The wait took too long."""


class Slots:
    """So many at a time, so many waiting, for so long; first come, first served."""

    def __init__(self, concurrent: int, waiting: int, wait_s: float) -> None:
        self._concurrent = self._free = concurrent
        self._waiting = waiting
        self._wait_s = wait_s
        self._queue: deque[asyncio.Future[None]] = deque()

    def take_now(self) -> bool:
        """Take a slot if one is free; nobody waits then."""
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    async def take(self) -> None:
        """Take a slot.

        Raises:
            QueueFullError: too many wait.
            QueueWaitError: none became free in time.
        """
        if self.take_now():
            return
        if len(self._queue) >= self._waiting:
            raise QueueFullError
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.free()
            elif turn in self._queue:
                self._queue.remove(turn)
            if isinstance(error, TimeoutError):
                raise QueueWaitError from None
            raise

    @property
    def spare(self) -> bool:
        """Whether at least half are free: what can wait may have one."""
        return self._free * 2 >= self._concurrent and self._free > 0

    def free(self) -> None:
        """Give a slot back: to who has waited longest."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
