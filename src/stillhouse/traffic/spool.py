"""Redacted calls on disk, and a few numbers of each in memory: mining reads a log once.

What a call says is one JSON line of the spool file; what is counted about it is a column here, so
that a log is larger than memory only in texts (some 90 bytes stay for each call). Nothing that was
not redacted is written. Knows calls; not what they are counted for.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.jsonl import disk_errors
from stillhouse.traffic.call import Call, Turn

CHARS_PER_TOKEN: Final = 4  # where a log has no usage; what is estimated so is marked
ROLES_OF_SYSTEM: Final = frozenset({"system", "developer"})

_VARIABLE = re.compile(
    r"<([A-Z]+)_\d+>|\b[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}\b|\b(?=[0-9a-f]*\d)[0-9a-f]{12,}\b|\d+"
    r"|\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b"
    r"|\b(?:January|February|March|April|May|June|July|August|September|October|November|December)\b"
)


class Spooled(NamedTuple):
    """What the spool file holds of a call."""

    id: str
    turns: tuple[Turn, ...]
    answer: str | None
    user: str | None

    @property
    def system(self) -> str:
        """The system messages, joined."""
        return "\n".join(turn.content for turn in self.turns if turn.role in ROLES_OF_SYSTEM)

    @property
    def earlier(self) -> tuple[Turn, ...]:
        """The turns between the system messages and the last one."""
        return tuple(turn for turn in self.turns[:-1] if turn.role not in ROLES_OF_SYSTEM)

    @property
    def last(self) -> str:
        """Content of the last turn."""
        return self.turns[-1].content


class Columns(NamedTuple):
    """One row a call, in the order of reading. `nan` and -1 stand for what the log lacks.

    `context` numbers distinct (shape, masked system) pairs; `earlier` hashes the turns between
    system and last one (0: none); `input` hashes the whole chat before redaction.
    """

    offset: npt.NDArray[np.uint64]
    context: npt.NDArray[np.uint32]
    earlier: npt.NDArray[np.uint64]
    input: npt.NDArray[np.uint64]
    model: npt.NDArray[np.uint32]
    at: npt.NDArray[np.float64]
    prompt: npt.NDArray[np.int64]
    completion: npt.NDArray[np.int64]
    estimated: npt.NDArray[np.uint8]
    cost: npt.NDArray[np.float64]
    latency: npt.NDArray[np.float64]
    flags: npt.NDArray[np.uint8]


TEXT_ONLY: Final = 1
CACHED: Final = 2
FAILED: Final = 4
ANSWERED: Final = 8
_TYPES: Final = {
    "offset": "Q",
    "context": "I",
    "earlier": "Q",
    "input": "Q",
    "model": "I",
    "at": "d",
}
_TYPES_2: Final = {"prompt": "q", "completion": "q", "estimated": "B", "cost": "d", "latency": "d"}


class Context(NamedTuple):
    """What calls that may be one task have in common, but for their texts.

    `shape` is `single` (one user turn) or `dialogue`; `system` is masked: numbers, dates and
    placeholders stand for all of their kind.
    """

    shape: str
    tools: tuple[str, ...]
    schema: str
    system: int


class Spool:
    """Writes calls, then reads them back by number.

    Args:
        path: the spool file; made anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contexts: list[Context] = []
        self.models: list[str] = []
        self.model_bases: dict[str, str] = {}
        self._context_ids: dict[Context, int] = {}
        self._model_ids: dict[str, int] = {}
        self._arrays = {name: array(code) for name, code in (_TYPES | _TYPES_2).items()}
        self._arrays["flags"] = array("B")
        self._offset = 0
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle: IO[bytes] = path.open("w+b")

    def __len__(self) -> int:
        return len(self._arrays["offset"])

    def add(self, call: Call, input_hash: int, cost: float | None) -> None:
        """Store a redacted call. `cost` is USD, `None` where not known."""
        spooled = Spooled(call.id, call.turns, call.answer, call.user)
        line = json.dumps([call.id, call.turns, call.answer, call.user], ensure_ascii=False)
        data = line.encode("utf-8", "replace") + b"\n"
        with disk_errors(self.path):
            self._handle.write(data)
        shape = "single" if _is_single(call.turns) else "dialogue"
        context = Context(shape, call.tools, call.schema or "", text_hash(mask(spooled.system)))
        earlier = spooled.earlier
        prompt, completion = call.prompt_tokens, call.completion_tokens
        row: dict[str, Any] = {
            "offset": self._offset,
            "context": self._number(self._context_ids, self.contexts, context),
            "earlier": text_hash(repr(earlier)) if earlier else 0,
            "input": input_hash,
            "model": self._number(self._model_ids, self.models, call.model),
            "at": np.nan if call.at is None else call.at,
            "prompt": estimated_prompt(call) if prompt is None else prompt,
            "completion": estimated_completion(call) if completion is None else completion,
            "estimated": prompt is None or completion is None,
            "cost": np.nan if cost is None else cost,
            "latency": np.nan if call.latency_ms is None else call.latency_ms,
            "flags": TEXT_ONLY * call.text_only
            | CACHED * call.cached
            | FAILED * call.failed
            | ANSWERED * (call.answer is not None and not call.failed),
        }
        for name, value in row.items():
            self._arrays[name].append(value)
        if call.api_base:
            self.model_bases.setdefault(call.model, call.api_base)
        self._offset += len(data)

    @staticmethod
    def _number(ids: dict[Any, int], known: list[Any], value: Any) -> int:
        number = ids.setdefault(value, len(known))
        if number == len(known):
            known.append(value)
        return number

    def columns(self) -> Columns:
        """The numbers of all calls, as arrays that share the spool's memory: add no more calls."""
        self._handle.flush()
        return Columns(
            **{
                name: np.frombuffer(values, dtype=values.typecode)
                for name, values in self._arrays.items()
            }
        )

    def read(self, numbers: Iterable[int]) -> Iterator[Spooled]:
        """The calls with these numbers, in that order."""
        self._handle.flush()
        offsets = self._arrays["offset"]
        for number in numbers:
            if self._handle.tell() != offsets[number]:
                self._handle.seek(offsets[number])
            name, turns, answer, user = json.loads(self._handle.readline())
            yield Spooled(name, tuple(Turn(*turn) for turn in turns), answer, user)

    def close(self) -> None:
        """Close and remove the file."""
        self._handle.close()
        self.path.unlink(missing_ok=True)


def estimated_prompt(call: Call) -> int:
    """Tokens of the prompt by its characters, where the log does not say."""
    return -(-sum(len(turn.content) for turn in call.turns) // CHARS_PER_TOKEN)


def estimated_completion(call: Call) -> int:
    """Tokens of the answer by its characters, where the log does not say."""
    return -(-len(call.answer or "") // CHARS_PER_TOKEN)


def _is_single(turns: tuple[Turn, ...]) -> bool:
    return [turn.role for turn in turns if turn.role not in ROLES_OF_SYSTEM] == ["user"]


def mask(text: str) -> str:
    """The text with its white space evened out, and numbers, dates and placeholders as one sign."""
    return _VARIABLE.sub(lambda m: f"<{m.group(1)}>" if m.group(1) else "0", " ".join(text.split()))


def text_hash(text: str) -> int:
    """64 bits that stand for a text."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
