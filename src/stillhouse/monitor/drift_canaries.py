"""Whether a model answers frozen prompts differently than when they were frozen.

Pure: the prompts were asked elsewhere. Works for teacher and student alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stillhouse.core.multiplicity import paired_test
from stillhouse.core.statistics import paired_difference
from stillhouse.monitor.drift_kernel import Measured
from stillhouse.monitor.drift_records import Canary


class CanaryTest(NamedTuple):
    """The test, and the canaries whose answer changed, the most changed first."""

    measured: Measured
    changed: tuple[Canary, ...]
    floor_known: bool


def canary_test(canaries: Sequence[Canary], seed: int = 0) -> CanaryTest:
    """Whether answers are less like the frozen ones than noise makes them.

    Each prompt was answered twice when it was frozen; `floor` is the likeness of those two, and
    `likeness` that of the answer now to the first. A model that did not change gives both one
    distribution. effect: mean floor less mean likeness, with Tango's interval where both are 0 or
    1, else BCa. p: one-sided, of McNemar's exact test, else of the sign-flip test.

    Raises:
        ValueError: no canaries.
    """
    floor = [1.0 if one.floor is None else one.floor for one in canaries]
    likeness = [one.likeness for one in canaries]
    test = paired_test(floor, likeness, seed=seed)
    fall = paired_difference(floor, likeness, seed=seed)
    p = test.p_value / 2 if fall.estimate > 0 else 1.0
    order = sorted(canaries, key=lambda one: (one.likeness, one.id))
    return CanaryTest(
        Measured(fall.estimate, p, fall.estimate, fall.low, fall.high),
        tuple(one for one in order if one.likeness < 1.0),
        all(one.floor is not None for one in canaries),
    )
