"""The judge's gold set: real answers that a person labelled good or bad.

A line is `{"text": ..., "answer": ..., "good": true}`, or `"messages"` in place of `"text"`. Every
mistake names file, line and field. Does not know who judges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_objects
from stillhouse.core.records import Query, message_key
from stillhouse.core.tasks import Task, canonical_json

FIELD: Final = "dataset.judge.gold"
KEYS: Final = frozenset({"id", "text", "messages", "answer", "good"})


class GoldAnswer(NamedTuple):
    """One labelled answer."""

    query: Query
    text: str
    good: bool


class GoldPair(NamedTuple):
    """A good and a bad answer to one query."""

    query: Query
    good: str
    bad: str


def read_gold(path: Path, task: Task) -> list[GoldAnswer]:
    """Read the gold set.

    Raises:
        DataError: no such file, a malformed line, an answer labelled both ways, or none that is
            good, or none that is bad.
    """
    found: dict[tuple[str, str], GoldAnswer] = {}
    for number, raw in read_objects(path):
        where = f"{path} line {number}"
        one = _gold_answer(where, raw, task)
        key = (message_key(one.query.messages), one.text.strip())
        if key in found and found[key].good != one.good:
            raise DataError(
                where, "labels an answer otherwise than an earlier line", value=one.text
            )
        found.setdefault(key, one)
    gold = list(found.values())
    for wanted in (True, False):
        if not any(one.good == wanted for one in gold):
            raise DataError(
                str(path),
                f"holds no answer with good: {str(wanted).lower()}, of {len(gold)}",
                action="label answers of both kinds, some 30 of each: the judge is tested on them",
            )
    return gold


def gold_pairs(gold: list[GoldAnswer]) -> list[GoldPair]:
    """Good and bad answers to the same query, each answer in one pair at most.

    Raises:
        DataError: no query has both.
    """
    by_chat: dict[str, list[GoldAnswer]] = {}
    for one in gold:
        by_chat.setdefault(message_key(one.query.messages), []).append(one)
    pairs = [
        GoldPair(good.query, good.text, bad.text)
        for answers in by_chat.values()
        for good, bad in zip(
            [one for one in answers if one.good],
            [one for one in answers if not one.good],
            strict=False,
        )
    ]
    if not pairs:
        raise DataError(
            FIELD,
            "no query has a good and a bad answer, and mode: pairwise is tested on such pairs",
            action="label two answers to each query, one good and one bad",
        )
    return pairs


def _gold_answer(where: str, raw: dict[str, object], task: Task) -> GoldAnswer:
    unknown = set(raw) - KEYS
    if unknown:
        raise DataError(
            where,
            f"has the unknown key {min(unknown)!r}",
            action=f"known: {', '.join(sorted(KEYS))}",
        )
    good, answer = raw.get("good"), raw.get("answer")
    if not isinstance(good, bool):
        raise DataError(where, "good: must be true or false", value=good)
    if isinstance(answer, dict) and task.kind == "extraction":
        answer = canonical_json(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(where, "answer: must be a text that is not empty", value=answer)
    text, messages = raw.get("text"), raw.get("messages")
    if (text is None) == (messages is None):
        raise DataError(where, "needs text or messages, one of them")
    if text is not None and not isinstance(text, str):
        raise DataError(where, "text: must be a text", value=text)
    try:
        query = Query.model_validate(
            {
                "id": "gold",
                "messages": messages if text is None else task.messages_for(str(text)),
                "task": task.name,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(where, f"{field}: {first['msg']}", value=first.get("input")) from None
    return GoldAnswer(query, _canonical(task, answer), good)


def _canonical(task: Task, answer: str) -> str:
    """In the form in which answers of the traffic are judged; as it is where it has none."""
    value = task.parse(answer).value
    if value is None:
        return answer.strip()
    return value if isinstance(value, str) else canonical_json(value)
