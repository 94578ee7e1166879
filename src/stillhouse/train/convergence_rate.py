"""Whether a training's learning rate was too high: it rose, or nothing was learned at its end.

A loss that has settled is no fault where the student has learned its task. That it has not is said
where the evidence shows it: its answers have hardly anything to do with the teacher's, class by
class, by an upper bound. Agreement alone cannot tell: where one answer is frequent, a good student
and one that always gives that answer agree with the teacher about as often. Knows numbers only.
"""

from __future__ import annotations

from typing import Final

from stillhouse.train.detect import Gap, fewest, informed, rises
from stillhouse.train.evidence import LEVEL, Evidence, Finding, Name, percent

SLIGHT: Final = 0.20  # of the way from chance to the teacher; "slight" in Landis and Koch (1977)
FEWEST: Final = 8  # rows of training loss
NAME: Final[Name] = "rate_too_high"

Numbers = dict[str, float | int | None]


def rate_too_high(evidence: Evidence) -> Finding:
    """A rising training loss, or a student that learned nothing though its loss has settled."""
    losses = [row.loss for row in evidence.rows if row.loss is not None]
    lower = f"lower train.learning_rate (it was {evidence.learning_rate:g}), to a tenth at first"
    if any(row.loss is None and row.held_out_divergence is None for row in evidence.rows):
        return Finding(NAME, True, "the training loss was not finite at some step", lower)
    if len(losses) < FEWEST:
        return Finding(NAME, None, f"{len(losses)} rows of training loss are too few to tell")
    p = rises(losses)
    numbers: Numbers = {"p_value": p}
    if p <= LEVEL:
        seen = f"the training loss rose in the course of training (p = {p:.2g})"
        return Finding(NAME, True, seen, lower, numbers)
    if evidence.kept is None or evidence.kept.choices is None or evidence.teacher is None:
        return Finding(NAME, False, "the training loss did not rise", None, numbers)
    learned = informed(evidence.kept.choices, evidence.teacher, LEVEL)
    if learned is None:
        seen = "the training loss did not rise; the teacher gives one answer to all held-out items"
        return Finding(NAME, None, f"{seen}, which tell nothing of what was learned", None, numbers)
    return _learned(learned, losses, lower, numbers)


def _learned(learned: Gap, losses: list[float], lower: str, numbers: Numbers) -> Finding:
    """What a loss that did not rise means, by what was learned: a share of the way from chance."""
    numbers |= {"learned": learned.difference, "low": learned.low, "high": learned.high}
    if learned.low > 0:
        return Finding(NAME, False, "the training loss did not rise", None, numbers)
    little = f"answers class by class are {percent(max(0.0, learned.difference))} of the way from "
    little += f"chance to the teacher's (at most {percent(learned.high)})"
    if learned.high > SLIGHT:
        return Finding(
            NAME, None,
            f"the training loss did not rise; the student's {little}: too few held-out items of "
            "the rarer answers to tell whether anything was learned", None, numbers,
        )  # fmt: skip
    last = losses[len(losses) // 2 :]
    if len(last) < fewest(LEVEL):
        seen = f"the student's {little}; {len(losses)} rows of training loss are too few to tell "
        return Finding(NAME, None, f"{seen}whether it was still falling", None, numbers)
    if rises([-loss for loss in last]) <= LEVEL:
        seen = f"the student's {little}, and its training loss was still falling"
        return Finding(NAME, False, seen, None, numbers)
    return Finding(
        NAME, True, f"the training loss has settled, yet the student's {little}",
        f"{lower}; if it was low already, raise it and train longer", numbers,
    )  # fmt: skip
