"""What a stage's key holds, and which reports are refused. No model runs here."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse import pipeline
from stillhouse.core.errors import RecipeError
from stillhouse.core.jsonl import write_json
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.runfolder import Outcome, RunFolder
from stillhouse.pipeline import RECIPE_FILE, report_of, stage_key
from stillhouse.stages import STAGES, stages_of


def recipe(**changes: object) -> Recipe:
    raw: dict[str, object] = {
        "name": "t",
        "task": {"kind": "classification", "labels": ["a", "b"]},
        "traffic": {"path": "nowhere.jsonl", "labelled": "nowhere.jsonl"},
        "teacher": {"model": "embedded"},
        "student": {"head": "label", "from": "embedded-encoder"},
    }
    return parse_recipe({**raw, **changes})


def start(run: RunFolder, made: Recipe, names: set[str], content: str = "x") -> None:
    """Finish these stages of a run, without doing their work."""
    write_json(run.root / RECIPE_FILE, made.model_dump(mode="json", by_alias=True))
    for stage in stages_of(made):
        if stage.name in names:
            key = stage_key(stage, made, run)
            (run.open_partial(key) / "out.txt").write_text(content)
            run.finish(key, Outcome(), 1.0, 1.0)


ALL = {stage.name for stage in STAGES}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(pipeline, "write_report", lambda recipe, run: "written")
    found = RunFolder(tmp_path)
    start(found, recipe(), ALL)
    return found


def test_a_finished_run_is_reported_without_its_files(run: RunFolder) -> None:
    assert report_of(run.root) == "written"


def test_a_newer_run_that_stopped_in_training_is_not_reported(run: RunFolder) -> None:
    start(run, recipe(train={"epochs": 9}), set())
    with pytest.raises(RecipeError, match="did not finish: its stage train is of an earlier one"):
        report_of(run.root)


def test_a_newer_run_that_stopped_after_training_is_not_reported(run: RunFolder) -> None:
    start(run, recipe(), {"train"}, content="new weights")
    with pytest.raises(RecipeError, match="did not finish: its stage evaluate") as caught:
        report_of(run.root)
    assert "\n" not in str(caught.value)


def test_a_run_of_another_seed_is_not_reported(run: RunFolder) -> None:
    start(run, recipe(seed=3), {"traffic"})
    with pytest.raises(RecipeError, match="its stage check"):
        report_of(run.root)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("check", {"evaluate": {"confidence": 0.9}}),
        ("traffic", {"dataset": {"near_duplicate": 0.7}}),
        ("dataset", {"train": {"alpha": 0.0}}),
    ],
)
def test_what_a_stage_reads_is_in_its_key(
    run: RunFolder, stage: str, changes: dict[str, object]
) -> None:
    found = next(one for one in STAGES if one.name == stage)
    assert stage_key(found, recipe(), run).digest != stage_key(found, recipe(**changes), run).digest


def test_expansion_is_a_stage_where_the_recipe_asks_for_it(tmp_path: Path) -> None:
    assert "expand" not in [stage.name for stage in stages_of(recipe())]
    traffic = {"path": "nowhere.jsonl", "expand": {"n": 5, "per_cluster": 3}}
    made = recipe(traffic=traffic)
    names = [stage.name for stage in stages_of(made)]
    assert names[:3] == ["traffic", "expand", "ask"]
    run = RunFolder(tmp_path)
    start(run, made, {"traffic", "expand"})
    stages = {stage.name: stage for stage in STAGES}
    before = stage_key(stages["dataset"], made, run).digest
    start(run, made, {"expand"}, "other queries")
    assert stage_key(stages["dataset"], made, run).digest != before
    wider = recipe(traffic={**traffic, "expand": {"n": 6, "per_cluster": 3}})
    assert stage_key(stages["traffic"], made, run) == stage_key(stages["traffic"], wider, run)


def test_a_replayed_run_counts_by_its_store_alone(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "store").mkdir(parents=True)
    store, page = other / "store" / "answers.jsonl", other / "report.html"
    store.write_text("one\n")
    page.write_text("a page")
    gold = tmp_path / "gold.jsonl"
    gold.write_text("{}\n")
    model = f"replay:{other}"
    made = recipe(teacher={"model": model}, dataset={"judge": {"model": model, "gold": str(gold)}})

    def keys() -> list[str]:
        stages = [stage for stage in STAGES if stage.name in ("ask", "judge")]
        return [stage_key(stage, made, RunFolder(tmp_path / "run")).digest for stage in stages]

    before = keys()
    page.write_text("another page")
    assert keys() == before
    store.write_text("two\n")
    assert all(now != then for now, then in zip(keys(), before, strict=True))


def model_in(folder: Path) -> Path:
    """The files of a model; nothing opens them."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("prefix", ["scratch:", "scratch:hf:"])
def test_a_shape_from_scratch_counts_by_its_config_and_tokenizer(
    tmp_path: Path, prefix: str
) -> None:
    folder = model_in(tmp_path / "shape")
    made = recipe(student={"head": "label", "from": f"{prefix}{folder}"})
    train = next(one for one in STAGES if one.name == "train")
    run = RunFolder(tmp_path / "run")

    def digest() -> str:
        return stage_key(train, made, run).digest

    before = digest()
    (folder / "model.safetensors").write_text("other weights, which are not read")
    assert digest() == before
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text('{"other": true}')
        assert digest() != before
        before = digest()


def test_a_teacher_that_reads_along_counts_by_its_weights_and_costs_no_answer(
    tmp_path: Path,
) -> None:
    folder = model_in(tmp_path / "reader")
    made = recipe(
        task={"kind": "generation"},
        traffic={"path": "nowhere.jsonl"},
        student={"head": "text", "from": "embedded"},
        train={"teachers": {"members": [{"model": f"hf:{folder}"}]}},
    )
    stages = {stage.name: stage for stage in STAGES}
    run = RunFolder(tmp_path / "run")
    before = {name: stage_key(stages[name], made, run).digest for name in ("ask", "train")}
    (folder / "model.safetensors").write_text("other weights")
    assert stage_key(stages["ask"], made, run).digest == before["ask"]
    assert stage_key(stages["train"], made, run).digest != before["train"]
