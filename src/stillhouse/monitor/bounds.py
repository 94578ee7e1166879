"""Whether figures fell under what they should be: one-sided tests with an effect that matters.

The hypothesis is "no worse than the reference by more than the bound"; it is rejected where the
figure lies below by more than chance and the reference's own uncertainty explain. All tests of a
window are corrected together (Holm). Knows numbers and units; no rows and no time.

Shapes: N samples, G units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr

from stillhouse.core.bootstrap import group_ids
from stillhouse.core.multiplicity import holm
from stillhouse.core.statistics import Interval
from stillhouse.monitor.figures import FEW
from stillhouse.monitor.records import AlertKind, Finding, Severity
from stillhouse.monitor.resampling import CONFIDENCE

_Z: Final = float(ndtri((1 + CONFIDENCE) / 2))
TWICE: Final = 2.0


class Moments(NamedTuple):
    """A mean over units: its variance by linearisation, and the number a share rests on.

    variance = G / (G - 1) sum_g (x_g - m_g mean)^2 / N^2 over units g with m_g samples.
    `effective` is n / deff, at most n (Kish 1965); of shares.
    """

    mean: float
    variance: float
    n: int
    units: int
    effective: float
    binary: bool


def moments(values: Sequence[float], units: Sequence[str]) -> Moments:
    """Of samples that come in units.

    Raises:
        ValueError: no sample, or lengths that differ.
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        raise ValueError("no samples")
    ids = group_ids(list(units), len(x))
    sums, sizes = np.bincount(ids, x), np.bincount(ids).astype(np.float64)
    n, groups, mean = len(x), len(sizes), float(x.mean())
    variance = 0.0
    if groups > 1:
        variance = float(((sums - sizes * mean) ** 2).sum()) * groups / (groups - 1) / n**2
    binary = bool(np.isin(x, (0.0, 1.0)).all())
    # Where all are equal the design effect cannot be seen: as if those of a unit always were.
    effective = n * n / float((sizes**2).sum())
    if groups == n:
        effective = float(n)
    elif binary and 0 < mean < 1 and groups > 1:
        effective = min(float(n), mean * (1 - mean) / variance) if variance > 0 else float(n)
    return Moments(mean, variance, n, groups, effective, binary)


def p_below(live: Moments, level: float, level_variance: float = 0.0) -> float:
    """p-value of "the mean is at least `level`", small where it lies below.

    Shares: score test, (mean - level) / sqrt(level (1 - level) / n_eff + level_variance), normal.
    Other scores: the variance over units, Student's t with G - 1 degrees of freedom.

    Args:
        level_variance: of `level`, where it is an estimate itself.
    """
    if level <= 0:
        return 1.0
    variance = live.variance
    if live.binary:
        held = min(level, 1 - 1e-9)
        variance = held * (1 - held) / live.effective
    return _tail(live.mean - level, variance + level_variance, None if live.binary else live.units)


def p_above(live: Moments, level: float) -> float:
    """p-value of "the mean is at most `level`": Student's t over units."""
    return _tail(level - live.mean, live.variance, live.units)


def _tail(difference: float, variance: float, units: int | None) -> float:
    if variance <= 0:
        return 0.0 if difference < 0 else 1.0
    z = difference / math.sqrt(variance)
    return float(ndtr(z)) if units is None else float(stdtr(max(1, units - 1), z))


def variance_of(interval: Interval) -> float:
    """The variance that an interval's width stands for."""
    return ((interval.high - interval.low) / (2 * _Z)) ** 2


class Tested(NamedTuple):
    """A finding that waits for the correction of its p-value."""

    finding: Finding
    p_value: float


def fallen(
    what: str,
    key: str,
    kind: AlertKind,
    live: Moments,
    interval: Interval,
    *,
    reference: Interval | None,
    drop: float,
    least: float | None = None,
) -> Tested | None:
    """Whether a share or score is below its reference by more than `drop`, or below `least`.

    `None`: there is nothing to compare with, or too few units.

    Args:
        what: the figure in words.
    """
    if live.units < FEW or (reference is None and least is None):
        return None
    p, level, words = 1.0, 0.0, ""
    if reference is not None:
        level = reference.estimate - drop
        p = p_below(live, level, variance_of(reference))
        words = f"was {_percent(reference.estimate)} ({_range(reference)})"
    if least is not None:
        absolute = p_below(live, least)
        # Two hypotheses, either of which may be rejected: each at half the level.
        p = min(1.0, 2 * min(p, absolute)) if reference is not None else absolute
        level = max(level, least)
        words = f"{words}, must be {_percent(least)}" if words else f"must be {_percent(least)}"
    top = reference.estimate if reference is not None else (least or 0.0)
    severity: Severity = "critical" if interval.high < top - TWICE * drop else "warning"
    effect = top - live.mean
    return Tested(
        Finding(
            key=key,
            kind=kind,
            cause=key.partition(":")[2] or key,
            severity=severity,
            flagged=False,
            summary=f"{what} is {_percent(live.mean)} ({_range(interval)}), {words}; "
            f"{live.n:,} answers of {live.units:,} units",
            effect=effect,
            bound=drop,
            interval=interval,
            reference=reference,
            p_value=p,
        ),
        p,
    )


def overconfident(
    what: str, key: str, live: Moments, interval: Interval, bound: float
) -> Tested | None:
    """Whether mean confidence lies above the share that is right by more than `bound`."""
    if live.units < FEW:
        return None
    p = p_above(live, bound)
    return Tested(
        Finding(
            key=key,
            kind="calibration",
            cause=key.partition(":")[2] or key,
            severity="critical" if interval.low > TWICE * bound else "warning",
            flagged=False,
            summary=f"{what}: confidence is {100 * live.mean:.1f} points above the share that is "
            f"right ({100 * interval.low:.1f} to {100 * interval.high:.1f}; {100 * bound:g} are "
            f"allowed); {live.n:,} answers of {live.units:,} units",
            effect=live.mean,
            bound=bound,
            interval=interval,
            p_value=p,
        ),
        p,
    )


def corrected(tested: Sequence[Tested], alpha: float) -> list[Finding]:
    """The findings with adjusted p-values; flagged where these are at most `alpha` (Holm 1979)."""
    adjusted = holm([one.p_value for one in tested])
    return [
        one.finding.model_copy(update={"p_adjusted": p, "flagged": p <= alpha})
        for one, p in zip(tested, adjusted, strict=True)
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
