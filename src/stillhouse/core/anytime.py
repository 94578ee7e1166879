"""Tests and bounds of a mean that hold however often one looks, and whenever one stops.

A test at a fixed size says yes wrongly far more often than it promises when it is repeated as data
come in. Here the promise is about the whole course: with probability 1 - alpha no look, of any
number of looks, is ever wrong.

- `BettingTest`: is the mean of values in [0, 1] above m? Capital that bets against "at most m",
  exact for any distribution: K_t = mean over j of prod over i <= t of (1 + l_j (x_i - m)), with
  fixed bets l_j in [0, 1/m). Where the mean is at most m, given what came before, K is a
  supermartingale that begins at 1, so P(ever K_t >= 1/alpha) <= alpha (Ville 1939; Waudby-Smith and
  Ramdas 2024, J. R. Stat. Soc. B 86:1, arXiv:2010.09686). A mixture of bets grows nearly as the
  best of them.
- `betting_lower`: the smallest m that no such test refuses: a confidence sequence.
- `asymptotic_radius`: mean -+ radius from a mean and a variance alone, right in the limit
  (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, Ann. Stat. 52:6, arXiv:2103.06476); for
  means of clusters, which bets on single values do not fit. It needs a burn-in.

Knows numbers; no experiment and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BETS: Final = 24
LEAST_BET: Final = 0.01  # of the largest bet that cannot ruin: for differences that hardly differ
MOST_BET: Final = 0.95


def bets_against(mean: float) -> Floats:
    """Fixed bets on values above `mean`, from careful to bold. [24]

    Raises:
        ValueError: `mean` is not inside (0, 1).
    """
    if not 0 < mean < 1:
        raise ValueError(f"mean: must be inside (0, 1), not {mean}")
    return np.geomspace(LEAST_BET, MOST_BET, BETS) / mean


class BettingTest:
    """Is the mean of values in [0, 1] above `mean`? May be asked after every value.

    Args:
        mean: the hypothesis that is tried: the mean is at most this.
        alpha: probability that it is ever refused wrongly.

    Raises:
        ValueError: outside (0, 1).
    """

    __slots__ = ("_bets", "_log", "_most", "alpha", "mean", "n")

    def __init__(self, mean: float, alpha: float) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: must be inside (0, 1), not {alpha}")
        self.mean, self.alpha, self.n = mean, alpha, 0
        self._bets = bets_against(mean)
        self._log = np.zeros(BETS)
        self._most = 0.0

    def add(self, values: Sequence[float] | Floats) -> None:
        """Take values, in their order.

        Raises:
            ValueError: one is not a number in [0, 1]; none is taken.
        """
        given = np.asarray(values, dtype=np.float64)  # [n]
        if given.size == 0:
            return
        if not bool(np.all((given >= 0) & (given <= 1))):
            raise ValueError("values: must be numbers in [0, 1]")
        steps = np.log1p(np.multiply.outer(given - self.mean, self._bets))  # [n, bets]
        course = self._log + np.cumsum(steps, axis=0)
        self._most = max(self._most, float(_log_mean_exp(course).max()))
        self._log = course[-1]
        self.n += given.size

    @property
    def log_capital(self) -> float:
        """ln K of now, in nats."""
        return float(_log_mean_exp(self._log[None])[0])

    @property
    def p_value(self) -> float:
        """1 / the largest capital there ever was, at most 1: valid at any time."""
        return min(1.0, math.exp(-self._most))

    @property
    def rejected(self) -> bool:
        """Whether capital ever reached 1 / alpha: the mean is above."""
        return self._most >= -math.log(self.alpha)


def betting_lower(values: Sequence[float] | Floats, alpha: float, steps: int = 40) -> float:
    """Lower bound of the mean of values in [0, 1], valid at every look.

    Capital falls as the tried mean rises, so the bound is found by halving; it is the running
    one: what was once refused stays refused.

    Args:
        values: in their order. [n]
        alpha: probability that the bound is ever above the mean.
        steps: of halving; 40 leave 1e-12.

    Raises:
        ValueError: no value, or one that is not in [0, 1].
    """
    given = np.asarray(values, dtype=np.float64)
    if given.size == 0:
        raise ValueError("values: none")
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        if not 0 < middle < 1:
            break
        test = BettingTest(middle, alpha)
        test.add(given)
        low, high = (middle, high) if test.rejected else (low, middle)
    return low


def asymptotic_radius(
    n: int | Floats,
    variance: float | Floats,
    alpha: float,
    *,
    tightest_at: int,
    one_sided: bool = True,
) -> Floats:
    """How far a mean of n may be from the truth, at all n from the burn-in on, in the limit.

    s * sqrt(2 (n r^2 + 1) / (n^2 r^2) * L), s^2 the variance of one value, L =
    ln(1 + sqrt(n r^2 + 1) / (2 alpha)) on one side, ln(sqrt(n r^2 + 1) / alpha) on both; r^2 makes
    it nearly least at `tightest_at`.

    Args:
        n: how many values.
        variance: of one value.
        alpha: probability that the truth is ever outside.
        tightest_at: the n at which one hopes to decide.
        one_sided: a lower or an upper bound alone.

    Raises:
        ValueError: no value, a negative variance, or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: must be inside (0, 1), not {alpha}")
    many, spread = np.asarray(n, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    if bool(np.any(many < 1)) or bool(np.any(spread < 0)) or tightest_at < 1:
        raise ValueError("n and tightest_at: must be at least 1; variance: at least 0")
    each = 2 * alpha if one_sided else alpha
    rate = (-2 * math.log(each) + math.log(1 - 2 * math.log(each))) / tightest_at if each < 1 else 1
    square = max(rate, 1e-12)
    grown = many * square + 1
    root = np.sqrt(grown)
    log = np.log1p(root / (2 * alpha)) if one_sided else np.log(root / alpha)
    radius: Floats = np.sqrt(spread * 2 * grown / (many**2 * square) * log)
    return radius


def _log_mean_exp(logs: Floats) -> Floats:
    """ln of the mean over the last axis, of numbers given by their logarithms."""
    top = logs.max(axis=-1)
    found: Floats = top + np.log(np.exp(logs - top[..., None]).mean(axis=-1))
    return found
