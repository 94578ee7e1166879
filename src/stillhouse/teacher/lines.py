"""The lines of an answer store: how each kind is written, summed and read back.

Four kinds, each one JSON object whose first key is a checksum over the rest of the line:
- an answer: key, number of samples, what they cost, their revisions, then the completions
- a ledger line: the worst case in flight from here on, or what was counted without an answer
- a mark that the store is frozen
What loading needs stands before the completions, so that a big store opens without reading them.
Knows lines; does not know files, offsets or totals.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from stillhouse.core.records import Completion
from stillhouse.models.completer import ModelInfo
from stillhouse.teacher.keys import AnswerKey

SUM_DIGITS: Final = 16
HEAD: Final = b'{"sum":"'
_REST_AT: Final = len(HEAD) + SUM_DIGITS + len(b'",')
_ANSWERS: Final = b',"completions":['
_INFO_FIELDS: Final = ("name", "revision", "gives_label_logprobs", "gives_logprobs", "takes_seed")


class AnswerHead(NamedTuple):
    """An answer line without its completions.

    `usd` is what this store's owner paid for the samples of known cost; `worst_usd` the most that
    all of them can have cost, given where some cost is not known; `unknown` how many that are.
    `info` describes the teacher, on its first line in a file.
    """

    key: AnswerKey
    samples: int
    usd: float
    worst_usd: float
    unknown: int
    revisions: tuple[str, ...]
    info: ModelInfo | None = None

    @property
    def bound_usd(self) -> float | None:
        """What the line counts for in USD; `None` where a cost is neither known nor bounded."""
        if not self.unknown:
            return self.usd
        if self.worst_usd <= 0:
            return None
        return self.usd + self.worst_usd * self.unknown / self.samples


class LedgerLine(NamedTuple):
    """`window_usd`: from here on, at most so much is in flight; `limit_usd` is the budget it is
    kept by. `charge_usd`: counted as spent, `why` is a short stable word.
    """

    window_usd: float | None = None
    limit_usd: float | None = None
    charge_usd: float = 0.0
    why: str = ""

    def lost_usd(self, paid_usd: float) -> float:
        """What a window that was never closed counts for: a budget was not crossed by it."""
        window = self.window_usd or 0.0
        if self.limit_usd is None:
            return window
        return max(0.0, min(window, self.limit_usd - paid_usd))


class FrozenLine(NamedTuple):
    """The store takes no more answers. `digest` is over the checksums of its answer lines."""

    at: str
    answers: int
    digest: str


Line = AnswerHead | LedgerLine | FrozenLine


class ParsedLine(NamedTuple):
    """A line whose checksum holds."""

    line: Line
    checksum: bytes


def head_of(
    key: AnswerKey,
    completions: Sequence[Completion],
    worst_usd: float,
    usd: float | None = None,
    info: ModelInfo | None = None,
) -> AnswerHead:
    """The head of an answer line; `usd` overrides what the completions say they cost."""
    costs = [completion.cost_usd for completion in completions]
    unknown = costs.count(None) if usd is None else 0
    return AnswerHead(
        key,
        len(completions),
        sum(cost for cost in costs if cost is not None) if usd is None else usd,
        worst_usd if unknown else 0.0,
        unknown,
        tuple(dict.fromkeys(completion.revision for completion in completions)),
        info,
    )


def answer_line(head: AnswerHead, completions: Sequence[Completion]) -> bytes:
    """One answer line, with its newline."""
    return answer_line_of(head, ",".join(c.to_json() for c in completions).encode("utf-8"))


def answer_line_of(head: AnswerHead, completions: bytes) -> bytes:
    """One answer line from the text of its completions, with its newline."""
    key = head.key
    parts = [
        f'"teacher":{json.dumps(key.teacher)},"chat":"{key.chat}","sampling":"{key.sampling}"',
        f'"n":{head.samples},"usd":{head.usd!r}',
        f'"revisions":{json.dumps(head.revisions)}',
    ]
    if head.unknown:
        parts.append(f'"unknown":{head.unknown},"worst_usd":{head.worst_usd!r}')
    if head.info is not None:
        known = {name: getattr(head.info, name) for name in _INFO_FIELDS}
        parts.append(f'"info":{json.dumps(known)}')
    return _summed(",".join(parts).encode("utf-8") + _ANSWERS + completions + b"]}")


def ledger_line(line: LedgerLine) -> bytes:
    """One ledger line, with its newline."""
    value: dict[str, object] = (
        {"charge_usd": line.charge_usd, "why": line.why}
        if line.window_usd is None
        else {"window_usd": line.window_usd, "limit_usd": line.limit_usd}
    )
    return _summed(f'"ledger":{json.dumps(value)}}}'.encode())


def checksum_of(raw: bytes) -> bytes:
    """The checksum that a line bears: what a frozen store's digest is over."""
    return raw[len(HEAD) : len(HEAD) + SUM_DIGITS]


def frozen_line(line: FrozenLine) -> bytes:
    """The mark of a frozen store, with its newline."""
    return _summed(f'"frozen":{json.dumps(line._asdict())}}}'.encode())


def _summed(rest: bytes) -> bytes:
    return b"".join((HEAD, _sum(rest), b'",', rest, b"\n"))


def _sum(rest: bytes) -> bytes:
    return hashlib.sha256(rest).hexdigest()[:SUM_DIGITS].encode("ascii")


def parse_line(raw: bytes) -> ParsedLine:
    """Read a line but for its completions.

    Raises:
        ValueError: the checksum does not hold.
        KeyError, TypeError: it holds, and the line is of no kind that is known.
    """
    rest, checksum = _checked(raw)
    head, found, tail = rest.partition(_ANSWERS)
    value = json.loads(b"{" + head + b"}" if found else b"{" + rest)
    if "ledger" in value:
        return ParsedLine(LedgerLine(**value["ledger"]), checksum)
    if "frozen" in value:
        return ParsedLine(FrozenLine(**value["frozen"]), checksum)
    return ParsedLine(_answer_head(value, tail), checksum)


def _answer_head(value: Mapping[str, object], tail: bytes) -> AnswerHead:
    key = AnswerKey(str(value["teacher"]), str(value["chat"]), str(value["sampling"]))
    worst = float(str(value.get("worst_usd", 0.0)))
    if "n" not in value:  # as lines were written before they said so
        completions = [Completion.model_validate(item) for item in json.loads(b"[" + tail[:-1])]
        return head_of(key, completions, worst)
    raw, revisions = value.get("info"), value["revisions"]
    assert isinstance(revisions, list)
    return AnswerHead(
        key,
        int(str(value["n"])),
        float(str(value["usd"])),
        worst,
        int(str(value.get("unknown", 0))),
        tuple(map(str, revisions)),
        ModelInfo(**raw) if isinstance(raw, dict) else None,
    )


def completions_text(raw: bytes) -> bytes:
    """The completions of an answer line as they stand in it, without the brackets.

    Raises:
        ValueError: the checksum does not hold.
    """
    rest, _ = _checked(raw)
    return rest.partition(_ANSWERS)[2][:-2]


def completions_of(raw: bytes) -> list[Completion]:
    """The completions of an answer line.

    Raises:
        ValueError: the checksum does not hold, or they are none.
    """
    return [
        Completion.model_validate(item) for item in json.loads(b"[" + completions_text(raw) + b"]")
    ]


def _checked(raw: bytes) -> tuple[bytes, bytes]:
    rest = raw[_REST_AT:].removesuffix(b"\n")
    claimed = checksum_of(raw)
    separator = raw[len(HEAD) + SUM_DIGITS : _REST_AT]
    if not raw.startswith(HEAD) or separator != b'",' or claimed != _sum(rest):
        raise ValueError("checksum")
    return rest, claimed
