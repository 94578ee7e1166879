"""Speed with a clock of our own: turns, warm-up, medians."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from stillhouse.core.records import Completion, Message, Query
from stillhouse.evaluate.speed import Contestant, measure_speed, time_function
from stillhouse.models.completer import Sampling
from stillhouse.models.fake import FakeCompleter

QUERIES = [Query(id=str(n), messages=(Message(role="user", content=str(n)),)) for n in range(10)]


class Clock:
    """Stands still but for what models take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(FakeCompleter):
    """Takes so many seconds a query, and notes the order of all calls."""

    def __init__(self, name: str, clock: Clock, seconds: float, log: list[str]) -> None:
        super().__init__(name)
        self._clock, self._seconds, self._log = clock, seconds, log

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        self._clock.now += self._seconds
        self._log.append(self._name)
        return await super().complete(query, sampling)


def turns(log: list[str]) -> list[str]:
    return [name for i, name in enumerate(log) if i == 0 or log[i - 1] != name]


def test_models_take_turns_after_a_warm_up() -> None:
    clock, log = Clock(), []
    contestants = {
        "teacher": Contestant(Slow("t", clock, 0.5, log), Sampling()),
        "student": Contestant(Slow("s", clock, 0.02, log), Sampling()),
    }
    speeds = asyncio.run(measure_speed(contestants, QUERIES, 3, clock=clock))
    assert speeds["teacher"].qps == pytest.approx(2.0)
    assert speeds["student"].qps == pytest.approx(50.0)
    assert speeds["student"].latency_p50_ms == pytest.approx(20.0)
    assert speeds["teacher"].latency_p95_ms == pytest.approx(500.0)
    assert len(speeds["teacher"].repeats) == 3
    # One warm-up turn, three timed turns, then latency one query at a time.
    assert turns(log)[:8] == ["t", "s"] * 4
    assert turns(log)[8:] == ["t", "s"] * len(QUERIES)


def test_the_median_of_the_repeats_counts() -> None:
    clock = Clock()
    paces = iter([1.0, 1.0, 4.0, 2.0])  # warm-up, then three repeats

    def answer_all() -> None:
        clock.now += next(paces)

    speed = time_function(answer_all, 8, 3, clock=clock)
    assert speed.repeats == (8.0, 2.0, 4.0)
    assert (speed.qps_low, speed.qps, speed.qps_high) == (2.0, 4.0, 8.0)
    assert speed.latency_p50_ms is None


def test_bad_input_raises() -> None:
    contestant = {"x": Contestant(FakeCompleter(), Sampling())}
    for contestants, queries, repeats in (
        (contestant, [], 1),
        ({}, QUERIES, 1),
        (contestant, QUERIES, 0),
    ):
        with pytest.raises(ValueError, match="at least one"):
            asyncio.run(measure_speed(contestants, queries, repeats))
    with pytest.raises(ValueError, match="at least one"):
        time_function(lambda: None, 0, 1)
