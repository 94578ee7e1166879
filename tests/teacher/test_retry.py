"""Back-off: which failures are tried again, how long is waited, what is said at the end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.teacher.retry import (
    Retrying,
    TeacherFailure,
    UnreadableAnswerError,
    judge,
    retry_after_s,
    with_retries,
)


class StatusError(Exception):
    def __init__(self, status: int, headers: dict[str, str] | None = None, text: str = "") -> None:
        super().__init__(text)
        self.status_code = status
        self.response = SimpleNamespace(headers=headers or {})


class Clock:
    """Sleeps at once, remembers for how long."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    def retrying(self, retries: int, share: float = 1.0) -> Retrying:
        return Retrying(
            retries,
            sleep=self.sleep,
            uniform=lambda low, high: low + share * (high - low),
            now=lambda: 1_000_000.0,
        )


def run(outcomes: list[Exception | str], clock: Clock, retries: int, share: float = 1.0) -> str:
    left: Iterator[Exception | str] = iter(outcomes)

    async def attempt() -> str:
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return asyncio.run(
        with_retries(
            attempt,
            clock.retrying(retries, share),
            (StatusError, OSError, TimeoutError, UnreadableAnswerError),
            lambda error, verdict: f"{verdict.reason}: {error}",
        )
    )


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_passing_failures_are_tried_again(status: int) -> None:
    clock = Clock()
    assert run([StatusError(status), StatusError(status), "ok"], clock, retries=2) == "ok"
    assert len(clock.waits) == 2


@pytest.mark.parametrize(
    ("status", "reason", "fatal"),
    [
        (400, "bad_request", False),
        (401, "auth", True),
        (402, "quota", True),
        (403, "auth", True),
        (404, "not_found", True),
        (413, "too_long", False),
        (422, "bad_request", False),
    ],
)
def test_what_the_caller_must_mend_is_never_tried_again(
    status: int, reason: str, fatal: bool
) -> None:
    clock = Clock()
    with pytest.raises(TeacherFailure) as caught:
        run([StatusError(status), "ok"], clock, retries=9)
    assert clock.waits == []
    assert (caught.value.reason, caught.value.fatal) == (reason, fatal)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset"), TimeoutError(), UnreadableAnswerError("<html>")]
)
def test_broken_connections_and_time_outs_are_tried_again(error: Exception) -> None:
    assert run([error, "ok"], Clock(), retries=1) == "ok"


def test_an_empty_account_is_not_a_rate_limit() -> None:
    with pytest.raises(TeacherFailure) as caught:
        run([StatusError(429, text="insufficient_quota")], Clock(), retries=5)
    assert caught.value.reason == "quota"
    assert caught.value.fatal


def test_back_off_doubles_up_to_the_cap_and_retries_are_counted() -> None:
    clock = Clock()
    with pytest.raises(TeacherFailure, match=r"server: .*\(after 10 tries\)"):
        run([StatusError(500)] * 10, clock, retries=9)
    assert clock.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_jitter_is_full() -> None:
    clock = Clock()
    run([StatusError(500)] * 3 + ["ok"], clock, retries=3, share=0.0)
    assert clock.waits == [0.0, 0.0, 0.0]


def test_retry_after_goes_first_and_a_hopeless_one_fails() -> None:
    clock = Clock()
    run([StatusError(429, {"retry-after": "7"}), "ok"], clock, retries=1)
    assert clock.waits == [7.5]  # with the first step of the jitter on top
    with pytest.raises(TeacherFailure, match="asks to wait 7200 s"):
        run([StatusError(429, {"retry-after": "7200"}), "ok"], Clock(), retries=5)


def test_a_server_may_forbid_another_try() -> None:
    assert not judge(StatusError(500, {"x-should-retry": "false"}), 0.0).again


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Mon, 12 Jan 1970 13:47:10 GMT"}, 30.0),
        ({"retry-after": "Mon, 12 Jan 1970 13:00:00 GMT"}, None),  # in the past
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({}, None),
    ],
)
def test_retry_after_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, now=1_000_000.0) == seconds


@given(st.text(max_size=40))
def test_any_retry_after_header_is_a_wait_or_nothing(raw: str) -> None:
    seconds = retry_after_s({"retry-after": raw}, now=0.0)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


def test_an_unforeseen_error_passes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        run([ZeroDivisionError()], Clock(), retries=5)
