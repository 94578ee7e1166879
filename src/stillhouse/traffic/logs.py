"""Read request logs: every usable call, one at a time; every other line counted with its reason.

The format is found per file from its first objects, or given. A line that cannot be used is handed
to `on_reject` with file, line, reason and text, and reading goes on; only when no call at all is
found is that an error. Answers of batch outputs are joined to the requests of batch inputs by
custom_id. Memory is that of one line, two numbers for each call, and the answers of batch outputs.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.core.errors import DataError
from stillhouse.traffic.call import Call, LineProblem, NotAChat, Object
from stillhouse.traffic.formats import (
    FORMATS,
    READERS,
    BatchAnswer,
    LogFormat,
    format_of,
    is_bare_trace,
)
from stillhouse.traffic.json_files import Piece, pieces_of

LOOKED_AT: Final = 50
MAX_COPIES: Final = 20
DAMAGE: Final = (OSError, EOFError, zlib.error)  # what a file or a damaged archive raises
SUFFIXES: Final = (".jsonl", ".json", ".ndjson", ".log", ".jsonl.gz", ".json.gz", ".ndjson.gz")


class Reject(NamedTuple):
    """A line that was not used, with its reason. `text` is what it held, not yet redacted."""

    path: str
    line: int
    reason: str
    detail: str
    text: str


@dataclass
class LogFile:
    """One file and what came of it."""

    path: Path
    format: LogFormat | None
    batch_output: bool = False
    observations: bool = False
    calls: int = 0


@dataclass
class LogReader:
    """Reads log files once; the counts are whole when the iteration has ended.

    Args:
        paths: files, or folders whose files with a log's suffix are taken, in order of name.
        wanted: the format of all files; `None` finds it per file.
        on_reject: is told of every line that is not used, but for sound lines of other kinds.
        leave_out: folders whose files are not read, though they be in a folder of `paths`.

    Raises:
        DataError: no such file, an empty folder; when read to the end, no call at all.
    """

    paths: Sequence[Path]
    wanted: LogFormat | None = None
    on_reject: Callable[[Reject], None] = lambda reject: None
    leave_out: Sequence[Path] = ()
    files: list[LogFile] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    renamed: int = 0
    _seen: dict[int, int] = field(default_factory=dict)
    _answers: dict[str, deque[tuple[str, int, Call]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.paths:
            raise DataError("LOGS", "no log file is given", action="name files or folders")
        files = [file for path in self.paths for file in _expanded(Path(path))]
        left_out = [path.resolve() for path in self.leave_out]
        for path in dict.fromkeys(files):
            if not any(path.resolve().is_relative_to(folder) for folder in left_out):
                self.files.append(self._looked_at(path))

    def __iter__(self) -> Iterator[Call]:
        for file in self.files:
            if file.batch_output:
                yield from self._read(file)
        beside = any(file.observations for file in self.files)
        for file in self.files:
            if not file.batch_output:
                yield from self._read(file, beside)
        for waiting in self._answers.values():
            for path, line, call in waiting:
                self._reject(
                    path,
                    line,
                    "no_request",
                    "no batch input holds its custom_id",
                    call.answer or "",
                )
        if not self.calls:
            raise DataError(
                ", ".join(str(path) for path in self.paths),
                f"hold no request that can be read ({self.why()})",
                action=f"say what they are with --format ({', '.join(FORMATS)}); "
                "see docs/traffic.md",
            )

    def why(self) -> str:
        """The reasons why lines were left out, most frequent first, in one line."""
        found = (self.rejected + self.skipped).most_common(4)
        return ", ".join(f"{reason} {count:,}" for reason, count in found) or "no lines"

    def _looked_at(self, path: Path) -> LogFile:
        """Find a file's format by a vote of its first objects."""
        votes: Counter[LogFormat] = Counter()
        outputs = observations = seen = 0
        try:
            for piece in pieces_of(path):
                seen += 1
                found = format_of(piece.value) if piece.value is not None else None
                if piece.value is not None and found is not None:
                    votes[found] += 1
                    outputs += _is_batch_output(piece.value)
                    observations += found == "langfuse" and not is_bare_trace(piece.value)
                if seen >= LOOKED_AT:
                    break
        except DAMAGE:
            pass  # what can be read of it is; the damage is named when it is met again
        chosen = self.wanted or (votes.most_common(1)[0][0] if votes else None)
        return LogFile(path, chosen, outputs > 0 and chosen == "openai", observations > 0)

    def _read(self, file: LogFile, beside: bool = False) -> Iterator[Call]:
        line = 0
        try:
            for piece in pieces_of(file.path):
                line = piece.line
                yield from self._calls(file, piece, beside)
        except DAMAGE as error:
            self._reject(
                str(file.path), line + 1, "damaged", f"the rest cannot be read: {error}", ""
            )

    def _calls(self, file: LogFile, piece: Piece, beside: bool) -> Iterator[Call]:
        where = str(file.path)
        if piece.value is None:
            self._reject(where, piece.line, piece.reason, piece.detail, piece.raw)
            return
        row = piece.value
        if file.format is None:
            self._reject(where, piece.line, "format", "is of no known log format", _shown(row))
            return
        try:
            if file.format == "langfuse" and beside and is_bare_trace(row) and not _nested(row):
                raise NotAChat("repeats", "a trace beside its observations")
            for found in READERS[file.format](row):
                if isinstance(found, BatchAnswer):
                    waiting = self._answers.setdefault(found.custom_id, deque())
                    waiting.append((where, piece.line, found.call))
                    continue
                if not found.turns:
                    raise LineProblem("empty", "there is an answer, but no request before it")
                call = self._joined(row, found)
                named = self._named(call, where, piece.line)
                if named is not None:
                    self.calls += 1
                    file.calls += 1
                    yield named
        except NotAChat as problem:
            self.skipped[problem.reason] += 1
        except LineProblem as problem:
            self._reject(where, piece.line, problem.reason, problem.detail, _shown(row))
        except RecursionError:
            self._reject(where, piece.line, "shape", "is nested too deeply", "")

    def _joined(self, row: dict[str, object], call: Call) -> Call:
        """The call with its answer, where it is a batch's request and the answer was read."""
        waiting = self._answers.get(str(row.get("custom_id")))
        if not waiting or call.answer is not None:
            return call
        _, _, answered = waiting.popleft()
        return call._replace(
            id=answered.id if not call.id else call.id,
            answer=answered.answer,
            model=answered.model or call.model,
            prompt_tokens=answered.prompt_tokens,
            completion_tokens=answered.completion_tokens,
            at=call.at or answered.at,
            text_only=call.text_only and answered.text_only,
            failed=call.failed or answered.failed,
        )

    def _named(self, call: Call, where: str, line: int) -> Call | None:
        """The call under an id of its own; `None` where the same request was read before."""
        if not call.id:
            number = next(i for i, file in enumerate(self.files, 1) if str(file.path) == where)
            return call._replace(id=f"{number}-{self.calls + 1}")
        content = _hash(repr((call.turns, call.answer, call.at)))
        name, copy = call.id, 1
        while (earlier := self._seen.get(_hash(name))) is not None:
            if earlier == content:
                self._reject(where, line, "duplicate", "the same request was read before", "")
                return None
            copy += 1
            if copy > MAX_COPIES:  # an id that all requests share names none of them
                return call._replace(id=f"{call.id}~{self.calls + 1}")
            name = f"{call.id}~{copy}"
        self._seen[_hash(name)] = content
        self.renamed += copy > 1
        return call._replace(id=name)

    def _reject(self, path: str, line: int, reason: str, detail: str, text: str) -> None:
        self.rejected[reason] += 1
        self.on_reject(Reject(path, line, reason, detail, text))


def _expanded(path: Path) -> list[Path]:
    """The file, or a folder's files with a log's suffix."""
    if not path.is_dir():
        if not path.exists():
            raise DataError(str(path), "there is no such file", action="check the path")
        return [path]
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
    if not found:
        raise DataError(
            str(path), "holds no log file", action=f"known suffixes: {', '.join(SUFFIXES)}"
        )
    return found


def _is_batch_output(row: Object) -> bool:
    return "custom_id" in row and "response" in row and not ({"body", "messages"} & row.keys())


def _nested(row: Object) -> bool:
    observations = row.get("observations")
    return isinstance(observations, list) and any(isinstance(o, Mapping) for o in observations)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _shown(row: Object) -> str:
    try:
        return json.dumps(row, ensure_ascii=False)[: 2**16]
    except (ValueError, RecursionError):
        return ""
