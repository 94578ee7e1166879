"""Whose answers are learned from: tenants that disagree far more than the others are suspected.

Knows counts alone. A suspicion becomes a quarantine only where what the tenant teaches, learned
alone, also makes the guard set worse (`online_step`): habits of correcting differ, as topics do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from pydantic import Field
from scipy.special import bdtr

from stillhouse.core.loop_online import TrustSection
from stillhouse.core.records import Record

FADING: Final = 2000.0  # rows after which a tenant's earlier ones count half


class Tally(Record):
    """A tenant's rows, and those whose answer the teacher (else the live student) does not give."""

    rows: float = Field(default=0, ge=0)
    against: float = Field(default=0, ge=0)

    def plus(self, *, against: bool) -> Tally:
        """With one row more; earlier ones fade."""
        keep = 0.5 ** (1 / FADING)
        return Tally(rows=self.rows * keep + 1, against=self.against * keep + against)


class Trust(NamedTuple):
    """What is thought of a tenant."""

    state: Literal["new", "trusted", "suspected"]
    rate: float
    others: float
    p_value: float


def judge(tallies: Mapping[str, Tally], section: TrustSection) -> dict[str, Trust]:
    """Each tenant against all others: one-sided binomial tests, Holm's step down, and an excess
    that matters. The worst is judged first and leaves the others' rate, so that it does not hide
    a second."""
    found: dict[str, Trust] = {}
    left = dict(tallies)
    while left:
        tests = {name: _test(name, left) for name in left}
        ready = {n: t for n, t in tests.items() if left[n].rows >= section.least_rows}
        bad = {n: t for n, t in ready.items() if t[0] - t[1] > section.excess and len(left) > 1}
        worst = min(bad, key=lambda name: (bad[name][2], -bad[name][0]), default=None)
        if worst is None or bad[worst][2] > section.alpha / len(ready):
            for name, test in tests.items():
                found[name] = Trust("trusted" if name in ready else "new", *test)
            return found
        found[worst] = Trust("suspected", *tests[worst])
        del left[worst]
    return found


def _test(name: str, tallies: Mapping[str, Tally]) -> tuple[float, float, float]:
    own = tallies[name]
    rows = sum(one.rows for other, one in tallies.items() if other != name)
    against = sum(one.against for other, one in tallies.items() if other != name)
    others = (against + 1) / (rows + 2)  # Laplace's: no certainty from few
    count, n = round(own.against), max(1, round(own.rows))
    p_value = 1.0 if count == 0 else float(1 - bdtr(min(count, n) - 1, n, others))
    return (own.against / own.rows if own.rows else 0.0, others, p_value)
