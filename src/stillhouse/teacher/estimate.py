"""A quantity of a plan with its interval, and what a plan knows of queries not asked yet.

Does not know how either was found.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from stillhouse.core.records import Record


class Estimate(Record):
    """A quantity with its interval.

    `basis` says what it rests on: `sample` (n answers, extrapolated), `bound` (no request was sent:
    `high` is the worst case, `estimate` a rule of thumb where there is one) or `known`.
    """

    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    basis: Literal["sample", "bound", "known"]
    n: int = 0

    def times(self, factor: float) -> Estimate:
        """The quantity in another unit; `factor` is not negative."""
        return self.model_copy(
            update={
                name: None if value is None else value * factor
                for name, value in (
                    ("estimate", self.estimate),
                    ("low", self.low),
                    ("high", self.high),
                )
            }
        )


class Rest(NamedTuple):
    """What is not asked yet: how many queries, and the sum of their sizes."""

    queries: int
    size: float
