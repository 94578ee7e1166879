"""How many more answers are worth paying for: a fitted learning curve against their price.

Pure functions of a fit and a price; knows no files and trains nothing. Scores are shares, gains are
in points (100 times a difference of scores).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from stillhouse.core.learning_curve import CurveFit
from stillhouse.core.statistics import Interval
from stillhouse.evaluate.studies import AnswerCost, MoreAnswers, Reach
from stillhouse.evaluate.summary import usd

FACTORS: Final = (1.5, 2.0, 3.0, 5.0, 10.0)
FEW_POINTS: Final = 1.0  # a doubling that brings less is called flat where no value was given
FARTHEST: Final = 10.0  # a fit says nothing of ten times what it has seen


def steps_from(fit: CurveFit, now: int, cost: AnswerCost) -> tuple[MoreAnswers, ...]:
    """What larger datasets would bring, from `now` examples."""
    return tuple(_step(fit, now, round(now * factor), cost) for factor in FACTORS)


def _step(fit: CurveFit, now: int, then: int, cost: AnswerCost) -> MoreAnswers:
    found = fit.gain(now, then)
    answers = math.ceil((then - now) * cost.answers_per_example)
    price = None if cost.usd_per_answer is None else answers * cost.usd_per_answer
    gain = 100 * found.estimate
    return MoreAnswers(
        examples=then,
        answers=answers,
        usd=price,
        score=fit.at(then),
        gain=gain,
        gain_low=100 * found.low,
        gain_high=100 * found.high,
        usd_per_point=price / gain if price is not None and gain > 1e-9 else None,
    )


def reach_of(fit: CurveFit, now: int, target: float, cost: AnswerCost) -> Reach:
    """What it takes to come to a score."""
    found = fit.reach(target)
    if found.size is None:
        return Reach(
            target=target, examples=None, soonest=found.soonest, latest=None, answers=None, usd=None
        )
    answers = max(0, math.ceil((found.size - now) * cost.answers_per_example))
    price = None if cost.usd_per_answer is None else answers * cost.usd_per_answer
    return Reach(
        target=target,
        examples=found.size,
        soonest=found.soonest,
        latest=found.latest,
        answers=answers,
        usd=price,
    )


def worth_most(fit: CurveFit, now: int, cost: AnswerCost, point_usd: float) -> MoreAnswers | None:
    """The step with the highest value less price, up to ten times the examples; `None`: none pays.

    A point is worth `point_usd`; a gain is counted at the fit's estimate.
    """
    if cost.usd_per_answer is None:
        return None
    tried = sorted({round(now * FARTHEST ** (k / 40)) for k in range(1, 41)} - {now})
    steps = [_step(fit, now, then, cost) for then in tried]
    best = max(steps, key=lambda one: point_usd * one.gain - (one.usd or 0.0), default=None)
    if best is None or point_usd * best.gain <= (best.usd or 0.0):
        return None
    return best


def verdict_of(  # noqa: PLR0917 - all that the sentences speak of
    now: int,
    fit: CurveFit,
    more: Sequence[MoreAnswers],
    reach: Reach,
    teacher: float,
    point_usd: float | None,
    worth: MoreAnswers | None,
) -> tuple[str, ...]:
    """The question answered in sentences, the most important first."""
    double = next(step for step in more if step.examples >= 2 * now - 1)
    lines = [_answer(now, fit, double, reach, point_usd, worth)]
    lines.append(
        f"twice as many examples ({double.examples:,}) would bring {double.gain:+.1f} points "
        f"({double.gain_low:+.1f} to {double.gain_high:+.1f})"
        + (
            ""
            if double.usd is None
            else f" for {usd(double.usd)}"
            + (f", {usd(double.usd_per_point)} a point" if double.usd_per_point else "")
        )
    )
    lines += [_ceiling(fit, teacher), _way(now, reach)]
    checked = fit.backtest()
    if checked is not None:
        lines.append(
            f"a curve through the smaller sizes alone foretold {_percent(checked.predicted)} for "
            f"the largest, which has {100 * checked.seen:.1f}%"
            + ("" if checked.held else ": it was wrong, so trust no extrapolation here")
        )
    return tuple(lines)


def _ceiling(fit: CurveFit, teacher: float) -> str:
    said = f"the teacher has {100 * teacher:.1f}%"
    if not fit.ceiling_known:
        return (
            "these sizes do not show where the curve ends: with examples without end this student "
            f"would come to {100 * fit.ceiling.low:.1f}% or anything above; {said}"
        )
    return f"with examples without end this student would come to {_percent(fit.ceiling)}; {said}"


def _way(now: int, reach: Reach) -> str:
    target = f"{100 * reach.target:.1f}%, the teacher's score less the margin,"
    if reach.examples is None:
        if reach.soonest is None:
            return f"{target} is out of this student's reach by every curve that fits"
        return (
            f"{target} is out of this student's reach by the fit; the best curve that fits would "
            f"be there at {reach.soonest:,} examples"
        )
    latest = "never" if reach.latest is None else f"{reach.latest:,}"
    doubt = f"(from {reach.soonest:,} by the best curve that fits to {latest} by the worst)"
    if reach.examples <= now:
        return f"{target} is reached at about {reach.examples:,} examples {doubt}"
    price = "" if reach.usd is None else f": {reach.answers:,} more answers, {usd(reach.usd)}"
    far = reach.examples > FARTHEST * now
    return f"{target} takes about {reach.examples:,} examples {doubt}{price}" + (
        "; that is far beyond what was tried, and no more than a guess" if far else ""
    )


def _percent(value: Interval) -> str:
    return f"{100 * value.estimate:.1f}% ({100 * value.low:.1f} to {100 * value.high:.1f})"


def _answer(  # noqa: PLR0917
    now: int,
    fit: CurveFit,
    double: MoreAnswers,
    reach: Reach,
    point_usd: float | None,
    worth: MoreAnswers | None,
) -> str:
    if point_usd is not None:
        if double.usd is None:
            return "what an answer costs is not known: give prices.models of the recipe"
        if worth is None:
            return (
                f"at {usd(point_usd)} a point, no more answers are worth paying for: even the next "
                "ones cost more than they bring"
            )
        edge = worth.examples >= FARTHEST * now - 1
        return (
            f"at {usd(point_usd)} a point, {worth.answers:,} more answers are worth paying for"
            + (" at least" if edge else "")
            + f": {usd(worth.usd)} for {worth.gain:+.1f} points"
            + _least(worth, point_usd)
        )
    if reach.examples is not None and now < reach.examples <= FARTHEST * now:
        price = "" if reach.usd is None else f" ({usd(reach.usd)})"
        return (
            f"about {reach.answers:,} more answers{price} are worth paying for: they bring the "
            "student within the margin of the teacher"
        )
    if double.gain_high < FEW_POINTS:
        why = (
            "the ceiling of this student is below the teacher's: take a bigger student"
            if fit.ceiling_known and fit.ceiling.high < reach.target
            else "it has what answers can give"
        )
        return f"no more answers are worth paying for: twice as many bring less than a point; {why}"
    if double.gain < FEW_POINTS:
        return (
            "more answers are hardly worth paying for: twice as many bring less than a point by "
            "the fit, which cannot rule out more"
        )
    if reach.examples is None:
        return (
            "more answers still help, but by the fit not enough: with a bigger student they may "
            "come within the margin of the teacher"
        )
    still = f"twice as many answers ({double.answers:,} more) still bring a point or more"
    if double.gain_low >= FEW_POINTS:
        return still
    return f"{still} by the fit, which cannot rule out less"


def _least(worth: MoreAnswers, point_usd: float) -> str:
    """What the least gain that fits says of a step that pays by the fit."""
    if point_usd * worth.gain_low > (worth.usd or 0.0):
        return ""
    return (
        f"; the scores do not rule out that they bring {worth.gain_low:+.1f}, less than they cost"
    )
