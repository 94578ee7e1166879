"""The end of a batch: lines that nobody was asked, and the output and error files.

Knows no model. Everything here blocks; a crash half way through leaves files that nobody sees, and
the next gateway writes them anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from stillhouse.serve.batch_lines import BadLineError, unasked_line
from stillhouse.serve.batch_records import Batch, Status
from stillhouse.serve.batches import BatchWork, LineRow
from stillhouse.serve.files import PART_BYTES, FileInfo, new_file_id

DAY_S: Final = 86_400.0
_ROWS: Final = 200
_UNASKED: Final = {
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was made."),
    "expired": (
        "batch_expired",
        "This request could not be made before the completion window expired.",
    ),
}


def fill(
    work: BatchWork, batch: Batch, ends: Status, lines: Iterator[tuple[int, bytes]], most: int
) -> None:
    """Give every line that was not answered one that says why; at most `most` lines."""
    code, message = _UNASKED[ends]
    done = work.batches.answered(batch.id)
    rows: list[LineRow] = []
    try:
        for count, (number, raw) in enumerate(lines):
            if count >= most:
                break
            if number not in done:
                text = unasked_line(batch.id, number, raw, code, message)
                rows.append(LineRow(number, False, 0, 0, text))
            if len(rows) >= _ROWS:
                work.batches.add_lines(batch.id, rows)
                rows = []
    except BadLineError:  # cancelled before it was looked through
        pass
    work.batches.add_lines(batch.id, rows)


def write_files(work: BatchWork, batch: Batch, ends: Status, retention_days: float) -> bool:
    """Write the files and end the batch. False: another gateway has it, and nothing was changed."""
    now = time.time()
    kept = min(retention_days * DAY_S, batch.output_seconds or float("inf"))
    files: list[tuple[str, int]] = []
    try:
        ids: dict[bool, str | None] = {}
        for ok, kind in ((True, "output"), (False, "error")):
            name = f"{batch.id}_{kind}.jsonl"
            found = _written(work, batch, name, now, now + kept, ok=ok)
            ids[ok] = None if found is None else found[0]
            files += [] if found is None else [found]
        new = batch.at(
            ends,
            time.time(),
            output_file=ids[True],
            error_file=ids[False],
            counts=work.batches.counts(batch),
        )
        done = work.batches.end(batch.status, new, files)
    except BaseException:
        _drop(work, files)
        raise
    if not done:
        _drop(work, files)
    return done


def _drop(work: BatchWork, files: list[tuple[str, int]]) -> None:
    for identity, _ in files:
        work.files.drop(identity)


def _written(
    work: BatchWork, batch: Batch, name: str, now: float, expires_at: float, *, ok: bool
) -> tuple[str, int] | None:
    """Id and size of a file that is not there yet; `None`: it has no lines."""
    identity = new_file_id()
    begun = False
    waiting = bytearray()
    size = seq = 0
    for line in work.batches.lines(batch.id, ok=ok):
        if not begun:
            info = FileInfo(identity, batch.tenant, name, "batch_output", 0, now, expires_at)
            work.files.begin(info)
            begun = True
        waiting += line.encode("ascii") + b"\n"
        while len(waiting) >= PART_BYTES:
            work.files.append(identity, seq, bytes(waiting[:PART_BYTES]))
            del waiting[:PART_BYTES]
            size, seq = size + PART_BYTES, seq + 1
    if not begun:
        return None
    if waiting:
        work.files.append(identity, seq, bytes(waiting))
    return identity, size + len(waiting)
