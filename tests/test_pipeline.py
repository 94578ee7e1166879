"""The whole run on tiny models: order, skipping, resume after SIGKILL, equal files, bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stillhouse.core.errors import DataError, RecipeError, RunFolderError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.pipeline import report_of, run_stages
from stillhouse.stages import STAGES
from tiny_models import byte_bpe, tiny_bert, tiny_llama, wordpiece

TESTS = Path(__file__).parent
GOOD = ["gripping", "wonderful", "funny", "warm", "moving"]
BAD = ["dull", "boring", "tired", "lifeless", "long"]
FILLER = ["the", "film", "and", "story", "cast", "script", "plot", "is", "start", "never"]

# Those of a recipe without expansion and judge.
STAGE_NAMES = tuple(
    stage.name
    for stage in STAGES
    if stage.name not in ("expand", "judge", "capture", "prune", "compress", "speculate")
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reviews(count: int, seed: int) -> list[dict[str, str]]:
    """Distinct short texts whose label can be read from one word."""
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label, words = draw.choice((("positive", GOOD), ("negative", BAD)))
        text = " ".join([*draw.choices(FILLER, k=5), draw.choice(words)])
        rows[text] = label
    return [{"text": text, "label": label} for text, label in rows.items()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: recipe.yaml, data, and two tiny local models."""
    folder = tmp_path_factory.mktemp("project")
    lm, encoder = folder / "lm", folder / "encoder"
    bpe, pieces = byte_bpe(), wordpiece()
    bpe.save_pretrained(lm)
    tiny_llama(bpe).save_pretrained(lm)
    pieces.save_pretrained(encoder)
    tiny_bert(pieces, dropout=0.1).save_pretrained(encoder)
    rows = reviews(350, seed=1)
    write(folder / "traffic.jsonl", [{"text": row["text"]} for row in rows[:160]])
    write(folder / "labelled.jsonl", rows[160:280])
    write(folder / "golden.jsonl", rows[280:])
    recipe = {
        "name": "tiny",
        "task": {
            "kind": "classification",
            "name": "verdict",
            "prompt": "{text}",
            "labels": ["positive", "negative"],
        },
        "traffic": {name: f"{name}.jsonl" for name in ("labelled", "golden")}
        | {"path": "traffic.jsonl"},
        "teacher": {
            "model": f"hf:{lm}",
            "terms": {"waived_by": "the tests", "reason": "its weights are random"},
            "tune": {"epochs": 30, "learning_rate": 1e-2, "batch_size": 8},
        },
        "dataset": {"near_duplicate": 1.0},
        "student": {"head": "label", "from": f"hf:{encoder}", "layers": 2, "max_tokens": 32},
        "train": {"epochs": 2, "learning_rate": 3e-3, "batch_size": 16, "hard_label_twin": True},
        "evaluate": {"resamples": 200, "speed_queries": 8, "speed_repeats": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def finished(project: Path) -> Path:
    """The run folder of an uninterrupted run."""
    root = project / "run"
    results = run_stages(load_recipe(project / "recipe.yaml"), root, Silent())
    assert [result.name for result in results] == list(STAGE_NAMES)
    assert not any(result.skipped for result in results)
    return root


def hashes(root: Path) -> dict[str, Any]:
    run = RunFolder(root)
    found = {}
    for name in STAGE_NAMES:
        manifest = run.manifest(name)
        assert manifest is not None, name
        found[name] = dict(manifest.outputs)
    return found


def test_a_finished_run_has_a_report_and_no_working_folder(finished: Path) -> None:
    report = report_of(finished)
    assert report.gate.verdict in ("pass", "fail")
    assert report.teacher.score.n == report.student.score.n == 70
    assert report.size.ratio is not None
    assert report.speed.ratio is not None
    assert set(report.seconds) >= {"total", *STAGE_NAMES}
    assert json.loads((finished / "report.json").read_text())["name"] == "tiny"
    assert (finished / "report.html").read_text().startswith("<!doctype html>")
    assert not list(finished.glob("*.partial"))


def test_the_second_run_does_nothing(project: Path, finished: Path) -> None:
    before = hashes(finished)
    results = run_stages(load_recipe(project / "recipe.yaml"), finished, Silent())
    assert all(result.skipped for result in results)
    assert hashes(finished) == before


@pytest.mark.full
def test_two_runs_give_equal_artifacts(project: Path, finished: Path) -> None:
    other = project / "other"
    run_stages(load_recipe(project / "recipe.yaml"), other, Silent())
    assert hashes(other) == hashes(finished)


def test_a_changed_section_runs_its_stage_and_what_follows(project: Path, finished: Path) -> None:
    recipe = load_recipe(project / "recipe.yaml", ["train.learning_rate=0.002"])
    results = run_stages(recipe, finished, Silent())
    assert {r.name for r in results if not r.skipped} == {"train", "evaluate"}
    run_stages(load_recipe(project / "recipe.yaml"), finished, Silent())


def test_settings_that_change_no_answer_ask_nothing_again(project: Path, finished: Path) -> None:
    recipe = load_recipe(project / "recipe.yaml", ["teacher.concurrency=3", "teacher.retries=1"])
    assert all(result.skipped for result in run_stages(recipe, finished, Silent()))


def stored_keys(root: Path) -> Counter[tuple[str, ...]]:
    lines = (root / "store" / "answers.jsonl").read_text().splitlines()
    assert lines
    rows = [json.loads(line) for line in lines]
    return Counter((row["teacher"], row["chat"], row["sampling"]) for row in rows)


EVERYWHERE = ("traffic", "tune", "check:5", "check", "ask:40", *STAGE_NAMES[3:])
SOME = ("ask:40", "train")


@pytest.mark.parametrize(
    "moments", [SOME, pytest.param(EVERYWHERE, marks=pytest.mark.full)], ids=["some", "every"]
)
def test_killed_in_its_stages_it_ends_the_same_and_asks_once(
    project: Path, finished: Path, moments: tuple[str, ...]
) -> None:
    root = project / f"killed{len(moments)}"
    for where in moments:
        done = subprocess.run(
            [
                sys.executable,
                str(TESTS / "killed_pipeline.py"),
                str(project / "recipe.yaml"),
                str(root),
                where,
            ],
            capture_output=True,
            text=True,
            check=False,
            # as many threads as here: sums in another order give other last digits
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == -signal.SIGKILL, (where, done.stderr)
    run_stages(load_recipe(project / "recipe.yaml"), root, Silent())
    asked = stored_keys(root)
    assert asked == stored_keys(finished)
    assert set(asked.values()) == {1}

    def answers(run: Path) -> list[tuple[str, str]]:
        lines = (run / "ask" / "completions.jsonl").read_text().splitlines()
        return [(row["query_id"], row["text"]) for row in map(json.loads, lines)]

    assert answers(root) == answers(finished)
    assert report_of(root).gate.verdict == report_of(finished).gate.verdict


def test_two_runs_in_one_folder_are_an_error(project: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked(), pytest.raises(RunFolderError, match="another run"):
        run_stages(load_recipe(project / "recipe.yaml"), tmp_path, Silent())


BAD_INPUT: dict[str, tuple[list[str], dict[str, list[str]], str]] = {
    "missing file": (["traffic.path=nowhere.jsonl"], {}, "nowhere.jsonl.*no such file"),
    "not JSON": ([], {"traffic.jsonl": ['{"text": "a"}', "{oops"]}, "line 2.*not valid JSON"),
    "empty task": ([], {"traffic.jsonl": []}, "traffic.jsonl"),
    "label outside the set": (
        [],
        {
            "labelled.jsonl": [
                '{"text": "a", "label": "positive"}',
                '{"text": "b", "label": "good"}',
            ]
        },
        "line 2.*good",
    ),
    "one class": (
        [],
        {"labelled.jsonl": [f'{{"text": "a{n}", "label": "positive"}}' for n in range(60)]},
        "labelled.jsonl",
    ),
    "too few": (
        ["dataset.min_examples=150"],
        {"traffic.jsonl": [f'{{"text": "film number {n}"}}' for n in range(60)]},
        "150",
    ),
    "no model folder": (["teacher.model=hf:./nowhere", "teacher.tune=null"], {}, "nowhere"),
    "no key": (["teacher.model=openai:gpt-4.1", "teacher.tune=null"], {}, "OPENAI_API_KEY"),
    "no gguf": (["teacher.model=gguf:nowhere.gguf", "teacher.tune=null"], {}, "nowhere.gguf"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(
    case: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, files, expected = BAD_INPUT[case]
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("recipe.yaml", "traffic.jsonl", "labelled.jsonl", "golden.jsonl"):
        (tmp_path / name).write_bytes((project / name).read_bytes())
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    with pytest.raises(UserError, match=expected) as caught:
        run_stages(load_recipe(tmp_path / "recipe.yaml", overrides), tmp_path / "run", Silent())
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("*/manifest.json")) or case in (
        "no model folder",
        "no key",
        "no gguf",
    )


def test_a_model_folder_without_tokenizer_is_named(project: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    tiny_bert(wordpiece()).save_pretrained(bare)
    recipe = load_recipe(project / "recipe.yaml", [f"student.from=hf:{bare}"])
    with pytest.raises(UserError, match="tokenizer"):
        run_stages(recipe, project / "run", Silent())


def test_tuning_a_gguf_is_refused_when_planned(project: Path) -> None:
    with pytest.raises(RecipeError, match="tune needs a teacher with trainable weights"):
        load_recipe(project / "recipe.yaml", ["teacher.model=gguf:some.gguf"])


def test_an_unusable_teacher_is_named_with_its_answer(project: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        project / "recipe.yaml", ["teacher.signals=none", "teacher.tune=null", "train.alpha=0.5"]
    )
    with pytest.raises(RecipeError, match=r"train\.alpha"):
        run_stages(recipe, tmp_path / "run", Silent())


def test_one_class_of_answers_stops_before_training(project: Path, tmp_path: Path) -> None:
    write(tmp_path / "same.jsonl", [{"text": f"a boring film, number {n}"} for n in range(60)])
    recipe = load_recipe(
        project / "recipe.yaml",
        [f"traffic.path={tmp_path / 'same.jsonl'}", "traffic.use_labelled=false"],
    )
    with pytest.raises(DataError, match="are of one class"):
        run_stages(recipe, project / "one-class", Silent(), last="dataset")
    assert (project / "one-class" / "store" / "answers.jsonl").exists()
