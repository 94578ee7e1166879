"""A curve of quality over size (examples, steps, parameters), fitted and continued with its doubt.

The curve is a power law, score(n) = c - a n^-b with a >= 0 (Hestness et al. 2017; Cortes et al.
1993): c is the ceiling that no size passes. Its exponent is poorly known from few points, so every
figure is a profile likelihood interval: all values that some curve of this form takes which fits
the scores well enough. Between the sizes it is about as wide as the noise; far beyond them it opens
until it reaches the best possible score, and then says so. It knows the noise and the parameters;
it cannot know that the form itself stops holding: `backtest` looks at that where it can be seen.

Knows numbers only: not what was measured, nor on which model. Equations, measured error rates and
papers: docs/convergence.md.

Shapes: S sizes, K exponents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from scipy.special import ndtri
from scipy.stats import chi2
from scipy.stats import t as student_t

from stillhouse.core.bootstrap import Floats
from stillhouse.core.statistics import CONFIDENCE, Interval

SLOWEST, FASTEST = 0.05, 4.0  # exponents; published learning curves lie between 0.07 and 1
EXPONENTS: Final = np.geomspace(SLOWEST, FASTEST, 200)
FARTHEST: Final = 10**12  # sizes above are never reached
_DOUBLINGS: Final = 60
_HALVINGS: Final = 30
_PARAMETERS: Final = 3
_CHANCE: Final = 0.05  # scatter that known errors explain less often than this widens the intervals


class Reach(NamedTuple):
    """The size at which a score is reached: by the fitted curve, by the best curve that fits and
    by the worst. `None`: never."""

    size: int | None
    soonest: int | None
    latest: int | None


class Backtest(NamedTuple):
    """What the curve through all but the largest size says of the largest, beside what was seen.

    `held` is whether the score seen lies in the interval, which allows for its own noise too.
    """

    size: float
    predicted: Interval
    seen: float
    held: bool


@dataclass(frozen=True, slots=True)
class CurveFit:
    """A fitted curve. `ceiling_known` is whether the scores themselves bound the ceiling short of
    the best possible score; where they do not, the curve may go on to anywhere.

    `sizes`, `scores` and `errors` are those it was fitted to; `amount` is a and `exponent` b.
    """

    sizes: tuple[float, ...]
    scores: tuple[float, ...]
    errors: tuple[float, ...] | None
    best: float | None
    falling: bool
    confidence: float
    ceiling: Interval
    ceiling_known: bool
    amount: float
    exponent: float

    def at(self, n: float) -> Interval:
        """The curve (not a further noisy score) at a size.

        Raises:
            ValueError: the size is not above 0.
        """
        if not n > 0:
            raise ValueError(f"the size must be above 0 (got {n})")
        return _interval(self._problem(), float(n), self.falling)

    def gain(self, start: float, end: float) -> Interval:
        """How much better the curve is at a size than at a smaller one: never below 0, since no
        curve of this form loses by more.

        The profile likelihood interval of the difference itself; that of the score at `end` also
        holds what is not known of the score at `start`.

        Raises:
            ValueError: not 0 < start < end.
        """
        if not 0 < start < end:
            raise ValueError(f"a gain is from a size above 0 to a larger one (got {start}, {end})")
        problem = self._problem()
        sizes = (float(start), float(end))
        estimate = max(0.0, problem.at(sizes[1]) - problem.at(sizes[0]))
        low, high = (
            _edge(lambda gain: problem.gain_misfit(gain, *sizes), problem, estimate, way)
            for way in (-1.0, 1.0)
        )
        if problem.fits(problem.gain_misfit(0.0, *sizes)):
            low = 0.0
        return Interval(
            estimate=estimate,
            low=max(0.0, min(low, estimate)),
            high=max(high, estimate),
            n=len(self.sizes),
        )

    def extrapolates(self, size: float) -> bool:
        """Whether a size lies outside those that were measured."""
        return not min(self.sizes) <= size <= max(self.sizes)

    def to_reach(self, score: float) -> int | None:
        """The smallest size at which the fitted curve is as good as a score; `None` if never."""
        sign = -1.0 if self.falling else 1.0
        gap = sign * (self.ceiling.estimate - score)
        if sign * (self.at(1).estimate - score) >= 0:
            return 1
        if gap <= 0 or self.amount <= 0:
            return None
        logarithm = math.log(self.amount / gap) / self.exponent
        return None if logarithm > math.log(FARTHEST) else max(1, math.ceil(math.exp(logarithm)))

    def reach(self, score: float) -> Reach:
        """`to_reach` with its doubt: from the ends of the intervals of `at`."""
        if self.falling:
            soonest = _first(lambda size: self.at(size).low <= score)
            latest = _first(lambda size: self.at(size).high <= score)
        else:
            soonest = _first(lambda size: self.at(size).high >= score)
            latest = _first(lambda size: self.at(size).low >= score)
        return Reach(self.to_reach(score), soonest, latest)

    def backtest(self) -> Backtest | None:
        """Whether a curve through the smaller sizes would have told the largest; `None` where too
        few are left to fit."""
        largest = max(self.sizes)
        kept = [i for i, size in enumerate(self.sizes) if size < largest]
        left = [i for i, size in enumerate(self.sizes) if size == largest]
        errors = None if self.errors is None else [self.errors[i] for i in kept]
        try:
            fit = fit_curve(
                [self.sizes[i] for i in kept],
                [self.scores[i] for i in kept],
                confidence=self.confidence,
                errors=errors,
                best=self.best,
                falling=self.falling,
            )
        except ValueError:
            return None
        predicted = fit.at(largest)
        seen = float(np.mean([self.scores[i] for i in left]))
        problem = fit._problem()
        own = problem.noise if self.errors is None else min(self.errors[i] for i in left)
        off = seen - predicted.estimate
        half = (
            predicted.high - predicted.estimate if off > 0 else predicted.estimate - predicted.low
        )
        allowed = math.hypot(half, problem.width * own / math.sqrt(len(left)))
        return Backtest(largest, predicted, seen, abs(off) <= allowed)

    def _problem(self) -> _Problem:
        points = _points(self.sizes, self.scores, self.errors)
        return _problem(points, self.best, self.falling, self.confidence)


def fit_curve(
    sizes: Sequence[float],
    scores: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    errors: Sequence[float] | None = None,
    best: float | None = 1.0,
    falling: bool = False,
) -> CurveFit:
    """Fit a power law to scores over sizes, by (weighted) least squares under its constraints.

    Args:
        sizes: examples, steps or parameters [S]; a size may come more than once (seeds).
        scores: the score at each [S].
        confidence: of all intervals.
        errors: the standard error of each score [S], where it is known. Scores that scatter more
            than these explain widen the intervals. Without, the scatter alone tells the noise.
        best: the best possible score, which no ceiling passes; `None`: there is none.
        falling: less is better (a divergence): score(n) = c + a n^-b, and `best` is below.

    Raises:
        ValueError: fewer than 3 different sizes, fewer than 4 scores without `errors`, a size or
            error not above 0, a number that is not finite.
    """
    problem = _problem(_points(sizes, scores, errors), best, falling, confidence)
    ceiling = _interval(problem, math.inf, falling)
    reached = -ceiling.low if falling else ceiling.high
    return CurveFit(
        sizes=tuple(map(float, sizes)),
        scores=tuple(map(float, scores)),
        errors=None if errors is None else tuple(map(float, errors)),
        best=best,
        falling=falling,
        confidence=confidence,
        ceiling=ceiling,
        ceiling_known=reached < problem.best and bool(np.isfinite(reached)),
        amount=problem.amount * problem.unit**problem.exponent,
        exponent=problem.exponent,
    )


@dataclass(frozen=True, slots=True)
class _Problem:
    """Scores that rise, weights, and the best curve: c - a (n / unit)^-b.

    `limit` is the weighted sum of squares up to which a curve fits well enough, `noise` the
    standard error of a score of weight 1, `width` the quantile that an interval is wide.
    """

    sizes: Floats  # [S], in units
    scores: Floats  # [S]
    weights: Floats  # [S]
    best: float
    unit: float
    ceiling: float
    amount: float
    exponent: float
    limit: float
    noise: float
    width: float

    def at(self, size: float) -> float:
        """The best curve at a size."""
        if math.isinf(size):
            return self.ceiling
        return float(self.ceiling - self.amount * (size / self.unit) ** -self.exponent)

    def fits(self, misfit: float) -> bool:
        """Whether a curve of this weighted sum of squares fits well enough."""
        return misfit <= self.limit * (1 + 1e-9) + 1e-15

    def gain_misfit(self, gain: float, start: float, end: float) -> float:
        """The least weighted sum of squares of the curves that rise by `gain` between two sizes."""
        if gain < 0:
            return math.inf
        rise = (start / self.unit) ** -EXPONENTS - (end / self.unit) ** -EXPONENTS  # [K]
        powers = self.sizes ** -EXPONENTS[:, None]  # [K, S]
        raised = self.scores + (gain / rise)[:, None] * powers  # what the ceiling should be
        ceiling = np.minimum((self.weights * raised).sum(-1) / self.weights.sum(), self.best)
        rest = raised - ceiling[:, None]
        return float((self.weights * rest**2).sum(-1).min())

    def misfit(self, value: float, size: float) -> float:
        """The least weighted sum of squares of the curves that pass through `value` at `size`."""
        if value > self.best:
            return math.inf
        weights, scores = self.weights, self.scores
        there = np.zeros_like(EXPONENTS)  # the power at `size` [K]
        if math.isfinite(size):
            there = (size / self.unit) ** -EXPONENTS
        # A curve through `value` is value - a * (power - power there), its ceiling at most `best`.
        powers = self.sizes ** -EXPONENTS[:, None] - there[:, None]  # [K, S]
        norm = (weights * powers**2).sum(-1)
        amount = ((value - scores) * weights * powers).sum(-1) / norm
        with np.errstate(divide="ignore", invalid="ignore"):
            most = np.where(there > 0, (self.best - value) / there, math.inf)
        rest = scores - value + np.clip(amount, 0.0, most)[:, None] * powers
        return float((weights * rest**2).sum(-1).min())


class _Points(NamedTuple):
    sizes: Floats  # [S]
    scores: Floats  # [S]
    weights: Floats  # [S], 1 / variance where that is known, else 1
    known: bool


def _points(
    sizes: Sequence[float], scores: Sequence[float], errors: Sequence[float] | None
) -> _Points:
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ValueError("sizes and scores must be as many finite numbers")
    if (x <= 0).any():
        raise ValueError("sizes must be above 0")
    different = len(np.unique(x))
    if different < _PARAMETERS:
        raise ValueError(f"a curve needs {_PARAMETERS} different sizes (got {different})")
    if errors is None:
        if len(x) <= _PARAMETERS:
            raise ValueError("3 scores without standard errors leave no room for noise: give 4")
        return _Points(x, y, np.ones_like(x), known=False)
    e = np.asarray(errors, dtype=np.float64)
    if e.shape != x.shape or not np.isfinite(e).all() or (e <= 0).any():
        raise ValueError("errors must be as many finite numbers above 0 as there are scores")
    return _Points(x, y, e**-2, known=True)


def _problem(points: _Points, best: float | None, falling: bool, confidence: float) -> _Problem:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1 (got {confidence})")
    x, weights, freedom = points.sizes, points.weights, len(points.sizes) - _PARAMETERS
    sign = -1.0 if falling else 1.0
    top = math.inf if best is None else sign * best
    y = sign * points.scores
    unit = float(np.exp(np.log(x).mean()))
    ceiling, amount, exponent, least = _best_curve(x / unit, y, weights, top)
    normal = float(ndtri((1 + confidence) / 2))
    noise, width = 1.0, normal  # the standard error of a score of weight 1, where it is known
    if freedom and (not points.known or chi2.sf(least, freedom) < _CHANCE):
        noise = math.sqrt(least / freedom)
        width = float(student_t.ppf((1 + confidence) / 2, freedom))
    limit = least + (noise * width) ** 2
    return _Problem(x / unit, y, weights, top, unit, ceiling, amount, exponent, limit, noise, width)


class _Curve(NamedTuple):
    ceiling: float
    amount: float
    exponent: float
    misfit: float


def _best_curve(x: Floats, y: Floats, weights: Floats, best: float) -> _Curve:
    """Least squares over all exponents, with a >= 0 and c <= best: linear in c and a for each."""
    powers = x ** -EXPONENTS[:, None]  # [K, S]
    total = weights.sum()
    middle, mean = (weights * powers).sum(-1) / total, float((weights * y).sum() / total)
    spread = (weights * (powers - middle[:, None]) ** 2).sum(-1)
    slope = (weights * (powers - middle[:, None]) * (y - mean)).sum(-1) / spread
    amount = np.maximum(-slope, 0.0)
    ceiling = mean + amount * middle
    above = ceiling > best
    if above.any():  # the best of those that end at `best`
        held = np.maximum(
            (weights * (best - y) * powers).sum(-1) / (weights * powers**2).sum(-1), 0.0
        )
        amount, ceiling = np.where(above, held, amount), np.where(above, best, ceiling)
    rest = y - ceiling[:, None] + amount[:, None] * powers
    misfit = (weights * rest**2).sum(-1)
    k = int(misfit.argmin())
    return _Curve(float(ceiling[k]), float(amount[k]), float(EXPONENTS[k]), float(misfit[k]))


def _interval(problem: _Problem, size: float, falling: bool) -> Interval:
    estimate = problem.at(size)
    low, high = (
        _edge(lambda value: problem.misfit(value, size), problem, estimate, way)
        for way in (-1.0, 1.0)
    )
    if math.isfinite(problem.best) and problem.fits(problem.misfit(problem.best, size)):
        high = problem.best
    low, high = min(low, estimate), max(high, estimate)
    if falling:
        low, estimate, high = -high, -estimate, -low
    return Interval(estimate=estimate, low=low, high=high, n=len(problem.sizes))


def _edge(misfit: Callable[[float], float], problem: _Problem, start: float, way: float) -> float:
    """The last value on one side of `start` that a curve which fits takes: doubling, halving."""
    span = float(np.ptp(problem.scores)) or 1e-6
    step, inside, outside = 1e-2 * span, start, start
    for _ in range(_DOUBLINGS):
        outside = start + way * step
        if not problem.fits(misfit(outside)):
            break
        inside, step = outside, 2 * step
    else:
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if not problem.fits(misfit(middle)):
            outside = middle
        else:
            inside = middle
    return inside


def _first(holds: Callable[[int], bool]) -> int | None:
    """The smallest size from 1 to `FARTHEST` where something holds that goes on holding, within a
    thousandth."""
    if not holds(FARTHEST):
        return None
    low, high = 0, FARTHEST
    while high - low > max(1, low // 1000):
        middle = math.isqrt(max(1, low) * high) if low else high // 2
        middle = min(max(middle, low + 1), high - 1)
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
