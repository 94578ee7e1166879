"""How far several answers to one query agree, and which of them the others stand behind.

Labels: the share that says the same. Objects: the least share over their fields, so that one field
in doubt is seen. Free texts: mean similarity to the others, whose greatest is the medoid. Knows
answers as text; who gave them, and what agreement is enough, is its callers' business.

Wang et al. (2023), Self-consistency; Kumar and Byrne (2004), minimum Bayes risk decoding (medoid).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pydantic import JsonValue

from stillhouse.core.duplicates import normalised
from stillhouse.core.records import Completion
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, Task, canonical_json

GRAM: Final = 3
MEASURES: Final[Mapping[str, str]] = {
    "classification": "share of equal labels",
    "extraction": "share of equal values in the least agreed field",
    "generation": "mean character-trigram F1 with the other samples",
}


class Agreement(NamedTuple):
    """`shares[i]` is how far the others agree with answer i; `best` is the index of the greatest.

    `doubt` says, for objects, which field of the best answer is agreed on least.
    """

    best: int
    shares: tuple[float, ...]
    doubt: str

    @property
    def share(self) -> float:
        """How far the others agree with the best answer."""
        return self.shares[self.best]


class TeacherAnswer(NamedTuple):
    """What one of several teachers answered: its position among the completions."""

    model: str
    position: int


def self_consistency(task: Task, answers: Sequence[str], drawn: int) -> Agreement:
    """Agreement among the accepted samples of one query.

    Args:
        task: the task.
        answers: canonical texts of the accepted samples, at least one.
        drawn: how many samples were drawn: those that were rejected agree with none.

    Ties go to the earliest answer.
    """
    if not answers or drawn < len(answers):
        raise ValueError("at least one answer is needed, and as many drawn as there are")
    if isinstance(task, ClassificationTask):
        counts = Counter(answers)
        return _best([counts[answer] / drawn for answer in answers])
    if isinstance(task, ExtractionTask):
        return _by_field([fields(json.loads(answer)) for answer in answers], drawn)
    return _by_similarity(answers, drawn)


def ensemble_agreement(
    task: Task, completions: Sequence[Completion], answers: Sequence[str], teachers: int
) -> tuple[list[TeacherAnswer], Agreement]:
    """Agreement among several teachers: each has one voice, the answer its samples stand behind.

    Args:
        task: the task.
        completions: the accepted completions of one query, of any number of models, at least one.
        answers: their canonical texts.
        teachers: how many teachers were asked: one without an accepted answer agrees with none.
    """
    by_model: dict[str, list[int]] = {}
    for index, completion in enumerate(completions):
        by_model.setdefault(completion.model, []).append(index)
    voices = []
    for model, indices in by_model.items():
        own = self_consistency(task, [answers[i] for i in indices], len(indices))
        voices.append(TeacherAnswer(model, indices[own.best]))
    return voices, self_consistency(task, [answers[voice.position] for voice in voices], teachers)


def fields(value: JsonValue, path: str = "") -> dict[str, str]:
    """Path -> canonical JSON of each value in an object; a list is one value, its order counts."""
    if not isinstance(value, dict) or not value:
        return {path or "answer": canonical_json(value)}
    found: dict[str, str] = {}
    for name, item in value.items():
        found |= fields(item, f"{path}.{name}" if path else name)
    return found


def trigram_f1(left: Counter[str], right: Counter[str]) -> float:
    """2 |A & B| / (|A| + |B|) over multisets of character trigrams: 1 for equal texts."""
    shared = sum(min(count, right[gram]) for gram, count in left.items())
    return 2 * shared / (left.total() + right.total())


def trigrams(text: str) -> Counter[str]:
    """Character trigrams of the normalised text, never empty; words of any script have them."""
    plain = normalised(text)
    return Counter(plain[i : i + GRAM] for i in range(max(1, len(plain) - GRAM + 1)))


def _best(shares: Sequence[float], doubts: Sequence[str] = ()) -> Agreement:
    best = max(range(len(shares)), key=lambda i: shares[i])
    return Agreement(best, tuple(shares), doubts[best] if doubts else "")


def _by_field(found: Sequence[Mapping[str, str]], drawn: int) -> Agreement:
    names = sorted({name for one in found for name in one})
    counts = {name: Counter(one.get(name) for one in found) for name in names}
    least: list[tuple[float, float]] = []
    doubts: list[str] = []
    for one in found:
        shares = {name: counts[name][one.get(name)] / drawn for name in names}
        doubt = min(names, key=lambda name: shares[name])
        least.append((shares[doubt], sum(shares.values()) / len(names)))
        doubts.append(doubt)
    # The mean over fields decides between answers whose least agreed field is agreed on alike.
    best = max(range(len(found)), key=lambda i: least[i])
    return Agreement(best, tuple(share for share, _ in least), doubts[best])


def _by_similarity(answers: Sequence[str], drawn: int) -> Agreement:
    if drawn == 1:
        return Agreement(0, (1.0,), "")
    grams = [trigrams(answer) for answer in answers]
    totals = [0.0] * len(answers)
    for i, left in enumerate(grams):
        for j in range(i + 1, len(grams)):
            similarity = 1.0 if answers[i] == answers[j] else trigram_f1(left, grams[j])
            totals[i] += similarity
            totals[j] += similarity
    return _best([total / (drawn - 1) for total in totals])
