"""A judge on trial: tested on the gold set before it is paid to judge, refused if it tells nothing.

Knows the judge, the gold set and the arithmetic of `core.judging`; files are the stage's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from stillhouse.core.errors import UserError
from stillhouse.core.judge_gold import FIELD, GoldAnswer, GoldPair
from stillhouse.core.judging import (
    GoldCounts,
    JudgeQuality,
    PairOutcome,
    PairQuality,
    gold_counts,
    judge_quality,
    no_better_than_chance,
    pair_quality,
)
from stillhouse.core.statistics import Interval
from stillhouse.models.judge import Answer, Judge, Pair
from stillhouse.models.judge_prompts import SCORES

ONE_ANSWER: Final = 0.95  # of the verdicts: a judge that says little else


class PointTrial(NamedTuple):
    """A pointwise judge on the gold set: its scores, its errors at `min_score`."""

    gold: Sequence[GoldAnswer]
    scores: list[float | None]
    counts: GoldCounts
    quality: JudgeQuality

    def as_json(self) -> dict[str, object]:
        """Quality, and the same between every two scores, for choosing `min_score`."""
        return {
            "good": self.counts.good,
            "bad": self.counts.bad,
            "unreadable": sum(score is None for score in self.scores),
            "sensitivity": self.quality.sensitivity.to_json(),
            "specificity": self.quality.specificity.to_json(),
            "youden": self.quality.youden.to_json(),
            "p_value": self.quality.p_value,
            "thresholds": [self._at(int(score) - 0.5) for score in SCORES[1:]],
        }

    def _at(self, least: float) -> dict[str, object]:
        found = counts_at(self.gold, self.scores, least)
        return {
            "min_score": least,
            "sensitivity": found.true_good / found.good,
            "specificity": found.true_bad / found.bad,
        }


class PairTrial(NamedTuple):
    """A pairwise judge on pairs of a good and a bad answer, both orders asked."""

    outcomes: list[PairOutcome]
    quality: PairQuality

    def as_json(self) -> dict[str, object]:
        """Quality and what else was said."""
        return {
            "pairs": len(self.outcomes),
            "unreadable": self.outcomes.count("unreadable"),
            "ties": self.outcomes.count("tie"),
            "followed_position": sum(o.startswith("followed") for o in self.outcomes),
            "right": self.quality.right.to_json(),
            "wrong": self.quality.wrong.to_json(),
            "net": self.quality.net.to_json(),
            "p_value": self.quality.p_value,
        }


def counts_at(
    gold: Sequence[GoldAnswer], scores: Sequence[float | None], least: float
) -> GoldCounts:
    """Verdicts at a threshold; an unreadable one is "not good", as it is on the traffic."""
    return gold_counts(
        [one.good for one in gold], [score is not None and score >= least for score in scores]
    )


async def try_points(judge: Judge, gold: Sequence[GoldAnswer], min_score: float) -> PointTrial:
    """Score the gold set."""
    scores = await judge.score([Answer(one.query, one.text) for one in gold])
    counts = counts_at(gold, scores, min_score)
    return PointTrial(gold, scores, counts, judge_quality(counts))


async def try_pairs(judge: Judge, pairs: Sequence[GoldPair]) -> PairTrial:
    """Compare the gold pairs, in both orders."""
    outcomes = await judge.compare([Pair(pair.query, pair.good, pair.bad) for pair in pairs])
    return PairTrial(outcomes, pair_quality(outcomes))


def require_useful(model: str, trial: PointTrial | PairTrial) -> None:
    """Refuse a judge that is no better than chance on the gold set.

    Raises:
        UserError: one line that says what it did instead of judging.
    """
    if not no_better_than_chance(trial.quality):
        return
    said = _of_points(trial) if isinstance(trial, PointTrial) else _of_pairs(trial)
    raise UserError(f"dataset.judge {model}", said[0], action=said[1])


class _Said(NamedTuple):
    problem: str
    action: str


_BETTER: Final = "use another judge, or say in dataset.judge.criteria what makes an answer good"


def _of_points(trial: PointTrial) -> _Said:
    counts, total = trial.counts, len(trial.scores)
    unread = sum(score is None for score in trial.scores)
    called_good = counts.true_good + counts.bad - counts.true_bad
    if unread > total / 2:
        return _Said(
            f"{unread} of its {total} verdicts on the gold set cannot be read",
            "raise dataset.judge.max_tokens, or use another judge",
        )
    if max(called_good, total - called_good) >= ONE_ANSWER * total:
        word = "good" if called_good > total / 2 else "bad"
        return _Said(
            f"says {word} whatever it is shown ({counts.true_good} of {counts.good} good answers "
            f"and {counts.bad - counts.true_bad} of {counts.bad} bad ones are good to it): it "
            "tells nothing",
            f"{_BETTER}; another dataset.judge.min_score may part them",
        )
    if counts.good + counts.bad == counts.true_good + counts.true_bad:
        return _Said(
            f"the gold set is too small to show anything ({counts.good} good, {counts.bad} bad)",
            f"label some 30 answers of each kind in {FIELD}",
        )
    shown = _interval("Youden index", trial.quality.youden)
    return _Said(
        f"is no better than chance on the gold set: {shown} includes 0 or is not sure to exclude "
        f"it (p = {trial.quality.p_value:.2g})",
        f"{_BETTER}; more answers in {FIELD} make this surer",
    )


def _of_pairs(trial: PairTrial) -> _Said:
    total = len(trial.outcomes)
    counts = {kind: trial.outcomes.count(kind) for kind in set(trial.outcomes)}
    if counts.get("unreadable", 0) > total / 2:
        return _Said(
            f"{counts['unreadable']} of its {total} comparisons on the gold set cannot be read",
            "raise dataset.judge.max_tokens, or use another judge",
        )
    followed = {"A": counts.get("followed_first", 0), "B": counts.get("followed_second", 0)}
    for word, count in followed.items():
        if count >= ONE_ANSWER * total:
            return _Said(
                f"says {word} whatever stands there ({count} of {total} pairs, both orders "
                "asked): it follows the position and tells nothing",
                _BETTER,
            )
    if counts.get("tie", 0) >= ONE_ANSWER * total:
        return _Said(f"says tie to {counts['tie']} of {total} pairs: it tells nothing", _BETTER)
    if counts.get("first", 0) == total:
        return _Said(
            f"the gold set is too small to show anything ({total} pairs)",
            f"label some 30 pairs in {FIELD}",
        )
    return _Said(
        f"is no better than chance on the gold pairs: right in {counts.get('first', 0)}, wrong in "
        f"{counts.get('second', 0)} of {total} (p = {trial.quality.p_value:.2g})",
        f"{_BETTER}; more pairs in {FIELD} make this surer",
    )


def _interval(name: str, interval: Interval) -> str:
    return f"{name} {interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})"
