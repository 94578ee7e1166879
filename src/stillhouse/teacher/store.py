"""Answers that were paid for: durable the moment they arrive, found again by what was asked.

One line an answered request (see `lines`). In memory there is an index alone, some 200 bytes an
answer; answers are read from the file when they are wanted. A line torn by a kill is cut off on
open; a line damaged later is an error that names it, never a silent second bill. The store also
keeps the ledger of what may have been billed without an answer. Knows what was asked and answered;
does not know who asks, or what an answer is worth.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from stillhouse.core.errors import DataError, UserError
from stillhouse.core.jsonl import AppendOnlyFile
from stillhouse.core.money import completion_cost_usd
from stillhouse.core.recipe_teacher import PricesSection
from stillhouse.core.records import Completion
from stillhouse.models.completer import ModelInfo
from stillhouse.teacher.group_commit import GroupCommit
from stillhouse.teacher.keys import AnswerKey, answer_key
from stillhouse.teacher.lines import (
    AnswerHead,
    FrozenLine,
    LedgerLine,
    Line,
    answer_line,
    checksum_of,
    completions_of,
    frozen_line,
    head_of,
    ledger_line,
    parse_line,
)
from stillhouse.teacher.rows import LineReader, Rows

UNCLEAN_END: Final = "unclean_end"
__all__ = ["AnswerKey", "AnswerStore", "answer_key"]


class AnswerStore:
    """All answers of a run folder. Use as a context manager: it holds the file's lock.

    Answers can be read after it is closed, too.

    Args:
        path: the file; made where there is none.
        read_only: take no lock and change nothing; a torn last line is passed over.

    Raises:
        DataError: a line is damaged; names the line. Or `read_only`, and there is no such file.
        RunFolderError: another process holds the file, or the disk is full.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.frozen: FrozenLine | None = None
        self.teachers: dict[str, ModelInfo | None] = {}  # by the key's `teacher`
        self.charges_usd: dict[str, float] = {}
        self._index: dict[bytes, int | tuple[int, ...]] = {}  # key digest -> rows
        self._rows = Rows()
        self._revisions: list[tuple[str, ...]] = []
        self._revision_number: dict[tuple[str, ...], int] = {}
        self._unpriced: list[int] = []  # rows whose cost is neither known nor bounded
        self._answered_usd = 0.0
        self._window = LedgerLine(window_usd=0.0)
        self._sums = hashlib.sha256()
        self._introduced: dict[str, ModelInfo] = {}
        self._file = None if read_only else AppendOnlyFile(path)
        self._commits = None if self._file is None else GroupCommit[Line](self._file, self._keep)
        try:
            self._reader = LineReader(path)
            self._load()
            if self._file is not None:
                self._settle_unclean_end(self._file)
        except BaseException:
            if self._file is not None:
                self._file.close()
            raise

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Chats that have answers."""
        return len(self._index)

    @property
    def paid_usd(self) -> float:
        """Cost of all answers in the store, in USD, and all that was counted without an answer.

        Of unknown cost, the most it can have been.
        """
        return self._answered_usd + sum(self.charges_usd.values())

    @property
    def window_usd(self) -> float:
        """What may be in flight, in USD; of a store that nobody writes, left by a kill."""
        return self._window.lost_usd(self.paid_usd)

    def unpriced_usd(self, prices: PricesSection) -> float:
        """Cost of the answers whose model had no price when they were asked, at today's prices."""
        return sum(
            _usd_by_tokens(completion, prices)
            for row in self._unpriced
            for completion in completions_of(self._raw(row))
            if completion.cost_usd is None
        )

    def usd_of(self, key: AnswerKey, samples: int, prices: PricesSection) -> float:
        """What the first `samples` answers of a key cost, counted as in the two totals."""
        total, left = 0.0, samples
        for row in self._rows_of(key):
            count, usd = self._rows.samples[row], self._rows.usd[row]
            if count <= left and not math.isnan(usd):
                total += usd
            elif left > 0:
                total += self._usd_of_some(row, left, prices)
            left -= count
        return total

    def count(self, key: AnswerKey) -> int:
        """How many samples there are of a key."""
        return sum(self._rows.samples[row] for row in self._rows_of(key))

    def get(self, key: AnswerKey) -> tuple[Completion, ...]:
        """The samples there are, in order; empty where there is none.

        Raises:
            DataError: the line was damaged since the store was opened.
        """
        found: list[Completion] = []
        for row in self._rows_of(key):
            for completion in self._completions(row):
                sample = len(found)
                found.append(
                    completion
                    if completion.sample == sample
                    else completion.model_copy(update={"sample": sample})
                )
        return tuple(found)

    def revisions_of(self, key: AnswerKey) -> tuple[str, ...]:
        """The model revisions that answered a key, each once."""
        rows = self._rows_of(key)
        if len(rows) == 1:
            return self._revisions[self._rows.revision[rows[0]]]
        found = (r for row in rows for r in self._revisions[self._rows.revision[row]])
        return tuple(dict.fromkeys(found))

    def raw_lines(self) -> Iterator[bytes]:
        """The answer lines as they stand in the file, in the order of their keys' digests."""
        for digest in sorted(self._index):
            rows = self._index[digest]
            for row in (rows,) if isinstance(rows, int) else rows:
                yield self._raw(row)

    def introduce(self, info: ModelInfo) -> None:
        """Describe a teacher: its first line in the file says what it can do, for a replay."""
        self._introduced[f"{info.name}@{info.revision}"] = info

    async def put(
        self,
        key: AnswerKey,
        completions: Sequence[Completion],
        worst_usd: float = 0.0,
        usd: float | None = None,
    ) -> None:
        """Keep further samples of a key; they are on the disk when this returns.

        `worst_usd` is the most they can have cost together: what counts where a cost is not known.
        `usd` is what this store's owner paid, where that is not what the answers say they cost.

        All answers that arrive in one turn of the event loop share one fsync. It runs in the loop:
        the order in which callers go on must not depend on the disk, because a local model forms
        its batches from it. See
        `overlap_writes` for the other way.

        Raises:
            UserError: the store is frozen.
            RunFolderError: the disk is full.
        """
        info = self._introduced.pop(key.teacher, None)
        if info is not None and self.teachers.get(key.teacher) is not None:
            info = None
        head = head_of(key, completions, worst_usd, usd, info)
        # Once answered it is paid for: a caller that is cancelled meanwhile does not undo it.
        await self._writer().enqueue(answer_line(head, completions), head)

    async def declare_window(self, window_usd: float, limit_usd: float | None) -> None:
        """From here on at most `window_usd` is in flight; durable when this returns.

        A store that is opened again and finds a window that is not 0 counts it as spent, up to
        what was left of the limit.
        """
        line = LedgerLine(window_usd=window_usd, limit_usd=limit_usd)
        await self._writer().enqueue(ledger_line(line), line)

    def charge(self, usd: float, why: str) -> asyncio.Future[None]:
        """Count `usd` as spent though no answer came of it; the future is done once it is durable.

        It is written even where nobody waits for the future.
        """
        line = LedgerLine(charge_usd=usd, why=why)
        return self._writer().enqueue(ledger_line(line), line)

    def freeze(self, at: str) -> FrozenLine:
        """Take no more answers from now on: the store is a fixed teacher.

        Args:
            at: the date that is noted.
        """
        if self.frozen is not None:
            return self.frozen
        self._writer().flush()
        assert self._file is not None
        line = FrozenLine(at, len(self._rows.offset), self._sums.hexdigest()[:32])
        self._file.append_bytes(frozen_line(line))
        self.frozen = line
        return line

    def close(self) -> None:
        """Write what is pending and release the lock."""
        if self._file is None or self._commits is None:
            return
        try:
            self._commits.close()
        finally:
            self._file.close()

    def flush(self) -> None:
        """Write what is pending, now: also what nobody waits for any more."""
        if self._commits is not None:
            self._commits.flush()

    def overlap_writes(self, overlap: bool) -> None:
        """Whether fsyncs run in a thread, beside the event loop; see `put`."""
        self._writer().overlap = overlap

    def _writer(self) -> GroupCommit[Line]:
        if self.frozen is not None or self._commits is None:
            raise UserError(
                str(self.path),
                "is frozen: it takes no more answers",
                action="set teacher.model: replay:PATH to go on with what it holds, or import it "
                "into another run",
            )
        return self._commits

    # --- the index ----------------------------------------------------------------------------

    def _keep(self, line: Line, offset: int, raw: bytes) -> None:
        if isinstance(line, LedgerLine):
            if line.window_usd is not None:
                self._window = line
            else:
                self.charges_usd[line.why] = self.charges_usd.get(line.why, 0.0) + line.charge_usd
            return
        if isinstance(line, FrozenLine):
            self.frozen = line
            return
        self._sums.update(checksum_of(raw))
        row = self._rows.add(line, offset, len(raw), self._revision_row(line.revisions))
        bound = line.bound_usd
        if bound is None:
            self._unpriced.append(row)
            bound = line.usd
        self._answered_usd += bound
        teacher = line.key.teacher
        self.teachers[teacher] = self.teachers.get(teacher) or line.info
        digest = line.key.digest
        before = self._index.get(digest)
        if before is None:
            self._index[digest] = row
        else:
            self._index[digest] = (*((before,) if isinstance(before, int) else before), row)

    def _revision_row(self, revisions: tuple[str, ...]) -> int:
        number = self._revision_number.setdefault(revisions, len(self._revisions))
        if number == len(self._revisions):
            self._revisions.append(revisions)
        return number

    def _rows_of(self, key: AnswerKey) -> tuple[int, ...]:
        rows = self._index.get(key.digest, ())
        return (rows,) if isinstance(rows, int) else rows

    def _raw(self, row: int) -> bytes:
        return self._reader.read(self._rows.offset[row], self._rows.length[row])

    def _completions(self, row: int) -> list[Completion]:
        try:
            return completions_of(self._raw(row))
        except ValueError:
            raise DataError(
                f"{self.path} byte {self._rows.offset[row]}",
                "is damaged: the line does not match its checksum",
                action="delete this line; its answer will be asked for again",
            ) from None

    def _usd_of_some(self, row: int, samples: int, prices: PricesSection) -> float:
        head = parse_line(self._raw(row)).line
        assert isinstance(head, AnswerHead)
        return sum(
            completion.cost_usd
            if completion.cost_usd is not None
            else head.worst_usd / head.samples
            if head.worst_usd > 0
            else _usd_by_tokens(completion, prices)
            for completion in self._completions(row)[:samples]
        )

    # --- opening ------------------------------------------------------------------------------

    def _load(self) -> None:
        offset = 0
        for number, raw in enumerate(self._reader.lines(), start=1):
            try:
                line, _ = parse_line(raw)
                if self.frozen is not None:
                    raise ValueError("a line after the mark")
                if isinstance(line, FrozenLine) and line.digest != self._sums.hexdigest()[:32]:
                    raise ValueError("digest")
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{self.path} line {number}",
                    "is damaged: it does not match its checksum"
                    + (", or the file is no answer store" if number == 1 else ""),
                    action="delete this line; its answer will be asked for again"
                    if self.frozen is None
                    else "a frozen store must not change: take another copy of it",
                ) from None
            self._keep(line, offset, raw)
            offset += len(raw)

    def _settle_unclean_end(self, file: AppendOnlyFile) -> None:
        """Count what was in flight when the writer before was killed."""
        if not self._window.window_usd or self.frozen is not None:
            return
        lost = self.window_usd
        lines = LedgerLine(charge_usd=lost, why=UNCLEAN_END), LedgerLine(window_usd=0.0)
        file.append_bytes(b"".join(map(ledger_line, lines)))
        for line in lines:
            self._keep(line, 0, b"")


def _usd_by_tokens(completion: Completion, prices: PricesSection) -> float:
    return (
        completion_cost_usd(
            prices, completion.model, completion.prompt_tokens, completion.completion_tokens
        )
        or 0.0
    )
