"""Speed: queries per second and latency of several models, measured side by side in one run.

Models take turns (teacher, student, teacher, student, ...), so that a machine that slows down slows
all of them. Asks through the Completer seam; does not know what runs behind it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from stillhouse.core.records import Query
from stillhouse.models.completer import Completer, Sampling

WARM_UP_QUERIES: Final = 8
LATENCY_QUERIES: Final = 20


class Contestant(NamedTuple):
    """A model to time, and how it is asked."""

    completer: Completer
    sampling: Sampling


class Speed(NamedTuple):
    """Throughput with all queries submitted at once, and latency one query at a time.

    `qps` is the median over repeats, in queries/s; `repeats` holds each, in order.
    """

    qps: float
    repeats: tuple[float, ...]
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    queries: int

    @property
    def qps_low(self) -> float:
        """The slowest repeat."""
        return min(self.repeats)

    @property
    def qps_high(self) -> float:
        """The fastest repeat."""
        return max(self.repeats)


async def measure_speed(
    contestants: Mapping[str, Contestant],
    queries: Sequence[Query],
    repeats: int,
    *,
    latency_queries: int = LATENCY_QUERIES,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Speed]:
    """Time every contestant on the same queries, in turns, after a warm-up of each.

    Latency is of the first `latency_queries` of them, asked one at a time.

    Raises:
        ValueError: no queries, no contestants, or fewer than one repeat.
    """
    if not queries or not contestants or repeats < 1:
        raise ValueError("speed needs at least one query, one model and one repeat")
    for contestant in contestants.values():
        await _ask_all(contestant, queries[:WARM_UP_QUERIES])
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            started = clock()
            await _ask_all(contestant, queries)
            rates[name].append(len(queries) / max(clock() - started, 1e-9))
    latencies: dict[str, list[float]] = {name: [] for name in contestants}
    for query in queries[:latency_queries]:
        for name, contestant in contestants.items():
            started = clock()
            await contestant.completer.complete(query, contestant.sampling)
            latencies[name].append(1000 * (clock() - started))
    return {
        name: Speed(
            qps=float(np.median(rates[name])),
            repeats=tuple(rates[name]),
            latency_p50_ms=float(np.quantile(latencies[name], 0.50)),
            latency_p95_ms=float(np.quantile(latencies[name], 0.95)),
            queries=len(queries),
        )
        for name in contestants
    }


def time_function(
    answer_all: Callable[[], object],
    queries: int,
    repeats: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Time a function that answers all queries in one call (a baseline); latency is not known."""
    if queries < 1 or repeats < 1:
        raise ValueError("speed needs at least one query and one repeat")
    answer_all()
    rates: list[float] = []
    for _ in range(repeats):
        started = clock()
        answer_all()
        rates.append(queries / max(clock() - started, 1e-9))
    return Speed(float(np.median(rates)), tuple(rates), None, None, queries)


async def _ask_all(contestant: Contestant, queries: Sequence[Query]) -> None:
    await asyncio.gather(*(contestant.completer.complete(q, contestant.sampling) for q in queries))
