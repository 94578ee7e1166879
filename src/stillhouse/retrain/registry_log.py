"""A task's log of moves, and the state that follows from it: who is live, and what is called what.

The log is a chain: each line holds the SHA-256 of the line before it, and the head that of the
last, so that a line changed, dropped or added is found. What is committed is what `current` points
to: a folder with the head (how many bytes of the log count) and a link to the live student. Lines
are appended first, then the new head is laid out, then `current` is renamed over: a crash leaves
the old state or the new one, for who reads the log and for who follows the link alike. Knows no
student's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import disk_errors, read_json, write_json
from stillhouse.retrain.registry_records import (
    ALLOWED,
    LIVE,
    PREVIOUS,
    PROMOTED_FROM,
    Move,
    Stage,
    TamperedError,
)

GENESIS: Final = "0" * 64
MOVES: Final = "moves.jsonl"
CURRENT: Final = "current"
HEADS: Final = "heads"
HEAD: Final = "head.json"
_READS: Final = 10


@dataclass(frozen=True, slots=True)
class TaskState:
    """What the moves of a task come to.

    `stages` and `entries` (checksums) are by id; `trail` names the students that were live, oldest
    first, with those taken out that were rolled back: its last is live, or was last.
    """

    version: int = 0
    moves: tuple[Move, ...] = ()
    stages: Mapping[str, Stage] = field(default_factory=dict)
    entries: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    trail: tuple[str, ...] = ()
    head: str = GENESIS
    size: int = 0

    @property
    def live(self) -> str | None:
        """Id of the live student."""
        if self.trail and self.stages[self.trail[-1]] == LIVE:
            return self.trail[-1]
        return None

    @property
    def previous(self) -> str | None:
        """Id of the student that a roll back makes live."""
        before = self.trail[:-1] if self.live else self.trail
        return before[-1] if before else None

    @property
    def aliases(self) -> dict[str, str]:
        """All aliases: those that were set, and the two that follow from the moves."""
        own = {LIVE: self.live, PREVIOUS: self.previous}
        return dict(self.named) | {name: ref for name, ref in own.items() if ref is not None}


class Step(NamedTuple):
    """A line to be written, and the state after it."""

    move: Move
    line: str
    state: TaskState


def after(state: TaskState, move: Move, line: str) -> TaskState:
    """The state after one more line.

    Raises:
        ValueError: such a move cannot follow.
    """
    if move.previous != state.head:
        raise ValueError("does not hold the digest of the line before it")
    if move.version not in (state.version, state.version + 1):
        raise ValueError(f"is of version {move.version}, after {state.version}")
    stages, entries = dict(state.stages), dict(state.entries)
    named, trail = dict(state.named), state.trail
    ref, begin, end = move.ref, move.from_stage, move.to_stage
    if stages.get(ref) != begin:
        raise ValueError(f"{ref} was not {begin}")
    match move.action:
        case "add" if begin is None and end == "candidate" and move.entry is not None:
            entries[ref] = move.entry
        case "move" if begin is not None and end in ALLOWED[begin]:
            pass
        case "promote" if begin in PROMOTED_FROM and end == LIVE and state.live is None:
            trail = trail if trail[-1:] == (ref,) else (*trail, ref)
        case "promote" if begin == LIVE and end == "retired":
            pass
        case "roll_back" if begin == LIVE and end == "retired" and state.previous is not None:
            trail = trail[:-1]
        case "roll_back" if end == LIVE and state.live is None and state.previous == ref:
            pass
        case "alias" if begin is not None and begin == end and move.alias not in _OWN:
            named[str(move.alias)] = ref
        case "unalias" if begin == end and named.get(str(move.alias)) == ref:
            del named[str(move.alias)]
        case "remove" if begin == "retired" and end is None and ref not in state.aliases.values():
            del entries[ref]
            trail = _without(trail, ref)
        case _:
            raise ValueError(f"{move.action} from {begin} to {end} is no move that there is")
    if end is None:
        del stages[ref]
    else:
        stages[ref] = end
    return TaskState(
        version=move.version,
        moves=(*state.moves, move),
        stages=stages,
        entries=entries,
        named=named,
        trail=trail,
        head=hashlib.sha256(line.encode("utf-8")).hexdigest(),
        size=state.size + len(line.encode("utf-8")) + 1,
    )


_OWN: Final = (None, LIVE, PREVIOUS)


def _without(trail: tuple[str, ...], ref: str) -> tuple[str, ...]:
    left: tuple[str, ...] = ()
    for name in trail:
        if name != ref and left[-1:] != (name,):
            left = (*left, name)
    return left


class TaskLog:
    """The log of one task, in a folder of its own below the registry's."""

    def __init__(self, root: Path, task: str) -> None:
        self.root, self.task = root, task
        self.folder = root / "tasks" / task
        self.path = self.folder / MOVES

    def read(self) -> TaskState:
        """The state, with every line of the log verified.

        Raises:
            TamperedError: the log or its head is not what was written.
        """
        for left in reversed(range(_READS)):
            try:
                link = os.readlink(self.folder / CURRENT)
            except OSError:
                return self._never_committed()
            head = self.folder / link / HEAD
            try:
                return self._replayed(read_json(head), head)
            except RunFolderError as error:
                # Another process committed, and cleared this head away, between the two reads.
                if left and _points_to(self.folder / CURRENT) != link:
                    continue
                raise self._tampered(head, f"cannot be read ({error})") from None
        raise AssertionError

    def _never_committed(self) -> TaskState:
        """Nothing, unless there are traces of more than a first step that was cut short."""
        heads = self.folder / HEADS
        beyond = [p for p in heads.iterdir() if p.name != "1"] if heads.is_dir() else []
        if (self.folder / CURRENT).exists() or beyond:
            raise self._tampered(self.folder / CURRENT, "is gone, or is no link")
        return TaskState()

    def _replayed(self, head: Mapping[str, object], path: Path) -> TaskState:
        told = {name: value for name, value in head.items() if name != "checksum"}
        if head.get("checksum") != checksum_of(told):
            raise self._tampered(path, "was changed: its checksum does not fit")
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise self._tampered(self.path, f"cannot be read ({error.strerror})") from None
        size = told.get("size")
        state = TaskState()
        if not isinstance(size, int) or len(data) < size:
            raise self._tampered(self.path, "is cut off")
        for number, raw in enumerate(data[:size].split(b"\n")[:-1], start=1):
            try:
                line = raw.decode("utf-8")
                move = Move.model_validate_json(line)
                if move.task != self.task:
                    raise ValueError(f"is of another task, {move.task}")
                state = after(state, move, line)
            except ValidationError as error:
                problem = f"line {number} was changed: {error.errors()[0]['msg']}"
                raise self._tampered(self.path, problem) from None
            except ValueError as error:
                raise self._tampered(self.path, f"line {number} was changed: {error}") from None
        if (state.head, state.version, state.size, self.task) != (
            told.get("head"),
            told.get("version"),
            size,
            told.get("task"),
        ):
            raise self._tampered(self.path, "does not end as its head says")
        return state

    def step(self, state: TaskState, move: Mapping[str, object]) -> Step:
        """A line that follows a state; a move that cannot follow is a programmer's error."""
        made = Move.model_validate({"task": self.task, "previous": state.head, **move})
        line = made.to_json()
        return Step(made, line, after(state, made, line))

    def commit(self, before: TaskState, steps: Sequence[Step], live: str | None) -> None:
        """Make the steps last, all or none. `live` is the path of the live student's folder, as
        seen from the registry's own. The registry is locked by who calls.

        Raises:
            RunFolderError: the disk is full, or cannot be written.
        """
        state = steps[-1].state
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._link_for_gateways()
            self._append(before.size, "".join(step.line + "\n" for step in steps))
            name = f"{HEADS}/{state.version}"
            head = self.folder / name
            shutil.rmtree(head, ignore_errors=True)
            head.mkdir(parents=True)
            if live is not None:
                os.symlink(f"../../../../{live}", head / LIVE)
            told = {
                "format": 1,
                "task": self.task,
                "version": state.version,
                "size": state.size,
                "head": state.head,
            }
            write_json(head / HEAD, told | {"checksum": checksum_of(told)})
            _sync(head)
            swap_link(self.folder / CURRENT, name)
            for other in (self.folder / HEADS).iterdir():
                if other != head:
                    shutil.rmtree(other, ignore_errors=True)

    def _append(self, size: int, text: str) -> None:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(handle, size)  # lines that a killed process had not committed
            os.lseek(handle, size, os.SEEK_SET)
            view = memoryview(text.encode("utf-8"))
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)

    def _link_for_gateways(self) -> None:
        """`ROOT/live/TASK`: never changed again, since it leads through `current`."""
        link = self.root / LIVE / self.task
        if _points_to(link) != self.gateway_link:
            link.parent.mkdir(exist_ok=True)
            swap_link(link, self.gateway_link)

    @property
    def gateway_link(self) -> str:
        """What `ROOT/live/TASK` has to say."""
        return f"../tasks/{self.task}/{CURRENT}/{LIVE}"

    def _tampered(self, path: Path, problem: str) -> TamperedError:
        return TamperedError(path, problem, self.root)


def checksum_of(value: Mapping[str, object]) -> str:
    """SHA-256 over an object's JSON, keys in order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def swap_link(path: Path, target: str) -> None:
    """Have a link point elsewhere, in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _points_to(link: Path) -> str | None:
    try:
        return os.readlink(link)
    except OSError:
        return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
