"""The dataset stage with judge and floors, end to end: ask, judge, dataset, from files to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import judge_doubles as doubles
from stillhouse import pipeline
from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.jsonl import read_json, read_records, write_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe, resolve_paths
from stillhouse.core.records import Completion, Example, Query, Rejection
from stillhouse.core.runfolder import RunFolder
from stillhouse.dataset.stage import run_dataset
from stillhouse.pipeline import stage_key
from stillhouse.stages import STAGES, check_quality, stages_of
from stillhouse.teacher import judge_stage
from stillhouse.teacher.judge_stage import run_judge

WORDS = ["harbour", "lantern", "meadow", "copper", "violin", "orchard", "thunder", "saddle"]
WORDS += ["glacier", "pepper"]


class Said(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def recipe(gold: str = "gold.jsonl", **dataset: Any) -> Recipe:
    raw: dict[str, Any] = {
        "name": "r",
        "task": {"kind": "generation", "prompt": "Tell: {text}"},
        "traffic": {"path": "t.jsonl"},
        "teacher": {"model": "embedded"},
        "dataset": {"judge": {"model": "openai:m", "gold": gold}, "near_duplicate": 1.0} | dataset,
        "student": {"head": "text", "from": "hf:x"},
        "train": {"alpha": 0},
    }
    return parse_recipe(raw)


def gold_file(folder: Path) -> Path:
    path = folder / "gold.jsonl"
    rows = [
        {"text": f"{word} {i}", "answer": f"{kind} {word} {i}", "good": kind == "right"}
        for i in range(4)
        for word in WORDS
        for kind in ("right", "wrong")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_hard_clusters_do_not_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 easy queries are answered right; of 40 hard ones 4 are, and 4 have no valid answer."""
    monkeypatch.setattr(
        judge_stage, "open_teacher", lambda section, prices: doubles.double(doubles.perfect)
    )
    made = recipe(str(gold_file(tmp_path)), floor=0.5)
    task = made.task
    queries, completions = [], []
    for i in range(100):
        hard = i >= 60
        text = (
            "" if i >= 96 else f"{'right' if not hard or i < 64 else 'wrong'} {WORDS[i % 10]} {i}"
        )
        name = f"q{i}"
        queries.append(
            Query(
                id=name,
                messages=task.messages_for(f"{WORDS[i % 10]} " * (9 if hard else 2) + str(i)),
                metadata={"cluster": "hard" if hard else "easy"},
            )
        )
        completions.append(Completion(query_id=name, text=text, model="t", revision="r"))
    folders = {name: tmp_path / name for name in ("traffic", "ask", "judge", "dataset")}
    for folder in folders.values():
        folder.mkdir()
    write_records(folders["traffic"] / "queries.jsonl", queries)
    write_records(folders["ask"] / "completions.jsonl", completions)
    lines = Said()
    run_judge(
        made,
        folders["traffic"],
        folders["ask"],
        tmp_path / "store",
        folders["judge"],
        lines,
        lambda query, completion: completion.text or None,
    )
    outcome = run_dataset(
        made, folders["traffic"], folders["ask"], folders["dataset"], lines, folders["judge"]
    )
    report: Any = read_json(folders["dataset"] / "dataset.json")
    easy, hard = (
        next(c for c in report["by_cluster"]["clusters"] if c["cluster"] == name)
        for name in ("easy", "hard")
    )
    assert (easy["queries"], easy["accepted"], easy["readmitted"]) == (60, 60, 0)
    assert (hard["queries"], hard["accepted"], hard["readmitted"]) == (40, 4, 16)
    assert hard["top_reason"] == "judge"
    assert report["by_cluster"]["low"] == ["hard"]
    assert report["readmitted"] == {"judge": 16}
    assert outcome.summary["readmitted"] == 16
    assert report["rejections"] == {"judge": 16, "empty": 4}
    assert report["judge"]["rate"]["raw"]["estimate"] == pytest.approx(64 / 96)
    parts = report["by_difficulty"]["parts"]
    assert report["by_difficulty"]["measure"] == "words of the query"
    assert parts[0]["accepted"] == parts[0]["queries"]
    assert parts[-1]["accepted"] < parts[-1]["queries"]
    examples = [
        e
        for name in ("train", "held_out")
        for e in read_records(folders["dataset"] / f"{name}.jsonl", Example)
    ]
    assert sum(e.readmitted == "judge" for e in examples) == 16
    assert len(examples) == 80
    rejected = {
        r.query_id for r in read_records(folders["dataset"] / "rejections.jsonl", Rejection)
    }
    assert rejected | {e.id for e in examples} == {q.id for q in queries}
    assert not rejected & {e.id for e in examples}
    said = "\n".join(lines.lines)
    assert "acceptance 64% of 100 queries; the lowest of 2 clusters: 'hard' 4 of 40" in said
    assert "warning: clusters below dataset.floor 50%: 'hard' 4 of 40, mostly judge; 16 ans" in said
    assert "acceptance by difficulty (words of the query): 100% of the easiest part" in said

    bare = made.model_copy(update={"dataset": made.dataset.model_copy(update={"floor": None})})
    lines.lines.clear()
    run_dataset(
        bare, folders["traffic"], folders["ask"], folders["dataset"], lines, folders["judge"]
    )
    assert "less than half the acceptance of the whole: 'hard' 4 of 40" in "\n".join(lines.lines)


def test_members_answers_are_read_where_the_teacher_is_an_ensemble(tmp_path: Path) -> None:
    raw = recipe(judge=None).model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["teacher"] = {"model": "ensemble", "members": [{"model": f"openai:{m}"} for m in "abc"]}
    raw["dataset"] = {"near_duplicate": 1.0, "agreement": 0.6, "min_examples": 2}
    made = parse_recipe(raw)
    queries = [Query(id=f"q{i}", messages=made.task.messages_for(f"text {i}")) for i in range(30)]
    for name in ("traffic", "ask", "dataset"):
        (tmp_path / name).mkdir()
    write_records(tmp_path / "traffic" / "queries.jsonl", queries)

    def answer(query: Query, text: str, model: str) -> Completion:
        return Completion(query_id=query.id, text=text, model=model, revision="r")

    write_records(
        tmp_path / "ask" / "completions.jsonl",
        [answer(q, f"Same answer {q.id}.", "both") for q in queries],
    )
    write_records(
        tmp_path / "ask" / "member_completions.jsonl",
        [
            answer(q, f"Same answer {q.id}." if i % 2 or m == "a" else "Xyz!", m)
            for i, q in enumerate(queries)
            for m in ("a", "b")
        ],
    )
    run_dataset(made, tmp_path / "traffic", tmp_path / "ask", tmp_path / "dataset", Silent())
    report: Any = read_json(tmp_path / "dataset" / "dataset.json")
    assert report["examples"] == 15
    assert report["rejections"] == {"agreement": 15}
    assert report["judge"] is None


# --- the recipe and the pipeline ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ({"best_of": "judge", "judge": None}, "best_of: judge needs the section dataset.judge"),
        ({"consistency": 0.5}, "teacher.samples"),
        ({"best_of": "judge"}, "best_of: judge chooses among.*teacher.samples of 2 or more"),
        ({"best_of": "likelihood"}, "best_of: likelihood chooses among"),
        ({"agreement": 0.5}, "agreement needs several teachers"),
        ({"judge": {"model": "openai:m"}}, "gold"),
        ({"judge": {"model": "gpt", "gold": "g"}}, "must be one of|must be openai"),
        ({"judge": {"model": "openai-compatible:m", "gold": "g"}}, "base_url is required"),
        ({"judge": {"model": "openai:m", "gold": "g", "mode": "pairwise"}}, "best_of: judge"),
        ({"min_chars": 9, "max_chars": 3}, "min_chars must not be above"),
        ({"floor": 0}, "floor"),
        ({"validators": {"must_match": ["("]}}, "is no regular expression"),
    ],
)
def test_recipes_that_cannot_be(dataset: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        recipe(**dataset)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "dataset", [{"consistency": 0.5}, {"best_of": "likelihood"}, {"best_of": "judge"}]
)
def test_an_ensemble_gives_one_answer_to_choose_from(dataset: dict[str, Any]) -> None:
    raw = recipe().model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["teacher"] = {
        "model": "ensemble",
        "samples": 3,
        "sampling_temperature": 1.0,
        "members": [{"model": f"openai:{name}"} for name in "abc"],
    }
    raw["dataset"] = raw["dataset"] | dataset
    with pytest.raises(RecipeError, match=r"an ensemble gives one; use dataset\.agreement"):
        parse_recipe(raw)


def test_a_key_pasted_into_the_judge_is_not_shown() -> None:
    judge = {"model": "openai:m", "gold": "g", "api_key_env": "sk-secret-0123456789"}
    with pytest.raises(RecipeError) as caught:
        recipe(judge=judge)
    assert "secret" not in str(caught.value)


def test_the_gold_path_is_seen_from_the_recipe(tmp_path: Path) -> None:
    found = resolve_paths(recipe(), tmp_path)
    assert found.dataset.judge is not None
    assert found.dataset.judge.gold == str(tmp_path / "gold.jsonl")


def test_the_judge_is_a_stage_only_where_there_is_one() -> None:
    names = [stage.name for stage in stages_of(recipe())]
    assert names[names.index("ask") + 1 : names.index("dataset") + 1] == ["judge", "dataset"]
    assert "judge" not in [stage.name for stage in stages_of(recipe(judge=None))]
    with pytest.raises(RecipeError, match=r"give dataset\.judge to have it"):
        pipeline.run_stages(recipe(judge=None), Path("nowhere"), Silent(), last="judge")


def test_gold_and_function_are_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "key_checks.py"
    module.write_text("def check(query, text):\n    return None\n")
    path = gold_file(tmp_path)
    made = recipe(str(path), validators={"function": "key_checks:check"})
    judge, dataset = (
        next(one for one in STAGES if one.name == name) for name in ("judge", "dataset")
    )

    def digests() -> list[str]:
        return [stage_key(one, made, RunFolder(tmp_path)).digest for one in (judge, dataset)]

    first = digests()
    path.write_text(path.read_text() + "\n")
    second = digests()
    assert (first[0] != second[0], first[1] == second[1]) == (True, True)
    module.write_text("def check(query, text):\n    return True\n")
    third = digests()
    assert second[0] != third[0]
    assert second[1] != third[1]


def test_what_cannot_be_used_is_said_before_anything_is_paid(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        check_quality(recipe(str(tmp_path / "none.jsonl")))
    with pytest.raises(UserError, match="there is no module"):
        check_quality(recipe(judge=None, validators={"function": "no_such_module_here:f"}))
    check_quality(recipe(str(gold_file(tmp_path))))
