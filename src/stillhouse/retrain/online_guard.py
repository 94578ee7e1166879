"""Whether a new version may replace the live one: paired tests on rows that nobody learned from.

Three answers: accept (shown to be as good but for the tolerance), refuse (worse), hold (too few
rows to say: nothing is swapped, nothing is thrown away). Knows scores; no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from stillhouse.core.errors import UserError
from stillhouse.core.loop_online import GuardSection
from stillhouse.core.statistics import Interval, non_inferiority, paired_difference

Scores = npt.NDArray[np.float64] | Sequence[float]
Answer = Literal["accept", "refuse", "hold"]


class GuardVerdict(NamedTuple):
    """What the guard says. `difference`: new minus live, on live traffic's rows. `by_traffic`: what
    these rows alone say."""

    answer: Answer
    by_traffic: Answer
    difference: Interval
    live: float
    new: float
    forgotten: Interval | None

    def to_json(self) -> dict[str, JsonValue]:
        """For notes."""
        told: dict[str, JsonValue] = {
            "answer": self.answer,
            "live": self.live,
            "new": self.new,
            "difference": dict(self.difference.to_json()),
        }
        if self.forgotten is not None:
            told["held_out_difference"] = dict(self.forgotten.to_json())
        return told


def check(
    live: Scores,
    new: Scores,
    section: GuardSection,
    held_out: tuple[Scores, Scores] | None = None,
) -> GuardVerdict:
    """Compare two versions on the guard's rows, paired.

    Args:
        live, new: scores of each row, in [0, 1].
        held_out: of the student as it was distilled and of the new version, on the held-out set
            that came with it.

    Raises:
        UserError: the guard set is empty.
    """
    if len(live) == 0:
        raise empty_guard()
    found = non_inferiority(new, live, section.tolerance, section.confidence)
    answers = [_answer(found.non_inferior, found.difference)]
    if len(live) < section.least:
        answers.append("hold")
    forgotten = None
    if held_out is not None and len(held_out[0]):
        forgotten = paired_difference(held_out[1], held_out[0])
        answers.append("accept" if forgotten.estimate >= -section.forgetting else "refuse")
    order: tuple[Answer, ...] = ("refuse", "hold", "accept")
    answer = next(one for one in order if one in answers)
    return GuardVerdict(
        answer, answers[0], found.difference, float(np.mean(live)), float(np.mean(new)), forgotten
    )


def _answer(non_inferior: bool, difference: Interval) -> Answer:
    if non_inferior:
        return "accept"
    return "refuse" if difference.high < 0 else "hold"


def empty_guard() -> UserError:
    """There is nothing to test a version on."""
    return UserError(
        "online.guard",
        "the guard set is empty, so no version may be swapped",
        value=0,
        action="wait for teacher-answered traffic, or raise online.guard.share",
    )
