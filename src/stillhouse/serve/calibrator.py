"""Fitting what gate.json holds: calibrated probabilities, and a threshold that keeps an error.

Three methods: a ridge logistic regression on standardised features (Platt 1999), temperature
scaling (Guo et al. 2017) and isotonic regression (Zadrozny and Elkan 2002) of the logistic score;
the one with the least log loss on samples that it was not fitted on is taken, or the one asked for.
One half of the samples fits, the other chooses the threshold: samples that shaped the scores cannot
test them. Knows samples; no student, no server and no database.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression, minimize_scalar

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_objects
from stillhouse.core.risk_control import Floats, Threshold, probability_grid, selective_threshold
from stillhouse.models.confidence import label_features
from stillhouse.serve.gate_file import CLOSEST, Calibrator, Features, GateFile, Method, Window

STEPS: Final = 50
FOLDS: Final = 5
LEAST_SPREAD: Final = 1e-4  # of a feature, over its mean: less is no feature
METHODS: Final[tuple[Method, ...]] = ("logistic", "temperature", "isotonic")
LOGIT: Final = "logit"
Choice = Literal["auto", "logistic", "temperature", "isotonic"]


class Judged(NamedTuple):
    """One held-out answer. `group` (else `id`) decides its half: near-duplicates stay together.

    `window` are the features of the answer's first tokens.
    """

    id: str
    features: Features
    acceptable: bool
    group: str = ""
    window: Features | None = None


class Halves(NamedTuple):
    """Samples that fit, and samples that test."""

    fits: list[Judged]
    tests: list[Judged]


class Fitted(NamedTuple):
    """A calibrator with its threshold, and the methods' held-out log losses (nats)."""

    calibrator: Calibrator
    threshold: Threshold
    losses: dict[Method, float]


def fit_calibrator(
    rows: Sequence[Features], acceptable: Sequence[bool], method: Method = "logistic"
) -> Calibrator:
    """Fit one method.

    Raises:
        ValueError: no rows, features that differ or are not finite, one outcome only, or
            temperature scaling without the feature `logit`.
    """
    if not rows or len(rows) != len(acceptable) or len(set(acceptable)) < 2:
        raise ValueError("calibration needs answers that are acceptable and answers that are not")
    names = tuple(sorted(rows[0]))
    if not names or any(set(row) != set(names) for row in rows):
        raise ValueError("every answer needs the same features")
    if method == "temperature":
        if LOGIT not in names:
            raise ValueError(f"temperature scaling needs the feature {LOGIT}")
        names = (LOGIT,)
    x: Floats = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("every feature must be finite")
    if method != "temperature":
        # What does not vary here says nothing, and in units of its noise it would say anything.
        varies = x.std(axis=0) > LEAST_SPREAD * np.maximum(1.0, np.abs(x.mean(axis=0)))
        names = tuple(name for name, one in zip(names, varies, strict=True) if one)
        x = x[:, varies]
    y = np.asarray(acceptable, dtype=np.float64)
    if method == "temperature":
        return _temperature(x[:, 0], y)
    logistic = _logistic(names, x, y)
    if method == "logistic":
        return logistic
    z = np.array([logistic.score(row) for row in rows])
    return logistic.model_copy(update={"method": method, "knots": _isotonic(z, y)})


def _logistic(names: tuple[str, ...], x: Floats, y: Floats) -> Calibrator:
    """Penalised maximum likelihood by Newton's steps; penalty |weights|^2 / 2, bias free."""
    means, scales = x.mean(axis=0), x.std(axis=0)
    z = np.column_stack([np.ones(len(x)), (x - means) / scales])
    penalty = np.diag([1e-6] + [1.0] * len(names))
    beta = np.zeros(z.shape[1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(z @ beta, -30, 30)))
        hessian = (z * (p * (1 - p))[:, None]).T @ z + penalty
        step = np.linalg.solve(hessian, z.T @ (y - p) - penalty @ beta)
        beta += step / max(1.0, float(np.abs(step).max()))
    return Calibrator(
        features=names,
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        weights=tuple(beta[1:].tolist()),
        bias=float(beta[0]),
        n=len(y),
    )


def _temperature(logit: Floats, y: Floats) -> Calibrator:
    """The T of least log loss of 1 / (1 + exp(-logit / T)), T from 1/20 to 20."""

    def loss(log_weight: float) -> float:
        z = logit * math.exp(log_weight)
        return float(np.logaddexp(0, np.where(y > 0, -z, z)).mean())

    found = minimize_scalar(loss, bounds=(-math.log(20), math.log(20)), method="bounded")
    weight = math.exp(float(found.x))
    return Calibrator(
        method="temperature",
        features=(LOGIT,),
        means=(0.0,),
        scales=(1.0,),
        weights=(weight,),
        bias=0.0,
        n=len(y),
    )


def _isotonic(z: Floats, y: Floats) -> tuple[tuple[float, float], ...]:
    """Knots at the mean score of each block of equal probability (pool adjacent violators).

    Each block counts one answer of the base rate more, so that none is 0 or 1.
    """
    order = np.argsort(z, kind="stable")
    z, y = z[order], y[order]
    starts = np.asarray(isotonic_regression(y).blocks[:-1])
    counts = np.diff([*starts, len(y)])
    centres = np.add.reduceat(z, starts) / counts
    smooth = (np.add.reduceat(y, starts) + y.mean()) / (counts + 1)
    levels = isotonic_regression(smooth, weights=counts + 1.0).x
    distinct = np.concatenate([[True], np.diff(centres) > 0])
    pairs = zip(centres[distinct].tolist(), levels[distinct].tolist(), strict=True)
    return tuple((float(a), float(b)) for a, b in pairs)


def log_loss(calibrator: Calibrator, rows: Sequence[Features], acceptable: Sequence[bool]) -> float:
    """Mean of -log P(what came out), nats."""
    p = np.array([calibrator.probability(row) for row in rows])
    return float(-np.log(np.where(np.asarray(acceptable, dtype=bool), p, 1 - p)).mean())


def method_losses(judged: Sequence[Judged]) -> dict[Method, float]:
    """Log loss of each method, cross-validated over groups in `FOLDS` parts; methods that cannot be
    fitted are left out."""
    folds: list[list[Judged]] = [[] for _ in range(FOLDS)]
    for one in judged:
        folds[_hash(one, b"fold") % FOLDS].append(one)
    found: dict[Method, float] = {}
    for method in METHODS:
        total = 0.0
        try:
            for fold in folds:
                rest = [one for other in folds if other is not fold for one in other]
                calibrator = fit_calibrator(
                    [one.features for one in rest], [one.acceptable for one in rest], method
                )
                if fold:
                    total += len(fold) * log_loss(
                        calibrator,
                        [one.features for one in fold],
                        [one.acceptable for one in fold],
                    )
        except ValueError:
            continue
        found[method] = total / len(judged)
    return found


def halves(judged: Sequence[Judged]) -> Halves:
    """Samples that fit and samples that test; a group is never split."""
    parts: tuple[list[Judged], list[Judged]] = ([], [])
    for one in judged:
        parts[_hash(one, b"") % 2].append(one)
    return Halves(*parts)


def _hash(one: Judged, salt: bytes) -> int:
    return hashlib.sha256(salt + (one.group or one.id).encode()).digest()[0]


def own_calibrator(rows: Sequence[Features], acceptable: Sequence[bool]) -> Calibrator:
    """Of answers of one outcome, from which nothing can be fitted: the student's own log-odds,
    standardised, around the share (acceptable + 1) / (n + 2). A threshold's promise holds of any
    score; only how much is answered depends on it.

    Raises:
        ValueError: no rows, or one without the feature `logit`.
    """
    if not rows or any(LOGIT not in row for row in rows):
        raise ValueError(f"calibration needs answers with the feature {LOGIT}")
    x: Floats = np.array([row[LOGIT] for row in rows], dtype=np.float64)
    share = (sum(acceptable) + 1) / (len(rows) + 2)
    mean, spread = float(x.mean()), float(x.std())
    return Calibrator(
        features=(LOGIT,),
        means=(mean,),
        scales=(spread if spread > LEAST_SPREAD * max(1.0, abs(mean)) else 1.0,),
        weights=(1.0,),
        bias=math.log(share / (1 - share)),
        n=len(rows),
    )


class Sureness(NamedTuple):
    """Calibrated probabilities, and 1 where the answer was wrong. [N], [N]"""

    scores: Floats
    wrong: Floats


def sureness(calibrator: Calibrator, tests: Sequence[Judged]) -> Sureness:
    """As the gateway sees them: an answer without the features has the probability 0, which no
    other has, and is not shown; it counts as wrong, should a threshold be 0."""
    scores, wrong = np.zeros(len(tests)), np.ones(len(tests))
    for index, one in enumerate(tests):
        try:
            scores[index] = calibrator.probability(one.features)
        except ValueError:
            continue
        wrong[index] = float(not one.acceptable)
    return Sureness(scores, wrong)


def fit_part(
    split: Halves, error: float, delta: float, method: Choice, *, own: bool = False
) -> Fitted:
    """Calibrate on one half, choose the threshold on the other (`selective_threshold`).

    Args:
        own: where the first half has one outcome alone, by `own_calibrator`.

    Raises:
        ValueError: too few samples, or all of one outcome.
    """
    fits, tests = split
    if not tests:
        raise ValueError("there are no samples to choose a threshold on")
    rows, outcomes = [one.features for one in fits], [one.acceptable for one in fits]
    losses = method_losses(fits) if method == "auto" else {}
    chosen: Method = "logistic" if method == "auto" else method
    if losses:
        chosen = min(losses, key=lambda name: losses[name])
    alone = own and len(set(outcomes)) < 2
    calibrator = own_calibrator(rows, outcomes) if alone else fit_calibrator(rows, outcomes, chosen)
    scores, wrong = sureness(calibrator, tests)
    # A threshold of 0 would take in what has no features, and the gateway shows none of that.
    grid = probability_grid() if scores.all() else np.maximum(probability_grid(), CLOSEST)
    return Fitted(calibrator, selective_threshold(scores, wrong, error, delta, grid=grid), losses)


def fit_gate(
    judged: Sequence[Judged],
    error: float,
    delta: float = 0.05,
    method: Choice = "auto",
    window: int | None = None,
) -> GateFile:
    """A gate from held-out answers.

    Args:
        window: tokens that `Judged.window` are of; a stream's head has a gate of its own.

    Raises:
        ValueError: as `fit_part`.
    """
    split = halves(judged)
    return gate_from(split, error, delta, method, window=window, heads=split)


def gate_from(
    split: Halves,
    error: float,
    delta: float,
    method: Choice,
    *,
    window: int | None,
    heads: Halves,
    own: bool = False,
) -> GateFile:
    """`fit_gate`, with the halves given; `heads` are those that have a window, `own` as in
    `fit_part`."""
    whole = fit_part(split, error, delta, method, own=own)
    head: Window | None = None
    if window is not None:
        parts = Halves(*([_head(one) for one in part if one.window] for part in heads))
        part = fit_part(parts, error, delta, method, own=own)
        found = part.threshold
        head = Window(
            tokens=window,
            calibrator=part.calibrator,
            threshold=found.value,
            coverage=found.coverage,
            n=found.n,
        )
    return GateFile(
        calibrator=whole.calibrator,
        threshold=whole.threshold.value,
        error=error,
        delta=delta,
        coverage=whole.threshold.coverage,
        n=whole.threshold.n,
        losses=whole.losses,
        window=head,
    )


def _head(one: Judged) -> Judged:
    return one._replace(features=one.window or {}, window=None)


def gate_of_run(run: Path, student: str, error: float, delta: float = 0.05) -> GateFile:
    """Fit from the held-out predictions of a run folder; acceptable is: equal to the reference.

    Raises:
        DataError: the file has no answers of the student with class probabilities.
    """
    path, judged = run / "evaluate" / "predictions.jsonl", []
    for number, line in read_objects(path):
        answers, beliefs = line.get("answers"), line.get("probabilities")
        if line.get("set") == "held_out" and isinstance(answers, dict) and student in answers:
            if not isinstance(beliefs, dict) or student not in beliefs:
                continue
            try:
                features = label_features(beliefs[student])
            except (TypeError, ValueError) as bad:
                raise DataError(f"{path.name} line {number}", str(bad)) from None
            right = answers[student] == line.get("reference")
            judged.append(Judged(str(line.get("id")), features, right))
    if not judged:
        raise DataError(
            str(path), "has no held-out answers with class probabilities of", value=student
        )
    return fit_gate(judged, error, delta)
