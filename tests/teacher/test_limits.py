"""Rate limits: the headers of two providers, what fits, a window that finds the server's rate."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.teacher.limiter import Limiter, Outcome
from stillhouse.teacher.limits import Bucket, Cost, Seen, read_limits, reset_s

NOW = 1_780_000_000.0  # 2026-05-28T20:26:40Z


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("120ms", 0.12),
        ("1h2m3.5s", 3723.5),
        ("8.64s", 8.64),
        ("0s", 0.0),
        ("30", 30.0),
        (str(NOW + 5), 5.0),
        ("2026-05-28T20:26:50Z", 10.0),
        ("2026-05-28T22:26:50+02:00", 10.0),
        ("2026-05-28T20:26:30Z", 0.0),  # past
        ("2026-05-28T20:26:50", None),  # of which zone?
        ("9999d", 86400.0),
        ("-3", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        (None, None),
    ],
)
def test_forms_of_a_reset(raw: str | None, seconds: float | None) -> None:
    found = reset_s(raw, NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_header_is_a_limit_or_nothing(one: str, other: str) -> None:
    headers = {
        "x-ratelimit-remaining-tokens": one,
        "x-ratelimit-limit-tokens": other,
        "x-ratelimit-reset-tokens": one,
        "anthropic-ratelimit-requests-remaining": other,
        "anthropic-ratelimit-requests-reset": one,
    }
    for seen in read_limits(headers, NOW):
        assert math.isfinite(seen.remaining)
        assert seen.remaining >= 0
        assert seen.full_in_s is None or 0 <= seen.full_in_s <= 86400


def test_headers_of_both_providers() -> None:
    openai = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "29000",
        "x-ratelimit-reset-tokens": "2s",
    }
    assert read_limits(openai, NOW) == (
        Seen("requests", 499, 500, 0.12),
        Seen("tokens", 29000, 30000, 2.0),
    )
    claude = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-05-28T20:26:50Z",
        "anthropic-ratelimit-input-tokens-limit": "1000",
        "anthropic-ratelimit-input-tokens-remaining": "10",
        "anthropic-ratelimit-input-tokens-reset": "2026-05-28T20:26:41Z",
        "anthropic-ratelimit-output-tokens-remaining": "7",
    }
    assert read_limits(claude, NOW) == (
        Seen("requests", 0, 50, 10.0),
        Seen("input-tokens", 10, 1000, 1.0),
        Seen("output-tokens", 7, None, None),
    )


def test_a_bucket_fills_steadily() -> None:
    bucket = Bucket(Seen("requests", 0, 60, 60.0), at=100.0, sent=5.0)  # one a second
    assert bucket.wait_s(100.0, 5.0, 1.0) == pytest.approx(1.0)
    assert bucket.wait_s(101.5, 5.0, 1.0) == 0.0
    assert bucket.wait_s(101.5, 6.0, 1.0) == pytest.approx(0.5)  # one was sent since
    assert bucket.wait_s(100.0, 5.0, 1000.0) == pytest.approx(60.0)  # bigger than the limit
    assert bucket.wait_s(161.0, 500.0, 1.0) == 0.0  # seen too long ago to say anything


@given(
    st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e4), st.floats(0, 1e6), st.floats(0, 1e6)
)
def test_a_wait_is_enough_and_no_longer_than_the_reset(
    remaining: float, limit: float, full_in: float, sent: float, cost: float
) -> None:
    bucket = Bucket(Seen("tokens", remaining, limit or None, full_in), at=0.0, sent=0.0)
    wait = bucket.wait_s(0.0, sent, cost)
    assert 0.0 <= wait <= full_in
    assert bucket.wait_s(wait * (1 + 1e-9) + 1e-6, sent, cost) <= max(1e-6, 1e-6 * wait)


# --- the window -------------------------------------------------------------------------------


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def test_a_429_halves_once_a_moment_and_holds_all() -> None:
    limiter = Limiter(8, middle)
    tickets = [limiter.start(Cost()) for _ in range(8)]
    assert limiter.wait_s(0.0, Cost()) == math.inf
    for ticket in tickets[:4]:
        limiter.done(ticket, 1.0, Outcome("rate_limit", 7.0))
    assert limiter.window == 4
    assert limiter.paused_until == pytest.approx(8.35)  # as asked, stretched a little
    for ticket in tickets[4:]:
        limiter.done(ticket, 1.0, Outcome("ok"))
    assert limiter.wait_s(2.0, Cost()) == pytest.approx(6.35)
    assert limiter.wait_s(9.0, Cost()) == 0.0


def test_pauses_double_while_nothing_is_answered() -> None:
    limiter = Limiter(64, middle)
    now, pauses = 0.0, []
    for _ in range(9):
        ticket = limiter.start(Cost())
        limiter.done(ticket, now, Outcome("rate_limit"))
        pauses.append(limiter.paused_until - now)
        now = limiter.paused_until
    assert pauses == [0.75 * min(60.0, 2.0**k) for k in range(9)]
    assert limiter.window == 1
    limiter.done(limiter.start(Cost()), now, Outcome("ok"))
    limiter.done(limiter.start(Cost()), now, Outcome("rate_limit"))
    assert limiter.paused_until - now == 0.75


@given(st.integers(1, 40), st.lists(st.sampled_from(["ok", "rate_limit", "failed"]), max_size=300))
def test_the_window_stays_between_one_and_the_most(most: int, kinds: list[str]) -> None:
    limiter = Limiter(most, middle)
    now = 0.0
    for kind in kinds:
        now = max(now, limiter.paused_until)
        assert limiter.wait_s(now, Cost()) == 0.0
        limiter.done(limiter.start(Cost()), now, Outcome(kind))  # type: ignore[arg-type]
        assert 1.0 <= limiter.window <= most
        assert limiter.in_flight == 0


def simulate(
    *, rate: float, burst: float, headers: bool, seconds: float, most: int = 64
) -> tuple[int, int]:
    """(answers, 429s) of a client under this limiter at a server that is a token bucket."""
    draw = random.Random(0)
    limiter = Limiter(most, draw.uniform)
    level, filled_at, now, latency = burst, 0.0, 0.0, 0.2
    flying: list[tuple[float, int, object, bool, float]] = []
    answers = refused = number = 0
    while now < seconds:
        wait = limiter.wait_s(now, Cost())
        if wait > 0:
            soonest = flying[0][0] if flying else math.inf
            now = min(now + wait + 1e-6, soonest) if wait < math.inf else soonest
        while flying and flying[0][0] <= now:
            _, _, ticket, served, left = heapq.heappop(flying)
            seen = ()
            if headers:
                seen = (Seen("requests", math.floor(left), burst, (burst - left) / rate),)
            kind = "ok" if served else "rate_limit"
            limiter.done(ticket, now, Outcome(kind, None, seen))  # type: ignore[arg-type]
            answers += served
            refused += not served
        if limiter.wait_s(now, Cost()) <= 0:
            level = min(burst, level + rate * (now - filled_at))
            filled_at = now
            served = level >= 1
            level -= served
            number += 1
            heapq.heappush(flying, (now + latency, number, limiter.start(Cost()), served, level))
    return answers, refused


def test_with_headers_a_limited_server_is_used_in_full_and_hardly_refuses() -> None:
    answers, refused = simulate(rate=20.0, burst=100.0, headers=True, seconds=60.0)
    possible = 100 + 20 * 60
    assert answers >= 0.93 * possible
    assert refused <= 0.01 * answers


def test_without_headers_the_window_finds_the_rate() -> None:
    answers, refused = simulate(rate=20.0, burst=20.0, headers=False, seconds=120.0)
    assert answers >= 0.5 * 20 * 120
    assert refused <= 0.25 * answers  # the right window is 4: each step past it is refused


def test_an_unlimited_server_is_never_held_back() -> None:
    answers, refused = simulate(rate=1e9, burst=1e9, headers=True, seconds=20.0)
    assert refused == 0
    assert answers >= 0.97 * 64 * 20 / 0.2
