"""Whatever an upstream does, the client has a proper answer or a proper error in time, and the log
tells of it; the gateway goes on, with nothing lost of what it may use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from fault_servers import AFTER, BEFORE, FaultyModel
from gateway_servers import FULL, OFF, Model, Running, gateway, models, says, two
from test_gateway_http import Got, send, texts

QUICK: dict[str, Any] = {
    "retry": {"attempts": 1},
    # No fault is of connecting: on a busy machine that takes what it takes, within the total.
    "deadlines": {"first_token_s": 1, "between_tokens_s": 0.5, "total_s": 1.5},
    "breaker": {"failures": 10_000},
}
WHYS = {
    "answer_too_long",
    "between_tokens_deadline",
    "broke_off",
    "deadline",
    "first_token_deadline",
    "garbage",
    "total_deadline",
    "unreachable",
    "upstream_999",
}


def ask(fault: str, streamed: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": fault}]
    return {"model": "t", "messages": messages, "stream": streamed}


@contextmanager
def faulty(
    student: Model | None, variant: str, faults: Any, **task: Any
) -> Iterator[tuple[Running, Callable[[bool], dict[str, Got]]]]:
    """A gateway whose teacher (or student) has faults, and how to ask for all of them at once.

    Its upstream has as many slots as there are faults, and nobody waits for one: a slot that one
    request does not give back, the next misses.
    """
    with FaultyModel(faults).running() as bad, models(*([student] if student else [])):
        other = student or Model(says(""))
        placed = (Model(says("")), other) if variant == "teacher" else (other, Model(says("")))
        raw = two(placed[0], placed[1] if student else None, **task)
        mine = "big" if variant == "teacher" else "small"
        for one in raw["upstreams"].values():
            one["deadlines"] = {"total_s": 8}  # less than the client waits
        raw["upstreams"][mine] |= {**QUICK, "base_url": bad.url}
        raw["upstreams"][mine]["queue"] = {"concurrent": len(faults), "waiting": 0}
        raw["limits"] = {"answer_bytes": 2_000_000}
        with gateway(raw) as running, ThreadPoolExecutor(len(faults)) as pool:

            def all_of(streamed: bool) -> dict[str, Got]:
                got = pool.map(lambda one: send(running.url, ask(one, streamed)), faults)
                return dict(zip(faults, got, strict=True))

            yield running, all_of


def after(running: Running, streamed: bool) -> Got:
    """A good answer once the faults are over: a connection that one of them spoiled, and the server
    has not closed yet, may be taken once."""
    for _ in range(3):
        got = send(running.url, ask("none", streamed))
        if got.status == 200:
            break
    return got


def assert_error(fault: str, error: dict[str, Any]) -> None:
    assert error["type"] == "server_error", fault
    assert error["code"] in WHYS, fault
    assert error["message"].endswith("."), fault


@pytest.mark.parametrize("streamed", [False, True])
def test_a_lone_teachers_fault_is_a_proper_error_and_nothing_is_used_up(streamed: bool) -> None:
    with faulty(None, "teacher", BEFORE) as (running, all_of):
        for _ in range(2):
            for fault, got in all_of(streamed).items():
                assert got.status in (502, 504), fault
                assert got.headers["x-request-id"].startswith("req_")
                assert_error(fault, got.json["error"])
        good = after(running, streamed)
        assert "good" in (texts(good) if streamed else good.body.decode())
        logged = running.wait_for(2 * len(BEFORE) + 1)
    failed = [(call, served) for call, served in logged if served.status != 200]
    assert len(failed) >= 2 * len(BEFORE)
    assert all(served.error in WHYS and call.response is None for call, served in failed)


@pytest.mark.parametrize("variant", ["teacher", "student"])
def test_another_model_answers_for_one_with_a_fault(variant: str) -> None:
    other = Model(says("other"))
    plan = OFF if variant == "teacher" else FULL
    with faulty(other, variant, BEFORE, **plan) as (running, all_of):
        for fault, got in all_of(False).items():
            assert got.status == 200, fault
            assert got.json["choices"][0]["message"]["content"] == "other"
            assert got.headers["x-stillhouse-fallback"] == f"{variant}-down"
        assert len(running.wait_for(len(BEFORE))) == len(BEFORE)


def test_a_stream_that_goes_wrong_says_so_and_is_never_gone_on_with() -> None:
    other = Model(says("other"))
    broken = fell_back = 0
    with faulty(other, "teacher", AFTER, **OFF) as (running, all_of):
        for _ in range(2):
            for fault, got in all_of(True).items():
                assert got.status == 200, fault
                if "x-stillhouse-fallback" in got.headers:
                    # Head and fault came in one piece, before anything was sent.
                    assert texts(got) == "other", fault
                    fell_back += 1
                    continue
                events = got.body.decode("utf-8", "replace").strip().split("\n\n")
                first = json.loads(events[0].removeprefix("data: "))
                assert first["choices"][0]["delta"]["content"] == "go", fault
                last = json.loads(events[-1].removeprefix("data: "))
                assert_error(fault, last["error"])
                assert b"other" not in got.body, fault
                broken += 1
        assert texts(after(running, True)) in ("good", "other")
        logged = running.wait_for(2 * len(AFTER) + 1)
    assert broken > len(AFTER)
    assert len(other.bodies) in (fell_back, fell_back + 1)
    failed = [(call, served) for call, served in logged if served.error is not None]
    assert len(failed) == broken
    assert all(served.error in WHYS and call.response is None for call, served in failed)
