"""What online learning has on disk: one state file that names all the others.

Rows lie in files named by their content, versions in folders of their own; state.json is replaced
last, so that a kill at any moment leaves the state before or the one after. Knows files; no model.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, JsonValue, ValidationError

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.jsonl import disk_errors, read_json, read_records, write_json, write_records
from stillhouse.core.locks import folder_lock
from stillhouse.core.records import Record
from stillhouse.models.adapter_files import FOLDER, delta_path
from stillhouse.retrain.online_buffer import Kept
from stillhouse.retrain.online_personal import AdapterNote
from stillhouse.retrain.online_trust import Tally

STATE: Final = "state.json"
CURRENT: Final = "current"
DIGITS: Final = 16
EVENTS: Final = 200


What = Literal["accept", "hold", "refuse", "swap", "roll_back", "forget"]


class Seen(Record):
    """The newest row of somebody that a version learned from."""

    id: str
    at: float
    tenant: str
    whose: str


class Version(Record):
    """One version of the student's last layer; `contributors` are all whose rows are in it."""

    number: int = Field(ge=0)
    kind: Literal["base", "learned", "rebuilt"]
    parent: int | None = None
    head: str = Field(description="SHA-256 of its numbers.")
    student: str = Field(description="SHA-256 of its folder.")
    path: str
    made_at: float
    seen: int = Field(default=0, ge=0, description="Lessons that had come before it.")
    guard: Mapping[str, JsonValue] = Field(default_factory=dict)
    contributors: tuple[Seen, ...] = ()


class Event(Record):
    """Something that was done, for people."""

    at: float
    what: What
    live: int = Field(ge=0, description="The version that was live after it.")
    figures: Mapping[str, JsonValue] = Field(
        default_factory=dict, description="Of a step: what the guard saw."
    )
    reason: str = ""


class OnlineState(Record):
    """state.json."""

    format: int = 1
    base: int = Field(default=0, description="The version that a retraining promoted.")
    live: int = 0
    handed: int | None = Field(default=None, description="The version that the gateway was given.")
    versions: tuple[Version, ...] = ()
    at: float = Field(default=0, description="Rows before this are read.")
    known: Mapping[str, str] = Field(default_factory=dict, description="Rows after it, by id.")
    times: Mapping[str, float] = Field(default_factory=dict, description="When these came in.")
    buffer: str = ""
    guard: str = ""
    personal: str = ""
    adapters: tuple[AdapterNote, ...] = ()
    seen: int = 0
    passed: int = 0
    new: int = Field(default=0, description="Lessons since the last step.")
    learned_to: int = Field(default=0, description="Lessons that an accepted step knew.")
    steps: int = 0
    tallies: Mapping[str, Tally] = Field(default_factory=dict)
    quarantined: tuple[str, ...] = Field(default=(), description="Tenants.")
    window: int = 0
    taken: Mapping[str, int] = Field(default_factory=dict, description="Rows in this window.")
    counts: Mapping[str, int] = Field(default_factory=dict)
    events: tuple[Event, ...] = Field(default=(), description="The newest, oldest first.")

    def happened(
        self, at: float, what: What, figures: Mapping[str, JsonValue], reason: str = ""
    ) -> OnlineState:
        """With one event more."""
        event = Event(at=at, what=what, live=self.live, figures=figures, reason=reason)
        return self.model_copy(update={"events": (*self.events, event)[-EVENTS:]})

    def version(self, number: int) -> Version:
        """One of the versions that are kept.

        Raises:
            UserError: there is no such version.
        """
        for one in self.versions:
            if one.number == number:
                return one
        kept = ", ".join(str(one.number) for one in self.versions)
        raise UserError("version", f"is not kept; there are {kept}", value=number)


class Store:
    """The folder FOLDER/TASK/online."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else learns for this task meanwhile.

        Raises:
            RunFolderError: somebody does.
        """
        said = "another process refines this student; wait for it or stop it"
        with folder_lock(self.root, "lock", said):
            yield

    def read(self) -> OnlineState | None:
        """The state, or `None` where nothing was learned yet.

        Raises:
            UserError: it is damaged.
        """
        path = self.root / STATE
        if not path.exists():
            return None
        try:
            return OnlineState.model_validate(read_json(path))
        except (RunFolderError, ValidationError) as error:
            raise UserError(
                str(path), f"is damaged: {str(error).splitlines()[0]}", action="restore a backup"
            ) from None

    def rows(self, name: str) -> list[Kept]:
        """A file of rows; none where there is no name."""
        return list(read_records(self.root / name, Kept)) if name else []

    def write_rows(self, kind: str, rows: Sequence[Kept]) -> str:
        """Write rows under their content's name; the name."""
        digest = hashlib.sha256("\n".join(one.to_json() for one in rows).encode()).hexdigest()
        name = f"{kind}-{digest[:DIGITS]}.jsonl"
        if not (self.root / name).exists():
            write_records(self.root / name, rows)
        return name

    def head_path(self, digest: str) -> Path:
        """Where a head lies."""
        return self.root / "heads" / f"{digest}.safetensors"

    def delta_path(self, digest: str) -> Path:
        """Where an adapter's numbers lie."""
        return delta_path(self.root, digest)

    def commit(self, state: OnlineState) -> None:
        """Make it the state, then take away what it no longer names."""
        write_json(self.root / STATE, state.model_dump(mode="json"))
        named = {state.buffer, state.guard, state.personal}
        for path in self.root.glob("*-*.jsonl"):
            if path.name not in named:
                path.unlink()
        deltas = {one.delta for one in state.adapters}
        for path in (self.root / FOLDER).glob("*"):
            if path.stem not in deltas:
                path.unlink()
        heads = {one.head for one in state.versions}
        for path in (self.root / "heads").glob("*"):
            if path.stem not in heads:
                path.unlink()
        folders = {Path(one.path).name for one in state.versions if one.kind != "base"}
        for path in (self.root / "versions").glob("*"):
            if path.name not in folders:
                shutil.rmtree(path)

    def point(self, version: Version) -> None:
        """Let the link `current` name a version's folder, at once or not at all."""
        part = self.root / f"{CURRENT}.tmp"
        with disk_errors(self.root):
            part.unlink(missing_ok=True)
            part.symlink_to(Path(version.path).resolve(), target_is_directory=True)
            part.replace(self.root / CURRENT)
