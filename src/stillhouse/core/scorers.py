"""Scorers: one answer against one reference gives a score in [0, 1], by kind of task.

Knows texts and tasks; does not know who answered, nor whether the reference is the truth or the
teacher's answer. An answer that the task cannot read (not a label, not JSON) scores 0.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pydantic import JsonValue

from stillhouse.core.overlap import rouge_l, words
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, Task


class Scorer(NamedTuple):
    """A named function (answer, reference) -> score in [0, 1]."""

    name: str
    score: Callable[[str, str], float]


def scorers_for(task: Task) -> tuple[Scorer, ...]:
    """The scorers of a task; the first is the one that decides.

    classification: `accuracy`. extraction: `field_f1`, `exact_object`. generation: `rouge_l`,
    `token_f1`.
    """
    if isinstance(task, ClassificationTask):
        return (Scorer("accuracy", lambda answer, reference: label_match(task, answer, reference)),)
    if isinstance(task, ExtractionTask):
        return (
            Scorer("field_f1", lambda answer, reference: field_f1(task, answer, reference)),
            Scorer("exact_object", lambda answer, reference: exact_object(task, answer, reference)),
        )
    return (Scorer("rouge_l", rouge_l), Scorer("token_f1", token_f1))


def label_match(task: ClassificationTask, answer: str, reference: str) -> float:
    """1 if both name the same label of the task, else 0."""
    value = task.parse(answer).value
    return float(value is not None and value == task.parse(reference).value)


def exact_object(task: ExtractionTask, answer: str, reference: str) -> float:
    """1 if both are the same JSON object, key order aside, else 0."""
    value, wanted = task.parse(answer).value, task.parse(reference).value
    return float(value is not None and wanted is not None and _same(value, wanted))


def field_f1(task: ExtractionTask, answer: str, reference: str) -> float:
    """F1 over the (path, value) leaves of two JSON objects.

    Text is compared without surrounding space; the items of a list count in any order; null says
    the same as an absent key.
    """
    value, wanted = task.parse(answer).value, task.parse(reference).value
    if value is None or wanted is None:
        return 0.0
    return _multiset_f1(Counter(_leaves(value, "")), Counter(_leaves(wanted, "")))


def token_f1(answer: str, reference: str) -> float:
    """F1 over the multisets of words (Rajpurkar et al. 2016, without dropping articles)."""
    return _multiset_f1(Counter(words(answer)), Counter(words(reference)))


def _multiset_f1(a: Counter[str], b: Counter[str]) -> float:
    total = a.total() + b.total()
    return 1.0 if total == 0 else 2 * (a & b).total() / total


def _leaves(value: JsonValue, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}/{json.dumps(key)}")
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, f"{path}/[]")
    elif value is not None:
        yield f"{path}={json.dumps(_plain(value))}"


def _plain(value: JsonValue) -> JsonValue:
    """1 and 1.0 are one number; surrounding space is not part of a text."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _same(a: JsonValue, b: JsonValue) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, bool) == isinstance(b, bool) and _plain(a) == _plain(b)
