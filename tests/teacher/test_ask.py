"""Asking: bounded, durable, once each, within budget, and stopping where it is futile."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from progress_lines import Lines

from stillhouse.core.errors import (
    BudgetError,
    RunFolderError,
    TeacherError,
    UnanswerableQueryError,
    UserError,
)
from stillhouse.core.recipe_teacher import Price, PricesSection, TeacherSection
from stillhouse.core.records import Completion, Message, Query
from stillhouse.models.completer import Completer, ModelInfo, Sampling
from stillhouse.models.fake import FakeCompleter
from stillhouse.teacher.ask import AskResult, ask
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.retry import TeacherFailure
from stillhouse.teacher.store import AnswerStore, answer_key
from teacher_servers import error, openai_answer, serve

SAMPLING = Sampling(max_tokens=8)


def queries(count: int, prefix: str = "text") -> list[Query]:
    return [
        Query(id=f"q{i}", messages=(Message(role="user", content=f"{prefix} {i}"),))
        for i in range(count)
    ]


class Scripted:
    """A remote model: `behave(query)` may raise, or says what an answer costs."""

    def __init__(
        self, behave: Callable[[Query], float | None] = lambda query: None, name: str = "openai:m"
    ) -> None:
        self.behave = behave
        self.info = ModelInfo(name=name, revision="r")
        self.asked: Counter[str] = Counter()
        self.samplings: list[Sampling] = []
        self.running = 0
        self.most_running = 0

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        self.asked[query.id] += 1
        self.samplings.append(sampling)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            for _ in range(1 + len(query.id) % 3):
                await asyncio.sleep(0)
            cost = self.behave(query)
        finally:
            self.running -= 1
        return [
            Completion(
                query_id=query.id,
                text=f"answer {sample} seed {sampling.seed}",
                model=self.info.name,
                revision="r",
                sample=sample,
                cost_usd=cost,
            )
            for sample in range(sampling.n)
        ]

    async def aclose(self) -> None:
        pass


def run(
    completer: Completer,
    path: Path,
    asked: Sequence[Query],
    sampling: Sampling = SAMPLING,
    concurrency: int = 4,
    **more: Any,
) -> AskResult:
    with AnswerStore(path) as store:
        return asyncio.run(ask(completer, asked, sampling, store, concurrency=concurrency, **more))


def stored(path: Path) -> int:
    with AnswerStore(path) as store:
        return len(store)


def test_answers_follow_the_queries_and_are_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    completer = FakeCompleter()
    first = run(completer, path, queries(5))
    assert list(first.completions_by_query) == ["q0", "q1", "q2", "q3", "q4"]
    assert (first.asked, first.reused, first.usd) == (5, 0, 0.0)
    second = run(completer, path, queries(8))
    assert (second.asked, second.reused) == (3, 5)
    assert len(completer.asked) == 8
    assert second.completions_by_query["q2"] == first.completions_by_query["q2"]


def test_equal_chats_are_asked_once_and_answered_under_each_id(tmp_path: Path) -> None:
    same = [q.model_copy(update={"id": f"other{i}"}) for i, q in enumerate(queries(1) * 5)]
    completer = Scripted()
    result = run(completer, tmp_path / "a.jsonl", same)
    assert sum(completer.asked.values()) == 1
    assert [c[0].query_id for c in result.completions_by_query.values()] == list(
        result.completions_by_query
    )
    assert len(result.completions_by_query) == 5
    assert (result.asked, result.reused) == (1, 4)


def test_concurrency_is_bounded_and_tasks_are_few(tmp_path: Path) -> None:
    completer = Scripted()
    most_tasks = 0
    original = completer.complete

    async def counting(query: Query, sampling: Sampling) -> Sequence[Completion]:
        nonlocal most_tasks
        most_tasks = max(most_tasks, len(asyncio.all_tasks()))
        return await original(query, sampling)

    completer.complete = counting  # type: ignore[method-assign]
    run(completer, tmp_path / "a.jsonl", queries(300), concurrency=7)
    assert completer.most_running == 7
    assert most_tasks <= 8
    with pytest.raises(ValueError, match="concurrency"):
        run(completer, tmp_path / "a.jsonl", queries(1), concurrency=0)


def test_more_samples_ask_for_the_missing_ones_with_other_seeds(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    completer = Scripted()
    run(completer, path, queries(1), replace(SAMPLING, n=2, seed=10))
    result = run(completer, path, queries(1), replace(SAMPLING, n=5, seed=10))
    assert [(s.n, s.seed) for s in completer.samplings] == [(2, 10), (3, 12)]
    assert [c.sample for c in result.completions_by_query["q0"]] == [0, 1, 2, 3, 4]
    fewer = run(completer, path, queries(1), replace(SAMPLING, n=3, seed=10))
    assert len(fewer.completions_by_query["q0"]) == 3
    assert fewer.asked == 0


def test_a_server_of_single_samples_keeps_each_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    calls = 0

    def third_fails(query: Query) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise TeacherFailure("server", "down")
        return None

    completer = Scripted(third_fails)
    completer.samples_per_request = 1  # type: ignore[attr-defined]
    result = run(completer, path, queries(1), replace(SAMPLING, n=5))
    assert len(result.completions_by_query["q0"]) == 2
    assert len(result.failures) == 1
    run(completer, path, queries(1), replace(SAMPLING, n=5))
    assert calls == 6  # two kept, one failed, three more


def test_one_failure_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    def behave(query: Query) -> float | None:
        if query.id == "q3":
            raise TeacherFailure("bad_request", "too long")
        return None

    completer = Scripted(behave)
    result = run(completer, tmp_path / "a.jsonl", queries(6))
    assert [(f.query_id, f.reason, f.detail) for f in result.failures] == [
        ("q3", "no_answer", "too long")
    ]
    assert result.failures[0].messages == queries(6)[3].messages
    assert "q3" not in result.completions_by_query
    assert len(result.completions_by_query) == 5
    again = run(Scripted(), tmp_path / "a.jsonl", queries(6))
    assert (again.asked, again.reused) == (1, 5)


def test_the_first_five_failing_alike_stop_the_run(tmp_path: Path) -> None:
    def behave(query: Query) -> float | None:
        raise TeacherFailure("bad_request", "no such parameter")

    completer = Scripted(behave)
    with pytest.raises(TeacherError, match="the first 5 queries got no answer") as caught:
        run(completer, tmp_path / "a.jsonl", queries(1000), concurrency=2)
    assert "no such parameter" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sum(completer.asked.values()) <= 6


@pytest.mark.parametrize("local", [True, False])
def test_queries_at_fault_themselves_do_not_stop_the_run(tmp_path: Path, local: bool) -> None:
    def behave(query: Query) -> float | None:
        if int(query.id[1:]) < 20:
            if local:
                raise UnanswerableQueryError("9000 prompt tokens exceed the model's 8192")
            raise TeacherFailure("too_long", "maximum context length")
        return None

    for _ in range(2):  # and once all others are stored, starting again does not stop either
        completer = Scripted(behave)
        completer.info = replace(completer.info, local=local)
        result = run(completer, tmp_path / "a.jsonl", queries(30))
        assert len(result.failures) == 20
        assert len(result.completions_by_query) == 10


def test_a_server_that_finds_all_queries_too_long_is_left(tmp_path: Path) -> None:
    def behave(query: Query) -> float | None:
        raise TeacherFailure("too_long", "max_tokens and the prompt exceed the context length")

    completer = Scripted(behave)
    with pytest.raises(TeacherError, match="none of the first 50 queries"):
        run(completer, tmp_path / "a.jsonl", queries(1000))
    assert sum(completer.asked.values()) < 60


def test_answers_of_no_use_stop_the_run_and_one_of_use_does_not(tmp_path: Path) -> None:
    def problem_of(completion: Completion) -> str | None:
        return None if completion.query_id in good else "is no label"

    good = {"q7"}
    lines = Lines()
    result = run(
        Scripted(), tmp_path / "a.jsonl", queries(100), problem_of=problem_of, progress=lines
    )
    assert len(result.completions_by_query) == 100
    assert lines.said == [
        "warning: 19 of the first 20 answers cannot be used (such as: is no label)"
    ]
    good = set()
    completer = Scripted()
    with pytest.raises(UserError, match=r"none of its 20 answers.*query q0: is no label"):
        run(completer, tmp_path / "b.jsonl", queries(100), problem_of=problem_of)
    assert sum(completer.asked.values()) <= 24
    sampled = replace(SAMPLING, n=5)  # five samples of one query are not five answers
    few = run(Scripted(), tmp_path / "c.jsonl", queries(19), sampled, problem_of=problem_of)
    assert len(few.completions_by_query) == 19


def test_failures_of_different_kinds_do_not_stop_the_run(tmp_path: Path) -> None:
    def behave(query: Query) -> float | None:
        number = int(query.id[1:])
        if number < 20:
            raise TeacherFailure(("server", "timeout")[number % 2], "x")
        return None

    result = run(Scripted(behave), tmp_path / "a.jsonl", queries(30), concurrency=1)
    assert len(result.failures) == 20


def test_an_outage_in_the_middle_stops_the_run_and_keeps_what_there_is(tmp_path: Path) -> None:
    def behave(query: Query) -> float | None:
        if int(query.id[1:]) >= 10:
            raise TeacherFailure("connection", "refused")
        return None

    completer = Scripted(behave)
    with pytest.raises(TeacherError, match="the last 50 queries"):
        run(completer, tmp_path / "a.jsonl", queries(1000))
    assert stored(tmp_path / "a.jsonl") == 10
    assert sum(completer.asked.values()) < 100


@pytest.mark.parametrize(
    ("reason", "kind"), [("auth", UserError), ("quota", TeacherFailure), ("not_found", UserError)]
)
def test_what_no_query_can_mend_stops_at_once(
    tmp_path: Path, reason: str, kind: type[Exception]
) -> None:
    def behave(query: Query) -> float | None:
        raise TeacherFailure(reason, "check the key")

    completer = Scripted(behave)
    with pytest.raises(kind, match="check the key"):
        run(completer, tmp_path / "a.jsonl", queries(100), concurrency=1)
    assert sum(completer.asked.values()) == 1


def test_a_disk_that_fills_up_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdatasync", full)
    with pytest.raises(RunFolderError, match="disk is full"):
        run(Scripted(), tmp_path / "a.jsonl", queries(100))


def test_a_bug_is_not_a_teacher_failure(tmp_path: Path) -> None:
    def behave(query: Query) -> float | None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Scripted(behave), tmp_path / "a.jsonl", queries(100))


def test_cancelled_in_the_middle_keeps_what_arrived(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    arrived = 0

    async def main() -> None:
        nonlocal arrived
        with AnswerStore(path) as store:
            completer = Scripted()
            task = asyncio.create_task(
                ask(completer, queries(10_000), SAMPLING, store, concurrency=3)
            )
            while len(store) < 50:  # noqa: ASYNC110 - the store tells nobody
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            arrived = len(store)
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert stored(path) == arrived >= 50


# --- budget -----------------------------------------------------------------------------------

PRICE = PricesSection(models={"m": Price(input_usd_per_mtok=1.0, output_usd_per_mtok=1000.0)})


def usd(prompt: int, completion: int) -> float:
    return (prompt * 1.0 + completion * 1000.0) / 1e6


@settings(max_examples=60, deadline=None)
@given(
    budget=st.floats(0.001, 0.3),
    lengths=st.lists(st.integers(0, 8), min_size=1, max_size=60),
    concurrency=st.integers(1, 9),
    n=st.integers(1, 3),
)
def test_the_budget_is_never_crossed_whatever_answers_cost(
    budget: float, lengths: list[int], concurrency: int, n: int
) -> None:
    paid = 0.0

    def behave(query: Query) -> float | None:
        nonlocal paid
        cost = usd(len(query.last_user_text) + 5, lengths[int(query.id[1:])])
        paid += cost * n
        assert paid <= budget
        return cost

    sampling = replace(SAMPLING, n=n)
    asked = queries(len(lengths))
    worst = usd(64 + 16 + len("text 99"), 0) * n + usd(0, 8 * n)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        for _ in range(3):  # starting again does not start the budget again
            try:
                result = run(
                    Scripted(behave), path, asked, sampling, concurrency,
                    budget_usd=budget, prices=PRICE,
                )  # fmt: skip
            except BudgetError:
                assert paid + worst > budget  # all that fits for certain was asked
            else:
                assert len(result.completions_by_query) == len(asked)
        with AnswerStore(path) as store:
            assert store.paid_usd == pytest.approx(paid)
            assert store.paid_usd <= budget


def test_requests_in_flight_are_counted_at_their_worst(tmp_path: Path) -> None:
    # One query costs at most 0.008 and its prompt: seven fit at a time.
    completer = Scripted(lambda query: usd(5, 1))
    run(
        completer, tmp_path / "a.jsonl", queries(50), concurrency=10, budget_usd=0.0605,
        prices=PRICE,
    )  # fmt: skip
    assert completer.most_running <= 7
    assert len(completer.asked) == 50


def test_an_answer_of_unknown_cost_counts_at_its_worst(tmp_path: Path) -> None:
    completer = Scripted(lambda query: None)
    with pytest.raises(BudgetError):
        run(completer, tmp_path / "a.jsonl", queries(50), budget_usd=0.05, prices=PRICE)
    first = len(completer.asked)
    assert first <= 6
    with pytest.raises(BudgetError):  # starting again does not forget them
        run(completer, tmp_path / "a.jsonl", queries(50), budget_usd=0.05, prices=PRICE)
    assert len(completer.asked) == first


def test_answers_without_a_budget_count_once_there_is_one(tmp_path: Path) -> None:
    completer = Scripted(lambda query: None)
    run(completer, tmp_path / "a.jsonl", queries(6), prices=PRICE)
    with pytest.raises(BudgetError):
        run(completer, tmp_path / "a.jsonl", queries(50), budget_usd=0.05, prices=PRICE)
    assert len(completer.asked) == 6


def test_what_answers_cost_does_not_depend_on_who_paid(tmp_path: Path) -> None:
    completer = Scripted(lambda query: 0.5)
    first = run(completer, tmp_path / "a.jsonl", queries(4))
    second = run(completer, tmp_path / "a.jsonl", queries(6) + queries(6)[:1])
    assert (first.usd, second.usd) == (2.0, 1.0)
    assert sum(second.usd_by_key.values()) == 3.0


def test_a_budget_needs_a_price(tmp_path: Path) -> None:
    completer = Scripted()
    with pytest.raises(UserError, match=r"price of openai:m is not known.*prices\.models"):
        run(completer, tmp_path / "a.jsonl", queries(5), budget_usd=1.0)
    assert not completer.asked
    run(FakeCompleter(), tmp_path / "a.jsonl", queries(5), budget_usd=0.01)  # runs here: no bill


# --- over HTTP --------------------------------------------------------------------------------


def teacher(url: str, **section: Any) -> TeacherSection:
    return TeacherSection.model_validate(
        {"model": "openai-compatible:m", "base_url": url + "/v1", "retries": 2} | section
    )


def test_sixty_four_requests_in_flight_over_http(tmp_path: Path) -> None:
    async def main(url: str) -> AskResult:
        completer = open_teacher(teacher(url), PricesSection())
        with AnswerStore(tmp_path / "a.jsonl") as store:
            try:
                return await ask(completer, queries(256), SAMPLING, store, concurrency=64)
            finally:
                await completer.aclose()

    with serve(lambda body, number: openai_answer(), delay_s=0.1) as server:
        started = time.perf_counter()
        result = asyncio.run(main(server.url))
        seconds = time.perf_counter() - started
    assert server.most_in_flight == 64
    assert server.asked == Counter({f"text {i}": 1 for i in range(256)})
    assert len(result.completions_by_query) == 256
    assert seconds < 256 * 0.1 / 4  # one after the other would be 25.6 s


def test_samples_paid_before_a_later_request_fails_are_kept(tmp_path: Path) -> None:
    def third_fails(body: dict[str, Any], number: int) -> Any:
        return error(400, "no") if number == 2 else openai_answer(f"sample {number}")

    async def main(url: str) -> AskResult:
        completer = open_teacher(teacher(url), PricesSection())
        sampling = replace(SAMPLING, n=5, sampling_temperature=1.0)
        with AnswerStore(tmp_path / "a.jsonl") as store:
            try:
                return await ask(completer, queries(1), sampling, store, concurrency=1)
            finally:
                await completer.aclose()

    with serve(third_fails) as server:  # it ignores n, which only its first answer shows
        first = asyncio.run(main(server.url))
        assert [c.text for c in first.completions_by_query["q0"]] == ["sample 0", "sample 1"]
        assert len(first.failures) == 1
        second = asyncio.run(main(server.url))
    assert len(second.completions_by_query["q0"]) == 5
    assert len(server.bodies) == 6
    assert [body["seed"] for body in server.bodies] == [0, 1, 2, 2, 3, 4]


def test_a_flaky_server_answers_every_query_in_the_end(tmp_path: Path) -> None:
    def flaky(body: dict[str, Any], number: int) -> Any:
        return error(503, headers={"Retry-After": "0.01"}) if number % 3 == 0 else openai_answer()

    async def main(url: str) -> AskResult:
        completer = open_teacher(teacher(url, retries=10), PricesSection())
        completer.settings = replace(  # type: ignore[attr-defined]
            completer.settings,  # type: ignore[attr-defined]
            retrying=replace(completer.settings.retrying, base_s=0.01),  # type: ignore[attr-defined]
        )
        with AnswerStore(tmp_path / "a.jsonl") as store:
            try:
                return await ask(completer, queries(60), SAMPLING, store, concurrency=8)
            finally:
                await completer.aclose()

    with serve(flaky) as server:
        result = asyncio.run(main(server.url))
    assert result.failures == ()
    assert len(result.completions_by_query) == 60


CHILD = """
    import asyncio, signal, sys
    from pathlib import Path
    # A shell that started the tests in the background has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
    from stillhouse.core.records import Message, Query
    from stillhouse.models.completer import Sampling
    from stillhouse.teacher.ask import ask
    from stillhouse.teacher.build import open_teacher
    from stillhouse.teacher.store import AnswerStore

    async def main():
        section = TeacherSection(model="openai-compatible:m", base_url=sys.argv[1] + "/v1")
        completer = open_teacher(section, PricesSection())
        queries = [
            Query(id=f"q{i}", messages=(Message(role="user", content=f"text {i}"),))
            for i in range(300)
        ]
        with AnswerStore(Path(sys.argv[2])) as store:
            await ask(completer, queries, Sampling(max_tokens=8), store, concurrency=4)
        await completer.aclose()

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.full)]
)
def test_killed_and_started_again_nothing_kept_is_asked_again(
    tmp_path: Path, how: signal.Signals
) -> None:
    path = tmp_path / "a.jsonl"
    with serve(lambda body, number: openai_answer(), delay_s=0.05) as server:
        command = [sys.executable, "-c", textwrap.dedent(CHILD), server.url, str(path)]
        for wanted in (20, 90):
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
                while not path.exists() or path.read_bytes().count(b"\n") < wanted:
                    time.sleep(0.005)
                    assert child.poll() is None
                child.send_signal(how)
                assert child.wait(20) != 0
            kept = path.read_bytes().count(b"\n")
            assert kept >= wanted
        subprocess.run(command, check=True, timeout=60)
        asked = server.asked
    assert stored(path) == 300
    assert len(path.read_bytes().splitlines()) == 300  # no answer was kept twice
    assert set(asked) == {f"text {i}" for i in range(300)}
    # Only what was in flight at a kill had to be asked again: at most 4 each time.
    assert sum(asked.values()) <= 300 + 2 * 4
    assert max(asked.values()) <= 3


def test_the_key_of_an_answer_does_not_hold_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-test-0123456789abcdef")

    async def main(url: str) -> None:
        completer = open_teacher(teacher(url, api_key_env="MY_KEY"), PricesSection())
        assert answer_key(completer.info, queries(1)[0], SAMPLING).teacher.startswith("openai-")
        with AnswerStore(tmp_path / "a.jsonl") as store:
            await ask(completer, queries(2), SAMPLING, store, concurrency=1)
        await completer.aclose()

    with serve(lambda body, number: openai_answer()) as server:
        asyncio.run(main(server.url))
    assert b"0123456789abcdef" not in (tmp_path / "a.jsonl").read_bytes()
