"""Keeping a teacher when its provider does not: freeze a store, export it to one file, import it.

An export holds the answers of one teacher or of all, in an order of their own, and is frozen: equal
answers give equal files. Its answers are on no bill: who imports them has not paid for them. Knows
stores and files; asks nobody.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.core.errors import DataError, UserError
from stillhouse.core.jsonl import AppendOnlyFile, disk_errors
from stillhouse.models.completer import ModelInfo
from stillhouse.teacher.lines import (
    AnswerHead,
    answer_line_of,
    completions_of,
    completions_text,
    parse_line,
)
from stillhouse.teacher.replay import STORE_FILE, store_path
from stillhouse.teacher.store import AnswerStore

BLOCK_LINES: Final = 1000


class Archived(NamedTuple):
    """What was frozen, exported or imported: lines that hold answers, and the store's digest."""

    path: Path
    answers: int
    digest: str

    def __str__(self) -> str:
        mark = f", digest {self.digest}" if self.digest else ""
        return f"{self.path}: {self.answers:,} answers{mark}"


def freeze(path: Path) -> Archived:
    """Let a store take no more answers.

    Raises:
        DataError: there is no such store.
        RunFolderError: it is in use.
    """
    where = _existing(path)
    with AnswerStore(where) as store:
        line = store.freeze(_today())
    return Archived(where, line.answers, line.digest)


def export(path: Path, out: Path, teacher: str | None = None) -> Archived:
    """Write a store's answers to one frozen file. The store may be in use meanwhile.

    Args:
        path: the store, or its run folder.
        out: the file to write; must not exist.
        teacher: name a teacher, with or without its revision, to write its answers alone.

    Raises:
        DataError: there is no such store.
        UserError: `out` exists, or the store holds nothing of this teacher.
    """
    if out.exists():
        raise UserError(str(out), "exists already", action="choose another name")
    store = AnswerStore(_existing(path), read_only=True)
    wanted = [t for t in store.teachers if teacher is None or teacher in (t, t.partition("@")[0])]
    if not wanted:
        raise UserError(
            "--teacher",
            "no answer in the store is of this teacher",
            value=teacher,
            action=f"name one of: {', '.join(store.teachers) or 'none, it is empty'}",
        )
    temporary = out.with_name(out.name + ".tmp")
    with disk_errors(out):
        temporary.unlink(missing_ok=True)
    try:
        _write(store, frozenset(wanted), temporary)
        with AnswerStore(temporary) as written:
            line = written.freeze(_today())
        with disk_errors(out):
            os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return Archived(out, line.answers, line.digest)


def import_answers(source: Path, target: Path) -> Archived:
    """Add the answers of an exported file to a store that lacks them; they cost it nothing.

    Args:
        source: the exported or frozen file, or a run folder whose store is.
        target: the store, or its run folder; made where there is none.

    Raises:
        DataError: there is no such source, or it is damaged.
        UserError: the source is not frozen, or the target is.
    """
    found = AnswerStore(_existing(source), read_only=True)
    if found.frozen is None:
        raise UserError(
            str(source), "is not frozen", action=f"run: stillhouse store export {source} FILE"
        )
    where = target if target.suffix == ".jsonl" else target / "store" / STORE_FILE
    with AnswerStore(where) as store:
        count = asyncio.run(_copy(found, store))
    return Archived(where, count, "")


def _write(store: AnswerStore, wanted: frozenset[str], path: Path) -> None:
    introduced: set[str] = set()
    file = AppendOnlyFile(path)
    try:
        block: list[bytes] = []
        for raw in store.raw_lines():
            head = parse_line(raw).line
            assert isinstance(head, AnswerHead)
            teacher = head.key.teacher
            if teacher not in wanted:
                continue
            info: ModelInfo | None = None
            if teacher not in introduced:
                introduced.add(teacher)
                info = store.teachers[teacher]
            free = head._replace(usd=0.0, worst_usd=0.0, unknown=0, info=info)
            block.append(answer_line_of(free, completions_text(raw)))
            if len(block) == BLOCK_LINES:
                file.append_bytes(b"".join(block))
                block.clear()
        file.append_bytes(b"".join(block))
    finally:
        file.close()


async def _copy(source: AnswerStore, target: AnswerStore) -> int:
    """Copy what the target lacks; waits a block at a time. Returns how many lines."""
    for info in source.teachers.values():
        if info is not None:
            target.introduce(info)
    count = 0
    waiting: list[asyncio.Task[None]] = []
    current, have, met = b"", 0, 0  # of a key, whose lines follow each other
    for raw in source.raw_lines():
        head = parse_line(raw).line
        assert isinstance(head, AnswerHead)
        if head.key.digest != current:
            current, have, met = head.key.digest, target.count(head.key), 0
        missing = completions_of(raw)[max(0, have - met) :]
        met += head.samples
        if not missing:
            continue
        count += 1
        waiting.append(asyncio.create_task(target.put(head.key, missing, usd=0.0)))
        if len(waiting) == BLOCK_LINES:
            await asyncio.gather(*waiting)
            waiting.clear()
    await asyncio.gather(*waiting)
    return count


def _existing(path: Path) -> Path:
    where = store_path(path)
    if not where.is_file():
        raise DataError(str(where), "there is no such store", action="give a run folder or a file")
    return where


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
