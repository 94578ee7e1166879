"""The watch set: labelled examples that training looks at and never learns from.

What is held out has no true answers, so that nothing on it tells accuracy, or whether a student
copies the teacher's mistakes. These examples do: each has the teacher's own answer (and belief)
beside the true one. They are whole groups of near-duplicates that hold true answers alone, so that
nothing in training is nearly one of them and nothing else is lost to it. Knows examples; knows no
student.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np

from stillhouse.core.records import Example, Message

WATCH: Final = "watch.jsonl"
MOST: Final = 200
FEWEST: Final = 30  # an accuracy of fewer is within 18 points at best: not worth their lessons
_STREAM: Final = 3  # of the seed, apart from what else is drawn by it


def watch_set(
    examples: Sequence[Example],
    answers: Mapping[str, str],
    share: float,
    seed: int,
    without: Collection[str] = (),
) -> list[Example]:
    """The watch set of a dataset, in its order; empty where it would be smaller than `FEWEST`.

    Args:
        examples: all, with their groups.
        answers: what the teacher itself says to those that hold a true answer, by id.
        share: of the examples with a true answer that may be taken.
        seed: which groups are taken.
        without: ids that are not taken.
    """
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.group].append(example)
    pure = [g for g in groups.values() if all(e.id in answers for e in g)]
    wanted = min(MOST, round(share * sum(map(len, pure))))
    if wanted < FEWEST:
        return []
    there = Counter(example.label for group in pure for example in group)
    unwanted = set(without)
    free = [g for g in pure if not any(e.id in unwanted for e in g)]
    taken: Counter[str | None] = Counter()
    ids: set[str] = set()
    for number in np.random.default_rng((seed, _STREAM)).permutation(len(free)):
        group = free[number]
        more = taken + Counter(example.label for example in group)
        # A rare answer's few examples are worth more as lessons.
        rare = any(2 * more[example.label] > there[example.label] for example in group)
        if len(ids) + len(group) > wanted or rare:
            continue
        taken = more
        ids |= {example.id for example in group}
    if len(ids) < FEWEST:
        return []
    return [_with_answer(e, answers[e.id]) for e in examples if e.id in ids]


def _with_answer(example: Example, answer: str) -> Example:
    """The same with the teacher's answer; the truth stays its reference."""
    messages = (*example.prompt, Message(role="assistant", content=answer))
    label = None if example.label is None else answer
    return example.model_copy(update={"messages": messages, "label": label})
