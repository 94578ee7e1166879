"""Whether a bigger student would still gain: a curve of score over parameters, in words.

The same power law as over examples (`core.learning_curve`): it rises towards what this kind of
student reaches with these answers, however large it is. Pure functions of scores and sizes; knows
no files and trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scipy.special import ndtri

from stillhouse.core.learning_curve import CurveFit, fit_curve
from stillhouse.core.statistics import Interval
from stillhouse.evaluate.studies import SizedStudent, SizeFit, SizePoint
from stillhouse.evaluate.summary import count, share

FEWEST_SCATTERED: Final = 3  # as many scores as a curve has parameters show no scatter
FEWEST: Final = 3  # sizes
LARGER: Final = 2.0  # times the largest that was trained
DRAWN: Final = 32
POINT: Final = 1.0  # a gain below this is called little


def curve_through(
    sizes: Sequence[float], scores: Sequence[Interval], confidence: float
) -> CurveFit:
    """A curve through scores that all stem from the same samples.

    Their luck moves all scores together: the noise of the curve is their scatter about it. Too few
    to show a scatter: the noise of each score.

    Raises:
        ValueError: fewer than three sizes.
    """
    errors: list[float] | None = None
    if len(scores) <= FEWEST_SCATTERED:
        wide = 2 * float(ndtri((1 + confidence) / 2))
        errors = [max((score.high - score.low) / wide, 1e-6) for score in scores]
    return fit_curve(
        sizes, [score.estimate for score in scores], confidence=confidence, errors=errors
    )


def size_fit(
    students: Sequence[SizedStudent], teacher_parameters: int | None, confidence: float
) -> SizeFit | None:
    """The curve through students of one source; `None` below three sizes.

    Where there are several trainings of each it goes through all of them, so that how they differ
    is in its intervals. It is asked what twice the largest would score, but nothing larger than the
    teacher.
    """
    known = [
        (one.parameters, score)
        for one in students
        if one.parameters
        for score in ([each.score for each in one.trainings] or [one.score])
    ]
    if len({size for size, _ in known}) < FEWEST:
        return None
    fit = curve_through([size for size, _ in known], [score for _, score in known], confidence)
    smallest, largest = min(size for size, _ in known), max(size for size, _ in known)
    bigger = round(LARGER * largest)
    if teacher_parameters is not None and teacher_parameters > largest:
        bigger = min(bigger, teacher_parameters)
    span = bigger / smallest
    grid = {round(smallest * span ** (k / (DRAWN - 1))) for k in range(DRAWN)}
    gain = fit.gain(largest, bigger)
    return SizeFit(
        sizes=tuple(size for size, _ in known),
        ceiling=fit.ceiling,
        ceiling_known=fit.ceiling_known,
        exponent=fit.exponent,
        amount=fit.amount,
        drawn=tuple(
            SizePoint(parameters=n, score=fit.at(n), beyond=n > largest)
            for n in sorted(grid | {largest, bigger})
        ),
        on_curve=len(known) > FEWEST_SCATTERED  # else the scatter widens the intervals
        or all(score.low <= fit.at(size).estimate <= score.high for size, score in known),
        largest=largest,
        bigger=bigger,
        score=fit.at(bigger),
        gain=100 * gain.estimate,
        gain_low=100 * gain.low,
        gain_high=100 * gain.high,
    )


def size_words(fit: SizeFit | None, sizes: int) -> str:
    """One sentence: would a bigger student still gain?

    Args:
        fit: of `size_fit`.
        sizes: how many different ones there are of the recipe's source.
    """
    if fit is None:
        return (
            f"whether a bigger student would gain is not known: a curve over size needs {FEWEST} "
            f"sizes of one source, and there {'is' if sizes == 1 else 'are'} {sizes}"
        )
    step = (
        f"at {count(fit.bigger)} parameters, from {count(fit.largest)}, the curve over size says "
        f"{share(fit.score)}: {fit.gain:+.1f} points [{fit.gain_low:+.1f}, {fit.gain_high:+.1f}]"
    )
    if not fit.on_curve:
        return (
            "these sizes do not tell whether a bigger student would gain: they lie on no curve "
            "that rises with size; train more sizes or seeds"
        )
    if fit.gain_high < POINT:
        return f"a bigger student would gain little: {step}"
    if fit.gain_low > 0:
        return f"a bigger student would still gain: {step}"
    return f"these sizes do not tell whether a bigger student would gain: {step}"
