"""The tests of `anytime_compare` on many experiments side by side: what is decided, and when.

For predictions and for measuring error rates; gives what `Comparison` gives, value for value.
Shapes: N requests in their order, R experiments.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.anytime_compare import ARMS_TRUST, PAIRS_TRUST, Level, block_sizes
from stillhouse.core.anytime_margin import Floats, Margin, SlackTest

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
NEVER: Final = np.iinfo(np.int64).max


class Levels(NamedTuple):
    """Chances of the two errors: good enough, said wrongly; worse than allowed, said wrongly."""

    alpha: float
    alpha_worse: float


class Decided(NamedTuple):
    """After how many requests each experiment was decided; `NEVER` where it was not, or where all
    were decided one way or the other before. [R]"""

    better: Ints
    worse: Ints


class _Tests:
    """Both tests of R experiments; remembers when each first said yes."""

    def __init__(self, count: int, margin: Margin, levels: Levels, trust: float) -> None:
        nulls = np.zeros(count)
        self._margin, self._level = margin, Level()
        self._above = SlackTest(nulls, levels.alpha, margin.low, margin.high, trust=trust)
        self._below = SlackTest(nulls, levels.alpha_worse, -margin.high, -margin.low, trust=trust)
        self.decided = Decided(np.full(count, NEVER), np.full(count, NEVER))

    def add(self, slack: Floats, parts: float | Floats, at: Ints | int, counts: Flags) -> None:
        """Take one slack of each experiment that `counts`, had at request `at`.

        Args:
            parts: variance of the slack as a multiple of the teacher's.
        """
        effect, spread = self._margin.effect(self._level.mean), self._level.variance * parts
        for sign, test, when in (
            (1, self._above, self.decided.better),
            (-1, self._below, self.decided.worse),
        ):
            # An experiment that is over bets on what it tests, which changes no capital.
            test.add(np.where(counts, sign * slack, 0.0), effect, spread)
            new = counts & test.rejected & (when == NEVER)
            when[new] = np.broadcast_to(at, when.shape)[new]

    @property
    def over(self) -> bool:
        """Whether all are decided."""
        return bool(((self.decided.better < NEVER) | (self.decided.worse < NEVER)).all())

    def teacher(self, count: Floats | int, total: Floats, squares: Floats) -> None:
        self._level.add(count, total, squares)


def replay_pairs(student: Floats, teacher: Floats, margin: Margin, levels: Levels) -> Decided:
    """Both answered every request.

    Args:
        student: scores in [0, 1]. [N, R]
        teacher: scores in [0, 1]. [N, R]
    """
    tests = _Tests(student.shape[1], margin, levels, PAIRS_TRUST)
    slack, parts = margin.slack(student, teacher), 1 + margin.keep**2
    everywhere = np.ones(student.shape[1], dtype=np.bool_)
    for number in range(len(student)):
        tests.add(slack[number], parts, number + 1, everywhere)
        tests.teacher(1, teacher[number], teacher[number] ** 2)
        if tests.over:
            break
    return tests.decided


def replay_arms(
    treated: Flags, score: Floats, margin: Margin, levels: Levels, share: float
) -> Decided:
    """Each request went to one arm.

    Args:
        treated: the student's arm. [N, R]
        score: in [0, 1]. [N, R]
        share: the student's, as planned.
    """
    count = treated.shape[1]
    tests = _Tests(count, margin, levels, ARMS_TRUST)
    own, other = _Arm(treated, score), _Arm(~treated, score)
    planned = (1 - share) / share
    used = np.zeros((2, count), dtype=np.int64)
    now = np.zeros(count, dtype=np.int64)
    while True:
        students, teachers = block_sizes(own.seen(now), other.seen(now), planned)
        ready = np.maximum(own.when(used[0] + students), other.when(used[1] + teachers))
        now = np.maximum(now, ready)
        runs = now < NEVER
        if not runs.any() or tests.over:
            return tests.decided
        mine, _ = own.sums(used[0], students)
        total, squares = other.sums(used[1], teachers)
        slack = margin.slack(mine / students, total / teachers)
        tests.add(slack, 1 / students + margin.keep**2 / teachers, now, runs)
        tests.teacher(np.where(runs, teachers, 0), total * runs, squares * runs)
        used += np.where(runs, [students, teachers], 0)


class _Arm:
    """One arm's units in their order: when the k-th came, and sums of scores."""

    def __init__(self, member: Flags, score: Floats) -> None:
        self._so_far = np.zeros((len(member) + 1, member.shape[1]), dtype=np.int32)
        np.cumsum(member, axis=0, out=self._so_far[1:])
        most = int(self._so_far[-1].max())
        count = member.shape[1]
        self._when = np.full((count, most + 2), NEVER)
        self._sums = np.zeros((2, count, most + 1))
        for one in range(count):
            at = np.flatnonzero(member[:, one])
            self._when[one, 1 : len(at) + 1] = at + 1
            kept = score[at, one]
            self._sums[0, one, 1 : len(at) + 1] = kept.cumsum()
            self._sums[1, one, 1 : len(at) + 1] = (kept**2).cumsum()
        self._rows = np.arange(count)

    def seen(self, now: Ints) -> Ints:
        """Units by request `now`. [R]"""
        return self._so_far[np.minimum(now, len(self._so_far) - 1), self._rows].astype(np.int64)

    def when(self, number: Ints) -> Ints:
        """The request with which there were so many units. [R]"""
        return self._when[self._rows, np.minimum(number, self._when.shape[1] - 1)]

    def sums(self, used: Ints, size: Ints) -> tuple[Floats, Floats]:
        """Sum and sum of squares of the next `size` scores after `used`. [R], [R]"""
        most = self._sums.shape[2] - 1
        begin, end = np.minimum(used, most), np.minimum(used + size, most)
        found = self._sums[:, self._rows, end] - self._sums[:, self._rows, begin]
        return found[0], found[1]
