"""JSONL in and out: line-numbered errors, atomic whole files, and a durable append-only file.

Knows files and records; does not know what any record means.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from pydantic import ValidationError

from stillhouse.core.errors import DataError, RunFolderError
from stillhouse.core.records import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number from 1, JSON object) for each line that is not blank.

    Raises:
        DataError: no such file, not UTF-8, or a line that is not a JSON object.
    """
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        raise DataError(str(path), "there is no such file", action="check the path") from None
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}") from None
    with handle:
        for number, raw in enumerate(handle, start=1):
            if not raw.strip():
                continue
            where = f"{path} line {number}"
            try:
                # A byte order mark is what some editors put before the first line.
                value = json.loads(
                    raw.decode("utf-8-sig" if number == 1 else "utf-8"),
                    parse_constant=_not_json,
                )
                if b"\\u" in raw:
                    json.dumps(value, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                raise DataError(
                    where, "holds half of a surrogate pair", action="mend the \\u escape"
                ) from None
            except UnicodeDecodeError:
                raise DataError(where, "is not UTF-8 text", action="save it as UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise DataError(
                    where,
                    f"is not valid JSON: {error}",
                    value=raw[:80].decode("utf-8", "replace"),
                    action="write one JSON object on each line",
                ) from None
            if not isinstance(value, dict):
                raise DataError(
                    where,
                    "is not a JSON object",
                    value=value,
                    action="write one JSON object on each line",
                )
            yield number, value


def _not_json(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def read_records(
    path: Path, record: type[R], prepare: Callable[[dict[str, object]], object] | None = None
) -> Iterator[R]:
    """Yield a record for each line; `prepare` may reshape the raw object first.

    Raises:
        DataError: as `read_objects`, or a line that is not such a record; names line and field.
    """
    for number, raw in read_objects(path):
        try:
            yield record.model_validate(prepare(raw) if prepare else raw)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or record.__name__
            raise DataError(
                f"{path} line {number}",
                f"{field}: {first['msg']}",
                value=first.get("input"),
                action=f"see the {record.__name__} record in docs/design.md",
            ) from None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into one clear line; what was there before is untouched.

    Raises:
        RunFolderError: for every `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFolderError(
                f"{path}: the disk is full; free some space and run the same command again: "
                "it goes on from what is finished"
            ) from error
        raise RunFolderError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_atomic(path: Path, write: Callable[[IO[str]], None]) -> None:
    """Write a whole text file under a temporary name, fsync, then rename over `path`."""
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as handle:
                write(handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write records as JSONL, atomically. Returns how many."""
    count = 0

    def write(handle: IO[str]) -> None:
        nonlocal count
        for record in records:
            handle.write(record.to_json() + "\n")
            count += 1

    write_atomic(path, write)
    return count


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write one JSON object, indented, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, lambda handle: void(handle.write(text)))


def read_json(path: Path) -> dict[str, object]:
    """Read one JSON object.

    Raises:
        RunFolderError: missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: does not hold a JSON object")
    return value


def void(_: T) -> None:
    """Drop a result."""


class AppendOnlyFile:
    """A JSONL file with one writer, whose lines survive a kill the moment `append` returns.

    A torn last line (the process died while writing) is cut off on open. The file is locked: a
    second writer is an error, not interleaved lines.

    Raises:
        RunFolderError: another process holds the file, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise RunFolderError(
                f"{path}: another process is writing this file; wait for it or stop it"
            ) from None
        self._cut_torn_tail()

    def _cut_torn_tail(self) -> None:
        end = os.lseek(self._fd, 0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - 65536)
            block = os.pread(self._fd, keep - start, start)
            newline = block.rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            os.ftruncate(self._fd, keep)
        os.lseek(self._fd, 0, os.SEEK_END)

    def append(self, lines: Iterable[str]) -> None:
        """Append lines (without newlines) and make them durable; all or none after a full disk."""
        data = "".join(line + "\n" for line in lines).encode("utf-8")
        if data:
            self.append_bytes(data)

    def append_bytes(self, data: bytes) -> int:
        """Append whole lines, each with its newline; returns where in the file they begin."""
        before = os.lseek(self._fd, 0, os.SEEK_END)
        with disk_errors(self.path):
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._fd, view) :]
                os.fdatasync(self._fd)
            except OSError:
                os.ftruncate(self._fd, before)
                raise
        return before

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)
