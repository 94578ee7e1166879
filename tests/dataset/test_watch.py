"""The watch set: true answers that are looked at and never learned, apart from all else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from doubles import doubles, recipe_of, write_rows
from stillhouse.core.jsonl import read_json, read_records, write_records
from stillhouse.core.lineage import read_lineage
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Example, LabelledQuery, Message, Query
from stillhouse.core.split import tune_check_split
from stillhouse.dataset.card import dataset_card
from stillhouse.dataset.stage import run_dataset
from stillhouse.dataset.watch import FEWEST, MOST, WATCH, watch_set
from stillhouse.pipeline import run_stages

LABELS = ("good", "bad")


def example(number: int, truth: str | None, group: str | None = None) -> Example:
    return Example(
        id=f"q{number}",
        messages=(
            Message(role="user", content=f"text {number}"),
            Message(role="assistant", content=truth or "good"),
        ),
        task="task",
        group=group or f"g{number}",
        teacher="m",
        teacher_revision="r",
        label=truth or "good",
        reference=truth,
    )


def test_whole_groups_of_true_answers_are_taken_with_the_teacher_s_own() -> None:
    examples = [example(n, LABELS[n % 2]) for n in range(400)]
    examples += [example(400 + n, "good", f"mixed{n}") for n in range(100)]
    examples += [example(500 + n, None, f"mixed{n}") for n in range(100)]
    own = {e.id: "bad" for e in examples if e.reference is not None}
    found = watch_set(examples, own, 0.1, 3)
    assert len(found) == 40
    assert found == watch_set(examples, own, 0.1, 3)
    assert {e.id for e in found} != {e.id for e in watch_set(examples, own, 0.1, 4)}
    assert not any(e.group.startswith("mixed") for e in found)
    assert {e.label for e in found} == {e.completion for e in found} == {"bad"}
    assert {e.reference for e in found} == {"good", "bad"}
    assert len(watch_set([example(n, "good") for n in range(5000)], {f"q{n}": "good" for n in
                         range(5000)}, 0.5, 0)) == MOST  # fmt: skip


def test_few_and_rare_ones_stay_lessons() -> None:
    examples = [example(n, "good") for n in range(10 * FEWEST - 6)]
    own = {e.id: "good" for e in examples}
    assert watch_set(examples, own, 0.1, 0) == []
    assert watch_set(examples, own, 0.0, 0) == []
    rare = [example(n, "bad" if n < 3 else "good") for n in range(100)]
    own = {e.id: "good" for e in rare}
    for seed in range(20):
        found = watch_set(rare, own, 0.5, seed)
        assert sum(e.reference == "bad" for e in found) <= 1
        assert len(found) >= FEWEST
    seen = {f"q{n}" for n in range(40)}
    assert not {e.id for e in watch_set(rare, own, 0.5, 0, seen)} & seen


def run(folder: Path, recipe: Recipe, labelled: int = 400) -> None:
    task = recipe.task
    rows = [
        Query(id=f"q{n}", messages=task.messages_for(f"{n} one {n} two {n}"), task=task.name)
        for n in range(100)
    ]
    truth = [
        LabelledQuery(
            id=str(n), messages=task.messages_for(f"{n} six {n} ten {n}"), reference=LABELS[n % 2]
        )
        for n in range(labelled)
    ]
    queries = [*rows, *(one.as_traffic() for one in truth)]
    answers = [
        Completion(
            query_id=query.id,
            text=LABELS[n % 3 % 2],
            model="m",
            revision="r",
            label_logprobs={"good": math.log(0.8), "bad": math.log(0.2)},
        )
        for n, query in enumerate(queries)
    ]
    write_records(folder / "traffic/queries.jsonl", queries)
    write_records(folder / "traffic/labelled.jsonl", truth)
    write_records(folder / "ask/completions.jsonl", answers)
    (folder / "dataset").mkdir()
    run_dataset(recipe, folder / "traffic", folder / "ask", folder / "dataset", Silent())


def read(folder: Path, name: str) -> list[Example]:
    return list(read_records(folder / "dataset" / name, Example))


def test_the_stage_keeps_it_apart_from_training_and_from_what_is_held_out(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, dataset={"held_out": 0.2, "near_duplicate": 1.0})
    run(tmp_path, recipe)
    watch, train = read(tmp_path, WATCH), read(tmp_path, "train.jsonl")
    held_out = read(tmp_path, "held_out.jsonl")
    assert len(watch) == 40
    assert len(train) == 440
    assert len(held_out) == 20
    for part in (train, held_out):
        assert not {e.id for e in part} & {e.id for e in watch}
        assert not {e.group for e in part} & {e.group for e in watch}
    said = {f"labelled:{n}": LABELS[(100 + n) % 3 % 2] for n in range(400)}
    assert {e.id: e.label for e in watch} == {e.id: said[e.id] for e in watch}
    assert any(e.label != e.reference for e in watch)
    assert all(e.label == e.reference for e in train if e.reference is not None)
    facts = read_json(tmp_path / "dataset/dataset.json")
    assert facts["watch"] == 40
    assert facts["train"] == facts["with_truth"] + 80 == 440
    card = dataset_card(recipe, facts, "hash")
    assert WATCH in card
    assert "The 40 watched ones hold the teacher's answer and the true one" in card

    none = tmp_path / "none"
    without = recipe_of(tmp_path, dataset={"held_out": 0.2, "near_duplicate": 1.0, "watch": 0.0})
    run(none, without)
    assert not (none / "dataset" / WATCH).exists()
    assert {e.id for e in read(none, "held_out.jsonl")} == {e.id for e in held_out}
    assert WATCH not in dataset_card(without, read_json(none / "dataset/dataset.json"), "hash")


def test_a_tuned_teacher_has_not_seen_it(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path,
        dataset={"held_out": 0.2, "near_duplicate": 1.0},
        traffic={"labelled": str(tmp_path / "labelled.jsonl")},
        teacher={"model": "hf:some/model", "tune": {}},
    )
    run(tmp_path, recipe)
    truth = list(read_records(tmp_path / "traffic/labelled.jsonl", LabelledQuery))
    assert recipe.teacher.tune is not None
    tuned = tune_check_split(truth, recipe.teacher.tune.check_fraction, recipe.seed).first
    watch = {e.id for e in read(tmp_path, WATCH)}
    assert len(watch) == 40
    assert not watch & {query.as_traffic().id for query in tuned}


def test_lineage_counts_it(tmp_path: Path) -> None:
    text = "the {} film of {} is {}"
    words = ("lovely", "awful")
    write_rows(
        tmp_path / "traffic.jsonl",
        [{"text": text.format(n, n + 1, words[n % 2]), "user": f"u{n % 7}"} for n in range(80)],
    )
    write_rows(
        tmp_path / "labelled.jsonl",
        [
            {"text": text.format(n, n + 1, words[n % 2]), "label": LABELS[n % 2], "user": "ann"}
            for n in range(100, 200)
        ],
    )
    recipe = recipe_of(
        tmp_path,
        traffic={"labelled": str(tmp_path / "labelled.jsonl")},
        teacher={"model": "embedded", "terms": {"waived_by": "the tests", "reason": "a double"}},
        dataset={"near_duplicate": 1.0, "watch": 0.4},
    )
    root = tmp_path / "run"
    with doubles():
        run_stages(recipe, root, Silent(), "dataset")
    counts = [
        len(list(read_records(root / "dataset" / name, Example)))
        for name in ("train.jsonl", "held_out.jsonl", WATCH)
    ]
    assert counts[2] == 40
    (dataset,) = read_lineage(root).datasets.values()
    assert dataset.examples == sum(counts) == 180


@pytest.mark.parametrize("share", [-0.1, 0.6])
def test_a_share_that_leaves_too_few_lessons_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match="watch"):
        recipe_of(tmp_path, dataset={"watch": share})
