"""traffic.select in the traffic stage: what is chosen, what is left out and why, coverage."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.errors import DataError, RecipeError, UserError
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.records import Query, Rejection
from stillhouse.core.runfolder import Outcome, hash_folder
from stillhouse.traffic.stage import run_traffic

TOPICS = {
    "film": "a warm film with funny actors and a gentle plot about brothers",
    "engine": "the car engine is loud slow broken and needs oil and repair",
    "bank": "my bank account was charged twice please refund the payment",
}


def make_traffic(folder: Path) -> Path:
    """120 film texts, 30 on engines, 6 on banks: each its topic's words with one of its own."""
    lines = []
    for topic, count in (("film", 120), ("engine", 30), ("bank", 6)):
        for number in range(count):
            text = f"{TOPICS[topic]} {number}"
            lines.append({"id": f"{topic}-{number}", "text": text, "metadata": {"topic": topic}})
    path = folder / "traffic.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def make_recipe(folder: Path, select: dict[str, Any], **traffic: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "t",
            "task": {"kind": "classification", "labels": ["a", "b"]},
            "traffic": {"path": str(make_traffic(folder)), "select": select, **traffic},
            "teacher": {"model": "embedded"},
            "dataset": {"min_examples": 3},
            "student": {"head": "label", "from": "teacher"},
        },
        "test",
    )


def run(recipe: Recipe, work: Path) -> Outcome:
    work.mkdir(exist_ok=True)
    return run_traffic(recipe, work, Silent())


def topics_of(work: Path) -> Counter[str]:
    return Counter(str(q.metadata["topic"]) for q in read_records(work / "queries.jsonl", Query))


@pytest.mark.parametrize("method", ["k_center", "facility_location", "random"])
def test_the_floor_is_respected_and_all_are_accounted_for(tmp_path: Path, method: str) -> None:
    recipe = make_recipe(tmp_path, {"n": 26, "method": method, "clusters": 3, "floor": 4})
    work = tmp_path / "work"
    outcome = run(recipe, work)
    queries = list(read_records(work / "queries.jsonl", Query))
    assert len(queries) == outcome.summary["queries"] == 26
    assert topics_of(work) == {"film": 18, "engine": 4, "bank": 4}
    assert len({(q.metadata["topic"], q.metadata["cluster"]) for q in queries}) == 3

    rejections = list(read_records(work / "rejections.jsonl", Rejection))
    assert {r.reason for r in rejections} == {"not_selected"}
    assert {r.query_id for r in rejections} | {q.id for q in queries} == {
        *(f"film-{i}" for i in range(120)),
        *(f"engine-{i}" for i in range(30)),
        *(f"bank-{i}" for i in range(6)),
    }
    assert outcome.summary["not_selected"] == len(rejections) == 130
    assert f"{method} chose 4 of the 6 of cluster 2" in {r.detail for r in rejections}

    report = json.loads((work / "coverage.json").read_text(encoding="utf-8"))
    assert [row["chosen"] for row in report["clusters"]] == [18, 4, 4]
    assert [row["queries"] for row in report["clusters"]] == [120, 30, 6]
    assert all("engine" in text for text in report["clusters"][1]["examples"])
    assert report["coverage"]["n"] == 26
    assert report["coverage"]["chosen"]["p95"] == pytest.approx(
        outcome.summary["coverage_p95"], abs=1e-4
    )


def test_semantic_duplicates_are_left_out_with_the_one_that_stays(tmp_path: Path) -> None:
    recipe = make_recipe(
        tmp_path, {"n": 100, "clusters": 3, "floor": 1, "semantic_duplicate": 0.93}
    )
    work = tmp_path / "work"
    outcome = run(recipe, work)
    chosen = {query.id for query in read_records(work / "queries.jsonl", Query)}
    twins = [
        r
        for r in read_records(work / "rejections.jsonl", Rejection)
        if r.reason == "semantic_duplicate"
    ]
    assert len(twins) == outcome.summary["semantic_duplicates"] > 0
    assert not chosen & {r.query_id for r in twins}
    assert all("nearly means what" in r.detail and "cosine 0.9" in r.detail for r in twins)


def test_a_user_cluster_is_kept_aside_and_labelled_queries_get_theirs(tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text(
        json.dumps({"text": TOPICS["engine"], "label": "b"})
        + "\n"
        + json.dumps({"text": TOPICS["bank"], "label": "a", "metadata": {"cluster": "mine"}})
        + "\n",
        encoding="utf-8",
    )
    recipe = make_recipe(tmp_path, {"n": 20, "clusters": 3}, labelled=str(labelled))
    work = tmp_path / "work"
    run(recipe, work)
    queries = list(read_records(work / "queries.jsonl", Query))
    assert queries[-1].id.startswith("labelled:")
    assert queries[-1].metadata == {"traffic_cluster": "mine", "cluster": 2}
    assert queries[-2].metadata == {"cluster": 1}
    assert len(queries) == 22


def test_equal_runs_choose_alike_and_the_seed_counts(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, {"n": 20, "method": "random", "clusters": 3})
    for name in "ab":
        run(recipe, tmp_path / name)
    assert hash_folder(tmp_path / "a") == hash_folder(tmp_path / "b")
    run(recipe.model_copy(update={"seed": 1}), tmp_path / "c")
    assert hash_folder(tmp_path / "a") != hash_folder(tmp_path / "c")


def test_more_than_there_are_is_all_of_them(tmp_path: Path) -> None:
    work = tmp_path / "work"
    outcome = run(make_recipe(tmp_path, {"n": 1000}), work)
    assert outcome.summary["queries"] == 156
    assert outcome.summary["coverage_p95"] == 0


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="floor: 9 of each of 3 groups are 24, more than n"):
        run(make_recipe(tmp_path, {"n": 20, "clusters": 3, "floor": 9}), tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())
    with pytest.raises(DataError, match="min_examples"):
        run(make_recipe(tmp_path, {"n": 2, "floor": 0}), tmp_path / "work")
    with pytest.raises(RecipeError, match="nothing is left to choose from"):
        make_recipe(tmp_path, {"n": 20}, limit=10)
    with pytest.raises(RecipeError, match="embedder"):
        make_recipe(tmp_path, {"n": 20, "embedder": "bert"})
