"""How many requests may be in flight, and when the next may go.

Additive increase, multiplicative decrease (Chiu and Jain 1989): the window begins at what the
recipe allows, is halved by a 429 and grows by one a window of answers. Requests sent before the
last halving do not halve again: they tell of the same moment. A 429 to one request holds all of
them, for as long as Retry-After says, else for a jittered time that doubles with each round. The
limits in the headers of every answer hold requests before a 429 is earned. Pure: the clock and
randomness are passed in; it sends and waits for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from stillhouse.teacher.limits import RESOURCES, Bucket, Cost, Resource, Seen

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0
DECREASE: Final = 0.5
# How far a pause that the server asks for is stretched, so that clients do not return as one.
STRETCH: Final = 0.1

Kind = Literal["ok", "rate_limit", "failed", "refused", "dropped"]


class Outcome(NamedTuple):
    """What came of a request.

    `ok`: an answer. `rate_limit`: a 429. `failed`: the server or the way to it is at fault.
    `refused`: the server works and says no. `dropped`: nobody waited for it.
    """

    kind: Kind
    retry_after_s: float | None = None
    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request in flight: its place in the order of sending, and all that was sent with it."""

    number: int
    round: int
    sent: tuple[float, ...]


class Limiter:
    """The window, the pause and the buckets.

    Args:
        most: the window's upper end.
        uniform: `random.uniform` or its like.
    """

    def __init__(self, most: int, uniform: Callable[[float, float], float]) -> None:
        self.most = most
        self.window = float(most)
        self.in_flight = 0
        self.paused_until = -math.inf
        self._uniform = uniform
        self._number = 0
        self._round = 0  # how often the window was halved
        self._strikes = 0  # halvings since the last answer
        self._sent = [0.0] * len(RESOURCES)
        self._buckets: dict[Resource, Bucket] = {}
        self._newest = -1

    def wait_s(self, now: float, cost: Cost) -> float:
        """Seconds until a request may go: 0 now, infinite until another comes back."""
        if self.in_flight >= max(1, int(self.window)):
            return math.inf
        wait = max(0.0, self.paused_until - now)
        for resource, bucket in self._buckets.items():
            sent = self._sent[RESOURCES.index(resource)]
            wait = max(wait, bucket.wait_s(now, sent, cost.of(resource)))
        return wait

    def start(self, cost: Cost) -> Ticket:
        """Count a request that goes now."""
        self.in_flight += 1
        self._number += 1
        for index, resource in enumerate(RESOURCES):
            self._sent[index] += cost.of(resource)
        return Ticket(self._number, self._round, tuple(self._sent))

    def done(self, ticket: Ticket, now: float, outcome: Outcome) -> None:
        """Learn from a request that came back."""
        self.in_flight -= 1
        if outcome.seen and ticket.number > self._newest:
            self._newest = ticket.number
            for seen in outcome.seen:
                sent = ticket.sent[RESOURCES.index(seen.resource)]
                self._buckets[seen.resource] = Bucket(seen, now, sent)
        if outcome.kind == "ok":
            self._strikes = 0
            self.window = min(float(self.most), self.window + 1.0 / self.window)
        elif outcome.kind == "rate_limit" and ticket.round == self._round:
            self._round += 1
            self._strikes += 1
            self.window = max(1.0, self.window * DECREASE)
            if outcome.retry_after_s is None:
                longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**self._strikes)
                self.pause(now, self._uniform(longest / 2, longest))
        if outcome.retry_after_s is not None and outcome.kind in ("rate_limit", "failed"):
            asked = outcome.retry_after_s
            self.pause(now, asked + self._uniform(0.0, min(1.0, STRETCH * asked)))

    def pause(self, now: float, seconds: float) -> None:
        """Let nothing go for so long."""
        self.paused_until = max(self.paused_until, now + seconds)
