"""What a search says of each setting, and what its reader must know: from its trials alone.

Knows trials as records; knows no student, no study and no file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue

from stillhouse.evaluate.search import ParameterResult, Spread, TrialResult, TuneResult

FEW_TO_JUDGE_BY: Final = 100
QUARTER: Final = 0.25
FEWEST_GOOD: Final = 3
EDGE: Final = 0.02  # of a range's width


def parameter_result(
    key: str,
    *,
    own: JsonValue,
    ends: tuple[float, float] | None,
    log: bool,
    choices: tuple[JsonValue, ...],
    trials: Sequence[TrialResult],
    best: TrialResult,
    importance: Spread | None,
) -> ParameterResult:
    """One key: its best value, where good trials lie, and how much it mattered.

    Args:
        key: of the recipe.
        own: the recipe's value, which trials marked `own` had.
        ends: of a range; `None` for choices.
        log: whether the range was searched by factors.
        choices: what could be chosen.
        trials: all, in order.
        best: the one that was chosen.
        importance: see `ParameterResult`.
    """
    done = sorted(
        (trial for trial in trials if trial.value is not None),
        key=lambda trial: (trial.value, trial.number),
    )
    top = done[: max(FEWEST_GOOD, round(QUARTER * len(done)))]
    values = [value_in(trial, key, own) for trial in top]
    found = value_in(best, key, own)
    return ParameterResult(
        key=key,
        own=own,
        best=found,
        low=None if ends is None else ends[0],
        high=None if ends is None else ends[1],
        log=log,
        choices=choices,
        importance=importance,
        good=_often(values) if ends is None else _ends(values),
        at_edge=ends is not None and at_edge(_number(found), ends, log=log),
    )


def value_in(trial: TrialResult, key: str, own: JsonValue) -> JsonValue:
    """A key's value in a trial."""
    return own if trial.own else trial.values[key]


def at_edge(value: float, ends: tuple[float, float], *, log: bool) -> bool:
    """Whether a value lies within 2% of a range's width of one of its ends."""
    low, high = ends
    if log:
        step = float((high / low) ** EDGE)
        return value <= low * step or value >= high / step
    margin = EDGE * (high - low)
    return value <= low + margin or value >= high - margin


def notes_of(result: TuneResult) -> tuple[str, ...]:
    """What a reader must know before relying on the figures, a sentence each."""
    notes: list[str] = []
    best = result.trial(result.best)
    if result.tuning < FEW_TO_JUDGE_BY:
        notes.append(
            f"{result.tuning} examples decide: the best trial may be the luckiest; tune.split can "
            "be larger"
        )
    if best.own:
        notes.append("no trial was better than the recipe as it is on the tuning split")
    elif result.own is None:
        notes.append("the recipe as it is was not finished: there is nothing to compare with")
    edges = [one.key for one in result.parameters if one.at_edge and not best.own]
    if edges:
        notes.append(
            f"the best value of {', '.join(edges)} lies at the end of its range: a wider one may "
            "hold a better"
        )
    if result.held_out_looks > 1:
        notes.append(
            f"{result.held_out_looks} students of searches in this folder have been judged on the "
            "held-out sets: choosing among them by these figures makes the figures too good"
        )
    if any(one.importance is None for one in result.parameters):
        done = sum(trial.state == "complete" for trial in result.trials)
        notes.append(f"{done} finished trials are too few to say how much each setting mattered")
    if result.stopped_by == "budget":
        notes.append("the budget ended the search; raise it and run the same command to go on")
    failed = sum(trial.state == "failed" for trial in result.trials)
    if failed:
        notes.append(f"{failed} combinations could not be run; the table says why")
    notes.append(
        "the students compared here were trained without the tuning split; stillhouse run with the "
        "tuned recipe trains on all training examples"
    )
    return tuple(notes)


def _number(value: JsonValue) -> float:
    assert isinstance(value, int | float), "ranges hold numbers"
    return float(value)


def _ends(values: Sequence[JsonValue]) -> tuple[JsonValue, ...]:
    numbers = [_number(value) for value in values]
    return (min(numbers), max(numbers))


def _often(values: Sequence[JsonValue]) -> tuple[JsonValue, ...]:
    counted = Counter(json.dumps(value) for value in values)
    return tuple(json.loads(text) for text, _ in counted.most_common())
