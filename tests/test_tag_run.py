"""`run` with a tag student to its end: a teacher behind HTTP, report and card; what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stillhouse.calibrating import Wanted, calibrate
from stillhouse.core.errors import UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.models.loading import count_parameters, load_tagger
from stillhouse.pipeline import report_of, run_stages
from teacher_servers import Loopback, openai_answer, serve
from tiny_models import tiny_bert, wordpiece
from tiny_tags import BLAME, PRAISE, RAW_TASK

WAIVED = {"waived_by": "the tests", "reason": "no real teacher"}
TEXTS = [
    f"{start} {good} {noun} and {end} {bad} story"
    for start in ("a", "the")
    for end in ("a", "the")
    for noun in ("film", "cast", "plot", "script")
    for good in PRAISE
    for bad in BLAME
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def truth(text: str) -> str:
    words = text.split()
    found = {"praise": PRAISE, "blame": BLAME}
    return json.dumps({k: next(w for w in words if w in known) for k, known in found.items()})


def teacher_says(body: dict[str, Any], number: int) -> Any:
    """The truth, but that it invents some praise."""
    text = body["messages"][-1]["content"].removesuffix("\nJSON:")
    answer = json.loads(truth(text))
    if text.startswith("a warm film"):
        answer["praise"] = "clever"
    return openai_answer(json.dumps(answer), usage=(20, 9))


def project(folder: Path, server: Loopback, **sections: Any) -> Path:
    tokenizer = wordpiece()
    tokenizer.save_pretrained(folder / "encoder")
    tiny_bert(tokenizer).save_pretrained(folder / "encoder")
    order = [TEXTS[7 * n % len(TEXTS)] for n in range(len(TEXTS))]
    golden, labelled, traffic = order[:60], order[60:100], order[100:340]
    rows = {
        "traffic": [{"text": text} for text in traffic],
        "labelled": [{"text": text, "label": truth(text)} for text in labelled],
        # what nobody can copy: teacher and student alike miss it
        "golden": [
            {"text": text, "label": truth(text).replace("funny", "amusing")} for text in golden
        ],
    }
    for name, part in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    raw = {
        "name": "tagged",
        "task": RAW_TASK,
        "traffic": {
            "path": "traffic.jsonl",
            "labelled": "labelled.jsonl",
            "golden": "golden.jsonl",
        },
        "teacher": {
            "model": "openai-compatible:m",
            "base_url": server.url + "/v1",
            "terms": WAIVED,
        },
        "dataset": {"near_duplicate": 1.0},
        "student": {"head": "tags", "from": f"hf:{folder / 'encoder'}", "layers": 1},
        "train": {"alpha": 0, "epochs": 6, "learning_rate": 1e-2, "batch_size": 8, "evals": 3},
        "evaluate": {"resamples": 100, "speed_queries": 8, "speed_repeats": 1},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def test_a_tag_student_is_trained_judged_and_described(tmp_path: Path) -> None:
    with serve(teacher_says) as server:
        recipe = load_recipe(project(tmp_path, server))
        run_stages(recipe, tmp_path / "run", Silent())
        asked = len(server.bodies)
        run_stages(recipe, tmp_path / "run", Silent())
        assert len(server.bodies) == asked, "all is up to date"
    report = report_of(tmp_path / "run")
    assert report.metric == "field_f1"
    assert 0.85 < report.student.score.estimate < 0.95
    assert report.retention is not None
    assert report.retention.estimate > 0.95
    assert report.fidelity.agreement.estimate > 0.5
    assert report.speed.student_qps > 0
    (lost,) = [line for line in report.warnings if "are not in their texts" in line]
    told = json.loads((tmp_path / "run" / "train" / "train.json").read_text())["tags"]
    assert lost == told["said"]
    assert (
        0
        < told["values"] - told["found"]
        == told["fields"]["praise"]["values"] - told["fields"]["praise"]["found"]
    )
    student = tmp_path / "run" / "train" / "student"
    card = yaml.safe_load((student / "README.md").read_text().split("---")[1])
    assert card["pipeline_tag"] == "token-classification"
    assert "A token classifier distilled from" in (student / "README.md").read_text()
    assert report.student.parameters == count_parameters(load_tagger(str(student)).model)

    wanted = Wanted(error=0.3, delta=0.2, samples="golden")
    gate = calibrate(tmp_path / "run", wanted, Silent()).gate
    assert gate.threshold is not None, "its log-probabilities say how sure it is"
    assert gate.task == recipe.task


def test_answers_that_cannot_be_copied_are_found_before_the_teacher_is_asked(
    tmp_path: Path,
) -> None:
    with serve(teacher_says) as server:
        recipe = load_recipe(project(tmp_path, server))
        rows = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
        for row in rows:
            row["label"] = json.dumps({**json.loads(row["label"]), "blame": "negative"})
        (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        with pytest.raises(UserError, match=r"properties\.blame: 40 of its 40 values in the labe"):
            run_stages(recipe, tmp_path / "run", Silent())
        # as studies and `tune` do, which train in folders of their own
        with pytest.raises(UserError, match=r"properties\.blame: 40 of its 40 values in the labe"):
            run_stages(recipe, tmp_path / "run", Silent(), last="dataset")
        assert not server.bodies
