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
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.candidates import load_sets
from stillhouse.evaluate.compressed import read_table
from stillhouse.evaluate.results import Prediction
from stillhouse.models.loading import count_parameters, load_tagger
from stillhouse.pipeline import report_of, run_stages
from stillhouse.serve.student_brains import open_brain
from stillhouse.serve.student_labels import Opening
from stillhouse.serve.student_local import ask_all
from stillhouse.study_frontier import run_frontier, sized_variants
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


@pytest.mark.full
def test_its_onnx_forms_are_made_gated_described_and_served(tmp_path: Path) -> None:
    """INT8 may be slower than floats at this size: what is judged here are the answers."""
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    compress = {
        "formats": ["onnx", "onnx-int8", "onnx-int8-static"],
        "margin_teacher": 0.2,
        "margin_student": 0.2,
        "min_speedup": 0.001,
        "speed_repeats": 1,
        "latency_queries": 2,
        "cold_starts": 1,
    }
    with serve(teacher_says) as server:
        recipe = load_recipe(project(tmp_path, server, compress=compress))
        results = run_stages(recipe, tmp_path / "run", Silent())
    assert results[-1].name == "compress"
    folder = tmp_path / "run" / "compress"
    table = read_table(folder)
    assert table.left_out == {}
    assert (table.metric, table.main) == ("field_f1", "golden")
    student, *forms = table.rows
    assert [row.name for row in forms] == compress["formats"]
    assert [row.precision for row in forms] == ["float32", "int8", "int8-static"]
    for row in forms:
        assert row.verdict == "pass", row.sentence
        assert row.agreement_student is not None
        assert row.agreement_student.estimate > 0.9
        assert row.retention_student is not None
        assert row.retention_teacher is not None
        assert row.speed.qps > 0
        assert row.footprint.cold_start_s > 0
        assert (row.divergence_student, row.tokens_per_s) == (None, None)
        assert set(row.sets) == {"golden", "held_out"}
    assert forms[0].agreement_student.estimate == 1
    assert forms[0].sets["golden"].score == student.sets["golden"].score
    assert table.best is not None
    assert (folder / "best" / "artefact.json").is_file()
    text = (folder / "onnx-int8" / "README.md").read_text()
    card = yaml.safe_load(text.split("---")[1])
    assert (card["library_name"], card["pipeline_tag"]) == ("onnx", "token-classification")
    assert "A token classifier distilled from" in text
    assert report_of(tmp_path / "run").compress == table

    # What is served says what was judged; its ranges are fixed, so company changes nothing.
    queries = load_sets(recipe, RunFolder(tmp_path / "run"))[0].queries
    bodies = [{"messages": [one.model_dump() for one in query.messages]} for query in queries]
    lines = [
        line
        for line in read_records(folder / "predictions.jsonl", Prediction)
        if line.set == "golden"
    ]
    for name in ("onnx", "onnx-int8-static"):
        brain = open_brain(Opening(folder / name, "tags", recipe.task, "words", 8, 40))
        said = ask_all(brain, bodies, 7, lambda _: None)
        served = [one.body["choices"][0]["message"]["content"] for one in said]
        assert served == [line.answers[name] for line in lines]
    assert len(lines) == 60

    wanted = Wanted(error=0.3, delta=0.2, samples="golden")
    gate = calibrate(tmp_path / "run", wanted, Silent()).gate
    assert gate.threshold is not None, "a form's log-probabilities say how sure it is"


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
        # also where a study alone has the head
        raw = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
        tags = f"head=tags,from='{raw['student']['from']}',layers=1"
        raw["student"] = {"head": "text", "from": "embedded"}
        (tmp_path / "text.yaml").write_text(yaml.safe_dump(raw))
        written = load_recipe(tmp_path / "text.yaml")
        variants = sized_variants(written, [], [tags])
        with pytest.raises(UserError, match=r"properties\.blame: 40 of its 40 values in the labe"):
            run_frontier(written, tmp_path / "study", variants, Silent())
        # as studies and `tune` do, which train in folders of their own
        with pytest.raises(UserError, match=r"properties\.blame: 40 of its 40 values in the labe"):
            run_stages(recipe, tmp_path / "run", Silent(), last="dataset")
        assert not server.bodies
