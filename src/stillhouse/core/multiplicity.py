"""Many comparisons on one sample: paired p-values, and what is left of them after Holm.

Knows numbers only. Intervals are in `statistics`.

Shapes: N samples, G groups, K hypotheses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from stillhouse.core.bootstrap import DRAWS_AT_ONCE, Groups, group_ids
from stillhouse.core.statistics import Numbers, mcnemar_exact

FLIPS: Final = 9999
_TIE: Final = 1e-12  # sums of the same numbers in another order are one value


class PairedTest(NamedTuple):
    """A two-sided p-value and the test it comes from."""

    p_value: float
    method: str


def paired_test(
    a: Numbers, b: Numbers, *, groups: Groups | None = None, seed: int = 0
) -> PairedTest:
    """Whether two models score differently on the same samples.

    Independent 0/1 scores: McNemar's exact test. Else the sign-flip test (Fisher 1935) on the sums
    of groups: under the null hypothesis each group's difference is as likely with the other sign.
    p = (1 + #{|flipped sum| >= |sum|}) / (1 + 9,999), which holds its level for any N.

    Raises:
        ValueError: empty, non-finite or unpaired scores.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError("paired scores must be of one length, at least 1")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("every score must be finite")
    if groups is None and np.isin(np.concatenate([x, y]), (0.0, 1.0)).all():
        return PairedTest(mcnemar_exact(x, y).p_value, "mcnemar")
    units = np.bincount(group_ids(groups, len(x)), x - y).astype(np.float64)
    units = units[units != 0]
    if not len(units):
        return PairedTest(1.0, "sign_flip")
    least = abs(float(units.sum())) - _TIE
    rng = np.random.default_rng(seed)
    extreme = drawn = 0
    while drawn < FLIPS:
        count = min(FLIPS - drawn, max(1, DRAWS_AT_ONCE // len(units)))
        signs = rng.integers(0, 2, size=(count, len(units)), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ units) >= least).sum())
        drawn += count
    return PairedTest((1 + extreme) / (1 + FLIPS), "sign_flip")


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given (Holm 1979).

    p_(i) in rising order becomes max over j <= i of min(1, (K - j + 1) p_(j)). Rejecting those at
    most alpha makes any false rejection with probability at most alpha, whatever hangs together.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError("p-values must lie in [0, 1]")
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
