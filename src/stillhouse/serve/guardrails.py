"""Guardrails: latency, errors and cost of the student's arm against the teacher's, by request.

Each is a test that may be looked at always, so that a bad minute of few requests does not trip it
and a real fault does soon; a third of alpha each, a stage. Pure: no clock, no database. What is
tested is in docs/evidence.md.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
from pydantic import Field

from stillhouse.core.anytime import asymptotic_radius
from stillhouse.core.anytime_compare import Comparison, Side
from stillhouse.core.anytime_margin import Margin
from stillhouse.core.records import Record
from stillhouse.serve.gateway_sections import GuardrailsSection
from stillhouse.serve.records import Served, StageKind

LEAST: Final = 20  # requests of each arm before any verdict
LEAST_LATENCIES: Final = 50  # of the teacher, before any is compared; then its p95 is taken anew
LEAST_COSTS: Final = 100
KEPT: Final = 2000
QUANTILE: Final = 0.95
SLOW_SHARE: Final = 0.05  # more than the teacher's own 5% that are slower than its p95
_CLIENT_LEFT: Final = 499


class Reading(Record):
    """One guardrail as it stands."""

    name: str
    limit: float
    student: float | None = Field(description="p95 in ms, share of errors, or mean cost in USD.")
    teacher: float | None = None
    n: int = Field(description="Requests of the student's arm.")
    tripped: bool


def side_of(served: Served, kind: StageKind) -> Side | None:
    """Whose arm a request belongs to; `None`: nobody's. Fallback answers stay in their arm."""
    if kind == "shadow":
        if served.arm != "shadow":
            return None
        return "student" if served.shadow_of is not None else "teacher"
    if served.shadow_of is not None or served.arm == "incumbent":
        return None
    return "student" if served.arm == "treatment" else "teacher"


def failed(served: Served, side: Side) -> bool:
    """Whether the side's own model did not answer, also where the other one did instead."""
    if served.status >= 500 or served.status == 429:
        return True
    return served.variant != side and served.confidence is None


class Guardrails:
    """The three tests of one stage.

    Args:
        alpha: chance that a student which keeps all limits ever trips one.
        teachers_per_student: units of the arms, as planned.
    """

    def __init__(
        self, section: GuardrailsSection, alpha: float, kind: StageKind, teachers_per_student: float
    ) -> None:
        self._section, self._alpha, self._kind = section, alpha / 3, kind

        def arms(limit: float) -> Comparison:
            margin = Margin(1.0, limit)
            ratio = teachers_per_student
            return Comparison(margin, "arms", self._alpha, self._alpha, ratio, course=False)

        self._errors = arms(section.error_rate) if section.error_rate is not None else None
        self._slow = arms(SLOW_SHARE) if section.latency_ratio is not None else None
        self._latencies: dict[Side, deque[float]] = {
            "student": deque(maxlen=KEPT),
            "teacher": deque(maxlen=KEPT),
        }
        self._teacher_p95: float | None = None
        self._since = 0
        self._failures: dict[Side, int] = {"student": 0, "teacher": 0}
        self._seen: dict[Side, int] = {"student": 0, "teacher": 0}
        self._costs = np.zeros(4)  # n, sum and sum of squares of what is left, sum of costs
        self._costs_tripped = False

    def take(self, served: Served) -> None:
        """Take one request of the stage."""
        side = side_of(served, self._kind)
        if side is None or served.status == _CLIENT_LEFT:
            return
        wrong = failed(served, side)
        self._seen[side] += 1
        self._failures[side] += wrong
        if self._errors is not None:
            self._errors.unit(side, 1.0 - wrong)
        if served.status < 400:
            self._latency(side, served.latency_ms)
            if side == "student":
                self._cost(served)

    def readings(self) -> tuple[Reading, ...]:
        """All that are watched."""
        found, n = [], self._seen["student"]
        enough = min(self._seen.values()) >= LEAST
        if self._errors is not None:
            seen = self._seen.items()
            shares = {side: self._failures[side] / count for side, count in seen if count}
            found.append(
                Reading(
                    name="error_rate",
                    limit=self._section.error_rate or 0.0,
                    student=shares.get("student"),
                    teacher=shares.get("teacher"),
                    n=n,
                    tripped=enough and self._errors.worse,
                )
            )
        if self._slow is not None:
            found.append(
                Reading(
                    name="latency_ratio",
                    limit=self._section.latency_ratio or 0.0,
                    student=_p95(self._latencies["student"]),
                    teacher=_p95(self._latencies["teacher"]),
                    n=n,
                    tripped=enough and self._slow.worse,
                )
            )
        if self._section.cost_ratio is not None:
            count, left, _, spent = (float(one) for one in self._costs)
            mean = spent / count if count else None
            full = (spent + left) / self._section.cost_ratio / count if count else None
            found.append(
                Reading(
                    name="cost_ratio",
                    limit=self._section.cost_ratio,
                    student=mean,
                    teacher=full,
                    n=int(count),
                    tripped=self._costs_tripped,
                )
            )
        return tuple(found)

    def _latency(self, side: Side, latency: float) -> None:
        limit = self._teacher_p95
        if limit is not None and self._slow is not None:
            allowed = limit * (self._section.latency_ratio or 1.0) if side == "student" else limit
            self._slow.unit(side, float(latency <= allowed))
        self._latencies[side].append(latency)
        if side == "teacher":
            self._since += 1
            if self._since >= LEAST_LATENCIES:
                # What is compared with was known before the answers that are compared.
                self._since, self._teacher_p95 = 0, _p95(self._latencies["teacher"])

    def _cost(self, served: Served) -> None:
        ratio = self._section.cost_ratio
        if ratio is None:
            return
        left = ratio * served.teacher_cost_usd - served.cost_usd
        self._costs += (1, left, left * left, served.cost_usd)
        n, total, squares, _ = (float(one) for one in self._costs)
        # The bound is above the mean: while nothing is lost on the whole, it cannot be below 0.
        if n >= LEAST_COSTS and total < 0:
            variance = max(squares / n - (total / n) ** 2, 0.0)
            radius = float(asymptotic_radius(int(n), variance, self._alpha, tightest_at=1000))
            self._costs_tripped |= total / n + radius < 0


def _p95(latencies: deque[float]) -> float | None:
    if not latencies:
        return None
    return float(np.quantile(np.fromiter(latencies, dtype=np.float64), QUANTILE))
