"""The dataset stage: the files it writes, the report it makes, the runs it stops."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_json, read_records, write_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Example, LabelledQuery, Query, Rejection
from stillhouse.core.runfolder import Outcome, hash_folder
from stillhouse.dataset.stage import run_dataset

WORDS = [f"word{number}" for number in range(500)]


def recipe(task: dict[str, Any] | None = None, **dataset: Any) -> Recipe:
    task = task or {"kind": "classification", "labels": ["good", "bad"], "prompt": "Judge: {text}"}
    return Recipe.model_validate(
        {
            "name": "t",
            "task": task,
            "traffic": {"path": "unused"},
            "teacher": {"model": "embedded"},
            "dataset": dataset,
            "student": {"head": "text", "from": "teacher"},
        }
    )


class House:
    """The folders of a run, with 100 queries answered good, bad, good, bad, ..."""

    def __init__(self, root: Path) -> None:
        self.traffic, self.ask, self.work = (root / name for name in ("traffic", "ask", "dataset"))
        self.work.mkdir()
        shuffler = random.Random(0)
        self.texts = [" ".join(shuffler.choices(WORDS, k=12)) for _ in range(100)]
        self.answers = ["good" if i % 2 else "bad" for i in range(100)]
        self.failures: list[Rejection] = []
        self.golden: list[LabelledQuery] = []
        self.labelled: list[LabelledQuery] = []

    def run(self, recipe: Recipe) -> Outcome:
        task = recipe.task
        queries = [
            Query(id=f"q{i}", messages=task.messages_for(text), task=task.name)
            for i, text in enumerate(self.texts)
        ]
        failed = {failure.query_id for failure in self.failures}
        completions = [
            Completion(
                query_id=query.id,
                text=answer,
                model="m",
                revision="r",
                label_logprobs={"good": math.log(0.8), "bad": math.log(0.2)}
                if answer == "good"
                else None,
            )
            for query, answer in zip(queries, self.answers, strict=True)
            if query.id not in failed
        ]
        write_records(self.traffic / "queries.jsonl", queries)
        write_records(self.ask / "completions.jsonl", completions)
        if self.failures:
            write_records(self.ask / "failures.jsonl", self.failures)
        for name in ("golden", "labelled"):
            if getattr(self, name):
                write_records(self.traffic / f"{name}.jsonl", getattr(self, name))
        return run_dataset(recipe, self.traffic, self.ask, self.work, Silent())

    def examples(self, name: str) -> list[Example]:
        return list(read_records(self.work / f"{name}.jsonl", Example))

    def report(self) -> Any:
        return read_json(self.work / "dataset.json")


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def labelled(recipe: Recipe, name: str, text: str) -> LabelledQuery:
    return LabelledQuery(id=name, messages=recipe.task.messages_for(text), reference="good")


def test_the_files_hold_every_query_once(house: House) -> None:
    house.answers[:4] = ["no idea", "", "I'm sorry, but I can't help with that.", "GOOD!"]
    house.texts[11] = house.texts[9].upper()
    house.texts[13] = house.texts[15] + " and"
    house.failures = [Rejection(query_id="q20", reason="teacher_error", detail="timed out")]
    outcome = house.run(recipe())
    train, held_out = house.examples("train"), house.examples("held_out")
    rejections = list(read_records(house.work / "rejections.jsonl", Rejection))
    ids = [e.id for e in train + held_out] + [r.query_id for r in rejections]
    assert sorted(ids) == sorted(f"q{i}" for i in range(100))
    assert [e.id for e in train] == sorted((e.id for e in train), key=lambda name: int(name[1:]))
    assert len(held_out) == pytest.approx(0.1 * (len(train) + len(held_out)), abs=1)
    assert not {e.group for e in train} & {e.group for e in held_out}
    assert {r.query_id: r.reason for r in rejections} == {
        "q0": "label",
        "q1": "empty",
        "q2": "refusal",
        "q11": "duplicate",
        "q15": "near_duplicate",
        "q20": "teacher_error",
    }
    assert outcome.summary["examples"] == 94
    assert outcome.cost_usd == 0


def test_the_report(house: House) -> None:
    house.answers[0] = "no idea"
    house.golden = [labelled(recipe(), "g0", house.texts[1]), labelled(recipe(), "g1", "elsewhere")]
    house.labelled = [labelled(recipe(), "l0", "Elsewhere")]
    house.run(recipe())
    report = house.report()
    assert (report["queries"], report["completions"], report["examples"]) == (100, 100, 98)
    assert report["train"] + report["held_out"] == 98
    acceptance = report["acceptance"]
    assert (acceptance["estimate"], acceptance["n"]) == (0.99, 100)
    assert acceptance["low"] < 0.99 < acceptance["high"]
    assert report["rejections"] == {"contamination_golden": 1, "label": 1}
    assert report["duplicates"] == {"exact": 0, "near": 0}
    assert report["contamination"] == {
        "examples_removed": 1,
        "golden_in_traffic": ["g0"],
        "golden_in_labelled": ["g1"],
    }
    classes = report["classes"]
    assert sum(classes["train"].values()) == report["train"]
    assert sum(classes["held_out"].values()) == report["held_out"]
    shares = [count / report["train"] for count in classes["train"].values()]
    assert classes["label_entropy_nats"] == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert classes["with_beliefs"] == classes["train"]["good"]
    assert classes["belief_entropy_nats"] == pytest.approx(
        -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    )
    assert classes["label_is_not_top_belief"] == 0
    assert report["lengths"]["completion"]["words"] == {"p50": 1.0, "p95": 1.0}
    assert report["lengths"]["prompt"]["words"]["p50"] == 13


def test_equal_inputs_give_equal_files(house: House) -> None:
    house.run(recipe())
    first = hash_folder(house.work)
    house.run(recipe())
    assert hash_folder(house.work) == first
    assert set(first) == {"train.jsonl", "held_out.jsonl", "rejections.jsonl", "dataset.json"}


def test_too_few_examples_stop_the_run_and_name_the_top_reason(house: House) -> None:
    house.answers[:60] = ["no idea"] * 60
    with pytest.raises(DataError) as caught:
        house.run(recipe())
    text = str(caught.value)
    assert "40 of 100 queries gave an accepted example, dataset.min_examples is 50" in text
    assert "label (60, such as: not one of the labels: 'no idea')" in text
    assert "rejections.jsonl" in text
    assert "\n" not in text
    # What was rejected can be read all the same.
    assert len(list(read_records(house.work / "rejections.jsonl", Rejection))) == 60
    assert not (house.work / "train.jsonl").exists()


def test_exactly_enough_examples_pass(house: House) -> None:
    house.answers[:50] = ["no idea"] * 50
    assert house.run(recipe()).summary["examples"] == 50


def test_examples_of_one_class_stop_the_run(house: House) -> None:
    house.answers = ["good"] * 99 + ["no idea"]
    with pytest.raises(DataError, match="all 99 accepted examples are of one class"):
        house.run(recipe())


def test_a_training_part_of_one_class_stops_the_run(house: House) -> None:
    # Of three examples one is held out; in some seed it is the only "bad" one.
    house.texts, house.answers = house.texts[:3], ["good", "good", "bad"]
    ends: set[str] = set()
    for seed in range(12):
        changed = recipe(min_examples=2, held_out=0.3).model_copy(update={"seed": seed})
        try:
            house.run(changed)
            ends.add("split")
        except DataError as error:
            ends.add(error.problem)
    assert ends == {"split", "all 2 training examples are of one class"}


def test_one_single_group_cannot_be_split(house: House) -> None:
    stem = " ".join(WORDS[:60])
    house.texts = [stem, stem + " x", *([stem] * 98)]
    with pytest.raises(DataError, match="near-duplicates of each other"):
        house.run(recipe(min_examples=2))


def test_an_answer_to_an_unknown_query_is_an_error(house: House) -> None:
    house.run(recipe())
    with (house.ask / "completions.jsonl").open("a") as handle:
        stray = Completion(query_id="stray", text="good", model="m", revision="r")
        handle.write(stray.to_json() + "\n")
    with pytest.raises(DataError, match="not in the traffic"):
        run_dataset(recipe(), house.traffic, house.ask, house.work, Silent())


def test_free_text_and_objects_have_no_classes(house: House) -> None:
    house.answers = [f"A summary, number {i}." for i in range(100)]
    house.run(recipe({"kind": "generation"}))
    assert "classes" not in house.report()
    assert all(e.label is None and e.label_probabilities is None for e in house.examples("train"))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    house.answers = [f'```json\n{{"n":{i}}}```' for i in range(100)]
    house.run(recipe({"kind": "extraction", "json_schema": schema}))
    assert {e.completion for e in house.examples("train")} <= {f'{{"n": {i}}}' for i in range(100)}


def test_the_lines_are_plain_chats(house: House) -> None:
    house.run(recipe())
    for line in (house.work / "train.jsonl").read_text(encoding="utf-8").splitlines():
        raw = json.loads(line)
        assert [message["role"] for message in raw["messages"]] == ["user", "assistant"]
        assert raw["messages"][-1]["content"] == raw["label"]


def test_traffic_that_is_all_labelled_leaves_nothing_to_hold_out(house: House) -> None:
    task = recipe().task
    house.labelled = [
        LabelledQuery(id=f"l{i}", messages=task.messages_for(text), reference=answer)
        for i, (text, answer) in enumerate(zip(house.texts, house.answers, strict=True))
    ]
    joined = [one.as_traffic() for one in house.labelled]
    write_records(house.traffic / "queries.jsonl", joined)
    write_records(
        house.ask / "completions.jsonl",
        [Completion(query_id=q.id, text="good", model="m", revision="r") for q in joined],
    )
    write_records(house.traffic / "labelled.jsonl", house.labelled)
    with pytest.raises(DataError, match="none can be held out"):
        run_dataset(recipe(), house.traffic, house.ask, house.work, Silent())


def test_beliefs_are_needed_for_soft_targets_of_a_label_student_alone() -> None:
    text = recipe()
    label = text.model_copy(update={"student": text.student.model_copy(update={"head": "label"})})
    hard = label.model_copy(update={"train": label.train.model_copy(update={"alpha": 0.0})})
    assert [r.needs_beliefs for r in (text, label, hard)] == [False, True, False]
