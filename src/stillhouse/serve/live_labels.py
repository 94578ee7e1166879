"""What came of a student's answers in live traffic, as samples to calibrate by.

Shadow answers are seen whatever their confidence, so they stand for the traffic and may choose a
threshold; answers that were shown passed a gate, and may only help to fit. Knows the traffic log's
figures and outcomes, no texts and no model.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy.engine import Engine

from stillhouse.serve.calibrator import Halves, Judged, halves
from stillhouse.serve.records import OutcomeKind
from stillhouse.serve.stored_calls import SCORING, outcomes_since

# Fewer live samples than this do not choose a threshold.
ENOUGH: Final = 300


class LiveLabels(NamedTuple):
    """Judged answers: `seen` whatever their confidence, `shown` because it was high enough."""

    seen: list[Judged]
    shown: list[Judged]


class Mixed(NamedTuple):
    """Halves to fit and to test on, where the tests came from, and how many were left out since
    they lack a feature."""

    halves: Halves
    source: str
    left_out: int


def live_labels(
    engine: Engine,
    task: str,
    since: float,
    kinds: Collection[OutcomeKind] = SCORING,
    acceptable: float = 0.5,
) -> LiveLabels:
    """The student's answers since a time (Unix seconds) that have an outcome of these kinds; the
    newest outcome counts. A user's answers are one group.

    Args:
        acceptable: score from which an answer is acceptable.
    """
    found: dict[str, tuple[bool, Judged]] = {}
    for served, outcome in outcomes_since(engine, task, since, kinds):
        if served.variant == "student" and served.features:
            judged = Judged(
                served.id, dict(served.features), outcome.score >= acceptable, served.unit
            )
            found[served.id] = (served.shadow_of is not None, judged)
    return LiveLabels(
        [one for shadow, one in found.values() if shadow],
        [one for shadow, one in found.values() if not shadow],
    )


def mixed(held_out: Halves, live: LiveLabels) -> Mixed:
    """Held-out and live samples together.

    All of them fit but one half of the representative ones, which tests; where the live half is too
    small, the held-out one tests. Selection by confidence is selection by the features, so that
    answers that passed a gate do not bend P(acceptable | features).

    Raises:
        ValueError: there are no samples at all.
    """
    every = [*held_out.fits, *held_out.tests, *live.seen, *live.shown]
    if not every:
        raise ValueError("there are no judged answers with features")
    names = set.intersection(*(set(one.features) for one in (held_out.fits or every)))
    left_out = sum(not names <= set(one.features) for one in every)

    def same(some: list[Judged]) -> list[Judged]:
        return [
            one._replace(features={name: one.features[name] for name in sorted(names)})
            for one in some
            if names <= set(one.features)
        ]

    seen = halves(same(live.seen))
    fits = same(held_out.fits) + seen.fits + same(live.shown)
    if len(seen.tests) >= ENOUGH or not held_out.tests:
        return Mixed(Halves(fits, seen.tests), "live shadow answers", left_out)
    return Mixed(Halves(fits, same(held_out.tests)), "held-out answers", left_out)
