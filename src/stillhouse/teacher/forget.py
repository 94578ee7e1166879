"""Take a user's answers out of a store of paid answers: a run's own, or an export of one.

Lines are kept or dropped as they stand, so that form and checksums stay; the file is rewritten
whole, under its lock. What the dropped ones cost stays counted, a frozen store stays frozen, and
what a line said of its teacher goes to the next one. Knows the store's lines, not what an answer is
worth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import AppendOnlyFile, write_atomic
from stillhouse.models.completer import ModelInfo
from stillhouse.teacher.lines import (
    HEAD,
    AnswerHead,
    FrozenLine,
    LedgerLine,
    answer_line_of,
    checksum_of,
    completions_text,
    frozen_line,
    ledger_line,
    parse_line,
)

FORGOTTEN: str = "forgotten"  # why the ledger counts what these answers cost
Theirs = Callable[[object], bool]


def is_store(path: Path) -> bool:
    """Whether a file is a store of answers that holds any."""
    with path.open("rb") as handle:
        return handle.read(len(HEAD)) == HEAD


def count_answers(path: Path, theirs: Theirs) -> int:
    """How many lines of a store `theirs` holds for; takes no lock.

    Raises:
        DataError: a line is damaged.
    """
    sifting = _Sifting(path, theirs)
    for _ in sifting.kept():
        pass
    return sifting.dropped


def remove_answers(path: Path, theirs: Theirs, *, dry_run: bool) -> int:
    """Drop the lines of a store for which `theirs` holds. Returns how many.

    Args:
        path: the store's file.
        theirs: told a line's object: `teacher`, `chat` (hash of the messages), `completions`.
        dry_run: count only.

    Raises:
        DataError: a line is damaged.
        RunFolderError: another process holds the store, or the disk is full.
    """
    lock = AppendOnlyFile(path)
    try:
        found = count_answers(path, theirs)
        if found and not dry_run:
            write_atomic(path, lambda handle: handle.writelines(_Sifting(path, theirs).kept()))
        return found
    finally:
        lock.close()


class _Sifting:
    """One pass over a store; `dropped` counts what is left out of it."""

    def __init__(self, path: Path, theirs: Theirs) -> None:
        self._path, self._theirs = path, theirs
        self._paid_usd = 0.0
        self._answers = 0
        self._sums = hashlib.sha256()
        self._untold: dict[str, ModelInfo] = {}  # by teacher, of dropped lines
        self.dropped = 0

    def kept(self) -> Iterator[str]:
        frozen: FrozenLine | None = None
        before = hashlib.sha256()
        with self._path.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                try:
                    line = parse_line(raw).line
                    value = json.loads(raw)
                    if isinstance(line, AnswerHead):
                        before.update(checksum_of(raw))
                    elif isinstance(line, FrozenLine) and line.digest != before.hexdigest()[:32]:
                        raise ValueError("lines are missing, or were changed")
                except (ValueError, KeyError, TypeError):
                    raise DataError(
                        f"{self._path} line {number}", "is damaged", action="delete this line"
                    ) from None
                if isinstance(line, FrozenLine):
                    frozen = line
                elif isinstance(line, LedgerLine):
                    yield raw.decode("utf-8")
                elif self._theirs(value):
                    self._drop(line)
                else:
                    yield self._keep(line, raw).decode("utf-8")
        if self._paid_usd:
            charge = LedgerLine(charge_usd=self._paid_usd, why=FORGOTTEN)
            yield ledger_line(charge).decode("utf-8")
        if frozen is not None:
            digest = self._sums.hexdigest()[:32]
            yield frozen_line(FrozenLine(frozen.at, self._answers, digest)).decode("utf-8")

    def _drop(self, line: AnswerHead) -> None:
        self.dropped += 1
        bound = line.bound_usd
        self._paid_usd += line.usd if bound is None else bound
        if line.info is not None:
            self._untold[line.key.teacher] = line.info

    def _keep(self, line: AnswerHead, raw: bytes) -> bytes:
        info = self._untold.pop(line.key.teacher, None)
        if info is not None:
            raw = answer_line_of(line._replace(info=info), completions_text(raw))
        self._answers += 1
        self._sums.update(checksum_of(raw))
        return raw
