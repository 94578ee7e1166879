"""What the server asks of the other parts: who answers, where experiments stand, who may ask.

Protocols alone; `in_memory` has doubles. All are called on the event loop and must not block, but
for those that say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from stillhouse.core.gateway_log import GatewayCall
from stillhouse.serve.batches import BatchWork
from stillhouse.serve.presence import Presence
from stillhouse.serve.records import Assignment, Decision, ExperimentState, Outcome, Served


class Principal(NamedTuple):
    """Who a client key belongs to."""

    tenant: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether the key covers a task's name, or `feedback`."""
        return "*" in self.scopes or scope in self.scopes


class Verdict(NamedTuple):
    """Whether a student's answer is good enough to be shown. `probability` None: nothing says how
    sure the student is."""

    probability: float | None
    accept: bool


class Assigner(Protocol):
    """Who answers a request."""

    def assign(
        self,
        task: str,
        user: str | None,
        conversation: str | None,
        request_id: str,
        state: ExperimentState,
    ) -> Assignment:
        """Decide; the same for one unit as long as the state stays."""


class States(Protocol):
    """Where each task's experiment stands."""

    def get(self, task: str) -> ExperimentState:
        """The newest known state; from memory."""

    def swap(self, old_version: int, new: ExperimentState, decision: Decision) -> bool:
        """Replace a state if its version is still the old one; may block."""


class Log(Protocol):
    """The traffic log."""

    def offer(self, call: GatewayCall, served: Served, weight: int | None = None) -> bool:
        """Take a request; False: it was dropped, and counted.

        Args:
            weight: about how many bytes it takes in memory, where the caller knows.
        """

    def outcome(self, outcome: Outcome) -> None:
        """Take what came of a request; may block."""

    def scores(self, outcomes: Sequence[Outcome]) -> int:
        """Take scores without texts, all at once; how many, without those of requests that are not
        known. May block."""

    def owner(self, request: str) -> str | None:
        """The tenant of a request, `None` for one that is not known; may block."""


class Keys(Protocol):
    """Client keys."""

    def check(self, presented: str) -> Principal | None:
        """Who presents a key; `None`: nobody."""


class KeyInfo(NamedTuple):
    """A key as it may be shown: without its secret."""

    id: str
    tenant: str
    scopes: frozenset[str]
    made_at: float
    revoked_at: float | None


class KeyStore(Protocol):
    """Keys that are made and revoked while the gateway runs; all of it may block."""

    def make(self, tenant: str, scopes: Iterable[str], now: float) -> str:
        """A new key: the only time that its text is seen."""

    def revoke(self, identity: str, now: float) -> bool:
        """Refuse a key from now on; False: there is none that holds."""

    def listed(self) -> list[KeyInfo]:
        """All keys, oldest first."""


class KeptCalls(Protocol):
    """The requests that are kept, for whom they belong to; all of it may block."""

    def forget(self, tenant: str, user: str) -> tuple[int, int]:
        """Delete all of one user: how many requests and outcomes went."""

    def lines(self, task: str | None, since: float | None) -> Iterator[str]:
        """Requests as lines of the gateway's log (`core.gateway_log`), oldest first.

        Args:
            since: Unix seconds.
        """


class GatePlan(NamedTuple):
    """What a gate needs of a student's answer.

    `alternatives` a token; of a stream its first `window` tokens, `None`: all of it; `samples` more
    answers at `sampling_temperature`. `calibrated`: it was fitted to the shared student's answers.
    """

    alternatives: int = 2
    window: int | None = None
    samples: int = 0
    sampling_temperature: float = 0.0
    calibrated: bool = False


class Gate(Protocol):
    """Whether a student's answer may be shown."""

    def plan(self, task: str) -> GatePlan | None:
        """What is needed of a task's answers; `None`: they are all shown."""

    async def about(self, task: str, body: Mapping[str, Any]) -> Mapping[str, float]:
        """Features of the request itself."""

    def agreement(self, task: str, texts: Sequence[str]) -> Mapping[str, float]:
        """Features of several answers to one request, the one to be shown first."""

    def confident(self, task: str, features: Mapping[str, float], *, whole: bool = True) -> Verdict:
        """The probability that it is acceptable, and whether that is enough.

        Args:
            whole: the features are of a whole answer, not of the head of a stream, which may be all
                of it.
        """


class Scores(Protocol):
    """What scores answers beside their way, asking judges behind upstreams."""

    async def run(self, upstreams: Mapping[str, Any]) -> None:
        """Score what comes, until cancelled."""

    async def flush(self) -> None:
        """Score all that waits."""


class Experiments(Protocol):
    """What moves experiments by their evidence; all of it may block."""

    def tick(self, now: float) -> object:
        """Look at what is new, and decide; in a thread, about once a second."""

    def view(self, name: str) -> dict[str, Any]:
        """What an admin is shown of one."""

    def students(self, found: Mapping[str, str], now: float) -> None:
        """Which student each task has, where that is known only now; another one begins afresh."""


class Beside(Protocol):
    """An application of somebody else's on the admin port: the dashboard."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request (ASGI)."""

    def stop(self) -> None:
        """End what never ends by itself; on the event loop."""

    def close(self) -> None:
        """Let go what it reads."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the server is given. `keys` is None where everybody is let in, `gate` where every
    student's answer is shown. `last` is a task's newest decision; it may block. `pseudonym` is what
    stands for a tenant's user wherever users are kept; None: nobody is known by one.
    `unreadable`: stored rows by task that could not be read as evidence since the last call."""

    assigner: Assigner
    states: States
    log: Log
    keys: Keys | None = None
    gate: Gate | None = None
    key_store: KeyStore | None = None
    calls: KeptCalls | None = None
    batches: BatchWork | None = None
    scores: Scores | None = None
    experiments: Experiments | None = None
    presence: Presence | None = None
    last: Callable[[str], Decision | None] | None = None
    unreadable: Callable[[], Mapping[str, int]] = dict
    pseudonym: Callable[[str, str], str] | None = None
