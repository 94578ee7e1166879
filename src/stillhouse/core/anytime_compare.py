"""Student against teacher while answers come in: good enough, worse than allowed, or not known yet.

Two designs give one slack (`anytime_margin`) at a time:

- pairs: both answered the same request; v = student - keep * teacher + shift.
- arms: each answered requests of its own, assigned by chance. Units are taken in blocks, in the
  order in which they came, one student with as many teachers as there are to each student (or the
  other way round); v = mean(students) - keep * mean(teachers) + shift. A block's mean is that of a
  pair, its variance s^2 / a + keep^2 t^2 / b, and every unit is used once, so that the larger arm
  counts.

Values must be of independent units (users), and every unit's in [0, 1]. Knows no request and no
clock.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.anytime_margin import MULTIPLES, Floats, Margin, SlackTest

Design = Literal["pairs", "arms"]
Side = Literal["student", "teacher"]
Ints = npt.NDArray[np.int64]

STEPS: Final = 30  # of the course's grid on either side of the margin
STEP: Final = 0.2  # of the margin
_GUESSED: Final = 20.0
_GUESS: Final = 0.8
_ROUND: Final = 1e-9
MOST_WAITING: Final = 100_000  # units of an arm whose other arm does not come
ARMS_TRUST: Final = 150.0  # a block's variance is guessed from the teacher's many units
PAIRS_TRUST: Final = 5.0


class Level:
    """Mean and variance of a teacher's scores so far, begun with a guess that counts as 20.

    Sums may be numbers, or arrays of experiments side by side.
    """

    def __init__(self) -> None:
        self._n: float | Floats = _GUESSED
        self._sum: float | Floats = _GUESS * _GUESSED
        self._squares: float | Floats = _GUESS * _GUESSED

    def add(self, count: float | Floats, total: float | Floats, squares: float | Floats) -> None:
        """Take `count` scores in [0, 1] by their sum and sum of squares."""
        self._n = self._n + count
        self._sum = self._sum + total
        self._squares = self._squares + squares

    @property
    def mean(self) -> float | Floats:
        """Of the scores and the guess."""
        return self._sum / self._n

    @property
    def variance(self) -> float | Floats:
        """Of the scores and the guess: that of a coin, to begin with."""
        return np.maximum(self._squares / self._n - self.mean**2, 0.0)


class Bounds(NamedTuple):
    """What a mean is known to be between, however often one looked; `None`: nothing is known."""

    low: float | None
    high: float | None


class Needed(NamedTuple):
    """How many values more until it is said that a student is good enough, or worse than allowed.

    `values` is None where nothing points to either.
    """

    verdict: Literal["better", "worse"]
    values: int | None


class Comparison:
    """The two tests of one experiment's stage, and the course of what is known of its slack.

    Args:
        margin: what is to be kept.
        design: how the values were had.
        alpha: chance that a student which is not good enough is ever said to be.
        alpha_worse: chance that one which is good enough is ever said to be worse than allowed.
        teachers_per_student: units of the arms, as planned.
        course: keep bounds of the slack; without, only the verdicts, at a tenth of the work.
    """

    def __init__(
        self,
        margin: Margin,
        design: Design,
        alpha: float,
        alpha_worse: float,
        teachers_per_student: float = 1.0,
        *,
        course: bool = True,
    ) -> None:
        self.margin, self.design = margin, design
        trust = PAIRS_TRUST if design == "pairs" else ARMS_TRUST
        nulls = course_nulls(margin) if course else np.zeros(1)
        self._zero = int(np.argmin(np.abs(nulls)))
        self._above = SlackTest(nulls, alpha, margin.low, margin.high, trust=trust)
        self._below = SlackTest(-nulls, alpha_worse, -margin.high, -margin.low, trust=trust)
        self._level = Level()
        self._planned = teachers_per_student
        self._waiting: dict[Side, deque[float]] = {
            "student": deque(maxlen=MOST_WAITING),
            "teacher": deque(maxlen=MOST_WAITING),
        }
        self._seen: dict[Side, int] = {"student": 0, "teacher": 0}
        self._size = self._next_size()
        self._sums: dict[Side, float] = {"student": 0.0, "teacher": 0.0}
        self._slack = self._slack_squares = 0.0

    def pair(self, student: float, teacher: float) -> None:
        """Take both scores of one unit."""
        spread = self._level.variance * (1 + self.margin.keep**2)
        self._take(self.margin.slack(student, teacher), spread)
        self._level.add(1, teacher, teacher * teacher)
        self._count("student", student)
        self._count("teacher", teacher)

    def unit(self, side: Side, score: float) -> None:
        """Take one unit's score of an arm; with it a block may be full."""
        self._count(side, score)
        self._waiting[side].append(score)
        students, teachers = self._size
        if len(self._waiting["student"]) < students or len(self._waiting["teacher"]) < teachers:
            return
        own = [self._waiting["student"].popleft() for _ in range(students)]
        other = [self._waiting["teacher"].popleft() for _ in range(teachers)]
        spread = self._level.variance * (1 / students + self.margin.keep**2 / teachers)
        self._take(self.margin.slack(sum(own) / students, sum(other) / teachers), spread)
        self._level.add(teachers, sum(other), sum(one * one for one in other))
        self._size = self._next_size()

    @property
    def n(self) -> int:
        """How many values were bet on."""
        return self._above.n

    @property
    def better(self) -> bool:
        """Whether it is shown that no more than the margin is lost."""
        return bool(self._above.rejected[self._zero])

    @property
    def worse(self) -> bool:
        """Whether it is shown that more than the margin is lost."""
        return bool(self._below.rejected[self._zero])

    @property
    def p_better(self) -> float:
        """Of "more than the margin is lost"; valid at any time."""
        return float(self._above.p_values[self._zero])

    @property
    def p_worse(self) -> float:
        """Of "no more than the margin is lost"; valid at any time."""
        return float(self._below.p_values[self._zero])

    @property
    def slack(self) -> float | None:
        """Mean slack of the values; 0 is exactly at the margin."""
        return self._slack / self.n if self.n else None

    @property
    def equal(self) -> float:
        """The slack that an equal student would have."""
        return float(self.margin.effect(self._level.mean))

    def mean(self, side: Side) -> float | None:
        """Mean score of a side's units."""
        return self._sums[side] / self._seen[side] if self._seen[side] else None

    def count(self, side: Side) -> int:
        """Units of a side."""
        return self._seen[side]

    def bounds(self) -> Bounds:
        """What the mean slack is between, on the course's grid; the low end is above 0 as soon as,
        and no sooner than, `better`."""
        nulls = self._above.nulls
        above = np.logical_and.accumulate(self._above.rejected)
        below = np.logical_and.accumulate(self._below.rejected[::-1])
        low = float(nulls[int(above.sum()) - 1]) if above[0] else None
        high = float(nulls[::-1][int(below.sum()) - 1]) if below[0] else None
        return Bounds(low, high)

    def needed(self) -> Needed:
        """How many values more, if the next are like those so far."""
        mean = self.slack
        if mean is None:
            return Needed("better", None)
        verdict: Literal["better", "worse"] = "better" if mean > 0 else "worse"
        test = self._above if mean > 0 else self._below
        square = max(self._slack_squares / self.n, 1e-6)
        # ln(1 + l v) is nearly l v - (l v)^2 / 2; the bets l are multiples of effect / E[v^2].
        bets = MULTIPLES * self.equal / square
        growth = float((bets * abs(mean) - bets * bets * square / 2).max())
        missing = -math.log(test.alpha) - float(test.log_capital[self._zero])
        if growth <= 0:
            return Needed(verdict, None)
        return Needed(verdict, max(1, math.ceil(max(missing, 0.0) / growth)))

    def _count(self, side: Side, score: float) -> None:
        self._seen[side] += 1
        self._sums[side] += score

    def _next_size(self) -> tuple[int, int]:
        seen = np.array([self._seen["student"]]), np.array([self._seen["teacher"]])
        students, teachers = block_sizes(*seen, self._planned)
        return int(students[0]), int(teachers[0])

    def _take(self, slack: float, spread: float | Floats) -> None:
        effect = self.equal
        self._above.add(slack, effect, spread)
        self._below.add(-slack, effect, spread)
        self._slack += slack
        self._slack_squares += slack * slack


def block_sizes(students: Ints, teachers: Ints, planned: float) -> tuple[Ints, Ints]:
    """Students and teachers of the next block, in the ratio of those seen so far and the plan's,
    which counts as 20 students; one of the two is 1."""
    ratio = (teachers + _GUESSED * planned) / (students + _GUESSED)
    more = np.floor(np.maximum(ratio, 1 / ratio) + _ROUND).astype(np.int64)
    return np.where(ratio >= 1, 1, more), np.where(ratio >= 1, more, 1)


def course_nulls(margin: Margin) -> Floats:
    """The slacks that the course tries: 0, and steps of a fifth of the margin around it."""
    step = STEP * float(margin.effect(1.0))
    down = min(step, -margin.low / (STEPS + 1)) * np.arange(-STEPS, 0)
    up = min(step, margin.high / (STEPS + 1)) * np.arange(STEPS + 1)
    return np.concatenate([down, up])
