"""From features of an answer to the probability that it is acceptable, and whether to accept it.

A ridge logistic regression on standardised features (Platt 1999), kept as JSON with the threshold
and its promise. One half of the held-out samples fits the calibrator, the other chooses the
threshold: samples that shaped the scores cannot test them. Knows no server and no database.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from pydantic import Field, ValidationError

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_json, read_objects, write_json
from stillhouse.core.records import Record
from stillhouse.core.risk_control import Floats, selective_threshold
from stillhouse.models.confidence import label_features

STEPS: Final = 50
Features = Mapping[str, float]


class Calibrator(Record):
    """P(acceptable) = 1 / (1 + exp(-(bias + sum_f weight_f (x_f - mean_f) / scale_f)))."""

    features: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    n: int = Field(ge=1)

    def probability(self, features: Features) -> float:
        """Raises ValueError: a feature is missing or not finite."""
        missing = [name for name in self.features if name not in features]
        if missing:
            raise ValueError(f"features are missing: {', '.join(missing)}")
        z = self.bias
        parts = zip(self.features, self.means, self.scales, self.weights, strict=True)
        for name, mean, scale, weight in parts:
            if not math.isfinite(features[name]):
                raise ValueError(f"feature {name} is not finite (got {features[name]})")
            z += weight * (features[name] - mean) / scale
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, z))))


class GateFile(Record):
    """A calibrator with its threshold: what the gateway loads."""

    calibrator: Calibrator
    threshold: float | None = Field(description="None: no threshold keeps the error.")
    error: float = Field(description="Promised of what the student answers.")
    delta: float = Field(description="Chance over held-out samples that the promise fails.")
    coverage: float
    n: int = Field(description="Samples that chose the threshold.")

    def confident(self, features: Features) -> tuple[float, bool]:
        """(calibrated probability, whether the student's answer is accepted)."""
        p = self.calibrator.probability(features)
        return p, self.threshold is not None and p >= self.threshold


class Judged(NamedTuple):
    """One held-out answer; `id` decides its half."""

    id: str
    features: Features
    acceptable: bool


def fit_calibrator(rows: Sequence[Features], acceptable: Sequence[bool]) -> Calibrator:
    """Penalised maximum likelihood by Newton's steps; penalty |weights|^2 / 2, bias free.

    Raises:
        ValueError: no rows, features that differ or are not finite, or one outcome only.
    """
    if not rows or len(rows) != len(acceptable) or len(set(acceptable)) < 2:
        raise ValueError("calibration needs answers that are acceptable and answers that are not")
    names = tuple(sorted(rows[0]))
    if not names or any(set(row) != set(names) for row in rows):
        raise ValueError("every answer needs the same features")
    x: Floats = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("every feature must be finite")
    y = np.asarray(acceptable, dtype=np.float64)
    means, scales = x.mean(axis=0), x.std(axis=0)
    scales = np.where(scales > 0, scales, 1.0)
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
        n=len(rows),
    )


def fit_gate(judged: Sequence[Judged], error: float, delta: float = 0.05) -> GateFile:
    """Calibrate on one half, choose the threshold on the other (`selective_threshold`)."""
    halves: tuple[list[Judged], list[Judged]] = ([], [])
    for one in judged:
        halves[hashlib.sha256(one.id.encode()).digest()[0] % 2].append(one)
    fits, tests = halves
    calibrator = fit_calibrator([j.features for j in fits], [j.acceptable for j in fits])
    scores = np.array([calibrator.probability(j.features) for j in tests])
    wrong = np.array([float(not j.acceptable) for j in tests])
    found = selective_threshold(scores, wrong, error, delta)
    return GateFile(
        calibrator=calibrator,
        threshold=found.value,
        error=error,
        delta=delta,
        coverage=found.coverage,
        n=found.n,
    )


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


def save_gate(path: Path, gate: GateFile) -> None:
    """Write as JSON, atomically; NaN is refused."""
    write_json(path, gate.model_dump(mode="json"))


def load_gate(path: Path) -> GateFile:
    """Raises DataError: not a gate's file, or numbers that are not finite."""
    try:
        gate = GateFile.model_validate(read_json(path))
    except ValidationError as bad:
        raise DataError(str(path), f"is no gate: {bad.errors()[0]['msg']}") from None
    c = gate.calibrator
    lengths = {len(c.features), len(c.means), len(c.scales), len(c.weights)}
    numbers = (*c.means, *c.scales, *c.weights, c.bias, gate.threshold or 0.0)
    if len(lengths) > 1 or not all(map(math.isfinite, numbers)) or 0 in c.scales:
        raise DataError(str(path), "has numbers that are missing, zero scales or not finite")
    return gate
