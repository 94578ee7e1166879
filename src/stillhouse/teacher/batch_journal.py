"""What was sent by batch and what became of it, so that no start pays for a batch twice.

An append-only file of events, each durable before the step that follows it: what is intended is
written before anything is sent, the provider's id after, then that the results are here, then that
all of them are in the answer store. Beside it lie what each open batch asked and, while it is
joined, what came back. Knows no provider and no price.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from stillhouse.core.errors import DataError, UserError
from stillhouse.core.jsonl import AppendOnlyFile, disk_errors, read_records, write_records
from stillhouse.core.records import Record
from stillhouse.teacher.batch import Item

FOLDER: Final = "batches"  # beside the answer store
JOURNAL: Final = "journal.jsonl"
ITEMS_SUFFIX: Final = ".items.jsonl"


class Intended(Record):
    """A batch is about to be made. `marker` is what the provider's newest batch was before it."""

    event: Literal["intended"] = "intended"
    batch: str
    teacher: str
    at: float  # seconds since 1970, by this machine's clock
    requests: int
    size: int
    worst_usd: float
    marker: str = ""


class Sending(Record):
    """Its requests are uploaded (`file`, where the provider keeps one); now it is asked to run."""

    event: Literal["sending"] = "sending"
    batch: str
    at: float
    file: str = ""


class Submitted(Record):
    """The provider's id of the batch."""

    event: Literal["submitted"] = "submitted"
    batch: str
    id: str


class Fetched(Record):
    """Its results are on this disk: all of them, or (`whole`: false) fewer than were billed."""

    event: Literal["fetched"] = "fetched"
    batch: str
    status: str
    whole: bool = True


class Joined(Record):
    """Every answer of it is in the store: the batch is done with.

    `lost_usd` is what those of its answers may have cost that are not in the store: they could not
    be read, did not come, or are of a user who was forgotten.
    """

    event: Literal["joined"] = "joined"
    batch: str
    answered: int
    again: int
    failed: int
    usd: float
    lost_usd: float = 0.0


class Dropped(Record):
    """The batch came to nothing: it never arrived, was refused, or is lost to us.

    `usd` is what it may have cost all the same.
    """

    event: Literal["dropped"] = "dropped"
    batch: str
    why: Literal["never_arrived", "refused", "lost"]
    detail: str
    usd: float = 0.0


class ErrorRow(Record):
    """A request of a batch that brought no answer, and why."""

    custom_id: str
    query_id: str
    verdict: str
    reason: str
    detail: str


Event = Annotated[
    Intended | Sending | Submitted | Fetched | Joined | Dropped,
    Field(discriminator="event"),
]
_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Event)


@dataclass(slots=True)
class OpenBatch:
    """A batch that is not done with, as far as the journal knows it."""

    intended: Intended
    sending: Sending | None = None
    id: str | None = None
    fetched: Fetched | None = None

    @property
    def name(self) -> str:
        """Our own name of it."""
        return self.intended.batch


class Held(NamedTuple):
    """What batches hold of a budget, at most, and whose are in flight (name@revision)."""

    usd: float
    teachers: frozenset[str]

    def budget_left(self, budget_usd: float | None) -> float | None:
        """The budget without what is held."""
        return None if budget_usd is None else max(0.0, budget_usd - self.usd)

    def refuse_in_flight(self, models: Iterable[str]) -> None:
        """Refuse to ask what may be in a batch: it would be paid for twice.

        Raises:
            UserError: one of the models has batches in flight.
        """
        for model in models:
            if any(teacher.startswith(f"{model}@") for teacher in self.teachers):
                raise UserError(
                    f"batches of {model}",
                    "are still in flight, and what they ask would be paid for twice",
                    action="fetch them first: stillhouse ask RECIPE",
                )


NOTHING_HELD: Final = Held(0.0, frozenset())


def held_by_batches(folder: Path) -> Held:
    """What the batches of a run folder hold, open or lost; nothing where none was ever sent.

    Raises:
        RunFolderError: another process holds the journal.
    """
    if not (folder / JOURNAL).exists():
        return NOTHING_HELD
    with BatchJournal(folder) as journal:
        return journal.held


def items_in(folder: Path) -> Iterator[Item]:
    """What all open batches of a folder asked.

    Raises:
        DataError: a file is damaged.
    """
    for path in sorted(folder.glob(f"*{ITEMS_SUFFIX}")):
        yield from read_records(path, Item)


class BatchJournal:
    """The batches of a run folder. Use as a context manager: it holds the journal's lock.

    Raises:
        DataError: a line is damaged; names the line.
        RunFolderError: another process holds the journal, or the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, OpenBatch] = {}
        self.lost_usd = 0.0
        self.known_ids: set[str] = set()
        self._file = AppendOnlyFile(folder / JOURNAL)
        try:
            for event in self._read():
                self._follow(event)
            self._sweep()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BatchJournal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def open_of(self, teacher: str) -> list[OpenBatch]:
        """This teacher's batches that are not done with, oldest first."""
        return [batch for batch in self._open.values() if batch.intended.teacher == teacher]

    def open_of_others(self, teacher: str) -> list[OpenBatch]:
        """All other teachers' batches that are not done with."""
        return [batch for batch in self._open.values() if batch.intended.teacher != teacher]

    def open_usd(self) -> float:
        """The most that all open batches can cost, of whatever teacher, and lost ones have."""
        return self.lost_usd + sum(batch.intended.worst_usd for batch in self._open.values())

    @property
    def held(self) -> Held:
        """What is held now, and by whose batches."""
        whose = frozenset(batch.intended.teacher for batch in self._open.values())
        return Held(self.open_usd(), whose)

    def intend(self, event: Intended, items: Iterable[Item]) -> OpenBatch:
        """Remember what a batch asks, before anything of it is sent."""
        write_records(self.items_path(event.batch), items)
        self.write(event)
        return self._open[event.batch]

    def write(self, event: Event) -> None:
        """Make an event durable."""
        self._file.append([event.to_json()])
        self._follow(event)

    def write_requests(self, batch: str, lines: Iterable[bytes]) -> None:
        """Write what is to be sent; a kill makes it worthless, so it need not be durable."""
        path = self.requests_path(batch)
        with disk_errors(path), path.open("wb") as handle:
            handle.writelines(lines)

    def items(self, batch: str) -> Iterator[Item]:
        """What a batch asked.

        Raises:
            DataError: the file is missing or damaged.
        """
        return read_records(self.items_path(batch), Item)

    def keep_errors(self, batch: str, rows: Sequence[ErrorRow]) -> None:
        """Keep the rows that brought no answer."""
        if rows:
            write_records(self.folder / f"{batch}.errors.jsonl", rows)

    def items_path(self, batch: str) -> Path:
        """What an open batch asked: keys of answers, no text."""
        return self.folder / f"{batch}{ITEMS_SUFFIX}"

    def requests_path(self, batch: str) -> Path:
        """The requests themselves, while they are being sent."""
        return self.folder / f"{batch}.requests.jsonl"

    def results_path(self, batch: str) -> Path:
        """What came back, until all of it is in the store."""
        return self.folder / f"{batch}.results.jsonl"

    def close_files(self, batch: str) -> None:
        """Remove what a batch that is done with left."""
        for path in (self.items_path, self.requests_path, self.results_path):
            path(batch).unlink(missing_ok=True)

    def _read(self) -> Iterator[Event]:
        path = self.folder / JOURNAL
        with path.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                try:
                    yield _EVENT.validate_json(raw)
                except ValidationError:
                    raise DataError(
                        f"{path} line {number}",
                        "is damaged: it is no event of a batch",
                        action="restore it from a copy: without it a batch may be paid twice",
                    ) from None

    def _follow(self, event: Event) -> None:
        if isinstance(event, Intended):
            self._open[event.batch] = OpenBatch(event)
            return
        batch = self._open.get(event.batch)
        if batch is None:
            return
        if isinstance(event, Sending):
            batch.sending = event
        elif isinstance(event, Submitted):
            batch.id = event.id
            self.known_ids.add(event.id)
        elif isinstance(event, Fetched):
            batch.fetched = event
        else:
            del self._open[event.batch]
            self.lost_usd += event.usd if isinstance(event, Dropped) else event.lost_usd

    def _sweep(self) -> None:
        """Remove files of batches that are done with, which a kill left behind."""
        for path in self.folder.glob("*.*.jsonl*"):
            name, _, rest = path.name.partition(".")
            if name not in self._open and not rest.startswith("errors"):
                path.unlink(missing_ok=True)
