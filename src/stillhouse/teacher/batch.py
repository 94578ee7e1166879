"""Asking by batch, the decisions: what goes into a batch, and what came of it.

A provider answers a batch in any order, in part, or not at all; each request carries a custom id
made of the batch's name and the key of its answer, and by that id alone it is found again. Plain
functions of what they are given: no files, no network, no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from stillhouse.core.records import Completion, Record
from stillhouse.teacher.retry import FATAL_REASONS, STATUS_REASONS, UnreadableAnswerError
from stillhouse.teacher.store import AnswerKey

MB: Final = 1_000_000
NAME_DIGITS: Final = 12
_KEY_DIGITS: Final = 24
_FIRST_DIGITS: Final = 6
# Names, hyphens and digits: 44 characters of the 64 that Anthropic takes, all of [a-zA-Z0-9_-].
CUSTOM_ID_CHARS: Final = NAME_DIGITS + 1 + _KEY_DIGITS + 1 + _FIRST_DIGITS

# A request that was not run, or not to its end: another try can fare better.
NOT_RUN: Final = frozenset({"batch_expired", "batch_cancelled", "expired", "canceled"})
UNREADABLE: Final = "unreadable"
MISSING: Final = "missing"
_NO_MONEY: Final = ("insufficient_quota", "billing_", "credit balance")
_AGAIN_STATUS: Final = frozenset({408, 409, 429})


class Limits(NamedTuple):
    """What one batch may hold."""

    requests: int
    size: int  # bytes


class Ask(NamedTuple):
    """One request that could go into a batch: samples `first` to `first + n - 1` of a key."""

    first: int
    n: int
    size: int  # bytes of its line in the batch
    worst_usd: float  # at batch price


class Part(NamedTuple):
    """All requests that a key still needs. They go together: their answers are stored as one."""

    key: AnswerKey
    asks: tuple[Ask, ...]


class Item(Record):
    """What is remembered of a request in a batch, so that its answer finds its place."""

    custom_id: str
    chat: str
    sampling: str
    query_id: str
    first: int
    n: int
    worst_usd: float


class Taken(NamedTuple):
    """What `take` chose.

    `parts` go into the batch; `left` wait for another; `too_large` fit into none. `short_of_usd`
    says that the budget, not the provider's limits, closed the batch.
    """

    parts: tuple[Part, ...]
    left: tuple[Part, ...]
    too_large: tuple[Part, ...]
    short_of_usd: bool


class Row(NamedTuple):
    """One line of a batch's results: a JSON body, or why there is none."""

    custom_id: str
    status: int
    body: Mapping[str, object] | None = None
    code: str = ""
    message: str = ""


class Outcome(NamedTuple):
    """What a batch brought for one key.

    `answers` are in the order of the samples; `worst_usd` is the most they can have cost. Where
    samples are missing, `verdict` says whether to ask again, and `reason` and `detail` why; then
    `custom_id` is the request's that is worst off. `unread_usd` is the most that answers cost which
    cannot be read, `missing_usd` that requests without a row did if they were answered.
    """

    key: AnswerKey
    query_id: str
    first: int
    answers: tuple[Completion, ...]
    worst_usd: float
    verdict: Literal["whole", "again", "failed", "fatal"]
    reason: str = ""
    detail: str = ""
    custom_id: str = ""
    unread_usd: float = 0.0
    missing_usd: float = 0.0


def custom_id(batch: str, key: AnswerKey, first: int) -> str:
    """A request's id: the batch's name, a digest of the answer's key, the first sample."""
    digest = hashlib.sha256("\n".join(key).encode("utf-8")).hexdigest()[:_KEY_DIGITS]
    return f"{batch}-{digest}-{first:0{_FIRST_DIGITS}d}"


def belongs(batch: str, the_id: str) -> bool:
    """Whether a custom id was made for this batch."""
    return len(the_id) == CUSTOM_ID_CHARS and the_id.startswith(f"{batch}-")


def asks(have: int, n: int, per_request: int, measure: Callable[[int, int], Ask]) -> list[Ask]:
    """The requests that bring samples `have` to `n - 1`, each at most `per_request` of them.

    `measure(first, n)` weighs one request.
    """
    found = []
    while have < n:
        count = min(per_request, n - have)
        found.append(measure(have, count))
        have += count
    return found


def take(parts: Sequence[Part], limits: Limits, room_usd: float | None) -> Taken:
    """Fill one batch from the front of `parts`.

    A key's requests stay together; where they are more than a whole batch may hold, only its first
    ones go: the others are asked once these are answered, because a key is in one batch at a time.
    Nothing is taken that could cost more than `room_usd` (`None`: no limit).
    """
    taken: list[Part] = []
    left: list[Part] = []
    too_large: list[Part] = []
    count, size, usd = 0, 0, 0.0
    short = False
    for index, part in enumerate(parts):
        if any(ask.size > limits.size for ask in part.asks):
            too_large.append(part)
            continue
        fitting = _front(part, limits)
        more_size = sum(ask.size for ask in fitting.asks)
        more_usd = sum(ask.worst_usd for ask in fitting.asks)
        full = count + len(fitting.asks) > limits.requests or size + more_size > limits.size
        short = not full and room_usd is not None and usd + more_usd > room_usd
        if full or short:
            left.extend(parts[index:])
            break
        taken.append(fitting)
        count, size, usd = count + len(fitting.asks), size + more_size, usd + more_usd
    return Taken(tuple(taken), tuple(left), tuple(too_large), short)


def _front(part: Part, limits: Limits) -> Part:
    """As many of a key's first requests as one batch can hold."""
    count, size = 0, 0
    for ask in part.asks:
        if count == limits.requests or size + ask.size > limits.size:
            break
        count, size = count + 1, size + ask.size
    return Part(part.key, part.asks[:count])


def join(
    teacher: str,
    items: Iterable[Item],
    rows: Iterable[Row],
    read: Callable[[Item, Mapping[str, object]], Sequence[Completion]],
) -> Iterator[Outcome]:
    """Join results to what was asked, by custom id, whatever their order.

    An id that was not asked, and the second row of one id, are passed over. A key is yielded as
    soon as all its requests have a row; those without one come last, to be asked again.

    Args:
        teacher: of the keys.
        items: what was asked.
        rows: the results, in any order.
        read: the completions of an answer's body; raises UnreadableAnswerError or ValueError.
    """
    waiting = {item.custom_id: item for item in items}
    of_key: dict[AnswerKey, list[Item]] = {}
    for item in waiting.values():
        of_key.setdefault(_key(teacher, item), []).append(item)
    found: dict[str, _Answer] = {}
    for row in rows:
        if row.custom_id not in waiting:
            continue
        item = waiting.pop(row.custom_id)
        found[item.custom_id] = _answer(item, row, read)
        key = _key(teacher, item)
        if all(one.custom_id in found for one in of_key[key]):
            mine = of_key.pop(key)
            yield _outcome(key, mine, [found.pop(one.custom_id) for one in mine])
    for key, mine in of_key.items():
        yield _outcome(key, mine, [found.get(one.custom_id, _MISSING) for one in mine])


class _Answer(NamedTuple):
    completions: tuple[Completion, ...]
    verdict: Literal["whole", "again", "failed", "fatal"] = "whole"
    reason: str = ""
    detail: str = ""


_MISSING: Final = _Answer((), "again", MISSING, "the results hold no row for this request")


def _key(teacher: str, item: Item) -> AnswerKey:
    return AnswerKey(teacher, item.chat, item.sampling)


def _answer(
    item: Item, row: Row, read: Callable[[Item, Mapping[str, object]], Sequence[Completion]]
) -> _Answer:
    if row.body is not None:
        try:
            return _Answer(tuple(read(item, row.body))[: item.n])
        except (UnreadableAnswerError, ValueError, TypeError, AttributeError) as error:
            return _Answer((), "again", UNREADABLE, str(error))
    verdict, reason = verdict_of(row.status, row.code, row.message)
    return _Answer((), verdict, reason, row.message or row.code or f"HTTP {row.status}")


def verdict_of(
    status: int, code: str, message: str
) -> tuple[Literal["again", "failed", "fatal"], str]:
    """What an error row means: ask again, never again, or stop asking anything.

    Args:
        status: the HTTP status that the request would have got; 0 where it was not run.
        code: the provider's word for it.
        message: for people.
    """
    said = f"{code} {message}".casefold()
    if code in NOT_RUN:
        return "again", "expired" if "expired" in code else "cancelled"
    if any(word in said for word in _NO_MONEY):
        return "fatal", "quota"
    reason = STATUS_REASONS.get(status, "server" if status >= 500 or status == 0 else "bad_request")
    if reason in FATAL_REASONS:
        return "fatal", reason
    if status in _AGAIN_STATUS or status >= 500 or status == 0:
        return "again", reason
    return "failed", reason


_WORST_FIRST: Final = ("fatal", "failed", "again", "whole")


def _outcome(key: AnswerKey, items: Sequence[Item], answers: Sequence[_Answer]) -> Outcome:
    """Put a key's requests together, in the order of their samples."""
    pairs = sorted(zip(items, answers, strict=True), key=lambda pair: pair[0].first)
    bad, worst = min(pairs, key=lambda pair: _WORST_FIRST.index(pair[1].verdict))
    completions = tuple(c for _, answer in pairs for c in answer.completions)
    return Outcome(
        key=key,
        query_id=pairs[0][0].query_id,
        first=pairs[0][0].first,
        answers=completions,
        worst_usd=sum(item.worst_usd for item, answer in pairs if answer.completions),
        verdict=worst.verdict,
        reason=worst.reason,
        detail=worst.detail,
        custom_id=bad.custom_id,
        unread_usd=_lost(pairs, UNREADABLE),
        missing_usd=_lost(pairs, MISSING),
    )


def _lost(pairs: Sequence[tuple[Item, _Answer]], reason: str) -> float:
    return sum(item.worst_usd for item, answer in pairs if answer.reason == reason)
