"""Many teachers' answers to one query become one: the mixture, the geometric mean, the vote.

Pure functions of answers and beliefs. Members are in the order of the recipe, and ties go to the
earliest, so the best one belongs first. Knows no model; asking is in `teacher`.

Shapes: M members, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import JsonValue

from stillhouse.core.answers import agreed
from stillhouse.core.beliefs import class_probabilities
from stillhouse.core.overlap import rouge_l
from stillhouse.core.recipe_ensemble import Combine
from stillhouse.core.records import Completion
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, Task, canonical_json

Rows = Sequence[Sequence[float]]  # [M, C], each row sums to one
_ABSENT, _OBJECT = "absent", "object"  # no JSON text: there, strings are quoted


class MemberAnswers(NamedTuple):
    """What one member said to one query: its samples, how its beliefs are read, its weight."""

    completions: Sequence[Completion]
    signals: str
    weight: float = 1.0


class Combined(NamedTuple):
    """The ensemble's answer. `text` is `None` where `problem` says why there is none.

    `silent` are the members without a vote: no answer, or none that can be read.
    """

    text: str | None
    probabilities: tuple[float, ...] | None
    silent: tuple[int, ...]
    problem: str | None = None


def mean_probabilities(rows: Rows, weights: Sequence[float]) -> tuple[float, ...]:
    """The mixture: p_c = sum_m w_m p_mc / sum_m w_m.

    Where members differ it is flatter than they are; a label is likely if any member says so.
    """
    total = math.fsum(weights)
    return tuple(
        math.fsum(w * p for w, p in zip(weights, column, strict=True)) / total
        for column in zip(*rows, strict=True)
    )


def mean_logits(rows: Rows, weights: Sequence[float]) -> tuple[float, ...] | None:
    """The geometric mean, renormalised: p_c ~ prod_m p_mc ** (w_m / sum w).

    The softmax of the members' mean logits, for a softmax does not see the constant in which a
    logit and ln p differ. Each member has a veto: a label with p = 0 in one row gets 0. `None`
    where every label is vetoed. It commutes with a temperature, which `mean_probabilities` does
    not.
    """
    total = math.fsum(weights)
    logs = []
    for column in zip(*rows, strict=True):
        if min(column) <= 0.0:
            logs.append(-math.inf)
        else:
            terms = (w * math.log(p) for w, p in zip(weights, column, strict=True))
            logs.append(math.fsum(terms) / total)
    top = max(logs)
    if top == -math.inf:
        return None
    shares = [math.exp(value - top) for value in logs]
    norm = math.fsum(shares)
    return tuple(share / norm for share in shares)


def vote_shares(
    labels: Sequence[str], votes: Sequence[str], weights: Sequence[float]
) -> tuple[float, ...]:
    """(M v_c + 1/2) / (M + C/2): v_c the share of weight of M votes for label c.

    As `beliefs.from_votes`, for votes of unequal weight.
    """
    total, count = math.fsum(weights), len(votes)
    shares = [
        math.fsum(w for vote, w in zip(votes, weights, strict=True) if vote == label) / total
        for label in labels
    ]
    return tuple((count * share + 0.5) / (count + 0.5 * len(labels)) for share in shares)


def plurality(votes: Sequence[str], weights: Sequence[float]) -> int:
    """Index of the first vote for the answer with most weight; ties: the earliest."""
    heaviest = {
        vote: math.fsum(w for other, w in zip(votes, weights, strict=True) if other == vote)
        for vote in dict.fromkeys(votes)
    }
    return votes.index(max(heaviest, key=lambda vote: heaviest[vote]))


def field_majority(
    task: ExtractionTask, objects: Sequence[dict[str, JsonValue]], weights: Sequence[float]
) -> JsonValue:
    """A JSON object whose every field is the members' vote; nested objects field by field.

    To leave a field out is a vote too; lists are voted on whole; 1 and 1.0 are one number. Where
    the fields together break the schema, it is the object that most members gave whole.
    """
    merged = _vote(list(objects), weights)
    if task.parse(canonical_json(merged)).problem is None:
        return merged
    whole = [canonical_json(_plain(one)) for one in objects]
    return objects[plurality(whole, weights)]


def medoid(texts: Sequence[str], weights: Sequence[float]) -> int:
    """Index of the text most like the others: the highest sum of w_j ROUGE-L(text, text_j).

    Minimum Bayes risk decoding with the members as the sample (Kumar and Byrne 2004). Ties: the
    earliest.
    """
    likeness = [
        math.fsum(
            w * rouge_l(text, other)
            for j, (other, w) in enumerate(zip(texts, weights, strict=True))
            if j != i
        )
        for i, text in enumerate(texts)
    ]
    return likeness.index(max(likeness))


def combine(task: Task, how: Combine, members: Sequence[MemberAnswers]) -> Combined:
    """One answer of the members' answers to one query.

    Members that cannot be read have no vote, and the others' weights count alone; at least more
    than half of all weight must be readable, else there is no answer.

    Args:
        task: decides what an answer is.
        how: one of `COMBINES` of the task's kind.
        members: in the order of the recipe.
    """
    if how in ("mean_probabilities", "mean_logits") and isinstance(task, ClassificationTask):
        return _by_belief(task, how, members)
    chosen = [agreed(task, member.completions) for member in members]
    speaking = [index for index, answer in enumerate(chosen) if answer is not None]
    silent = _silent(members, speaking)
    if _no_quorum(members, speaking):
        return Combined(None, None, silent, _missing(members, speaking))
    weights = [members[index].weight for index in speaking]
    texts = [answer.text for answer in chosen if answer is not None]
    values = [task.parse(text).value for text in texts]
    if isinstance(task, ClassificationTask):
        labels = [str(value) for value in values]
        belief = vote_shares(task.labels, labels, weights) if len(labels) > 1 else None
        return Combined(labels[plurality(labels, weights)], belief, silent)
    if isinstance(task, ExtractionTask):
        objects = [value for value in values if isinstance(value, dict)]
        merged = field_majority(task, objects, weights)
        return Combined(json.dumps(merged, ensure_ascii=False), None, silent)
    return Combined(texts[medoid(texts, weights)], None, silent)


def _by_belief(
    task: ClassificationTask, how: Combine, members: Sequence[MemberAnswers]
) -> Combined:
    rows = [class_probabilities(task, m.completions, m.signals) for m in members]
    speaking = [index for index, row in enumerate(rows) if row is not None]
    silent = _silent(members, speaking)
    if _no_quorum(members, speaking):
        return Combined(None, None, silent, _missing(members, speaking))
    known = [row for row in rows if row is not None]
    weights = [members[index].weight for index in speaking]
    if how == "mean_probabilities":
        mean: tuple[float, ...] | None = mean_probabilities(known, weights)
    else:
        mean = mean_logits(known, weights)
    if mean is None:
        return Combined(None, None, silent, "every label has probability 0 for some member")
    return Combined(task.labels[mean.index(max(mean))], mean, silent)


def _silent(members: Sequence[MemberAnswers], speaking: Sequence[int]) -> tuple[int, ...]:
    return tuple(index for index in range(len(members)) if index not in speaking)


def _no_quorum(members: Sequence[MemberAnswers], speaking: Sequence[int]) -> bool:
    heard = math.fsum(members[index].weight for index in speaking)
    return not heard > math.fsum(member.weight for member in members) / 2


def _missing(members: Sequence[MemberAnswers], speaking: Sequence[int]) -> str:
    return f"{len(members) - len(speaking)} of {len(members)} members gave nothing that can be read"


def _vote(values: Sequence[JsonValue], weights: Sequence[float]) -> JsonValue:
    """The value with most weight; objects, where they have most, field by field."""
    votes = [_key(value) for value in values]
    winner = plurality(votes, weights)
    if votes[winner] != _OBJECT:
        return values[winner]
    inner = [(v, w) for v, w in zip(values, weights, strict=True) if isinstance(v, dict)]
    result: dict[str, JsonValue] = {}
    for field in dict.fromkeys(name for value, _ in inner for name in value):
        votes = [_key(value[field]) if field in value else _ABSENT for value, _ in inner]
        if votes[plurality(votes, [weight for _, weight in inner])] != _ABSENT:
            having = [(value[field], weight) for value, weight in inner if field in value]
            result[field] = _vote([v for v, _ in having], [weight for _, weight in having])
    return result


def _key(value: JsonValue) -> str:
    """What a value is counted as."""
    return _OBJECT if isinstance(value, dict) else canonical_json(_plain(value))


def _plain(value: JsonValue) -> JsonValue:
    """What tells values apart in a vote: 1 and 1.0 do not, nor does space around a text."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
