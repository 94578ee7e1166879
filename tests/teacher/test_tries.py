"""Asking over HTTP when things go wrong: limits, outages, deadlines, keys, revisions, kills.

The budget is checked against the server's own count of what it answered.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from progress_lines import Lines

from stillhouse.core.errors import BudgetError, TeacherError, UserError
from stillhouse.core.recipe_teacher import Price, PricesSection, TeacherSection
from stillhouse.core.records import Message, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher import breaker
from stillhouse.teacher.ask import AskResult, ask
from stillhouse.teacher.budget import Budget
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.gate import Gate, StoppedError
from stillhouse.teacher.limiter import Limiter, Outcome
from stillhouse.teacher.limits import Cost
from stillhouse.teacher.revisions import Revisions, model_part
from stillhouse.teacher.store import UNCLEAN_END, AnswerStore
from teacher_servers import KEY, Answer, Loopback, Truncated, error, openai_answer, serve

ROOT = Path(__file__).parents[2]
SAMPLING = Sampling(max_tokens=8)
PRICES = PricesSection(models={"m": Price(input_usd_per_mtok=1.0, output_usd_per_mtok=100.0)})
ANSWER_USD = (10 * 1.0 + 2 * 100.0) / 1e6  # as the server bills


def queries(count: int) -> list[Query]:
    return [
        Query(id=f"q{i}", messages=(Message(role="user", content=f"text {i}"),))
        for i in range(count)
    ]


def asked(
    server: Loopback,
    path: Path,
    count: int,
    *,
    concurrency: int = 4,
    section: dict[str, Any] | None = None,
    **more: Any,
) -> AskResult:
    teacher = TeacherSection.model_validate(
        {"model": "openai-compatible:m", "base_url": server.url + "/v1"} | (section or {})
    )

    async def main() -> AskResult:
        completer = open_teacher(teacher, PRICES)
        try:
            with AnswerStore(path) as store:
                return await ask(
                    completer, queries(count), SAMPLING, store, concurrency=concurrency, **more
                )
        finally:
            await completer.aclose()

    return asyncio.run(main())


def good(body: dict[str, Any], number: int) -> Any:
    return openai_answer()


def test_a_429_to_one_holds_all_and_nobody_loses_a_try(tmp_path: Path) -> None:
    times: list[float] = []

    def limited(body: dict[str, Any], number: int) -> Any:
        times.append(time.monotonic())
        return error(429, headers={"Retry-After": "0.3"}) if number < 8 else openai_answer()

    with serve(limited, delay_s=0.01) as server:
        result = asked(server, tmp_path / "a.jsonl", 30, concurrency=8, section={"retries": 1})
    assert result.failures == ()
    assert result.failed_tries["rate_limit"] >= 8
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) >= 0.25  # one pause for all


def test_the_headers_hold_requests_before_the_server_must_refuse(tmp_path: Path) -> None:
    left = 10
    started = time.monotonic()

    def counted(body: dict[str, Any], number: int) -> Any:
        nonlocal left
        left = max(0, left - 1)
        answer = openai_answer()
        full_in_s = max(0.0, 1.0 - (time.monotonic() - started))
        answer.headers["x-ratelimit-limit-requests"] = "10"
        answer.headers["x-ratelimit-remaining-requests"] = str(left)
        answer.headers["x-ratelimit-reset-requests"] = f"{full_in_s * 1e3:.0f}ms"
        return answer

    with serve(counted) as server:
        asked(server, tmp_path / "a.jsonl", 14, concurrency=2)
        assert time.monotonic() - started >= 0.2  # the last four had to wait for room


def test_an_outage_is_waited_out_and_costs_no_query_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE_S", 0.02)

    def down_for_a_while(body: dict[str, Any], number: int) -> Any:
        return error(503) if 20 <= number < 50 else openai_answer()

    with serve(down_for_a_while) as server:
        result = asked(server, tmp_path / "a.jsonl", 60, section={"retries": breaker.FAILURES})
        assert result.failures == ()
        assert result.failed_tries == {"server": 30}
        assert len(server.bodies) == 90


def test_a_server_that_stays_down_is_left_with_everything_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE_S", 0.05)
    path = tmp_path / "a.jsonl"
    with serve(lambda body, n: openai_answer() if n < 20 else error(500)) as server:
        with pytest.raises(TeacherError, match=r"500.*every answer so far is kept"):
            asked(server, path, 60, outage_s=0.5)
        server.answer = good
        result = asked(server, path, 60)
        assert (result.asked, result.reused, result.failures) == (40, 20, ())
        assert Counter(server.asked.values())[1] >= 50  # nothing kept was asked again


def test_a_query_has_a_deadline_over_all_its_tries(tmp_path: Path) -> None:
    def one_is_slow(body: dict[str, Any], number: int) -> Any:
        return error(500) if body["messages"][-1]["content"] == "text 3" else openai_answer()

    with serve(one_is_slow) as server:
        result = asked(server, tmp_path / "a.jsonl", 8, section={"retries": 50}, deadline_s=0.3)
    assert [f.query_id for f in result.failures] == ["q3"]
    assert "teacher.deadline_s (0.3 s" in result.failures[0].detail


def test_a_key_revoked_midway_stops_cleanly_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    section = {"api_key_env": "MY_KEY"}
    path = tmp_path / "a.jsonl"
    with serve(lambda body, n: openai_answer() if n < 25 else error(401, "revoked")) as server:
        with pytest.raises(UserError, match=r"revoked.*check the key in MY_KEY") as caught:
            asked(server, path, 200, section=section, prices=PRICES, budget_usd=1.0)
        assert "\n" not in str(caught.value)
        assert len(server.bodies) <= 25 + 4
        server.answer = good
        result = asked(server, path, 200, section=section, prices=PRICES, budget_usd=1.0)
        assert (result.asked, result.reused) == (175, 25)
    with AnswerStore(path) as store:
        assert store.paid_usd == pytest.approx(200 * ANSWER_USD)  # no refusal is on the bill
        assert store.charges_usd == {}


# --- the budget -------------------------------------------------------------------------------


def worst_usd() -> float:
    budget = Budget(None, 0.0, ModelInfo("openai-compatible:m", "r"), PRICES)
    return budget.worst_usd(queries(1)[0], SAMPLING)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(Truncated, "connection"), (lambda: error(504), "server")],
)
def test_a_try_that_may_be_billed_counts_at_its_worst_and_is_remembered(
    tmp_path: Path, broken: Callable[[], Any], reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    with serve(lambda body, n: broken() if n == 2 else openai_answer()) as server:
        result = asked(server, path, 5, concurrency=1, prices=PRICES, budget_usd=1.0)
    assert result.usd_without_answer == pytest.approx(worst_usd())
    assert result.usd == pytest.approx(5 * ANSWER_USD)
    with AnswerStore(path) as store:
        assert store.charges_usd == {reason: pytest.approx(worst_usd())}
        assert store.paid_usd == pytest.approx(5 * ANSWER_USD + worst_usd())


def test_a_refused_connection_is_on_nobodys_bill(tmp_path: Path) -> None:
    with serve(good) as server:
        pass
    path = tmp_path / "a.jsonl"
    result = asked(server, path, 3, section={"retries": 0}, prices=PRICES, budget_usd=1.0)
    assert result.failed_tries == {"connection": 3}
    assert result.usd_without_answer == 0.0
    with AnswerStore(path) as store:
        assert store.paid_usd == 0.0


def test_a_broken_server_cannot_spend_more_than_the_budget(tmp_path: Path) -> None:
    billed = 0

    def breaks(body: dict[str, Any], number: int) -> Any:
        nonlocal billed
        billed += 1
        return Truncated() if number % 2 else openai_answer()

    path, budget_usd = tmp_path / "a.jsonl", 12 * worst_usd()
    with serve(breaks) as server:
        for _ in range(3):
            with pytest.raises(BudgetError):
                asked(server, path, 400, section={"retries": 9}, prices=PRICES,
                      budget_usd=budget_usd)  # fmt: skip
    with AnswerStore(path) as store:
        assert billed * ANSWER_USD <= store.paid_usd <= budget_usd


def test_the_window_is_written_ahead_in_few_lines_and_cleared(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with serve(good, delay_s=0.01) as server:
        asked(server, path, 200, concurrency=16, prices=PRICES, budget_usd=1.0)
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    windows = [row["ledger"]["window_usd"] for row in rows if "ledger" in row]
    assert windows[-1] == 0.0
    assert windows[:-1] == sorted(windows[:-1])
    assert max(windows) <= 20 * worst_usd() * 1.01  # sixteen in flight, four on their way to disk
    assert len(windows) <= 8


def test_a_window_left_open_is_spent_up_to_the_budget(tmp_path: Path) -> None:
    for limit, spent in ((None, 3.0), (2.5, 2.5), (10.0, 3.0)):
        path = tmp_path / f"{limit}.jsonl"
        store = AnswerStore(path)

        async def work(held: AnswerStore = store, most: float | None = limit) -> None:
            await held.charge(1.0, "timeout")
            await held.declare_window(2.0, most)

        asyncio.run(work())
        assert store.paid_usd == 1.0
        store.close()  # as a kill would, without clearing
        for _ in range(2):  # counted once
            with AnswerStore(path) as again:
                assert again.paid_usd == spent
                assert again.charges_usd[UNCLEAN_END] == spent - 1.0


@pytest.mark.full
def test_killed_again_and_again_nothing_is_lost_paid_twice_or_over_the_budget() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/ask_kills.py", "--print-only", "--kills", "2",
         "--queries", "300"],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# --- revisions --------------------------------------------------------------------------------


def changing(at: int) -> Answer:
    def answer(body: dict[str, Any], number: int) -> Any:
        made = openai_answer(fingerprint=f"fp_{number % 3}")
        if number >= at:
            made.text = (made.text or "").replace("gpt-4.1-2025-04-14", "gpt-4.1-2026-06-01")
        return made

    return answer


def test_a_new_revision_midway_is_said_and_counted(tmp_path: Path) -> None:
    lines = Lines()
    with serve(changing(12)) as server:
        result = asked(server, tmp_path / "a.jsonl", 30, concurrency=1, progress=lines)
    assert lines.said == [
        "openai-compatible:m now answers as gpt-4.1-2026-06-01; before, as gpt-4.1-2025-04-14 "
        "(12 answers)"
    ]
    assert len(result.completions_by_query) == 30
    assert result.revisions["gpt-4.1-2025-04-14@fp_0"] == 4
    assert sum(result.revisions.values()) == 30


def test_a_new_revision_stops_the_run_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with serve(changing(12)) as server:
        for _ in range(2):  # and again at once, without paying for more
            with pytest.raises(TeacherError, match=r"more than one model.*\(12 answers\)"):
                asked(server, path, 30, concurrency=1, stop_on_revision_change=True)
            # The next was under way while the thirteenth answer was written.
            assert len(server.bodies) <= 14
        assert len(asked(server, path, 30).completions_by_query) == 30
        # Answers of two models do not become one data set because nothing is left to ask.
        with pytest.raises(TeacherError, match="more than one model"):
            asked(server, path, 30, stop_on_revision_change=True)


def test_fingerprints_are_no_change_of_the_model() -> None:
    assert model_part("gpt-4.1-2025-04-14@fp_a1b2") == "gpt-4.1-2025-04-14"
    assert model_part("org/model@main") == "org/model@main"
    revisions = Revisions("m", stop=True)
    assert revisions.add(["a@fp_1", "a@fp_2"]) is None
    assert revisions.problem() is None
    assert revisions.add(["b@fp_1"]) is not None
    assert revisions.problem() is not None


def test_leave_that_was_given_before_the_end_is_taken_back() -> None:
    """One slot: the request that came back frees it for the next, and then ends the run."""

    async def main() -> int:
        gate = Gate(Limiter(1, random.uniform), breaker.Breaker(60.0, random.uniform))
        cost = Cost(1.0, 1.0)
        first = await gate.enter(cost)
        waiting = asyncio.create_task(gate.enter(cost))
        await asyncio.sleep(0)
        gate.leave(first, Outcome("refused"))
        gate.stop()
        with pytest.raises(StoppedError):
            await waiting
        return gate.limiter.in_flight

    assert asyncio.run(main()) == 0
