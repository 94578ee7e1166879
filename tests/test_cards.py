"""Dataset and model card: in the Hugging Face form, with terms and figures, from the run alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from doubles import doubles, recipe_of, write_rows
from stillhouse.core.errors import RecipeError
from stillhouse.core.lineage import pseudonym, read_lineage
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, message_key
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.stage_files import hash_file
from stillhouse.dataset.card import size_category
from stillhouse.dataset.checks import CHECKS
from stillhouse.evaluate.model_card import base_model
from stillhouse.pipeline import report_of, run_stages

STATED = {"may_train": True, "says": "the weights' licence", "on": "2026-11-01"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("cards")
    rows = [
        {"text": f"{word} number {n}", "user": f"user{n % 4}@example.test"}
        for n in range(12)
        for word in ("lovely", "awful")
    ]
    write_rows(folder / "traffic.jsonl", rows)
    root = folder / "run"
    recipe = made(folder)
    with doubles():
        run_stages(recipe, root, Silent(), last="train")
        before = (root / "train/student/README.md").read_text()
        assert "Not evaluated yet" in before
        run_stages(recipe, root, Silent())
    report_of(root)
    return RunFolder(root)


def made(folder: Path) -> Recipe:
    return recipe_of(folder, teacher={"model": "hf:some/teacher", "terms": STATED})


def card(path: Path) -> tuple[dict[str, Any], str]:
    empty, head, body = path.read_text(encoding="utf-8").split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(head), body


def test_the_dataset_card(run: RunFolder) -> None:
    head, body = card(run.stage("dataset") / "README.md")
    assert head["task_categories"] == ["text-classification"]
    assert head["size_categories"] == ["n<1K"]
    files = {one["split"]: one["path"] for one in head["configs"][0]["data_files"]}
    assert files == {"train": "train.jsonl", "test": "held_out.jsonl"}
    assert all((run.stage("dataset") / name).exists() for name in files.values())
    manifest = run.manifest("dataset")
    assert manifest is not None
    assert "README.md" not in manifest.outputs, "terms may be mended without a new dataset"
    for said in (manifest.output_hash, "hf:some/teacher", "the weights' licence", "fake-1"):
        assert said in body
    assert "4 users" in body
    assert "example.test" not in body


def test_the_model_card_has_the_report_s_figures(run: RunFolder) -> None:
    head, body = card(run.stage("train") / "student" / "README.md")
    report = json.loads((run.root / "report.json").read_text())
    score = report["student"]["score"]
    (metric,) = head["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == pytest.approx(score["estimate"], abs=1e-4)
    assert f"n {score['n']}" in metric["name"]
    assert head["pipeline_tag"] == "text-classification"
    assert head["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert head["license"] == "apache-2.0"
    assert "the weights' licence" in body
    assert report["gate"]["verdict"] in body
    manifest = run.manifest("dataset")
    assert manifest is not None
    assert manifest.output_hash in body
    for warning in report["warnings"]:
        assert warning in body


def test_the_hub_s_own_reader_takes_both(run: RunFolder) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (extra train)")
    dataset = hub.DatasetCard.load(run.stage("dataset") / "README.md")
    assert dataset.data.size_categories == ["n<1K"]
    model = hub.ModelCard.load(run.stage("train") / "student" / "README.md")
    assert model.data.eval_results[0].metric_type == "accuracy"


def test_the_cards_are_written_anew_where_the_terms_change(run: RunFolder, tmp_path: Path) -> None:
    recipe = made(run.root.parent)
    terms = {"waived_by": "Ada", "reason": "a trial"}
    changed = recipe_of(run.root.parent, teacher={"model": "hf:some/teacher", "terms": terms})
    with doubles():
        results = run_stages(changed, run.root, Silent())
        assert all(result.skipped for result in results if result.name != "evaluate")
        assert "waived by Ada" in (run.stage("dataset") / "README.md").read_text()
        run_stages(recipe, run.root, Silent())


def test_examples_carry_where_they_come_from(run: RunFolder) -> None:
    key = hash_file(run.stage("traffic") / "queries.jsonl")
    lines = (run.stage("dataset") / "train.jsonl").read_text().splitlines()
    users = {pseudonym(key, f"user{n}@example.test") for n in range(4)}
    for line in lines:
        example = Example.model_validate_json(line)
        assert example.prompt_hash == message_key(example.prompt)
        assert example.filters[: len(CHECKS)] == tuple(name for name, _ in CHECKS)
        assert "near_duplicate" in example.filters
        assert example.user in users
        assert example.teacher_revision == "fake-1"
        assert "example.test" not in line


def test_lineage_leads_from_the_dataset_to_its_student(run: RunFolder) -> None:
    manifest = run.manifest("dataset")
    assert manifest is not None
    found = read_lineage(run.root).datasets[manifest.output_hash]
    assert [model.kind for model in found.models.values()] == ["student"]
    assert found.users == 4
    assert "the weights' licence" in found.terms
    assert len((run.root / "lineage" / f"{manifest.output_hash}.users").read_text().split()) == 4


def test_a_run_without_terms_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    write_rows(tmp_path / "traffic.jsonl", [{"text": f"lovely {n}"} for n in range(9)])
    recipe = recipe_of(tmp_path, teacher={"model": "hf:some/teacher"})
    with doubles():
        with pytest.raises(RecipeError, match=r"teacher\.terms"):
            run_stages(recipe, tmp_path / "run", Silent(), last="ask")
        assert not (tmp_path / "run").exists()
        run_stages(recipe, tmp_path / "run", Silent(), last="traffic")
        forbidden = recipe_of(
            tmp_path, teacher={"model": "hf:some/teacher", "terms": {**STATED, "may_train": False}}
        )
        run_stages(forbidden, tmp_path / "run", Silent(), last="ask")
        with pytest.raises(RecipeError, match="may_train: is false"):
            run_stages(forbidden, tmp_path / "run", Silent(), last="train")


@pytest.mark.parametrize(
    ("source", "hub_id", "licence"),
    [
        ("embedded-encoder", "sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
        ("hf:org/model@main", "org/model", None),
        ("hf:FOLDER", None, "mit"),
        ("teacher", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    ],
)
def test_a_base_model_s_licence_is_said_where_it_is_known(
    source: str, hub_id: str | None, licence: str | None, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    student = {"head": "label", "from": source.replace("FOLDER", str(tmp_path))}
    found = base_model(recipe_of(tmp_path, student=student))
    assert (found.hub_id, found.licence) == (hub_id, licence)


@pytest.mark.parametrize("text", ["no front matter", "---\n: [\n---\n", "---\n- a\n---\n"])
def test_a_card_that_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    student = {"head": "label", "from": f"hf:{tmp_path}"}
    assert base_model(recipe_of(tmp_path, student=student)).licence is None


def test_sizes_have_the_hub_s_names() -> None:
    counts = (10, 1_000, 50_000, 10**9)
    assert [size_category(n) for n in counts] == ["n<1K", "1K<n<10K", "10K<n<100K", "n>10M"]
