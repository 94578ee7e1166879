"""What surrounds the cluster: opening, batches as data, keeping; none of it needs Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from stillhouse.core.errors import TeacherError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_asking import RaySection
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.records import Completion, Message, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.models.fake import FakeCompleter
from stillhouse.teacher import ray_cluster, ray_worker
from stillhouse.teacher.futility import Futility
from stillhouse.teacher.keys import answer_key
from stillhouse.teacher.ray_ask import _from_thread, _keep, opening_of
from stillhouse.teacher.ray_cluster import RayCluster
from stillhouse.teacher.ray_worker import (
    ANSWERED,
    MOST_TRIES,
    QUERY_FAILED,
    UNUSABLE_NODE,
    Attempts,
    Labeller,
    Opening,
    describe,
)
from stillhouse.teacher.store import AnswerStore
from tiny_models import byte_bpe, tiny_llama

LABELS = ("positive", "negative")
CLOSED = Sampling(labels=LABELS)
Labelling = Callable[[Labeller], Labeller]
INFO = ModelInfo("hf:x", "r1", gives_label_logprobs=True, gives_logprobs=True, local=True)


def query(name: str, text: str) -> Query:
    return Query(id=name, messages=(Message(role="user", content=text),))


def batch(queries: list[Query], have: int = 0) -> dict[str, Any]:
    return {
        "row": np.arange(len(queries)),
        "query": np.array([q.to_json() for q in queries], dtype=object),
        "have": np.full(len(queries), have),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(folder)
    tiny_llama(tokenizer).save_pretrained(folder)
    return folder


def tries() -> Any:
    """`Attempts` as an actor's handle gives it: what is called is awaited."""
    attempts = Attempts()

    async def begin(row: int) -> int:
        return attempts.begin(row)

    return SimpleNamespace(begin=SimpleNamespace(remote=begin))


@pytest.fixture
def labelling() -> Iterator[Labelling]:
    """Labellers that are closed at the end of the test."""
    with ExitStack() as stack:
        yield lambda labeller: stack.enter_context(closing(labeller))


def opening(model: Path) -> Opening:
    return opening_of(TeacherSection(model=f"hf:{model}"), None)


# --- the recipe -------------------------------------------------------------------------------


def test_an_api_teacher_is_not_asked_from_many_machines() -> None:
    with pytest.raises(ValidationError, match="one rate limit and one budget"):
        TeacherSection(model="openai:gpt-4.1", ray=RaySection(address="auto"))


@pytest.mark.parametrize("address", ["ray://host:10001", "host", "http://host:1", ""])
def test_an_address_is_one_that_ray_joins(address: str) -> None:
    with pytest.raises(ValidationError, match="HOST:PORT, auto or local"):
        RaySection(address=address)


# --- opening ----------------------------------------------------------------------------------


def test_a_path_of_this_machine_is_absolute_for_all_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    for model, path in (
        ("hf:weights", tmp_path / "weights"),
        ("gguf:m.gguf", tmp_path / "m.gguf"),
        ("hf:./gone", tmp_path / "gone"),
        ("hf:org/name", None),
        ("embedded", None),
    ):
        found = opening_of(TeacherSection(model=model), None)
        opened = TeacherSection.model_validate_json(found.section)
        assert found.name == model  # answers under the recipe's name, wherever the weights are
        assert found.path == (None if path is None else str(path))
        assert opened.name == (TeacherSection(model=model).name if path is None else str(path))
    tuned = opening_of(TeacherSection(model="embedded"), Path("tune/model"))
    assert tuned.path == tuned.tuned == str(tmp_path / "tune" / "model")


def test_missing_weights_are_one_line_with_what_to_do(tmp_path: Path) -> None:
    gone = opening(tmp_path / "gone")
    assert ray_worker.look(gone) == f"there is no {tmp_path / 'gone'}"
    described = describe(gone)
    assert described.info is None
    assert "the same path on every node" in described.problem
    assert "\n" not in described.problem


def test_a_teacher_is_described_under_the_recipes_name(model: Path) -> None:
    info = describe(opening(model)).info
    assert info is not None
    assert (info.name, info.local) == (f"hf:{model}", True)
    assert info.gives_logprobs


# --- what an actor does -----------------------------------------------------------------------


def test_an_actor_answers_and_gives_a_querys_failure_as_data(
    model: Path, labelling: Labelling
) -> None:
    info = describe(opening(model)).info
    assert info is not None
    labeller = labelling(Labeller(tries(), opening(model), CLOSED, info.revision))
    for _ in range(2):  # the second batch with the model of the first
        out = labeller(batch([query("a", "a warm film"), query("b", "long " * 400)]))
        assert list(out["kind"]) == [ANSWERED, QUERY_FAILED]
        first = Completion.model_validate_json(out["answers"][0])
        assert first.query_id == "a"
        assert first.label_logprobs is not None
        assert "exceed the model's 256" in out["detail"][1]
        assert out["answers"][1] == ""


def test_samples_there_are_already_are_not_drawn_again(model: Path, labelling: Labelling) -> None:
    info = describe(opening(model)).info
    assert info is not None
    sampling = Sampling(n=3, max_tokens=4, sampling_temperature=1.0, seed=5, logprobs=2)
    labeller = labelling(Labeller(tries(), opening(model), sampling, info.revision))
    whole = labeller(batch([query("a", "a film")]))["answers"][0].split("\n")
    rest = labeller(batch([query("a", "a film")], have=1))["answers"][0].split("\n")
    assert (len(whole), len(rest)) == (3, 2)
    logprobs = Completion.model_validate_json(rest[0]).logprobs
    assert logprobs is not None
    assert len(logprobs[0].top) == 2


def test_other_weights_on_a_node_stop_the_run(model: Path, labelling: Labelling) -> None:
    labeller = labelling(Labeller(tries(), opening(model), CLOSED, "another"))
    out = labeller(batch([query("a", "x"), query("b", "y")]))
    assert list(out["kind"]) == [UNUSABLE_NODE] * 2
    assert "other weights than the rest of the cluster" in out["detail"][0]


def test_a_node_that_cannot_open_the_teacher_says_so(tmp_path: Path, labelling: Labelling) -> None:
    labeller = labelling(Labeller(tries(), opening(tmp_path / "gone"), CLOSED, "r"))
    out = labeller(batch([query("a", "x")]))
    assert list(out["kind"]) == [UNUSABLE_NODE]
    assert "there is no" in out["detail"][0]


def test_a_batch_that_kills_its_process_again_and_again_is_given_up(
    model: Path, labelling: Labelling
) -> None:
    info = describe(opening(model)).info
    assert info is not None
    begun = tries()
    for _ in range(MOST_TRIES):  # each began the batch and died
        asyncio.run(begun.begin.remote(0))
    labeller = labelling(Labeller(begun, opening(model), CLOSED, info.revision))
    out = labeller(batch([query("a", "x"), query("b", "y")]))
    assert list(out["kind"]) == [ray_worker.TEACHER_FAILED] * 2
    assert f"died {MOST_TRIES} times" in out["detail"][0]
    other = batch([query("c", "z")])
    assert list(labeller({**other, "row": np.array([7])})["kind"]) == [ANSWERED]


def test_a_bug_in_an_actor_is_raised(monkeypatch: pytest.MonkeyPatch, labelling: Labelling) -> None:
    def answer(one: Query, sample: int) -> str:
        raise ZeroDivisionError("a bug")

    fake = FakeCompleter(answer=answer)
    monkeypatch.setattr(Opening, "open", lambda self: fake)
    labeller = labelling(Labeller(tries(), Opening("", "fake", None, None), Sampling(), "fake-1"))
    with pytest.raises(ZeroDivisionError):
        labeller(batch([query("a", "x")]))


# --- keeping ----------------------------------------------------------------------------------


def answered(rows: list[int], kind: str = ANSWERED, text: str = "good") -> dict[str, Any]:
    one = Completion(query_id="q", text=text, model="hf:x", revision="r1").to_json()
    return {
        "row": np.array(rows),
        "kind": [kind] * len(rows),
        "answers": [one if kind == ANSWERED else ""] * len(rows),
        "detail": ["" if kind == ANSWERED else "why"] * len(rows),
    }


def keep(store: AnswerStore, *batches: dict[str, Any], problem_of: Any = None) -> Any:
    queries = [query(f"q{i}", f"t{i}") for i in range(300)]
    rows = [(answer_key(INFO, one, CLOSED), one) for one in queries]
    reasons: dict[Any, str] = {}
    futility = Futility(INFO, problem_of, reused=0, say=Silent().say)

    async def all_of() -> Any:
        stops = [
            await _keep(one, rows=rows, samples=1, store=store, reasons=reasons, futility=futility)
            for one in batches
        ]
        return stops, reasons

    return asyncio.run(all_of())


def test_a_batch_computed_twice_is_stored_once(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.jsonl") as store:
        stops, reasons = keep(store, answered([0, 1]), answered([1, 0, 2]))
        assert (stops, reasons, len(store)) == ([None, None], {}, 3)
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 3


def test_failures_have_reasons_and_many_of_one_kind_stop_the_run(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.jsonl") as store:
        stops, reasons = keep(
            store,
            answered(list(range(9)), QUERY_FAILED),
            answered(list(range(20, 25)), ray_worker.TEACHER_FAILED),
        )
    assert stops[0] is None  # a query's own fault says nothing of others
    assert isinstance(stops[1], TeacherError)
    assert set(reasons.values()) == {"why"}
    assert len(reasons) == 14


def test_what_came_with_a_bad_node_is_kept(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.jsonl") as store:
        mixed = {
            name: list(answered([0])[name]) + list(answered([1], UNUSABLE_NODE)[name])
            for name in ("row", "kind", "answers", "detail")
        }
        stops, _ = keep(store, mixed)
        assert isinstance(stops[0], UserError)
        assert len(store) == 1


def test_answers_of_no_use_stop_the_run(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.jsonl") as store:
        batches = []
        for i in range(200):
            one = answered([i])
            one["answers"] = [one["answers"][0].replace('"q"', f'"q{i}"')]
            batches.append(one)
        stops, _ = keep(store, *batches, problem_of=lambda completion: "no label")
        assert stops[:199] == [None] * 199
        assert isinstance(stops[199], UserError)
        assert len(store) == 200


# --- the bridge from the iterator's thread ----------------------------------------------------


def test_items_come_in_order_and_errors_come_through() -> None:
    def items() -> Iterator[Any]:
        yield {"row": 1}
        yield {"row": 2}
        raise OSError("lost")

    async def take() -> list[Any]:
        found: list[Any] = []
        try:
            async for item in _from_thread(items()):
                found.append(item)
        except OSError as error:
            found.append(str(error))
        return found

    assert asyncio.run(take()) == [{"row": 1}, {"row": 2}, "lost"]


def test_leaving_early_ends_the_thread() -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield {"row": 0}

    async def take_one() -> None:
        batches = _from_thread(endless())
        await anext(batches)
        await batches.aclose()

    asyncio.run(take_one())
    for thread in threading.enumerate():
        if thread.name == "ray-batches":
            thread.join(10)
            assert not thread.is_alive()


# --- a cluster that is not there --------------------------------------------------------------


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_cluster, "_answers", lambda address: False)
    with pytest.raises(UserError, match=r"no Ray cluster answers within 30 s.*ray start") as e:
        RayCluster(RaySection(address="127.0.0.1:1"))
    assert "\n" not in str(e.value)


def test_the_time_limit_holds_where_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_cluster, "REACH_S", 0.5)
    assert not ray_cluster._answers("127.0.0.1:1")
