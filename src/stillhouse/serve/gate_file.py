"""gate.json: how a student's confidence becomes a probability, and from which one on it answers.

Read at the gateway's start; plain arithmetic, so that a request costs microseconds. Knows no
student, no samples and no statistics: `calibrator` fits what stands here.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from stillhouse.core.errors import DataError, RunFolderError
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.records import Record
from stillhouse.core.tasks import Task

Features = Mapping[str, float]
Method = Literal["logistic", "temperature", "isotonic"]
NEVER: Final = 1.0  # a threshold that no probability reaches
CLOSEST: Final = 1e-6  # to 0 and 1


class Calibrator(Record):
    """P(acceptable): with z = bias + sum_f weight_f (x_f - mean_f) / scale_f, 1 / (1 + exp(-z)).

    `temperature` is the case of the one feature `logit`, without bias: the weight is 1 / T.
    `isotonic` puts z through a rising line of `knots` (z, probability) instead.
    """

    method: Method = "logistic"
    features: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    knots: tuple[tuple[float, float], ...] = ()
    n: int = Field(ge=1)

    def score(self, features: Features) -> float:
        """z. Raises ValueError: a feature is missing or not finite."""
        missing = [name for name in self.features if name not in features]
        if missing:
            raise ValueError(f"features are missing: {', '.join(missing)}")
        z = self.bias
        parts = zip(self.features, self.means, self.scales, self.weights, strict=True)
        for name, mean, scale, weight in parts:
            if not math.isfinite(features[name]):
                raise ValueError(f"feature {name} is not finite (got {features[name]})")
            z += weight * (features[name] - mean) / scale
        return z

    def probability(self, features: Features) -> float:
        """Strictly between 0 and 1. Raises ValueError: a feature is missing or not finite."""
        z = self.score(features)
        p = self._between(z) if self.knots else 1 / (1 + math.exp(-max(-700.0, min(700.0, z))))
        return min(1 - CLOSEST, max(CLOSEST, p))

    def _between(self, z: float) -> float:
        at = bisect_right(self.knots, (z, math.inf))
        if at == 0:
            return self.knots[0][1]
        if at == len(self.knots):
            return self.knots[-1][1]
        (x0, y0), (x1, y1) = self.knots[at - 1], self.knots[at]
        return y0 + (y1 - y0) * (z - x0) / (x1 - x0)


class Window(Record):
    """The same for the head of a stream: its first `tokens` alone."""

    tokens: int = Field(ge=1)
    calibrator: Calibrator
    threshold: float | None
    coverage: float
    n: int


class Consistency(Record):
    """Self-consistency: the student is asked so many times more, at a temperature."""

    samples: int = Field(ge=1, le=32)
    sampling_temperature: float = Field(gt=0, le=2)


class NoveltyFile(Record):
    """Training texts' vectors beside this file (`models.novelty`)."""

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class GateFile(Record):
    """A calibrator with its threshold: what the gateway loads.

    `student` is the fingerprint of the student that it was fitted for; `losses` are the methods'
    log losses on samples that they were not fitted on (nats), by which one was chosen.
    """

    calibrator: Calibrator
    threshold: float | None = Field(description="None: no threshold keeps the error.")
    error: float = Field(description="Promised of what the student answers.")
    delta: float = Field(description="Chance over held-out samples that the promise fails.")
    coverage: float
    n: int = Field(description="Samples that chose the threshold.")
    losses: Mapping[Method, float] = Field(default_factory=dict)
    window: Window | None = None
    consistency: Consistency | None = None
    novelty: NoveltyFile | None = None
    task: Task | None = None
    student: str | None = None
    source: str = Field(default="", description="Where the samples that chose it came from.")
    acceptable: float | None = Field(
        default=None, description="Score from which an answer was; None: as live labels have it."
    )

    def confident(self, features: Features, *, whole: bool = True) -> tuple[float, bool]:
        """(calibrated probability, whether the student's answer is accepted).

        Args:
            whole: the features are of a whole answer, not of a stream's head.
        """
        part = self if whole or self.window is None else self.window
        p = part.calibrator.probability(features)
        return p, part.threshold is not None and p >= part.threshold


def save_gate(path: Path, gate: GateFile) -> None:
    """Write as JSON, atomically; NaN is refused."""
    write_json(path, gate.model_dump(mode="json", by_alias=True))


def load_gate(path: Path) -> GateFile:
    """Read a file of `save_gate`.

    Raises:
        DataError: not a gate's file, or numbers that are not finite.
    """
    try:
        gate = GateFile.model_validate(read_json(path))
    except ValidationError as bad:
        raise DataError(str(path), f"is no gate: {bad.errors()[0]['msg']}") from None
    except (RunFolderError, OSError) as bad:
        raise DataError(
            str(path), f"cannot be read: {bad}", action="make it with: stillhouse calibrate RUN"
        ) from None
    _check(path, gate.calibrator, gate.threshold)
    if gate.window is not None:
        _check(path, gate.window.calibrator, gate.window.threshold)
    if gate.novelty is not None:
        beside = path.parent / gate.novelty.file
        if not beside.is_file() or sha256_of(beside) != gate.novelty.sha256:
            raise DataError(str(beside), "is gone or changed: it belongs to the gate beside it")
    return gate


def sha256_of(path: Path) -> str:
    """Of a file's bytes, 64 hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check(path: Path, c: Calibrator, threshold: float | None) -> None:
    lengths = {len(c.features), len(c.means), len(c.scales), len(c.weights)}
    knots = [value for knot in c.knots for value in knot]
    numbers = (*c.means, *c.scales, *c.weights, c.bias, *knots, threshold or 0.0)
    if len(lengths) > 1 or not all(map(math.isfinite, numbers)) or 0 in c.scales:
        raise DataError(str(path), "has numbers that are missing, zero scales or not finite")
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in zip(c.knots, c.knots[1:], strict=False))
    if not rising:
        raise DataError(str(path), "has knots that do not rise")
