"""What online learning keeps of a task, as the dashboard shows it: FOLDER/TASK/online/state.json.

Read leniently: what another version of it lacks is not shown. Knows the file's place and its keys;
learns and judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Final

from pydantic import Field, JsonValue, ValidationError

from stillhouse.core.statistics import Interval
from stillhouse.monitor.dashboard.shown import Shown
from stillhouse.monitor.state import task_folder

FOLDER: Final = "online"
STATE: Final = "state.json"


class GuardShown(Shown):
    """What the guard saw of a step."""

    answer: str = ""
    live: float | None = None
    new: float | None = None
    difference: Interval | None = None
    held_out_difference: Interval | None = None


class EventShown(Shown):
    """Something that was done: a step, a swap, a roll back, a deletion."""

    at: float = 0
    what: str = ""
    live: int = 0
    figures: Mapping[str, JsonValue] = Field(default_factory=dict)
    reason: str = ""

    @property
    def guard(self) -> GuardShown:
        """Of a step; empty where there are no such figures."""
        return _guard(self.figures)


class VersionShown(Shown):
    """A version of the student that can be rolled back to."""

    number: int = 0
    kind: str = ""
    parent: int | None = None
    made_at: float = 0
    path: str = ""
    guard: Mapping[str, JsonValue] = Field(default_factory=dict)
    contributors: tuple[Mapping[str, JsonValue], ...] = ()

    @property
    def figures(self) -> GuardShown:
        """What the guard saw of the step that made it."""
        return _guard(self.guard)


class AdapterShown(Shown):
    """An adapter of a tenant or a user."""

    owner: str = ""
    count: int = 0
    made_at: float = 0
    won: int = 0
    lost: int = 0
    harm: float = 0
    refused: str | None = None

    @property
    def tenant(self) -> str:
        """Whose it is, or whose user's."""
        return self.owner.partition("\n")[0]

    @property
    def user(self) -> str:
        """The beginning of the user's pseudonym; empty: it is the tenant's."""
        return self.owner.partition("\n")[2][:8]


class OnlineShown(Shown):
    """One task's online learning."""

    base: int = 0
    live: int = 0
    handed: int | None = None
    at: float = 0
    versions: tuple[VersionShown, ...] = ()
    adapters: tuple[AdapterShown, ...] = ()
    quarantined: tuple[str, ...] = ()
    counts: Mapping[str, int] = Field(default_factory=dict)
    events: tuple[EventShown, ...] = ()

    @property
    def waits(self) -> bool:
        """Whether the gateway was not given the live version yet."""
        return self.handed != self.live


class OnlineFiles:
    """`sources.Online` over loop.yaml's folder. The file is read again when it has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, int, int], OnlineShown | None]] = {}
        self._one = Lock()

    def online(self, task: str) -> OnlineShown | None:
        """See `sources.Online`; a file that cannot be read is as none."""
        path = task_folder(self._folder, task) / FOLDER / STATE
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            with self._one:
                known = self._known.get(task)
            if known is None or known[0] != stamp:
                known = (stamp, OnlineShown.model_validate_json(path.read_bytes()))
                with self._one:
                    self._known[task] = known
        except (OSError, ValidationError):
            return None
        return known[1]


def _guard(raw: Mapping[str, Any]) -> GuardShown:
    try:
        return GuardShown.model_validate(raw)
    except ValidationError:
        return GuardShown()
