"""What a training is judged by, and the shape of what is said of it.

Knows numbers; knows no model, no file and no judgement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

from stillhouse.train.detect import Integers
from stillhouse.train.history import CurveRow
from stillhouse.train.looks import Look

LEVEL: Final = 0.01  # the chance that a test speaks of something that is not there

Name = Literal[
    "rate_too_high",
    "copies_mistakes",
    "divergence_growth",
    "too_little_data",
    "not_finished",
    "capacity_ceiling",
    "soft_targets",
]


class Finding(NamedTuple):
    """One known cause: `found` (`None`: cannot be told), what was seen, and what to do about it."""

    name: Name
    found: bool | None
    seen: str
    action: str | None = None
    numbers: Mapping[str, float | int | None] = {}


class Told(NamedTuple):
    """Answers to N examples of which the teacher's own answer and the truth are both known."""

    choices: Integers  # the student's, look by look [K, N]
    teacher: Integers  # [N]
    truth: Integers  # [N]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The course of one training.

    `kept` and `lesson` are the kept student on the held-out set and on examples of the training
    set. For a classifier of C `classes`, `teacher` and `truth` [N] are answers to the held-out
    items, -1 where unknown, `watched` are the same of the watch set (`Look.watched`), and `entropy`
    is the teacher's mean one over classes at the distillation temperature (nats), `None` where it
    is not known or not learned from.
    """

    rows: Sequence[CurveRow]
    looks: Sequence[Look]
    kept: Look | None
    lesson: Look | None
    best_step: int
    learning_rate: float
    distillation_temperature: float
    classes: int | None = None
    teacher: Integers | None = None
    truth: Integers | None = None
    watched: tuple[Integers, Integers] | None = None
    entropy: float | None = None


def told(evidence: Evidence) -> Told | None:
    """The looks at examples of known truth: those of the watch set, and of the held-out set where
    that has any. `None` where there is none, or where some look did not see them."""
    parts: list[Told] = []
    if evidence.watched is not None:
        seen = [look.watched for look in evidence.looks]
        if seen and all(one is not None for one in seen):
            parts.append(Told(np.array(seen), *evidence.watched))
    if evidence.teacher is not None and evidence.truth is not None:
        known = (evidence.truth >= 0) & (evidence.teacher >= 0)
        own = [look.choices for look in evidence.looks]
        if known.any() and own and all(one is not None for one in own):
            choices = np.array([one[known] for one in own if one is not None])
            parts.append(Told(choices, evidence.teacher[known], evidence.truth[known]))
    if not parts:
        return None
    return Told(
        np.concatenate([part.choices for part in parts], 1),
        np.concatenate([part.teacher for part in parts]),
        np.concatenate([part.truth for part in parts]),
    )


def finite(value: float | None) -> float | None:
    """JSON has no word for what is not a number."""
    return value if value is not None and math.isfinite(value) else None


def percent(value: float) -> str:
    """A share in words."""
    return f"{100 * value:.1f}%"
