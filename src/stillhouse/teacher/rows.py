"""What memory holds of an answer store: columns of numbers, and a way back to the lines.

Knows offsets and sizes; does not know what a line says.
"""

from __future__ import annotations

import math
import os
import weakref
from array import array
from collections.abc import Iterator
from pathlib import Path

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import disk_errors
from stillhouse.teacher.lines import AnswerHead


class Rows:
    """What is known of each answer line, in columns."""

    def __init__(self) -> None:
        self.offset = array("Q")
        self.length = array("L")
        self.samples = array("L")
        self.revision = array("L")
        self.usd = array("d")  # not a number where a cost is neither known nor bounded

    def add(self, head: AnswerHead, offset: int, length: int, revision: int) -> int:
        self.offset.append(offset)
        self.length.append(length)
        self.samples.append(head.samples)
        self.revision.append(revision)
        bound = head.bound_usd
        self.usd.append(math.nan if bound is None else bound)
        return len(self.offset) - 1


class LineReader:
    """Reads a file at any place, also while another descriptor writes it, until it is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise DataError(str(path), "there is no such store", action="check the path") from None
        self._done = weakref.finalize(self, os.close, self._fd)

    def read(self, offset: int, length: int) -> bytes:
        with disk_errors(self.path):
            return os.pread(self._fd, length, offset)

    def lines(self) -> Iterator[bytes]:
        """The whole lines of the file, with their newlines."""
        with self.path.open("rb") as handle:
            for raw in handle:
                if raw.endswith(b"\n"):
                    yield raw
