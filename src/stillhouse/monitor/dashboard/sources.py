"""What the dashboard asks of the other parts: Protocols alone. Knows no database and no file.

All of it may block; pages are made in threads. Whoever wires them together says which parts there
are: a part that is `None` has no page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stillhouse.core.errors import UserError
from stillhouse.core.live_pages import Asked, Hour, Place, RowsPage
from stillhouse.evaluate.fallback_frontier import FallbackFrontier
from stillhouse.evaluate.studies import FrontierStudy
from stillhouse.monitor.dashboard.online_files import OnlineShown
from stillhouse.monitor.dashboard.shown import AlertShown, ExperimentShown, RunShown, WindowShown


class ConflictError(UserError):
    """Another operator changed it first: nothing was done."""


class Usage(Protocol):
    """Sums of the traffic."""

    def totals(self) -> Sequence[Hour]:
        """All hours of each task together; a task may come several times."""

    def hours(self, task: str | None, since: int) -> Sequence[Hour]:
        """By the hour, from one on (Unix seconds over 3,600)."""

    def days(self, since: int) -> Sequence[Hour]:
        """By the day, as its first hour, likewise."""

    def latencies(self, task: str, count: int) -> Sequence[float]:
        """Milliseconds that the newest so many requests took."""


class Traffic(Protocol):
    """Requests with their answers."""

    def page(self, asked: Asked, after: Place | None = None, count: int = 25) -> RowsPage:
        """Newest first."""


class Experiments(Protocol):
    """How far each student has taken over."""

    def now(self) -> Mapping[str, ExperimentShown]:
        """By task: state and newest numbers, without course and decisions."""

    def whole(self, task: str) -> ExperimentShown:
        """With course and decisions."""

    def act(self, task: str, action: str, *, reason: str, by: str, version: int) -> None:
        """Do something by hand.

        Raises:
            ConflictError: the state is at another version by now.
            UserError: the action does not fit the state.
        """


class Watch(Protocol):
    """What watching found; empty where nothing watches."""

    def windows(self, task: str) -> Sequence[WindowShown]:
        """The newest, oldest first."""

    def alerts(self, task: str) -> Sequence[AlertShown]:
        """The newest, oldest first."""


class Runs(Protocol):
    """Run folders of the students."""

    def listed(self) -> Sequence[RunShown]:
        """Without their curves."""

    def run(self, name: str) -> RunShown | None:
        """One with its curves; `None`: there is none of this name."""


class Frontiers(Protocol):
    """Studies of quality against cost."""

    def studies(self) -> Mapping[str, FrontierStudy]:
        """Of students of several sizes, by the run that they lie in."""

    def fallbacks(self) -> Mapping[str, FallbackFrontier]:
        """Of how sure a student must be, likewise."""


class Online(Protocol):
    """What is learned between retrainings."""

    def online(self, task: str) -> OnlineShown | None:
        """Where it stands; `None`: nothing was learned yet."""


class Student(Protocol):
    """A student of the registry."""

    @property
    def id(self) -> str:
        """Of its content."""

    @property
    def task(self) -> str:
        """What it does."""

    @property
    def created_at(self) -> float:
        """Unix seconds."""

    @property
    def parent(self) -> str | None:
        """Which student it comes after."""

    @property
    def lineage(self) -> Mapping[str, Any]:
        """What it was made of."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """How good it is."""

    @property
    def stage(self) -> str:
        """candidate, shadow, canary, live or retired."""

    @property
    def version(self) -> int:
        """Of its task's state."""

    @property
    def aliases(self) -> Sequence[str]:
        """live, previous, and others."""


class Move(Protocol):
    """One line of the registry's log."""

    @property
    def at(self) -> float:
        """Unix seconds."""

    @property
    def by(self) -> str:
        """Who did it."""

    @property
    def ref(self) -> str:
        """Which student."""

    @property
    def from_stage(self) -> str | None:
        """None: it was added."""

    @property
    def to_stage(self) -> str | None:
        """None: it was removed."""

    @property
    def reason(self) -> str:
        """As it was given."""


class Students(Protocol):
    """The registry."""

    def entries(self, task: str | None = None) -> Sequence[Student]:
        """Newest first."""

    def gates(self, task: str) -> Mapping[str, str]:
        """By id, how sure each must be to answer for itself, in few words; `none`: no gate."""

    def history(self, task: str) -> Sequence[Move]:
        """Oldest first."""

    def version(self, task: str) -> int:
        """Of the task's state."""

    @property
    def follows(self) -> bool:
        """Whether the gateway is told who is live."""

    def promote(self, ref: str, *, reason: str, by: str, version: int) -> str | None:
        """Make it the live one; what is left to do where the gateway does not answer with it.

        Raises:
            ConflictError: the task is at another version by now.
            UserError: it cannot be.
        """

    def roll_back(self, task: str, *, reason: str, by: str, version: int) -> str | None:
        """Make the previous one live again; answers and raises likewise."""


@dataclass(frozen=True, slots=True)
class Sources:
    """All of it."""

    tasks: tuple[str, ...]
    usage: Usage
    traffic: Traffic
    experiments: Experiments
    watch: Watch | None = None
    runs: Runs | None = None
    frontiers: Frontiers | None = None
    students: Students | None = None
    online: Online | None = None
