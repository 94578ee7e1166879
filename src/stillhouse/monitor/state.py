"""The folder of a watched task: windows.jsonl, alerts.jsonl, and state.json, which commits them.

Lines are appended first and state.json, with the number of lines that count, is renamed last: what
a killed check had appended is cut off by the next one, which judges those windows again. One check
holds the folder at a time. Knows files; judges nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import quote

from pydantic import Field, ValidationError

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.jsonl import (
    AppendOnlyFile,
    disk_errors,
    read_json,
    read_records,
    void,
    write_atomic,
)
from stillhouse.core.locks import folder_lock
from stillhouse.core.records import Record
from stillhouse.monitor.alerts import AlertState
from stillhouse.monitor.drift_records import Persistence
from stillhouse.monitor.records import Alert, WindowReport
from stillhouse.monitor.reference import Reference

R = TypeVar("R", bound=Record)
WINDOWS: Final = "windows.jsonl"
ALERTS: Final = "alerts.jsonl"
STATE: Final = "state.json"
LOCK: Final = ".lock"
BLOCK: Final = 65_536
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class Past(Record):
    """A window that was judged, by which its requests are found again."""

    number: int
    since: float
    until: float
    requests: int = Field(description="As they were counted when it was judged.")
    random: int = Field(default=0, description="Pairs whose units were drawn by hash.")
    student: str | None = None


class Baseline(Record):
    """A student's first windows, and what they showed once there were enough of them."""

    past: tuple[Past, ...] = ()
    reference: Reference | None = None


class Undelivered(Record):
    """An alert that a channel has not taken yet."""

    alert: str
    channel: Literal["webhook", "slack"]
    tries: int = 0
    problem: str = ""


class WatchState(Record):
    """All that a check must know of the ones before it."""

    format: Literal[1] = 1
    task: str
    checked_at: float = 0.0
    cursor: float | None = Field(default=None, description="Where the last window ended.")
    number: int = Field(default=0, description="Of the last window.")
    windows: int = Field(default=0, description="Lines of windows.jsonl ...")
    windows_bytes: int = Field(default=0, description="... and its bytes that count.")
    alerts: int = Field(default=0, description="Lines of alerts.jsonl that count.")
    past: tuple[Past, ...] = ()
    baselines: Mapping[str, Baseline] = Field(
        default_factory=dict, description="By student: what it did when it was new."
    )
    run: str | None = Field(default=None, description="The run that is the reference ...")
    run_student: str | None = Field(default=None, description="... and the student it is held for.")
    alerting: AlertState = AlertState()
    persistence: Persistence | None = None
    compared: str | None = Field(
        default=None, description="Student and reference of the last window that drift compared."
    )
    undelivered: tuple[Undelivered, ...] = ()
    canaries_at: float | None = Field(default=None, description="Of the last replay.")
    canaries_number: int = Field(default=0, description="Replays so far.")
    canary_problems: tuple[tuple[str, str], ...] = Field(
        default=(), description="Of the last replay: cause, what happened."
    )


def task_folder(folder: Path, task: str) -> Path:
    """Where a task's files are: its name, or that name escaped where it is no plain file name."""
    if _PLAIN.fullmatch(task):
        return folder / task
    return folder / ("%" + quote(task, safe=""))


class Place:
    """The files of one watched task."""

    def __init__(self, root: Path, task: str) -> None:
        self.root, self.task = root, task

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder.

        Raises:
            RunFolderError: another check holds it, or it cannot be written.
        """
        said = "another check is at work on this task; wait for it"
        with folder_lock(self.root, LOCK, said):
            yield

    def load(self) -> WatchState:
        """The state, after what a killed check left is cut off. Call it with the lock held.

        Raises:
            UserError: state.json is gone, while there are windows or alerts.
            RunFolderError: it is damaged, or of a newer version.
        """
        path = self.root / STATE
        if not path.exists():
            # New alerts after old ones that no state counts would be cut off as uncommitted.
            left = [str(self.root / name) for name in (WINDOWS, ALERTS) if _size(self.root / name)]
            if left:
                raise UserError(
                    str(path),
                    "is gone, and nothing else says which windows were judged",
                    action=f"restore it, or move {' and '.join(left)} away to begin anew",
                )
            state = WatchState(task=self.task)
            self.save(state)
            return state
        try:
            state = WatchState.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RunFolderError(
                f"{path}: is damaged, or of another version ({where}: {first['msg']}); restore it, "
                "or move the folder away to begin anew"
            ) from None
        _keep_bytes(self.root / WINDOWS, state.windows_bytes)
        alerts = _keep_lines(self.root / ALERTS, state.alerts)
        return state.model_copy(update={"alerts": alerts})

    def save(self, state: WatchState) -> None:
        """Replace state.json."""
        text = state.model_dump_json(indent=1, exclude_none=True) + "\n"
        write_atomic(self.root / STATE, lambda handle: void(handle.write(text)))

    def commit(
        self, state: WatchState, reports: Sequence[WindowReport], alerts: Sequence[Alert]
    ) -> WatchState:
        """Append, then replace state.json; returns the state as it was written."""
        _append(self.root / WINDOWS, reports)
        _append(self.root / ALERTS, alerts)
        update = {
            "windows": state.windows + len(reports),
            "windows_bytes": _size(self.root / WINDOWS),
            "alerts": state.alerts + len(alerts),
        }
        state = state.model_copy(update=update)
        self.save(state)
        return state

    def reports(self) -> Iterator[WindowReport]:
        """All windows, oldest first."""
        return _read(self.root / WINDOWS, WindowReport)

    def newest_report(self) -> WindowReport | None:
        """The last window, without reading the others."""
        path = self.root / WINDOWS
        if not _size(path):
            return None
        with path.open("rb") as handle:
            end = handle.seek(0, os.SEEK_END) - 1  # the last line's newline
            start = end
            tail = b""
            while start > 0 and b"\n" not in tail:
                start = max(0, start - BLOCK)
                handle.seek(start)
                tail = handle.read(end - start)
        return WindowReport.model_validate_json(tail.rpartition(b"\n")[2])

    def alerts(self) -> Iterator[Alert]:
        """All alerts, oldest first."""
        return _read(self.root / ALERTS, Alert)

    def strike(self, gone: Mapping[str, frozenset[str]]) -> int:
        """Take the texts of requests out of alerts' examples; returns how many.

        Args:
            gone: by alert, the requests that the log does not hold any more.
        """
        count = 0
        kept = []
        for alert in self.alerts():
            examples = []
            for one in alert.examples:
                if one.get("request") in gone.get(alert.id, frozenset()):
                    count += 1
                else:
                    examples.append(one)
            kept.append(alert.model_copy(update={"examples": tuple(examples)}))
        if count:
            write_atomic(
                self.root / ALERTS,
                lambda handle: void([handle.write(one.to_json() + "\n") for one in kept]),
            )
        return count


def _read(path: Path, record: type[R]) -> Iterator[R]:
    if path.exists():
        yield from read_records(path, record)


def _append(path: Path, records: Sequence[Record]) -> None:
    if not records:
        return
    file = AppendOnlyFile(path)
    try:
        file.append(record.to_json() for record in records)
    finally:
        file.close()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _keep_bytes(path: Path, count: int) -> None:
    """Cut off what was appended and never committed."""
    if _size(path) > count:
        with disk_errors(path):
            os.truncate(path, count)


def _keep_lines(path: Path, count: int) -> int:
    """Cut a file after so many lines; returns how many there are."""
    if not path.exists():
        return 0
    with disk_errors(path):
        lines = path.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(lines) > count or len(whole) < len(lines):
        text = b"".join(whole[:count]).decode("utf-8")
        write_atomic(path, lambda handle: void(handle.write(text)))
    return min(len(whole), count)
