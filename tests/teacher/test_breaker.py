"""The circuit breaker, and the gate that asks it."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.teacher.breaker import FAILURES, Breaker
from stillhouse.teacher.gate import Gate, Pass, StoppedError
from stillhouse.teacher.limiter import Limiter, Outcome
from stillhouse.teacher.limits import Cost


def longest(low: float, high: float) -> float:
    return high


def opened(outage_s: float = 600.0) -> Breaker:
    breaker = Breaker(outage_s, longest)
    breaker.worked()
    for _ in range(FAILURES):
        assert breaker.wait_s(0.0) == 0.0
        breaker.failed(0.0, breaker.start())
    return breaker


def test_a_run_of_failures_opens_it_and_one_answer_resets_the_run() -> None:
    breaker = Breaker(600.0, longest)
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.failed(0.0, False)
        breaker.worked()
    assert not breaker.is_open
    assert opened().is_open


def test_half_open_it_lets_one_through_whose_answer_closes_it() -> None:
    breaker = opened()
    assert breaker.wait_s(0.25) == 0.75
    assert breaker.wait_s(1.0) == 0.0
    assert breaker.start()
    assert breaker.wait_s(1.0) == math.inf  # all others wait for it
    breaker.worked()
    assert breaker.wait_s(1.0) == 0.0
    assert not breaker.start()


def test_each_failed_probe_doubles_the_pause_up_to_half_a_minute() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(7):
        pauses.append(breaker.wait_s(now))
        now += pauses[-1]
        breaker.failed(now, breaker.start())
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_failures_of_requests_sent_before_change_nothing_and_an_answer_closes_it() -> None:
    breaker = opened()
    breaker.failed(0.5, False)
    assert breaker.wait_s(0.5) == 0.5
    breaker.worked()
    assert not breaker.is_open


def test_a_dropped_probe_is_made_by_another() -> None:
    breaker = opened()
    breaker.dropped(breaker.start())
    assert breaker.wait_s(1.0) == 0.0
    assert breaker.start()


def test_it_gives_up_after_the_outage_and_sooner_where_nothing_ever_answered() -> None:
    breaker = opened(outage_s=600.0)
    assert not breaker.gives_up(599.0)
    assert breaker.gives_up(600.0)
    never = Breaker(600.0, longest)
    for _ in range(FAILURES):
        never.failed(0.0, False)
    assert not never.gives_up(59.0)
    assert never.gives_up(60.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 50.0)), max_size=200))
def test_it_never_waits_for_ever_without_a_probe(steps: list[tuple[bool, float]]) -> None:
    breaker, now = Breaker(1e9, longest), 0.0
    for good, passed in steps:
        now += passed
        wait = breaker.wait_s(now)
        assert 0.0 <= wait <= 30.0
        now += wait
        assert breaker.wait_s(now) <= 1e-9
        probe = breaker.start()
        if good:
            breaker.worked()
        else:
            breaker.failed(now, probe)


# --- the gate ---------------------------------------------------------------------------------


def gate(most: int) -> Gate:
    return Gate(Limiter(most, longest), Breaker(600.0, longest))


def test_the_gate_lets_so_many_through_in_their_order() -> None:
    async def main() -> list[int]:
        held, order = gate(2), []

        async def one(number: int) -> None:
            let = await held.enter(Cost())
            order.append(number)
            assert held.limiter.in_flight <= 2
            await asyncio.sleep(0)
            held.leave(let, Outcome("ok"))

        await asyncio.gather(*(one(number) for number in range(50)))
        assert held.limiter.in_flight == 0
        return order

    assert asyncio.run(main()) == list(range(50))


def test_those_who_go_away_hold_no_place() -> None:
    async def main() -> None:
        held = gate(1)
        first = await held.enter(Cost())
        waiting = [asyncio.create_task(held.enter(Cost())) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        with pytest.raises(TimeoutError):
            await held.enter(Cost(), until=held.now() + 0.01)
        held.leave(first, Outcome("ok"))
        second: Pass = await waiting[1]
        held.leave(second, Outcome("ok"))
        held.leave(await waiting[2], Outcome("ok"))
        assert held.limiter.in_flight == 0

    asyncio.run(main())


def test_stopped_it_sends_all_away_also_those_that_rest() -> None:
    async def main() -> None:
        held = gate(1)
        await held.enter(Cost())
        waiting = [
            asyncio.create_task(held.enter(Cost())),
            asyncio.create_task(held.rest(1000.0)),  # type: ignore[arg-type]
        ]
        await asyncio.sleep(0)
        held.stop()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in found] == [StoppedError, StoppedError]
        with pytest.raises(StoppedError):
            await held.enter(Cost())
        held.close()

    asyncio.run(main())


def test_after_a_pause_the_gate_opens_by_itself() -> None:
    async def main() -> None:
        held = gate(4)
        held.leave(await held.enter(Cost()), Outcome("rate_limit", 0.02))
        before = held.now()
        await held.enter(Cost())
        assert held.now() - before >= 0.02
        held.close()

    asyncio.run(main())
