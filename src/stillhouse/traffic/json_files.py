"""JSON objects from a file of any bytes, one at a time: JSONL, or one document that lists them.

A file that ends in .gz is unpacked on the way. Memory is that of one object, save for a document
that is not a plain list (`{"data": [...]}`), which is read whole up to a limit. Every piece that is
no object comes back with its line and the reason. Knows JSON; not what the objects mean.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

MAX_LINE: Final = 64 * 2**20
MAX_DOCUMENT: Final = 512 * 2**20
BLOCK: Final = 2**20
LOOKED_AT_LINES: Final = 50
_LISTS: Final = ("data", "observations", "traces", "logs", "items", "results")
_BOM: Final = b"\xef\xbb\xbf"


class Piece(NamedTuple):
    """One object with its line number (from 1), or the reason why there is none.

    `raw` is what stood there, as text, where there is a reason; shortened by whoever stores it.
    """

    line: int
    value: dict[str, Any] | None
    reason: str = ""
    detail: str = ""
    raw: str = ""


def pieces_of(path: Path) -> Iterator[Piece]:
    """All objects and all mistakes of a file, in order.

    Raises:
        OSError: the file cannot be read; also for a damaged archive.
    """
    form = _form_of(path)
    if form == "lines":
        yield from _lines(path)
    elif form == "list":
        yield from _list(path)
    else:
        yield from _document(path)


def open_bytes(path: Path) -> IO[bytes] | gzip.GzipFile:
    """The file's bytes, unpacked where its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _form_of(path: Path) -> str:
    with open_bytes(path) as handle:
        first = b""
        for _ in range(LOOKED_AT_LINES):
            line = handle.readline(BLOCK).removeprefix(_BOM)
            first = first or line.strip()
            if first.startswith(b"["):
                return "list"
            if line.strip() and isinstance(_parsed(line), dict) and _parsed(line):
                return "lines"
    return "document" if first.startswith(b"{") else "lines"


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _lines(path: Path) -> Iterator[Piece]:
    with open_bytes(path) as handle:
        number = 0
        while raw := handle.readline(MAX_LINE):
            number += 1
            if len(raw) == MAX_LINE and not raw.endswith(b"\n"):
                while (rest := handle.readline(BLOCK)) and not rest.endswith(b"\n"):
                    pass
                yield _bad(
                    number, "too_long", f"the line is longer than {MAX_LINE >> 20} MB", raw[:9]
                )
                continue
            if number == 1:
                raw = raw.removeprefix(_BOM)
            if raw.strip():
                yield from _unwrapped(_piece(number, raw))


def _piece(number: int, raw: bytes) -> Piece:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _bad(number, "encoding", f"is not UTF-8 text (byte {error.start + 1})", raw)
    except (ValueError, RecursionError) as error:
        return _bad(number, "json", f"is not valid JSON: {_short(error)}", raw)
    if not isinstance(value, dict):
        return _bad(number, "json", f"is {type(value).__name__}, not a JSON object", raw)
    return Piece(number, value)


def _short(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]


def _bad(number: int, reason: str, detail: str, raw: bytes) -> Piece:
    return Piece(number, None, reason, detail, raw[: 2**16].decode("utf-8", "replace").strip())


class _Text:
    """A file's text, block by block, with the number of lines that were passed."""

    def __init__(self, handle: IO[bytes] | gzip.GzipFile) -> None:
        self._handle = handle
        self.text = ""
        self.line = 1
        self.ended = False

    def more(self) -> None:
        # Read to the end of a line, so that no character is cut in two.
        # Twice as much each time, so that a large element is not parsed a thousand times over.
        block = self._handle.read(max(BLOCK, len(self.text)))
        block += self._handle.readline(MAX_LINE) if block else b""
        self.ended = not block
        self.text += block.decode("utf-8", "replace")

    def skip(self, count: int) -> None:
        self.line += self.text.count("\n", 0, count)
        self.text = self.text[count:]


_SPACE = re.compile(r"[\s,]*")
_OPENING = re.compile(r"\n\s*\{")


def _list(path: Path) -> Iterator[Piece]:
    """The elements of `[{...}, {...}]`. After a mistake it goes on at the next line."""
    decoder = json.JSONDecoder()
    with open_bytes(path) as handle:
        source = _Text(handle)
        source.more()
        source.skip(source.text.index("[") + 1)
        while True:
            blank = _SPACE.match(source.text)
            source.skip(blank.end() if blank else 0)
            if source.text[:1] in ("", "]"):
                if source.text or source.ended:
                    return
                source.more()
                continue
            try:
                value, end = decoder.raw_decode(source.text)
            except (ValueError, RecursionError) as error:
                if _may_be_cut(error, source.text) and not source.ended:
                    source.more()
                    continue
                detail = f"is not valid JSON: {_short(error)}"
                yield Piece(source.line, None, "json", detail, source.text[: 2**16])
                following = _OPENING.search(source.text, 1)
                source.skip(following.end() - 1 if following else len(source.text))
                continue
            if isinstance(value, dict):
                yield Piece(source.line, value)
            else:
                wrong = source.text[: min(end, 2**16)]
                yield Piece(source.line, None, "json", "is not a JSON object", wrong)
            source.skip(end)


def _may_be_cut(error: Exception, text: str) -> bool:
    """Whether an element may only be incomplete: its rest is in the next block."""
    if not isinstance(error, json.JSONDecodeError) or len(text) >= MAX_LINE:
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - 8


def _document(path: Path) -> Iterator[Piece]:
    """One JSON document: the objects of its list, or itself."""
    with open_bytes(path) as handle:
        raw = handle.read(MAX_DOCUMENT + 1)
    if len(raw) > MAX_DOCUMENT:
        yield _bad(
            1, "too_long", "is one JSON document of over 512 MB; export it as JSONL", raw[:9]
        )
        return
    piece = _piece(1, raw.removeprefix(_BOM))
    if piece.value is None:
        yield piece
        return
    yield from _unwrapped(piece)


def _unwrapped(piece: Piece) -> Iterator[Piece]:
    """The objects in the list that an answer of a logging API holds, or the piece itself."""
    value = piece.value or {}
    for name in _LISTS:
        listed = value.get(name)
        # A trace keeps its own fields beside its observations, which need them.
        own = {"trace", "id", "messages", "input", "request", "response", "body"} & value.keys()
        if isinstance(listed, list) and listed and not own:
            for item in listed:
                if isinstance(item, dict):
                    yield Piece(piece.line, item)
                else:
                    yield Piece(piece.line, None, "json", "is not a JSON object", str(item)[:200])
            return
    yield piece
