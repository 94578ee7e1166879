"""At which request a change began: ADWIN and Page-Hinkley over one value a request (river).

They see a change of the mean of a stream; no cause, and no alarm by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import numpy as np

from stillhouse.core.optional import require
from stillhouse.monitor.drift_records import Observation, StreamChange

DELTA: Final = 0.002  # ADWIN's bound on a false change at one request (Bifet and Gavalda 2007)
_SLACK: Final = 0.05  # Page-Hinkley: standard deviations a request that are no change ...
_THRESHOLD: Final = 25.0  # ... and the sum of them that is one
_Kind = Literal["adwin", "page_hinkley"]

STREAMS: Final[tuple[tuple[str, Callable[[Observation], float | None]], ...]] = (
    ("length", lambda one: None if one.length is None else float(np.log1p(one.length))),
    ("confidence", lambda one: one.confidence),
    ("agreement", lambda one: one.agreement),
)


def stream_changes(
    reference: Sequence[Observation], window: Sequence[Observation], fewest: int
) -> tuple[StreamChange, ...]:
    """The first change that each detector notices within the window, by stream.

    Detectors read the reference first, as values of mean 0 and standard deviation 1 there (ADWIN:
    within 0 and 1 by a logistic curve, which its bound assumes). Lengths are ln(1 + words).

    Raises:
        MissingExtraError: river is not installed.
    """
    drift = require("river.drift", "monitor", "stream detectors (monitor.drift.streams)")
    found: list[StreamChange] = []
    for name, value in STREAMS:
        before = [v for one in reference if (v := value(one)) is not None]
        now = [(one, v) for one in window if (v := value(one)) is not None]
        if len(before) < fewest or not now:
            continue
        mean, spread = float(np.mean(before)), float(np.std(before)) or 1.0
        detectors: tuple[tuple[_Kind, Any], ...] = (
            ("adwin", drift.ADWIN(delta=DELTA)),
            (
                "page_hinkley",
                drift.PageHinkley(
                    min_instances=30, delta=_SLACK, threshold=_THRESHOLD, mode="both"
                ),
            ),
        )
        for kind, detector in detectors:
            logistic = kind == "adwin"
            scaled = [_scaled((v - mean) / spread, logistic) for v in before]
            coming = [_scaled((v - mean) / spread, logistic) for _, v in now]
            at = _first(detector, scaled, coming)
            if at is None:
                continue
            row = now[at][0]
            found.append(
                StreamChange(
                    stream=name,
                    detector=kind,
                    id=row.id,
                    at=row.at,
                    before=mean,
                    after=float(np.mean([v for _, v in now[at:]])),
                )
            )
    return tuple(found)


def _scaled(value: float, logistic: bool) -> float:
    return float(1 / (1 + np.exp(-value))) if logistic else value


def _first(detector: Any, before: Sequence[float], now: Sequence[float]) -> int | None:
    for value in before:
        detector.update(value)
    for number, value in enumerate(now):
        detector.update(value)
        if detector.drift_detected:
            return number
    return None
