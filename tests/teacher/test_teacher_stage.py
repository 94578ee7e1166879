"""The two stages, from files to files, against a server on loopback and local doubles."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from progress_lines import Lines

from batch_servers import Faults, serve_batches
from stillhouse.core.errors import (
    BudgetError,
    DataError,
    MissingExtraError,
    TeacherError,
    UserError,
)
from stillhouse.core.jsonl import read_json, read_records, write_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Completion, LabelledQuery, Query, Rejection
from stillhouse.core.runfolder import Outcome, hash_folder
from stillhouse.core.split import tune_check_split
from stillhouse.models.completer import ModelInfo
from stillhouse.models.fake import FakeCompleter, keyword_belief
from stillhouse.teacher import build
from stillhouse.teacher.build import (
    LOCAL_WINDOW,
    open_teacher,
    queries_in_flight,
    teacher_sampling,
)
from stillhouse.teacher.stage import run_ask, run_check
from teacher_servers import KEY, error, openai_answer, serve

Stage = Callable[..., Outcome]
CLASSIFY: Mapping[str, Any] = {"kind": "classification", "labels": ["good", "bad"]}


def recipe(teacher: Mapping[str, Any], **more: Any) -> Recipe:
    task = more.pop("task", CLASSIFY)
    head = "label" if task["kind"] == "classification" else "text"
    return Recipe.model_validate(
        {
            "name": "r",
            "task": task,
            "traffic": {"path": "t.jsonl", "labelled": "l.jsonl"},
            "teacher": teacher,
            "student": {"head": head, "from": "embedded-encoder" if head == "label" else "hf:x"},
            "train": {"alpha": 0},
        }
        | more
    )


def traffic(
    folder: Path, the_recipe: Recipe, queries: int = 12, labelled: int = 0, golden: int = 0
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)

    def chat(name: str, i: int) -> dict[str, Any]:
        word = "lovely" if i % 2 else "awful"
        return {"id": f"{name}{i}", "messages": the_recipe.task.messages_for(f"{word} {name} {i}")}

    write_records(folder / "queries.jsonl", [Query(**chat("q", i)) for i in range(queries)])
    for name, count in (("labelled", labelled), ("golden", golden)):
        if count:
            write_records(
                folder / f"{name}.jsonl",
                [
                    LabelledQuery(**chat(name, i), reference="good" if i % 2 else "bad")
                    for i in range(count)
                ],
            )
    return folder


class Place:
    """Folders of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines = Lines()

    def run(self, stage: Stage, the_recipe: Recipe, tuned: Path | None = None) -> Outcome:
        work = self.root / stage.__name__
        work.mkdir(exist_ok=True)
        store = self.root / "store"
        return stage(the_recipe, self.root / "traffic", tuned, store, work, self.lines)

    def json(self, stage: Stage, name: str) -> dict[str, Any]:
        return read_json(self.root / stage.__name__ / name)

    def completions(self, name: str = "completions.jsonl") -> list[Completion]:
        return list(read_records(self.root / "run_ask" / name, Completion))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    return Place(tmp_path)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Local models are doubles that know one word; how they were opened is kept."""
    opened: list[tuple[Any, ...]] = []

    def open_hf_teacher(source: str, batch_size: int, device: str, *, plain: bool) -> FakeCompleter:
        assert not plain
        opened.append((source, batch_size, device))
        return FakeCompleter(
            name=source, belief=keyword_belief(("good", "bad"), {"lovely": "good", "awful": "bad"})
        )

    monkeypatch.setattr(
        build, "require", lambda *names: SimpleNamespace(open_hf_teacher=open_hf_teacher)
    )
    return opened


def smart(body: dict[str, Any], number: int) -> Any:
    text = body["messages"][-1]["content"]
    return openai_answer("good" if "lovely" in text else "bad", usage=(100, 10))


def test_ask_writes_completions_in_query_order_without_what_was_measured(place: Place) -> None:
    with serve(smart) as server:
        r = recipe({"model": "openai:gpt-4.1", "base_url": server.url + "/v1"})
        traffic(place.root / "traffic", r, golden=4)
        outcome = place.run(run_ask, r)
        assert server.bodies[0]["top_logprobs"] == 20
    found = place.completions()
    assert [c.query_id for c in found] == [f"q{i}" for i in range(12)]
    assert [c.text for c in found[:2]] == ["bad", "good"]
    assert all(c.latency_ms is None and c.cost_usd is None for c in found)
    assert len(place.completions("golden_completions.jsonl")) == 4
    assert (place.root / "run_ask" / "failures.jsonl").read_text() == ""
    timings = place.json(run_ask, "timings.json")
    assert (timings["asked"], timings["reused"]) == (16, 0)
    assert timings["usd"] == pytest.approx(16 * (100 * 2 + 10 * 8) / 1e6)
    assert timings["latency_p95_ms"] >= timings["latency_p50_ms"] > 0
    assert timings["queries_per_second"] > 0
    assert outcome.cost_usd == pytest.approx(timings["usd"])
    assert outcome.measured == {"timings.json"}


def test_equal_runs_have_equal_files_and_a_second_start_asks_nothing(place: Place) -> None:
    with serve(smart) as server:
        r = recipe({"model": "openai:gpt-4.1", "base_url": server.url + "/v1"})
        traffic(place.root / "traffic", r, golden=4)
        hashes = []
        for _ in range(2):
            outcome = place.run(run_ask, r)
            hashes.append(hash_folder(place.root / "run_ask"))
            del hashes[-1]["timings.json"]
        assert hashes[0] == hashes[1]
        # What the answers cost, also where another start paid for them.
        assert outcome.cost_usd == pytest.approx(16 * 280 / 1e6)
        assert max(server.asked.values()) == 1
    timings = place.json(run_ask, "timings.json")
    assert (timings["asked"], timings["reused"], timings["usd"]) == (0, 16, 0.0)
    assert timings["queries_per_second"] is None
    assert timings["usd_of_answers"] == pytest.approx(16 * 280 / 1e6)


def test_failures_are_kept_and_said(place: Place) -> None:
    def mostly(body: dict[str, Any], number: int) -> Any:
        if body["messages"][-1]["content"] == "awful q 4":
            return error(400, "context length exceeded")
        return smart(body, number)

    with serve(mostly) as server:
        r = recipe({"model": "openai:gpt-4.1", "base_url": server.url + "/v1"})
        traffic(place.root / "traffic", r)
        place.run(run_ask, r)
    failures = list(read_records(place.root / "run_ask" / "failures.jsonl", Rejection))
    assert [(f.query_id, f.reason) for f in failures] == [("q4", "no_answer")]
    assert "context length exceeded" in failures[0].detail
    assert len(place.completions()) == 11
    assert place.lines.said == [
        "teacher openai:gpt-4.1: no answer to 1 queries; see failures.jsonl"
    ]


def test_a_teacher_that_refuses_everything_is_one_line(place: Place) -> None:
    with serve(lambda body, number: openai_answer("", refusal="I cannot.")) as server:
        r = recipe({"model": "openai:gpt-4.1", "base_url": server.url + "/v1"})
        traffic(place.root / "traffic", r)
        with pytest.raises(UserError, match=r"none of its 12 answers .* query q0: refused") as e:
            place.run(run_ask, r)
    assert "\n" not in str(e.value)


def test_a_server_without_logprobs_is_left_before_all_is_paid(place: Place) -> None:
    with serve(lambda body, number: openai_answer("good")) as server:
        teacher = {"model": "openai:gpt-4.1", "base_url": server.url + "/v1"}
        r = recipe(teacher, train={"alpha": 0.5})
        traffic(place.root / "traffic", r, queries=100)
        with pytest.raises(UserError, match=r"no logprobs.*signals: samples"):
            place.run(run_ask, r)
        assert len(server.bodies) < 60


def test_answers_cut_off_before_they_begin_name_the_limit(place: Place) -> None:
    with serve(lambda body, number: openai_answer("", finish="length")) as server:
        r = recipe({"model": "openai:gpt-4.1", "base_url": server.url + "/v1"})
        traffic(place.root / "traffic", r)
        with pytest.raises(UserError, match=r"raise teacher\.max_tokens"):
            place.run(run_ask, r)


def test_no_answer_at_all_is_one_line(place: Place) -> None:
    with serve(lambda body, number: error(400, "no such thing")) as server:
        r = recipe({"model": "openai:gpt-4.1", "base_url": server.url + "/v1"})
        traffic(place.root / "traffic", r, queries=3)
        with pytest.raises(TeacherError, match=r"no query got an answer.*no such thing"):
            place.run(run_ask, r)


def test_no_query_is_one_line(place: Place) -> None:
    r = recipe({"model": "embedded"})
    traffic(place.root / "traffic", r, queries=0)
    with pytest.raises(DataError, match="holds no query"):
        place.run(run_ask, r)


def test_check_scores_the_whole_labelled_set_of_an_api_teacher(place: Place) -> None:
    with serve(smart) as server:
        r = recipe({"model": "openai:gpt-4.1", "base_url": server.url + "/v1"})
        traffic(place.root / "traffic", r, labelled=30)
        outcome = place.run(run_check, r)
    check = place.json(run_check, "check.json")
    assert (check["n"], check["accuracy"]["estimate"]) == (30, 1.0)
    assert check["baseline"]["how"] == "cross_validated"
    assert check["labels"]["good"] == {"true": 15, "predicted": 15}
    assert outcome.summary["n"] == 30
    assert outcome.cost_usd > 0
    assert outcome.measured == frozenset()


def test_check_of_a_tuned_teacher_uses_the_held_back_part(
    place: Place, local: list[tuple[Any, ...]]
) -> None:
    r = recipe({"model": "embedded", "batch_size": 4, "tune": {"check_fraction": 0.3}})
    traffic(place.root / "traffic", r, labelled=40)
    tuned = place.root / "tune" / "model"
    place.run(run_check, r, tuned)
    labelled = list(read_records(place.root / "traffic" / "labelled.jsonl", LabelledQuery))
    split = tune_check_split(labelled, 0.3, r.seed)
    check = place.json(run_check, "check.json")
    assert check["n"] == len(split.second)
    assert check["baseline"] | {"accuracy": None} == {
        "accuracy": None,
        "trained_on": len(split.first),
        "how": "separate",
    }
    assert check["teacher"] == "embedded"  # not the folder of this run
    assert local == [(str(tuned), 4, "auto")]
    assert str(place.root) not in json.dumps(check)


def test_check_is_skipped_without_labels_and_for_free_text(place: Place) -> None:
    r = recipe({"model": "embedded"})
    traffic(place.root / "traffic", r)
    place.run(run_check, r)
    assert place.json(run_check, "check.json") == {"skipped": "there is no labelled set"}
    r = recipe({"model": "embedded"}, task={"kind": "generation"})
    traffic(place.root / "traffic", r, labelled=3)
    place.run(run_check, r)
    assert "free text" in place.json(run_check, "check.json")["skipped"]


def test_what_the_check_asked_is_not_asked_again(place: Place) -> None:
    with serve(smart) as server:
        r = recipe({"model": "openai:gpt-4.1", "base_url": server.url + "/v1"})
        folder = traffic(place.root / "traffic", r, labelled=10)
        both = list(read_records(folder / "queries.jsonl", Query))
        both += [
            Query(id=f"again{q.id}", messages=q.messages)
            for q in read_records(folder / "labelled.jsonl", LabelledQuery)
        ]
        write_records(folder / "queries.jsonl", both)
        checked = place.run(run_check, r)
        asked = place.run(run_ask, r)
        assert max(server.asked.values()) == 1
        assert len(server.bodies) == 22
        assert checked.cost_usd == pytest.approx(10 * 280 / 1e6)
        assert asked.cost_usd == pytest.approx(12 * 280 / 1e6)  # no answer is on two bills
    assert len(place.completions()) == 22


def test_a_local_teacher_answers_under_its_recipes_name(
    place: Place, local: list[tuple[Any, ...]]
) -> None:
    r = recipe({"model": "hf:org/name", "device": "cpu", "budget_usd": 0.01})
    traffic(place.root / "traffic", r)
    outcome = place.run(run_ask, r)
    found = place.completions()
    assert local == [("hf:org/name", 32, "cpu")]
    assert {c.model for c in found} == {"hf:org/name"}
    assert found[0].label_logprobs is not None
    assert outcome.cost_usd == 0.0


# --- how a teacher is opened and asked --------------------------------------------------------

WHITE = ModelInfo("embedded", "r", gives_label_logprobs=True, gives_logprobs=True, local=True)
OPEN = ModelInfo("openai:m", "r", gives_logprobs=True)
SHUT = ModelInfo("anthropic:m", "r")


@pytest.mark.parametrize(
    ("info", "signals", "labels", "logprobs"),
    [
        (WHITE, "auto", True, 0),
        (WHITE, "logprobs", True, 0),
        (WHITE, "none", True, 0),
        (OPEN, "auto", True, 20),
        (OPEN, "none", True, 0),
        (SHUT, "auto", True, 0),
        (SHUT, "samples", False, 0),
        (OPEN, "samples", False, 0),
    ],
)
def test_sampling_of_a_classification(
    info: ModelInfo, signals: str, labels: bool, logprobs: int
) -> None:
    samples = {"samples": 5, "sampling_temperature": 1.0} if signals == "samples" else {}
    r = recipe({"model": "embedded", "signals": signals} | samples, seed=7)
    sampling = teacher_sampling(r, info)
    assert sampling.labels == (("good", "bad") if labels else ())
    assert sampling.logprobs == logprobs
    assert (sampling.n, sampling.seed) == (5 if samples else 1, 7)


def test_logprobs_of_a_teacher_that_gives_none_are_an_error_before_asking() -> None:
    r = recipe({"model": "embedded", "signals": "logprobs"})
    with pytest.raises(UserError, match=r"teacher\.signals.*signals: samples"):
        teacher_sampling(r, SHUT)


def test_sampling_of_other_tasks() -> None:
    free = teacher_sampling(recipe({"model": "embedded"}, task={"kind": "generation"}), OPEN)
    assert (free.labels, free.logprobs, free.json_schema) == ((), 0, None)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    extract = teacher_sampling(
        recipe({"model": "embedded"}, task={"kind": "extraction", "json_schema": schema}), OPEN
    )
    assert extract.json_schema == schema


def test_token_logprobs_of_text_answers() -> None:
    text = {"kind": "generation"}
    local = recipe({"model": "embedded", "token_logprobs": 40}, task=text)
    assert teacher_sampling(local, WHITE).logprobs == 40
    for teacher, info, task, problem in (
        ({"model": "embedded"}, WHITE, CLASSIFY, "is for text answers"),
        ({"model": "openai:m"}, OPEN, text, "at most 20"),
        ({"model": "anthropic:m"}, SHUT, text, "gives no log-probabilities"),
    ):
        with pytest.raises(UserError, match=rf"teacher\.token_logprobs.*{problem}"):
            teacher_sampling(recipe({**teacher, "token_logprobs": 40}, task=task), info)


def test_queries_in_flight() -> None:
    section = TeacherSection(model="embedded", batch_size=4, concurrency=3)
    assert queries_in_flight(section, WHITE) == 4 * LOCAL_WINDOW
    assert queries_in_flight(section, OPEN) == 3


def test_a_missing_extra_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str, needed_for: str) -> Any:
        raise MissingExtraError(module, f"is needed for {needed_for}", action=f"[{extra}]")

    monkeypatch.setattr(build, "require", missing)
    for model, extra in (("embedded", "train"), ("hf:x", "train"), ("gguf:x.gguf", "gguf")):
        with pytest.raises(MissingExtraError, match=rf"{model}.*\[{extra}\]"):
            open_teacher(TeacherSection(model=model), PricesSection())


def test_a_run_that_was_stopped_is_billed_whole(place: Place) -> None:
    with serve(smart) as server:
        teacher = {"model": "openai:gpt-4.1", "base_url": server.url + "/v1", "concurrency": 1}
        r = recipe(teacher | {"budget_usd": 0.004})
        traffic(place.root / "traffic", r)
        with pytest.raises(BudgetError):
            place.run(run_ask, r)
        assert 0 < len(server.bodies) < 12
        outcome = place.run(run_ask, recipe(teacher))
        assert len(server.bodies) == 12
    assert outcome.cost_usd == pytest.approx(12 * 280 / 1e6)


def test_answers_of_no_use_stop_the_asking_early(place: Place) -> None:
    with serve(lambda body, number: openai_answer("", refusal="I cannot.")) as server:
        r = recipe({"model": "openai:gpt-4.1", "base_url": server.url + "/v1", "concurrency": 4})
        traffic(place.root / "traffic", r, queries=200)
        with pytest.raises(UserError, match=r"none of its 20 answers .* query q0: refused"):
            place.run(run_ask, r)
        asked = len(server.bodies)
        assert 20 <= asked <= 24
        with pytest.raises(UserError, match="answers can be used"):
            place.run(run_ask, r)
        assert len(server.bodies) == asked  # what is known to be futile is not paid for again


def test_all_sets_go_by_batch_and_the_files_are_those_of_live_asking(
    place: Place, tmp_path: Path
) -> None:
    def row(text: str) -> Any:
        return (400, "invalid_request_error", "not this one") if "q 5" in text else None

    with serve_batches(Faults(row=row)) as server:
        server.text = lambda text: "good" if "lovely" in text else "bad"
        teacher = {"model": "openai:gpt-4.1", "base_url": f"{server.url}/v1"}
        batch = {"poll_s": 0.01, "pilot": 1}
        by_batch = recipe({**teacher, "batch": batch})
        traffic(place.root / "traffic", by_batch, queries=9, golden=4, labelled=3)
        place.run(run_check, by_batch)
        assert len(server.batches) == 1
        outcome = place.run(run_ask, by_batch)
        assert len(server.batches) == 2  # the queries and the golden set together
        assert server.live.total() == 2
        timings = place.json(run_ask, "timings.json")
        assert (timings["asked"], timings["reused"], timings["failures"]) == (13, 0, 1)
        assert timings["asked_by_batch"] == 11
        assert timings["queries_per_second"] is None
        assert outcome.cost_usd == pytest.approx(timings["usd"])
        (failure,) = read_records(place.root / "run_ask" / "failures.jsonl", Rejection)
        assert (failure.query_id, failure.reason) == ("q5", "no_answer")
        assert "not this one" in failure.detail
        # 100 tokens in and 20 out of gpt-4.1 cost 0.00036; one of the twelve was asked live.
        assert outcome.cost_usd == pytest.approx(0.00036 * (1 + 11 / 2))
        batched = [c.model_dump() for c in place.completions()]
        live = Place(tmp_path / "live")
        live_recipe = recipe(teacher)
        traffic(live.root / "traffic", live_recipe, queries=9, golden=4, labelled=3)
        live.run(run_ask, live_recipe)
        assert [c.model_dump() for c in live.completions()] == batched
        assert len(live.completions("golden_completions.jsonl")) == 4
        # The answers are under live asking's keys: it has nothing left to ask but the failure.
        before = server.live.total()
        place.run(run_ask, live_recipe)
        assert server.live.total() == before
