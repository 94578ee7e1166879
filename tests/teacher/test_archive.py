"""A fixed teacher: frozen, exported, imported, replayed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.core.errors import DataError, UnanswerableQueryError, UserError
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Completion, Message, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher.archive import export, freeze, import_answers
from stillhouse.teacher.ask import AskResult, ask
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.store import AnswerStore, answer_key

SAMPLING = Sampling(n=2, max_tokens=8, sampling_temperature=1.0, seed=3)


class Paid:
    """An API model of a fixed price that counts what it is asked."""

    def __init__(self, name: str = "openai:m", revision: str = "r") -> None:
        self.info = ModelInfo(name=name, revision=revision, gives_logprobs=True)
        self.asked = 0

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        self.asked += 1
        return [
            Completion(
                query_id=query.id,
                text=f"{query.last_user_text} seed {sampling.seed} sample {sample}",
                model=self.info.name,
                revision="m-2026",
                sample=sample,
                cost_usd=0.25,
            )
            for sample in range(sampling.n)
        ]

    async def aclose(self) -> None:
        pass


def queries(count: int) -> list[Query]:
    return [
        Query(id=f"q{i}", messages=(Message(role="user", content=f"text {i}"),))
        for i in range(count)
    ]


def run(
    completer: object, path: Path, count: int, sampling: Sampling = SAMPLING, **more: object
) -> AskResult:
    with AnswerStore(path) as store:
        return asyncio.run(
            ask(completer, queries(count), sampling, store, concurrency=4, **more)  # type: ignore[arg-type]
        )


def replay(path: Path) -> object:
    return open_teacher(TeacherSection(model=f"replay:{path}"), PricesSection())


def test_a_frozen_store_answers_what_it_holds_and_refuses_to_be_asked_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = run(Paid(), path, 5)
    done = freeze(path)
    assert done.answers == 5
    assert freeze(path).digest == done.digest  # once is enough
    completer = Paid()
    again = run(completer, path, 5)
    assert dict(again.completions_by_query) == dict(first.completions_by_query)
    with pytest.raises(UserError, match=r"is frozen, and lacks answers to 2 of 7 chats.*replay:"):
        run(completer, path, 7)
    assert completer.asked == 0
    with AnswerStore(path) as store, pytest.raises(UserError, match="is frozen"):
        asyncio.run(store.put(answer_key(completer.info, queries(9)[8], SAMPLING), []))


def test_a_frozen_store_that_was_changed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run(Paid(), path, 5)
    freeze(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))  # each line is whole, one is gone
    with pytest.raises(DataError, match="line 5: is damaged"):
        AnswerStore(path)
    path.write_bytes(b"".join([*lines, lines[0]]))
    with pytest.raises(DataError, match="line 7: is damaged.*must not change"):
        AnswerStore(path)


def test_replayed_the_same_recipe_gets_the_same_answers_without_key_or_bill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    first = run(Paid(), tmp_path / "run" / "store" / "answers.jsonl", 6)
    assert first.usd == 3.0
    export(tmp_path / "run", tmp_path / "teacher.jsonl")
    second = run(replay(tmp_path / "teacher.jsonl"), tmp_path / "b.jsonl", 8, budget_usd=0.01)
    assert dict(second.completions_by_query) == dict(first.completions_by_query)
    assert (second.usd, second.asked) == (0.0, 8)
    assert [(f.query_id, f.reason) for f in second.failures] == [
        ("q6", "no_answer"),
        ("q7", "no_answer"),
    ]
    assert "was not asked before" in second.failures[0].detail
    with AnswerStore(tmp_path / "b.jsonl") as store:  # so the run goes on if the teacher returns
        assert store.paid_usd == 0.0
        key = answer_key(Paid().info, queries(1)[0], SAMPLING)
        assert store.get(key) == first.completions_by_query["q0"]


def test_replay_says_why_it_has_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run(Paid(), path, 2)
    freeze(path)
    teacher = replay(path)

    def why(sampling: Sampling) -> str:
        with pytest.raises(UnanswerableQueryError) as caught:
            asyncio.run(teacher.complete(queries(1)[0], sampling))  # type: ignore[attr-defined]
        return str(caught.value)

    assert "asked in another way" in why(replace(SAMPLING, max_tokens=9))
    assert "holds 2 samples" in why(replace(SAMPLING, n=3))
    more = run(teacher, tmp_path / "b.jsonl", 2, replace(SAMPLING, n=3))
    assert len(more.completions_by_query["q0"]) == 2
    assert "no more can be asked" in more.failures[0].detail


def test_replay_wants_one_frozen_teacher(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run(Paid(), path, 1)
    with pytest.raises(UserError, match="is not frozen.*store freeze"):
        replay(path)
    run(Paid("anthropic:c"), path, 3)
    freeze(path)
    with pytest.raises(UserError, match=r"one teacher \(holds: anthropic:c@r, openai:m@r\)"):
        replay(path)
    assert export(path, tmp_path / "c.jsonl", "anthropic:c").answers == 3
    assert replay(tmp_path / "c.jsonl").info.name == "anthropic:c"  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="no such store"):
        replay(tmp_path / "none.jsonl")


def test_equal_answers_export_to_equal_files(tmp_path: Path) -> None:
    digests = set()
    for name, order in (("a", 1), ("b", -1)):
        path = tmp_path / f"{name}.jsonl"
        with AnswerStore(path) as store:
            for query in queries(9)[::order]:
                asyncio.run(ask(Paid(), [query], SAMPLING, store, concurrency=1))
        digests.add(export(path, tmp_path / f"{name}.out").digest)
    assert len(digests) == 1
    with pytest.raises(UserError, match="exists already"):
        export(tmp_path / "a.jsonl", tmp_path / "a.out")
    with pytest.raises(UserError, match="name one of: openai:m@r"):
        export(tmp_path / "a.jsonl", tmp_path / "c.out", "openai:other")


def test_imported_answers_are_not_asked_again_and_cost_nothing(tmp_path: Path) -> None:
    first = run(Paid(), tmp_path / "a.jsonl", 6)
    export(tmp_path / "a.jsonl", tmp_path / "a.out")
    target = tmp_path / "run" / "store" / "answers.jsonl"
    one = Paid()
    run(one, target, 1, replace(SAMPLING, n=1))  # has the first sample of the first query
    assert import_answers(tmp_path / "a.out", tmp_path / "run").answers == 6
    assert import_answers(tmp_path / "a.out", tmp_path / "run").answers == 0
    again = run(one, target, 6)
    assert one.asked == 1
    assert again.usd == 0.0
    assert sum(again.usd_by_key.values()) == 0.25
    assert again.completions_by_query["q3"] == first.completions_by_query["q3"]
    assert [c.sample for c in again.completions_by_query["q0"]] == [0, 1]
    with pytest.raises(UserError, match="is not frozen"):
        import_answers(tmp_path / "a.jsonl", tmp_path / "other")
    freeze(tmp_path / "run")
    with pytest.raises(UserError, match="takes no more answers"):
        run(Paid(), tmp_path / "z.jsonl", 9)
        export(tmp_path / "z.jsonl", tmp_path / "z.out")
        import_answers(tmp_path / "z.out", tmp_path / "run")


def test_the_commands_of_the_store(tmp_path: Path) -> None:
    run(Paid(), tmp_path / "run" / "store" / "answers.jsonl", 3)
    out = tmp_path / "out.jsonl"
    for arguments in (
        ["freeze", str(tmp_path / "run")],
        ["export", str(tmp_path / "run"), str(out), "--teacher", "openai:m"],
        ["import", str(out), str(tmp_path / "other")],
    ):
        done = CliRunner().invoke(app, ["store", *arguments])
        assert done.exit_code == 0, done.output
        assert "3 answers" in done.output
    with AnswerStore(tmp_path / "other" / "store" / "answers.jsonl") as store:
        assert len(store) == 3
