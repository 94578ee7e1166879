"""What 1,000 answers of a teacher cost, and how long one takes. Knows tokens, times and prices.

An ensemble costs the sum of its members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from stillhouse.core.money import completion_cost_usd, machine_usd_per_hour, usd_per_1k_queries
from stillhouse.core.recipe_teacher import PricesSection
from stillhouse.core.records import Completion
from stillhouse.evaluate.results import CandidateSpeed
from stillhouse.evaluate.speed import Speed

TOKENS: Final = "its tokens at their price"
TIMED: Final = "timed here, at the machine's price"
SUM: Final = "the sum of its members"


def api_speed(
    model: str,
    answers: Sequence[Sequence[Completion]],
    *,
    asked: int,
    seconds: float,
    prices: PricesSection,
) -> CandidateSpeed:
    """Of a teacher behind an API, from its answers, whenever they were given.

    Args:
        model: as the recipe names it.
        answers: all samples of each query.
        asked: queries that were asked now.
        seconds: how long that took.
        prices: the recipe's.
    """
    costs: list[float] = []
    for samples in answers:
        found = [_cost(prices, model, completion) for completion in samples]
        known = [cost for cost in found if cost is not None]
        if len(known) == len(found):
            costs.append(sum(known))
    latencies = [c.latency_ms for samples in answers for c in samples if c.latency_ms is not None]
    return CandidateSpeed(
        qps=asked / seconds if asked and seconds > 0 else None,
        latency_p50_ms=float(np.quantile(latencies, 0.50)) if latencies else None,
        latency_p95_ms=float(np.quantile(latencies, 0.95)) if latencies else None,
        usd_per_1k=1000 * sum(costs) / len(costs) if costs else None,
        source=TOKENS,
    )


def local_speed(speed: Speed, prices: PricesSection) -> CandidateSpeed:
    """Of a teacher of this machine, from its timing."""
    return CandidateSpeed(
        qps=speed.qps,
        repeats=speed.repeats,
        latency_p50_ms=speed.latency_p50_ms,
        latency_p95_ms=speed.latency_p95_ms,
        usd_per_1k=usd_per_1k_queries(speed.qps, machine_usd_per_hour(prices).usd_per_hour),
        source=TIMED,
    )


def ensemble_speed(members: Sequence[CandidateSpeed], local: Sequence[bool]) -> CandidateSpeed:
    """Of an ensemble: costs add up; members behind APIs answer at once, local ones in turn.

    Latencies are those of the slowest API and of all local members together, whichever is more: the
    median of a maximum lies above the largest median, so this is a lower bound for APIs. What is
    not known of one member is not known of all.
    """
    costs = [member.usd_per_1k for member in members]
    rates = [member.qps for member in members]
    known = [rate for rate in rates if rate]
    return CandidateSpeed(
        qps=1 / sum(1 / rate for rate in known) if len(known) == len(rates) else None,
        latency_p50_ms=_together([m.latency_p50_ms for m in members], local),
        latency_p95_ms=_together([m.latency_p95_ms for m in members], local),
        usd_per_1k=None if None in costs else sum(cost for cost in costs if cost is not None),
        source=SUM,
    )


def _together(latencies: Sequence[float | None], local: Sequence[bool]) -> float | None:
    known = [value for value in latencies if value is not None]
    if len(known) < len(latencies):
        return None
    here = sum(value for value, own in zip(known, local, strict=True) if own)
    return max([here, *(value for value, own in zip(known, local, strict=True) if not own)])


def _cost(prices: PricesSection, model: str, completion: Completion) -> float | None:
    by_tokens = completion_cost_usd(
        prices, model, completion.prompt_tokens, completion.completion_tokens
    )
    return completion.cost_usd if by_tokens is None else by_tokens
