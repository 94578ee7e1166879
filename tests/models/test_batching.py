"""Dynamic batching: full batches, longest first, the same whatever the timing; no call is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from stillhouse.core.errors import TeacherError
from stillhouse.core.records import Completion, Message, Query
from stillhouse.models.batching import BatchingCompleter, Call
from stillhouse.models.completer import Completer, ModelInfo, Sampling


class Echo(BatchingCompleter):
    """Answers with the query's text; fails or answers short on demand."""

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__(batch_size)
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.fail_on: str | None = None
        self.answer_short = False
        self.gate = threading.Event()
        self.gate.set()

    @property
    def info(self) -> ModelInfo:
        """A name."""
        return ModelInfo(name="echo", revision="1", local=True)

    def run_batch(self, calls: Sequence[Call]) -> list[Sequence[Completion]]:
        """Echo."""
        self.gate.wait(10)
        self.batches.append([call.query.id for call in calls])
        self.threads.add(threading.current_thread().name)
        if self.fail_on in self.batches[-1]:
            raise TeacherError("cannot answer")
        answers: list[Sequence[Completion]] = [
            [
                Completion(
                    query_id=call.query.id,
                    text=call.query.last_user_text,
                    model="echo",
                    revision="1",
                    sample=sample,
                )
                for sample in range(call.sampling.n)
            ]
            for call in calls
        ]
        return answers[:-1] if self.answer_short else answers


def query(name: str, length: int = 1) -> Query:
    return Query(id=name, messages=(Message(role="user", content="x" * length),))


async def ask_all(
    completer: BatchingCompleter, queries: Sequence[Query], n: int = 1
) -> list[Sequence[Completion] | BaseException]:
    calls = (completer.complete(query, Sampling(n=n)) for query in queries)
    return await asyncio.gather(*calls, return_exceptions=True)


def run(completer: Echo, queries: Sequence[Query]) -> list[Sequence[Completion] | BaseException]:
    async def main() -> list[Sequence[Completion] | BaseException]:
        try:
            return await asyncio.wait_for(ask_all(completer, queries), 20)
        finally:
            await completer.aclose()

    return asyncio.run(main())


def test_every_call_gets_its_own_answers() -> None:
    queries = [query(f"q{i}", 1 + i * 7 % 5) for i in range(11)]
    completer = Echo()
    assert isinstance(completer, Completer)
    results = run(completer, queries)
    for asked, answers in zip(queries, results, strict=True):
        assert not isinstance(answers, BaseException)
        assert [a.query_id for a in answers] == [asked.id]
        assert answers[0].text == asked.last_user_text


def test_batches_are_full_and_longest_first() -> None:
    completer = Echo(batch_size=3)
    run(completer, [query(f"q{i}", length) for i, length in enumerate([1, 5, 3, 4, 2, 9, 7])])
    assert completer.batches == [["q5", "q6", "q1"], ["q3", "q2", "q4"], ["q0"]]
    assert len(completer.threads) == 1


def test_the_order_of_the_calls_does_not_change_the_batches() -> None:
    queries = [query(f"q{i}", 1 + i % 3) for i in range(10)]
    one, other = Echo(), Echo()
    run(one, queries)
    run(other, queries[::-1])
    assert one.batches == other.batches


def test_callers_that_ask_again_at_once_fill_the_next_batch() -> None:
    completer = Echo(batch_size=4)

    async def worker(name: str) -> None:
        for turn in range(3):
            await completer.complete(query(f"{name}{turn}"), Sampling())

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(worker(name) for name in "abcd")), 20)
        await completer.aclose()

    asyncio.run(main())
    assert [len(batch) for batch in completer.batches] == [4, 4, 4]


def test_a_failed_batch_fails_its_calls_and_no_others() -> None:
    completer = Echo(batch_size=2)
    completer.fail_on = "q1"
    results = run(completer, [query(f"q{i}") for i in range(6)])
    assert [isinstance(result, TeacherError) for result in results] == [
        *(True, True),
        *(False, False, False, False),
    ]


def test_a_batch_with_answers_missing_is_an_error_not_a_hang() -> None:
    completer = Echo()
    completer.answer_short = True
    results = run(completer, [query("a"), query("b")])
    assert all(isinstance(result, ValueError) for result in results)


def test_a_cancelled_call_is_not_answered_and_disturbs_no_other() -> None:
    completer = Echo(batch_size=1)

    async def main() -> None:
        completer.gate.clear()
        kept = asyncio.create_task(completer.complete(query("a", 3), Sampling()))
        dropped = asyncio.create_task(completer.complete(query("b", 2), Sampling()))
        last = asyncio.create_task(completer.complete(query("c", 1), Sampling()))
        await asyncio.sleep(0.05)
        dropped.cancel()
        completer.gate.set()
        await asyncio.wait_for(asyncio.gather(kept, last), 20)
        with pytest.raises(asyncio.CancelledError):
            await dropped
        await completer.aclose()

    asyncio.run(main())
    assert completer.batches == [["a"], ["c"]]


def test_closing_cancels_the_calls_that_wait() -> None:
    completer = Echo(batch_size=1)

    async def main() -> None:
        completer.gate.clear()
        calls = [asyncio.create_task(completer.complete(query(name), Sampling())) for name in "abc"]
        await asyncio.sleep(0.05)
        threading.Timer(0.1, completer.gate.set).start()
        await completer.aclose()
        done = await asyncio.wait_for(asyncio.gather(*calls[1:], return_exceptions=True), 20)
        assert all(isinstance(result, asyncio.CancelledError) for result in done)
        calls[0].cancel()

    asyncio.run(main())


def test_the_number_of_samples_is_passed_on() -> None:
    completer = Echo()

    async def main() -> list[Sequence[Completion] | BaseException]:
        found = await ask_all(completer, [query("a")], n=3)
        await completer.aclose()
        return found

    (answers,) = asyncio.run(main())
    assert not isinstance(answers, BaseException)
    assert [answer.sample for answer in answers] == [0, 1, 2]
