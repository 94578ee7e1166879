"""Reading a registry: every entry, log and folder verified as it is read. Writes nothing.

    ROOT/objects/DIGEST/        a student's files, read-only (registry_objects)
    ROOT/entries/ID.json        what is known of it, written once
    ROOT/tasks/TASK/            the log of moves and its head (registry_log)
    ROOT/live/TASK              a link to the live student's folder

An entry is verified against its checksum, which the log holds too, and a folder against its digest.
They find damage and edits by hand; they do not stop who rewrites log, head and entries together
(`head` is what to keep elsewhere against that). Takes no lock. Knows no gateway and no model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.jsonl import read_json
from stillhouse.retrain.registry_log import TaskLog, TaskState, checksum_of
from stillhouse.retrain.registry_objects import is_whole
from stillhouse.retrain.registry_records import (
    LIVE,
    Entry,
    Move,
    Student,
    TamperedError,
    checked_name,
)


class RegistryReader:
    """A registry's folder. One that does not exist holds no student."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self.root = root
        self._clock = clock

    def get(self, ref: str) -> Entry:
        """A student by its id, the beginning of one, or TASK@ALIAS.

        Raises:
            UserError: there is none, or more than one.
            TamperedError: what is known of it was changed by other means.
        """
        task, state, name = self._found(ref)
        return self._entry(task, state, name)

    def entries(self, task: str | None = None) -> list[Entry]:
        """All students, or a task's; the one added last is first."""
        found = [
            self._entry(name, state, ref)
            for name, state in self._states().items()
            if task in (None, name)
            for ref in state.stages
        ]
        return sorted(found, key=lambda entry: (entry.created_at, entry.id), reverse=True)

    def folder(self, ref: str) -> Path:
        """A student's files, verified.

        Raises:
            TamperedError: they are not those that were added.
        """
        digest = self.get(ref).digest
        folder = self.root / "objects" / digest
        if not folder.is_dir():
            raise TamperedError(folder, "is gone", self.root)
        if not is_whole(folder):
            raise TamperedError(folder, "holds other files than were added", self.root)
        return folder

    def live(self, task: str) -> Entry | None:
        """The live student of a task; its files are at `ROOT/live/TASK` too."""
        state = self._state(task)
        return None if state.live is None else self._entry(task, state, state.live)

    def version(self, task: str) -> int:
        """How often the task's state was changed; 0 for a task that is not known."""
        return self._state(task).version

    def head(self, task: str) -> str:
        """Digest of the last line of a task's log: who keeps it elsewhere can tell a log that was
        rewritten as a whole."""
        return self._state(task).head

    def history(self, task: str) -> list[Move]:
        """All moves of a task, oldest first."""
        return list(self._state(task).moves)

    def tasks(self) -> list[str]:
        """Tasks that have students, or had."""
        return list(self._states())

    def verify(self) -> list[str]:
        """Read all there is, and say what is not as it was written: a line a problem."""
        problems: list[str] = []
        for task in self._task_names():
            try:
                state = TaskLog(self.root, task).read()
            except TamperedError as error:
                problems.append(f"{error.field}: {error.problem}")
                continue
            for ref in state.stages:
                try:
                    self._entry(task, state, ref)
                    self.folder(ref)
                except TamperedError as error:
                    problems.append(f"{error.field}: {error.problem}")
            problems += self._link_problems(task, state)
        return problems

    def _found(self, ref: str) -> tuple[str, TaskState, str]:
        task, at, alias = ref.partition("@")
        states = self._states()
        if at:
            state = states.get(task, TaskState())
            if alias in state.aliases:
                return task, state, state.aliases[alias]
            known = ", ".join(f"{task}@{name}" for name in sorted(state.aliases)) or "none"
            raise UserError("ref", f"no such alias; known: {known}", value=ref)
        found = [
            (name, state, id_)
            for name, state in states.items()
            for id_ in state.stages
            if ref and id_.startswith(ref)
        ]
        if len(found) == 1:
            return found[0]
        problem = "several students begin so" if found else f"no such student in {self.root}"
        raise UserError("ref", problem, value=ref, action="see: stillhouse registry list")

    def _entry(self, task: str, state: TaskState, name: str) -> Entry:
        path = self._entry_path(name)
        try:
            told = read_json(path)
            checksum = told.pop("checksum", None)
            student = Student.model_validate(told)
        except RunFolderError:
            raise TamperedError(path, "is gone, or is no JSON object", self.root) from None
        except ValidationError as error:
            raise TamperedError(
                path, f"was changed: {error.errors()[0]['msg']}", self.root
            ) from None
        if not checksum == checksum_of(told) == state.entries[name] or student.task != task:
            raise TamperedError(path, "was changed: its checksum does not fit", self.root)
        return Entry(
            **dict(student),
            stage=state.stages[name],
            version=state.version,
            aliases=tuple(sorted(a for a, ref in state.aliases.items() if ref == name)),
        )

    def _entry_path(self, name: str) -> Path:
        return self.root / "entries" / f"{name}.json"

    def _task_names(self) -> list[str]:
        folders = (self.root / "tasks", self.root / LIVE)
        names = {path.name for f in folders if f.is_dir() for path in f.iterdir()}
        return sorted(name for name in names if not name.startswith("."))

    def _states(self) -> dict[str, TaskState]:
        read = {task: TaskLog(self.root, task).read() for task in self._task_names()}
        return {task: state for task, state in read.items() if state.version}

    def _state(self, task: str) -> TaskState:
        return TaskLog(self.root, checked_name("task", task)).read()

    def _link_problems(self, task: str, state: TaskState) -> Iterator[str]:
        link = self.root / LIVE / task
        live = None if state.live is None else self._entry_digest(state, state.live)
        if not state.version:
            if link.is_symlink() and link.exists():
                yield f"{link}: is of a task that has no log"
        elif not link.is_symlink() or os.readlink(link) != TaskLog(self.root, task).gateway_link:
            yield f"{link}: does not lead to {self.root / 'tasks' / task / 'current' / LIVE}"
        elif (link.resolve().name if link.exists() else None) != live:
            yield f"{link}: does not lead to the live student"

    def _entry_digest(self, state: TaskState, name: str) -> str | None:
        try:
            return Student.model_validate(
                {k: v for k, v in read_json(self._entry_path(name)).items() if k != "checksum"}
            ).digest
        except (RunFolderError, ValidationError):
            return None
