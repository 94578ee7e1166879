"""A circuit breaker: a server that is down is left alone, and tried again by one request at a time.

Closed, it lets all through. A run of failures opens it; after a pause it is half open and lets one
request through, whose answer closes it and whose failure opens it again for twice as long (Nygard,
Release It!, 2007). Open for long enough, it gives up. Pure: the clock and randomness are passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

FAILURES: Final = 5  # in a row
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
# A server that never answered is more likely a wrong address than an outage.
NEVER_ANSWERED_S: Final = 60.0


class Breaker:
    """See the module.

    Args:
        outage_s: how long a server may give no answer before `gives_up` says so.
        uniform: `random.uniform` or its like.
        failures: how many in a row open it.
    """

    def __init__(
        self,
        outage_s: float,
        uniform: Callable[[float, float], float],
        failures: int = FAILURES,
    ) -> None:
        self._outage_s = outage_s
        self._uniform = uniform
        self._failures = failures
        self._in_a_row = 0
        self._failing_since = math.inf
        self._answered = False
        self._opened = 0  # how often since it was last closed
        self._retry_at = math.inf
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Open or half open."""
        return self._opened > 0

    def wait_s(self, now: float) -> float:
        """Seconds until a request may go: 0 now, infinite until the one that probes is back."""
        if not self.is_open:
            return 0.0
        return math.inf if self._probing else max(0.0, self._retry_at - now)

    def start(self) -> bool:
        """Count a request that goes now; whether it is the one that probes."""
        self._probing = self.is_open
        return self._probing

    def worked(self) -> None:
        """An answer came, or a refusal: the server is there."""
        self._in_a_row = self._opened = 0
        self._failing_since = self._retry_at = math.inf
        self._answered = True
        self._probing = False

    def failed(self, now: float, probe: bool) -> None:
        """The server or the way to it failed."""
        self._in_a_row += 1
        self._failing_since = min(self._failing_since, now)
        if self.is_open and not probe:
            return  # sent before it opened: nothing new
        self._probing = False
        if self.is_open or self._in_a_row >= self._failures:
            longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**self._opened)
            self._opened += 1
            self._retry_at = now + self._uniform(longest / 2, longest)

    def dropped(self, probe: bool) -> None:
        """Nobody waited for the answer: another may probe."""
        self._probing = self._probing and not probe

    def gives_up(self, now: float) -> bool:
        """Whether the server has been gone for too long."""
        allowed = self._outage_s if self._answered else min(self._outage_s, NEVER_ANSWERED_S)
        return self.is_open and now - self._failing_since >= allowed
