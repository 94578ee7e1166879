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


def voices(task: Task, answers: Sequence[tuple[str, str]]) -> list[str]:
    """What each of several teachers says to one query: the answer its own samples stand behind.

    Args:
        task: the task.
        answers: (model, canonical text) of every accepted answer of every teacher.
    """
    by_model: dict[str, list[str]] = {}
    for model, text in answers:
        by_model.setdefault(model, []).append(text)
    return [texts[self_consistency(task, texts, len(texts)).best] for texts in by_model.values()]


def ensemble_agreement(
    task: Task, answers: Sequence[str], said: Sequence[str], teachers: int
) -> Agreement:
    """How far several teachers stand behind each of `answers`: theirs, or what became of them.

    Labels and fields: the share of the teachers that say the same. Free texts: mean similarity to
    what the teachers say, but for one that said just this.

    Args:
        task: the task.
        answers: canonical texts, at least one.
        said: what each teacher that has a voice says (`voices`).
        teachers: how many were asked: one without a voice agrees with nothing.
    """
    if not answers or teachers < max(1, len(said)):
        raise ValueError("at least one answer is needed, and as many teachers as voices")
    if isinstance(task, ClassificationTask):
        return _best([said.count(answer) / teachers for answer in answers])
    if isinstance(task, ExtractionTask):
        return _by_field(
            [fields(json.loads(answer)) for answer in answers],
            teachers,
            [fields(json.loads(one)) for one in said],
        )
    shares = []
    for answer in answers:
        others = list(said)
        if answer in others:
            others.remove(answer)
        own = trigrams(answer)
        total = sum(1.0 if o == answer else trigram_f1(own, trigrams(o)) for o in others)
        shares.append(total / max(1, teachers - (len(others) < len(said))))
    return _best(shares)


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


def _by_field(
    found: Sequence[Mapping[str, str]],
    drawn: int,
    voters: Sequence[Mapping[str, str]] | None = None,
) -> Agreement:
    """By the votes of `voters`, or of the answers themselves."""
    votes = found if voters is None else voters
    names = sorted({name for one in (*found, *votes) for name in one})
    counts = {name: Counter(one.get(name) for one in votes) for name in names}
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
