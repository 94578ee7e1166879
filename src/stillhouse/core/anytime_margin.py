"""Is a student good enough? Asked after every answer, wrong with probability alpha at most.

Good enough is put as one number, the slack of an answer,

    v = student - keep * teacher + shift,    scores in [0, 1]

whose mean is above 0 exactly where no more than the margin is lost: keep = 1 - m, shift = 0 for a
relative margin m, keep = 1, shift = m for an absolute one. `SlackTest` bets against "the mean of v
is at most m0": capital W multiplies by 1 + l_i (v_i - m0), l_i in [0, 1 / (m0 - low)) chosen
before v_i is seen. Under that hypothesis W is a non-negative supermartingale that begins at 1, so
P(ever W >= 1/alpha) <= alpha, whatever the distribution, the bets and the number of looks (Ville
1939; Waudby-Smith and Ramdas 2024, arXiv:2010.09686). Bets only decide how soon it says yes.

They are staked for a student that is as good as its teacher. `PLANNED` of the capital plays to have
won by a planned size, as one plays who must reach a sum by a date (Browne 1999, Adv. Appl. Probab.
31): the size at which a test at one look would say yes in two of three cases. The rest is staked on
multiples of the bet that grows fastest, and on what was seen so far where that is clearer still,
which goes on for as long as it takes.

Knows numbers; no experiment and no clock. Shapes: K hypotheses, tested side by side.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

Floats = npt.NDArray[np.float64]
MarginKind = Literal["absolute", "relative"]
F = TypeVar("F", float, Floats)

PLANNED: Final = 0.75
MULTIPLES: Final = np.array([0.35, 0.7])  # of effect / variance, the bet that grows fastest
_SHARES: Final = np.array([0.3, 0.5, 0.2])[:, None]  # theirs, and that of bets on what was seen
_SHRUNK: Final = 20.0
_POWER_Z: Final = 0.4  # ndtri(0.66)
_MOST_BET: Final = 0.9  # of the bet that could ruin
_LEAST_EFFECT: Final = 1e-3
_MOST_LOG: Final = 500.0
_CHOOSE: Final = 64  # bets are chosen anew after each 1/64 more values


class Margin(NamedTuple):
    """What of the teacher's quality is to be kept."""

    keep: float
    shift: float

    @property
    def low(self) -> float:
        """The least slack that there can be."""
        return self.shift - self.keep

    @property
    def high(self) -> float:
        """The most slack that there can be."""
        return self.shift + 1

    def slack(self, student: F, teacher: F) -> F:
        """By how much a student is better than it must be."""
        return student - self.keep * teacher + self.shift

    def effect(self, teacher: float | Floats) -> Floats:
        """The slack of a student that is as good as its teacher."""
        return np.maximum((1 - self.keep) * np.asarray(teacher) + self.shift, _LEAST_EFFECT)


def margin_of(kind: MarginKind, value: float) -> Margin:
    """The margin of a share (relative) or of points (absolute) that may be lost.

    Raises:
        ValueError: not inside (0, 1).
    """
    if not 0 < value < 1:
        raise ValueError(f"margin: must be inside (0, 1), not {value}")
    return Margin(1 - value, 0.0) if kind == "relative" else Margin(1.0, value)


class SlackTest:
    """Is the mean of values in [low, high] above each of K numbers?

    Args:
        nulls: the numbers, inside (low, high). [K]
        alpha: probability that a wrong one is ever said to be below the mean.
        low: least value that there can be.
        high: most.
        trust: how many values a guessed variance counts as (`add`).

    Raises:
        ValueError: nulls outside, or alpha outside (0, 1).
    """

    def __init__(
        self, nulls: Floats, alpha: float, low: float, high: float, *, trust: float = 5.0
    ) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: must be inside (0, 1), not {alpha}")
        self.nulls = np.atleast_1d(np.asarray(nulls, dtype=np.float64))
        if not bool(np.all((self.nulls > low) & (self.nulls < high))):
            raise ValueError(f"nulls: must be inside ({low}, {high})")
        self.alpha, self.low, self.high, self.n = alpha, low, high, 0
        self._trust = trust
        self._most_bet = _MOST_BET / (self.nulls - low)
        self._fixed = np.zeros((len(_SHARES), len(self.nulls)))  # ln, each account
        self._planned = np.zeros(len(self.nulls))  # ln
        self._sums, self._squares = np.zeros((2, len(self.nulls)))
        self._most = np.zeros(len(self.nulls))  # ln of the largest capital there was
        self._fixed_bets, self._planned_bets = np.zeros_like(self._fixed), self._planned.copy()
        self._choose_at = 0
        self._goal_z = float(ndtri(1 - alpha * PLANNED)) + _POWER_Z

    def add(self, value: float | Floats, effect: float | Floats, spread: float | Floats) -> None:
        """Take one value.

        Args:
            value: one for all hypotheses, or one each. [K]
            effect: what its mean would be for an equal student, from what came before. [K]
            spread: a guess of its variance, from what came before. [K]

        Raises:
            ValueError: the value is not a number in [low, high]; it is not taken.
        """
        x = np.asarray(value, dtype=np.float64)
        if not bool(np.all((x >= self.low - 1e-9) & (x <= self.high + 1e-9))):
            raise ValueError(f"value: must be a number from {self.low} to {self.high}")
        if self.n >= self._choose_at:
            self._choose(np.asarray(effect, dtype=np.float64), spread)
        moved = x - self.nulls
        # What is won beyond any goal is thrown away: it would overflow.
        self._fixed = np.minimum(self._fixed + np.log1p(self._fixed_bets * moved), _MOST_LOG)
        self._planned = np.minimum(self._planned + np.log1p(self._planned_bets * moved), _MOST_LOG)
        self._sums += moved
        self._squares += moved * moved
        self.n += 1
        self._most = np.maximum(self._most, self.log_capital)

    @property
    def log_capital(self) -> Floats:
        """ln W of now, in nats. [K]"""
        fixed = (_SHARES * np.exp(self._fixed)).sum(axis=0)
        found: Floats = np.log((1 - PLANNED) * fixed + PLANNED * np.exp(self._planned))
        return found

    @property
    def rejected(self) -> npt.NDArray[np.bool_]:
        """Which numbers the mean is said to be above; what was once said stays. [K]"""
        return self._most >= -math.log(self.alpha)

    @property
    def p_values(self) -> Floats:
        """1 / the largest capital there ever was: valid at any time. [K]"""
        return np.exp(-self._most)

    def _choose(self, effect: Floats, spread: float | Floats) -> None:
        """Bets of the next values, from what came before."""
        aim = np.maximum(effect - self.nulls, effect / 4)
        variance = (self._squares + self._trust * (spread + aim**2)) / (self.n + self._trust)
        seen = self._sums / (self.n + _SHRUNK)
        aims = np.stack([*(MULTIPLES[:, None] * aim), np.maximum(aim, seen)])
        self._fixed_bets = np.minimum(aims / variance, self._most_bet)
        self._planned_bets = self._dated_bets(aim, variance)
        self._choose_at = self.n + 1 + self.n // _CHOOSE

    def _dated_bets(self, aim: Floats, variance: Floats) -> Floats:
        """The bets that have the best chance of the goal by the planned size, in the limit."""
        left = self._goal_z**2 * variance / aim**2 - self.n
        fixed = (_SHARES * np.exp(self._fixed)).sum(axis=0)
        goal = np.maximum((1 / self.alpha - (1 - PLANNED) * fixed) / PLANNED, 1e-9)
        part = np.clip(np.exp(self._planned) / goal, 1e-9, 1 - 1e-9)
        z = ndtri(part)
        density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        bets = density / part / np.sqrt(variance * np.maximum(left, 1.0))
        playing = (left > 0) & (part < 1 - 1e-8) & (part > 1e-8)
        return np.where(playing, np.minimum(bets, self._most_bet), 0.0)
