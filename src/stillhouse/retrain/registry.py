"""The registry of students: what was trained, from what, how good it was, and which one is live.

What there is on disk, and how it is verified, says registry_reader. Here it is changed: writers
take turns by a lock, a version says whether somebody else was first, and each change is one step
(registry_log). Knows no gateway and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors, write_json
from stillhouse.core.locks import folder_lock
from stillhouse.retrain.registry_log import Step, TaskLog, TaskState, checksum_of
from stillhouse.retrain.registry_objects import (
    leftovers,
    remove_object,
    store_object,
)
from stillhouse.retrain.registry_reader import RegistryReader
from stillhouse.retrain.registry_records import (
    ALLOWED,
    LIVE,
    PREVIOUS,
    PROMOTED_FROM,
    STAGES,
    ConflictError,
    Entry,
    Move,
    Stage,
    Student,
    TamperedError,
    checked_name,
    id_of,
)

__all__ = ["ConflictError", "Entry", "Move", "Registry", "Stage", "TamperedError"]

LOCK_WAIT_S: Final = 60.0


class Registry(RegistryReader):
    """A registry's folder, made by the first `add`."""

    def add(
        self,
        folder: Path,
        *,
        task: str,
        lineage: Mapping[str, JsonValue],
        metrics: Mapping[str, JsonValue],
        artefacts: Mapping[str, str] | None = None,
        parent: str | None = None,
        by: str = "",
        reason: str = "",
    ) -> Entry:
        """Take a copy of a student's folder, as a candidate. The same files twice are the same
        entry, as it was added first; a stored copy that was damaged is replaced.

        Raises:
            UserError: no student's folder, an artefact that is not in it, a parent that is not
                known, or the same files under another task.
        """
        checked_name("task", task)
        for name, path in (artefacts or {}).items():
            if not (folder / path).exists() or not _inside(folder, path):
                raise UserError(
                    f"artefacts.{name}", f"is not in {folder}", value=path, action="name its path"
                )
        if parent is not None:
            parent = self.get(parent).id
        digest = store_object(folder, self.root / "objects")
        with self._locked():
            known = self._states()
            for other, state in known.items():
                if id_of(digest) in state.stages:
                    found = self._entry(other, state, id_of(digest))
                    if found.digest != digest:
                        raise UserError(str(folder), "has an id that is taken", value=found.id)
                    if other != task:
                        raise UserError(
                            "task",
                            f"these files are registered as {found.id} of task {other}",
                            value=task,
                            action="leave them there, or add a folder of other files",
                        )
                    return found
            if not (self.root / "objects" / digest).is_dir():
                # Swept by a `remove` that had the lock first.
                digest = store_object(folder, self.root / "objects")
            student = Student(
                id=id_of(digest),
                digest=digest,
                task=task,
                created_at=self._clock(),
                parent=parent,
                lineage=lineage,
                metrics=metrics,
                artefacts=artefacts or {},
            )
            told = student.model_dump(mode="json")
            checksum = checksum_of(told)
            with disk_errors(self.root):
                write_json(self._entry_path(student.id), told | {"checksum": checksum})
            self._commit(
                task,
                known.get(task, TaskState()),
                [
                    {
                        "action": "add",
                        "ref": student.id,
                        "to_stage": "candidate",
                        "entry": checksum,
                        "by": by,
                        "reason": reason,
                    }
                ],
            )
        return self.get(student.id)

    def move(
        self, ref: str, stage: Stage, *, reason: str, by: str, version: int | None = None
    ) -> Entry:
        """Put a student on another stage; to `live` is `promote`. Where it stands already, nothing
        is done.

        Raises:
            UserError: no such student, or no such move.
            ConflictError: `version` is given and the task's is another by now.
        """
        if stage == LIVE:
            return self.promote(ref, reason=reason, by=by, version=version)
        if stage not in STAGES:
            raise UserError("stage", f"has to be one of {', '.join(STAGES)}", value=stage)
        with self._locked():
            task, state, name = self._found(ref)
            _current(task, state, version)
            begin = state.stages[name]
            if begin != stage:
                if stage not in ALLOWED[begin]:
                    raise UserError(
                        "stage",
                        f"{name} is {begin}: from there it may become {_either(ALLOWED[begin])}",
                        value=stage,
                        action="retire the live one by promoting another" if begin == LIVE else "",
                    )
                told = {"action": "move", "from_stage": begin, "to_stage": stage}
                self._commit(task, state, [told | {"ref": name, "by": by, "reason": reason}])
        return self.get(name)

    def promote(self, ref: str, *, reason: str, by: str, version: int | None = None) -> Entry:
        """Make a student live. The one that was is retired, and has the alias `previous`.

        Raises:
            UserError: no such student, or it is retired.
            ConflictError: `version` is given and the task's is another by now.
            TamperedError: its files are not those that were added.
        """
        name = self.get(ref).id
        self.folder(name)
        with self._locked():
            task, state, name = self._found(ref if "@" in ref else name)
            _current(task, state, version)
            begin = state.stages[name]
            if begin == LIVE:
                return self._entry(task, state, name)
            if begin not in PROMOTED_FROM:
                raise UserError(
                    "ref",
                    f"{name} is {begin}",
                    value=ref,
                    action=f"first: stillhouse registry move {name} candidate",
                )
            common = {"action": "promote", "by": by, "reason": reason}
            lines = [] if state.live is None else [{**common, **_retired(state.live)}]
            lines.append({**common, "ref": name, "from_stage": begin, "to_stage": LIVE})
            self._commit(task, state, lines)
        return self.get(name)

    def roll_back(self, task: str, *, reason: str, by: str, version: int | None = None) -> Entry:
        """Make the student live that was before. Done twice, it goes back by two.

        Raises:
            UserError: none was live before.
            ConflictError: `version` is given and the task's is another by now.
            TamperedError: that student's files are not those that were added.
        """
        with self._locked():
            state = self._state(task)
            _current(task, state, version)
            name = state.previous
            if name is None:
                raise UserError(
                    "task",
                    "no student of it was live before",
                    value=task,
                    action="promote one: stillhouse registry list",
                )
            self.folder(name)
            common = {"action": "roll_back", "by": by, "reason": reason}
            lines = [] if state.live is None else [{**common, **_retired(state.live)}]
            begin = state.stages[name]
            lines.append({**common, "ref": name, "from_stage": begin, "to_stage": LIVE})
            self._commit(task, state, lines)
        return self.get(name)

    def alias(
        self,
        task: str,
        name: str,
        ref: str | None,
        *,
        by: str = "",
        reason: str = "",
        version: int | None = None,
    ) -> Entry | None:
        """Have `TASK@NAME` mean a student of the task; no `ref`: have it mean nothing.

        Raises:
            UserError: `live` and `previous` follow from the moves; or no such student.
            ConflictError: `version` is given and the task's is another by now.
        """
        checked_name("alias", name)
        if name in (LIVE, PREVIOUS):
            raise UserError(
                "alias", "follows from the moves", value=name, action="use promote, or rollback"
            )
        with self._locked():
            state = self._state(task)
            _current(task, state, version)
            if ref is None:
                found, action = state.named.get(name), "unalias"
                if found is None:
                    raise UserError("alias", f"task {task} has none of this name", value=name)
            else:
                owner, _, found = self._found(ref)
                action = "alias"
                if owner != task:
                    raise UserError("ref", f"{found} is a student of task {owner}", value=ref)
            stage = state.stages[found]
            if action == "unalias" or state.named.get(name) != found:
                told = {"action": action, "alias": name, "from_stage": stage, "to_stage": stage}
                self._commit(task, state, [told | {"ref": found, "by": by, "reason": reason}])
        return self.get(found) if ref is not None else None

    def remove(self, refs: Mapping[str, list[str]], *, by: str, reason: str) -> None:
        """Take retired students out, and delete their files and what killed processes left.
        `refs` are ids by task; `registry_gc` says which may go.

        Raises:
            UserError: one is not retired, or has an alias.
        """
        with self._locked():
            for task, names in refs.items():
                state = self._state(task)
                for name in names:
                    if state.stages.get(name) != "retired" or name in state.aliases.values():
                        raise UserError("ref", "is not retired, or has an alias", value=name)
                if names:
                    told = {"action": "remove", "from_stage": "retired", "by": by, "reason": reason}
                    self._commit(task, state, [{**told, "ref": name} for name in names])
            self._sweep()

    def _sweep(self) -> None:
        """Delete files that no entry names. An `add` at work holds no lock while it copies: what
        it has not renamed yet is left alone for an hour."""
        known = {id_ for state in self._states().values() for id_ in state.stages}
        objects = self.root / "objects"
        with disk_errors(self.root):
            for path in (self.root / "entries").glob("s-*.json"):
                if path.stem not in known:
                    path.unlink()
            for folder in leftovers(objects):
                if self._clock() - folder.stat().st_mtime > 3600:
                    remove_object(folder)
            for folder in objects.iterdir() if objects.is_dir() else ():
                if not folder.name.startswith(".") and id_of(folder.name) not in known:
                    remove_object(folder)

    def _commit(self, task: str, state: TaskState, lines: Sequence[Mapping[str, object]]) -> None:
        log, steps, after = TaskLog(self.root, task), list[Step](), state
        at = self._clock()
        for line in lines:
            steps.append(log.step(after, {**line, "at": at, "version": state.version + 1}))
            after = steps[-1].state
        live = None
        if after.live is not None:
            live = f"objects/{self._entry(task, after, after.live).digest}"
        log.commit(state, steps, live)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        said = "another process holds the registry; wait for it"
        with folder_lock(self.root, ".lock", said, wait_s=LOCK_WAIT_S):
            yield


def _current(task: str, state: TaskState, version: int | None) -> None:
    if version is not None and version != state.version:
        last = state.moves[-1] if state.moves else None
        what = f" ({last.action} of {last.ref} by {last.by or 'somebody'})" if last else ""
        raise ConflictError(
            "version",
            f"task {task} is at version {state.version} by now{what}; nothing was done",
            value=version,
            action=f"look again: stillhouse registry list --task {task}",
        )


def _retired(name: str) -> dict[str, object]:
    return {"ref": name, "from_stage": LIVE, "to_stage": "retired"}


def _either(stages: tuple[Stage, ...]) -> str:
    return " or ".join(stages)


def _inside(folder: Path, path: str) -> bool:
    return (folder / path).resolve().is_relative_to(folder.resolve())
