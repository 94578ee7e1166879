"""The traffic stage: validate all, then write; repeats and golden texts left out with reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import LabelledQuery, Query, Rejection
from stillhouse.core.runfolder import Outcome, hash_folder
from stillhouse.traffic import redact
from stillhouse.traffic.redact import RedactionError
from stillhouse.traffic.stage import hash_sample, run_traffic


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def recipe(folder: Path, seed: int = 0, **traffic: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "seed": seed,
            "task": {
                "kind": "classification",
                "labels": ["fresh", "rotten"],
                "prompt": "R: {text}",
            },
            "traffic": {"path": str(folder / "traffic.jsonl"), **traffic},
            "teacher": {"model": "embedded"},
            "dataset": {"min_examples": 3},
            "student": {"head": "label", "from": "teacher"},
        }
    )


def run(recipe: Recipe, work: Path) -> Outcome:
    work.mkdir(exist_ok=True)
    return run_traffic(recipe, work, Silent())


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, str]:
    """Traffic of 10 texts, two of them repeated, one golden, one labelled."""
    lines: list[dict[str, Any]] = [{"text": f"text {i}"} for i in range(10)]
    lines[2] = {"text": "Text 2!"}  # the labelled one, but for its case and punctuation
    write(tmp_path / "traffic.jsonl", [*lines, {"text": "text 3"}, {"text": "text 3", "id": "x"}])
    return {
        "golden": write(
            tmp_path / "golden.jsonl",
            [{"text": "text 1", "label": "fresh"}, {"text": "golden", "label": "rotten"}],
        ),
        "labelled": write(
            tmp_path / "labelled.jsonl",
            [
                {"text": "text 2", "label": "fresh"},
                {"text": "golden", "label": "rotten"},
                {"text": "other", "label": "rotten"},
                {"text": "other", "label": "fresh"},
            ],
        ),
    }


def test_the_files_and_the_summary(tmp_path: Path, sets: dict[str, str]) -> None:
    work = tmp_path / "work"
    outcome = run(recipe(tmp_path, **sets), work)
    queries = list(read_records(work / "queries.jsonl", Query))
    assert [q.last_user_text for q in queries] == [
        *(f"R: text {i}" for i in (0, 3, 4, 5, 6, 7, 8, 9)),
        "R: text 2",  # the labelled queries come last
        "R: other",
    ]
    golden = list(read_records(work / "golden.jsonl", LabelledQuery))
    assert [(q.last_user_text, q.reference) for q in golden] == [
        ("R: text 1", "fresh"),
        ("R: golden", "rotten"),
    ]
    labelled = list(read_records(work / "labelled.jsonl", LabelledQuery))
    assert [q.last_user_text for q in labelled] == ["R: text 2", "R: other"]
    rejections = list(read_records(work / "rejections.jsonl", Rejection))
    assert [r.reason for r in rejections] == [
        "contamination_golden",
        "contamination_labelled",
        "duplicate",
        "duplicate",
    ]
    assert rejections[3].query_id == "x"
    assert outcome.summary == {
        "read": 12,
        "other_task": 0,
        "duplicates": 2,
        "in_golden": 1,
        "in_labelled": 1,
        "over_limit": 0,
        "queries": 10,
        "labelled": 2,
        "labelled_duplicates": 1,
        "labelled_contradictions": 1,
        "labelled_in_golden": 1,
        "golden": 2,
        "golden_duplicates": 0,
        "golden_contradictions": 0,
    }


def test_only_what_the_recipe_has_is_written(tmp_path: Path, sets: dict[str, str]) -> None:
    run(recipe(tmp_path), tmp_path / "work")
    assert {p.name for p in (tmp_path / "work").iterdir()} == {"queries.jsonl", "rejections.jsonl"}


def test_the_golden_text_is_found_in_another_form_of_chat(
    tmp_path: Path, sets: dict[str, str]
) -> None:
    chat = {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "R: golden"}]
    }
    write(tmp_path / "traffic.jsonl", [{"text": str(i)} for i in range(5)] + [chat])
    outcome = run(recipe(tmp_path, golden=sets["golden"]), tmp_path / "work")
    assert outcome.summary["in_golden"] == 1


def test_equal_inputs_give_equal_files(tmp_path: Path, sets: dict[str, str]) -> None:
    run(recipe(tmp_path, limit=5, **sets), tmp_path / "one")
    run(recipe(tmp_path, limit=5, **sets), tmp_path / "two")
    assert hash_folder(tmp_path / "one") == hash_folder(tmp_path / "two")


def test_the_limit_draws_a_sample_in_order_not_the_head(tmp_path: Path) -> None:
    write(tmp_path / "traffic.jsonl", [{"text": f"{i:03}"} for i in range(200)])
    outcome = run(recipe(tmp_path, limit=50), tmp_path / "a")
    run(recipe(tmp_path, limit=50, seed=1), tmp_path / "b")
    a, b = (
        [q.last_user_text for q in read_records(tmp_path / name / "queries.jsonl", Query)]
        for name in "ab"
    )
    assert outcome.summary["over_limit"] == 150
    assert len(a) == len(b) == 50
    assert a == sorted(a)
    assert a != b
    assert max(a) > "R: 100"


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path: Path) -> None:
    write(tmp_path / "traffic.jsonl", [{"text": f"{i:03}"} for i in range(100)])
    run(recipe(tmp_path), tmp_path / "all")
    queries = list(read_records(tmp_path / "all" / "queries.jsonl", Query))
    small = {q.id for q in hash_sample(queries, 10, 0)}
    assert small < {q.id for q in hash_sample(queries, 40, 0)}
    assert hash_sample(queries, None, 0) == queries
    assert hash_sample(queries, 100, 0) == queries


@pytest.mark.parametrize("broken", ["traffic", "labelled", "golden"])
def test_a_mistake_in_any_file_leaves_nothing_written(
    tmp_path: Path, sets: dict[str, str], broken: str
) -> None:
    path = tmp_path / f"{broken}.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(DataError, match=f"{broken}.jsonl line"):
        run(recipe(tmp_path, **sets), tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("missing", ["traffic", "labelled", "golden"])
def test_a_missing_file_is_named(tmp_path: Path, sets: dict[str, str], missing: str) -> None:
    (tmp_path / f"{missing}.jsonl").unlink()
    with pytest.raises(DataError, match=f"{missing}.jsonl: there is no such file"):
        run(recipe(tmp_path, **sets), tmp_path / "work")


def test_too_little_traffic_stops_before_money_is_spent(tmp_path: Path) -> None:
    write(tmp_path / "traffic.jsonl", [{"text": "a"}, {"text": "b"}, {"text": "b"}])
    with pytest.raises(DataError, match=r"2 distinct queries \(3 lines\), fewer than"):
        run(recipe(tmp_path), tmp_path / "work")


def test_a_limit_below_the_least_number_of_examples_is_named(
    tmp_path: Path, sets: dict[str, str]
) -> None:
    with pytest.raises(DataError, match=r"traffic\.limit: is below dataset\.min_examples"):
        run(recipe(tmp_path, limit=2), tmp_path / "work")


def test_a_labelled_set_that_is_all_golden_is_an_error(
    tmp_path: Path, sets: dict[str, str]
) -> None:
    with pytest.raises(DataError, match="in the golden set"):
        run(recipe(tmp_path, golden=sets["golden"], labelled=sets["golden"]), tmp_path / "work")


LONG = "a film that never finds its way out of the first act and does not seem to mind at all"


@pytest.mark.parametrize(
    ("golden", "labelled", "dropped"),
    [
        ("Great movie!", "great  movie", 1),
        (LONG, LONG + " really", 1),
        ("Great movie!", "great music", 0),
    ],
)
def test_the_teacher_is_not_tuned_on_near_copies_of_the_golden_set(
    tmp_path: Path, sets: dict[str, str], golden: str, labelled: str, dropped: int
) -> None:
    write(
        tmp_path / "golden.jsonl",
        [{"text": golden, "label": "fresh"}, {"text": "elsewhere", "label": "rotten"}],
    )
    write(
        tmp_path / "labelled.jsonl",
        [
            {"text": labelled, "label": "fresh"},
            {"text": "unlike", "label": "rotten"},
            {"text": "another", "label": "fresh"},
        ],
    )
    outcome = run(recipe(tmp_path, **sets), tmp_path / "work")
    assert outcome.summary["labelled_in_golden"] == dropped
    assert outcome.summary["labelled"] == 3 - dropped


def test_personal_data_is_replaced_before_anything_is_written(tmp_path: Path) -> None:
    lines = [{"text": f"text {i}, mail m{i}@x.example", "user": "u@x.example"} for i in range(5)]
    write(tmp_path / "traffic.jsonl", [*lines, lines[0]])
    golden = [
        {"text": "golden, mail g@x.example", "label": "fresh"},
        {"text": "text 1, mail other@x.example", "label": "rotten"},
    ]
    sets = {"golden": write(tmp_path / "golden.jsonl", golden)}
    outcome = run(recipe(tmp_path, redact=["email"], **sets), tmp_path / "work")
    for path in (tmp_path / "work").iterdir():
        assert "@x.example" not in path.read_text(), path
    queries = list(read_records(tmp_path / "work" / "queries.jsonl", Query))
    assert queries[0].last_user_text == "R: text 0, mail <EMAIL_1>"
    assert (queries[0].user or "").startswith("user-")
    assert outcome.summary["duplicates"] == 1
    assert outcome.summary["in_golden"] == 1, "equal once their addresses are replaced"


def test_where_personal_data_cannot_be_looked_for_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(redact._FINDERS, "email", lambda text: [])
    write(tmp_path / "traffic.jsonl", [{"text": str(i)} for i in range(5)])
    with pytest.raises(RedactionError):
        run(recipe(tmp_path, redact=["email"]), tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_an_unknown_kind_of_personal_data_is_an_error_in_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="redact"):
        recipe(tmp_path, redact=["mail"])
