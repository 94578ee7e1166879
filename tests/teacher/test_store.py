"""The answer store: durable, found again, torn tails cut, damage named."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import DataError, RunFolderError
from stillhouse.core.recipe_teacher import Price, PricesSection
from stillhouse.core.records import Completion, Message, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher.store import AnswerKey, AnswerStore, answer_key

INFO = ModelInfo(name="openai:m", revision="r1")
SAMPLING = Sampling()


def query(text: str, id: str = "q") -> Query:
    return Query(id=id, messages=(Message(role="user", content=text),))


def completion(text: str, **more: object) -> Completion:
    return Completion(query_id="q", text=text, model="m", revision="r", **more)  # type: ignore[arg-type]


def put(store: AnswerStore, key: AnswerKey, *texts: str, cost: float | None = None) -> None:
    asyncio.run(store.put(key, [completion(text, cost_usd=cost) for text in texts]))


def texts(store: AnswerStore, key: AnswerKey) -> list[str]:
    return [c.text for c in store.get(key)]


def test_answers_are_found_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    key = answer_key(INFO, query("hello"), SAMPLING)
    with AnswerStore(path) as store:
        assert store.get(key) == ()
        put(store, key, "a\nb \u2028 é", cost=0.25)
    with AnswerStore(path) as store:
        assert texts(store, key) == ["a\nb \u2028 é"]
        assert store.paid_usd == 0.25
        assert len(store) == 1


def test_the_key_is_what_an_answer_depends_on() -> None:
    key = answer_key(INFO, query("hello"), SAMPLING)
    assert key == answer_key(INFO, query("hello", id="other"), replace(SAMPLING, n=7))
    for other in (
        answer_key(replace(INFO, revision="r2"), query("hello"), SAMPLING),
        answer_key(replace(INFO, name="openai:n"), query("hello"), SAMPLING),
        answer_key(INFO, query("hello "), SAMPLING),
        answer_key(INFO, query("hello"), replace(SAMPLING, sampling_temperature=1.0)),
        answer_key(INFO, query("hello"), replace(SAMPLING, max_tokens=1)),
        answer_key(INFO, query("hello"), replace(SAMPLING, logprobs=20)),
        answer_key(INFO, query("hello"), replace(SAMPLING, labels=("a", "b"))),
        answer_key(INFO, query("hello"), replace(SAMPLING, json_schema={"type": "object"})),
    ):
        assert other != key


def test_the_seed_is_in_the_key_only_where_a_draw_depends_on_it() -> None:
    def key(info: ModelInfo, temperature: float, seed: int) -> AnswerKey:
        sampling = Sampling(sampling_temperature=temperature, seed=seed)
        return answer_key(info, query("hello"), sampling)

    assert key(INFO, 0.0, 1) == key(INFO, 0.0, 2)
    assert key(INFO, 1.0, 1) != key(INFO, 1.0, 2)
    unseeded = replace(INFO, takes_seed=False)
    assert key(unseeded, 1.0, 1) == key(unseeded, 1.0, 2)


def test_answers_of_unknown_cost_count_at_their_worst_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    prices = PricesSection()
    known, unknown, free = (answer_key(INFO, query(text), SAMPLING) for text in "abc")
    with AnswerStore(path) as store:
        asyncio.run(store.put(known, [completion("x", cost_usd=0.25)], 1.0))
        asyncio.run(store.put(unknown, [completion("x"), completion("y")], 1.0))
        asyncio.run(store.put(free, [completion("x")]))
        assert store.paid_usd == 1.25
    with AnswerStore(path) as store:
        assert store.paid_usd == 1.25
        assert store.usd_of(known, 1, prices) == 0.25
        assert store.usd_of(unknown, 1, prices) == 0.5
        assert store.usd_of(unknown, 2, prices) == 1.0
        assert store.usd_of(free, 1, prices) == 0.0


def test_answers_asked_before_their_price_was_known_cost_todays_price(tmp_path: Path) -> None:
    key = answer_key(INFO, query("a"), SAMPLING)
    prices = PricesSection(models={"m": Price(input_usd_per_mtok=1, output_usd_per_mtok=2)})
    with AnswerStore(tmp_path / "a.jsonl") as store:
        put_one = completion("x", prompt_tokens=1000, completion_tokens=500)
        asyncio.run(store.put(key, [put_one]))
        assert (store.paid_usd, store.unpriced_usd(PricesSection())) == (0.0, 0.0)
        assert store.unpriced_usd(prices) == pytest.approx(0.002)
        assert store.usd_of(key, 1, prices) == pytest.approx(0.002)


def test_further_samples_are_numbered_on(tmp_path: Path) -> None:
    key = answer_key(INFO, query("hello"), SAMPLING)
    with AnswerStore(tmp_path / "a.jsonl") as store:
        put(store, key, "one", "two")
        put(store, key, "three")
        assert [(c.sample, c.text) for c in store.get(key)] == [
            (0, "one"),
            (1, "two"),
            (2, "three"),
        ]
    with AnswerStore(tmp_path / "a.jsonl") as store:
        assert [c.sample for c in store.get(key)] == [0, 1, 2]


def test_put_returns_only_once_the_line_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        real(fd)
        synced.append(os.fstat(fd).st_size)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    async def work(store: AnswerStore) -> None:
        async def one(index: int) -> None:
            await store.put(answer_key(INFO, query(str(index)), SAMPLING), [completion("x")])
            assert synced[-1] == path.stat().st_size

        await asyncio.gather(*(one(index) for index in range(100)))

    with AnswerStore(path) as store:
        asyncio.run(work(store))
    assert len(synced) == 1  # answers of one turn of the loop share a sync
    assert len(path.read_bytes().splitlines()) == 100


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    with (
        AnswerStore(tmp_path / "a.jsonl"),
        pytest.raises(RunFolderError, match="another process"),
    ):
        AnswerStore(tmp_path / "a.jsonl")


def test_a_full_disk_fails_every_waiting_put_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = answer_key(INFO, query("hello"), SAMPLING)
    with AnswerStore(tmp_path / "a.jsonl") as store:

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fdatasync", full)
        with pytest.raises(RunFolderError, match="disk is full"):
            put(store, key, "x")
        assert store.get(key) == ()
    assert (tmp_path / "a.jsonl").read_bytes() == b""


def written(path: Path, count: int) -> list[AnswerKey]:
    keys = [answer_key(INFO, query(f"text {i}"), SAMPLING) for i in range(count)]
    with AnswerStore(path) as store:
        for index, key in enumerate(keys):
            put(store, key, f"answer {index} é", "second")
    return keys


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_tail_torn_at_any_byte_loses_that_answer_alone(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        keys = written(path, 4)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        with AnswerStore(path) as store:
            for index, key in enumerate(keys):
                expected = [f"answer {index} é", "second"] if index < complete else []
                assert texts(store, key) == expected
            put(store, answer_key(INFO, query("new"), SAMPLING), "new")
        with AnswerStore(path) as store:
            assert len(store) == complete + 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_changed_byte_of_a_whole_line_is_named(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        written(path, 3)
        lines = path.read_bytes().splitlines(keepends=True)
        number = data.draw(st.integers(0, 1))
        at = data.draw(st.integers(0, len(lines[number]) - 2))
        old = lines[number][at]
        new = data.draw(st.integers(0, 255).filter(lambda b: b not in (old, 10)))
        lines[number] = lines[number][:at] + bytes([new]) + lines[number][at + 1 :]
        path.write_bytes(b"".join(lines))
        with pytest.raises(DataError, match=rf"a\.jsonl line {number + 1}: is damaged"):
            AnswerStore(path)
        with pytest.raises(DataError):  # the lock was given back
            AnswerStore(path)


@pytest.mark.full
def test_a_hundred_thousand_lines_load_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    async def fill(store: AnswerStore) -> None:
        await asyncio.gather(
            *(
                store.put(
                    AnswerKey("openai:m@r1", f"{i:032x}", "0" * 32),
                    [completion("positive", prompt_tokens=80, completion_tokens=2)],
                )
                for i in range(100_000)
            )
        )

    with AnswerStore(path) as store:
        asyncio.run(fill(store))
    started = time.perf_counter()
    with AnswerStore(path) as store:
        assert len(store) == 100_000
    assert time.perf_counter() - started < 15  # a few seconds on an idle machine
