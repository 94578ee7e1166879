"""The compress stage on a run of doubles: every artefact judged again, refused with its figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from compress_doubles import LIKE, SLOW_S, Made, Workshop, evaluated
from stillhouse import compressing
from stillhouse.compress.retrained import Retrain
from stillhouse.compress.stage import run_compress
from stillhouse.core.artefact import read_artefact, student_sha
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import Manifest, RunFolder, StageKey
from stillhouse.evaluate.compressed import CompressedTable, read_table
from stillhouse.evaluate.report_files import write_report
from stillhouse.evaluate.results import Prediction
from synthetic_run import Double, completion_of, golden_query, make_recipe

FORMATS = ("onnx", "onnx-int8", "onnx-int8-static")


def recipe_of(**compress: object) -> Recipe:
    return make_recipe(
        evaluate={"resamples": 100, "speed_repeats": 1},
        compress={
            "formats": list(FORMATS),
            "margin_teacher": 0.1,
            "speed_repeats": 1,
            "cold_starts": 1,
            **compress,
        },
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that is evaluated; no test writes in it."""
    with pytest.MonkeyPatch.context() as patch:
        return evaluated(tmp_path_factory.mktemp("judged") / "run", recipe_of(), patch)


@pytest.fixture
def run(judged: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(judged.root, tmp_path / "run", symlinks=True)
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def done(judged: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same, compressed; no test writes in it but a report."""
    root = tmp_path_factory.mktemp("done") / "run"
    shutil.copytree(judged.root, root, symlinks=True)
    compress(RunFolder(root), recipe_of(), Workshop())
    return RunFolder(root)


def key(recipe: Recipe) -> StageKey:
    return StageKey("compress", {}, {}, {}, recipe.seed)


def compress(run: RunFolder, recipe: Recipe, shop: Workshop) -> Manifest:
    work = run.open_partial(key(recipe))
    outcome = run_compress(recipe, run, work, Silent(), tools=shop.tools)
    return run.finish(key(recipe), outcome, 1.0, 100.0)


def table_of(run: RunFolder) -> CompressedTable:
    return read_table(run.stage("compress"))


def test_each_artefact_is_judged_on_the_same_samples_and_the_smallest_that_passes_is_named(
    done: RunFolder,
) -> None:
    recipe, run = recipe_of(), done
    table = table_of(run)
    assert [row.name for row in table.rows] == ["student", *FORMATS]
    assert table.best == "onnx-int8"
    best = run.stage("compress") / "best"
    assert best.is_symlink()
    assert read_artefact(best) == read_artefact(run.stage("compress") / "onnx-int8")

    queries = [golden_query(recipe, n) for n in range(10_000, 10_200)]
    float_student = Double("student", 0.17, 1, 1)
    for row in table.artefacts:
        double = Double(row.name, LIKE[row.name].errors, 1, 1)  # type: ignore[index]
        texts = [completion_of(double, query).text for query in queries]
        parents = [completion_of(float_student, query).text for query in queries]
        right = sum(text == query.reference for text, query in zip(texts, queries, strict=True))
        same = sum(a == b for a, b in zip(texts, parents, strict=True))
        assert row.sets["golden"].score.estimate == pytest.approx(right / 200)
        assert row.agreement_student.estimate == pytest.approx(same / 200)
        assert row.sets["held_out"].agreement is not None
        assert row.size_bytes == LIKE[row.name].size  # type: ignore[index]
    same_answers = next(row for row in table.artefacts if row.name == "onnx-int8")
    assert same_answers.divergence_student is not None
    assert same_answers.divergence_student.estimate == pytest.approx(0, abs=1e-5)
    assert same_answers.retention_student is not None
    assert same_answers.retention_student.estimate == 1


def test_an_artefact_that_was_edited_since_is_named(run: RunFolder) -> None:
    compress(run, recipe_of(formats=["onnx", "onnx-int8"]), Workshop())
    folder = run.stage("compress")
    assert compressing._verified(folder).table == table_of(run)
    (folder / "onnx-int8" / "model.bin").write_bytes(b"edited")
    with pytest.raises(UserError, match=r"model\.bin: was changed after .*; delete .*onnx-int8"):
        compressing._verified(folder)


def test_a_worse_one_is_refused_in_one_line_with_its_figures(done: RunFolder) -> None:
    worse = table_of(done).rows[3]
    assert worse.verdict == "fail"
    assert "worse than the float student: -" in worse.sentence
    assert "worse than the teacher: -" in worse.sentence
    assert "margin -2 (n = 200)" in worse.sentence
    assert "\n" not in worse.sentence


def test_a_slower_one_is_refused_and_none_may_pass(run: RunFolder) -> None:
    shop = Workshop({"onnx": Made(900, seconds=SLOW_S)})
    compress(run, recipe_of(formats=["onnx"]), shop)
    table = table_of(run)
    assert table.best is None
    assert not (run.stage("compress") / "best").exists()
    (row,) = table.artefacts
    assert "slower than the float student: p50 " in row.sentence
    assert "1x is needed" in row.sentence
    assert "worse" not in row.sentence


def test_what_cannot_be_made_is_left_out_and_said(run: RunFolder) -> None:
    shop = Workshop({**LIKE, "onnx": Made(1, refuses="no exporter knows MyNet")})
    compress(run, recipe_of(), shop)
    table = table_of(run)
    assert table.left_out == {"onnx": "student: no exporter knows MyNet"}
    assert [row.name for row in table.artefacts] == ["onnx-int8", "onnx-int8-static"]
    assert not list(run.stage("compress").glob("*.partial"))


def test_where_nothing_can_be_made_the_reason_is_the_error(run: RunFolder) -> None:
    shop = Workshop({"onnx": Made(1, refuses="no exporter knows MyNet")})
    with pytest.raises(UserError, match="no exporter knows MyNet"):
        compress(run, recipe_of(formats=["onnx"]), shop)


def test_a_killed_stage_keeps_what_is_finished(run: RunFolder) -> None:
    recipe, shop = recipe_of(), Workshop()

    def kill(name: str) -> None:
        if name == "onnx-int8-static":
            raise KeyboardInterrupt

    shop.before = kill
    with pytest.raises(KeyboardInterrupt):
        compress(run, recipe, shop)
    again = Workshop()
    compress(run, recipe, again)
    assert [request.folder.name for request in again.written] == ["onnx-int8-static.partial"]
    assert [row.name for row in table_of(run).artefacts] == list(FORMATS)


def test_an_artefact_edited_between_two_tries_is_named(run: RunFolder) -> None:
    recipe, shop = recipe_of(), Workshop()
    shop.before = lambda name: (_ for _ in ()).throw(KeyboardInterrupt) if name != "onnx" else None
    with pytest.raises(KeyboardInterrupt):
        compress(run, recipe, shop)
    (run.partial("compress") / "onnx" / "model.bin").write_bytes(b"other")
    compress(run, recipe, Workshop())
    assert "model.bin: was changed after" in table_of(run).left_out["onnx"]


def test_two_runs_have_equal_manifests(run: RunFolder, done: RunFolder) -> None:
    first, second = done.manifest("compress"), compress(run, recipe_of(), Workshop())
    assert first is not None
    assert first.outputs == second.outputs
    assert first.summary == second.summary
    assert {"predictions.jsonl", "onnx-int8/model.bin", "onnx-int8/artefact.json"} <= set(
        first.outputs
    )
    assert "table.json" not in first.outputs


def test_only_formats_that_need_it_are_given_calibration_texts(run: RunFolder) -> None:
    shop = Workshop()
    compress(run, recipe_of(calibration_samples=7), shop)
    assert [len(request.calibration) for request in shop.written] == [0, 0, 7]
    texts = {task_text for request in shop.written for task_text in request.calibration}
    assert all(" film about " in text for text in texts)


def test_predictions_hold_everyone(done: RunFolder) -> None:
    lines = list(read_records(done.stage("compress") / "predictions.jsonl", Prediction))
    assert {line.set for line in lines} == {"golden", "held_out"}
    assert set(lines[0].answers) == {"teacher", "student", *FORMATS}


def test_the_card_says_where_it_comes_from_and_what_it_does(done: RunFolder) -> None:
    text = (done.stage("compress") / "onnx-int8" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text[4:].partition("\n---")[0])
    assert head["library_name"] == "onnx"
    assert head["pipeline_tag"] == "text-classification"
    assert head["base_model_relation"] == "quantized"
    assert head["license"] == "apache-2.0"
    value = head["model-index"][0]["results"][0]["metrics"][0]["value"]
    row = table_of(done).rows[2]
    assert value == round(row.sets["golden"].score.estimate, 4)
    for part in ("It passes its gate", "terms", "float student", "cold start", "## Limits"):
        assert part in text


def test_the_report_has_the_table(done: RunFolder) -> None:
    recipe = recipe_of()
    report = write_report(recipe, done)
    assert report.compress == table_of(done)
    page = (done.root / "report.html").read_text(encoding="utf-8")
    assert "Smaller forms" in page
    assert "onnx-int8-static is refused" in page
    assert json.loads((done.root / "report.json").read_text())["compress"]["best"] == "onnx-int8"


def test_another_students_folder_is_asked_anew(run: RunFolder, tmp_path: Path) -> None:
    recipe, shop = recipe_of(), Workshop()
    student = tmp_path / "pruned"
    student.mkdir()
    (student / "weights").write_text("pruned")
    work = run.open_partial(key(recipe))
    run_compress(recipe, run, work, Silent(), student=student, tools=shop.tools)
    assert all(one.closed for one in shop.opened)
    assert list((work / "answers").glob("student.golden.*"))
    assert shop.written[0].name == "pruned"
    text = (work / "onnx" / "README.md").read_text(encoding="utf-8")
    assert "folder `pruned`" in text
    assert "base_model" not in text


def test_an_artefact_is_not_compressed_again(done: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an artefact already"):
        run_compress(
            recipe_of(),
            done,
            tmp_path,
            Silent(),
            student=done.stage("compress") / "onnx",
            tools=Workshop().tools,
        )


def test_one_that_is_too_big_is_refused(run: RunFolder) -> None:
    compress(run, recipe_of(max_size_mb=0.0005), Workshop())
    table = table_of(run)
    big = table.rows[1]
    assert big.verdict == "fail"
    assert big.sentence == (
        "onnx is refused: bigger than compress.max_size_mb: 0.9 kB on disk, 0.0005 MB is allowed"
    )
    assert table.best == "onnx-int8"


def learned(asked: list[Path]) -> Retrain:
    """A training that leaves a folder of its own."""

    def retrain(student: Path, work: Path) -> Path:
        asked.append(student)
        (work / "student").mkdir(parents=True, exist_ok=True)
        (work / "student" / "weights").write_text("on the grid")
        return work / "student"

    return retrain


def again(run: RunFolder, recipe: Recipe, shop: Workshop, retrain: Retrain) -> CompressedTable:
    work = run.open_partial(key(recipe))
    outcome = run_compress(recipe, run, work, Silent(), retrain=retrain, tools=shop.tools)
    run.finish(key(recipe), outcome, 1.0, 100.0)
    return table_of(run)


def test_an_int8_form_below_its_gate_is_made_again_of_a_student_that_learned(
    run: RunFolder,
) -> None:
    asked: list[Path] = []
    shop = Workshop(better=0.17)
    table = again(run, recipe_of(), shop, learned(asked))
    assert asked == [run.stage("train") / "student"]
    assert [row.name for row in table.artefacts] == [*FORMATS, "onnx-int8-static-aware"]
    plain, aware = table.artefacts[2:]
    assert plain.verdict == "fail"
    assert aware.verdict == "pass"
    assert plain.gain is None
    assert aware.gain is not None
    golden = [row.sets["golden"].score.estimate for row in (plain, aware)]
    assert aware.gain.estimate == pytest.approx(golden[1] - golden[0])
    assert aware.gain.low > 0
    assert any("onnx-int8-static-aware is onnx-int8-static of" in note for note in table.notes)
    made = read_artefact(run.stage("compress") / aware.folder)
    assert made.made_from.student == student_sha(run.stage("compress/quantization-aware/student"))
    assert table.best == "onnx-int8-static-aware"
    card = (run.stage("compress") / aware.folder / "README.md").read_text(encoding="utf-8")
    assert "distilled further" in card


def test_a_student_whose_int8_form_holds_is_not_trained(run: RunFolder) -> None:
    asked: list[Path] = []
    recipe = recipe_of(formats=["onnx", "onnx-int8"])
    again(run, recipe, Workshop(), learned(asked))
    assert asked == []


def test_a_student_that_cannot_learn_is_said(run: RunFolder) -> None:
    def refuses(student: Path, work: Path) -> Path:
        raise UserError("student", "has no linear layers")

    table = again(run, recipe_of(), Workshop(), refuses)
    assert table.left_out == {"onnx-int8-static-aware": "student: has no linear layers"}
    assert [row.name for row in table.artefacts] == list(FORMATS)


def test_killed_between_training_and_export_it_goes_on(run: RunFolder) -> None:
    recipe, shop, asked = recipe_of(), Workshop(better=0.17), list[Path]()
    shop.again = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        again(run, recipe, shop, learned(asked))
    second = Workshop(better=0.17)
    table = again(run, recipe, second, learned(asked))
    assert [one.folder.name for one in second.written] == ["onnx-int8-static-aware.partial"]
    assert table.rows[-1].verdict == "pass"
