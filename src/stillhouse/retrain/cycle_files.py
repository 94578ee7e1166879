"""Where cycles lie: the journal, a folder a cycle, the lock, and scores that are kept.

FOLDER/TASK/cycles.jsonl has a line a finished cycle; cycles/NNNN/cycle.json the state of each;
scores/ what students scored on held-out sets, by the digests of both. All are written whole or not
at all, so that a kill leaves the state before or after. Knows files; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.core.forgotten import FORGOTTEN, ForgottenUsers
from stillhouse.core.jsonl import (
    AppendOnlyFile,
    disk_errors,
    read_json,
    read_records,
    void,
    write_atomic,
    write_json,
    write_records,
)
from stillhouse.core.locks import folder_lock
from stillhouse.core.records import Query, Record
from stillhouse.core.stage_files import hash_file
from stillhouse.retrain.cycle_records import Cycle, CycleLine, HeldOut, WindowRow, name_of

JOURNAL: Final = "cycles.jsonl"
CYCLES: Final = "cycles"
STATE: Final = "cycle.json"
LOCK: Final = "retrain.lock"
SCORES: Final = "scores"
WINDOW: Final = "window.jsonl"
NEW: Final = "new.jsonl"
TO_HOLD: Final = "to_hold.jsonl"  # held-out requests before the teacher answered them
HELD_OUT: Final = "held_out.jsonl"
TO_CALIBRATE: Final = "to_calibrate.jsonl"  # likewise, of those that choose a threshold
CALIBRATION: Final = "calibration.jsonl"
RUN: Final = "run"
ASK: Final = "ask"
ENTRY: Final = "entry"  # the candidate as it goes into the registry
REPLAY: Final = "replay.jsonl"
KEY_DIGITS: Final = 16
_RECORDS: Final[Mapping[str, type[Record]]] = {
    **dict.fromkeys((NEW, TO_HOLD, TO_CALIBRATE, REPLAY, f"{RUN}.jsonl", f"{ASK}.jsonl"), Query),
    WINDOW: WindowRow,
    **dict.fromkeys((HELD_OUT, CALIBRATION), HeldOut),
}


class TaskFolder:
    """FOLDER/TASK of one task's loop."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the task: two cycles at a time are an error.

        Raises:
            RunFolderError: another process holds it, or it cannot be written.
        """
        said = "another retraining of this task is at work; wait for it"
        with folder_lock(self.root, LOCK, said):
            yield

    def cycle(self, number: int) -> Path:
        """A cycle's folder."""
        return self.root / CYCLES / name_of(number)

    def journal(self) -> list[CycleLine]:
        """The finished cycles, oldest first.

        Raises:
            DataError: a line is damaged; names it.
        """
        path = self.root / JOURNAL
        return list(read_records(path, CycleLine)) if path.exists() else []

    def add_line(self, line: CycleLine) -> None:
        """Append a finished cycle, unless it is there."""
        file = AppendOnlyFile(self.root / JOURNAL)
        try:
            if all(known.number != line.number for known in self.journal()):
                file.append([line.to_json()])
        finally:
            file.close()

    def load(self, number: int) -> Cycle | None:
        """A cycle's state, `None` where it has not begun.

        Raises:
            RunFolderError: it is damaged.
        """
        path = self.cycle(number) / STATE
        if not path.exists():
            return None
        try:
            return Cycle.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RunFolderError(
                f"{path}: is damaged ({where}); delete the folder of this cycle to begin it anew: "
                "what was paid is kept"
            ) from None

    def save(self, cycle: Cycle) -> None:
        """Write a cycle's state, whole."""
        write_atomic(
            self.cycle(cycle.number) / STATE,
            lambda handle: void(handle.write(cycle.model_dump_json(indent=2) + "\n")),
        )

    def unfinished(self) -> Cycle | None:
        """The cycle that was begun and has no line in the journal yet.

        Raises:
            RunFolderError: its state is damaged.
        """
        done = {line.number for line in self.journal()}
        folder = self.root / CYCLES
        # A folder of another name (a copy, a backup) is no cycle.
        names = [path.name for path in folder.glob("[0-9]*") if path.is_dir()]
        numbers = [int(name) for name in names if name.isascii() and name.isdecimal()]
        for number in sorted(one for one in numbers if name_of(one) in names):
            if number not in done:
                found = self.load(number)
                if found is not None:
                    return found
        return None

    def next_number(self) -> int:
        """Of a new cycle."""
        lines = self.journal()
        return lines[-1].number + 1 if lines else 1

    # --- what a cycle's steps leave ------------------------------------------------------------

    def write_window(self, number: int, rows: Sequence[WindowRow]) -> None:
        """Keep a window's requests until the cycle is done."""
        write_records(self.cycle(number) / WINDOW, rows)

    def read_window(self, number: int) -> list[WindowRow]:
        """What `write_window` kept."""
        return list(read_records(self.cycle(number) / WINDOW, WindowRow))

    def drop_window(self, number: int) -> None:
        """A finished cycle needs its window's texts no more."""
        with disk_errors(self.root):
            (self.cycle(number) / WINDOW).unlink(missing_ok=True)

    def new_queries(self, number: int) -> list[Query]:
        """The queries that a cycle chose; none where it never did."""
        path = self.cycle(number) / NEW
        return list(read_records(path, Query)) if path.exists() else []

    def held_out(self, number: int) -> list[HeldOut]:
        """A cycle's held-out set; empty where it has none."""
        path = self.cycle(number) / HELD_OUT
        return list(read_records(path, HeldOut)) if path.exists() else []

    def calibration(self, number: int) -> list[HeldOut]:
        """What chose a cycle's threshold; empty where nothing did."""
        path = self.cycle(number) / CALIBRATION
        return list(read_records(path, HeldOut)) if path.exists() else []

    # --- scores --------------------------------------------------------------------------------

    def scores(self, student: str, number: int) -> list[float] | None:
        """What a student (by digest) scored on a window's held-out set as it is now, if it did."""
        path = self.root / SCORES / f"{student[:KEY_DIGITS]}.json"
        if not path.exists():
            return None
        found = read_json(path).get(self._set_key(number))
        if not isinstance(found, list):
            return None
        return [float(score) for score in found]

    def keep_scores(self, student: str, scores: Mapping[int, Sequence[float]]) -> None:
        """Keep what a student scored, by window."""
        path = self.root / SCORES / f"{student[:KEY_DIGITS]}.json"
        known = read_json(path) if path.exists() else {}
        new = {self._set_key(number): list(values) for number, values in scores.items()}
        write_json(path, {**known, **new})

    def _set_key(self, number: int) -> str:
        digest = hash_file(self.cycle(number) / HELD_OUT)
        return f"{name_of(number)}-{digest[:KEY_DIGITS]}"

    # --- users that were forgotten -------------------------------------------------------------

    def forgotten(self, *others: Path) -> Forgotten:
        """Users that were forgotten here, in a cycle's run, or in another run folder."""
        runs = sorted((self.root / CYCLES).glob(f"*/*/{FORGOTTEN}"))
        roots = [self.root, *others, *(path.parent for path in runs)]
        return Forgotten([ForgottenUsers(root) for root in roots])

    def sweep(self, forgotten: Forgotten) -> int:
        """Take forgotten users' queries out of what cycles keep outside of their runs."""
        removed = 0
        for path in sorted((self.root / CYCLES).glob("*/*.jsonl")):
            record = _RECORDS.get(path.name)
            if record is None:
                continue
            lines = list(read_records(path, record))
            kept = [one for one in lines if _user_of(one) not in forgotten]
            if len(kept) < len(lines):
                write_records(path, kept)
                removed += len(lines) - len(kept)
        return removed


class Forgotten:
    """Whether a user is among the forgotten of any of several folders."""

    def __init__(self, lists: Sequence[ForgottenUsers]) -> None:
        self._lists = lists

    def __contains__(self, user: object) -> bool:
        return any(user in users for users in self._lists)


def _user_of(record: object) -> str | None:
    query = record if isinstance(record, Query) else getattr(record, "query", None)
    return query.user if isinstance(query, Query) else None
