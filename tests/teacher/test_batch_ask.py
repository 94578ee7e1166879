"""Asking by batch against a server that speaks both protocols, and fails in every way they can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from progress_lines import Lines

from batch_servers import BatchServer, Faults, serve_batches
from stillhouse.core.errors import BudgetError, TeacherError, UserError
from stillhouse.core.recipe_teacher import Price, PricesSection, TeacherSection
from stillhouse.core.records import Completion, Message, Query
from stillhouse.models.completer import Sampling
from stillhouse.teacher import api
from stillhouse.teacher.anthropic_client import AnthropicCompleter
from stillhouse.teacher.ask import ask
from stillhouse.teacher.batch_ask import Clock
from stillhouse.teacher.batch_build import BatchResult, ask_batches, check_batches
from stillhouse.teacher.batch_journal import BatchJournal, Intended, held_by_batches
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.openai_client import OpenAICompleter
from stillhouse.teacher.retry import Retrying, TeacherFailure
from stillhouse.teacher.store import AnswerStore, answer_key
from teacher_servers import KEY, error

# 100 tokens in and 20 out cost 0.0003 at list, 0.00015 in a batch.
PRICES = PricesSection(
    models={
        "*gpt-4.1": Price(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0),
        "*claude-haiku-4-5": Price(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0),
    }
)
EACH = 0.0003
SAMPLING = Sampling(max_tokens=30)
MODELS = {"openai": "openai:gpt-4.1", "anthropic": "anthropic:claude-haiku-4-5"}
both = pytest.mark.parametrize("provider", ["openai", "anthropic"])
Serve = Callable[..., BatchServer]


def queries(count: int) -> list[Query]:
    return [
        Query(id=f"q{i}", messages=(Message(role="user", content=f"text {i}"),))
        for i in range(count)
    ]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setattr(api, "Retrying", partial(Retrying, base_s=0.005))
    with ExitStack() as stack:
        yield lambda faults=None, **more: stack.enter_context(serve_batches(faults, **more))


class Run:
    """Starts in one folder, one after another."""

    def __init__(self, folder: Path, server: BatchServer, provider: str, **section: Any) -> None:
        self.folder, self.server, self.provider = folder, server, provider
        self.section, self.lines = section, Lines()

    def teacher(self, batch: dict[str, Any] | None) -> TeacherSection:
        suffix = "/v1" if self.provider == "openai" else ""
        if batch is not None:
            batch = {"poll_s": 0.01, "pilot": 1} | batch
        return TeacherSection.model_validate(
            {
                "model": MODELS[self.provider], "base_url": self.server.url + suffix,
                "retries": 2, "batch": batch, **self.section,
            }
        )  # fmt: skip

    def __call__(
        self,
        count: int,
        sampling: Sampling = SAMPLING,
        settle_s: float = 0.05,
        problem_of: Callable[[Completion], str | None] | None = None,
        **batch: Any,
    ) -> BatchResult:
        return self.of(queries(count), sampling, settle_s, problem_of, batch)

    def of(
        self,
        asked: list[Query],
        sampling: Sampling = SAMPLING,
        settle_s: float = 0.05,
        problem_of: Callable[[Completion], str | None] | None = None,
        batch: dict[str, Any] | None = None,
    ) -> BatchResult:
        async def main() -> BatchResult:
            section = self.teacher(batch)
            completer = open_teacher(section, PRICES)
            try:
                with AnswerStore(self.folder / "answers.jsonl") as store:
                    return await ask_batches(
                        completer, asked, sampling, store, self.folder / "batches",
                        section=section, prices=PRICES, progress=self.lines,
                        problem_of=problem_of, clock=Clock(settle_s=settle_s),
                    )  # fmt: skip
            finally:
                await completer.aclose()

        return asyncio.run(main())

    def answers(self, count: int, sampling: Sampling = SAMPLING) -> list[tuple[Completion, ...]]:
        info = open_teacher(self.teacher(None), PRICES).info
        with AnswerStore(self.folder / "answers.jsonl") as store:
            return [store.get(answer_key(info, query, sampling)) for query in queries(count)]

    def paid(self) -> float:
        with AnswerStore(self.folder / "answers.jsonl") as store:
            return store.paid_usd

    def check_each_once(self, count: int) -> None:
        """Every query has its own answer, and was billed once, in a batch or live."""
        for i, found in enumerate(self.answers(count)):
            assert [c.text for c in found] == [f"answer to text {i}"]
        billed = self.server.billed + self.server.live
        assert dict(billed) == {f"text {i}": 1 for i in range(count)}


@both
def test_a_batch_answers_all_at_half_price_under_the_keys_of_live_asking(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    run = Run(tmp_path, serve(), provider)
    result = run(30)
    run.check_each_once(30)
    assert len(run.server.batches) == 1
    assert run.server.live.total() == 1  # the pilot, at list price
    assert run.paid() == pytest.approx(EACH * (1 + 29 / 2))
    assert sum(result.usd_by_key.values()) == pytest.approx(run.paid())
    assert not result.failures
    assert (run.answers(30)[7][0].latency_ms, run.answers(30)[7][0].query_id) == (None, "q7")
    # Nothing is left of what was sent but the journal, and a second start sends nothing.
    assert [path.name for path in (tmp_path / "batches").iterdir()] == ["journal.jsonl"]
    assert not run.server.files
    before = len(run.server.log)
    run(30)
    assert len(run.server.log) == before

    async def live() -> int:
        completer = open_teacher(run.teacher(None), PRICES)
        with AnswerStore(tmp_path / "answers.jsonl") as store:
            found = await ask(completer, queries(30), SAMPLING, store, concurrency=2)
        await completer.aclose()
        return found.asked

    assert asyncio.run(live()) == 0


@both
def test_batches_are_split_by_count_and_by_size(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    run = Run(tmp_path, serve(), provider)
    run(31, max_requests=7)
    assert [len(b.requests) for b in run.server.batches.values()] == [7, 7, 7, 7, 2]
    run.check_each_once(31)
    other = Run(tmp_path / "other", serve(), provider)
    other(31, max_mb=0.001)
    assert len(other.server.batches) > 5
    other.check_each_once(31)


@both
def test_a_request_larger_than_a_batch_is_a_failure_of_its_query(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    run = Run(tmp_path, serve(), provider)
    large = Query(id="large", messages=(Message(role="user", content="x" * 2000),))
    result = run.of([*queries(5), large], batch={"max_mb": 0.002})
    (detail,) = result.failures.values()
    assert "larger than a whole batch may be (2,000 bytes)" in detail
    run.check_each_once(5)


@both
def test_several_samples_of_a_query(tmp_path: Path, serve: Serve, provider: str) -> None:
    three = Sampling(n=3, max_tokens=30, sampling_temperature=1.0)
    run = Run(tmp_path, serve(), provider)
    run(6, three, max_requests=7)
    assert [len(found) for found in run.answers(6, three)] == [3] * 6
    assert [c.sample for c in run.answers(6, three)[4]] == [0, 1, 2]
    requests = [row for made in run.server.batches.values() for row in made.requests]
    assert len(requests) == (5 if provider == "openai" else 15)
    assert max(len(made.requests) for made in run.server.batches.values()) <= 7


@both
@pytest.mark.parametrize("ends_as", ["expired", "cancelled"])
def test_a_partial_batch_is_salvaged_and_only_the_rest_asked_again(
    tmp_path: Path, serve: Serve, provider: str, ends_as: str
) -> None:
    faults = Faults(batch=lambda number: ends_as if number == 0 else "completed")
    run = Run(tmp_path, serve(faults), provider)
    if ends_as == "cancelled":  # somebody wanted it to stop
        with pytest.raises(TeacherError, match="was cancelled; its 10 answers are kept"):
            run(21)
    run(21)
    run.check_each_once(21)
    sizes = [len(made.requests) for made in run.server.batches.values()]
    # Each start asks one query live.
    assert sizes == ([20, 10] if ends_as == "expired" else [20, 9])
    (errors,) = (tmp_path / "batches").glob("*.errors.jsonl")
    assert errors.read_text().count(ends_as) >= 10


@both
def test_after_so_many_rounds_the_rest_is_left_to_live_asking(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    run = Run(tmp_path, serve(Faults(batch=lambda number: "expired", half=0.0)), provider)
    result = run(5, rounds=2)
    assert len(run.server.batches) == 2
    assert not result.failures
    assert sum(bool(found) for found in run.answers(5)) == 1


@both
def test_error_rows_are_kept_and_missing_rows_asked_again(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    seen: dict[str, int] = {}
    bad = (400, "invalid_request_error", "I do not like it")
    busy = (429, "rate_limit_error", "slow down")

    def row(text: str) -> Any:
        seen[text] = seen.get(text, 0) + 1
        if text == "text 3":
            return bad
        return {"text 4": busy, "text 5": "missing"}.get(text) if seen[text] == 1 else None

    run = Run(tmp_path, serve(Faults(row=row)), provider)
    result = run(8)
    (detail,) = result.failures.values()
    assert "I do not like it" in detail
    answered = [bool(found) for found in run.answers(8)]
    assert answered == [True] * 3 + [False] + [True] * 4
    assert [len(made.requests) for made in run.server.batches.values()] == [7, 2]


@both
def test_a_server_that_stumbles_is_looked_at_again(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    def stumble(method: str, path: str, number: int) -> web.Response | None:
        if method == "GET" and number % 3 == 0:
            return error(429 if number % 2 else 500, headers={"retry-after-ms": "1"})
        return None

    faults = Faults(request=stumble, cut_downloads=1)
    run = Run(tmp_path, serve(faults, looks=3), provider)
    run(12)
    run.check_each_once(12)
    assert len(run.server.batches) == 1


@both
def test_an_outage_is_waited_for_and_a_longer_one_stops_cleanly(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    down: list[int] = []

    def outage(method: str, path: str, number: int) -> web.Response | None:
        if method == "GET" and "batch_" in path and len(down) < until:
            down.append(number)
            return error(503, headers={"x-should-retry": "false"})
        return None

    until = 10
    run = Run(tmp_path, serve(Faults(request=outage)), provider)
    run(4)
    assert len(down) == 10
    until = 1000
    with pytest.raises(TeacherFailure):
        run(9)
    until = 0
    run(9)
    run.check_each_once(9)
    assert len(run.server.batches) == 2


@both
def test_a_key_revoked_while_polling_stops_and_goes_on(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    server = serve(looks=5)

    def revoke(method: str, path: str, number: int) -> None:
        if method == "GET" and "batch_" in path and server.key == KEY:
            server.key = "another"

    server.faults.request = revoke  # type: ignore[assignment]
    run = Run(tmp_path, server, provider)
    with pytest.raises(TeacherFailure, match="check the key") as caught:
        run(10)
    assert caught.value.reason == "auth"
    assert KEY not in str(caught.value)
    server.key, server.faults.request = KEY, lambda *_: None
    run(10)
    run.check_each_once(10)
    assert len(server.batches) == 1


def test_a_batch_refused_at_validation_is_one_line_and_loses_nothing(
    tmp_path: Path, serve: Serve
) -> None:
    faults = Faults(batch=lambda number: "failed" if number == 1 else "completed")
    run = Run(tmp_path, serve(faults), "openai")
    with pytest.raises(TeacherError, match=r"line 3: This line is not valid JSON") as caught:
        run(9, max_requests=4)
    assert "\n" not in str(caught.value)
    run(9)
    run.check_each_once(9)


@both
def test_a_batch_refused_when_it_is_made(tmp_path: Path, serve: Serve, provider: str) -> None:
    def refuse(method: str, path: str, number: int) -> web.Response | None:
        if method == "POST" and path.endswith("/batches"):
            return error(400, "this account may not")
        return None

    run = Run(tmp_path, serve(Faults(request=refuse)), provider)
    with pytest.raises(TeacherFailure, match="this account may not"):
        run(5)
    run.server.faults.request = lambda *_: None
    run(5)
    run.check_each_once(5)


def test_a_full_queue_is_waited_for_with_smaller_batches(tmp_path: Path, serve: Serve) -> None:
    faults = Faults(batch=lambda number: "later" if number < 2 else "completed")
    run = Run(tmp_path, serve(faults), "openai")
    run(17)
    run.check_each_once(17)
    sizes = [len(made.requests) for made in run.server.batches.values()]
    assert sizes[:3] == [16, 8, 4]


@both
@pytest.mark.parametrize("how", ["lose_creates", "drop_creates"])
def test_a_batch_whose_answer_is_lost_is_looked_for_and_not_sent_twice(
    tmp_path: Path, serve: Serve, provider: str, how: str
) -> None:
    run = Run(tmp_path, serve(Faults(**{how: 1}, hidden_s=0.03)), provider)
    run(10, settle_s=0.2)
    run.check_each_once(10)
    assert len(run.server.batches) == 1


def test_anothers_batch_of_the_same_size_is_not_taken(tmp_path: Path, serve: Serve) -> None:
    server = serve(Faults(lose_creates=1))
    theirs = [
        {"custom_id": f"theirs-{i}", "params": {"messages": [{"content": "x"}]}} for i in range(9)
    ]
    real = server.make

    def make(requests: list[dict[str, Any]], **more: Any) -> Any:
        made = real(requests, **more)
        real(theirs)  # made at the same time, of as many requests
        return made

    server.make = make  # type: ignore[method-assign]
    run = Run(tmp_path, server, "anthropic")
    run(10)
    assert server.billed.pop("x", 9) == 9
    run.check_each_once(10)


@both
def test_the_budget_is_never_crossed_and_smaller_batches_fill_it(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    # In a batch a query costs 0.00015, and at its worst about 0.0002.
    run = Run(tmp_path, serve(), provider, budget_usd=0.002)
    with pytest.raises(BudgetError, match="raise budget_usd"):
        run(40)
    assert run.paid() <= 0.002
    billed = run.server.billed.total() / 2 * EACH + run.server.live.total() * EACH
    assert billed == pytest.approx(run.paid())
    assert 0.002 - run.paid() < 0.0003  # not even one more could be sure to fit
    assert len(run.server.batches) > 1
    run.section["budget_usd"] = 1.0
    run(40)
    run.check_each_once(40)


@both
def test_a_batch_in_flight_is_held_against_the_budget(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    run = Run(tmp_path, serve(), provider, budget_usd=0.001)
    with BatchJournal(tmp_path / "batches") as journal:
        intended = Intended(
            batch="b", teacher="another", at=0.0, requests=1, size=1, worst_usd=0.0009
        )
        journal.intend(intended, [])
    with pytest.raises(BudgetError, match=r"teacher\.budget_usd"):
        run(3)
    assert not run.server.batches
    assert any("batches of another are still open" in line for line in run.lines.said)


@both
def test_a_lost_batch_stops_until_it_is_given_up(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    server = serve(Faults(batch=lambda number: "stuck" if number == 0 else "completed"))
    server.faults.request = lambda method, path, number: (  # the first look stops the run
        error(401) if "batch_" in path else None
    )
    run = Run(tmp_path, server, provider)
    with pytest.raises(TeacherFailure):
        run(10)
    server.faults.request = lambda *_: None
    del server.batches["batch_0000"]
    with pytest.raises(UserError, match="when_lost"):
        run(10)
    result = run(10, when_lost="ask_again")
    assert sum(bool(found) for found in run.answers(10)) == 10
    assert result.held.usd > 0  # it may have been billed


@both
def test_results_shorter_than_the_counts_are_not_taken_for_all(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    run = Run(tmp_path, serve(Faults(short_downloads=1)), provider)
    run(10)
    run.check_each_once(10)
    other = Run(tmp_path / "other", serve(Faults(short_downloads=99)), provider)
    with pytest.raises(UserError, match="fewer than the 9 answers"):
        other(10)
    other.server.faults.short_downloads = 0
    other(10)
    other.check_each_once(10)
    assert len(other.server.batches) == 1


@both
def test_the_pilot_finds_a_task_of_no_use(tmp_path: Path, serve: Serve, provider: str) -> None:
    run = Run(tmp_path, serve(), provider)
    with pytest.raises(UserError, match="none of its 20 answers can be used"):
        run(50, problem_of=lambda completion: "not a label", pilot=20)
    assert not run.server.batches


def test_the_pilot_finds_what_the_model_refuses(tmp_path: Path, serve: Serve) -> None:
    server = serve()
    server.refuse_temperature = True
    run = Run(tmp_path, server, "openai")
    run(6)
    run.check_each_once(6)
    assert all(
        "temperature" not in row["body"] or row["body"].get("reasoning_effort")
        for made in server.batches.values()
        for row in made.requests
    )


@both
def test_few_requests_go_live_and_running_batches_are_collected_all_the_same(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    run = Run(tmp_path, serve(), provider)
    run(5, min_requests=100)
    assert not run.server.batches
    # A recipe that asks live again first collects what runs.
    server = run.server
    server.faults.request = lambda method, path, number: error(401) if "batch_" in path else None
    with pytest.raises(TeacherFailure):
        run(9)
    server.faults.request = lambda *_: None
    run.of(queries(9), batch=None)
    assert sum(bool(found) for found in run.answers(9)) == 9
    assert max((server.billed + server.live).values()) == 1


def test_a_server_without_batches_is_refused_before_anything_is_sent(
    tmp_path: Path, serve: Serve
) -> None:
    def none(method: str, path: str, number: int) -> web.Response | None:
        return error(404, "Not Found") if "batches" in path else None

    run = Run(tmp_path, serve(Faults(request=none)), "openai")

    async def check() -> None:
        completer = open_teacher(run.teacher({}), PRICES)
        try:
            await check_batches(completer)
        finally:
            await completer.aclose()

    with pytest.raises(UserError, match=r"teacher\.batch: .* has no batches; leave teacher\.batch"):
        asyncio.run(check())
    with pytest.raises(UserError, match="has no batches"):
        run(5)
    assert run.server.live.total() == 0


def test_a_local_teacher_has_no_batches() -> None:
    with pytest.raises(ValueError, match="batch is for teachers behind an API, not gguf"):
        TeacherSection.model_validate({"model": "gguf:x", "batch": {}})


def test_a_start_with_batches_in_flight_waits_for_what_they_leave_of_the_budget(
    tmp_path: Path, serve: Serve
) -> None:
    run = Run(tmp_path, serve(looks=3), "openai", budget_usd=0.004)
    run.server.faults.request = lambda method, path, number: (
        error(401) if "batch_" in path else None
    )
    with pytest.raises(TeacherFailure):  # it ends with almost all of the budget held
        run(30)
    held = len(run.server.batches["batch_0000"].requests)
    run.server.faults.request = lambda *_: None
    with pytest.raises(BudgetError):
        run(40)
    assert sum(bool(found) for found in run.answers(40)) > held + 1
    assert 0.004 - run.paid() < 0.0005


@both
def test_answers_that_cannot_be_read_were_billed_and_count_against_the_budget(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    run = Run(tmp_path, serve(Faults(unreadable=lambda text: True)), provider, budget_usd=0.004)
    run.server.text = lambda text: text
    with pytest.raises(BudgetError):
        run(30, rounds=50)
    assert run.server.live.total() == 1
    billed = EACH * (run.server.live.total() + run.server.billed.total() / 2)
    with BatchJournal(tmp_path / "batches") as journal:
        assert billed - 1e-9 <= run.paid() + journal.held.usd <= 0.004 + 1e-9
    assert run.server.billed.total() > 5


@both
def test_answers_that_did_not_come_were_billed_and_count_against_the_budget(
    tmp_path: Path, serve: Serve, provider: str
) -> None:
    run = Run(tmp_path, serve(Faults(short_downloads=2)), provider, budget_usd=0.05)
    run(20, when_lost="ask_again")
    billed = EACH * (run.server.live.total() + run.server.billed.total() / 2)
    assert billed > run.paid() + EACH / 4, "some were answered twice"
    with BatchJournal(tmp_path / "batches") as journal:
        assert billed - 1e-9 <= run.paid() + journal.held.usd


@both
def test_a_new_revision_stops_batches_too(
    tmp_path: Path, serve: Serve, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, serve(), provider, on_revision_change="stop")
    run(10)
    read = {"openai": OpenAICompleter, "anthropic": AnthropicCompleter}[provider].read

    def newer(*args: Any) -> list[Completion]:
        return [c.model_copy(update={"revision": "another"}) for c in read(*args)]

    monkeypatch.setattr(
        {"openai": OpenAICompleter, "anthropic": AnthropicCompleter}[provider], "read", newer
    )
    for count in (30, 60):
        with pytest.raises(TeacherError, match="on_revision_change"):
            run(count, max_requests=5, in_flight=1)
        sent = len(run.server.batches)
    assert sent <= 3, "the change is noticed, and no more is sent"
    assert sum(bool(found) for found in run.answers(60)) == run.server.live.total() + sum(
        run.server.billed.values()
    ), "every answer is kept"


def test_what_batches_hold_is_taken_off_every_budget_and_asked_of_nobody_else(
    tmp_path: Path,
) -> None:
    assert held_by_batches(tmp_path / "none").budget_left(None) is None
    assert not (tmp_path / "none").exists()
    with BatchJournal(tmp_path) as journal:
        journal.intend(
            Intended(batch="b", teacher="openai:m@r", at=1.0, requests=1, size=1, worst_usd=0.25),
            [],
        )
    held = held_by_batches(tmp_path)
    assert held.budget_left(1.0) == 0.75
    assert held.budget_left(0.1) == 0.0
    held.refuse_in_flight(["openai:mini", "anthropic:m"])
    with pytest.raises(UserError, match="paid for twice"):
        held.refuse_in_flight(["openai:m"])
