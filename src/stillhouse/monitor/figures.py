"""Figures of samples: agreement, divergence, accuracy, calibration, latency, errors, fallback.

Each with its number of samples, of units, and an interval that draws whole units, since answers to
one user are alike. Knows samples; not when they came, nor what they should be.

Shapes: N samples, C labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from stillhouse.core.live import LiveRow
from stillhouse.core.statistics import Interval, bootstrap_mean, clustered_wilson
from stillhouse.monitor.records import Figure, Population
from stillhouse.monitor.resampling import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    interval_of_sums,
    quantile_interval,
    sums_by_unit,
)
from stillhouse.monitor.samples import Judged, Pair

Floats = npt.NDArray[np.float64]
BINS: Final = 10
FEW: Final = 5


def mean_interval(values: Sequence[float], units: Sequence[str]) -> Interval | None:
    """Of a mean: score interval of shares, bootstrap over units of anything else.

    `None`: no sample, or scores of a single unit, which say nothing of how units differ.
    """
    if not values:
        return None
    x = np.asarray(values, dtype=np.float64)
    if np.isin(x, (0.0, 1.0)).all():
        right: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for unit, value in zip(units, values, strict=True):
            right[unit] = right.get(unit, 0) + int(value)
            sizes[unit] = sizes.get(unit, 0) + 1
        return clustered_wilson(list(right.values()), list(sizes.values()), CONFIDENCE)
    if len(set(units)) < 2:
        return None
    return bootstrap_mean(x, CONFIDENCE, resamples=RESAMPLES, seed=SEED, groups=list(units))


def share_figure(
    name: str,
    population: Population,
    values: Sequence[float],
    units: Sequence[str],
    *,
    windows: int = 1,
    note: str = "",
) -> Figure:
    """A share or a mean score."""
    binary = all(value in (0.0, 1.0) for value in values)
    return Figure(
        name=name,
        population=population,
        interval=mean_interval(values, units),
        n=len(values),
        units=len(set(units)),
        windows=windows,
        unit="share" if binary else "score",
        note=note or _few(values, units),
    )


def agreement_figures(
    pairs: Sequence[Pair], population: Population, *, windows: int = 1, texts: bool = False
) -> list[Figure]:
    """Agreement; of texts and objects the scorer's similarity; of labels the divergence.

    Args:
        texts: the task's answers are no labels.
    """
    units = [pair.unit for pair in pairs]
    figures = [
        share_figure("agreement", population, [p.agreement for p in pairs], units, windows=windows)
    ]
    if texts:
        similar = [p.similarity for p in pairs]
        figures.append(share_figure("similarity", population, similar, units, windows=windows))
    else:
        figures.append(divergence_figure(pairs, population, windows))
    return figures


def divergence_figure(pairs: Sequence[Pair], population: Population, windows: int = 1) -> Figure:
    """Jensen-Shannon divergence of the label distributions of student and teacher, in nats.

    JS = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: 0 where both use labels alike, whatever
    they say to which request, at most ln 2 (Lin 1991). The basic bootstrap over units; cut at 0.
    """
    read = [pair for pair in pairs if pair.labels is not None]
    units = [pair.unit for pair in read]
    interval: Interval | None = None
    if len(set(units)) >= FEW:
        names = sorted({label for pair in read for label in pair.labels or ()})
        said = np.zeros((len(read), 2 * len(names)))  # [N, 2 C]: the student's label, the teacher's
        for index, pair in enumerate(read):
            own, other = pair.labels or ("", "")
            said[index, names.index(own)] = 1
            said[index, len(names) + names.index(other)] = 1

        def statistic(sums: Floats) -> Floats:
            return js_divergence(sums[:, : len(names)], sums[:, len(names) :])

        parts = sums_by_unit(said, units)
        interval = interval_of_sums(statistic, parts, len(read), least=0.0)
    return Figure(
        name="divergence",
        population=population,
        interval=interval,
        n=len(read),
        units=len(set(units)),
        windows=windows,
        unit="nats",
        note="" if interval is not None else f"{len(set(units))} units: too few",
    )


def js_divergence(p: Floats, q: Floats) -> Floats:
    """Jensen-Shannon divergence in nats of two distributions, given as counts or shares.

    Args:
        p: [R, C]; a row that is all 0 has no distribution and gives 0.
        q: [R, C].
    """
    a = p / np.maximum(p.sum(axis=1, keepdims=True), 1e-300)
    b = q / np.maximum(q.sum(axis=1, keepdims=True), 1e-300)
    m = (a + b) / 2
    total = np.zeros(len(p))
    for one in (a, b):
        ratio = np.where(one > 0, one / np.where(m > 0, m, 1.0), 1.0)
        total += (one * np.log(ratio)).sum(axis=1) / 2
    return np.maximum(total, 0.0)


def calibration_error(confidence: Floats, right: Floats, units: Sequence[str]) -> Interval:
    """ECE of a stated probability: sum_k (n_k / N) |share right_k - mean confidence_k|.

    K = 10 equal-width bins (Guo et al. 2017); a confidence below 1/2 is taken as it stands, for it
    is of one event: that the answer is acceptable.
    """
    which = np.clip(np.ceil(confidence * BINS - 1e-9).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.zeros((len(right), BINS + 1))
    gaps[np.arange(len(right)), which] = right - confidence
    gaps[:, BINS] = 1

    def statistic(sums: Floats) -> Floats:
        found: Floats = np.abs(sums[:, :BINS]).sum(axis=1) / sums[:, BINS]
        return found

    return interval_of_sums(statistic, sums_by_unit(gaps, units), len(right), least=0.0)


def calibration_figures(
    samples: Sequence[Pair] | Sequence[Judged], population: Population, windows: int = 1
) -> list[Figure]:
    """ECE, Brier score and overconfidence of the answers whose confidence is known."""
    known = [(one, one.confidence) for one in samples if one.confidence is not None]
    units = [one.unit for one, _ in known]
    if not known:
        return []
    p = np.array([min(max(value, 0.0), 1.0) for _, value in known])
    y = np.array([one.right for one, _ in known])
    enough = len(set(units)) >= FEW
    ece = calibration_error(p, y, units) if enough else None
    brier = (
        bootstrap_mean((p - y) ** 2, CONFIDENCE, resamples=RESAMPLES, seed=SEED, groups=units)
        if enough
        else None
    )
    over = (
        bootstrap_mean(p - y, CONFIDENCE, resamples=RESAMPLES, seed=SEED, groups=units)
        if enough
        else None
    )
    return [
        Figure(
            name=name,
            population=population,
            interval=interval,
            n=len(known),
            units=len(set(units)),
            windows=windows,
            unit="score",
            note="" if enough else f"{len(set(units))} units: too few",
        )
        for name, interval in (("ece", ece), ("brier", brier), ("overconfidence", over))
    ]


def health_figures(rows: Sequence[LiveRow]) -> list[Figure]:
    """Latency, errors, fallback, and the share that the student answered."""
    figures: list[Figure] = []
    for variant in ("student", "teacher"):
        answers = [
            (row.unit, answer)
            for row in rows
            for answer in (row.student if variant == "student" else row.teacher,)
            if answer is not None
        ]
        units = [unit for unit, _ in answers]
        fine = [(unit, a.latency_ms) for unit, a in answers if a.error is None]
        population: Population = "student" if variant == "student" else "teacher"
        if answers:
            failed = [float(a.error is not None) for _, a in answers]
            figures.append(share_figure("error_rate", population, failed, units))
        for name, q in (("latency_p50_ms", 0.5), ("latency_p95_ms", 0.95)):
            if fine:
                figures.append(_quantile(name, population, q, fine))
    if rows:
        units = [row.unit for row in rows]
        failed = [float(row.status >= 500) for row in rows]
        figures.append(share_figure("error_rate", "all", failed, units))
        figures.append(
            share_figure("student_share", "all", [float(r.seen == "student") for r in rows], units)
        )
    meant = [row for row in rows if row.arm == "treatment"]
    if meant:
        fell = [float(row.fell_back) for row in meant]
        figures.append(share_figure("fallback_rate", "student", fell, [row.unit for row in meant]))
    return figures


def _quantile(
    name: str, population: Population, q: float, values: Sequence[tuple[str, float]]
) -> Figure:
    units = [unit for unit, _ in values]
    x = np.array([value for _, value in values])
    enough = len(set(units)) >= FEW
    interval = quantile_interval(x, units, q) if enough else None
    return Figure(
        name=name,
        population=population,
        interval=interval,
        n=len(x),
        units=len(set(units)),
        unit="ms",
        note="" if interval is not None else f"{len(set(units))} units: too few",
    )


def _few(values: Sequence[float], units: Sequence[str]) -> str:
    if not values:
        return "no sample"
    return "one unit alone: no interval" if len(set(units)) < 2 else ""
